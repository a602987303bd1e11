"""Settings and learning rates of the optimizers that the experiments compare.

The five ``learning_rates`` of an optimizer are its whole search space. They are those
of fourteen that rescue the most scales on validation data
(`experiments.studies.rescue.scales.most_useful_rates`). The settings are those of the
variant that rescues the most with five rates; of equal variants, the simplest. A test
compares both with the results:

    python -m experiments.rescue --config=configs/rescue.py:search \
        --workdir=results/search

A single run's ``learning_rate`` is the best of the five at scale 1, likewise.
"""

from typing import Any

Arm = dict[str, Any]

LINEAR: dict[str, Any] = {
    "decay": "linear",
    "warmup_steps": 0,
    "warmup_start": 0.0,
    "restart_after_warmup": False,
}


def warmed_up(warmup_steps: int) -> dict[str, Any]:
    """The paper's decay, begun after a warm-up from 0, as MLPerf has it."""
    return {
        "decay": "quadratic",
        "warmup_steps": warmup_steps,
        "warmup_start": 0.0,
        "restart_after_warmup": True,
    }


def lars_with_decay(learning_rate: float, weight_decay: float) -> dict[str, Any]:
    """LARS as the networks for images are trained: kernels are decayed, no others."""
    return {
        "name": "lars",
        "settings": {
            "layer": "module",
            "weight_decay": weight_decay,
            "weight_decay_mask": {"rank": (2, 4)},
        },
        "learning_rate": learning_rate,
    }


def going_on(warmup_steps: int, warmup_start: float) -> dict[str, Any]:
    """The paper's decay as the paper has it: it goes on from under the warm-up."""
    return {
        "decay": "quadratic",
        "warmup_steps": warmup_steps,
        "warmup_start": warmup_start,
        "restart_after_warmup": False,
    }


def of_the_paper(name: str, learning_rate: float, weight_decay: float) -> Arm:
    """SGD or LARS as the paper's authors have them, for weights and biases alike.

    Each array is a layer of its own. Where a norm is zero the rate is that of SGD, as
    in their code from 30 July 2017 on (https://github.com/NVIDIA/caffe/commit/c29388b).
    """
    settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": weight_decay}
    if name == "lars":
        settings |= {"trust_coefficient": 0.001, "layer": "parameter"}
        settings |= {"zero_norm": "one", "zero_gradient": "one"}
    return {"name": name, "settings": settings, "learning_rate": learning_rate}


COMPARED: dict[str, Arm] = {
    "sgd": {
        "label": "SGD with momentum",
        "name": "sgd",
        "settings": {"momentum": 0.9},
        "learning_rate": 0.3,
        "learning_rates": (1e-09, 1e-07, 1e-05, 0.001, 0.3),
    },
    "adam": {
        "label": "Adam",
        "name": "adam",
        "settings": {},
        "learning_rate": 0.03,
        "learning_rates": (0.03, 1.0, 100.0, 10000.0, 1000000.0),
    },
    "lamb": {
        "label": "LAMB (optax)",
        "name": "lamb",
        "settings": {},
        "learning_rate": 0.003,
        "learning_rates": (1e-06, 0.003, 0.01, 0.03, 0.1),
    },
    "optax_lars": {
        "label": "LARS (optax.lars)",
        "name": "optax_lars",
        "settings": {"weight_decay": 5e-4, "nesterov": True},
        "learning_rate": 10.0,
        "learning_rates": (10.0, 20.0, 80.0, 160.0, 320.0),
    },
    # The paper's own momentum and decay, whatever others would do better here.
    "paper": {
        "label": "LARS (the paper, lars.lars)",
        "name": "lars",
        "settings": {"weight_decay": 5e-4},
        "learning_rate": 20.0,
        "learning_rates": (0.1, 0.5, 20.0, 160.0, 320.0),
    },
    # No decay, whose term in the ratio stops a layer with a small gradient; and one
    # ratio for a kernel and its bias, whose own would start from a norm of zero.
    "recommended": {
        "label": "LARS (recommended, lars.lars)",
        "name": "lars",
        "settings": {"layer": "module"},
        "learning_rate": 0.5,
        "learning_rates": (0.05, 0.5, 5.0, 20.0, 40.0),
    },
}
