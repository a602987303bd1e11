"""Where the published rules are one and the same, and what each option means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from tests.reference import PaperLars, norm

RATES = [0.3, 10.0, 7.1, 0.5, 4.0]
BETA, ETA, MOMENTUM = 0.3, 0.02, 0.9

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 2))
GRADIENTS = RNG.standard_normal((len(RATES), 3, 2))
W_NORM, G_NORM = norm(W), norm(GRADIENTS[0])


def trajectory(
    params=W,
    gradients=GRADIENTS,
    *,
    optimizer=lars.lars,
    rates=RATES,
    learning_rate=None,
    weight_decay=BETA,
    trust_coefficient=ETA,
    momentum=MOMENTUM,
    **options,
):
    """The parameters after each step in float64, and the ratios of each step."""

    def schedule(count):
        return jnp.asarray(rates)[count]

    with jax.enable_x64(True):
        if optimizer is lars.lars:
            options["weight_decay"] = weight_decay
            options["trust_coefficient"] = trust_coefficient
        rule = optimizer(schedule, momentum=momentum, **options)

        def step(carry, g):
            updates, state = rule.update(g, carry[1], carry[0])
            w = optax.apply_updates(carry[0], updates)
            ratios = lars.trust_ratios(state) if optimizer is lars.lars else None
            return (w, state), (w, ratios)

        params, gradients = jax.tree.map(jnp.asarray, (params, gradients))
        run = jax.jit(lambda w, g: jax.lax.scan(step, (w, rule.init(w)), g)[1])
        return jax.tree.map(np.asarray, run(params, gradients))


def weights(*arguments, **options):
    return trajectory(*arguments, **options)[0]


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def assert_different(actual, expected):
    assert np.max(np.abs(actual - expected)) > 1e-6


def one_step(params, gradients, learning_rate=1.0, **options):
    """Steps and ratios, each alone, for stacks of parameters, gradients and rates."""
    with jax.enable_x64(True):

        def step(w, g, rate):
            optimizer = lars.lars(rate, **options)
            updates, state = optimizer.update(g, optimizer.init(w), w)
            return -updates, lars.trust_ratios(state)

        arguments = [jnp.asarray(x, float) for x in (params, gradients)]
        rates = jnp.broadcast_to(jnp.asarray(learning_rate, float), len(params))
        run = jax.jit(jax.vmap(step))
        return jax.tree.map(np.asarray, run(*arguments, rates))


# ------------------------------------------------------------ the same in other words


@pytest.mark.parametrize("nesterov", [False, True])
def test_at_a_constant_rate_it_may_be_inside_or_outside_the_momentum(nesterov):
    options = {"rates": [3.0] * len(RATES), "nesterov": nesterov}
    inside = weights(momentum_of="step", **options)
    assert_same(weights(momentum_of="direction", **options), inside)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_correction_takes_the_rate_out_of_the_momentum(nesterov):
    inside = weights(momentum_of="step", nesterov=nesterov)
    outside = weights(momentum_of="direction", nesterov=nesterov)
    corrected = weights(momentum_correction=True, nesterov=nesterov)
    assert_same(corrected, outside)
    assert_different(inside, outside)


def test_momentum_correction_forgets_what_a_rate_of_zero_leaves():
    w, g = np.ones((4, 1)), np.ones((4, 1))
    rates = [2.0, 0.0, 2.0, 2.0]
    options = {"weight_decay": 0.0, "momentum_correction": True}
    actual = weights(w[0], g, rates=rates, **options)
    afresh = weights(actual[1], g[2:], rates=rates[2:], **options)
    assert_same(actual[1], actual[0])
    assert_same(actual[2:], afresh)


def test_without_decay_all_denominators_of_the_gradient_are_one():
    options = {"weight_decay": 0.0}
    expected = weights(denominator="sum", **options)
    assert_same(weights(denominator="decayed", **options), expected)
    assert_same(weights(denominator="gradient", **options), expected)


def test_with_decay_no_two_denominators_are_one():
    of = [
        weights(denominator=name, momentum_of="gradient")
        for name in ("sum", "decayed", "gradient", "update")
    ]
    for i in range(4):
        for j in range(i):
            assert_different(of[i], of[j])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_ratio_that_is_constant_may_be_before_or_after_the_momentum(nesterov):
    options = {"trust_ratio_bounds": (0.25, 0.25), "nesterov": nesterov}
    before = weights(momentum_of="direction", **options)
    assert_same(weights(momentum_of="gradient", **options), before)
    sgd = weights(
        optimizer=lambda rate, **options: optax.chain(
            optax.add_decayed_weights(BETA),
            optax.sgd(lambda count: 0.25 * rate(count), **options),
        ),
        nesterov=nesterov,
    )
    assert_same(sgd, before)


def test_a_ratio_that_changes_may_not():
    before = weights(momentum_of="direction")
    assert_different(weights(momentum_of="gradient"), before)


def test_without_momentum_it_does_not_matter_what_it_is_of():
    options = {"momentum": 0.0}
    expected = weights(**options)
    assert_same(weights(momentum_of="direction", **options), expected)
    assert_same(weights(momentum_of="gradient", **options), expected)
    assert_same(weights(momentum_of="step", nesterov=True, **options), expected)
    of_update = weights(momentum_of="gradient", denominator="update", **options)
    assert_same(of_update, weights(denominator="decayed", **options))


def test_without_momentum_decay_may_be_outside_of_it():
    inside = weights(weight_decay_kind="coupled", momentum=0.0)
    assert_same(weights(weight_decay_kind="outside", momentum=0.0), inside)
    assert_different(weights(weight_decay_kind="outside"), weights())


@pytest.mark.parametrize("kind", ["outside", "decoupled"])
def test_without_decay_its_kind_does_not_matter(kind):
    options = {"weight_decay": 0.0}
    assert_same(weights(weight_decay_kind=kind, **options), weights(**options))


def test_decoupled_decay_knows_no_ratio():
    w, v = W, 0.0
    actual = weights(weight_decay_kind="decoupled")
    for w_next, g, gamma in zip(actual, GRADIENTS, RATES, strict=True):
        v = MOMENTUM * v + gamma * ETA * norm(w) / norm(g) * g
        w = w - v - gamma * BETA * w
        assert_same(w_next, w)


# --------------------------------------------------------------- what is in the ratio


@pytest.mark.parametrize(
    ("options", "denominator"),
    [
        ({}, G_NORM + BETA * W_NORM),
        ({"weight_decay_mask": False}, G_NORM),
        ({"weight_decay_kind": "outside"}, G_NORM + BETA * W_NORM),
        ({"weight_decay_kind": "decoupled"}, G_NORM),
        ({"denominator": "gradient"}, G_NORM),
        ({"denominator": "decayed"}, norm(GRADIENTS[0] + BETA * W)),
        (
            {"denominator": "update", "momentum_of": "gradient"},
            norm(GRADIENTS[0] + BETA * W),
        ),
        (
            {"denominator": "update", "momentum_of": "gradient", "nesterov": True},
            1.9 * norm(GRADIENTS[0] + BETA * W),
        ),
        ({"geometry": "spectral"}, None),
    ],
)
def test_the_ratio_is_what_it_says(options, denominator):
    expected = ETA * W_NORM / (denominator + 0.5) if denominator else None
    if expected is None:  # of spectral norms, and that of an orthogonal factor is 1
        expected = ETA * np.linalg.norm(W, 2) / 1.5
    _, ratio = one_step([W], GRADIENTS[:1], 3.0, **DEFAULTS, **options, eps=0.5)
    np.testing.assert_allclose(ratio, [expected], rtol=1e-6)


DEFAULTS = {"weight_decay": BETA, "trust_coefficient": ETA, "momentum": MOMENTUM}

SCALES = np.array([1e-6, 1e-2, 1.0, 1e3])
"""Of gradients, for ratios of every size."""


def small_and_large():
    """Weights, gradients and their ratios in the paper's equation."""
    g = SCALES[:, None, None] * GRADIENTS[0]
    return [W] * len(g), g, ETA * W_NORM / (SCALES * G_NORM)


