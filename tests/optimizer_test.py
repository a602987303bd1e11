"""The optimizer is the paper's Algorithm 1, and keeps optax's contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from tests.reference import PaperLars

RATES = [3.0, 10.0, 7.0, 0.5, 4.0]
"""A learning rate that changes: what is in the buffer and what is not differs."""


def tree(seed, scale=1.0, dtype=np.float32):
    """Parameters of three layers and two biases; no two trees are parallel."""
    rng = np.random.default_rng(seed)
    shapes = {
        "first": {"kernel": (5, 4), "bias": (4,)},
        "second": {"kernel": (3, 4, 2)},
        "third": {"kernel": (2, 3), "bias": (3,)},
    }
    return jax.tree.map(
        lambda shape: (scale * rng.standard_normal(shape)).astype(dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def schedule(count):
    return jnp.asarray(RATES)[count]


def run(optimizer, params, gradients):
    """Applies the optimizer to given gradients; returns the parameters of each step."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    trajectory = []
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(e, np.float64), **tolerance
        ),
        actual,
        expected,
    )


# ---------------------------------------------------------------- Algorithm 1


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [0.0, 5e-4, 0.3])
def test_equals_the_paper_in_float64_over_five_steps(beta, nesterov):
    eta, momentum = 0.02, 0.9
    params = tree(0, dtype=np.float64)
    gradients = [tree(i + 1, 0.1, np.float64) for i in range(5)]
    layers = jax.tree.map(
        lambda w: PaperLars(
            w, eta=eta, beta=beta, momentum=momentum, nesterov=nesterov
        ),
        params,
    )
    expected = [
        jax.tree.map(lambda layer, gi, rate=rate: layer.step(gi, rate), layers, g)
        for g, rate in zip(gradients, RATES, strict=True)
    ]
    with jax.enable_x64(True):
        optimizer = lars.lars(
            schedule,
            weight_decay=beta,
            trust_coefficient=eta,
            momentum=momentum,
            nesterov=nesterov,
        )
        actual, state = run(optimizer, jax.tree.map(jnp.asarray, params), gradients)
        assert_trees_close(actual, expected, rtol=1e-12, atol=0)
    ratios = jax.tree.map(lambda layer: layer.ratio, layers)
    assert_trees_close(lars.trust_ratios(state), ratios, rtol=1e-6)


def test_a_worked_example():
    # w = (3, 4) and g = (0, 10): ‖w‖ = 5, ‖g‖ = 10, so with η = .1 and β = .5
    # λ = .1 * 5 / (10 + .5 * 5) = .04, and λ (g + β w) = .04 * (1.5, 12).
    params, g = jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0])
    optimizer = lars.scale_by_lars(weight_decay=0.5, trust_coefficient=0.1)
    scaled, state = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(scaled, [0.06, 0.48], rtol=1e-6)
    np.testing.assert_allclose(lars.trust_ratios(state), 0.04, rtol=1e-6)


@pytest.mark.parametrize(
    "option",
    [
        {"layer": "module"},
        {"denominator": "decayed"},
        {"weight_decay_kind": "decoupled"},
        {"trust_ratio_bounds": (0.3, 0.4)},
        {"direction_bound": 0.5},
        {"zero_norm": "one"},
        {"zero_gradient": "zero"},
        {"min_norm": 3.0},
        {"nonfinite": "propagate"},
        {"geometry": "spectral"},
        {"stacked": ((lars.select(path="second"), 0),)},
        {"weight_decay_mask": lars.select(rank=1)},
        {"trust_ratio_mask": lars.select(rank=2)},
        {"eps": 2.0},
    ],
    ids=lambda option: "".join(option),
)
def test_scale_by_lars_is_lars_without_rate_and_sign(option):
    params, g = tree(0), tree(1)
    params["first"]["bias"] *= 0
    g["third"]["kernel"] *= 0
    g["third"]["bias"][0] = np.nan
    common = {"weight_decay": 0.5, "trust_coefficient": 0.2}

    def updates(optimizer):
        return optimizer.update(g, optimizer.init(params), params)[0]

    expected = updates(lars.lars(1.0, momentum=0.0, **{**common, **option}))
    actual = updates(lars.scale_by_lars(**{**common, **option}))
    assert_trees_close(actual, jax.tree.map(jnp.negative, expected), rtol=0)
    without = updates(lars.scale_by_lars(**common))
    same = jax.tree.map(
        lambda x, y: np.array_equal(x, y, equal_nan=True), actual, without
    )
    assert not all(jax.tree.leaves(same)), "the option does nothing here"


