"""The steps of a single run are those of the one training function."""

import jax
import numpy as np
import pytest

import lars
from experiments import data as datasets
from experiments.training.sharding import device_mesh
from experiments.training.single_run import compile_run
from experiments.training.sources import InMemory, Source, open_source
from experiments.training.training import Run, batch_positions, make_training
from tests.experiments.small import small_mlp

# 1077 training images: eight batches an epoch.
BATCH, STEPS = 128, 20


@pytest.fixture
def run(digits, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: digits)
    return run_of(lars.lars, 5.0)


def run_of(make_optimizer, learning_rate, init_scale=1.0):
    """A training function, and the same compiled for one device."""
    training = make_training(
        small_mlp(depth=2), make_optimizer, num_steps=STEPS, batch_size=BATCH
    )
    scales = np.full(2, init_scale, np.float32)
    run = Run(np.int32(3), scales, np.float32(learning_rate))
    mesh = device_mesh(jax.devices()[:1])
    source = InMemory("digits", mesh)
    compiled = compile_run(
        training,
        source,
        mesh,
        run,
        batch_size=BATCH,
        placement="replicated",
        log_every=10,
        eval_batch_size=100,
    )
    return training, run, source, compiled


def made(run, source, compiled, steps_per_call):
    """The end of all steps, and the loss of the last one of every call."""
    progress, losses = compiled.init(run, source.data), {}
    step = 0
    for batch in source.batches(3, BATCH, range(0, STEPS, steps_per_call)):
        progress, report = compiled.advance(progress, run, source.data, batch)
        step += len(batch)
        losses[step] = float(report.loss)
    assert step == progress.state.step == STEPS
    return progress, losses


def test_steps_are_the_same_however_many_a_call_makes(run):
    training, run, source, compiled = run
    advance = jax.jit(training.advance, static_argnums=3)
    state, losses = advance(training.init(run, source.data), run, source.data, STEPS)
    for steps_per_call in (1, 7):  # and 6 are left over
        progress, seen = made(run, source, compiled, steps_per_call)
        for step, loss in seen.items():
            np.testing.assert_allclose(loss, losses[step - 1], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            progress.state.variables,
            state.variables,
        )
        # Since the last multiple of `log_every`, 10.
        np.testing.assert_allclose(progress.mean_loss(), losses[10:].mean(), rtol=1e-4)


def test_what_a_step_was_made_on_can_be_told_afterwards(run):
    _, run, source, _ = run
    for step in (0, 7, 8, 13):
        expected = batch_positions(run.seed, np.int32(step), 1, 1077, BATCH)
        np.testing.assert_array_equal(source.batch(3, BATCH, step), expected[0])


def test_random_images_stand_for_a_stream():
    mesh = device_mesh()
    source = open_source("synthetic", mesh, image_size=6, num_workers=0)
    assert isinstance(source, Source)
    first, second = source.batches(0, 16, range(3, 5))
    assert first.images.shape == (1, 16, 6, 6, 3)
    assert first.images.sharding.num_devices == first.labels.sharding.num_devices == 8
    jax.tree.map(np.testing.assert_array_equal, first, second)
    alone = source.batch(0, 16, 4)
    assert alone.images.shape == (16, 6, 6, 3)
    (part,) = source.parts("test", 24)
    assert part.mask.all()
    pixels = np.asarray(part.split.images)
    assert pixels.dtype == np.uint8
    assert abs(pixels.mean() - 127.5) < 5 * 255 / np.sqrt(12 * pixels.size)
    standard = datasets.standardise(pixels, source.data.mean, source.data.deviation)
    assert abs(standard.mean()) < 0.1
    assert set(np.asarray(part.split.labels)) <= set(range(source.num_classes))


def test_a_run_that_has_diverged_stays_where_it_was(run):
    _, run, source, compiled = run
    run = run._replace(learning_rate=np.float32(1e38))
    progress = compiled.init(run, source.data)
    batches = list(source.batches(3, BATCH, range(0, STEPS, 5)))
    progress, _ = compiled.advance(progress, run, source.data, batches[0])
    diverged_at = int(progress.diverged_at)
    assert 0 < diverged_at < 5
    kept = jax.device_get(progress.state)
    assert kept.step == diverged_at
    progress, _ = compiled.advance(progress, run, source.data, batches[1])
    assert progress.diverged_at == diverged_at
    jax.tree.map(np.testing.assert_array_equal, progress.state, kept)


@pytest.mark.parametrize("is_waking", [True, False])
def test_a_loss_that_is_not_finite_is_no_end_where_the_optimizer_mends_it(
    digits, monkeypatch, is_waking
):
    monkeypatch.setattr(datasets, "load", lambda name: digits)

    def make_optimizer(learning_rate):
        inner = lars.lars(learning_rate)
        return lars.wake_silent_layers(inner) if is_waking else inner

    _, run, source, compiled = run_of(make_optimizer, 5.0, init_scale=1e25)
    progress, losses = compiled.init(run, source.data), []
    for batch in source.batches(3, BATCH, range(STEPS)):
        progress, report = compiled.advance(progress, run, source.data, batch)
        losses.append(report.loss)
    assert not np.isfinite(losses[0])
    assert progress.diverged_at == (-1 if is_waking else 0)
    assert np.isfinite(losses[-1]) == is_waking


def test_after_it_has_diverged_no_step_is_made_though_it_would_be_fine(run):
    _, run, source, compiled = run
    progress = compiled.init(run, source.data)
    progress = progress._replace(diverged_at=jax.numpy.int32(0))
    kept = jax.device_get(progress.state)
    (batch,) = source.batches(3, BATCH, range(0, 5, 5))
    progress, report = compiled.advance(progress, run, source.data, batch)
    assert np.isfinite(report.loss)
    jax.tree.map(np.testing.assert_array_equal, progress.state, kept)
