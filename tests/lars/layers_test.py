"""Rules say which parameters are meant, and slices are layers of their own."""

import operator
import re

import jax
import numpy as np
import optax
import pytest

import lars
from tests.lars.steps import (
    assert_near,
    first_step,
    joint,
    normal,
    scan,
    schedule,
    tree,
)

KERNELS = lars.select(path="kernel")
OPTIONS = {
    "paper": {},
    "spectral": {"geometry": lars.Spectral(steps=2)},
    "outside, clipped": {
        **{"weight_decay_kind": "outside", "clip": True, "trust_coefficient": 1.0}
    },
}


@pytest.mark.parametrize(
    ("name", "axes"),
    [("paper", (-1,)), ("outside, clipped", 0), ("spectral", (2, 0))],
)
def test_slices_of_a_stack_equal_arrays_of_their_own(name, axes):
    numbers = axes if isinstance(axes, tuple) else (axes,)
    w, gradients = normal(0, 3, 4, 2), normal(1, 3, 3, 4, 2)
    places = list(np.ndindex(*(w.shape[n] for n in numbers)))
    # Every slice has a scale of its own, from underflowing to overflowing; one is zero.
    scales = np.logspace(-30, 30, len(places)).astype(np.float32)
    for k, place in enumerate(places):
        slice_of(w, numbers, place)[...] *= scales[k] if k else 0
        slice_of(gradients[0], numbers, place)[...] *= scales[-k]
    optimizer = lars.lars(
        schedule, 0.1, stacked=((lars.select(path=""), axes),), **OPTIONS[name]
    )
    alone = lars.lars(schedule, 0.1, **OPTIONS[name])

    def steps(optimizer, w, gradients):
        weights, state = scan(optimizer, w, gradients)
        return weights, lars.trust_ratios(state)

    together, ratios = jax.jit(lambda w, g: steps(optimizer, w, g))(w, gradients)
    assert ratios.shape == tuple(w.shape[n] for n in numbers)
    expected, expected_ratios = jax.jit(
        lambda w, g: jax.lax.map(lambda x: steps(alone, *x), (w, g))
    )(
        np.stack([slice_of(w, numbers, place) for place in places]),
        np.stack(
            [[slice_of(g, numbers, place) for g in gradients] for place in places]
        ),
    )
    for k, place in enumerate(places):
        for t in range(3):
            actual = slice_of(np.asarray(together[t]), numbers, place)
            assert_near(actual, expected[k, t], 1e-5)
        np.testing.assert_allclose(ratios[place], expected_ratios[k], rtol=1e-5)


def slice_of(x, axes, place):
    """A view of the slice at a place along axes."""
    return np.moveaxis(x, axes, range(len(axes)))[place]


def test_a_stacked_kernel_and_its_bias_share_the_ratio_slice_by_slice():
    params = {"kernel": normal(0, 3, 4, 5), "bias": normal(1, 3, 5)}
    g = {"kernel": normal(2, 3, 4, 5), "bias": normal(3, 3, 5)}
    optimizer = lars.lars(1.0, layer="module", stacked=((lars.select(path=""), 0),))
    _, state = first_step(optimizer, g, params)
    expected = [
        1e-3
        * joint(params["kernel"][i], params["bias"][i])
        / joint(g["kernel"][i], g["bias"][i])
        for i in range(3)
    ]
    for ratios in lars.trust_ratios(state).values():
        np.testing.assert_allclose(ratios, expected, rtol=1e-6)


def test_the_first_matching_rule_of_stacked_holds():
    rules = [(lars.select(path="first/kernel"), 1), (KERNELS, 0)]
    rows = lars.describe(shapes(), stacked=[*rules, (lars.select(path="bias"), 0)])
    assert {row.parameter: row.ratios for row in rows} == {
        **{"first/kernel": 4, "second/kernel": 3, "third/kernel": 2},
        **{"first/bias": 4, "third/bias": 3},
    }