def test_clipping_makes_the_local_rate_the_smaller_of_ratio_and_rate():
    w, g, ratio = small_and_large()
    gamma = np.array([0.01, 1.0, 40.0]).repeat(len(g))
    g, ratio = np.tile(g, (3, 1, 1)), np.tile(ratio, 3)
    steps, clipped = one_step(
        w * 3, g, gamma, trust_coefficient=ETA, momentum=0.0, clip=True
    )
    local_rate = np.minimum(ratio, gamma)
    assert len(np.unique(local_rate)) > 4
    assert_same(steps, local_rate[:, None, None] * g)
    np.testing.assert_allclose(clipped, np.minimum(ratio / gamma, 1), rtol=1e-6)


def test_a_ratio_stays_within_its_bounds():
    w, g, ratio = small_and_large()
    low, high = ratio[2] * 0.9, ratio[1] * 1.1
    options = {"trust_coefficient": ETA, "momentum": 0.0}
    steps, bounded = one_step(w, g, 3.0, trust_ratio_bounds=(low, high), **options)
    expected = np.clip(ratio, low, high)
    assert len(np.unique(expected)) == 4
    assert_same(steps, 3.0 * expected[:, None, None] * g)
    np.testing.assert_allclose(bounded, expected, rtol=1e-6)


