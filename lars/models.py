"""Networks as pairs of pure functions: Flax linen modules behind `init` and `apply`."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = dict[str, Any]
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


class Model(NamedTuple):
    """A network without its parameters."""

    init: Callable[[jax.Array, jax.Array], Variables]
    """From a PRNG key and images [B, H, W, C] to the variables: ``"params"``, and
    ``"batch_stats"`` if there is batch normalization."""

    apply: Callable[[Variables, jax.Array, bool], tuple[jax.Array, Variables]]
    """From variables, images [B, H, W, C] and whether this is training to the logits
    [B, num_classes] and the variables with updated statistics."""


def mlp(
    num_classes: int,
    *,
    depth: int,
    width: int,
    activation: Activation,
    use_bias: bool,
    normalization: Normalization,
) -> Model:
    """A multilayer perceptron on flattened images.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, the output layer included.
        width: units of each hidden layer.
        activation: after every layer but the last.
        use_bias: whether layers have biases, initialised to zero.
        normalization: between each hidden layer and its activation.

    Raises:
        ValueError: for a depth or width below one or an unknown name, with the value.
    """
    return _as_model(
        _MLP(num_classes, depth, width, activation, use_bias, normalization)
    )


def cnn(
    num_classes: int,
    *,
    depth: int,
    width: int,
    activation: Activation,
    use_bias: bool,
    normalization: Normalization,
) -> Model:
    """A plain convolutional network.

    ``depth - 1`` convolutions of 3x3, a 2x2 maximum after every second one while the
    image is larger than one pixel, the mean over the pixels left, and an output layer.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, the output layer included.
        width: channels of each convolution.
        activation: as in `mlp`, and likewise the others.
        use_bias: whether layers have biases.
        normalization: between each convolution and its activation.

    Raises:
        ValueError: for a depth or width below one or an unknown name, with the value.
    """
    return _as_model(
        _CNN(num_classes, depth, width, activation, use_bias, normalization)
    )


MODELS: dict[str, Callable[..., Model]] = {"mlp": mlp, "cnn": cnn}


class _Network(nn.Module):
    """What the networks have in common: settings, and what follows a linear map."""

    num_classes: int
    depth: int
    width: int
    activation: str
    use_bias: bool
    normalization: str

    def linear_settings(self) -> dict[str, Any]:
        return {
            "use_bias": self.use_bias,
            "kernel_init": nn.initializers.variance_scaling(
                _GAINS[self.activation], "fan_in", "normal"
            ),
        }

    def normalize_and_activate(
        self, x: jax.Array, i: int, is_training: bool
    ) -> jax.Array:
        if self.normalization == "batch":
            x = nn.BatchNorm(use_running_average=not is_training, name=f"norm_{i}")(x)
        elif self.normalization == "layer":
            x = nn.LayerNorm(name=f"norm_{i}")(x)
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
    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x = images
        for i in range(self.depth - 1):
            x = nn.Conv(
                self.width, (3, 3), name=f"hidden_{i}", **self.linear_settings()
            )(x)
            x = self.normalize_and_activate(x, i, is_training)
            if i % 2 == 1 and min(x.shape[1:3]) > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return self.output_layer(jnp.mean(x, axis=(1, 2)))


def _as_model(module: _Network) -> Model:
    _check(module.depth, module.width, module.activation, module.normalization)

    def init(key: jax.Array, images: jax.Array) -> Variables:
        return dict(module.init(key, images, is_training=False))

    def apply(
        variables: Variables, images: jax.Array, is_training: bool
    ) -> tuple[jax.Array, Variables]:
        logits, updated = module.apply(
            variables, images, is_training, mutable=["batch_stats"]
        )
        return logits, {**variables, **updated}

    return Model(init, apply)


def _check(depth: int, width: int, activation: str, normalization: str) -> None:
    for name, value in (("depth", depth), ("width", width)):
        if value < 1:
            raise ValueError(f"model.{name} must be at least 1, got {value}.")
    for name, value, choices in (
        ("activation", activation, get_args(Activation)),
        ("normalization", normalization, get_args(Normalization)),
    ):
        if value not in choices:
            raise ValueError(
                f"model.{name} must be one of {', '.join(choices)}, got {value!r}."
            )
