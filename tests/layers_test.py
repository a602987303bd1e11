"""Rules say which parameters are meant, and slices are layers of their own."""

import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from tests.optimizer_test import RATES, assert_trees_close, joint, run, schedule, tree

OPTIONS = {
    "paper": {},
    "spectral": {"geometry": "spectral"},
    "LAMB-like": {"denominator": "update", "momentum_of": "gradient"},
    "outside": {"weight_decay_kind": "outside", "denominator": "sum"},
    "clipped": {"clip": True, "trust_coefficient": 1.0},
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------- stacked


@pytest.mark.parametrize(
    ("name", "axes"),
    [*((name, 0) for name in OPTIONS), ("paper", (-1,)), ("spectral", (2, 0))],
)
def test_stacked_layers_equal_unstacked_ones(name, axes):
    numbers = axes if isinstance(axes, tuple) else (axes,)
    w, gradients = normal(0, 3, 4, 2), [normal(i, 3, 4, 2) for i in (1, 2, 3)]
    elements = np.arange(24).reshape(w.shape)
    places = list(np.ndindex(*(w.shape[n] for n in numbers)))

    def slice_of(x, place):
        return np.moveaxis(x, numbers, range(len(numbers)))[place]

    # Every slice has a scale of its own, from underflowing to overflowing; one is zero.
    scales = np.logspace(-30, 30, len(places)).astype(np.float32)
    for k, place in enumerate(places):
        chosen = np.isin(elements, slice_of(elements, place))
        w[chosen] *= scales[k] if k else 0
        gradients[0][chosen] *= scales[-k]
    optimizer = lars.lars(
        schedule, 0.1, stacked=((lars.select(path="w"), axes),), **OPTIONS[name]
    )
    actual, state = run(optimizer, {"w": w}, [{"w": g} for g in gradients])
    alone = lars.lars(schedule, 0.1, **OPTIONS[name])
    ratios = lars.trust_ratios(state)["w"]
    assert ratios.shape == tuple(w.shape[n] for n in numbers)
    for place in places:
        expected, lonely = run(
            alone,
            {"w": slice_of(w, place)},
            [{"w": slice_of(g, place)} for g in gradients],
        )
        for a, e in zip(actual, expected, strict=True):
            e = np.asarray(e["w"])
            np.testing.assert_allclose(
                slice_of(np.asarray(a["w"]), place),
                e,
                rtol=1e-5,
                atol=1e-5 * np.abs(e).max(),
            )
        np.testing.assert_allclose(
            ratios[place], lars.trust_ratios(lonely)["w"], rtol=1e-5
        )


def test_a_stacked_kernel_and_its_bias_share_the_ratio_slice_by_slice():
    params = {"kernel": normal(0, 3, 4, 5), "bias": normal(1, 3, 5)}
    g = {"kernel": normal(2, 3, 4, 5), "bias": normal(3, 3, 5)}
    optimizer = lars.lars(1.0, layer="module", stacked=((lars.select(path=""), 0),))
    _, state = optimizer.update(g, optimizer.init(params), params)
    expected = [
        1e-3
        * joint(params["kernel"][i], params["bias"][i])
        / joint(g["kernel"][i], g["bias"][i])
        for i in range(3)
    ]
    for ratios in lars.trust_ratios(state).values():
        np.testing.assert_allclose(ratios, expected, rtol=1e-6)


def test_sharing_needs_the_same_layer_axes():
    params = {"kernel": normal(0, 3, 4, 5), "bias": normal(1, 3, 5)}
    optimizer = lars.lars(
        1.0, layer="module", stacked=((lars.select(path="kernel"), 0),)
    )
    with pytest.raises(ValueError, match="'bias' and 'kernel' share a ratio, but are"):
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
def test_kernels_at_the_top_are_fine_where_they_are_not_one_by_accident(options):
    lars.lars(1.0, **{"layer": "module", **options}).init(kernels_at_the_top())


@pytest.mark.parametrize("stacked", [(), [(lars.select(path=""), 0)]])
def test_one_module_may_be_the_whole_tree(stacked):
    # A stack of three biases has two axes, and is no kernel for that.
    shapes = {"kernel": (3, 4, 5), "bias": (3, 5) if stacked else (5,), "scale": (3,)}
    params = {name: normal(0, *shape) for name, shape in shapes.items()}
    rows = lars.describe(params, layer="module", stacked=stacked)
    assert {row.shares for row in rows} == {
        "bias, kernel",
        "bias, scale",
        "kernel, scale",
    }


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_the_ratio_does_not_see_the_arrangement_of_the_elements(seed):
    rng = np.random.default_rng(seed)
    w, g = normal(seed, 4, 6), normal(seed + 100, 4, 6)
    order = rng.permutation(24)
    arrangements = [
        lambda x: x.ravel()[order].reshape(4, 6),
        lambda x: x.reshape(2, 12),
        lambda x: x.reshape(2, 2, 6),
        lambda x: x.T,
    ]
    optimizer = lars.lars(3.0, 0.1)
    expected, state = optimizer.update(g, optimizer.init(w), w)
    for arrange in arrangements:
        updates, arranged = optimizer.update(
            arrange(g), optimizer.init(arrange(w)), arrange(w)
        )
        np.testing.assert_allclose(updates, arrange(np.asarray(expected)), rtol=1e-5)
        np.testing.assert_allclose(
            lars.trust_ratios(arranged), lars.trust_ratios(state), rtol=1e-6
        )


# --------------------------------------------------------------------- rules


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
    with pytest.raises(
        ValueError, match=r"'biass'.*none of the 5.*first/bias, first/k"
    ):
        lars.lars(1.0, weight_decay_mask=~lars.select(path="biass")).init(tree(0))
    lars.lars(1.0, weight_decay_mask=~lars.select(path="biass", required=False)).init(
        tree(0)
    )


def test_a_rule_that_is_given_one_number_points_to_inject_hyperparams():
    forgotten = optax.inject_hyperparams(lars.lars)(
        1.0, weight_decay_mask=~lars.select(path="bias")
    )
    with pytest.raises(ValueError, match=r"'bias'.*inject_hyperparams.*static_args"):
        forgotten.init(tree(0))


def test_selections_are_not_composed_by_not_and_or():
    a, b = lars.select(rank=1), lars.select(path="first")
    for misuse in (lambda: not a, lambda: a and b, lambda: a or b, lambda: bool(~a)):
        with pytest.raises(TypeError, match=r"rank=1\).* with ~a, a & b and a \| b"):
            misuse()


@pytest.mark.parametrize("operand", [True, None, "bias", {"first": True}])
def test_selections_compose_with_selections_only(operand):
    for compose, name in ((operator.and_, "&"), (operator.or_, r"\|")):
        message = f"composes with {name} .* got {re.escape(repr(operand))}"
        with pytest.raises(TypeError, match=message):
            compose(lars.select(rank=1), operand)
        with pytest.raises(TypeError, match="unsupported operand"):
            compose(operand, lars.select(rank=1))


def test_a_rate_behind_an_earlier_one_is_no_error():
    bias = lars.select(path="bias")
    rates = [(bias, 0.5), (bias & lars.select(path="first"), 0.25)]
    rows = lars.describe(tree(0), learning_rates=rates)
    assert {row.rate for row in rows} == {"common", repr(bias)}


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


def test_tied_weights_share_a_ratio_and_others_do_not():
    params, g = tree(0), tree(1)
    tied = lars.select(path="first/kernel|third/kernel")
    optimizer = lars.lars(1.0, layer=[tied])
    _, state = optimizer.update(g, optimizer.init(params), params)
    ratios = lars.trust_ratios(state)
    expected = (
        1e-3
        * joint(params["first"]["kernel"], params["third"]["kernel"])
        / joint(g["first"]["kernel"], g["third"]["kernel"])
    )
    np.testing.assert_allclose(ratios["first"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(ratios["third"]["kernel"], expected, rtol=1e-6)
    own = 1e-3 * joint(params["first"]["bias"]) / joint(g["first"]["bias"])
    np.testing.assert_allclose(ratios["first"]["bias"], own, rtol=1e-6)


def test_own_learning_rates_and_the_first_rule_that_selects():
    params, gradients = tree(0), [tree(i + 1) for i in range(5)]
    bias, third = lars.select(path="bias"), lars.select(path="third")
    optimizer = lars.lars(
        2.0,
        1e-2,
        trust_ratio_mask=~bias,
        learning_rates=[(bias, schedule), (third, 0.25)],
    )
    actual, _ = run(optimizer, params, gradients)
    by_rate = {
        rate: run(lars.lars(rate, 1e-2, trust_ratio_mask=~bias), params, gradients)[0]
        for rate in (2.0, schedule, 0.25)
    }
    for i in range(5):
        expected = {
            "first": {
                "kernel": by_rate[2.0][i]["first"]["kernel"],
                "bias": by_rate[schedule][i]["first"]["bias"],
            },
            "second": by_rate[2.0][i]["second"],
            "third": {
                "kernel": by_rate[0.25][i]["third"]["kernel"],
                "bias": by_rate[schedule][i]["third"]["bias"],
            },
        }
        assert_trees_close(actual[i], expected, rtol=1e-6)


def test_excluded_parameters_can_have_a_momentum_of_their_own_kind():
    params, gradients = tree(0), [tree(i + 1) for i in range(5)]
    bias = lars.select(path="bias")
    optimizer = lars.lars(
        schedule, trust_ratio_mask=~bias, excluded_momentum_of="gradient"
    )
    actual, _ = run(optimizer, params, gradients)
    # Heavy ball with the rate outside the buffer, by hand.
    w, v = params["first"]["bias"].astype(np.float64), 0
    for i, rate in enumerate(RATES):
        v = 0.9 * v + gradients[i]["first"]["bias"]
        w = w - rate * v
        np.testing.assert_allclose(actual[i]["first"]["bias"], w, rtol=1e-5)
    adapted, _ = run(lars.lars(schedule), params, gradients)
    assert_trees_close(
        actual[-1]["first"]["kernel"], adapted[-1]["first"]["kernel"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stacked": "kernel"}, TypeError, "stacked must be a sequence of pairs"),
        ({"stacked": [(lars.select(rank=2), 0.5)]}, TypeError, "number of an axis"),
        (
            {"stacked": [(lars.select(rank=2), 2)]},
            ValueError,
            "'first/kernel'.*\\(5, 4\\)",
        ),
        ({"stacked": [(lars.select(rank=2), (0, -2))]}, ValueError, "twice"),
        ({"learning_rates": {"bias": 1.0}}, TypeError, "learning_rates must be"),
        ({"learning_rates": [(lars.select(rank=1), -1.0)]}, ValueError, "got -1.0"),
        ({"layer": ["kernel"]}, ValueError, "layer must be"),
        (
            {"trust_ratio_mask": {"first": True}},
            ValueError,
            "trust_ratio_mask does not",
        ),
        ({"weight_decay_mask": [True]}, ValueError, "weight_decay_mask does not match"),
    ],
)
def test_rules_that_do_not_fit_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.lars(1.0, **arguments).init(tree(0))


# ------------------------------------------------------------------ describe


def test_the_description_says_of_every_parameter_what_is_done():
    params = tree(0)
    params["stack"] = normal(5, 3, 2)
    bias = lars.select(path="bias")
    rows = lars.describe(
        params,
        layer="module",
        trust_ratio_mask=~lars.select(path="third/bias"),
        weight_decay_mask=~bias,
        learning_rates=[(bias, 0.5)],
        stacked=[(lars.select(path="stack"), 0)],
    )
    by_name = {row.parameter: row for row in rows}
    assert by_name["first/bias"].shares == "first/kernel"
    assert by_name["third/bias"].shares == "none"
    assert not by_name["third/bias"].adapted
    assert by_name["third/kernel"].adapted
    assert not by_name["first/bias"].decayed
    assert by_name["first/kernel"].decayed
    assert by_name["first/bias"].rate == "lars.select(path='bias')"
    assert by_name["first/kernel"].rate == "common"
    assert by_name["stack"].ratios == 3
    np.testing.assert_allclose(
        by_name["second/kernel"].norm, joint(params["second"]["kernel"]), rtol=1e-6
    )
    lines = str(rows).splitlines()
    assert len(lines) == 2 + 6 + 1
    assert lines[-1] == "6 parameters, 63 elements: 5 adapted, 4 decayed."


def test_shapes_are_enough_for_a_description():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(0)))
    assert all(row.norm is None for row in lars.describe(shapes))
    with pytest.raises(ValueError, match="selects none"):
        lars.describe(shapes, weight_decay_mask=lars.select(path="nothing"))
