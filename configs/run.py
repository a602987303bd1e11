"""What the configurations of single runs have in common."""

from typing import Any

from ml_collections import config_dict


def run_config(**settings: Any) -> config_dict.ConfigDict:
    """A single run's configuration: the given settings on top of the usual ones."""
    config = config_dict.ConfigDict(
        {
            # With a size, images are streamed from disk and cropped to it.
            "image_size": config_dict.placeholder(int),
            "data_workers": 0,  # processes that decode images that are streamed
            # Steps that are made between two looks at metrics, signals and checkpoints:
            # many where a step is shorter than some milliseconds.
            "steps_per_call": 1,
            "microbatches": 1,
            "label_smoothing": 0.0,
            "augmentation": {"crop_padding": 0, "flip": "none"},
            # Whether the logits of an image and its mirror image are averaged.
            "mirrored_evaluation": False,
            "profile": "all",
            "init_scale": 1.0,
            "seed": 0,
            "placement": "replicated",  # of parameters on many devices; or "fsdp"
            "eval_batch_size": 1000,
        }
    )
    with config.unlocked():
        config.update(settings)
    return config


IMAGENET_IMAGES = 1_271_167
"""The training images of ImageNet, without the 10,000 that are for validation."""


def imagenet_config(
    *, batch_size: int, logs_per_epoch: int, **settings: Any
) -> config_dict.ConfigDict:
    """A single run on ImageNet, whose images are streamed."""
    log_every = IMAGENET_IMAGES // batch_size // logs_per_epoch
    return run_config(
        dataset="imagenet2012",
        data_workers=16,
        batch_size=batch_size,
        log_every=log_every,
        evaluate_every=log_every * logs_per_epoch,
        checkpoint_every=log_every,
        eval_batch_size=1024,
        **settings,
    )
