"""Sizes of the figures and tables of the paper."""

from typing import Any

_MINIATURE: dict[str, Any] = {"name": "miniature_alexnet", "patch_size": 4, "width": 8}

_LARGE_BATCH: dict[str, Any] = {
    "dataset": "fashion_mnist",
    "models": {
        "plain": {**_MINIATURE, "batch_norm": False},
        "batch_norm": {**_MINIATURE, "batch_norm": True},
    },
    # Four learning rates each, placed by a pilot of one seed on validation data. Those
    # of SGD grow in proportion to the batch, as Goyal et al. 2017 have it
    # (https://arxiv.org/abs/1706.02677), whether one of them suits it or not; Nesterov
    # is SGD whose rates are free of the batch.
    "optimizers": {
        "sgd": {
            "label": "SGD, linear scaling",
            "name": "sgd",
            "settings": {"momentum": 0.9, "weight_decay": 5e-4},
            "learning_rates": [0.01, 0.04, 0.16, 0.64],
            "scaling_power": 1,
        },
        "nesterov": {
            "label": "Nesterov, tuned for each batch",
            "name": "sgd",
            "settings": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "learning_rates": [0.1, 0.3, 1.0, 3.0],
            "scaling_power": 0,
        },
        "lars": {
            "label": "LARS",
            "name": "lars",
            "settings": {"weight_decay": 5e-4},
            "learning_rates": [5.0, 15.0, 40.0, 120.0],
            "scaling_power": 0,
        },
        "lamb": {
            "label": "LAMB",
            "name": "lamb",
            "settings": {"weight_decay": 0.01},
            "learning_rates": [0.01, 0.03, 0.1, 0.3],
            "scaling_power": 0,
        },
    },
    "base_batch_size": 128,
    "batch_sizes": [128, 1024, 8192, 16384],
    "epochs": 8,
    "warmup_epochs": 1,
    "decay": "quadratic",
    "seeds": [0, 1, 2],
    # Figure 4: with the four of LARS, eight; and the longer runs of Table 5.
    "rates_between": [2.5, 25.0, 70.0, 240.0],
    "longer_epochs": [8, 10, 12, 14, 16],
    "rates_of_longer_training": [15.0, 40.0],
}

# The rates of the curves are those that are best at their batch sizes, on validation
# data; a test holds them to the results.
_CURVES: dict[str, Any] = {
    **_LARGE_BATCH,
    "rates_of_curves": {
        "sgd": {"128": 0.64, "8192": 0.64},
        "lars": {"128": 15.0, "1024": 40.0, "8192": 40.0},
    },
    "num_points": 16,
    "trust_coefficient": 0.001,  # that of the runs, which Figure 2 multiplies by
}

SIZES: dict[str, dict[str, Any]] = {
    "large_batch": _LARGE_BATCH,
    "curves": _CURVES,
    "table2": {
        "dataset": "cifar10",
        "image_size": 227,
        "images": 384,
        "microbatches": 6,
        "seeds": [0, 1, 2],
        "draws": [0, 1, 2, 3, 4],
    },
}
_SMALL_MODELS: dict[str, Any] = {
    name: {**model, "patch_size": 2, "width": 4}
    for name, model in _LARGE_BATCH["models"].items()
}

QUICK: dict[str, dict[str, Any]] = {
    "table2": {
        "dataset": "digits",
        "image_size": 28,
        "images": 128,
        "microbatches": 4,
        "seeds": [0, 1],
        "draws": [0],
    },
    "large_batch": {
        "dataset": "digits",
        "models": _SMALL_MODELS,
        "batch_sizes": [128, 1024],
        "base_batch_size": 32,
        "epochs": 4,
        "longer_epochs": [4, 8],
    },
    "curves": {
        "dataset": "digits",
        "models": _SMALL_MODELS,
        "epochs": 4,
        "rates_of_curves": {
            "sgd": {"32": 0.04, "512": 0.16},
            "lars": {"32": 15.0, "128": 15.0, "512": 40.0},
        },
        "num_points": 4,
    },
}
