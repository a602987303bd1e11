"""Networks that several configurations share."""

from typing import Any

DIGITS_MLP: dict[str, Any] = {
    "name": "mlp",
    "depth": 3,
    "width": 128,
    "activation": "relu",
    "use_bias": True,
    "normalization": "none",
    "compute_dtype": "float32",
}

SMALL_CNN: dict[str, Any] = {
    "name": "cnn",
    "depth": 4,
    "width": 32,
    "activation": "relu",
    "use_bias": False,
    "normalization": "batch",
    "compute_dtype": "float32",
    "convolutions_per_pool": 1,
    "widening": 2,
}

RESNET50: dict[str, Any] = {
    "name": "resnet",
    "depth": 50,
    "zero_init_last_scale": True,
    "compute_dtype": "bfloat16",
}
