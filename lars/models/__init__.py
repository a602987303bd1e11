"""Networks as pairs of pure functions: Flax linen modules behind `init` and `apply`."""

from collections.abc import Callable

from lars.models.alexnet import alexnet as alexnet
from lars.models.miniature import miniature_alexnet as miniature_alexnet
from lars.models.model import Model as Model, Variables as Variables
from lars.models.plain import cnn as cnn, mlp as mlp
from lars.models.resnet import resnet as resnet

MODELS: dict[str, Callable[..., Model]] = {
    "mlp": mlp,
    "cnn": cnn,
    "alexnet": alexnet,
    "miniature_alexnet": miniature_alexnet,
    "resnet": resnet,
}
"""From the number of classes, and settings by name, to a network."""