def test_bounds_come_before_clipping():
    w, g, ratio = small_and_large()
    options = {"trust_coefficient": ETA, "momentum": 0.0, "clip": True}
    _, clipped = one_step(w, g, 4.0, trust_ratio_bounds=(2.0, 1e9), **options)
    expected = np.minimum(np.maximum(ratio, 2.0) / 4.0, 1.0)
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)


def test_bounded_directions_leave_the_ratio_alone():
    g = GRADIENTS[:1]
    options = {"momentum_of": "gradient", "direction_bound": 0.5}
    steps, ratio = one_step([W], g, 3.0, **DEFAULTS, **options)
    expected = ETA * W_NORM / (G_NORM + BETA * W_NORM)
    np.testing.assert_allclose(ratio, [expected], rtol=1e-6)
    d = g + BETA * W
    assert np.abs(d).min() < 0.5 < np.abs(d).max()
    assert_same(steps, 3.0 * expected * np.clip(d, -0.5, 0.5))


# ------------------------------------------------------------------------- zero norms


ZERO = {"trust_coefficient": 0.02, "one": 1.0, "plain": 1.0, "zero": 0.0}


@pytest.mark.parametrize("rule", ZERO)
def test_zero_weights_have_the_ratio_that_is_named(rule):
    zeros = np.zeros_like(W)
    steps, ratio = one_step([zeros], [GRADIENTS[0]], 3.0, **DEFAULTS, zero_norm=rule)
    np.testing.assert_allclose(ratio, [ZERO[rule]], rtol=1e-6)
    assert_same(steps[0], 3.0 * ZERO[rule] * GRADIENTS[0])


@pytest.mark.parametrize("rule", ["formula", *ZERO])
def test_a_zero_gradient_has_the_ratio_that_is_named(rule):
    g = np.stack([np.zeros_like(W), GRADIENTS[0]])
    steps, ratio = one_step([W] * 2, g, 3.0, **DEFAULTS, zero_gradient=rule)
    expected = ZERO.get(rule, ETA / BETA)
    ordinary = ETA * W_NORM / (G_NORM + BETA * W_NORM)
    np.testing.assert_allclose(ratio, [expected, ordinary], rtol=1e-6)
    assert_same(steps[0], 3.0 * expected * BETA * W)


def test_the_zero_gradient_of_a_ratio_of_updates_is_a_zero_update():
    options = {"denominator": "update", "momentum_of": "gradient"}
    _, ratios = trajectory(
        W,
        np.stack([GRADIENTS[0], 0 * W]),
        rates=[1.0, 1.0],
        weight_decay=0.0,
        zero_gradient="zero",
        **options,
    )
    assert ratios[1] > 0
    _, ratio = one_step(
        [W], [-BETA * W], 1.0, **DEFAULTS, zero_gradient="zero", **options
    )
    assert ratio == 0


def test_nothing_at_all_is_a_matter_of_the_zero_norm():
    zeros = np.zeros((1, *W.shape))
    options = {"zero_norm": "one", "zero_gradient": "zero"}
    steps, ratio = one_step(zeros, zeros, 3.0, **DEFAULTS, **options)
    assert ratio == 1
    assert_same(steps, zeros)


@pytest.mark.parametrize("name", ["zero_norm", "zero_gradient"])
def test_a_ratio_of_one_is_bounded_and_clipped_and_a_plain_one_is_not(name):
    w = [0 * W] if name == "zero_norm" else [W]
    g = GRADIENTS[:1] if name == "zero_norm" else [0 * W]
    ratios = {
        rule: one_step(
            w,
            g,
            4.0,
            **DEFAULTS,
            clip=True,
            trust_ratio_bounds=(2.0, 3.0),
            **{name: rule},
        )[1]
        for rule in ("one", "plain")
    }
    assert ratios == {"one": 2.0 / 4.0, "plain": 1.0}


