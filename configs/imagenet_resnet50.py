"""One run: ResNet-50 on ImageNet with LARS, batch 8192, for accelerators.

    python -m experiments.train --config=configs/imagenet_resnet50.py \
        --workdir=runs/resnet50

Time and result: not measured here, where there are neither ImageNet nor an accelerator.
The settings are those with which others report a test accuracy of 77.1%: a rate of
4 √(B / 512), decay 1e-4, label smoothing 0.1, 90 epochs
(https://github.com/NUS-HPC-AI-Lab/LARS-ImageNet-PyTorch). They adapt kernels alone;
here each module has one ratio, as in all configurations.

A batch is worked on in 8 parts, for the memory of one device; on many devices,
``--config.microbatches`` can be smaller.
"""

import math

from ml_collections import config_dict

from configs import models, optimizers
from configs.run import IMAGENET_IMAGES, imagenet_config

BATCH_SIZE = 8192
EPOCHS, WARMUP_EPOCHS = 90, 5


def get_config() -> config_dict.ConfigDict:
    """Returns the configuration."""
    return imagenet_config(
        batch_size=BATCH_SIZE,
        logs_per_epoch=5,
        image_size=224,
        model=models.RESNET50,
        num_steps=EPOCHS * IMAGENET_IMAGES // BATCH_SIZE,
        microbatches=8,
        label_smoothing=0.1,
        schedule=optimizers.warmed_up(WARMUP_EPOCHS * IMAGENET_IMAGES // BATCH_SIZE),
        optimizer=optimizers.lars_with_decay(
            4 * math.sqrt(BATCH_SIZE / 512), weight_decay=1e-4
        ),
    )
