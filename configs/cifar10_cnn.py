"""One run: a convolutional network on CIFAR-10 with LARS, batch 1024.

    python -m experiments.train --config=configs/cifar10_cnn.py --workdir=runs/cifar10

Time: 18 minutes on two cores. Result on a CPU: test accuracy 0.8214.
"""

from ml_collections import config_dict

from configs import models, optimizers
from configs.run import run_config

TRAIN_IMAGES = 45_000
BATCH_SIZE = 1024


def get_config() -> config_dict.ConfigDict:
    """Returns the configuration."""
    steps_per_epoch = TRAIN_IMAGES // BATCH_SIZE
    return run_config(
        dataset="cifar10",
        model={**models.SMALL_CNN, "depth": 5},
        num_steps=20 * steps_per_epoch,
        batch_size=BATCH_SIZE,
        schedule=optimizers.warmed_up(steps_per_epoch),
        augmentation={"crop_padding": 0, "flip": "random"},
        optimizer=optimizers.lars_with_decay(8.0, weight_decay=5e-4),
        log_every=steps_per_epoch // 2,
        evaluate_every=steps_per_epoch // 2 * 2,
        checkpoint_every=steps_per_epoch // 2,
    )