def test_norms_up_to_the_smallest_count_as_zero():
    w, g = np.array([3.0, 4.0]), np.array([0.0, 10.0])
    scales = [(1.0, 1.0), (1.001, 1.0), (1.0, 1.001), (1.001, 0.4), (1.0, 0.4)]
    _, ratio = one_step(
        [a * w for a, _ in scales],
        [b * g for _, b in scales],
        weight_decay=0.5,
        trust_coefficient=0.1,
        min_norm=5.0,
        zero_norm="plain",
        zero_gradient="zero",
    )
    # ‖w‖ = 5 counts as zero, 5.005 does not; nor does ‖g‖ = 10, but 4 does.
    paper = 0.1 * 5.005 / (10 + 0.5 * 5.005)
    np.testing.assert_allclose(ratio, [1, paper, 1, 0, 1], rtol=1e-6)


# --------------------------------------------------------------------------- momentum


@pytest.mark.parametrize(
    ("momentum_of", "nesterov"),
    [("step", False), ("direction", True), ("gradient", True)],
)
def test_dampening_shrinks_what_enters_the_momentum(momentum_of, nesterov):
    options = {"momentum_of": momentum_of, "nesterov": nesterov}
    damped = weights(dampening=0.25, **options)
    assert_same(damped, weights(trust_coefficient=0.75 * ETA, **options))


def test_dampening_is_nothing_to_a_ratio_of_updates():
    options = {"denominator": "update", "momentum_of": "gradient"}
    assert_same(weights(dampening=0.25, **options), weights(**options))


def test_dampening_leaves_decay_outside_the_momentum_alone():
    w, v = W, 0.0
    actual = weights(dampening=0.25, weight_decay_kind="outside")
    for w_next, g, gamma in zip(actual, GRADIENTS, RATES, strict=True):
        ratio = ETA * norm(w) / (norm(g) + BETA * norm(w))
        v = MOMENTUM * v + 0.75 * gamma * ratio * g
        w = w - v - gamma * ratio * BETA * w
        assert_same(w_next, w)


# ------------------------------------------------------------- some parameters, and all


TREE = {"kernel": W, "bias": W[:, 0]}
TREE_GRADIENTS = {"kernel": GRADIENTS, "bias": GRADIENTS[:, :, 1]}
BIAS = lars.select(path="bias")


def sgd(rates=RATES, *, inside):
    """What excluded biases do, with the rate inside or outside the momentum."""
    w, v = TREE["bias"], 0.0
    for g, gamma in zip(TREE_GRADIENTS["bias"], rates, strict=True):
        v = MOMENTUM * v + (gamma if inside else 1) * g
        w = w - (1 if inside else gamma) * v
        yield w


def paper(params, gradients, rates=RATES):
    layer = PaperLars(params, eta=ETA, beta=BETA, momentum=MOMENTUM)
    return [layer.step(g, gamma) for g, gamma in zip(gradients, rates, strict=True)]


@pytest.mark.parametrize(
    ("momentum_of", "inside"),
    [(None, True), ("step", True), ("direction", False), ("gradient", False)],
)
def test_excluded_parameters_can_have_a_momentum_of_their_own(momentum_of, inside):
    actual, ratios = trajectory(
        TREE,
        TREE_GRADIENTS,
        weight_decay_mask=~BIAS,
        trust_ratio_mask=~BIAS,
        excluded_momentum_of=momentum_of,
    )
    assert_same(actual["bias"], list(sgd(inside=inside)))
    assert_same(actual["kernel"], paper(TREE["kernel"], GRADIENTS))
    assert np.all(ratios["bias"] == 1)


def test_excluded_parameters_are_neither_bounded_nor_clipped():
    actual, ratios = trajectory(
        TREE,
        TREE_GRADIENTS,
        weight_decay_mask=~BIAS,
        trust_ratio_mask=~BIAS,
        clip=True,
        trust_ratio_bounds=(2.0, 3.0),
    )
    assert_same(actual["bias"], list(sgd(inside=True)))
    assert np.all(ratios["bias"] == 1)
    np.testing.assert_allclose(
        ratios["kernel"], np.minimum(2.0 / np.asarray(RATES), 1), rtol=1e-6
    )


