"""A small network for CIFAR-10 that learns fast: it sees patches without correlation.

    x ─ whitening 2x2 ─ GELU ─ three blocks ─ maximum 3x3 ─ output layer ─ logits / 9

    block: convolution 3x3 ─ maximum 2x2 ─ norm ─ GELU ─ convolution 3x3 ─ norm ─ GELU

Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024
(https://arxiv.org/abs/2404.00498), sections 3.1 to 3.3.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.checks import check_count
from experiments.networks.convolution import convolve
from experiments.networks.model import (
    ComputeDtype,
    Model,
    as_model,
    batch_norm,
    max_pool,
)

WINDOW = 2
"""The side of the patches that are whitened."""

LEAST_SIDE = 25
"""Of images, in pixels: the last maximum is over three."""

_LEAST_VARIANCE = 5e-4
"""Added to the variance of each component, as in the author's code."""

_LOGIT_SCALE = 1 / 9


def whitened_cnn(num_classes: int, *, width: int, compute_dtype: ComputeDtype) -> Model:
    """The network of three blocks, of width, 4 width and 4 width channels.

    The kernel of the whitening layer follows from the images that the network is
    initialized with, see `whitening_kernel`. It is not trained: it is among the
    variables beside the running means of normalizations, and no optimizer sees it. Its
    bias is a parameter. Convolutions begin as the identity as far as they have as many
    outputs as inputs, and normalizations have a bias and no scale.

    Args:
        num_classes: number of logits.
        width: channels of the first block; 64 in the paper.
        compute_dtype: of activations and matrix products; parameters are float32.

    Raises:
        ValueError: for a width below one, or images that are too small, with the value.
    """
    check_count("model.width", width)
    return as_model(_Whitened(num_classes, width, compute_dtype))


def whitening_kernel(images: jax.Array) -> jax.Array:
    """The principal components of patches, each divided by its deviation.

    Args:
        images: [B, H, W, C], with a mean of zero.

    Returns:
        [WINDOW, WINDOW, C, 2 · WINDOW² · C]: every component and its opposite, since
        what follows is no odd function. Outputs for the images have a mean square of
        nearly one, and no two components are correlated.
    """
    rows, columns = (size - WINDOW + 1 for size in images.shape[1:3])
    patches = jnp.stack(
        [
            images[:, i : i + rows, j : j + columns]
            for i in range(WINDOW)
            for j in range(WINDOW)
        ],
        axis=-2,
    )
    flat = patches.reshape(-1, WINDOW**2 * images.shape[-1]).astype(jnp.float32)
    covariance = jnp.matmul(flat.T, flat, precision="highest") / len(flat)
    variances, components = jnp.linalg.eigh(covariance)
    components = components / jnp.sqrt(variances + _LEAST_VARIANCE)[None]
    kernel = components.reshape(WINDOW, WINDOW, images.shape[-1], -1)
    return jnp.concatenate([kernel, -kernel], axis=-1)


class _Whitened(nn.Module):
    num_classes: int
    width: int
    compute_dtype: str

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        dtype = jnp.dtype(self.compute_dtype)
        if min(images.shape[1:3]) < LEAST_SIDE:
            raise ValueError(
                f"whitened_cnn needs images of at least {LEAST_SIDE} pixels a side, "
                f"got {images.shape[1]} x {images.shape[2]}."
            )

        def convolution(x: jax.Array, width: int, name: str) -> jax.Array:
            return nn.Conv(
                width,
                (3, 3),
                use_bias=False,
                conv_general_dilated=convolve,
                kernel_init=_identity_first,
                dtype=dtype,
                name=name,
            )(x)

        def normalize_and_activate(x: jax.Array, name: str) -> jax.Array:
            x = batch_norm(
                x, is_training, self.compute_dtype, use_scale=False, name=name
            )
            return nn.gelu(x)

        x = nn.gelu(_Whitening(self.compute_dtype, name="whitening")(images))
        for i, width in enumerate((self.width, 4 * self.width, 4 * self.width)):
            x = convolution(x, width, f"block_{i}_first")
            x = max_pool(x, 2, 2, ceil=False)
            x = normalize_and_activate(x, f"norm_{i}_first")
            x = convolution(x, width, f"block_{i}_second")
            x = normalize_and_activate(x, f"norm_{i}_second")
        x = max_pool(x, 3, 3, ceil=False)
        x = x.reshape(len(x), -1)
        output = nn.Dense(self.num_classes, use_bias=False, dtype=dtype, name="output")
        return output(x) * _LOGIT_SCALE


class _Whitening(nn.Module):
    """A convolution whose kernel is a statistic of the images."""

    compute_dtype: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.compute_dtype)
        kernel = self.variable("batch_stats", "kernel", whitening_kernel, images).value
        bias = self.param("bias", nn.initializers.zeros, (kernel.shape[-1],))
        y = convolve(images.astype(dtype), kernel.astype(dtype), (1, 1), "VALID")
        return y + bias[None, None, None].astype(dtype)


def _identity_first(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """A kernel [3, 3, in, out] whose first outputs are the inputs; others are random.

    They are uniform with the variance 1 / (3 fan_in), as in PyTorch.
    """
    height, width, inputs, outputs = shape
    random = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    same = jnp.arange(min(inputs, outputs))
    identity = jnp.zeros((height, width, inputs, len(same)), dtype)
    identity = identity.at[height // 2, width // 2, same, same].set(1)
    others = random(key, shape, dtype)[..., len(same) :]
    return jnp.concatenate([identity, others], axis=-1)
