"""Where the published rules are one and the same, and what each option means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from tests.lars.reference import PaperLars, norm
from tests.lars.steps import OPTIONS, first_step, scan

RATES = np.array([0.3, 10.0, 7.1, 0.5, 4.0])
BETA, ETA, MOMENTUM = 0.3, 0.02, 0.9
DEFAULTS = {"weight_decay": BETA, "trust_coefficient": ETA, "momentum": MOMENTUM}

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 2))
GRADIENTS = RNG.standard_normal((len(RATES), 3, 2))
W_NORM, G_NORM = norm(W), norm(GRADIENTS[0])

TREE = {"kernel": W, "bias": W[:, 0]}
TREE_GRADIENTS = {"kernel": GRADIENTS, "bias": GRADIENTS[:, :, 1]}
BIAS = lars.select(path="bias")


def compiled(make_optimizer, read=lars.trust_ratios):
    """The steps of an optimizer made for a schedule: parameters, and what is read."""

    @jax.jit
    def trajectory(params, gradients, rates):
        optimizer = make_optimizer(lambda count: rates[count])
        return scan(optimizer, params, gradients, read)[0]

    def in_float64(*arguments):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, trajectory(*arguments))

    return in_float64


@functools.cache
def lars_with(options):
    """Compiled once for each set of options."""
    return compiled(lambda schedule: lars.lars(schedule, **dict(options)))


def trajectory(params=W, gradients=GRADIENTS, rates=RATES, **options):
    """The parameters after each step in float64, and the ratios of each step."""
    steps = lars_with(tuple(sorted({**DEFAULTS, **options}.items())))
    return steps(params, gradients, rates)


def weights(*arguments, **options):
    return trajectory(*arguments, **options)[0]


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def assert_different(actual, expected):
    assert np.max(np.abs(actual - expected)) > 1e-6


def one_step(params, gradients, learning_rate=1.0, **options):
    """Steps and ratios, each alone, for stacks of parameters, gradients and rates.

    In stacks of four, without jit: its single operations are compiled once for all.
    """
    number = len(params)
    assert number <= 4

    def stack(x, *shape):
        x = np.broadcast_to(np.asarray(x, float), (number, *shape))
        return jnp.asarray(np.concatenate([x, x[-1:].repeat(4 - number, axis=0)]))

    def step(w, g, rate):
        optimizer = lars.lars(rate, **options)
        updates, state = optimizer.update(g, optimizer.init(w), w)
        return -updates, lars.trust_ratios(state)

    with jax.enable_x64(True):
        arguments = stack(params, 3, 2), stack(gradients, 3, 2), stack(learning_rate)
        steps, ratios = jax.vmap(step)(*arguments)
        return np.asarray(steps)[:number], np.asarray(ratios)[:number]


def paper(params, gradients, rates=RATES):
    layer = PaperLars(params, eta=ETA, beta=BETA, momentum=MOMENTUM)
    return [layer.step(g, gamma) for g, gamma in zip(gradients, rates, strict=True)]


def test_the_default_is_the_algorithm_of_the_paper():
    assert_same(weights(), paper(W, GRADIENTS))


def test_a_constant_rate_is_the_same_inside_and_outside_the_momentum():
    rates = np.full(len(RATES), 3.0)
    inside = weights(rates=rates, momentum_of="step", nesterov=True)
    outside = weights(rates=rates, momentum_of="direction", nesterov=True)
    assert_same(outside, inside)


def assert_follows(actual, rule):
    """Weights after each step are those of a rule: from w, v, g and γ to v and w."""
    w, v = W, np.zeros_like(W)
    for t, (w_next, g, gamma) in enumerate(zip(actual, GRADIENTS, RATES, strict=True)):
        v, w = rule(w, v, g, gamma, t)
        assert_same(w_next, w)


def ratio_of(w, g, beta=BETA):
    return ETA * norm(w) / (norm(g) + beta * norm(w))


def test_momentum_correction_takes_the_rate_out_of_the_momentum():
    # Algorithm 1, but with m γ / (the last γ) in the place of m.
    def rule(w, v, g, gamma, t):
        v = MOMENTUM * gamma / RATES[max(t - 1, 0)] * v
        v = v + gamma * ratio_of(w, g) * (g + BETA * w)
        return v, w - v

    actual = weights(momentum_of="direction")
    assert_follows(actual, rule)
    assert_different(actual, weights())


def test_decay_outside_the_momentum_is_not_in_the_buffer():
    def rule(w, v, g, gamma, t):
        rate = gamma * ratio_of(w, g)
        v = MOMENTUM * v + rate * g
        return v, w - v - rate * BETA * w

    assert_follows(weights(weight_decay_kind="outside"), rule)


def test_weight_decay_can_be_a_schedule():
    decays = np.array([0.1, 0.0, 0.4, 1.0, 0.2])
    steps = compiled(
        lambda schedule: lars.lars(
            schedule,
            lambda count: jnp.asarray(decays)[count],
            trust_coefficient=ETA,
            momentum=0.0,
        )
    )

    def rule(w, v, g, gamma, t):
        return v, w - gamma * ratio_of(w, g, decays[t]) * (g + decays[t] * w)

    assert_follows(steps(W, GRADIENTS, RATES)[0], rule)


def test_optax_adds_decay_that_no_ratio_touches():
    steps = compiled(
        lambda schedule: optax.chain(
            lars.scale_by_lars(
                trust_coefficient=ETA, learning_rate=schedule, momentum=MOMENTUM
            ),
            optax.add_decayed_weights(lambda count: BETA * schedule(count)),
            optax.scale(-1.0),
        )
    )

    def rule(w, v, g, gamma, t):
        v = MOMENTUM * v + gamma * ratio_of(w, g, 0.0) * g
        return v, w - v - gamma * BETA * w

    assert_follows(steps(W, GRADIENTS, RATES)[0], rule)


OF_UPDATE = {"denominator": "update", "momentum_of": "gradient"}


@pytest.mark.parametrize(
    ("of_both", "one", "other"),
    [
        # Without decay its place makes no difference, nor does its part in norms.
        ({"weight_decay": 0.0}, {}, {"denominator": "decayed"}),
        ({"weight_decay": 0.0}, {}, {"denominator": "gradient"}),
        ({"weight_decay": 0.0}, {}, {"weight_decay_kind": "outside"}),
        # Without momentum all places of the momentum are equal.
        ({"momentum": 0.0}, {}, {"momentum_of": "direction"}),
        ({"momentum": 0.0}, {}, {"momentum_of": "gradient"}),
        ({"momentum": 0.0}, {}, {"nesterov": True}),
        ({"momentum": 0.0}, {}, {"weight_decay_kind": "outside"}),
        ({"momentum": 0.0}, {"denominator": "decayed"}, OF_UPDATE),
    ],
)
def test_families_that_are_one_and_the_same(of_both, one, other):
    steps = (
        one_step([W], GRADIENTS[:1], 3.0, **{**DEFAULTS, **of_both, **options})[0]
        for options in (one, other)
    )
    assert_same(*steps)


def test_a_constant_ratio_is_the_same_before_and_after_the_momentum():
    options = {"trust_ratio_bounds": (0.25, 0.25), "nesterov": True}
    before = weights(momentum_of="direction", **options)
    assert_same(weights(momentum_of="gradient", **options), before)
    sgd = compiled(
        lambda schedule: optax.chain(
            optax.add_decayed_weights(BETA),
            optax.sgd(lambda count: 0.25 * schedule(count), MOMENTUM, nesterov=True),
        ),
        read=lambda _: 0,
    )
    assert_same(sgd(W, GRADIENTS, RATES)[0], before)


def test_a_ratio_that_changes_is_not_the_same_before_and_after_the_momentum():
    before = weights(momentum_of="direction")
    assert_different(weights(momentum_of="gradient"), before)


@pytest.mark.parametrize("momentum_of", ["direction", "gradient"])
def test_without_a_gradient_decay_outside_takes_a_part_of_the_weights(momentum_of):
    options = {"weight_decay_kind": "outside", "momentum_of": momentum_of}
    steps, _ = one_step([W], [0 * W], 3.0, **DEFAULTS, **options)
    # A zero gradient has the ratio η/β: the part is γη.
    assert_same(steps, [3.0 * ETA * W])


def heavy_ball(rates, *, inside):
    """What biases do without ratio and decay, with the rate in the momentum or not."""
    w, v = TREE["bias"], np.zeros(3)
    for g, gamma in zip(TREE_GRADIENTS["bias"], rates, strict=True):
        v = MOMENTUM * v + (gamma if inside else 1) * g
        w = w - (1 if inside else gamma) * v
        yield w


def test_optax_partition_gives_parameters_rates_and_a_momentum_of_their_own():
    own = np.array([0.1, 0.7, 0.2, 0.9, 0.3])
    steps = compiled(
        lambda schedule: optax.partition(
            {
                "kernel": lars.lars(schedule, **DEFAULTS),
                "bias": lars.lars(
                    lambda count: jnp.asarray(own)[count],
                    momentum=MOMENTUM,
                    momentum_of="gradient",
                    trust_ratio_mask=False,
                ),
            },
            {"kernel": "kernel", "bias": "bias"},
        )
    )
    actual, ratios = steps(TREE, TREE_GRADIENTS, RATES)
    assert_same(actual["kernel"], paper(W, GRADIENTS))
    assert_same(actual["bias"], list(heavy_ball(own, inside=False)))
    assert np.all(ratios["bias"] == 1)
    expected = ETA * W_NORM / (G_NORM + BETA * W_NORM)
    np.testing.assert_allclose(ratios["kernel"][0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "denominator"),
    [
        ({}, G_NORM + BETA * W_NORM),
        ({"weight_decay_mask": False}, G_NORM),
        ({"weight_decay_kind": "outside"}, G_NORM + BETA * W_NORM),
        ({"denominator": "gradient"}, G_NORM),
        ({"denominator": "decayed"}, norm(GRADIENTS[0] + BETA * W)),
        (OF_UPDATE, norm(GRADIENTS[0] + BETA * W)),
        ({**OF_UPDATE, "nesterov": True}, 1.9 * norm(GRADIENTS[0] + BETA * W)),
    ],
)
def test_the_ratio_has_the_denominator_that_is_named(options, denominator):
    expected = ETA * W_NORM / (denominator + 0.5)
    _, ratio = one_step([W], GRADIENTS[:1], 3.0, **DEFAULTS, **options, eps=0.5)
    np.testing.assert_allclose(ratio, [expected], rtol=1e-6)


SCALES = np.array([1e-6, 1e-2, 1.0, 1e3])
"""Of gradients, for ratios of every size."""


def small_and_large():
    """Weights, gradients and their ratios in the paper's equation."""
    g = SCALES[:, None, None] * GRADIENTS[0]
    return [W] * len(g), g, ETA * W_NORM / (SCALES * G_NORM)