def test_eps_is_added_to_the_denominator():
    params, g = jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0])
    optimizer = lars.scale_by_lars(
        weight_decay=0.5, trust_coefficient=0.1, eps=jnp.float32(12.5)
    )
    scaled, _ = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(scaled, [0.03, 0.24], rtol=1e-6)


def test_weight_decay_can_be_a_schedule():
    params, g = tree(0), tree(1)
    decays = [0.1, 0.0, 0.4]
    optimizer = lars.lars(2.0, lambda count: jnp.asarray(decays)[count], momentum=0.0)
    actual, _ = run(optimizer, params, [g] * 3)
    for decay, w in zip(decays, actual, strict=True):
        expected, _ = run(lars.lars(2.0, decay, momentum=0.0), params, [g])
        assert_trees_close(w, expected[0], rtol=1e-6)
        params = w


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_optax_lars_without_decay(nesterov):
    params = tree(0)
    gradients = [tree(i + 1) for i in range(5)]
    arguments = {"momentum": 0.8, "nesterov": nesterov, "trust_coefficient": 0.01}
    ours, _ = run(lars.lars(schedule, **arguments), params, gradients)
    theirs, _ = run(optax.lars(schedule, **arguments), params, gradients)
    assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_differs_from_optax_lars_where_decay_cancels_the_gradient():
    # g + βw almost vanishes: optax divides by that, the paper by ‖g‖ + β‖w‖.
    params = jnp.array([1.0, 2.0])
    g = -0.5 * params + jnp.array([1e-4, 0.0])
    ours, _ = lars.lars(1.0, 0.5).update(g, lars.lars(1.0, 0.5).init(params), params)
    theirs, _ = optax.lars(1.0, 0.5).update(
        g, optax.lars(1.0, 0.5).init(params), params
    )
    np.testing.assert_allclose(jnp.linalg.norm(theirs), 1e-3 * 5**0.5, rtol=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(ours), 1e-3 * 1e-4, rtol=1e-2)