@pytest.mark.parametrize("correction", [False, True])
def test_parameters_can_have_learning_rates_of_their_own(correction):
    own = [0.1, 0.7, 0.2, 0.9, 0.3]
    actual, _ = trajectory(
        TREE,
        TREE_GRADIENTS,
        weight_decay_mask=~BIAS,
        trust_ratio_mask=~BIAS,
        learning_rates=[
            (BIAS, lambda count: jnp.asarray(own)[count]),
            (lars.select(rank=1), 99.0),  # the first that matches holds
        ],
        momentum_correction=correction,
    )
    assert_same(actual["bias"], list(sgd(own, inside=not correction)))
    expected = weights(W, GRADIENTS, momentum_correction=correction)
    assert_same(actual["kernel"], expected)


@pytest.mark.parametrize("decay", ["coupled", "outside", "decoupled"])
@pytest.mark.parametrize("momentum_of", ["step", "direction", "gradient"])
def test_an_own_learning_rate_is_as_if_it_were_that_of_all(momentum_of, decay):
    own = [0.1, 0.7, 0.2, 0.9, 0.3]
    options = {"momentum_of": momentum_of, "weight_decay_kind": decay}
    schedule = (BIAS, lambda count: jnp.asarray(own)[count])
    together, _ = trajectory(TREE, TREE_GRADIENTS, learning_rates=[schedule], **options)
    alone, _ = trajectory(TREE, TREE_GRADIENTS, rates=own, **options)
    assert_same(together["bias"], alone["bias"])
    others, _ = trajectory(TREE, TREE_GRADIENTS, **options)
    assert_same(together["kernel"], others["kernel"])
    assert not np.allclose(alone["bias"], others["bias"], rtol=0.01)


def test_clipping_is_at_the_rate_of_the_parameter():
    _, ratios = trajectory(
        TREE,
        TREE_GRADIENTS,
        weight_decay=0.0,
        clip=True,
        learning_rates=[(BIAS, 0.001)],
        trust_ratio_bounds=(0.01, 0.01),
    )
    assert np.all(ratios["bias"] == 1)
    np.testing.assert_allclose(ratios["kernel"], 0.01 / np.asarray(RATES), rtol=1e-6)


def test_slices_of_a_stack_are_layers():
    scale = np.array([0.01, 1.0, 100.0])[:, None]
    actual, ratios = trajectory(scale * W, stacked=[(lars.select(rank=2), 0)])
    for i in range(3):
        assert_same(actual[:, i], paper(scale[i] * W[i], GRADIENTS[:, i]))
    assert ratios.shape == (len(RATES), 3)


def test_arrays_of_a_module_share_a_ratio():
    _, ratios = trajectory(TREE, TREE_GRADIENTS, layer="module", rates=RATES)
    np.testing.assert_array_equal(ratios["kernel"], ratios["bias"])
    w, g = (
        np.concatenate([tree["kernel"].ravel(), tree["bias"]])
        for tree in (TREE, {name: g[0] for name, g in TREE_GRADIENTS.items()})
    )
    expected = ETA * norm(w) / (norm(g) + BETA * norm(w))
    np.testing.assert_allclose(ratios["kernel"][0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("nonfinite", "bias", "kernel"),
    [
        ("skip_layer", "stays", "moves"),
        ("skip_step", "stays", "stays"),
        ("propagate", "is lost", "moves"),
    ],
)
def test_what_is_not_finite_does_what_is_named(nonfinite, bias, kernel):
    broken = {"kernel": GRADIENTS[:1], "bias": TREE_GRADIENTS["bias"][:1].copy()}
    broken["bias"][0, 1] = np.nan
    actual = weights(TREE, broken, nonfinite=nonfinite)

    def fate(name):
        if np.isnan(actual[name]).any():
            return "is lost"
        return "stays" if np.array_equal(actual[name][0], TREE[name]) else "moves"

    assert (fate("bias"), fate("kernel")) == (bias, kernel)


def test_the_momentum_has_the_dtype_that_is_named():
    for dtype in (None, jnp.bfloat16):
        optimizer = lars.lars(1.0, accumulator_dtype=dtype)
        state = jax.eval_shape(optimizer.init, jnp.zeros(3))
        assert optax.tree.get(state, "trace").dtype == (dtype or jnp.float32)


def test_the_smallest_norm_is_that_of_a_layer():
    # Four arrays of norm 1 have the norm 2 together.
    params = {name: jnp.array([1.0]) for name in "abcd"}
    options = {"momentum": 0.0, "trust_coefficient": 0.5, "zero_norm": "zero"}
    for layer, step in {"module": 0.5, "parameter": 0.0}.items():
        optimizer = lars.lars(1.0, layer=layer, min_norm=1.5, **options)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        np.testing.assert_allclose([*updates.values()], -step * np.ones((4, 1)))
