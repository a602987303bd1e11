"""The state is arrays alone, can be read, and is refused by another optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from lars.state import is_marker, marker, shape_of
from tests.lars.steps import (
    assert_same,
    assert_trees_close,
    first_step,
    run,
    tree,
)

PARAMS = {
    "a": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)},
    "b": {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)},
}
ONES = jax.tree.map(np.ones_like, PARAMS)


def test_the_state_is_arrays_of_known_shapes():
    state = lars.lars(1.0, stacked=[(lars.select(path="a/kernel"), (1, 0))]).init(
        PARAMS
    )
    assert jax.tree.structure(state.trace) == jax.tree.structure(PARAMS)
    assert state.trust_ratio.shape == state.skipped_steps.shape == (1 + 12 + 1 + 1,)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert len(jax.tree.leaves(state)) == 4 + 3
    assert shape_of(state.parameters["a"]["kernel"]) == (3, 4)
    assert shape_of(state.parameters["a"]["bias"]) == ()


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (10, 2, 11), (0,)])
def test_a_marker_says_how_many_ratios_a_parameter_has(shape):
    assert is_marker(marker(shape))
    assert shape_of(marker(shape)) == shape
    assert not jax.tree.leaves(marker(shape))


@pytest.mark.parametrize(
    "params",
    [
        {"a": [()], "b": jnp.ones(2), "c": {"w": ()}, "d": ()},
        ({"w": (jnp.ones(2),)}, (jnp.zeros(3),)),
        {"a": ({"relu": ()},), "b": (), "c": jnp.ones(2)},
        {"a": {"w": jnp.ones(2), "b": None, "c": {}}, "b": {"w": jnp.ones(3)}},
    ],
)
def test_empty_places_and_tuples_of_one_are_no_markers(params):
    optimizers = (
        lars.lars(1.0),
        optax.partition({1: lars.lars(1.0), 2: lars.lars(2.0)}, parts_of(params)),
    )
    for optimizer in optimizers:
        _, state = first_step(optimizer, params, params)
        ratios = lars.trust_ratios(state)
        assert jax.tree.structure(ratios) == jax.tree.structure(params)
        np.testing.assert_allclose(jax.tree.leaves(ratios), 1e-3, rtol=1e-6)


def parts_of(params):
    """A label for every array, two of them in turn."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([1 + i % 2 for i in range(len(leaves))])


def test_trust_ratios_before_the_first_step_are_zero_and_float32():
    ratios = lars.trust_ratios(lars.lars(1.0).init(tree(0, dtype=np.float16)))
    assert jax.tree.structure(ratios) == jax.tree.structure(tree(0))
    for ratio in jax.tree.leaves(ratios):
        assert ratio == 0
        assert ratio.dtype == jnp.float32


def test_map_params_finds_the_momentum():
    optimizer = lars.lars(1.0)
    marked = optax.tree.map_params(
        optimizer,
        lambda x: "like a parameter",
        optimizer.init(PARAMS),
        transform_non_params=lambda x: "not",
    )
    assert marked.trace == jax.tree.map(lambda _: "like a parameter", PARAMS)
    assert (marked.count, marked.trust_ratio, marked.skipped_steps) == ("not",) * 3


def test_an_optimizer_that_owns_nothing_leaves_the_ratios_to_the_others():
    optimizer = optax.multi_transform(
        {"all": lars.lars(1.0), "nothing": lars.lars(1.0)}, lambda _: "all"
    )
    broken = {**ONES, "b": {**ONES["b"], "bias": np.full(2, np.nan, np.float32)}}
    _, state = first_step(optimizer, broken, PARAMS)
    skipped = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 0, "bias": 1}}
    assert lars.skipped_steps(state) == skipped
    expected = jax.tree.map(lambda x: 1e-3 * (1 - x), skipped)
    assert_trees_close(lars.trust_ratios(state), expected)


@pytest.mark.parametrize("nothing", [optax.MaskedNode(), {"a": None}])
def test_the_ratios_of_nothing_are_nothing(nothing):
    optimizer = lars.lars(1.0)
    updates, state = optimizer.update(nothing, optimizer.init(nothing), nothing)
    assert updates == nothing
    assert lars.trust_ratios(state) == nothing
    assert lars.skipped_steps(state) == nothing


def test_a_state_without_lars_has_no_ratios():
    for read in (lars.trust_ratios, lars.skipped_steps):
        message = rf"{read.__name__} needs the state of lars\.lars"
        with pytest.raises(ValueError, match=message):
            read(optax.sgd(0.1).init(PARAMS))


def test_two_optimizers_of_one_parameter_have_no_ratios():
    twice = optax.chain(lars.lars(1.0), lars.lars(1.0))
    with pytest.raises(ValueError, match="Two LARS transformations own the same"):
        lars.trust_ratios(twice.init(PARAMS))


@pytest.mark.parametrize("place", [((),), ({"3": ()},)])
def test_empty_places_that_look_like_parameters_in_a_state_are_refused(place):
    with pytest.raises(ValueError, match="empty place"):
        lars.lars(1.0).init({"a": place, "b": jnp.ones(2)})


def test_a_complex_momentum_stays_complex_in_any_accumulator():
    params = {"w": jnp.array([1 + 1j, 2 + 1j], jnp.complex64), "x": jnp.ones(2)}
    grads = {"w": jnp.array([1j, 1j], jnp.complex64), "x": jnp.ones(2)}
    optimizer = lars.lars(1.0, accumulator_dtype=jnp.float32)
    weights, state = run(optimizer, params, [grads] * 2)
    dtypes = [x.dtype for x in jax.tree.leaves(state.trace)]
    assert dtypes == [jnp.complex64, jnp.float32]
    expected, _ = run(lars.lars(1.0), params, [grads] * 2)
    assert_same(weights, expected)