def test_clipping_makes_the_local_rate_the_smaller_of_ratio_and_rate():
    w, g, ratio = small_and_large()
    options = {"trust_coefficient": ETA, "momentum": 0.0, "clip": True}
    local_rates = set()
    for gamma in (0.01, 1.0, 40.0):
        steps, clipped = one_step(w, g, gamma, **options)
        local_rate = np.minimum(ratio, gamma)
        assert_same(steps, local_rate[:, None, None] * g)
        np.testing.assert_allclose(clipped, np.minimum(ratio / gamma, 1), rtol=1e-6)
        local_rates.update(local_rate)
    assert len(local_rates) > 4
    steps, clipped = one_step(w, g, 0.0, **options)
    np.testing.assert_array_equal(steps, 0)
    np.testing.assert_array_equal(clipped, 1)


def test_a_ratio_stays_within_its_bounds_which_come_before_clipping():
    w, g, ratio = small_and_large()
    bounds = ratio[2] * 0.9, ratio[1] * 1.1
    options = {"trust_coefficient": ETA, "momentum": 0.0, "trust_ratio_bounds": bounds}
    steps, bounded = one_step(w, g, 3.0, **options)
    expected = np.clip(ratio, *bounds)
    assert len(np.unique(expected)) == 4
    assert_same(steps, 3.0 * expected[:, None, None] * g)
    np.testing.assert_allclose(bounded, expected, rtol=1e-6)
    gamma = 1.1 * bounds[0]
    _, clipped = one_step(w, g, gamma, clip=True, **options)
    np.testing.assert_allclose(clipped, np.minimum(expected / gamma, 1.0), rtol=1e-6)


