"""From a configuration to what it names, with everything checked on the way."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.data.augmentation import Augmentation
from experiments.names import check_name
from experiments.networks import MODELS, Model
from experiments.training.optimizers import optimizer_maker
from experiments.training.training import Training, make_training


def model_of(settings: Mapping[str, Any], num_classes: int) -> Model:
    """Builds the model that ``config.model`` describes.

    Raises:
        ValueError: for an unknown model or a setting it refuses.
        TypeError: for a setting it does not have.
    """
    arguments = dict(settings)
    name = arguments.pop("name")
    check_name("model.name", name, MODELS)
    return MODELS[name](num_classes, **arguments)


def training_of(
    config: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    model: Model,
    num_train: int,
    **options: Any,
) -> Training:
    """Builds the training function of one optimizer.

    Args:
        config: with ``num_steps``, ``batch_size`` and ``schedule``.
        optimizer: with its ``name`` and ``settings``.
        model: the network.
        num_train: how many training images there are, to check the batch size against.
        **options: those of `make_training`.

    Raises:
        ValueError, TypeError: for a setting that makes no sense, with its value.
    """
    check_count("num_steps", config["num_steps"])
    check_count("batch_size", config["batch_size"])
    if config["batch_size"] > num_train:
        raise ValueError(
            f"batch_size must be at most the {num_train} training images, "
            f"got {config['batch_size']}."
        )
    make_optimizer = optimizer_maker(
        optimizer["name"],
        optimizer["settings"],
        config["schedule"],
        config["num_steps"],
    )
    return make_training(
        model,
        make_optimizer,
        num_steps=config["num_steps"],
        batch_size=config["batch_size"],
        **options,
    )


def augmentation_of(settings: Mapping[str, Any]) -> Augmentation | None:
    """What ``config.augmentation`` describes; None if it is nothing.

    Raises:
        ValueError: for a padding that is not a whole number of pixels.
    """
    padding, flip = settings["crop_padding"], settings["flip"]
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(
            "augmentation.crop_padding must be a whole number of pixels of at least 0, "
            f"got {padding!r}."
        )
    return Augmentation(padding, flip) if padding or flip else None


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is an int32 that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}."
        )
    if value >= 2**31:
        raise ValueError(
            f"{name} must be a whole number below 2**31 (an int32), got {value!r}."
        )


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")


def check_seed(value: Any) -> None:
    """Raises ValueError unless the value is a seed: an int32 that is not negative."""
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(
            f"seed must be a whole number from 0 to 2**31-1, got {value!r}."
        )


def check_each(name: str, values: Sequence[Any], check: Callable[[Any], None]) -> None:
    """Checks each of some values, and that there are any and all different."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be numbers, got {value!r} in {values!r}.")
        check(value)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be one or more different numbers, got {values}.")
