"""Plain networks: a stack of layers of one kind, each normalized or not."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.checks import check_count, check_name
from experiments.networks.convolution import convolve
from experiments.networks.model import (
    ComputeDtype,
    Model,
    as_model,
    batch_norm,
    max_pool,
)

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]
Normalization = Literal["none", "batch", "layer"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "gelu": nn.gelu,
}

# Kernels are drawn from N(0, gain / fan_in). He et al. 2015: rectifiers halve the mean
# square, so 2 keeps it (https://arxiv.org/abs/1502.01852); LeCun et al. 1998 for the
# others.
GAINS = {"relu": 2.0, "gelu": 2.0, "tanh": 1.0, "sigmoid": 1.0}


class Settings(TypedDict):
    """The settings of both networks."""

    depth: int  # layers with weights, the output layer included
    width: int  # units of each hidden layer, or channels of the first convolution
    activation: Activation  # after every layer but the last
    use_bias: bool  # whether layers have biases, which begin at zero
    normalization: Normalization  # between each hidden layer and its activation
    compute_dtype: ComputeDtype


def mlp(num_classes: int, **settings: Unpack[Settings]) -> Model:
    """A multilayer perceptron on flattened images.

    Raises:
        ValueError: for a depth or width below one or an unknown name, with the value.
    """
    _check(settings)
    return as_model(_MLP(num_classes, **settings))


def cnn(
    num_classes: int,
    *,
    convolutions_per_pool: int,
    widening: int,
    **settings: Unpack[Settings],
) -> Model:
    """A plain convolutional network.

    ``depth - 1`` convolutions of 3x3 with a 2x2 maximum after some of them while the
    image is larger than one pixel, the mean over the pixels left, and an output layer.

    Args:
        num_classes: number of logits.
        convolutions_per_pool: how many convolutions come before each maximum.
        widening: what the channels are multiplied by after each maximum.
        **settings: those of `mlp`.

    Raises:
        ValueError: for a number below one or an unknown name, with the value.
    """
    _check(settings)
    check_count("model.convolutions_per_pool", convolutions_per_pool)
    check_count("model.widening", widening)
    return as_model(
        _CNN(
            num_classes,
            convolutions_per_pool=convolutions_per_pool,
            widening=widening,
            **settings,
        )
    )


def _check(settings: Settings) -> None:
    check_count("model.depth", settings["depth"])
    check_count("model.width", settings["width"])
    check_name("model.activation", settings["activation"], ACTIVATIONS)
    known = get_args(Normalization), get_args(ComputeDtype)
    check_name("model.normalization", settings["normalization"], known[0])
    check_name("model.compute_dtype", settings["compute_dtype"], known[1])


class _Network(nn.Module):
    """What the networks have in common: settings, and what follows a linear map."""

    num_classes: int
    depth: int
    width: int
    activation: str
    use_bias: bool
    normalization: str
    compute_dtype: str

    def linear_settings(self) -> dict[str, Any]:
        return {
            "dtype": jnp.dtype(self.compute_dtype),
            "use_bias": self.use_bias,
            "kernel_init": nn.initializers.variance_scaling(
                GAINS[self.activation], "fan_in", "normal"
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
        return ACTIVATIONS[self.activation](x)

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