def test_a_bound_of_directions_changes_the_step_and_not_the_ratio():
    g = GRADIENTS[:1]
    options = {"momentum_of": "gradient", "direction_bound": 0.5}
    steps, ratio = one_step([W], g, 3.0, **DEFAULTS, **options)
    expected = ETA * W_NORM / (G_NORM + BETA * W_NORM)
    np.testing.assert_allclose(ratio, [expected], rtol=1e-6)
    d = g + BETA * W
    assert np.abs(d).min() < 0.5 < np.abs(d).max()
    assert_same(steps, 3.0 * expected * np.clip(d, -0.5, 0.5))


ZERO = {"trust_coefficient": 0.02, "one": 1.0, "plain": 1.0, "zero": 0.0}


@pytest.mark.parametrize(
    ("zero_norm", "zero_gradient"),
    [
        *((rule, "formula") for rule in ZERO),
        *(("one", rule) for rule in ZERO),
        ("plain", "one"),
    ],
)
def test_zero_norms_have_the_ratio_that_is_named(zero_norm, zero_gradient):
    w = np.stack([W, 0 * W, W, 0 * W])
    g = np.stack([GRADIENTS[0], GRADIENTS[0], 0 * W, 0 * W])
    options = {"trust_coefficient": ETA, "momentum": 0.0, "zero_norm": zero_norm}
    options["zero_gradient"] = zero_gradient
    for beta in (BETA, 0.0):
        # Without decay the formula of a zero gradient has a zero denominator.
        is_formula = zero_gradient == "formula" and beta > 0
        of_gradient = zero_norm if zero_gradient == "formula" else zero_gradient
        ratio = np.array(
            [
                ratio_of(W, GRADIENTS[0], beta),
                ZERO[zero_norm],
                ETA / beta if is_formula else ZERO[of_gradient],
                ZERO[zero_norm],
            ]
        )
        steps, actual = one_step(w, g, 4.0, weight_decay=beta, **options)
        np.testing.assert_allclose(actual, ratio, rtol=1e-6)
        assert_same(steps, 4.0 * ratio[:, None, None] * (g + beta * w))
        # A plain ratio is neither bounded nor clipped.
        rules = ["", zero_norm, "" if is_formula else of_gradient, zero_norm]
        bounds = {"clip": True, "trust_ratio_bounds": (2.0, 3.0)}
        _, bounded = one_step(w, g, 4.0, weight_decay=beta, **options, **bounds)
        expected = np.minimum(np.clip(ratio, 2.0, 3.0) / 4.0, 1.0)
        is_plain = np.array(rules) == "plain"
        np.testing.assert_allclose(bounded, np.where(is_plain, 1, expected), rtol=1e-6)


