"""From a configuration to what it names, with everything checked on the way.

A setting that makes no sense is a ValueError or a TypeError, with its value.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import optax

from experiments.checks import check_count, check_name
from experiments.data.augmentation import Augmentation, Flip
from experiments.networks import MODELS, Model
from experiments.training.optimizers import optimizer_maker
from experiments.training.training import Training, make_training


def model_of(settings: Mapping[str, Any], num_classes: int) -> Model:
    """Builds the model that ``config.model`` describes."""
    arguments = dict(settings)
    name = arguments.pop("name")
    check_name("model.name", name, MODELS)
    return MODELS[name](num_classes, **arguments)


def configured_training(
    config: Mapping[str, Any],
    model: Model,
    around: Callable[
        [optax.GradientTransformation], optax.GradientTransformation
    ] = lambda optimizer: optimizer,
    **options: Any,
) -> Training:
    """Builds the training function of a configuration.

    Args:
        config: with ``optimizer``, ``schedule``, ``num_steps`` and ``batch_size``.
        model: the network.
        around: what the optimizer is put into.
        **options: those of `make_training`.

    """
    for name in ("num_steps", "batch_size"):
        check_count(name, config[name])
    make_optimizer = optimizer_maker(
        config["optimizer"]["name"],
        config["optimizer"]["settings"],
        config["schedule"],
        config["num_steps"],
    )
    return make_training(
        model,
        lambda rate: around(make_optimizer(rate)),
        num_steps=config["num_steps"],
        batch_size=config["batch_size"],
        **options,
    )


def augmentation_of(settings: Mapping[str, Any]) -> Augmentation | None:
    """What ``config.augmentation`` describes; None if it is nothing."""
    padding, flip = settings["crop_padding"], settings["flip"]
    check_count("augmentation.crop_padding", padding, least=0)
    check_name("augmentation.flip", flip, get_args(Flip))
    return Augmentation(padding, flip) if padding or flip != "none" else None
