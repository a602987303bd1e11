"""The optimizer keeps optax's contract, at every scale and in every dtype."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from lars import optimizer as optimizer_module
from tests.lars.steps import (
    assert_trees_close,
    first_step,
    joint,
    normal,
    schedule,
    stacked,
    tree,
)


@pytest.mark.parametrize("function", [lars.lars, lars.scale_by_lars])
def test_every_option_is_passed_on(function, monkeypatch):
    passed = {}
    monkeypatch.setattr(optimizer_module, "Options", passed.update)
    options = {name: object() for name in inspect.signature(function).parameters}
    function(**options)
    assert passed == options


def test_both_signatures_have_the_same_options():
    ours, theirs = (
        inspect.signature(function).parameters
        for function in (lars.lars, lars.scale_by_lars)
    )
    assert set(ours) == set(theirs)
    different = {x for x in ours if ours[x].default != theirs[x].default}
    assert different == {"learning_rate", "momentum"}


def test_scale_by_lars_ascends_without_rate_and_momentum():
    params, g = normal(0, 3, 2), normal(1, 3, 2)
    descent, _ = first_step(lars.lars(1.0, 0.5, momentum=0.0), g, params)
    ascent, state = first_step(lars.scale_by_lars(0.5), g, params)
    np.testing.assert_array_equal(ascent, -descent)
    assert state.trace == ()


@functools.cache
def step_with_decay():
    """A first step, compiled once for all decays."""

    def step(g, w, beta):
        optimizer = lars.lars(8.0, beta)
        return optimizer.update(g, optimizer.init(w), w)

    return jax.jit(step)


@given(exponent=st.integers(-60, 60))
@settings(deadline=None, max_examples=40)
def test_a_power_of_two_in_the_gradient_changes_no_bit_of_the_step(exponent):
    params, g = tree(0), tree(1)
    expected, _ = step_with_decay()(g, params, 0.0)
    scaled = jax.tree.map(lambda x: np.ldexp(x, exponent), g)
    actual, _ = step_with_decay()(scaled, params, 0.0)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@given(w_exponent=st.integers(-36, 37), g_exponent=st.integers(-30, 37))
@settings(deadline=None, max_examples=50)
def test_a_shared_ratio_is_right_at_every_scale(w_exponent, g_exponent):
    params, g = (
        {name: tree(seed, 10.0**exponent)[name] for name in ("first", "third")}
        for seed, exponent in ((0, w_exponent), (1, g_exponent))
    )
    params["first"]["bias"] *= 0
    updates, state = first_step(MODULES, g, params)
    for name in params:
        ratio = 1e-3 * joint(*params[name].values()) / joint(*g[name].values())
        if 1e-37 < ratio < 1e38:
            np.testing.assert_allclose(
                lars.trust_ratios(state)[name]["kernel"], ratio, rtol=1e-6
            )
        for part, u in updates[name].items():
            expected = -8.0 * ratio * g[name][part].astype(np.float64)
            # λu is formed before the learning rate: below 1.2e-38 it is flushed.
            np.testing.assert_allclose(u, expected, rtol=1e-5, atol=8 * 1.2e-38)


MODULES = lars.lars(8.0, layer="module")


@pytest.mark.parametrize(
    ("w", "g", "beta"),
    [
        # ‖g‖, then ‖w‖, then both beyond the largest float32.
        (np.ones(1000), np.full(1000, 1e38), 0.0),
        (np.full(1000, 1e38), np.arange(1000.0), 0.0),
        (np.full(1000, 3e38), np.full(1000, -3e38), 1e-3),
        # η‖w‖, then β‖w‖ below the smallest normal one.
        (np.full(1000, 1e-37), np.full(1000, 1e-37), 0.0),
        (np.full(1000, 1e-36), np.zeros(1000), 5e-4),
        # Both far from one; the ratio beyond the largest float32.
        (np.full(1000, 1e-30), np.full(1000, 1e30), 1.0),
        (np.full(1000, 1e25), np.full(1000, 1e-25), 0.0),
    ],
)
def test_a_step_is_right_where_float32_cannot_hold_norms_or_ratio(w, g, beta):
    w, g = w.astype(np.float32), g.astype(np.float32)
    # No intermediate result is out of range in this order of the factors.
    ratio = 1e-3 * joint(w) / (joint(g) + beta * joint(w))
    updates, state = step_with_decay()(g, w, beta)
    expected = -8.0 * ratio * (g.astype(np.float64) + beta * w.astype(np.float64))
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=8 * 1.2e-38)
    shown = ratio if ratio < 3e38 else np.inf
    np.testing.assert_allclose(lars.trust_ratios(state), shown, rtol=1e-5, atol=1.2e-38)


def test_masks_mean_what_they_mean_in_optax():
    params, g = tree(0), tree(1)
    mask = {"first": False, "second": True, "third": {"kernel": True, "bias": False}}
    decayed = {"first": True, "second": True, "third": {"kernel": False, "bias": False}}
    optimizer = lars.lars(0.5, 0.3, decayed, trust_ratio_mask=mask, momentum=0.0)
    updates, state = first_step(optimizer, g, params)
    ratios = lars.trust_ratios(state)
    for name, part, beta in [
        ("first", "kernel", 0.3),
        ("first", "bias", 0.3),
        ("second", "kernel", 0.3),
        ("third", "kernel", 0.0),
        ("third", "bias", 0.0),
    ]:
        w, d = params[name][part], g[name][part] + beta * params[name][part]
        ratio = 1e-3 * joint(w) / (joint(g[name][part]) + beta * joint(w))
        if name == "first" or part == "bias":
            ratio = 1  # excluded: plain gradient descent at the full rate
        np.testing.assert_allclose(ratios[name][part], ratio, rtol=1e-6)
        np.testing.assert_allclose(updates[name][part], -0.5 * ratio * d, rtol=1e-5)


def test_a_mask_can_be_a_function_and_none_is_everywhere():
    params = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(0)))
    mask = {"first": False, "second": True, "third": {"kernel": True, "bias": False}}
    for name in ("trust_ratio_mask", "weight_decay_mask"):
        rows = lars.describe(params, **{name: mask})
        assert rows != lars.describe(params)
        assert rows == lars.describe(params, **{name: lambda _: mask})
        assert lars.describe(params, **{name: None}) == lars.describe(params)


def test_a_tree_of_booleans_that_can_be_called_is_a_mask():
    class Module(eqx.Module):
        kernel: Any
        bias: Any

        def __call__(self, x):
            raise AssertionError("a mask is not run")

    params = Module(np.ones((2, 2), np.float32), np.ones(2, np.float32))
    rows = lars.describe(params, trust_ratio_mask=Module(True, False))
    assert [row.adapted for row in rows] == [True, False]


def quadratic(params):
    return sum(jnp.sum(jnp.square(x - 1)) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("layer", "dtype", "accumulator_dtype"),
    [("module", jnp.float16, None), ("parameter", jnp.float32, jnp.bfloat16)],
)
def test_it_trains_in_a_loop_that_keeps_the_dtypes(layer, dtype, accumulator_dtype):
    """As `jax.lax.scan` asks for: the second step is the first one's program."""
    optimizer = lars.lars(
        jnp.float32(2.0),
        jnp.float32(1e-4),
        trust_coefficient=jnp.float32(0.01),
        eps=jnp.float32(1e-8),
        momentum=jnp.float32(0.9),
        layer=layer,
        accumulator_dtype=accumulator_dtype,
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(0)["third"])

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        return (optax.apply_updates(params, updates), state), quadratic(params)

    state = optimizer.init(params)
    velocity = optax.tree.get(state, "trace")
    assert {x.dtype for x in jax.tree.leaves(velocity)} == {
        jnp.dtype(accumulator_dtype or dtype)
    }
    _, losses = jax.jit(lambda c: jax.lax.scan(step, c, length=50))((params, state))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("parameters", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("gradients", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_wider_dtype(gradients, parameters):
    params = jax.ShapeDtypeStruct((3,), parameters)
    g = jax.ShapeDtypeStruct((3,), gradients)
    optimizer = lars.lars(2.0, 1e-4)
    updates, state = jax.eval_shape(
        lambda g, w: optimizer.update(g, optimizer.init(w), w), g, params
    )
    with jax.numpy_dtype_promotion("standard"):
        assert updates.dtype == jnp.promote_types(gradients, parameters)
    assert state.trace.dtype == parameters


def test_float16_gradients_do_not_limit_the_step_of_float32_parameters():
    params, g = jnp.full(4, 1e-6), jnp.ones(4, jnp.float16)
    updates, _ = first_step(lars.lars(10.0, momentum=0.0), g, params)
    np.testing.assert_allclose(updates, -1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_steps_are_right_at_every_scale_that_the_dtype_has(dtype):
    info = jnp.finfo(dtype)
    scales = np.array([1e-38, 1e-30, 1e-7, 1.0, 6e4, 1e30, 1e37])
    smallest = float(info.smallest_subnormal)
    scales = scales[(scales >= 100 * smallest) & (scales <= float(info.max) / 1.05)]
    rng = np.random.default_rng(0)
    w = rng.uniform(0.5, 1, (6, 5)) * scales[:, None, None]
    w = jnp.asarray(w, dtype)
    g = jnp.asarray(rng.uniform(-1, 1, (6, 5)), dtype)
    optimizer = lars.lars(1.0, trust_coefficient=0.5)
    step = jax.jit(jax.vmap(lambda w: optimizer.update(g, optimizer.init(w), w)[0]))
    wide_w, wide_g = np.asarray(w, np.float64), np.asarray(g, np.float64)
    ratio = 0.5 * np.linalg.norm(wide_w, axis=(1, 2), keepdims=True) / joint(wide_g)
    # One rounding to the dtype; below the smallest normal float32 XLA's CPU is zero.
    np.testing.assert_allclose(
        np.asarray(step(w), np.float64),
        -ratio * wide_g,
        rtol=1.01 * max(float(info.eps) / 2, 1e-6),
        atol=max(smallest, 1.2e-38),
    )


def test_a_wide_buffer_keeps_what_a_narrow_one_loses():
    params = jnp.ones(8, jnp.bfloat16)
    gradients = [
        np.asarray(1 + 0.3 * np.sin(np.arange(8) + i), jnp.bfloat16) for i in range(20)
    ]
    exact = np.zeros(8)
    for g in gradients:
        g = g.astype(np.float64)
        exact = 0.99 * exact + 1e-3 * np.sqrt(8) / np.linalg.norm(g) * g

    def error(dtype):
        optimizer = lars.lars(1.0, momentum=0.99, accumulator_dtype=dtype)

        def step(state, g):
            return optimizer.update(g, state, params)[1], None

        run = jax.jit(lambda g: jax.lax.scan(step, optimizer.init(params), g)[0])
        trace = np.asarray(run(np.stack(gradients)).trace, np.float64)
        return np.abs(trace / exact - 1).max()

    assert error(jnp.float32) < 1e-5 < error(None)


def test_injected_hyperparameters_can_be_changed_and_be_constants_of_jit():
    params, g = normal(0, 3, 2), normal(1, 3, 2)
    optimizer = optax.inject_hyperparams(lars.lars)(learning_rate=2.0, momentum=0.0)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    once, after = update(g, state, params)
    constant = jax.jit(lambda g: optimizer.update(g, state, params))(g)
    assert_trees_close(constant, (once, after))
    after.hyperparams["learning_rate"] = jnp.float32(6.0)
    thrice, _ = update(g, after, params)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_hyperparameters_can_be_traced_or_arrays_within_jit():
    params, g = normal(0, 3, 2), normal(1, 3, 2)
    expected = first_step(lars.lars(1.0, momentum=0.9), g, params)
    concrete = jnp.float32(0.9)

    def step(momentum):
        optimizer = lars.lars(1.0, momentum=momentum)
        return optimizer.update(g, optimizer.init(params), params)

    traced = jax.jit(lambda m: lars.lars(1.0, momentum=m).init(params))(0.9)
    assert_trees_close(traced, lars.lars(1.0, momentum=0.9).init(params), rtol=0)
    assert_trees_close(jax.jit(step)(0.9), expected, rtol=1e-6)
    assert_trees_close(jax.jit(lambda: step(concrete))(), expected, rtol=1e-6)


def test_optimizers_under_vmap_equal_single_ones():
    optimizer = lars.lars(2.0, 0.1, stacked=[(lars.select(path="kernel"), 0)])
    copies = [{"kernel": normal(i, 2, 3)} for i in range(3)]
    gradients = [{"kernel": normal(9 + i, 2, 3) / 10**i} for i in range(3)]

    def update(g, w):
        return optimizer.update(g, optimizer.init(w), w)

    updates, state = jax.jit(jax.vmap(update))(stacked(gradients), stacked(copies))
    updates, ratios = jax.tree.map(np.asarray, (updates, lars.trust_ratios(state)))
    assert ratios["kernel"].shape == (3, 2)
    for i in range(3):
        expected, alone = first_step(optimizer, gradients[i], copies[i])
        of_copy = jax.tree.map(lambda x, i=i: x[i], (updates, ratios))
        assert_trees_close(of_copy, (expected, lars.trust_ratios(alone)), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": True}, {"momentum_of": "direction"}],
    ids=lambda options: next(iter(options), "default"),
)
def test_a_donated_step_is_made_in_the_place_of_its_arguments(options):
    # Only then is it as fast as memory: a step that reads the old buffer after the new
    # one is written needs copies of both. One array's worth is the norms' second range.
    optimizer = lars.lars(0.1, 1e-4, **options)
    array = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    params = {f"layer_{i}": array for i in range(2)}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
        memory = lowered.compile().memory_analysis()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert memory.temp_size_in_bytes < 1.5 * array.size * array.dtype.itemsize


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate .* got -1.0"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate .* got 'fast'"),
        ({"learning_rate": None}, TypeError, "learning_rate .* got None"),
        ({"learning_rate": jnp.ones(2)}, ValueError, "learning_rate must be a finite"),
        ({"weight_decay": -1}, ValueError, "weight_decay .* -1"),
        ({"trust_coefficient": np.inf}, ValueError, "trust_coef.* inf"),
        ({"eps": [0.1, 0.2]}, ValueError, "eps .* number"),
        ({"eps": True}, TypeError, "eps .* got True"),
        ({"eps": jnp.float32(-1.0)}, ValueError, "eps must be a finite"),
        ({"momentum": np.nan}, ValueError, "momentum .* nan"),
        ({"momentum": 0.9j}, TypeError, "momentum must be a number"),
        ({"momentum": schedule}, TypeError, "momentum must be a number"),
        ({"momentum": 1.5}, ValueError, "momentum .* got 1.5"),
        ({"momentum": np.float32(1.5)}, ValueError, "momentum must be below"),
        ({"momentum": jnp.float32(1.0)}, ValueError, "momentum must be below"),
        ({"nesterov": "no"}, TypeError, "nesterov .* got 'no'"),
        ({"clip": 1}, TypeError, "clip .* got 1"),
        ({"accumulator_dtype": np.int8}, TypeError, "int8"),
        ({"layer": "kernel"}, ValueError, "layer .* 'kernel'"),
        ({"layer": ["kernel"]}, ValueError, "layer must be"),
        ({"zero_norm": "eta"}, ValueError, "zero_norm .* 'eta'"),
        ({"zero_norm": "formula"}, ValueError, "zero_norm .* 'formula'"),
        ({"zero_gradient": "two"}, ValueError, "zero_gradient .* 'two'"),
        ({"denominator": "norm"}, ValueError, "denominator .* got 'norm'"),
        ({"denominator": "update"}, ValueError, "needs momentum_of='gradient'"),
        ({"momentum_of": "weights"}, ValueError, "momentum_of .* 'weights'"),
        ({"weight_decay_kind": "L2"}, ValueError, "weight_decay_kind .* 'L2'"),
        ({"geometry": "nuclear"}, ValueError, "geometry .* got 'nuclear'"),
        ({"geometry": lars.Spectral}, ValueError, "geometry .*Spectral"),
        ({"direction_bound": -1.0}, ValueError, "direction_bound .* got -1.0"),
        ({"trust_ratio_bounds": 3.0}, TypeError, "trust_ratio_bounds .* 3.0"),
        ({"trust_ratio_bounds": (2.0, 1.0)}, ValueError, r"\(2.0, 1.0\)"),
        ({"trust_ratio_bounds": (-1.0, 1.0)}, ValueError, r"\(-1.0, 1.0\)"),
        ({"trust_ratio_bounds": (np.inf, np.inf)}, ValueError, "bounds .* inf"),
        ({"accumulator_dtype": np.complex64}, TypeError, "accum.* .*complex64"),
        ({"geometry": lars.Spectral(steps=-1)}, ValueError, "steps .* got -1"),
        ({"geometry": lars.Spectral(2.5)}, ValueError, "steps .* got 2.5"),
        ({"geometry": lars.Spectral(dtype=int)}, TypeError, r"dtype must .*int"),
        ({"geometry": lars.Spectral(dtype="foo")}, TypeError, r"dtype must .*'foo'"),
    ],
)
def test_a_bad_option_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.lars(**{"learning_rate": 1.0} | arguments)


def test_caffe_refuses_a_bad_momentum_too():
    with pytest.raises(ValueError, match="momentum must be below 1"):
        lars.presets.caffe(1.0, momentum=1.5)


def test_a_rate_with_an_axis_is_refused_under_jit():
    def build(rate):
        return lars.lars(rate).init(jnp.ones(3)).count

    jax.jit(build)(2.0)
    with pytest.raises(ValueError, match="learning_rate must be a finite number"):
        jax.jit(build)(np.ones(2, np.float32))
