"""The first layer whitens patches and stays; convolutions begin as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data import Data, Split, standardise
from experiments.networks import whitened_cnn
from experiments.networks.whitened import WINDOW, whitening_kernel
from experiments.training.training import Run, make_training, num_kernels

SIDE = 28


def smooth_images(count, seed=0):
    """Random images whose neighbouring pixels and channels are alike."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, SIDE + 4, SIDE + 4, 2)).cumsum(axis=-1)
    parts = [noise[:, i : i + SIDE, j : j + SIDE] for i in range(5) for j in range(5)]
    images = np.mean(parts, axis=0)
    return ((images - images.mean((0, 1, 2))) / images.std((0, 1, 2))).astype("f4")


def patches(images):
    """[patches, WINDOW² C], in float64."""
    views = np.lib.stride_tricks.sliding_window_view(images, (WINDOW, WINDOW), (1, 2))
    flat = views.transpose(0, 1, 2, 4, 5, 3).astype(np.float64)
    return flat.reshape(-1, WINDOW**2 * images.shape[-1])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)

    def draw(count, seed):
        pixels = np.clip(128 + 50 * smooth_images(count, seed), 0, 255)
        return Split(
            jnp.asarray(pixels, jnp.uint8), jnp.asarray(rng.integers(0, 4, count), "i4")
        )

    train = draw(48, 0)
    mean, deviation = (
        jnp.asarray(f(np.float32(train.images), (0, 1, 2))) for f in (np.mean, np.std)
    )
    return Data(train, draw(8, 1), draw(8, 2), mean, deviation)


def test_outputs_of_the_whitening_kernel_are_not_correlated():
    images = smooth_images(40)
    kernel = np.float64(jax.jit(whitening_kernel)(images))
    flat = patches(images)
    variances, _ = np.linalg.eigh(flat.T @ flat / len(flat))
    assert variances.max() > 20 * variances.min()  # they were
    outputs = flat @ kernel.reshape(flat.shape[1], -1)
    half = outputs.shape[1] // 2
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])
    covariance = outputs[:, :half].T @ outputs[:, :half] / len(flat)
    right = np.diag(variances / (variances + 5e-4))
    np.testing.assert_allclose(covariance, right, atol=1e-3)


def test_the_kernel_is_of_the_images_and_no_optimizer_sees_it(data):
    model = whitened_cnn(4, width=4, compute_dtype="float32")
    training = make_training(model, optax.sgd, num_steps=1, batch_size=16)
    scales = jnp.ones(num_kernels(model, data), jnp.float32)
    assert len(scales) == 7  # six convolutions and the output layer
    run = Run(jnp.int32(0), scales, jnp.float32(0.1))
    state = jax.jit(training.init)(run, data)
    images = standardise(data.train.images, data.mean, data.deviation)
    held = state.variables["batch_stats"]["whitening"]["kernel"]
    np.testing.assert_allclose(np.abs(held), np.abs(whitening_kernel(images)), 1e-2)
    assert list(state.variables["params"]["whitening"]) == ["bias"]
    _, trained = jax.jit(model.apply)(state.variables, images, jax.random.key(0))
    kept, means = (trained["batch_stats"][x] for x in ("whitening", "norm_0_first"))
    np.testing.assert_array_equal(kept["kernel"], held)
    assert np.any(means["mean"])  # other statistics follow the batch


def test_convolutions_begin_as_the_identity_as_far_as_they_can():
    images = smooth_images(2)
    model = whitened_cnn(4, width=20, compute_dtype="float32")
    variables = jax.jit(model.init)(jax.random.key(0), images)
    outputs = jax.jit(lambda v, x: model.outputs(v, x, None))(variables, images)
    whitened = np.asarray(jax.nn.gelu(outputs["whitening"]))
    first = np.asarray(outputs["block_0_first"])
    same = whitened.shape[-1]  # 16 of 20
    np.testing.assert_allclose(first[..., :same], whitened, atol=1e-5)
    others = variables["params"]["block_0_first"]["kernel"][..., same:]
    np.testing.assert_allclose(np.var(others), 1 / (3 * 9 * same), rtol=0.2)


def test_small_images_are_refused():
    model = whitened_cnn(4, width=4, compute_dtype="float32")
    with pytest.raises(ValueError, match="at least 25 pixels a side, got 8 x 8"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
