"""The rescue map: sizes, and what each optimizer is given.

    python -m experiments.figures --figure=rescue_search --workdir=results/figures
    python -m experiments.figures --figure=rescue_map --workdir=results/figures

draw them from what docs/ keeps, and with ``--recompute`` compute them.

The three ``learning_rates`` of an optimizer are, of the search's twelve, the one that
rescues the most cells there on validation data, and the two that rescue the most
together with it. From scale 1 each has all twelve.
"""

from typing import Any

from configs.optimizers import LINEAR

Arm = dict[str, Any]

_USEFUL: dict[str, tuple[float, ...]] = {  # docs/plane/rescue_search
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

# Twelve each, over what of the plane an optimizer can train at all.
_SGD = (1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_CLIPPED = (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_ADAM = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_RELATIVE = (3e-4, 1e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0, 3.0)
_MUON = (1e-3, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_LARS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_POLAR = (0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2)


def _arm(
    label: str,
    name: str,
    searched: tuple[float, ...],
    learning_rates: tuple[float, ...],
    initialization: str = "scaled",
    **settings: Any,
) -> Arm:
    return {
        "label": label,
        "name": name,
        "settings": settings,
        "initialization": initialization,
        "searched_rates": searched,
        "learning_rates": learning_rates,
    }


PEERS: dict[str, Arm] = {
    "sgd": _arm("SGD with momentum", "sgd", _SGD, _USEFUL["sgd"], momentum=0.9),
    "clipped_sgd": _arm(
        "SGD, clipped",
        "clipped_sgd",
        _CLIPPED,
        _USEFUL["clipped_sgd"],
        momentum=0.9,
        max_norm=1.0,
    ),
    "adam": _arm("Adam", "adam", _ADAM, _USEFUL["adam"]),
    "lamb": _arm("LAMB", "lamb", _RELATIVE, _USEFUL["lamb"]),
    "fromage": _arm("Fromage", "fromage", _RELATIVE, _USEFUL["fromage"]),
    "optax_lars": _arm(
        "LARS (optax.lars)",
        "optax_lars",
        _LARS,
        _USEFUL["optax_lars"],
        weight_decay=5e-4,
        nesterov=True,
    ),
    "paper": _arm(
        "LARS (the paper)", "lars", _LARS, _USEFUL["paper"], weight_decay=5e-4
    ),
    "muon": _arm("Muon", "muon", _MUON, _USEFUL["muon"]),
}
"""The field: other optimizers, with what the search in search.py found best for those
that it had."""

OURS: dict[str, Arm] = {
    "module": _arm(
        "LARS, a ratio a module", "lars", _LARS, _USEFUL["module"], layer="module"
    ),
    "polar_waking": _arm(
        "polar LARS, waking", "polar_waking", _POLAR, _USEFUL["polar_waking"]
    ),
}

BESIDE: dict[str, Arm] = {
    "adam_waking": _arm("Adam, waking", "adam_waking", _ADAM, _USEFUL["adam_waking"]),
    "sgd_rescaled": _arm(
        "SGD, kernels rescaled once",
        "sgd",
        _SGD,
        _USEFUL["sgd_rescaled"],
        "rescaled",
        momentum=0.9,
    ),
    "sgd_lsuv": _arm(
        "SGD, LSUV", "sgd", _SGD, _USEFUL["sgd_lsuv"], "lsuv", momentum=0.9
    ),
}
"""Not optimizers alone: what touches the initialization, and the waking of silent
layers around an optimizer that knows no layers."""


_OF_PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
"""Rates for the recommended setting and for what is left of it: without a part others
may be best. Eight layers that share none have 0.05 where those that do have 0.4."""


def _without(label: str, name: str = "polar_waking", **settings: Any) -> Arm:
    """The recommended setting with another one in some place."""
    return _arm(f"polar LARS {label}", name, _POLAR, _OF_PARTS, **settings)


PARTS: dict[str, Arm] = {
    "polar_waking": {**OURS["polar_waking"], "learning_rates": _OF_PARTS},
    "alone": _without("alone, not waking", "polar"),
    "no_radial": _without(
        "without radial steps, or waiting for them", radial_rate=0.0, yielding=0.0
    ),
    "no_yielding": _without("with directions that do not wait", yielding=0.0),
    "no_decay": _without("without decay", weight_decay=0.0),
    "no_orthogonal": _without("without orthogonal steps", steps=0),
    "no_sharing": _without("without sharing among layers", depth_exponent=0.0),
    "no_share": _without("with biases bound by their rows alone", bias_share=1e9),
    "sgd": PEERS["sgd"],
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

_FEWER_SCALES = (1e-8, 1e-4, 1.0, 1e4, 1e8)

_MAP: dict[str, Any] = {
    "dataset": "digits",
    "variants": {name: _mlp(name) for name in ("relu", "tanh", "sigmoid", "gelu")},
    "depths": (2, 4, 8, 16, 32),
    "init_scales": _SCALES,
    "optimizers": {**OURS, **PEERS, **BESIDE},
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
        "polar_waking": OURS["polar_waking"],
        **{name: PEERS[name] for name in ("sgd", "adam", "optax_lars")},
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
        "polar_waking": OURS["polar_waking"],
        "polar": {**PARTS["alone"], "learning_rates": _USEFUL["polar_waking"]},
        "module": OURS["module"],
        "optax_lars": PEERS["optax_lars"],
        "sgd": PEERS["sgd"],
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
        "module": _arm(
            "LARS, a ratio a module",
            "lars",
            _LARS,
            (5.0, 20.0),
            layer="module",
            trust_coefficient=0.001,
            momentum=0.9,
        ),
        "polar": _arm(
            "polar LARS, not waking",
            "polar",
            _POLAR,
            (0.05, 0.2),
            radial_rate=3.0,
        ),
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
QUICK["rescue_map"] |= {  # what `make rescue` shows
    "depths": (2, 8),
    "init_scales": (1e-8, 1e-4, 1.0, 1e4, 1e8),
    "optimizers": {
        name: _MAP["optimizers"][name] for name in ("polar_waking", "sgd", "optax_lars")
    },
    "num_steps": 200,
}
