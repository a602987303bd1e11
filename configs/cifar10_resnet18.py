"""One run: ResNet-18 on CIFAR-10 with LARS, batch 4096, for an accelerator.

    python -m experiments.train --config=configs/cifar10_resnet18.py \
        --workdir=runs/resnet18

Time and result: not measured here yet; there was no accelerator to measure them on.

The learning rate is 4 √(B / 512), a rule that others use for ResNet-50 on ImageNet
(https://github.com/NUS-HPC-AI-Lab/LARS-ImageNet-PyTorch).
"""

import math

from ml_collections import config_dict

from configs import models, optimizers
from configs.run import run_config

TRAIN_IMAGES = 45_000
BATCH_SIZE = 4096


def get_config() -> config_dict.ConfigDict:
    """Returns the configuration."""
    steps_per_epoch = TRAIN_IMAGES // BATCH_SIZE
    return run_config(
        dataset="cifar10",
        model={**models.RESNET50, "depth": 18},
        num_steps=100 * steps_per_epoch,
        batch_size=BATCH_SIZE,
        schedule=optimizers.warmed_up(5 * steps_per_epoch),
        augmentation={"crop_padding": 4, "flip": "random"},
        optimizer=optimizers.lars_with_decay(
            4 * math.sqrt(BATCH_SIZE / 512), weight_decay=5e-4
        ),
        log_every=steps_per_epoch,
        evaluate_every=steps_per_epoch,
        checkpoint_every=5 * steps_per_epoch,
    )
