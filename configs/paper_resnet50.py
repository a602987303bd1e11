"""One run of the LARS paper: ResNet-50 on ImageNet, a row of Table 4 or of Figure 5.

    python -m experiments.train --config=configs/paper_resnet50.py:16384,meant \
        --workdir=runs/paper_resnet50

Time and result: not measured here, where there are neither ImageNet nor an accelerator.
The paper's top-1 accuracies, in %: 73.0 at batch 256, 72.7 at 8192, 73.0 at 16384 and
72.3 at 32768 (https://arxiv.org/abs/1708.03888v3).

After a colon go the batch size (256, 8192, 16384 or 32768) and whose learning rate:

* ``printed``: that of Table 4, 0.2 without LARS, and 0.6, 2.5 and 2.9 with it.
* ``figure5``: that of Figure 5's legend, which has 6.4 at 8192, without LARS.
* ``meant``: with LARS 12.8, 25 and 29, which torchlars has from the authors' log files,
  and reaches the paper's accuracies with (https://pypi.org/project/torchlars).

As in the paper: momentum 0.9, decay 1e-4, 90 epochs, poly(2), which is not restarted
after a warm-up of 5 epochs, and no label smoothing. Not as in the paper: the strides of
ResNet-50 v1.5, of the training images 10,000 kept for validation, and crops of 8% to
100% of an image, where the paper's are of 224 pixels out of 256 ("minimal
augmentation"). That the warm-up begins at 0, and the scales of all blocks at 1, are
choices made here. A batch is worked on in parts of 256, for the memory of one device.
"""

from ml_collections import config_dict

from configs import models, optimizers
from configs.run import IMAGENET_IMAGES, imagenet_config

EPOCHS, WARMUP_EPOCHS = 90, 5
PART = 256  # images

LARS_RATES = {
    "printed": {8192: 0.6, 16384: 2.5, 32768: 2.9},
    "figure5": {16384: 2.5, 32768: 2.9},
    "meant": {8192: 12.8, 16384: 25.0, 32768: 29.0},
}
SGD_RATES = {
    "printed": {256: 0.2},
    "figure5": {256: 0.2, 8192: 6.4},
    "meant": {256: 0.2},
}


def get_config(run: str = "16384,meant") -> config_dict.ConfigDict:
    """Returns the configuration of a batch size, and of whose learning rate."""
    size, _, whose = run.partition(",")
    known = {
        f"{batch},{source}": (name, batch, rate)
        for name, rates in (("sgd", SGD_RATES), ("lars", LARS_RATES))
        for source, of_batch in rates.items()
        for batch, rate in of_batch.items()
    }
    if run not in known:
        raise ValueError(
            "batch size and learning rate must be one of "
            f"{'; '.join(sorted(known))}, got {size!r} and {whose!r}."
        )
    name, batch_size, learning_rate = known[run]
    warmup_epochs = WARMUP_EPOCHS if batch_size > 256 else 0
    return imagenet_config(
        batch_size=batch_size,
        logs_per_epoch=5,
        image_size=224,
        model={**models.RESNET50, "zero_init_last_scale": False},
        num_steps=EPOCHS * IMAGENET_IMAGES // batch_size,
        microbatches=batch_size // PART,
        schedule=optimizers.going_on(
            warmup_epochs * IMAGENET_IMAGES // batch_size, warmup_start=0.0
        ),
        optimizer=optimizers.of_the_paper(name, learning_rate, weight_decay=1e-4),
    )
