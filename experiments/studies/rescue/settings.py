"""The rescue map: sizes, and what each optimizer is given.

    python -m experiments.figures --figure=rescue_search --workdir=results/figures
    python -m experiments.figures --figure=rescue_map --workdir=results/figures

draw them from what docs/ keeps, and with ``--recompute`` compute them.

The three ``learning_rates`` of an optimizer are, of the search's twelve, the one that
rescues the most cells there on validation data, and the two that rescue the most
together with it. From scale 1 each has all twelve.
"""

from typing import Any

from configs.optimizers import ARMS, LINEAR, Arm

_USEFUL: dict[str, tuple[float, ...]] = {  # docs/rescue/rescue_search
    "module": (0.5, 10.0, 40.0),
    "polar_waking": (0.15, 0.25, 0.4),
    "sgd": (0.01, 0.1, 0.3),
    "clipped_sgd": (0.1, 1.0, 1e6),
    "adam": (0.001, 0.01, 1e6),
    "lamb": (0.001, 0.03, 0.1),
    "fromage": (0.001, 0.05, 0.3),
    "optax_lars": (0.5, 40.0, 320.0),
    "paper": (0.5, 20.0, 80.0),
    "muon": (0.05, 100.0, 1e6),
    "adam_waking": (0.001, 0.003, 0.03),
    "sgd_rescaled": (0.01, 0.03, 0.3),
    "sgd_lsuv": (1e-8, 0.001, 0.3),
}