@given(
    w_exponent=st.integers(-30, 30),
    g_exponent=st.integers(-30, 30),
    beta=st.sampled_from([0.0, 5e-4, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_the_first_step_is_at_most_rate_times_coefficient_times_norm(
    w_exponent, g_exponent, beta
):
    params = tree(0, 10.0**w_exponent)
    updates, _ = first_update(beta)(tree(1, 10.0**g_exponent), params)
    for u, w in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        bound = 8.0 * 0.001 * np.linalg.norm(w.astype(np.float64))
        length = np.linalg.norm(np.asarray(u, np.float64))
        assert length <= bound * (1 + 1e-6)
        if beta == 0:
            np.testing.assert_allclose(length, bound, rtol=1e-6)


@functools.cache
def first_update(beta):
    optimizer = lars.lars(8.0, beta)
    return jax.jit(lambda g, w: optimizer.update(g, optimizer.init(w), w))


@given(exponent=st.integers(-60, 60))
@settings(deadline=None, max_examples=40)
def test_the_step_ignores_the_scale_of_the_gradient(exponent):
    params, g = tree(0), tree(1)
    expected, _ = first_update(0.0)(g, params)
    scaled = jax.tree.map(lambda x: np.ldexp(x, exponent), g)
    actual, _ = first_update(0.0)(scaled, params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@given(w_exponent=st.integers(-36, 37), g_exponent=st.integers(-30, 37))
@settings(deadline=None, max_examples=60)
def test_a_shared_ratio_is_right_at_every_scale(w_exponent, g_exponent):
    params, g = tree(0, 10.0**w_exponent), tree(1, 10.0**g_exponent)
    params["first"]["bias"] *= 0
    updates, state = first_shared_update(g, params)
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


@functools.cache
def _first_shared_update():
    optimizer = lars.lars(8.0, layer="module")
    return jax.jit(lambda g, w: optimizer.update(g, optimizer.init(w), w))


def first_shared_update(g, w):
    return _first_shared_update()(g, w)


@pytest.mark.parametrize(
    ("w", "g", "beta"),
    [
        # ‖g‖, then ‖w‖, then both beyond the largest float32.
        (np.ones(1000), np.full(1000, 1e38), 0.0),
        (np.full(100, 1e38), np.arange(100.0), 0.0),
        (np.full(100, 3e38), np.full(100, -3e38), 1e-3),
        # η‖w‖, then β‖w‖ below the smallest normal one.
        (np.full(4, 1e-36), np.full(4, 1e-36), 0.0),
        (np.full(4, 1e-36), np.zeros(4), 5e-4),
    ],
)
def test_norms_that_float32_cannot_hold(w, g, beta):
    w, g = w.astype(np.float32), g.astype(np.float32)
    # No intermediate result is out of range in this order of the factors.
    w_norm, g_norm = joint(w), joint(g)
    ratio = 1e-3 * w_norm / (g_norm + beta * w_norm)
    optimizer = lars.lars(0.5, beta)
    updates, state = jax.jit(optimizer.update)(g, optimizer.init(w), w)
    np.testing.assert_allclose(lars.trust_ratios(state), ratio, rtol=1e-5, atol=1.2e-38)
    expected = -0.5 * ratio * (g.astype(np.float64) + beta * w.astype(np.float64))
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1.2e-38)


def test_a_ratio_beyond_float32_still_gives_the_right_step():
    params, g = jnp.full(4, 1e25), jnp.full(4, 1e-25)
    (updates, state) = first_update(0.0)(g, params)
    np.testing.assert_allclose(updates, np.full(4, -8e22), rtol=1e-6)
    assert lars.trust_ratios(state) == np.inf


# ------------------------------------------------------------- zero norms


@pytest.mark.parametrize(
    ("zero_norm", "ratio"), [("trust_coefficient", 0.01), ("one", 1.0), ("zero", 0.0)]
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_zero_weights_follow_the_named_rule(zero_norm, ratio, beta):
    params = {"bias": jnp.zeros(3), "kernel": jnp.ones(3)}
    g = {"bias": jnp.array([1.0, -2.0, 0.5]), "kernel": jnp.ones(3)}
    optimizer = lars.lars(30.0, beta, trust_coefficient=0.01, zero_norm=zero_norm)
    updates, state = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], -30 * ratio * g["bias"], rtol=1e-6)
    np.testing.assert_allclose(lars.trust_ratios(state)["bias"], ratio, rtol=1e-6)
    # The rule is for the zero layer alone.
    length = 30 * 0.01 * 3**0.5
    np.testing.assert_allclose(jnp.linalg.norm(updates["kernel"]), length, rtol=1e-6)


@pytest.mark.parametrize("zero_norm", ["trust_coefficient", "one", "zero"])
def test_a_zero_gradient_is_decayed_at_the_limit_of_the_ratio(zero_norm):
    params = jnp.array([3.0, 4.0])
    optimizer = lars.lars(2.0, 0.25, trust_coefficient=0.1, zero_norm=zero_norm)
    updates, state = optimizer.update(jnp.zeros(2), optimizer.init(params), params)
    np.testing.assert_allclose(lars.trust_ratios(state), 0.1 / 0.25, rtol=1e-6)
    np.testing.assert_allclose(updates, -2.0 * 0.1 * params, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("zero_norm", ["trust_coefficient", "one", "zero"])
def test_a_zero_gradient_without_decay_moves_nothing(zero_norm, scale):
    params = jnp.full(3, scale)
    optimizer = lars.lars(2.0, zero_norm=zero_norm)
    updates, state = optimizer.update(jnp.zeros(3), optimizer.init(params), params)
    np.testing.assert_array_equal(updates, np.zeros(3))
    assert np.isfinite(lars.trust_ratios(state))


# ------------------------------------------------------------ what a layer is


def joint(*arrays):
    return np.sqrt(sum(np.sum(np.asarray(a, np.float64) ** 2) for a in arrays))


def test_a_bias_can_share_the_ratio_of_its_kernel():
    params, g = tree(0), tree(1)
    params["first"]["bias"][:] = 0
    beta, eta = 0.2, 0.03
    optimizer = lars.lars(1.0, beta, trust_coefficient=eta, layer="module")
    updates, state = optimizer.update(g, optimizer.init(params), params)
    ratios = lars.trust_ratios(state)
    for name in params:
        w_norm = joint(*params[name].values())
        ratio = eta * w_norm / (joint(*g[name].values()) + beta * w_norm)
        for part in params[name]:
            np.testing.assert_allclose(ratios[name][part], ratio, rtol=1e-6)
            np.testing.assert_allclose(
                updates[name][part],
                -ratio * (g[name][part] + beta * params[name][part]),
                rtol=1e-5,
            )


def test_in_a_shared_ratio_only_what_decays_counts_as_decayed():
    params, g = tree(0), tree(1)
    beta, eta = 0.2, 0.03
    optimizer = lars.lars(
        1.0,
        beta,
        lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        trust_coefficient=eta,
        layer="module",
    )
    _, state = optimizer.update(g, optimizer.init(params), params)
    first = params["first"]
    ratio = (
        eta
        * joint(*first.values())
        / (joint(*g["first"].values()) + beta * joint(first["kernel"]))
    )
    np.testing.assert_allclose(
        lars.trust_ratios(state)["first"]["bias"], ratio, rtol=1e-6
    )


def test_a_function_can_say_what_a_layer_is():
    params, g = tree(0), tree(1)
    optimizer = lars.lars(1.0, layer=lambda path: path[0].key == "first")
    _, state = optimizer.update(g, optimizer.init(params), params)
    ratios = lars.trust_ratios(state)
    others = [*params["second"].values(), *params["third"].values()]
    other_gs = [*g["second"].values(), *g["third"].values()]
    np.testing.assert_allclose(
        ratios["third"]["bias"], 1e-3 * joint(*others) / joint(*other_gs), rtol=1e-6
    )
    assert ratios["second"]["kernel"] == ratios["third"]["bias"]
    assert ratios["first"]["kernel"] != ratios["third"]["bias"]


# ------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "mask",
    [
        {"first": False, "second": True, "third": {"kernel": True, "bias": False}},
        lambda params: {
            "first": jax.tree.map(lambda _: False, params["first"]),
            "second": True,
            "third": {"kernel": True, "bias": False},
        },
    ],
)
def test_masks_mean_what_they_mean_in_optax(mask):
    params, g = tree(0), tree(1)
    beta = 0.3
    optimizer = lars.lars(0.5, beta, mask, trust_ratio_mask=mask, momentum=0.0)
    updates, state = optimizer.update(g, optimizer.init(params), params)
    # Neither decayed nor adapted: plain gradient descent at the full rate.
    np.testing.assert_allclose(
        updates["first"]["kernel"], -0.5 * g["first"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(
        updates["third"]["bias"], -0.5 * g["third"]["bias"], rtol=1e-6
    )
    assert lars.trust_ratios(state)["third"]["bias"] == 1
    # Both: as without masks.
    everywhere = lars.lars(0.5, beta, momentum=0.0)
    expected, _ = everywhere.update(g, everywhere.init(params), params)
    np.testing.assert_array_equal(
        updates["second"]["kernel"], expected["second"]["kernel"]
    )
    # Adapted but not decayed: as without decay.
    adapted = lars.lars(0.5, beta, mask, momentum=0.0)
    updates, _ = adapted.update(g, adapted.init(params), params)
    without = lars.lars(0.5, momentum=0.0)
    expected, _ = without.update(g, without.init(params), params)
    np.testing.assert_array_equal(updates["first"]["bias"], expected["first"]["bias"])


def test_a_mask_of_none_is_everywhere_as_in_optax():
    params, g = tree(0), tree(1)
    everywhere = lars.lars(0.5, 0.3)
    none = lars.lars(0.5, 0.3, None, trust_ratio_mask=None)
    expected, _ = everywhere.update(g, everywhere.init(params), params)
    actual, _ = none.update(g, none.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# ----------------------------------------------------------------- contract


def quadratic(params):
    return sum(jnp.sum(jnp.square(x - 1)) for x in jax.tree.leaves(params))


def test_the_second_step_does_not_recompile():
    traces = 0
    optimizer = lars.lars(schedule, 1e-4, layer="module")

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, tree(0))
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert traces == 1


@pytest.mark.parametrize("accumulator_dtype", [None, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("layer", ["parameter", "module"])
def test_state_keeps_its_form_in_a_scan_with_array_hyperparameters(
    layer, dtype, accumulator_dtype
):
    optimizer = lars.lars(
        jnp.float32(2.0),
        jnp.float32(1e-4),
        trust_coefficient=jnp.float32(0.01),
        eps=jnp.float32(1e-8),
        momentum=jnp.float32(0.9),
        layer=layer,
        accumulator_dtype=accumulator_dtype,
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(0))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        return (optax.apply_updates(params, updates), state), quadratic(params)

    state = optimizer.init(params)
    velocity = optax.tree.get(state, "trace")
    assert {x.dtype for x in jax.tree.leaves(velocity)} == {
        jnp.dtype(accumulator_dtype or dtype)
    }
    (_, after), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=50))(
        (params, state)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_sign_free_piece_keeps_the_contract_in_a_chain_of_ones_own(dtype):
    optimizer = optax.chain(
        lars.scale_by_lars(1e-4), optax.trace(0.9), optax.scale_by_learning_rate(2.0)
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(0))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    after, _ = jax.jit(lambda c: jax.lax.scan(step, c, length=3))(start)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), after, start)


@pytest.mark.parametrize("parameters", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("gradients", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_wider_dtype(gradients, parameters):
    params = jax.tree.map(lambda x: jnp.asarray(x, parameters), tree(0))
    g = jax.tree.map(lambda x: jnp.asarray(x, gradients), tree(1))
    optimizer = lars.lars(2.0, 1e-4)
    updates, _ = optimizer.update(g, optimizer.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        expected = jnp.promote_types(gradients, parameters)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {expected}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_steps_are_rounded_once(dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(0))
    g = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(1))
    optimizer = lars.lars(3.3, 0.07)
    updates, _ = optimizer.update(g, optimizer.init(params), params)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), (params, g))
    exact, _ = optimizer.update(wide[1], optimizer.init(wide[0]), wide[0])
    jax.tree.map(
        lambda u, e: np.testing.assert_array_equal(u, e.astype(dtype)), updates, exact
    )


def test_float16_norms_do_not_overflow():
    # Squared in float16, both would be infinite or zero.
    params = jnp.full(1000, 300.0, jnp.float16)
    g = jnp.full(1000, 1e-4, jnp.float16)
    optimizer = lars.lars(1.0)
    _, state = optimizer.update(g, optimizer.init(params), params)
    expected = 1e-3 * 300 / float(jnp.float16(1e-4))
    np.testing.assert_allclose(lars.trust_ratios(state), expected, rtol=1e-6)


def wrapped(name):
    """An optimizer around LARS, and what its updates should equal."""
    mask = {"first": True, "second": False, "third": True}
    if name == "inject_hyperparams":
        return optax.inject_hyperparams(lars.lars)(
            learning_rate=2.0, weight_decay=0.1, momentum=0.5, layer="module"
        ), lars.lars(2.0, 0.1, momentum=0.5, layer="module")
    if name == "chain":
        return optax.chain(optax.identity(), lars.lars(2.0)), lars.lars(2.0)
    if name == "masked":
        return optax.masked(lars.lars(2.0), mask), optax.partition(
            {True: lars.lars(2.0), False: optax.identity()}, mask
        )
    if name == "partition":
        return optax.partition(
            {True: lars.lars(2.0), False: lars.lars(2.0)}, mask
        ), lars.lars(2.0)
    if name == "MultiSteps":
        multi = optax.MultiSteps(lars.lars(2.0), every_k_schedule=1)
        return multi.gradient_transformation(), lars.lars(2.0)
    if name == "apply_if_finite":
        return optax.apply_if_finite(lars.lars(2.0), 3), lars.lars(2.0)
    raise ValueError(name)


@pytest.mark.parametrize(
    "name",
    [
        *("inject_hyperparams", "chain", "masked", "partition", "MultiSteps"),
        "apply_if_finite",
    ],
)
def test_works_inside_optax_wrappers(name):
    wrapper, expected = wrapped(name)
    params = jax.tree.map(jnp.asarray, tree(0))
    gradients = [jax.tree.map(jnp.asarray, tree(i + 1)) for i in range(3)]
    # MultiSteps divides floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        actual, state = run(wrapper, params, gradients)
    plain, plain_state = run(expected, params, gradients)
    assert_trees_close(actual, plain, rtol=1e-6, atol=1e-7)
    assert_trees_close(
        lars.trust_ratios(state), lars.trust_ratios(plain_state), rtol=1e-6
    )


def test_multi_steps_adapts_to_the_accumulated_gradient():
    params, first, second = tree(0), tree(1), tree(2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    multi = optax.MultiSteps(lars.lars(2.0, 0.1), 2).gradient_transformation()
    with jax.numpy_dtype_promotion("standard"):
        actual, _ = run(multi, jax.tree.map(jnp.asarray, params), [first, second])
    expected, _ = run(lars.lars(2.0, 0.1), params, [mean])
    assert_trees_close(actual[-1], expected[-1], rtol=1e-5)


def test_hyperparameters_can_be_changed_on_the_way():
    params, g = tree(0), tree(1)
    optimizer = optax.inject_hyperparams(lars.lars)(learning_rate=2.0, momentum=0.0)
    state = optimizer.init(params)
    once, state = optimizer.update(g, state, params)
    state.hyperparams["learning_rate"] = jnp.float32(6.0)
    thrice, _ = optimizer.update(g, state, params)
    assert_trees_close(thrice, jax.tree.map(lambda u: 3 * u, once), rtol=1e-6)


def test_tree_map_params_finds_the_trees_of_the_state():
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = lars.lars(schedule)
    state = optimizer.init(params)
    marked = optax.tree.map_params(
        optimizer,
        lambda x: "like a parameter",
        state,
        transform_non_params=lambda x: "not",
    )
    like_params = jax.tree.map(lambda _: "like a parameter", params)
    assert marked.trace == like_params
    assert marked.telemetry.trust_ratio == "not"


def test_unknown_extra_arguments_are_accepted():
    params, g = tree(0), tree(1)
    optimizer = lars.lars(1.0)
    optimizer.update(g, optimizer.init(params), params, value=1.0, what=None)


def test_vmapped_optimizers_equal_single_ones():
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[tree(i) for i in range(3)])
    gradients = jax.tree.map(
        lambda *x: jnp.stack(x), *[tree(9 + i, 10.0**-i) for i in range(3)]
    )
    optimizer = lars.lars(2.0, 0.1)

    def update(g, w):
        return optimizer.update(g, optimizer.init(w), w)[0]

    update = jax.jit(update)
    together = jax.jit(jax.vmap(update))(gradients, stacked)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], (gradients, stacked))
        assert_trees_close(
            jax.tree.map(lambda x, i=i: x[i], together), update(*one), rtol=1e-6
        )


def test_functions_are_passed_through_inject_hyperparams_as_static_arguments():
    params, g = tree(0), tree(1)

    def decayed(p):
        return jax.tree.map(lambda x: x.ndim > 1, p)

    def label(path):
        return path[0].key

    injected = optax.inject_hyperparams(
        lars.lars, static_args=("layer", "weight_decay_mask", "trust_ratio_mask")
    )(1.0, 0.3, decayed, layer=label)
    plain = lars.lars(1.0, 0.3, decayed, layer=label)
    actual, _ = injected.update(g, injected.init(params), params)
    expected, _ = plain.update(g, plain.init(params), params)
    assert_trees_close(actual, expected, rtol=1e-6)


def test_trust_ratios_of_partitions_with_empty_places():
    params = {"a": {"w": jnp.ones(2), "b": None, "c": {}}, "b": {"w": jnp.ones(3)}}
    optimizer = optax.partition(
        {1: lars.lars(1.0), 2: lars.lars(2.0)}, {"a": 1, "b": {"w": 2}}
    )
    _, state = optimizer.update(params, optimizer.init(params), params)
    ratios = lars.trust_ratios(state)
    assert ratios["a"]["b"] is None
    np.testing.assert_allclose([ratios["a"]["w"], ratios["b"]["w"]], 1e-3, rtol=1e-6)


def test_trust_ratios_before_the_first_step_are_zero_and_float32():
    ratios = lars.trust_ratios(lars.lars(1.0).init(tree(0, dtype=np.float16)))
    assert jax.tree.structure(ratios) == jax.tree.structure(tree(0))
    for ratio in jax.tree.leaves(ratios):
        assert ratio == 0
        assert ratio.dtype == jnp.float32


# --------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate .* got -1.0"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate .* got 'fast'"),
        ({"learning_rate": None}, TypeError, "learning_rate .* got None"),
        ({"learning_rate": 1, "weight_decay": -1}, ValueError, "weight_decay .* -1"),
        ({"learning_rate": 1, "momentum": np.nan}, ValueError, "momentum .* nan"),
        ({"learning_rate": 1, "momentum": 0.9j}, TypeError, "momentum"),
        ({"learning_rate": 1, "trust_coefficient": np.inf}, ValueError, "inf"),
        ({"learning_rate": 1, "eps": [0.1, 0.2]}, ValueError, "eps .* number"),
        ({"learning_rate": 1, "eps": True}, TypeError, "eps .* got True"),
        ({"learning_rate": 1, "momentum": 1.5}, ValueError, "momentum .* got 1.5"),
        ({"learning_rate": 1, "nesterov": "no"}, TypeError, "nesterov .* got 'no'"),
        ({"learning_rate": 1, "accumulator_dtype": np.int8}, TypeError, "int8"),
        ({"learning_rate": 1, "layer": "kernel"}, ValueError, "layer .* 'kernel'"),
        ({"learning_rate": 1, "zero_norm": "eta"}, ValueError, "zero_norm .* 'eta'"),
    ],
)
def test_bad_hyperparameters_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.lars(**arguments)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64])
def test_parameters_that_are_not_real_numbers_are_refused(dtype):
    params = {"table": np.ones(3, dtype)}
    optimizer = lars.lars(1.0)
    with pytest.raises(TypeError, match=f"got {np.dtype(dtype)}"):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("argument", ["weight_decay_mask", "trust_ratio_mask"])
