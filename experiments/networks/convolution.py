"""Convolutions that are fast on a CPU, too.

XLA's CPU backend computes the gradient of a kernel some five times slower than matrix
products of the same work, and inside a compiled loop all of a convolution. There a
convolution is therefore written as what it is, a matrix product with patches:

    y[b, i, j, :] = Σ x[b, s i + u, s j + v, :] K[u, v, :, :]  over u, v
                  = (the patch of x at s i, s j) K

Chellapilla et al. 2006, High Performance Convolutional Neural Networks for Document
Processing, section 2.1 (https://inria.hal.science/inria-00112631).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

LAYOUT = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
"""Images [B, H, W, C] and kernels [H, W, in, out], as Flax has them."""

MOST_PATCHES = 2**31
"""Bytes of patches above which memory is worth more than time."""


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = LAYOUT,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, as a matrix product where that is faster.

    For ``nn.Conv(..., conv_general_dilated=convolve)``; accelerators convolve as ever.
    The parameters are the same: dilations, which have to be 1, and the layout are there
    for Flax alone. Images are [B, H, W, C], kernels [height, width, C /
    feature_group_count, features].
    """
    dilations = {*lhs_dilation, *rhs_dilation}
    if dilations != {1} or dimension_numbers != LAYOUT:
        raise ValueError(
            "only convolutions of [B, H, W, C] without dilation are known, got "
            f"dilations {lhs_dilation} and {rhs_dilation}, and {dimension_numbers}."
        )

    def as_convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            window_strides,
            padding,
            dimension_numbers=LAYOUT,
            feature_group_count=feature_group_count,
            precision=precision,
        )

    def as_product(images: jax.Array, kernel: jax.Array) -> jax.Array:
        # Of two axes: on more, XLA's CPU backend takes a slower product.
        def product(images: jax.Array, kernel: jax.Array) -> jax.Array:
            x = patches(images, kernel.shape[:2], window_strides, padding)
            kernel = kernel.reshape(-1, kernel.shape[-1])
            y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
            return y.reshape(*x.shape[:-1], -1)

        groups = (jnp.split(x, feature_group_count, axis=-1) for x in (images, kernel))
        return jnp.concatenate(list(map(product, *groups)), axis=-1)

    height, width, channels, _ = kernel.shape
    batch, *size = jax.eval_shape(as_convolution, images, kernel).shape[:3]
    pixels = batch * math.prod(size) * height * width
    patch_bytes = pixels * channels * feature_group_count * images.dtype.itemsize
    if patch_bytes > MOST_PATCHES:
        return as_convolution(images, kernel)
    return jax.lax.platform_dependent(
        images, kernel, cpu=as_product, default=as_convolution
    )


def patches(
    images: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
    """The patches [B, H', W', height * width * C] of images, which kernels multiply.

    The last axis is in the order of a kernel's axes; `window` is its height and width.
    """
    height, width = window
    is_tiled = (height, width) == tuple(strides) and padding == "VALID"
    if is_tiled:  # each pixel is in one patch: nothing is copied twice
        batch = images.shape[0]
        rows, columns = images.shape[1] // height, images.shape[2] // width
        x = images[:, : rows * height, : columns * width]
        x = x.reshape(batch, rows, height, columns, width, -1)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], window, strides, padding)
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    # Across and then down: fewer and longer copies than one for each pixel of a patch.
    for axis in (2, 1):
        size, stride = window[axis - 1], strides[axis - 1]
        last = x.shape[axis] - size
        shifted = [
            jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)
        ]
        x = jnp.concatenate(shifted, axis=-1)
    return x