# Twelve each, over all that an optimizer can train from any start.
_SGD = (1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_CLIPPED = (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_ADAM = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_RELATIVE = (3e-4, 1e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0, 3.0)
_MUON = (1e-3, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_LARS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_POLAR = (0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2)


_SEARCHED_RATES: dict[str, tuple[float, ...]] = {
    "module": _LARS,
    "polar_waking": _POLAR,
    "sgd": _SGD,
    "clipped_sgd": _CLIPPED,
    "adam": _ADAM,
    "lamb": _RELATIVE,
    "fromage": _RELATIVE,
    "optax_lars": _LARS,
    "paper": _LARS,
    "muon": _MUON,
    "adam_waking": _ADAM,
    "sgd_rescaled": _SGD,
    "sgd_lsuv": _SGD,
}


def _with_rates(
    name: str, searched: tuple[float, ...], learning_rates: tuple[float, ...]
) -> Arm:
    """An optimizer with the rates that it has in maps."""
    arm = {key: x for key, x in ARMS[name].items() if key != "learning_rate"}
    return {**arm, "searched_rates": searched, "learning_rates": learning_rates}


_OPTIMIZERS: dict[str, Arm] = {
    name: _with_rates(name, _SEARCHED_RATES[name], _USEFUL[name]) for name in _USEFUL
}


_OF_PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
"""Rates for the recommended setting and for what is left of it: without a part others
may be best. Eight layers that share none have 0.05 where those that do have 0.4."""


def _without(label: str, name: str = "polar_waking", **settings: Any) -> Arm:
    """The recommended setting with another one in some place."""
    return {
        **_with_rates("polar_waking", _POLAR, _OF_PARTS),
        "label": f"polar LARS {label}",
        "name": name,
        "settings": settings,
    }


PARTS: dict[str, Arm] = {
    "polar_waking": _with_rates("polar_waking", _POLAR, _OF_PARTS),
    "alone": _without("alone, not waking", "polar"),
    "no_radial": _without(
        "without radial steps, or waiting for them", radial_rate=0.0, yielding=0.0
    ),
    "no_yielding": _without("with directions that do not wait", yielding=0.0),
    "no_decay": _without("without decay", weight_decay=0.0),
    "no_orthogonal": _without("without orthogonal steps", steps=0),
    "no_sharing": _without("without sharing among layers", depth_exponent=0.0),
    "no_share": _without("with biases bound by their rows alone", bias_share=1e9),
    "sgd": _OPTIMIZERS["sgd"],
}
"""The recommended setting, and what is left of it without each of its parts."""

_MLP: dict[str, Any] = {
    "name": "mlp",
    "width": 128,
    "use_bias": True,
    "normalization": "none",
    "compute_dtype": "float32",
}
_CNN: dict[str, Any] = {
    **_MLP,
    "name": "cnn",
    "activation": "relu",
    "convolutions_per_pool": 1,
    "widening": 1,
}


def _mlp(activation: str, profile: str = "all", **settings: Any) -> dict[str, Any]:
    model = {**_MLP, "activation": activation, **settings}
    return {"model": model, "profile": profile}


def _cnn(width: int) -> dict[str, Any]:
    return {"model": {**_CNN, "width": width}, "profile": "all"}


_SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e4, 1e6, 1e8)

_MORE_SCALES = (
    *(1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1),
    *(1.0, 1e1, 1e2, 1e3, 1e4, 1e6, 1e8),
)

_FEWER_SCALES = (1e-8, 1e-4, 1.0, 1e4, 1e8)

_MAP: dict[str, Any] = {
    "dataset": "digits",
    "variants": {name: _mlp(name) for name in ("relu", "tanh", "sigmoid", "gelu")},
    "depths": (2, 4, 8, 16, 32),
    "init_scales": _SCALES,
    "optimizers": _OPTIMIZERS,
    "recommended": "polar_waking",
    "reference": "sgd",
    "schedule": LINEAR,
    "num_steps": 300,
    "batch_size": 64,
    "seeds": (0, 1, 2),
}

_SEARCHED: dict[str, Arm] = {
    name: {**arm, "learning_rates": arm["searched_rates"]}
    for name, arm in _MAP["optimizers"].items()
}
"""Every optimizer with all twelve of its rates."""

_SMALL: dict[str, Any] = {
    "optimizers": {
        name: _OPTIMIZERS[name]
        for name in ("polar_waking", "sgd", "adam", "optax_lars")
    },
}
"""What the smaller maps show beside the recommended setting: a peer of each kind."""


def _start(activation: str, depth: int, init_scale: float) -> dict[str, Any]:
    return {**_mlp(activation, depth=depth), "init_scale": init_scale}


_MECHANISM: dict[str, Any] = {
    **{
        name: _MAP[name]
        for name in ("dataset", "schedule", "num_steps", "batch_size", "seeds")
    },
    "starts": {
        "ReLU, 8 layers, from 1e-8": _start("relu", 8, 1e-8),
        "sigmoid, 16 layers, from 1": _start("sigmoid", 16, 1.0),
        "tanh, 16 layers, from 100": _start("tanh", 16, 1e2),
    },
    "optimizers": {
        "polar_waking": _OPTIMIZERS["polar_waking"],
        "polar": {**PARTS["alone"], "learning_rates": _USEFUL["polar_waking"]},
        "module": _OPTIMIZERS["module"],
        "optax_lars": _OPTIMIZERS["optax_lars"],
        "sgd": _OPTIMIZERS["sgd"],
    },
    "recommended": "polar_waking",
    "layerwise": "module",
    "every": 2,
}

_RECOVERY: dict[str, Any] = {
    "dataset": "digits",
    "model": {**_MLP, "activation": "relu", "depth": 2},
    "schedule": {**LINEAR, "decay": "constant"},
    "num_steps": 800,
    "batch_size": 64,
    "seeds": (0, 1, 2),
    "init_scales": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    "optimizers": {
        "module": {
            **_with_rates("module", _LARS, (5.0, 20.0)),
            "settings": {
                "layer": "module",
                "trust_coefficient": 0.001,
                "momentum": 0.9,
            },
        },
        "polar": {
            **_with_rates("polar_waking", _POLAR, (0.05, 0.2)),
            "label": "polar LARS, not waking",
            "name": "polar",
            "settings": {"radial_rate": 3.0},
        },
    },
}

_COST: dict[str, Any] = {
    **{
        name: _MAP[name]
        for name in ("dataset", "recommended", "reference", "schedule", "batch_size")
    },
    # What is done to the start alone costs nothing later.
    "optimizers": {
        name: arm
        for name, arm in _MAP["optimizers"].items()
        if arm["initialization"] == "scaled"
    },
    "model": {**_MLP, "activation": "relu"},
    "depths": (2, 8, 32),
    "num_steps": 100,
    "rounds": 5,
    "orthogonal": "muon",
    "with_and_without_waking": ("adam", "adam_waking"),
}

SIZES: dict[str, dict[str, Any]] = {
    "rescue_cost": _COST,
    "rescue_mechanism": _MECHANISM,
    "rescue_recovery": _RECOVERY,
    "rescue_search": {
        **_MAP,
        "variants": {name: _mlp(name) for name in ("relu", "sigmoid")},
        "depths": (2, 16, 32),  # the deepest too: rates that train 16 may fail there
        "optimizers": _SEARCHED,
        "seeds": (0,),
    },
    "rescue": {
        **_MAP,
        "variants": {"relu": _mlp("relu")},
        "depths": (3,),
        "init_scales": _MORE_SCALES,
        "optimizers": {
            name: arm
            for name, arm in _OPTIMIZERS.items()
            if arm["initialization"] == "scaled"
        },
    },
    "rescue_map": _MAP,
    "rescue_parts": {
        **_MAP,
        "variants": {name: _mlp(name) for name in ("relu", "sigmoid")},
        "depths": (2, 8),
        "init_scales": _FEWER_SCALES,
        "optimizers": PARTS,
    },
    "rescue_start_digits": {
        **_MAP,
        "optimizers": _SEARCHED,
        "depths": (4,),
        "init_scales": (1.0,),
        "seeds": (0, 1, 2, 3, 4),
    },
    "rescue_start_fashion": {
        **_MAP,
        "optimizers": _SEARCHED,
        "dataset": "fashion_mnist",
        "depths": (4,),
        "init_scales": (1.0,),
        "num_steps": 1000,
    },
    "rescue_normalized": {
        **_MAP,
        **_SMALL,
        "variants": {
            kind: _mlp("relu", normalization=kind) for kind in ("batch", "layer")
        },
        "depths": (2, 8),
        "init_scales": _FEWER_SCALES,
    },
    "rescue_profiles": {
        **_MAP,
        **_SMALL,
        "variants": {
            profile: _mlp("relu", profile)
            for profile in ("first", "alternating", "log_uniform")
        },
        "depths": (2, 8),
    },
    "rescue_elsewhere": {
        **_MAP,
        **_SMALL,
        "dataset": "fashion_mnist",
        "depths": (4, 16),
        "init_scales": _FEWER_SCALES,
        "seeds": (10, 11, 12),
    },
    "rescue_cnn": {
        **_MAP,
        **_SMALL,
        "dataset": "fashion_mnist",
        "variants": {"8 channels": _cnn(8)},
        "depths": (4, 8),
    },
    "rescue_wider_cnn": {
        **_MAP,
        **_SMALL,
        "dataset": "fashion_mnist",
        "variants": {"16 channels": _cnn(16)},
        "depths": (4, 8),
        "init_scales": _FEWER_SCALES,
    },
}

QUICK: dict[str, dict[str, Any]] = {
    "rescue_cost": {
        "optimizers": {
            name: _MAP["optimizers"][name]
            for name in ("sgd", "adam", "adam_waking", "muon", "polar_waking")
        },
        "depths": (2,),
        "num_steps": 5,
        "rounds": 2,
    },
    "rescue_mechanism": {
        "starts": {"ReLU, 4 layers, from 1e-8": _start("relu", 4, 1e-8)},
        "num_steps": 30,
        "seeds": (0, 1),
    },
    "rescue_recovery": {
        "init_scales": (1e-4, 1e-2),
        "num_steps": 100,
        "seeds": (0, 1),
    },
}
QUICK |= {
    name: {
        "dataset": "digits",
        "variants": dict(list(sizes["variants"].items())[:1]),
        "depths": (2,),
        "init_scales": tuple(s for s in (1e-8, 1.0, 1e8) if s in sizes["init_scales"]),
        "seeds": (0,),
        "optimizers": {
            arm: {
                **sizes["optimizers"][arm],
                "learning_rates": sizes["optimizers"][arm]["learning_rates"][-3:],
            }
            for arm in ("polar_waking", "sgd")
        },
        "num_steps": 50,
    }
    for name, sizes in SIZES.items()
    if name not in QUICK
}
