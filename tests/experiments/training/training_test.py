"""One training function: exact identities, the same batches, one compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lars
from experiments.networks import cnn, mlp
from experiments.training.training import (
    Run,
    batch_positions,
    make_training,
    num_kernels,
    sweep_over,
)

STEPS = 40


def network(**changes):
    settings = {
        "depth": 3,
        "width": 32,
        "activation": "relu",
        "use_bias": False,
        "normalization": "none",
        "compute_dtype": "float32",
    }
    return mlp(10, **{**settings, **changes})


def run_of(scales, learning_rate=10.0, seed=0):
    return Run(
        jnp.int32(seed),
        jnp.asarray(scales, jnp.float32),
        jnp.float32(learning_rate),
    )


def training(make_optimizer, model=None, num_steps=STEPS, batch_size=128):
    return make_training(
        model or network(), make_optimizer, num_steps=num_steps, batch_size=batch_size
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


@pytest.mark.parametrize(
    ("scale", "first"),
    [(1.0, None), (3e18, "the step of batch_stats/norm_0/var"), (1e25, "norm_0")],
)
def test_what_is_not_finite_is_told_as_training_has_it(digits, scale, first):
    # In evaluation, whose statistics are 0 and 1 at the start, norm_0 is finite.
    model = network(normalization="batch")
    parts = training(lars.lars, model, batch_size=32)
    run = run_of([scale, 1, 1])
    state = jax.jit(parts.init)(run, digits)
    batch = batch_positions(run.seed, jnp.int32(0), 1, 1077, 32)[0]
    flags = parts.are_finite(state, run, digits, batch)
    layers = ["hidden_0", "norm_0", "hidden_1", "norm_1", "output", "the loss"]
    assert list(flags)[:6] == layers
    assert next((name for name, finite in flags.items() if not finite), None) == first


@pytest.mark.parametrize("first", [0, 3, 7, 8, 13])
def test_every_epoch_visits_different_images_once(first):
    positions = batch_positions(jnp.int32(5), jnp.int32(0), 40, 77, 9)
    assert positions.shape == (40, 9)
    for epoch in range(5):
        visited = positions[epoch * 8 : (epoch + 1) * 8].ravel()
        assert len(set(visited.tolist())) == 72
        assert set(visited.tolist()) <= set(range(77))
    assert (positions[:8] != positions[8:16]).any()
    # The batches of a step do not depend on where counting began.
    later = batch_positions(jnp.int32(5), jnp.int32(first), 20, 77, 9)
    np.testing.assert_array_equal(later, positions[first : first + 20])


def test_batches_follow_the_seed():
    def positions(seed):
        return batch_positions(jnp.int32(seed), jnp.int32(0), 3, 100, 10)

    np.testing.assert_array_equal(positions(1), positions(1))
    assert (positions(1) != positions(2)).any()


@pytest.mark.parametrize("batch_size", [0, 101])
def test_a_batch_that_the_data_cannot_fill_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"1 to the 100 .* got {batch_size}"):
        batch_positions(jnp.int32(0), jnp.int32(0), 3, 100, batch_size)


def test_a_sweep_equals_its_runs_and_uses_every_device(digits):
    # A device has all of the parameters of its runs.
    make_optimizer = functools.partial(lars.lars, partition_specs=P())
    parts = training(make_optimizer, num_steps=6)
    single = jax.jit(parts.train)
    runs = [run_of([s] * 3, 5.0 + i, i) for i, s in enumerate((1e-3, 1, 1, 1e3))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    devices = jax.devices()[:2]
    assert len(devices) == 2
    alone = [single(run, digits) for run in runs]
    for runs_per_vmap in (1, 2):
        together = sweep_over(parts.train, devices, runs_per_vmap)(stacked, digits)
        assert together.test_accuracy.sharding.device_set == set(devices)
        for i, result in enumerate(alone):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4),
                together,
                result,
            )


def test_a_sweep_is_compiled_once(digits):
    traces = 0

    def counted(rate):
        nonlocal traces
        traces += 1
        return lars.lars(rate, partition_specs=P())

    compute = sweep_over(training(counted, num_steps=2).train, jax.devices()[:2], 1)
    after = []
    for scale in (1.0, 1e-3):
        runs = jax.tree.map(lambda x: jnp.stack([x] * 2), run_of([scale] * 3))
        compute(runs, digits)
        after.append(traces)
    assert after[0] == after[1] > 0


def test_a_run_that_diverges_is_reported_as_that(digits):
    parts = training(lambda rate: optax.sgd(rate), num_steps=30)
    result = jax.jit(parts.train)(run_of([1e4] * 3, 10.0), digits)
    assert result.diverged
    assert result.test_accuracy == 0
    healthy = jax.jit(parts.train)(run_of([1] * 3, 0.01), digits)
    assert not healthy.diverged


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
    assert result.train_loss == evaluate(state, digits, digits.train).loss
    assert result.test_accuracy == evaluate(state, changed, changed.test).accuracy < 0.1
    on_validation = evaluate(state, changed, changed.validation)
    assert result.validation_accuracy == on_validation.accuracy
    assert result.validation_accuracy > result.test_accuracy


def test_evaluation_takes_the_statistics_of_training(digits):
    parts = training(optax.sgd, network(normalization="batch"))
    run = run_of([1] * 3, 0.05)
    start = jax.jit(parts.init)(run, digits)
    evaluate = jax.jit(parts.evaluate)
    # In one example alone a batch has no variance: its own statistics would show.
    one = jax.tree.map(lambda x: x[:1], digits.test)
    two = jax.tree.map(lambda x: x[:2], digits.test)
    other = jax.tree.map(lambda x: x[1:2], digits.test)
    np.testing.assert_allclose(
        2 * evaluate(start, digits, two).loss,
        evaluate(start, digits, one).loss + evaluate(start, digits, other).loss,
        rtol=1e-5,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_is_a_divergence(digits, value):
    parts = training(optax.sgd)
    state = jax.jit(parts.init)(run_of([1] * 3), digits)
    assert not jax.jit(parts.result)(state, digits).diverged
    # One that the network does not use, so that the loss stays finite.
    state.variables["params"]["unused"] = jnp.float32(value)
    result = jax.jit(parts.result)(state, digits)
    assert np.isfinite(result.train_loss)
    assert result.diverged


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


def test_a_normalized_convolutional_network_learns(digits):
    model = cnn(
        10,
        depth=3,
        width=8,
        activation="gelu",
        use_bias=True,
        normalization="batch",
        compute_dtype="float32",
        convolutions_per_pool=1,
        widening=1,
    )
    assert num_kernels(model, digits) == 3
    parts = training(lambda rate: lars.lars(rate, layer="module"), model)
    run = run_of([1] * 3, 20.0)

    @jax.jit
    def train(run, data):
        return parts.advance(parts.init(run, data), run, data, STEPS)

    end, losses = train(run, digits)
    assert losses[-5:].mean() < 0.5 * losses[0]
    assert lars.trust_ratios(end.opt_state)["norm_0"]["scale"] > 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_recommended_setting_rescues_where_sgd_fails(digits, scale):
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        accuracy = {}
        for name, make_optimizer, rate in (
            (
                "recommended",
                lambda rate: lars.lars(
                    optax.linear_schedule(rate, 0.0, 600), layer="module"
                ),
                40.0 if scale < 1 else 5.0,
            ),
            ("sgd", lambda rate: optax.sgd(rate, 0.9), 0.1),
        ):
            parts = training(
                make_optimizer, network(width=128, use_bias=True), num_steps=600
            )
            result = jax.jit(parts.train)(run_of([scale] * 3, rate), digits)
            accuracy[name] = float(result.test_accuracy)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert accuracy["recommended"] > 0.92
    assert accuracy["sgd"] < 0.2


@pytest.mark.parametrize("num_points", [1, 7, 40])
def test_a_curve_is_the_run_seen_at_its_points(digits, num_points):
    parts = training(lars.lars)
    run = run_of([1, 1, 1])
    curve = jax.jit(lambda run, data: parts.curve(run, data, num_points))(run, digits)
    between = STEPS // num_points
    ends = STEPS - between * np.arange(num_points)[::-1]
    step, evaluate = jax.jit(parts.step), jax.jit(parts.evaluate)
    state = parts.init(run, digits)
    positions = batch_positions(run.seed, jnp.int32(0), STEPS, 1077, 128)
    norms = []
    for number in range(STEPS):
        state, report = step(state, run, digits, positions[number])
        norms.append((report.weight_norms, report.gradient_norms))
        if number + 1 in ends:
            i = list(ends).index(number + 1)
            test = evaluate(state, digits, digits.test)
            np.testing.assert_allclose(curve.test_loss[i], test.loss, rtol=1e-4)
            assert abs(curve.test_accuracy[i] - test.accuracy) < 0.01
            means = np.mean(np.asarray(norms[-between:]), axis=0)
            np.testing.assert_allclose(curve.weight_norms[i], means[0], rtol=1e-4)
            np.testing.assert_allclose(curve.gradient_norms[i], means[1], rtol=1e-3)
    assert curve.train_loss.shape == (num_points,)


def test_more_points_than_steps_are_refused(digits):
    parts = training(lars.lars)
    with pytest.raises(ValueError, match=r"at most num_steps \(40\), got 41"):
        jax.eval_shape(lambda r, d: parts.curve(r, d, 41), run_of([1, 1, 1]), digits)
