"""One training function: exact identities, the same batches, one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lars
from experiments.data import Split
from experiments.training.training import (
    Run,
    batch_positions,
    make_training,
    sweep_over,
)
from tests.experiments.small import small_mlp

STEPS = 40


def run_of(scales, learning_rate=10.0, seed=0):
    scales = jnp.asarray(scales, jnp.float32)
    return Run(jnp.int32(seed), scales, jnp.float32(learning_rate))


def training(make_optimizer, num_steps=STEPS, batch_size=128, **changes):
    model = small_mlp(**{"width": 32, "use_bias": False, **changes})
    return make_training(
        model, make_optimizer, num_steps=num_steps, batch_size=batch_size
    )


def losses_of(make_optimizer, scales, digits, learning_rate=10.0):
    parts = training(make_optimizer)

    @jax.jit
    def losses(run, data):
        return parts.advance(parts.init(run, data), run, data, STEPS)[1]

    return np.asarray(losses(run_of(scales, learning_rate), digits))


@pytest.mark.parametrize("optimized", [False, True])
def test_rescaling_layers_with_product_one_leaves_the_loss_curve_bitwise_the_same(
    digits, optimized
):
    # Powers of two, so that no product is rounded; β = 0, which the identity needs.
    jax.config.update("jax_disable_most_optimizations", not optimized)
    try:
        plain = losses_of(lars.lars, [1, 1, 1], digits)
        for powers in ([5, -7, 2], [-20, 30, -10]):
            scaled = losses_of(lars.lars, [2.0**k for k in powers], digits)
            np.testing.assert_array_equal(scaled, plain)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert plain[-1] < 0.1 * plain[0]


def test_decay_and_other_optimizers_break_that_identity(digits):
    for make_optimizer, rate in (
        (lambda rate: lars.lars(rate, 5e-4), 10.0),
        (lambda rate: optax.sgd(rate, 0.9), 0.05),
        (optax.adam, 1e-3),
    ):
        with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
            plain = losses_of(make_optimizer, [1, 1, 1], digits, rate)
            scaled = losses_of(make_optimizer, [2.0**5, 2.0**-7, 4], digits, rate)
        assert plain[0] == scaled[0]
        assert not np.allclose(plain[5:], scaled[5:], rtol=0.01)


def test_scaling_the_loss_leaves_the_run_unchanged(digits):
    def on_scaled_loss(factor):
        return lambda rate: optax.chain(optax.scale(factor), lars.lars(rate))

    plain = losses_of(lars.lars, [1, 1, 1], digits)
    for factor in (2.0**30, 2.0**-40):
        np.testing.assert_array_equal(
            losses_of(on_scaled_loss(factor), [1, 1, 1], digits), plain
        )
    # Any other factor rounds, and the curves part slowly.
    scaled = losses_of(on_scaled_loss(1e4), [1, 1, 1], digits)
    np.testing.assert_allclose(scaled[:5], plain[:5], rtol=1e-4)


def test_steps_in_pieces_equal_steps_at_once(digits):
    parts = training(lars.lars)
    run = run_of([1, 1, 1])
    advance = jax.jit(parts.advance, static_argnums=3)
    start = jax.jit(parts.init)(run, digits)
    at_once, losses = advance(start, run, digits, 24)
    state, pieces = start, []
    for steps in (5, 12, 7):
        state, piece = advance(state, run, digits, steps)
        pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces), losses)
    jax.tree.map(np.testing.assert_array_equal, state, at_once)
    assert state.step == 24
    # And single steps from a loop outside.
    state = start
    for batch in batch_positions(run.seed, jnp.int32(0), 24, 1077, 128):
        state, _ = jax.jit(parts.step)(state, run, digits, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        state.variables,
        at_once.variables,
    )


def test_what_is_not_finite_is_told_as_training_has_it(digits):
    # In evaluation, whose statistics are 0 and 1 at the start, norm_0 is finite.
    parts = training(lars.lars, batch_size=32, normalization="batch")
    batch = batch_positions(jnp.int32(0), jnp.int32(0), 1, 1077, 32)[0]
    names = []

    @jax.jit
    def flags_of(run, data):
        flags = parts.are_finite(parts.init(run, data), run, data, batch)
        names[:] = flags  # in their order, which a dictionary loses in jit
        return flags

    for scale, first in (
        (1.0, None),
        (3e18, "the step of batch_stats/norm_0/var"),
        (1e25, "norm_0"),
    ):
        flags = flags_of(run_of([scale, 1, 1]), digits)
        assert next((name for name in names if not flags[name]), None) == first
    layers = ["hidden_0", "norm_0", "hidden_1", "norm_1", "output", "the loss"]
    assert names[:6] == layers


def test_every_epoch_visits_different_images_once():
    positions = batch_positions(jnp.int32(5), jnp.int32(0), 40, 77, 9)
    assert positions.shape == (40, 9)
    for epoch in range(5):
        visited = positions[epoch * 8 : (epoch + 1) * 8].ravel()
        assert len(set(visited.tolist())) == 72
        assert set(visited.tolist()) <= set(range(77))
    assert (positions[:8] != positions[8:16]).any()
    # The batches of a step do not depend on where counting began, but on the seed.
    for first in (0, 3, 7, 8, 13):
        later = batch_positions(jnp.int32(5), jnp.int32(first), 20, 77, 9)
        np.testing.assert_array_equal(later, positions[first : first + 20])
    other = batch_positions(jnp.int32(6), jnp.int32(0), 40, 77, 9)
    assert (positions != other).any()
    for size in (0, 78):
        with pytest.raises(ValueError, match=f"1 to the 77 .* got {size}"):
            batch_positions(jnp.int32(0), jnp.int32(0), 3, 77, size)


def test_a_sweep_equals_its_runs_uses_every_device_and_is_compiled_once(digits):
    traces = 0

    def counted(rate):
        nonlocal traces
        traces += 1
        # A device has all of the parameters of its runs.
        return lars.lars(rate, partition_specs=P())

    parts = training(counted, num_steps=6)
    single = jax.jit(parts.train)
    runs = [run_of([s] * 3, 5.0 + i, i) for i, s in enumerate((1e-3, 1, 1, 1e3))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    devices = jax.devices()[:2]
    assert len(devices) == 2
    alone = [single(run, digits) for run in runs]
    for runs_per_vmap in (1, 2):
        sweep = sweep_over(parts.train, devices, runs_per_vmap)
        together = sweep(stacked, digits)
        assert together.test_accuracy.sharding.device_set == set(devices)
        for i, result in enumerate(alone):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4),
                together,
                result,
            )
    compiled = traces
    sweep(stacked._replace(kernel_scales=2 * stacked.kernel_scales), digits)
    assert traces == compiled > 0


def test_a_run_that_diverges_is_reported_as_that(digits):
    parts = training(lambda rate: optax.sgd(rate), num_steps=30)
    train = jax.jit(parts.train)
    result = train(run_of([1e4] * 3, 10.0), digits)
    assert result.diverged
    assert result.test_accuracy == 0
    assert not train(run_of([1] * 3, 0.01), digits).diverged


def test_evaluation_is_the_mean_over_the_whole_split(digits):
    parts = training(optax.sgd)
    state = jax.jit(parts.init)(run_of([1] * 3), digits)
    metrics = jax.jit(parts.evaluate)(state, digits, digits.test)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.variables)
    x = np.asarray(digits.test.images, np.float64).reshape(360, 64)
    for name in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ params["params"][name]["kernel"], 0)
    logits = x @ params["params"]["output"]["kernel"]
    labels = np.asarray(digits.test.labels)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        metrics.loss, -log_p[np.arange(360), labels].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics.accuracy, (logits.argmax(axis=1) == labels).mean(), rtol=1e-6
    )


def test_a_result_reports_each_split_by_its_name(digits):
    parts = training(lambda rate: optax.sgd(rate, 0.9))
    run = run_of([1] * 3, 0.05)
    state, _ = jax.jit(parts.advance, static_argnums=3)(
        jax.jit(parts.init)(run, digits), run, digits, STEPS
    )
    # Wrong labels in the test set alone, no images in the validation set alone.
    changed = digits._replace(
        test=digits.test._replace(labels=(digits.test.labels + 1) % 10),
        validation=digits.validation._replace(images=0 * digits.validation.images),
    )
    result = jax.jit(parts.result)(state, changed)
    evaluate = jax.jit(parts.evaluate)
    # Of as many training images as there are test images.
    first = Split(*(x[:360] for x in digits.train))
    assert result.train_loss == evaluate(state, digits, first).loss
    assert result.test_accuracy == evaluate(state, changed, changed.test).accuracy < 0.1
    on_validation = evaluate(state, changed, changed.validation)
    assert result.validation_accuracy == on_validation.accuracy
    assert result.validation_accuracy > result.test_accuracy


def test_evaluation_takes_the_statistics_of_training(digits):
    parts = training(optax.sgd, normalization="batch")
    start = jax.jit(parts.init)(run_of([1] * 3, 0.05), digits)
    # In one example alone a batch has no variance: its own statistics would show.
    both, one, other = (
        jax.jit(parts.evaluate)(start, digits, Split(*(x[part] for x in digits.test)))
        for part in (slice(2), slice(1), slice(1, 2))
    )
    np.testing.assert_allclose(2 * both.loss, one.loss + other.loss, rtol=1e-5)


def test_a_parameter_that_is_not_finite_is_a_divergence(digits):
    parts = training(optax.sgd)
    state = jax.jit(parts.init)(run_of([1] * 3), digits)
    for value in (1.0, np.nan, np.inf):
        # One that the network does not use, so that the loss stays finite.
        state.variables["params"]["unused"] = jnp.float32(value)
        result = jax.jit(parts.result)(state, digits)
        assert np.isfinite(result.train_loss)
        assert result.diverged == (value != 1)


@pytest.mark.parametrize(("step_that_fails", "made"), [(3, 4), (STEPS, STEPS)])
def test_a_run_whose_weights_are_not_finite_is_over(digits, step_that_fails, made):
    seen = []

    def failing(rate):
        def update(updates, state, params=None):
            jax.debug.callback(lambda count: seen.append(int(count)), state)
            factor = jnp.where(state == step_that_fails, jnp.nan, -rate)
            return jax.tree.map(lambda g: factor * g, updates), state + 1

        return optax.GradientTransformation(lambda _: jnp.int32(0), update)

    parts = training(failing)
    result = jax.jit(parts.train)(run_of([1] * 3, 0.1), digits)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert sorted(seen) == list(range(made))
    assert result.diverged == (made < STEPS)


def test_the_recommended_setting_rescues_where_sgd_fails(digits):
    jax.config.update("jax_disable_most_optimizations", False)
    accuracies = {}
    try:
        for name, make_optimizer, rates in (
            (
                "recommended",
                lambda rate: lars.lars(
                    optax.linear_schedule(rate, 0.0, 600), layer="module"
                ),
                {1e-6: 40.0, 1e6: 5.0},
            ),
            ("sgd", lambda rate: optax.sgd(rate, 0.9), {1e-6: 0.1, 1e6: 0.1}),
        ):
            parts = training(make_optimizer, num_steps=600, width=128, use_bias=True)
            train = jax.jit(parts.train)
            accuracies[name] = [
                float(train(run_of([scale] * 3, rate), digits).test_accuracy)
                for scale, rate in rates.items()
            ]
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert min(accuracies["recommended"]) > 0.92
    assert max(accuracies["sgd"]) < 0.2


def test_a_curve_is_the_run_seen_at_its_points(digits):
    parts, run = training(lars.lars), run_of([1, 1, 1])
    step, evaluate = jax.jit(parts.step), jax.jit(parts.evaluate)
    state = parts.init(run, digits)
    norms, tests = [], []
    for batch in batch_positions(run.seed, jnp.int32(0), STEPS, 1077, 128):
        state, report = step(state, run, digits, batch)
        norms.append((report.weight_norms, report.gradient_norms))
        tests.append(evaluate(state, digits, digits.test))
    for num_points in (1, 7, 40):
        curve = jax.jit(functools.partial(parts.curve, num_points=num_points))(
            run, digits
        )
        assert curve.train_loss.shape == (num_points,)
        between = STEPS // num_points
        for i, end in enumerate(STEPS - between * np.arange(num_points)[::-1]):
            test = tests[end - 1]
            np.testing.assert_allclose(curve.test_loss[i], test.loss, rtol=1e-4)
            assert abs(curve.test_accuracy[i] - test.accuracy) < 0.01
            means = np.mean(np.asarray(norms[end - between : end]), axis=0)
            np.testing.assert_allclose(curve.weight_norms[i], means[0], rtol=1e-4)
            np.testing.assert_allclose(curve.gradient_norms[i], means[1], rtol=1e-3)
    with pytest.raises(ValueError, match=r"at most num_steps \(40\), got 41"):
        jax.eval_shape(lambda r, d: parts.curve(r, d, 41), run, digits)
