"""Flips that alternate show every image from both sides; evaluation may, too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.augmentation import (
    Augmentation,
    alternating_flips,
    augment,
    mirrored,
)
from experiments.training.training import Run, make_training
from tests.experiments.small import small_mlp

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).standard_normal((64, 6, 5, 2)).astype(np.float32)


def flipped(images):
    """Which images [B] are mirrored; each is itself or its mirror image."""
    is_same = (images == IMAGES).all(axis=(1, 2, 3))
    is_mirrored = (images == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_same ^ is_mirrored).all()
    return is_mirrored


def test_random_flips_are_half_and_new_for_every_key():
    random = Augmentation(0, "random")
    first, second = (
        flipped(augment(key, IMAGES, random, None)) for key in jax.random.split(KEY)
    )
    assert 16 < first.sum() < 48
    assert 16 < (first ^ second).sum() < 48


def test_what_is_mirrored_in_one_epoch_is_not_in_the_next():
    positions = jnp.asarray(np.random.default_rng(1).permutation(64))
    epochs = [alternating_flips(KEY, jnp.int32(i), positions, 64) for i in range(3)]
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])
    assert 16 < epochs[0].sum() < 48
    images = augment(KEY, IMAGES, Augmentation(0, "alternating"), epochs[0])
    np.testing.assert_array_equal(flipped(images), epochs[0])


def test_an_image_is_mirrored_by_its_place_in_the_data_and_not_in_the_batch():
    everywhere = alternating_flips(KEY, jnp.int32(0), jnp.arange(64), 64)
    some = jnp.array([5, 60, 7])
    np.testing.assert_array_equal(
        alternating_flips(KEY, jnp.int32(0), some, 64), everywhere[some]
    )


def training(digits, **options):
    parts = make_training(
        small_mlp(), optax.sgd, num_steps=6, batch_size=359, **options
    )
    run = Run(jnp.int32(0), jnp.ones(3), jnp.float32(0.1))
    return parts, run, jax.jit(parts.init)(run, digits)


def test_in_two_epochs_a_run_sees_every_image_from_both_sides(digits):
    """Three batches of 359 are all 1077 images; a rate of zero changes no weight."""
    augmentation = Augmentation(0, "alternating")
    parts, run, state = training(digits, augmentation=augmentation)
    plain, _, _ = training(digits)
    run = run._replace(learning_rate=jnp.float32(0))
    _, losses = jax.jit(parts.advance, static_argnums=3)(state, run, digits, 6)
    images = digits.train.images
    sides = [digits.train._replace(images=x) for x in (images, mirrored(images))]
    evaluate = jax.jit(plain.evaluate)
    right = [evaluate(state, digits, side).loss for side in sides]
    np.testing.assert_allclose(np.mean(losses), np.mean(right), rtol=1e-5)
    halves = np.mean(losses[:3]), np.mean(losses[3:])
    assert abs(halves[0] - halves[1]) > 1e-3  # each a mixture of both sides
    assert abs(halves[0] - np.mean(right)) > 5e-4


def test_evaluation_with_mirror_images_does_not_know_left_from_right(digits):
    parts, _, state = training(digits, mirrored_evaluation=True)
    plain, _, _ = training(digits)
    other = digits.test._replace(images=mirrored(digits.test.images))
    evaluate = jax.jit(parts.evaluate)
    both, swapped = (evaluate(state, digits, x) for x in (digits.test, other))
    np.testing.assert_allclose(both, swapped, rtol=1e-5)
    one, two = (jax.jit(plain.evaluate)(state, digits, x) for x in (digits.test, other))
    # The loss is convex in the logits.
    assert both.loss < (one.loss + two.loss) / 2
    assert one.loss != pytest.approx(float(two.loss), rel=1e-4)
