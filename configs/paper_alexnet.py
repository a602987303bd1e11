"""One run of the LARS paper: AlexNet or AlexNet-BN on ImageNet, of Tables 1, 3 and 5.

    python -m experiments.train --config=configs/paper_alexnet.py:bn,lars,8192 \
        --workdir=runs/paper_alexnet

Time and result: not measured here, where there are neither ImageNet nor an accelerator.
The paper's top-1 accuracies, in % (https://arxiv.org/abs/1708.03888v3), at the rates
that are taken if none is given:

=========  =========  =====  =====  =====  =====  =====
network    optimizer    512   4096   8192  16384  32768
=========  =========  =====  =====  =====  =====  =====
``plain``  ``sgd``     58.8   53.1   44.8
``bn``     ``sgd``     60.2   58.9   58.0
``plain``  ``lars``    58.7   58.5   58.2   55.0   46.9
``bn``     ``lars``    60.2   60.4   60.1   59.3   57.8
=========  =========  =====  =====  =====  =====  =====

(The 46.9 is from the paper's submission to ICLR 2018.) After a colon go the network,
the optimizer and the batch size; then, if not the best of Table 1 or that of Table 3,
a learning rate; and the epochs, 200 at most in Table 5:

    configs/paper_alexnet.py:bn,sgd,8192,rate=0.41
    configs/paper_alexnet.py:bn,lars,32768,epochs=200

Figure 3 is ``bn,sgd,512`` beside ``bn,sgd,8192`` and ``bn,lars,8192``, and Figure 4
``bn,lars,16384`` and ``bn,lars,32768`` with rates from 8 to 32.

As in the paper: momentum 0.9, decay 5e-4 of weights and biases, poly(2), and 100 epochs
with a warm-up of 2.5 epochs from 0.001 (AlexNet), of 2 or 5 (with LARS, from 1 as in
the authors' solvers); but AlexNet-BN without LARS has 128 epochs and no warm-up, and
batch 512 without LARS has none either (https://www2.eecs.berkeley.edu/Pubs/TechRpts/
2017/EECS-2017-156.html). Not as in the paper: images have unit variance, where the
authors divide by 256; of the training images 10,000 are kept for validation; and crops
are of 8% to 100% of an image, where the paper's are of 227 pixels out of 256. A batch
is worked on in parts of 512, for the memory of one device.
"""

from ml_collections import config_dict

from configs import optimizers
from configs.run import IMAGENET_IMAGES, imagenet_config

PART = 512  # images

# Of the rates that the paper prints for each, that of the highest accuracy.
RATES = {
    ("plain", "sgd"): {512: 0.02, 4096: 0.05, 8192: 0.03},
    ("bn", "sgd"): {512: 0.02, 4096: 0.18, 8192: 0.3},
    ("plain", "lars"): {512: 2.0, 4096: 10.0, 8192: 10.0, 16384: 14.0, 32768: 14.0},
    ("bn", "lars"): {512: 2.0, 4096: 10.0, 8192: 14.0, 16384: 23.0, 32768: 22.0},
}
EPOCHS = {"sgd": {"plain": 100, "bn": 128}, "lars": {"plain": 100, "bn": 100}}
WARMUP_EPOCHS = {"sgd": {"plain": 2.5, "bn": 0}, "lars": {"plain": 2, "bn": 5}}
WARMUP_START = {"sgd": 0.001, "lars": 1.0}


def get_config(run: str = "bn,lars,8192") -> config_dict.ConfigDict:
    """Returns the configuration of a network, an optimizer and a batch size."""
    names = run.split(",")
    known = {
        f"{network},{optimizer},{batch}": (network, optimizer, batch)
        for (network, optimizer), batches in RATES.items()
        for batch in batches
    }
    if ",".join(names[:3]) not in known:
        raise ValueError(
            "network, optimizer and batch size must be one of "
            f"{'; '.join(known)}, got {run!r}."
        )
    network, optimizer, batch_size = known[",".join(names[:3])]
    given = {
        "rate": RATES[network, optimizer][batch_size],
        "epochs": EPOCHS[optimizer][network],
    }
    for setting in names[3:]:
        name, _, value = setting.partition("=")
        if name not in given:
            raise ValueError(
                "behind the batch size can be rate=NUMBER and epochs=NUMBER, got "
                f"{setting!r}."
            )
        try:
            given[name] = float(value)
        except ValueError as error:
            raise ValueError(f"{name} must be a number, got {setting!r}.") from error
    warmup_epochs = WARMUP_EPOCHS[optimizer][network]
    if optimizer == "sgd" and batch_size == 512:
        warmup_epochs = 0
    return imagenet_config(
        batch_size=batch_size,
        logs_per_epoch=2,
        image_size=227,
        model={
            "name": "alexnet",
            "batch_norm": network == "bn",
            "dropout_rate": 0.5,
            "compute_dtype": "bfloat16",
        },
        num_steps=int(given["epochs"] * IMAGENET_IMAGES / batch_size),
        microbatches=batch_size // PART,
        schedule=optimizers.going_on(
            int(warmup_epochs * IMAGENET_IMAGES / batch_size),
            warmup_start=WARMUP_START[optimizer] if warmup_epochs else 0.0,
        ),
        optimizer=optimizers.of_the_paper(optimizer, given["rate"], weight_decay=5e-4),
    )
