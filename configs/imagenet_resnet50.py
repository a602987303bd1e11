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

from configs import optimizers
from configs.run import run_config

TRAIN_IMAGES = 1_271_167
BATCH_SIZE = 8192
EPOCHS, WARMUP_EPOCHS = 90, 5


def get_config() -> config_dict.ConfigDict:
    """Returns the configuration."""
    steps_per_epoch = TRAIN_IMAGES // BATCH_SIZE
    return run_config(
        dataset="imagenet2012",
        image_size=224,
        data_workers=16,
        model={
            "name": "resnet",
            "depth": 50,
            "zero_init_last_scale": True,
            "compute_dtype": "bfloat16",
        },
        num_steps=EPOCHS * TRAIN_IMAGES // BATCH_SIZE,
        batch_size=BATCH_SIZE,
        microbatches=8,
        label_smoothing=0.1,
        schedule=optimizers.warmed_up(WARMUP_EPOCHS * TRAIN_IMAGES // BATCH_SIZE),
        optimizer=optimizers.lars_with_decay(
            4 * math.sqrt(BATCH_SIZE / 512), weight_decay=1e-4
        ),
        log_every=steps_per_epoch // 5,
        evaluate_every=steps_per_epoch // 5 * 5,
        checkpoint_every=steps_per_epoch // 5,
        eval_batch_size=1024,
    )
