"""Zero, underflow and what is not finite: three things, a policy for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from tests.optimizer_test import run, schedule, tree

FAMILIES = {
    "step": {},
    "direction": {"momentum_of": "direction", "nesterov": True},
    "gradient": {"momentum_of": "gradient"},
    "update": {"momentum_of": "gradient", "denominator": "update"},
    "outside": {"weight_decay_kind": "outside"},
    "decoupled": {"weight_decay_kind": "decoupled"},
    "spectral": {"geometry": "spectral"},
    "corrected": {"momentum_correction": True},
}
WRONG = [np.nan, np.inf, -np.inf]


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def faulty(value, step=1):
    gradients = [tree(i + 1) for i in range(4)]
    gradients[step]["first"]["kernel"][2, 3] = value
    return gradients


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_whose_gradient_is_not_finite_skips_that_step_alone(name, wrong):
    optimizer = lars.lars(2.0, 1e-2, **FAMILIES[name])
    params = tree(0)
    clean, clean_state = run(optimizer, params, [tree(i + 1) for i in range(4)])
    actual, state = run(optimizer, params, faulty(wrong))
    # The others do not notice, to the last bit.
    for a, e in zip(actual, clean, strict=True):
        for x in (a, e):
            x["first"].pop("kernel")
        assert_same(a, e)
    assert_same(state.trace["second"], clean_state.trace["second"])
    skipped = lars.skipped_steps(state)
    assert skipped["first"] == {"kernel": 1, "bias": 0}
    assert sum(jax.tree.leaves(skipped)) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layer_keeps_its_weights_and_its_momentum(name):
    optimizer = lars.lars(2.0, 1e-2, **FAMILIES[name])
    params, gradients = tree(0), faulty(np.nan)
    _, before = run(optimizer, params, gradients[:1])
    trajectory, after = run(optimizer, params, gradients[:2])
    kernels = [w["first"]["kernel"] for w in trajectory]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(
        before.trace["first"]["kernel"], after.trace["first"]["kernel"]
    )
    assert lars.trust_ratios(after)["first"]["kernel"] == 0
    trajectory, _ = run(optimizer, params, gradients)
    assert np.isfinite(trajectory[-1]["first"]["kernel"]).all()
    assert (trajectory[-1]["first"]["kernel"] != kernels[1]).all()


def test_layers_that_share_a_ratio_skip_together_and_slices_apart():
    params, gradients = tree(0), faulty(np.nan)
    _, state = run(lars.lars(2.0, layer="module"), params, gradients)
    assert lars.skipped_steps(state)["first"] == {"kernel": 1, "bias": 1}
    stacked = lars.lars(2.0, stacked=[(lars.select(path="first/kernel"), 0)])
    trajectory, state = run(stacked, params, gradients)
    np.testing.assert_array_equal(
        lars.skipped_steps(state)["first"]["kernel"], [0, 0, 1, 0, 0]
    )
    moved = trajectory[1]["first"]["kernel"] != trajectory[0]["first"]["kernel"]
    np.testing.assert_array_equal(moved.all(axis=1), [1, 1, 0, 1, 1])


def test_parameters_excluded_from_the_ratio_are_looked_at_as_well():
    mask = ~lars.select(path="first/kernel")
    optimizer = lars.lars(0.01, trust_ratio_mask=mask)
    trajectory, state = run(optimizer, tree(0), faulty(np.inf))
    assert np.isfinite(trajectory[-1]["first"]["kernel"]).all()
    assert lars.skipped_steps(state)["first"]["kernel"] == 1


def test_weights_that_are_not_finite_stop_their_layer_alone():
    params = tree(0)
    params["first"]["bias"][1] = np.nan
    optimizer = lars.lars(2.0)
    updates, state = optimizer.update(tree(1), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["first"]["bias"], np.zeros(4))
    assert (updates["first"]["kernel"] != 0).all()
    assert lars.skipped_steps(state)["first"]["bias"] == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_step_can_be_skipped(name):
    optimizer = lars.lars(schedule, 1e-2, nonfinite="skip_step", **FAMILIES[name])
    gradients = faulty(np.nan)
    actual, state = run(optimizer, tree(0), gradients)
    # As if the faulty gradient had never come: the schedule stands still as well.
    expected, expected_state = run(optimizer, tree(0), gradients[:1] + gradients[2:])
    assert_same(actual[1], actual[0])
    assert_same(actual[-1], expected[-1])
    assert state.count == expected_state.count == 3
    assert_same(state.last_learning_rates, expected_state.last_learning_rates)
    # The count says where it came from.
    assert sum(jax.tree.leaves(lars.skipped_steps(state))) == 1


def test_or_the_fault_may_propagate():
    optimizer = lars.lars(2.0, nonfinite="propagate")
    trajectory, state = run(optimizer, tree(0), faulty(np.nan))
    assert np.isnan(trajectory[-1]["first"]["kernel"]).all()
    assert np.isfinite(trajectory[-1]["first"]["bias"]).all()
    assert sum(jax.tree.leaves(lars.skipped_steps(state))) == 0


@given(st.lists(st.sampled_from(["first", "second", "third"]), max_size=3))
@settings(deadline=None, max_examples=10)
def test_any_layers_can_fail_without_touching_the_others(names):
    gradients = [tree(1)]
    for name in names:
        gradients[0][name]["kernel"].flat[0] = np.nan
    actual, _ = run(OPTIMIZER, tree(0), gradients)
    expected, _ = run(OPTIMIZER, tree(0), [tree(1)])
    for name in ("first", "second", "third"):
        kernel = actual[0][name]["kernel"]
        good = tree(0) if name in names else expected[0]
        np.testing.assert_array_equal(kernel, good[name]["kernel"])


OPTIMIZER = lars.lars(2.0, 1e-3)

# ---------------------------------------------------------- zero and underflow


def test_what_underflows_in_squares_is_not_zero():
    # optax.lars and others would take the ratio 1 here: 1000 times too far.
    params, g = jnp.full(4, 1e-25), jnp.full(4, 1e-30)
    optimizer = lars.lars(1.0)
    updates, state = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(lars.trust_ratios(state), 1e-3 * 1e5, rtol=1e-5)
    np.testing.assert_allclose(updates, -1e-3 * params, rtol=1e-5)


def test_norms_up_to_a_minimum_can_count_as_zero():
    params = {"tiny": jnp.full(4, 1e-9), "larger": jnp.full(4, 1e-7)}
    g = {"tiny": jnp.ones(4), "larger": jnp.ones(4)}
    optimizer = lars.lars(1.0, min_norm=1e-8, zero_norm="one")
    _, state = optimizer.update(g, optimizer.init(params), params)
    assert lars.trust_ratios(state)["tiny"] == 1
    np.testing.assert_allclose(lars.trust_ratios(state)["larger"], 1e-10, rtol=1e-5)


@pytest.mark.parametrize(
    ("zero_gradient", "ratio"),
    [
        *(("formula", 0.4), ("trust_coefficient", 0.1), ("zero", 0.0)),
        *(("one", 1.0), ("plain", 1.0)),
    ],
)
def test_a_zero_gradient_follows_its_own_rule(zero_gradient, ratio):
    params = {"w": jnp.array([3.0, 4.0]), "zero": jnp.zeros(2)}
    g = {"w": jnp.zeros(2), "zero": jnp.zeros(2)}
    optimizer = lars.lars(
        2.0, 0.25, trust_coefficient=0.1, zero_gradient=zero_gradient, zero_norm="zero"
    )
    updates, state = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(lars.trust_ratios(state)["w"], ratio, rtol=1e-6)
    np.testing.assert_allclose(
        updates["w"], -2.0 * ratio * 0.25 * params["w"], rtol=1e-6
    )
    assert lars.trust_ratios(state)["zero"] == 0


@pytest.mark.parametrize(("rule", "rate"), [("one", 0.5), ("plain", 4.0)])
def test_a_plain_step_is_neither_clipped_nor_bounded(rule, rate):
    params, g = jnp.zeros(2), jnp.array([1.0, -2.0])
    bounded = lars.lars(4.0, zero_norm=rule, trust_ratio_bounds=(0.0, 0.125))
    updates, _ = bounded.update(g, bounded.init(params), params)
    np.testing.assert_allclose(updates, -rate * g, rtol=1e-6)
    clipped = lars.lars(4.0, zero_norm=rule, clip=True)
    updates, _ = clipped.update(g, clipped.init(params), params)
    np.testing.assert_allclose(updates, -min(2 * rate, 1 if rule == "one" else 4) * g)


# -------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-7, 1.0, 6e4, 1e30, 1e37])
def test_steps_are_right_at_every_scale_that_the_dtype_has(scale, dtype):
    info = jnp.finfo(dtype)
    if not float(info.smallest_subnormal) * 100 <= scale <= float(info.max) / 2:
        pytest.skip("beyond the dtype")
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.uniform(0.5, 1, (6, 5)) * scale, dtype)
    g = jnp.asarray(rng.uniform(-1, 1, (6, 5)), dtype)
    optimizer = lars.lars(1.0, trust_coefficient=0.5)
    updates, _ = jax.jit(optimizer.update)(g, optimizer.init(w), w)
    wide_w, wide_g = np.asarray(w, np.float64), np.asarray(g, np.float64)
    exact = -0.5 * np.linalg.norm(wide_w) / np.linalg.norm(wide_g) * wide_g
    # One rounding to the dtype; below the smallest normal float32 XLA's CPU is zero.
    np.testing.assert_allclose(
        np.asarray(updates, np.float64),
        exact,
        rtol=1.01 * max(float(info.eps) / 2, 1e-6),
        atol=max(float(info.smallest_subnormal), 1.2e-38),
    )


def test_a_wide_buffer_keeps_what_a_narrow_one_loses():
    params = jnp.ones(8, jnp.bfloat16)
    gradients = [
        jnp.asarray(1 + 0.3 * np.sin(np.arange(8) + i), jnp.bfloat16) for i in range(20)
    ]

    def exact():
        v = np.zeros(8)
        for g in gradients:
            g = np.asarray(g, np.float64)
            v = 0.99 * v + 1e-3 * np.sqrt(8) / np.linalg.norm(g) * g
        return v

    def error(dtype):
        optimizer = lars.lars(1.0, momentum=0.99, accumulator_dtype=dtype)
        state = optimizer.init(params)
        for g in gradients:
            _, state = optimizer.update(g, state, params)
        return np.abs(np.asarray(state.trace, np.float64) / exact() - 1).max()

    assert error(jnp.float32) < 1e-5 < error(None)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"denominator": "norm"}, ValueError, "denominator .* got 'norm'"),
        ({"momentum_of": "weights"}, ValueError, "momentum_of .* got 'weights'"),
        ({"weight_decay_kind": "L2"}, ValueError, "weight_decay_kind .* got 'L2'"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite .* got 'ignore'"),
        ({"zero_gradient": "two"}, ValueError, "zero_gradient .* got 'two'"),
        ({"geometry": "nuclear"}, ValueError, "geometry .* got 'nuclear'"),
        ({"excluded_momentum_of": "x"}, ValueError, "excluded_momentum_of .* 'x'"),
        ({"denominator": "update"}, ValueError, "needs momentum_of='gradient'"),
        (
            {"momentum_correction": True, "momentum_of": "direction"},
            ValueError,
            "needs momentum_of='step'",
        ),
        ({"clip": 1}, TypeError, "clip .* got 1"),
        ({"momentum_correction": "yes"}, TypeError, "momentum_correction .* 'yes'"),
        ({"dampening": 1.0}, ValueError, "dampening .* got 1.0"),
        ({"min_norm": -1.0}, ValueError, "min_norm .* got -1.0"),
        ({"direction_bound": -1.0}, ValueError, "direction_bound .* got -1.0"),
        ({"trust_ratio_bounds": 3.0}, TypeError, "trust_ratio_bounds .* got 3.0"),
        ({"trust_ratio_bounds": (2.0, 1.0)}, ValueError, r"bounds .* \(2.0, 1.0\)"),
    ],
)
def test_bad_options_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.lars(1.0, **arguments)


@pytest.mark.parametrize("params", [{}, [], {"a": {}}, ((), {})])
def test_an_empty_tree_is_refused(params):
    with pytest.raises(ValueError, match="params is an empty tree"):
        lars.lars(1.0).init(params)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64])
def test_leaves_that_are_not_real_numbers_are_refused_before_the_first_step(dtype):
    with pytest.raises(TypeError, match=f"{np.dtype(dtype)} at 'a/table'"):
        lars.lars(1.0).init({"a": {"table": np.ones(3, dtype)}})


def test_gradients_of_other_parameters_are_refused():
    optimizer = lars.lars(1.0)
    params = tree(0)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="not a tree like the parameters"):
        optimizer.update({"first": params["first"]}, state, params)
    other = tree(1)
    other["second"]["kernel"] = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"'second/kernel' has shape \(3, 4\)"):
        optimizer.update(other, state, params)


@pytest.mark.parametrize("option", ["momentum", "learning_rates", "clip"])
def test_scale_by_lars_has_no_place_for_rates_and_momentum(option):
    with pytest.raises(TypeError, match=option):
        lars.scale_by_lars(**{option: 0.5})


@pytest.mark.parametrize("nonfinite", ["skip_layer", "skip_step"])
def test_a_skipped_step_leaves_the_corrected_momentum_right(nonfinite):
    # The buffer of "direction" has no rate in it that a skipped step could spoil.
    rates = [10.0, 1.0, 5.0, 2.0]
    gradients = [jnp.array([3.0, 4.0])] * 4
    gradients[1] = jnp.array([jnp.nan, 1.0])
    trajectories = []
    for options in ({"momentum_correction": True}, {"momentum_of": "direction"}):
        optimizer = lars.lars(
            lambda count: jnp.asarray(rates)[count], nonfinite=nonfinite, **options
        )
        w, trajectory = jnp.array([3.0, 4.0]), []
        state = optimizer.init(w)
        for g in gradients:
            updates, state = optimizer.update(g, state, w)
            w = w + updates
            trajectory.append(w)
        trajectories.append(jnp.stack(trajectory))
    np.testing.assert_allclose(*trajectories, rtol=1e-6)


@pytest.mark.parametrize("denominator", ["sum", "update"])
def test_a_momentum_that_its_dtype_cannot_hold_stays_finite(denominator):
    params = jnp.ones(4, jnp.float16)
    optimizer = lars.lars(1.0, momentum_of="gradient", denominator=denominator)
    state = optimizer.init(params)
    for _ in range(8):  # to 20000 / (1 - 0.9), where float16 ends at 65504
        g = jnp.full(4, 2e4, jnp.float16)
        updates, state = optimizer.update(g, state, params)
        assert np.isfinite(updates).all()
    np.testing.assert_array_equal(state.trace, np.float16(65504))
    _, state = optimizer.update(jnp.zeros(4, jnp.float16), state, params)
    np.testing.assert_allclose(state.trace, 0.9 * 65504, rtol=1e-3)
    assert lars.skipped_steps(state) == 0


def test_weights_that_are_not_finite_are_seen_in_excluded_parameters_too():
    params = {"w": jnp.array([jnp.inf, 1.0]), "x": jnp.ones(2)}
    g = {"w": jnp.ones(2), "x": jnp.ones(2)}
    optimizer = lars.lars(1.0, 0.1, trust_ratio_mask=False)
    updates, state = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0)
    np.testing.assert_allclose(updates["x"], -1.1, rtol=1e-6)
    assert lars.skipped_steps(state) == {"w": 1, "x": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": jnp.ones(2)}, "learning_rate must be a finite number"),
        ({"eps": jnp.float32(-1.0)}, "eps must be a finite number >= 0"),
        ({"momentum": np.float32(1.5)}, "momentum must be below 1"),
        ({"momentum": jnp.float32(1.0)}, "momentum must be below 1"),
    ],
)
def test_arrays_are_checked_as_numbers_are(options, message):
    with pytest.raises(ValueError, match=message):
        lars.lars(**{"learning_rate": 1.0, **options})
    with pytest.raises(ValueError, match="momentum must be below 1"):
        lars.presets.caffe(1.0, momentum=1.5)


def test_a_rate_with_an_axis_is_refused_under_jit():
    def build(rate):
        optimizer = lars.lars(rate)
        return optimizer.init(jnp.ones(3)).count

    jax.jit(build)(2.0)
    with pytest.raises(ValueError, match="learning_rate must be a finite number"):
        jax.jit(build)(np.ones(2, np.float32))


def test_a_state_of_other_parameters_is_refused():
    params = {"a": jnp.ones((5, 4)), "b": jnp.ones(4)}
    message = r"state is of other parameters.*\(4,\).*init\(params\)"
    for other in ({"a": jnp.ones(4), "b": jnp.ones(4)}, {"a": jnp.ones(4)}):
        optimizer = lars.lars(1.0)
        with pytest.raises(ValueError, match=message):
            optimizer.update(params, optimizer.init(other), params)
    without = lars.lars(1.0, momentum=0.0)
    with pytest.raises(ValueError, match="state is of other parameters"):
        without.update(params, without.init({"a": jnp.ones(4)}), params)
    with pytest.raises(ValueError, match="state is of other parameters"):
        lars.lars(1.0).update(params, without.init(params), params)


@pytest.mark.parametrize("other", [optax.lars(1.0), optax.chain(lars.lars(1.0))])
@pytest.mark.parametrize("optimizer", [lars.lars(1.0), lars.presets.optax(1.0)])
def test_the_state_of_another_optimizer_is_refused(optimizer, other):
    params = {"a": jnp.ones((5, 4))}
    with pytest.raises(TypeError, match=r"got tuple, need LarsState.* init\(params\)"):
        optimizer.update(params, other.init(params), params)


def test_labels_that_cannot_be_compared_are_refused():
    with pytest.raises(TypeError, match=r"label of 'first/bias' must be hashable"):
        lars.lars(1.0, layer=list).init(tree(0))
