"""Residual networks: ResNet-18 and ResNet-50 v1.5."""

from functools import partial
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.checks import check_name
from experiments.networks.convolution import convolve
from experiments.networks.model import (
    ComputeDtype,
    Model,
    as_model,
    batch_norm,
    max_pool,
)

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def resnet(
    num_classes: int,
    *,
    depth: int,
    zero_init_last_scale: bool,
    compute_dtype: ComputeDtype,
) -> Model:
    """A residual network.

    In version 1.5 the 3x3 convolution of a bottleneck has the stride, and not the 1x1
    before it. Kernels are drawn from N(0, 2 / fan_out), those of the last layer from
    N(0, 0.01²). Images below 64 pixels have a first convolution of 3x3 without a stride
    and no maximum after it.

    Args:
        num_classes: number of logits.
        depth: 18 or 50.
        zero_init_last_scale: whether the last scale of each residual branch starts at
            0, so that every block starts as its shortcut (Goyal et al. 2017).
        compute_dtype: of activations and matrix products.

    References:
        He et al., `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_, 2016;
        Goyal et al., `Accurate, Large Minibatch SGD
        <https://arxiv.org/abs/1706.02677>`_, 2017, section 5.1
    """
    check_name("model.depth", depth, _BLOCKS)
    check_name("model.compute_dtype", compute_dtype, get_args(ComputeDtype))
    return as_model(_ResNet(num_classes, depth, zero_init_last_scale, compute_dtype))


class _Part(nn.Module):
    """Convolutions and normalizations with the settings of the network."""

    zero_init_last_scale: bool
    compute_dtype: str

    def convolution(
        self, x: jax.Array, channels: int, kernel: int, stride: int, name: str
    ) -> jax.Array:
        # Padding as in PyTorch: with a stride, "SAME" has more behind than before.
        padding = [((kernel - 1) // 2, (kernel - 1) // 2)] * 2
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding,
            use_bias=False,
            conv_general_dilated=convolve,
            dtype=jnp.dtype(self.compute_dtype),
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name=name,
        )(x)

    def normalize(
        self, x: jax.Array, is_training: bool, name: str, *, is_last: bool = False
    ) -> jax.Array:
        scale = 0.0 if is_last and self.zero_init_last_scale else 1.0
        return batch_norm(
            x,
            is_training,
            self.compute_dtype,
            epsilon=1e-5,
            scale_init=nn.initializers.constant(scale),
            name=name,
        )


class _Block(_Part):
    channels: int
    stride: int
    is_bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        normalize = partial(self.normalize, is_training=is_training)
        c, stride = self.channels, self.stride
        if self.is_bottleneck:
            shapes = [(c, 1, 1), (c, 3, stride), (4 * c, 1, 1)]
        else:
            shapes = [(c, 3, stride), (c, 3, 1)]
        y = x
        for i, shape in enumerate(shapes, start=1):
            is_last = i == len(shapes)
            y = self.convolution(y, *shape, name=f"conv{i}")
            y = normalize(y, name=f"norm{i}", is_last=is_last)
            y = y if is_last else nn.relu(y)
        if x.shape != y.shape:
            x = self.convolution(x, y.shape[-1], 1, stride, name="shortcut")
            x = normalize(x, name="shortcut_norm")
        return nn.relu(x + y)


class _ResNet(nn.Module):
    num_classes: int
    depth: int
    zero_init_last_scale: bool
    compute_dtype: str

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x = images.astype(jnp.dtype(self.compute_dtype))
        settings = (self.zero_init_last_scale, self.compute_dtype)
        x = _Stem(*settings, name="stem")(x, is_training)
        for stage, blocks in enumerate(_BLOCKS[self.depth]):
            for block in range(blocks):
                x = _Block(
                    *settings,
                    channels=64 * 2**stage,
                    stride=2 if stage and not block else 1,
                    is_bottleneck=self.depth >= 50,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, is_training)
        return nn.Dense(
            self.num_classes,
            dtype=jnp.dtype(self.compute_dtype),
            kernel_init=nn.initializers.normal(0.01),
            name="output",
        )(jnp.mean(x, axis=(1, 2)))


class _Stem(_Part):
    @nn.compact
    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        is_small = min(x.shape[1:3]) < 64
        x = self.convolution(x, 64, *((3, 1) if is_small else (7, 2)), name="conv")
        x = nn.relu(self.normalize(x, is_training, "norm"))
        if is_small:
            return x
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # of zeros, after the ReLU
        return max_pool(x, 3, 2, ceil=False)
