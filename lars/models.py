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
    _check(depth, width, activation, normalization)
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
        activation: after every convolution.
        use_bias: whether layers have biases, initialised to zero.
        normalization: between each convolution and its activation.

    Raises:
        ValueError: for a depth or width below one or an unknown name, with the value.
    """
    _check(depth, width, activation, normalization)
    return _as_model(
        _CNN(num_classes, depth, width, activation, use_bias, normalization)
    )


MODELS: dict[str, Callable[..., Model]] = {"mlp": mlp, "cnn": cnn}


class _MLP(nn.Module):
    num_classes: int
    depth: int
    width: int
    activation: str
    use_bias: bool
    normalization: str

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        kernel_init = _kernel_init(self.activation)
        x = images.reshape(images.shape[0], -1)
        for i in range(self.depth - 1):
            x = nn.Dense(
                self.width, self.use_bias, kernel_init=kernel_init, name=f"hidden_{i}"
            )(x)
            x = _normalize(x, self.normalization, is_training, name=f"norm_{i}")
            x = _ACTIVATIONS[self.activation](x)
        return nn.Dense(
            self.num_classes, self.use_bias, kernel_init=kernel_init, name="output"
        )(x)


class _CNN(nn.Module):
    num_classes: int
    depth: int
    width: int
    activation: str
    use_bias: bool
    normalization: str

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        kernel_init = _kernel_init(self.activation)
        x = images
        for i in range(self.depth - 1):
            x = nn.Conv(
                self.width,
                (3, 3),
                use_bias=self.use_bias,
                kernel_init=kernel_init,
                name=f"hidden_{i}",
            )(x)
            x = _normalize(x, self.normalization, is_training, name=f"norm_{i}")
            x = _ACTIVATIONS[self.activation](x)
            if i % 2 == 1 and min(x.shape[1:3]) > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(
            self.num_classes, self.use_bias, kernel_init=kernel_init, name="output"
        )(x)


def _kernel_init(activation: str) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(_GAINS[activation], "fan_in", "normal")


def _normalize(
    x: jax.Array, normalization: str, is_training: bool, name: str
) -> jax.Array:
    if normalization == "batch":
        return nn.BatchNorm(use_running_average=not is_training, name=name)(x)
    if normalization == "layer":
        return nn.LayerNorm(name=name)(x)
    return x


def _as_model(module: nn.Module) -> Model:
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
