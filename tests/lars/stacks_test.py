"""Stacks of small arrays step as their arrays would one by one."""

import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings, strategies as st

import lars
from lars import stacks
from tests.lars.steps import run

SHAPES = [(), (3,), (3, 4), (2, 3, 4), (0,), (40, 30)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.complex64]
OPTIONS = [
    {},
    {"layer": "module", "momentum": 0.0},
    {"momentum_of": "gradient", "geometry": "spectral"},
    {"weight_decay_kind": "outside", "nesterov": True, "denominator": "decayed"},
]


@st.composite
def trees(draw):
    """Modules of a few kinds of arrays, each kind several times, in random order."""
    kinds = draw(
        st.lists(
            st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES)), min_size=1
        )
    )
    arrays = draw(st.permutations(kinds[:4] * draw(st.integers(1, 4))))
    names = draw(st.lists(st.sampled_from("abc"), min_size=99, max_size=99))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for exponent in (0, 3, -3, 0):
        tree = {}
        for i, (shape, dtype) in enumerate(arrays):
            x = np.float32(10.0**exponent) * rng.normal(size=shape).astype(np.float32)
            tree.setdefault(names[i], {})[f"{names[-i]}{i}"] = jnp.asarray(x, dtype)
        found.append(tree)
    return found


def one_by_one(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(stacks, "SMALL_KERNEL", -1)
        return function()


def assert_equal(got, exact):
    for x, y in zip(*map(jax.tree.leaves, (got, exact)), strict=True):
        assert x.dtype == y.dtype
        rtol = 2e-2 if x.dtype == jnp.bfloat16 else 2e-5
        x, y = (np.asarray(z, np.complex128) for z in (x, y))
        size = np.max(np.abs(y), initial=0, where=np.isfinite(y))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * size)


@given(trees(), st.sampled_from(OPTIONS), st.booleans())
@settings(deadline=None, max_examples=12, phases=[Phase.generate])
def test_a_stack_steps_as_its_arrays_do(trees, options, has_rules):
    params, *gradients = trees
    if "geometry" in options:  # singular values of real matrices
        params, *gradients = jax.tree.map(jnp.real, trees)
    if has_rules:
        options = options | {
            "trust_ratio_mask": ~lars.select(path="a", required=False),
            "weight_decay_mask": ~lars.select(path="b", required=False),
        }
    if has_rules and "layer" not in options:  # a module's arrays share layer axes
        options["stacked"] = [(lars.select(rank=3, required=False), -1)]

    def trained():
        optimizer = lars.lars(0.5, 1e-3, **options)
        weights, state = run(optimizer, params, gradients)
        return weights, lars.trust_ratios(state), state.trace

    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = one_by_one(monkeypatch, trained)
    assert_equal(trained(), expected)


def test_many_arrays_of_middle_size_step_as_they_do_alone(monkeypatch):
    rng = np.random.default_rng(0)
    params, *gradients = (
        {f"w{i}": jnp.float32(rng.normal(size=(30, 40))) for i in range(7)}
        for _ in range(3)
    )

    def trained():
        return run(lars.lars(0.5, 1e-3), params, gradients)

    expected = trained()
    monkeypatch.setattr(stacks, "MANY", 6)
    assert_equal(trained(), expected)


NETWORKS = st.lists(
    st.tuples(
        st.sampled_from([(3, 4), (5, 3), (2, 3, 4), (4,)]),
        st.sampled_from([jnp.float32, jnp.bfloat16]),
        st.sampled_from([jnp.float32, jnp.bfloat16, None]),  # of the bias
    ),
    min_size=2,
    max_size=3,
)