def test_a_mask_of_something_else_is_refused(argument):
    optimizer = lars.lars(1.0, 0.1, **{argument: "kernel"})
    with pytest.raises(TypeError, match="True and False only, got 'kernel'"):
        optimizer.update(tree(1), optimizer.init(tree(0)), tree(0))


def test_missing_params_are_named():
    optimizer = lars.lars(1.0)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(tree(1), optimizer.init(tree(0)))


def test_trust_ratios_of_something_else_are_refused():
    for read in (lars.trust_ratios, lars.skipped_steps):
        message = rf"{read.__name__} needs the state of lars\.lars"
        with pytest.raises(ValueError, match=message):
            read(optax.sgd(0.1).init(tree(0)))
    twice = optax.chain(lars.lars(1.0), lars.lars(1.0))
    with pytest.raises(ValueError, match="Two LARS transformations own the same"):
        lars.trust_ratios(twice.init(tree(0)))


def test_the_ratios_of_copies_under_vmap_are_those_of_each():
    optimizer = lars.lars(1.0, stacked=[(lars.select(path="second"), 0)])
    copies = [tree(seed) for seed in range(2)]
    gradients = [tree(seed + 5) for seed in range(2)]

    def ratios(params, g):
        return lars.trust_ratios(optimizer.update(g, optimizer.init(params), params)[1])

    def states(params, g):
        return optimizer.update(g, optimizer.init(params), params)[1]

    together = jax.tree.map(lambda *xs: np.stack(xs), *copies)
    g = jax.tree.map(lambda *xs: np.stack(xs), *gradients)
    actual = lars.trust_ratios(jax.vmap(states)(together, g))
    each = [ratios(w, g) for w, g in zip(copies, gradients, strict=True)]
    expected = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    assert_trees_close(actual, expected, rtol=1e-6)


