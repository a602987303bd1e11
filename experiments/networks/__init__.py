"""Networks as pairs of pure functions: Flax linen modules behind `init` and `apply`."""

from collections.abc import Callable

from experiments.networks.alexnet import alexnet as alexnet
from experiments.networks.miniature import miniature_alexnet as miniature_alexnet
from experiments.networks.model import Model as Model, Variables as Variables
from experiments.networks.plain import cnn as cnn, mlp as mlp
from experiments.networks.residual import (
    decoder as decoder,
    residual_cnn as residual_cnn,
    residual_mlp as residual_mlp,
    transformer as transformer,
)
from experiments.networks.resnet import resnet as resnet
from experiments.networks.whitened import whitened_cnn as whitened_cnn

MODELS: dict[str, Callable[..., Model]] = {
    "mlp": mlp,
    "cnn": cnn,
    "alexnet": alexnet,
    "miniature_alexnet": miniature_alexnet,
    "resnet": resnet,
    "residual_mlp": residual_mlp,
    "residual_cnn": residual_cnn,
    "transformer": transformer,
    "decoder": decoder,
    "whitened_cnn": whitened_cnn,
}
"""From the number of classes, and settings by name, to a network."""