@given(NETWORKS, st.integers(1, 3), st.randoms(), st.booleans())
@example(
    kinds=[((3, 4), jnp.float32, jnp.float32), ((3, 4), jnp.float32, jnp.bfloat16)],
    copies=2,
    order=random.Random(0),
    has_layers=False,
)
@settings(deadline=None, max_examples=4, phases=[Phase.explicit, Phase.generate])
def test_a_stack_of_kernels_steps_as_they_do_alone(kinds, copies, order, has_layers):
    modules = kinds * copies
    order.shuffle(modules)
    rng = np.random.default_rng(order.randrange(2**32))

    def module(shape, *dtypes):
        shapes = {"kernel": shape, "bias": shape[-1:]}
        return {
            name: jnp.asarray(rng.normal(size=shapes[name]), dtype)
            for name, dtype in zip(shapes, dtypes, strict=True)
            if dtype is not None
        }

    params, *gradients = (
        {f"m{i}": module(*of_one) for i, of_one in enumerate(modules)} for _ in range(4)
    )
    stacked = [(lars.select(rank=3, required=False), 0)] if has_layers else ()

    def trained():
        return run(lars.polar(0.3, stacked=stacked), params, gradients)

    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = one_by_one(monkeypatch, trained)
    assert_equal(trained(), expected)


@pytest.mark.parametrize("shape", [(3, 4), (40, 50)])  # stacked, and alone
def test_ratios_and_faults_are_those_of_their_arrays(shape):
    params = {"a": jnp.full(shape, 1.0), "b": jnp.full((6, 7), 10.0)}
    params |= {"c": jnp.full(shape, 100.0), "d": jnp.full((60, 70), 1e3)}
    grads = jax.tree.map(jnp.ones_like, params)
    grads["c"] = grads["c"].at[0, 0].set(jnp.nan)
    optimizer = lars.lars(1.0)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    ratios, skipped = lars.trust_ratios(state), lars.skipped_steps(state)
    expected = {"a": 1e-3, "b": 1e-2, "c": 0.0, "d": 1.0}
    assert ratios == {name: pytest.approx(x) for name, x in expected.items()}
    assert skipped == {"a": 0, "b": 0, "c": 1, "d": 0}


def test_one_bad_array_leaves_the_others_of_its_stack_alone():
    params = {f"w{i}": jnp.full(3, 1.0 + i) for i in range(5)}
    good = jax.tree.map(lambda x: x / 2, params)
    bad = good | {"w2": jnp.array([1.0, jnp.nan, 1.0])}
    optimizer = lars.lars(0.5)
    state = optimizer.init(params)
    expected, _ = jax.jit(optimizer.update)(good, state, params)
    updates, state = jax.jit(optimizer.update)(bad, state, params)
    for name in params:
        at_rest = np.zeros(3, np.float32)
        np.testing.assert_array_equal(
            updates[name], at_rest if name == "w2" else expected[name]
        )
    skipped = lars.skipped_steps(state)
    assert [int(skipped[name]) for name in params] == [0, 0, 1, 0, 0]


MOVES_DATA = {
    *("slice", "reshape", "concatenate", "broadcast_in_dim", "return", "constant"),
    "negate",  # in a loop that never runs: one for each of √n pieces
}


def operations(optimizer, count, *shape):
    """How many operations compute something in the step of that many equal arrays."""
    params = {
        f"w{i:04d}": jax.ShapeDtypeStruct(shape, jnp.float32) for i in range(count)
    }
    state = jax.eval_shape(optimizer.init, params)
    text = jax.jit(optimizer.update).lower(params, state, params).as_text()
    return sum(x not in MOVES_DATA for x in re.findall(r"stablehlo\.(\w+)", text))


@pytest.mark.parametrize(
    ("optimizer", "shape"),
    [
        (lars.lars(0.1, 1e-4), (10,)),
        (lars.lars(0.1, 1e-4), (40, 50)),
        (lars.lars(0.1, geometry="spectral"), (40, 50)),
        (lars.polar(0.1), (40, 50)),
    ],
)
def test_the_program_grows_with_shapes_and_not_with_arrays(optimizer, shape):
    few, many = 210, 1000
    assert operations(optimizer, few, *shape) == operations(optimizer, many, *shape)
