"""Networks that several configurations share."""

from typing import Any

DIGITS_MLP: dict[str, Any] = {
    "name": "mlp",
    "depth": 3,
    "width": 128,
    "activation": "relu",
    "use_bias": True,
    "normalization": "none",
}