def test_float16_gradients_do_not_limit_the_step_of_float32_parameters():
    params, g = jnp.full(4, 1e-6), jnp.ones(4, jnp.float16)
    optimizer = lars.lars(10.0, momentum=0.0)
    updates, _ = optimizer.update(g, optimizer.init(params), params)
    np.testing.assert_allclose(updates, -1e-8, rtol=1e-6)


def test_rules_of_layer_may_be_one_selection():
    params, g = tree(0), tree(1)
    rule = lars.select(path="bias")

    def updates(layer):
        optimizer = lars.lars(1.0, layer=layer)
        return optimizer.update(g, optimizer.init(params), params)[0]

    assert_trees_close(updates(rule), updates([rule]), rtol=0)


def test_a_tree_of_booleans_that_can_be_called_is_a_mask():
    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, kernel, bias):
            self.kernel, self.bias = kernel, bias

        def __call__(self, x):
            raise AssertionError("a mask is not run")

        def tree_flatten(self):
            return (self.kernel, self.bias), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    params = Module(jnp.ones((2, 2)), jnp.ones(2))
    rows = lars.describe(params, trust_ratio_mask=Module(True, False))
    assert [row.adapted for row in rows] == [True, False]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True},
        {"momentum_of": "direction"},
        {"momentum_correction": True},
        {"nonfinite": "propagate"},
    ],
    ids=lambda options: next(iter(options), "default"),
)
def test_a_donated_step_is_made_in_the_place_of_its_arguments(options):
    # Only then is it as fast as memory: a step that reads the old buffer after the new
    # one is written needs copies of both. One array's worth is the norms' second range.
    optimizer = lars.lars(0.1, 1e-4, **options)
    array = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    params = {f"layer_{i}": array for i in range(6)}
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