def test_with_denominator_update_zero_gradient_means_a_zero_update():
    g = np.stack([GRADIENTS[0], 0 * W])
    options = {**OF_UPDATE, "zero_gradient": "zero"}
    _, ratios = trajectory(W, g, np.ones(2), weight_decay=0.0, **options)
    assert ratios[1] > 0
    _, ratio = one_step([W], [-BETA * W], 1.0, **DEFAULTS, **options)
    assert ratio == 0


def test_excluded_parameters_are_neither_bounded_nor_clipped():
    actual, ratios = trajectory(
        TREE,
        TREE_GRADIENTS,
        weight_decay_mask=~BIAS,
        trust_ratio_mask=~BIAS,
        clip=True,
        trust_ratio_bounds=(2.0, 3.0),
    )
    assert_same(actual["bias"], list(heavy_ball(RATES, inside=True)))
    assert np.all(ratios["bias"] == 1)
    np.testing.assert_allclose(ratios["kernel"], np.minimum(2.0 / RATES, 1), rtol=1e-6)


def test_slices_of_a_stack_are_layers():
    scale = np.array([0.01, 1.0, 100.0])[:, None]
    actual, ratios = trajectory(scale * W, stacked=((lars.select(rank=2), 0),))
    for i in range(3):
        assert_same(actual[:, i], paper(scale[i] * W[i], GRADIENTS[:, i]))
    assert ratios.shape == (len(RATES), 3)


def test_arrays_of_a_module_share_a_ratio_of_joint_norms():
    # Only the kernel decays, and counts as decayed.
    _, ratios = trajectory(
        TREE, TREE_GRADIENTS, layer="module", weight_decay_mask=~BIAS
    )
    np.testing.assert_array_equal(ratios["kernel"], ratios["bias"])
    w, g = (
        np.concatenate([tree["kernel"].ravel(), tree["bias"]])
        for tree in (TREE, {name: g[0] for name, g in TREE_GRADIENTS.items()})
    )
    expected = ETA * norm(w) / (norm(g) + BETA * W_NORM)
    np.testing.assert_allclose(ratios["kernel"][0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_all_options_work_where_there_is_nothing_for_them(name):
    # No parameter is adapted or decayed; some have no elements, and one is a scalar.
    params = {
        "none": None,
        "scalar": np.float32(3),
        "empty": np.ones((0, 2), np.float32),
    }
    g = {**params, "scalar": np.float32(-2)}
    options = {"weight_decay": 0.1, **OPTIONS[name]}
    optimizer = lars.lars(
        0.5, weight_decay_mask=False, trust_ratio_mask=False, **options
    )
    updates, state = first_step(optimizer, g, params)
    size = 1.9 if options.get("nesterov") else 1.0
    np.testing.assert_allclose(updates["scalar"], size, rtol=1e-6)
    assert updates["empty"].shape == (0, 2)
    assert lars.trust_ratios(state) == {"none": None, "scalar": 1, "empty": 1}
    assert lars.skipped_steps(state) == {"none": None, "scalar": 0, "empty": 0}
