"""AlexNet as the paper trains it, without and with batch normalization."""

from typing import Any, NamedTuple, get_args

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


class _Sizes(NamedTuple):
    """What depends on the size of the images."""

    first_kernel: int
    first_stride: int
    channels: tuple[int, ...]
    hidden: int


# 227 pixels: Krizhevsky et al. 2012, with the input size of Caffe's model. For images a
# seventh of that: a quarter of the channels, an eighth of the hidden units, and a first
# layer that keeps the pixels, so that three maxima leave 3x3 of them, or 4x4 of 32x32.
_FULL = _Sizes(11, 4, (96, 256, 384, 384, 256), 4096)
_SMALL = _Sizes(5, 1, (24, 64, 96, 96, 64), 512)

KERNEL_DEVIATIONS = {
    **dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc8"), 0.01),
    **dict.fromkeys(("fc6", "fc7"), 0.005),
}
"""Of the initial kernel of each layer, which is drawn around 0."""

# NVIDIA caffe, models/alexnet_bn/train_val2.prototxt and bvlc_alexnet.
BIASES_WITH_NORM = {**dict.fromkeys(KERNEL_DEVIATIONS, 0.01), "fc6": 0.1, "fc7": 0.1}
"""What the biases of each layer of AlexNet-BN begin at."""
_BIASES = {**dict.fromkeys(KERNEL_DEVIATIONS, 0.1), "conv1": 0, "conv3": 0, "fc8": 0}


def alexnet(
    num_classes: int,
    *,
    batch_norm: bool,
    dropout_rate: float,
    compute_dtype: ComputeDtype,
) -> Model:
    """AlexNet or AlexNet-BN, for images of 227 pixels and, adapted, of 28 to 32.

    Five convolutions, the second, fourth and fifth of them in two groups, and three
    fully connected layers with dropout between them. Without batch normalization there
    is local response normalization after the first two convolutions. Batch
    normalization is without scale and shift, follows the maximum or the activation,
    and has ε = 1e-4.

    The initial weights are those of the authors' models, from N(0, 0.01²), in fc6 and
    fc7 from N(0, 0.005²). With batch normalization the biases are 0.01, in fc6 and fc7
    0.1: this gives the norms of the paper's Table 2. Without it they are those of
    Caffe's bvlc_alexnet, 0 in conv1, conv3 and fc8 and 0.1 in the others.

    Small images have a first convolution of 5x5 without a stride, a quarter of the
    channels and an eighth of the hidden units: an adaptation of this code's own. Images
    of 224 pixels are not accepted; crop to 227.

    Args:
        num_classes: number of logits.
        batch_norm: whether it is AlexNet-BN.
        dropout_rate: the part of the hidden units that is left out, 0.5 in the paper.
        compute_dtype: of activations and matrix products.

    Raises:
        ValueError: for a dropout rate outside [0, 1) or an unknown dtype; and, when
            the model is called, for images of another size.

    References:
        Krizhevsky et al., `ImageNet Classification with Deep Convolutional Neural
        Networks <https://doi.org/10.1145/3065386>`_, 2012; You et al., `Large Batch
        Training of Convolutional Networks <https://arxiv.org/abs/1708.03888>`_, 2017
    """
    check_name("model.compute_dtype", compute_dtype, get_args(ComputeDtype))
    if not 0 <= dropout_rate < 1:
        raise ValueError(
            f"model.dropout_rate must be at least 0 and below 1, got {dropout_rate!r}."
        )
    return as_model(_AlexNet(num_classes, batch_norm, dropout_rate, compute_dtype))


class _AlexNet(nn.Module):
    num_classes: int
    batch_norm: bool
    dropout_rate: float
    compute_dtype: str

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        sizes = _sizes_for(images.shape)
        x = images.astype(jnp.dtype(self.compute_dtype))
        is_full = sizes is _FULL
        kernels = (sizes.first_kernel, 5, 3, 3, 3)
        groups = (1, 2, 1, 2, 2)
        for number, channels in enumerate(sizes.channels, start=1):
            is_first = number == 1
            x = nn.Conv(
                channels,
                (kernels[number - 1],) * 2,
                sizes.first_stride if is_first else 1,
                padding="VALID" if is_first and is_full else "SAME",
                feature_group_count=groups[number - 1],
                conv_general_dilated=convolve,
                **self._settings(f"conv{number}"),
            )(x)
            x = nn.relu(x)
            if number <= 2 and not self.batch_norm:
                x = local_response_norm(x)
            if number in (1, 2, 5):
                x = max_pool(x, 3, 2, ceil=True)
            if number <= 4 and self.batch_norm:
                name = f"norm{number}"
                x = plain_batch_norm(x, is_training, self.compute_dtype, name)

        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(sizes.hidden, **self._settings(name))(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not is_training)(x)
        return nn.Dense(self.num_classes, **self._settings("fc8"))(x)

    def _settings(self, name: str) -> dict[str, Any]:
        bias = (BIASES_WITH_NORM if self.batch_norm else _BIASES)[name]
        return {
            "name": name,
            "dtype": jnp.dtype(self.compute_dtype),
            "kernel_init": nn.initializers.normal(KERNEL_DEVIATIONS[name]),
            "bias_init": nn.initializers.constant(bias),
        }


def plain_batch_norm(
    x: jax.Array, is_training: bool, compute_dtype: str, name: str
) -> jax.Array:
    """Batch normalization as AlexNet-BN has it, without scale and shift."""
    settings = {"epsilon": 1e-4, "use_scale": False, "use_bias": False, "name": name}
    return batch_norm(x, is_training, compute_dtype, **settings)


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides by (1 + α/5 Σ x²)^0.75 over 5 neighbouring channels, α = 1e-4.

    Krizhevsky et al. 2012, section 3.3, with the constants of Caffe's models.

    Args:
        x: activations, channels last. Beyond the first and last channel are zeros.
    """
    size, alpha, power = 5, 1e-4, 0.75
    squares = jax.lax.reduce_window(
        jnp.square(x).astype(jnp.float32),
        0.0,
        jax.lax.add,
        (1,) * (x.ndim - 1) + (size,),
        (1,) * x.ndim,
        "SAME",
    )
    return x * (1 + alpha / size * squares).astype(x.dtype) ** -power


def _sizes_for(shape: tuple[int, ...]) -> _Sizes:
    if shape[1:3] == (227, 227):
        return _FULL
    if shape[1] == shape[2] and 28 <= shape[1] <= 32:
        return _SMALL
    raise ValueError(
        "alexnet takes images of 227x227 pixels, or of 28x28 to 32x32, got "
        f"{shape[1]}x{shape[2]}."
    )
