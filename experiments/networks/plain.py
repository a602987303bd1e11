"""Plain networks: a stack of layers of one kind, each normalized or not."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.networks.convolution import convolve
from experiments.networks.model import (
    ComputeDtype,
    Model,
    as_model,
    batch_norm,
    check_choice,
    check_count,
    max_pool,
)

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]
Normalization = Literal["none", "batch", "layer"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "gelu": nn.gelu,
}

# Kernels are drawn from N(0, gain / fan_in). He et al. 2015: rectifiers halve the mean
# square, so 2 keeps it (https://arxiv.org/abs/1502.01852); LeCun et al. 1998 for the
# others.
_GAINS = {"relu": 2.0, "gelu": 2.0, "tanh": 1.0, "sigmoid": 1.0}


def mlp(
    num_classes: int,
    *,
    depth: int,
    width: int,
    activation: Activation,
    use_bias: bool,
    normalization: Normalization,
    compute_dtype: ComputeDtype,
) -> Model:
    """A multilayer perceptron on flattened images.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, the output layer included.
        width: units of each hidden layer.
        activation: after every layer but the last.
        use_bias: whether layers have biases, initialised to zero.
        normalization: between each hidden layer and its activation.
        compute_dtype: of activations and matrix products; parameters are float32.

    Raises:
        ValueError: for a depth or width below one or an unknown name, with the value.
    """
    module = _MLP(
        num_classes, depth, width, activation, use_bias, normalization, compute_dtype
    )
    module.check()
    return as_model(module)


def cnn(
    num_classes: int,
    *,
    depth: int,
    width: int,
    activation: Activation,
    use_bias: bool,
    normalization: Normalization,
    compute_dtype: ComputeDtype,
    convolutions_per_pool: int,
    widening: int,
) -> Model:
    """A plain convolutional network.

    ``depth - 1`` convolutions of 3x3 with a 2x2 maximum after some of them while the
    image is larger than one pixel, the mean over the pixels left, and an output layer.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, the output layer included.
        width: channels of the first convolution.
        activation: as in `mlp`, and likewise the others.
        use_bias: whether layers have biases.
        normalization: between each convolution and its activation.
        compute_dtype: as in `mlp`.
        convolutions_per_pool: how many convolutions come before each maximum.
        widening: what the channels are multiplied by after each maximum.

    Raises:
        ValueError: for one of these numbers below one or an unknown name, with the
            value.
    """
    check_count("convolutions_per_pool", convolutions_per_pool)
    check_count("widening", widening)
    module = _CNN(
        num_classes,
        depth,
        width,
        activation,
        use_bias,
        normalization,
        compute_dtype,
        convolutions_per_pool,
        widening,
    )
    module.check()
    return as_model(module)


class _Network(nn.Module):
    """What the networks have in common: settings, and what follows a linear map."""

    num_classes: int
    depth: int
    width: int
    activation: str
    use_bias: bool
    normalization: str
    compute_dtype: str

    def check(self) -> None:
        check_count("depth", self.depth)
        check_count("width", self.width)
        check_choice("activation", self.activation, Activation)
        check_choice("normalization", self.normalization, Normalization)
        check_choice("compute_dtype", self.compute_dtype, ComputeDtype)

    def linear_settings(self) -> dict[str, Any]:
        return {
            "dtype": jnp.dtype(self.compute_dtype),
            "use_bias": self.use_bias,
            "kernel_init": nn.initializers.variance_scaling(
                _GAINS[self.activation], "fan_in", "normal"
            ),
        }

    def normalize_and_activate(
        self, x: jax.Array, i: int, is_training: bool
    ) -> jax.Array:
        if self.normalization == "batch":
            x = batch_norm(x, is_training, self.compute_dtype, name=f"norm_{i}")
        elif self.normalization == "layer":
            x = nn.LayerNorm(name=f"norm_{i}")(x.astype(jnp.float32))
            x = x.astype(jnp.dtype(self.compute_dtype))  # as in `batch_norm`
        return _ACTIVATIONS[self.activation](x)

    def output_layer(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, name="output", **self.linear_settings())(x)


class _MLP(_Network):
    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for i in range(self.depth - 1):
            x = nn.Dense(self.width, name=f"hidden_{i}", **self.linear_settings())(x)
            x = self.normalize_and_activate(x, i, is_training)
        return self.output_layer(x)


class _CNN(_Network):
    convolutions_per_pool: int
    widening: int

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x, width = images, self.width
        for i in range(self.depth - 1):
            x = nn.Conv(
                width,
                (3, 3),
                conv_general_dilated=convolve,
                name=f"hidden_{i}",
                **self.linear_settings(),
            )(x)
            x = self.normalize_and_activate(x, i, is_training)
            is_last_of_group = (i + 1) % self.convolutions_per_pool == 0
            if is_last_of_group and min(x.shape[1:3]) > 1:
                x = max_pool(x, 2, 2, ceil=False)
                width *= self.widening
        return self.output_layer(jnp.mean(x, axis=(1, 2)))
