"""The optimizers that experiments compare, and settings that configurations share.

`ARMS` has what each optimizer is. Its learning rates depend on the task: those of the
rescue maps are in ``experiments/studies/rescue/settings.py``. A single run on the
digits has the best of the searched rates from a good start, on validation data; that of
polar LARS has the one rate that rescues the most of the large map.
"""

from typing import Any

Arm = dict[str, Any]

LINEAR: dict[str, Any] = {
    "decay": "linear",
    "warmup_steps": 0,
    "warmup_start": 0.0,
    "restart_after_warmup": False,
}


def going_on(warmup_steps: int, warmup_start: float) -> dict[str, Any]:
    """The paper's decay as the paper has it: it goes on from under the warm-up."""
    return {
        "decay": "quadratic",
        "warmup_steps": warmup_steps,
        "warmup_start": warmup_start,
        "restart_after_warmup": False,
    }


def warmed_up(warmup_steps: int) -> dict[str, Any]:
    """The paper's decay, begun after a warm-up from 0, as MLPerf has it."""
    return {**going_on(warmup_steps, 0.0), "restart_after_warmup": True}


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


def _arm(
    label: str,
    learning_rate: float,
    name: str,
    initialization: str = "scaled",
    **settings: Any,
) -> Arm:
    return {
        "label": label,
        "name": name,
        "settings": settings,
        "initialization": initialization,
        "learning_rate": learning_rate,
    }


ARMS: dict[str, Arm] = {
    # One ratio for a kernel and its bias, whose own would start from a norm of zero. No
    # decay, whose term in the ratio stops a layer with a small gradient.
    "module": _arm("LARS, a ratio a module", 2.0, "lars", layer="module"),
    "polar_waking": _arm("polar LARS, waking", 0.6, "polar_waking"),
    "sgd": _arm("SGD with momentum", 0.03, "sgd", momentum=0.9),
    "clipped_sgd": _arm("SGD, clipped", 0.3, "clipped_sgd", momentum=0.9, max_norm=1.0),
    "adam": _arm("Adam", 0.01, "adam"),
    "lamb": _arm("LAMB", 0.01, "lamb"),
    "fromage": _arm("Fromage", 0.02, "fromage"),
    "optax_lars": _arm(
        "LARS (optax.lars)", 1.0, "optax_lars", weight_decay=5e-4, nesterov=True
    ),
    # The paper's own momentum and decay, whatever others would do better here.
    "paper": _arm("LARS (the paper)", 2.0, "lars", weight_decay=5e-4),
    "muon": _arm("Muon", 0.01, "muon"),
    "adam_waking": _arm("Adam, waking", 0.01, "adam_waking"),
    "sgd_rescaled": _arm(
        "SGD, kernels rescaled once", 0.03, "sgd", "rescaled", momentum=0.9
    ),
    "sgd_lsuv": _arm("SGD, LSUV", 0.1, "sgd", "lsuv", momentum=0.9),
}

RIVALS: dict[str, Arm] = {
    "polar": _arm("polar LARS, not waking", 0.5, "polar"),
    "muon_waking": _arm("Muon, waking", 0.02, "muon_waking"),
    "sgd_waking": _arm("SGD, waking", 0.03, "sgd_waking", momentum=0.9),
    "lars_waking": _arm(
        "LARS, a ratio a module, waking", 2.0, "lars_waking", layer="module"
    ),
    "sgd_reset": _arm("SGD, norms reset", 0.01, "sgd_reset", momentum=0.9),
    "adam_reset": _arm("Adam, norms reset", 0.003, "adam_reset"),
    "muon_reset": _arm("Muon, norms reset", 0.02, "muon_reset"),
    "hyperball": _arm("Hyperball, Muon, initial norms", 0.02, "hyperball_muon"),
    "hyperball_preserving": _arm(
        "Hyperball, Muon, preserving norms",
        0.02,
        "hyperball_muon",
        radius="preserving",
    ),
    "hyperball_adam": _arm(
        "Hyperball, Adam, preserving norms",
        0.02,
        "hyperball_adam",
        radius="preserving",
    ),
    "scion": _arm("Scion", 0.01, "scion", momentum=0.9, radius=5.0),
    "scion_waking": _arm(
        "Scion, waking", 0.01, "scion_waking", momentum=0.9, radius=5.0
    ),
    "angular_muown": _arm(
        # The schedule falls already; its authors then have angles decay no further.
        "AngularMuown",
        0.02,
        "angular_muown",
        angular_decay=0.0,
    ),
    "muon_rescaled": _arm("Muon, kernels rescaled once", 0.02, "muon", "rescaled"),
    "adam_rescaled": _arm("Adam, kernels rescaled once", 0.003, "adam", "rescaled"),
    "adam_lsuv": _arm("Adam, LSUV", 0.003, "adam", "lsuv"),
}
"""More rivals in trials from bad starts: around other optimizers, or for norms."""