def shapes():
    """Of the parameters: no values are needed to apply rules."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(0))


def test_tied_weights_share_a_ratio_and_excluded_ones_do_not():
    params, g = tree(0), tree(1)
    kernels = [("first", "kernel"), ("third", "kernel")]
    tied = lars.select(path="first/kernel|third/kernel|first/bias")
    excluded = lars.select(path="first/bias")
    optimizer = lars.lars(1.0, layer=[tied], trust_ratio_mask=~excluded)
    ratios = lars.trust_ratios(first_step(optimizer, g, params)[1])

    def ratio(*places):
        w, d = ([tree[a][b] for a, b in places] for tree in (params, g))
        return 1e-3 * joint(*w) / joint(*d)

    expected = dict.fromkeys(kernels, ratio(*kernels))
    for place in [("third", "bias"), ("second", "kernel")]:
        expected[place] = ratio(place)
    expected["first", "bias"] = 1
    for (module, part), value in expected.items():
        np.testing.assert_allclose(ratios[module][part], value, rtol=1e-6)


FIRST_AND_THIRD = {"first/kernel": "third/kernel", "third/kernel": "first/kernel"}
BIASES = {"first/bias": "third/bias", "third/bias": "first/bias"}
LAYERS = {
    "a selection": (
        lars.select(path="first/kernel|third/kernel"),
        FIRST_AND_THIRD,
    ),
    "rules": (
        [lars.select(path="first/kernel|third/kernel"), lars.select(path="bias")],
        FIRST_AND_THIRD | BIASES,
    ),
    "a function": (
        lambda path: path[-1].key if path[0].key != "second" else path,
        FIRST_AND_THIRD | BIASES,
    ),
    "rules of which the first holds": (
        [lars.select(path="third"), lars.select(path="bias")],
        {"third/bias": "third/kernel", "third/kernel": "third/bias"},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_shares_a_ratio_can_be_given_in_three_ways(name):
    layer, shares = LAYERS[name]
    for row in lars.describe(shapes(), layer=layer):
        assert row.shares == shares.get(row.parameter, "none")


def test_sharing_needs_the_same_layer_axes():
    params = {"dense": {"kernel": normal(0, 3, 4, 5), "bias": normal(1, 3, 5)}}
    optimizer = lars.lars(1.0, layer="module", stacked=((KERNELS, 0),))
    message = "'dense/bias' and 'dense/kernel' share a ratio, but are"
    with pytest.raises(ValueError, match=message):
        optimizer.init(params)


def kernels_at_the_top():
    return {"first": normal(0, 2, 3), "last": normal(1, 3, 4), "bias": normal(2, 4)}


def test_modules_need_a_tree_that_is_nested_by_module():
    optimizer = lars.lars(1.0, layer="module")
    message = "one ratio to 'first', 'last', which .* Nest the parameters by module"
    for params in (kernels_at_the_top(), {**kernels_at_the_top(), "other": tree(0)}):
        with pytest.raises(ValueError, match=message):
            optimizer.init(params)
        with pytest.raises(ValueError, match=message):
            lars.describe(params, layer="module")
    with pytest.raises(ValueError, match="one ratio to '0', '1'"):
        optimizer.init([normal(0, 2, 3), normal(1, 3, 4)])
    optimizer.init({name: {"kernel": x} for name, x in kernels_at_the_top().items()})


@pytest.mark.parametrize(
    "options",
    [
        {"layer": "parameter"},
        {"layer": lambda path: path[:-1]},  # said in words, it is meant
        {"layer": [lars.select(rank=2)]},
        {"trust_ratio_mask": ~lars.select(path="last")},  # has no ratio to share
    ],
)
def test_kernels_at_the_top_are_fine_where_they_share_on_purpose(options):
    lars.describe(kernels_at_the_top(), **{"layer": "module", **options})


@pytest.mark.parametrize("stacked", [(), [(lars.select(path=""), 0)]])
def test_the_whole_tree_can_be_one_module(stacked):
    # A stack of three biases has two axes, and is no kernel for that.
    lengths = {"kernel": (3, 4, 5), "bias": (3, 5) if stacked else (5,), "scale": (3,)}
    params = {
        name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in lengths.items()
    }
    rows = lars.describe(params, layer="module", stacked=stacked)
    assert {row.shares for row in rows} == {
        "bias, kernel",
        "bias, scale",
        "kernel, scale",
    }


def test_selections_by_path_rank_and_test_compose():
    params = tree(0)
    bias = lars.select(path=r"bias$")
    assert bias(params)["first"] == {"kernel": False, "bias": True}
    assert (~bias)(params)["first"] == {"kernel": True, "bias": False}
    assert lars.select(rank=(2, 3))(params)["second"]["kernel"]
    large = lars.select(test=lambda path, leaf: leaf.size > 20)
    assert jax.tree.leaves(large(params)) == [False, False, True, False, False]
    both = lars.select(path="first") & lars.select(rank=1)
    assert jax.tree.leaves(both(params)) == [True, False, False, False, False]
    either = lars.select(path="second") | both
    assert jax.tree.leaves(either(params)) == [True, False, True, False, False]
    conditions = lars.select(path="first", rank=1)
    assert conditions(params) == both(params)
    assert repr(~both) == "~(lars.select(path='first') & lars.select(rank=1))"


def test_a_rule_that_selects_nothing_is_an_error_that_shows_the_paths():
    message = r"'biass'.*none of the 5.*first/bias, first/k"
    with pytest.raises(ValueError, match=message):
        lars.lars(1.0, weight_decay_mask=~lars.select(path="biass")).init(tree(0))


def test_a_rule_that_is_given_one_number_points_to_inject_hyperparams():
    forgotten = optax.inject_hyperparams(lars.lars)(
        1.0, weight_decay_mask=~lars.select(path="bias")
    )
    with pytest.raises(ValueError, match=r"'bias'.*inject_hyperparams.*static_args"):
        forgotten.init(tree(0))


def test_selections_compose_by_operators_and_with_selections_only():
    a, b = lars.select(rank=1), lars.select(path="first")
    for misuse in (lambda: not a, lambda: a and b, lambda: a or b, lambda: bool(~a)):
        with pytest.raises(TypeError, match=r"rank=1\).* with ~a, a & b and a \| b"):
            misuse()
    for operand in (True, None, "bias", {"first": True}):
        for compose, name in ((operator.and_, "&"), (operator.or_, r"\|")):
            message = f"composes with {name} .* got {re.escape(repr(operand))}"
            with pytest.raises(TypeError, match=message):
                compose(a, operand)
            with pytest.raises(TypeError, match="unsupported operand"):
                compose(operand, a)


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({}, ValueError, "needs a path, a rank or a test"),
        ({"path": "("}, ValueError, r"path .* got '\('"),
        ({"path": 3}, TypeError, "path .* got 3"),
        ({"rank": 1.5}, TypeError, "rank"),
        ({"rank": ()}, TypeError, "rank"),
        ({"test": "kernel"}, TypeError, "test .* got 'kernel'"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(conditions, error, message):
    with pytest.raises(error, match=message):
        lars.select(**conditions)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stacked": "kernel"}, TypeError, "stacked must be a sequence of pairs"),
        ({"stacked": [(lars.select(rank=2), 0.5)]}, TypeError, "number of an axis"),
        ({"stacked": [(lars.select(rank=2), 2)]}, ValueError, r"first/k.*\(5, 4\)"),
        ({"stacked": [(lars.select(rank=2), (0, -2))]}, ValueError, "twice"),
        ({"stacked": [(lars.select(rank=2), ())]}, TypeError, "number of an axis"),
        ({"output_axes": [3]}, TypeError, "output_axes must be a sequence of pairs"),
        ({"output_axes": [(lars.select(rank=2), -3)]}, ValueError, "'first/kernel'"),
        (
            {"trust_ratio_mask": {"first": True}},
            ValueError,
            "ratio_mask does not match",
        ),
        ({"weight_decay_mask": [True]}, ValueError, "weight_decay_mask does not match"),
    ],
)
def test_rules_that_do_not_fit_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.lars(1.0, **arguments).init(tree(0))


def test_the_description_says_of_every_parameter_what_is_done():
    second = tree(0)["second"]["kernel"]
    params = {**shapes(), "second": {"kernel": second}}
    params["stack"] = jax.ShapeDtypeStruct((3, 2), np.float32)
    rows = lars.describe(
        params,
        layer="module",
        trust_ratio_mask=~lars.select(path="third/bias"),
        weight_decay_mask=~lars.select(path="bias"),
        stacked=[(lars.select(path="stack"), 0)],
    )
    by_name = {row.parameter: row for row in rows}
    assert by_name["first/bias"].shares == "first/kernel"
    assert by_name["third/bias"].shares == "none"
    assert not by_name["third/bias"].adapted
    assert by_name["third/kernel"].adapted
    assert not by_name["first/bias"].decayed
    assert by_name["first/kernel"].decayed
    assert by_name["first/kernel"].dtype == "float32"
    assert by_name["stack"].ratios == 3
    np.testing.assert_allclose(by_name["second/kernel"].norm, joint(second), rtol=1e-6)
    assert by_name["first/kernel"].norm is None
    lines = str(rows).splitlines()
    assert len(lines) == 2 + 6 + 1
    assert lines[-1] == "6 parameters, 63 elements: 5 adapted, 4 decayed."
