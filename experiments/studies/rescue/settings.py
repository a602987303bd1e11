"""The rescue map: sizes, and what each optimizer is given."""

from collections.abc import Iterable, Mapping
from typing import Any

from configs.optimizers import ARMS, LINEAR, RIVALS, Arm
from experiments.studies.rescue.coverage import BEST

Rates = tuple[float, ...]

# Twelve each, over all that an optimizer can train from any start.
_SGD = (1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_CLIPPED = (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_ADAM = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_RELATIVE = (3e-4, 1e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0, 3.0)
_MUON = (1e-3, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0, 100.0, 1e4, 1e6, 1e8)
_LARS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_POLAR = (0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2)

RATES: dict[str, tuple[Rates, Rates]] = {
    "module": (_LARS, (0.5, 10.0, 40.0)),
    "polar_waking": (_POLAR, (0.5, 0.6, 0.8)),
    "sgd": (_SGD, (0.01, 0.1, 0.3)),
    "clipped_sgd": (_CLIPPED, (0.1, 1.0, 1e6)),
    "adam": (_ADAM, (0.001, 0.01, 1e6)),
    "lamb": (_RELATIVE, (0.001, 0.03, 0.1)),
    "fromage": (_RELATIVE, (0.001, 0.05, 0.3)),
    "optax_lars": (_LARS, (0.5, 40.0, 320.0)),
    "paper": (_LARS, (0.5, 20.0, 80.0)),
    "muon": (_MUON, (0.05, 100.0, 1e6)),
    "adam_waking": (_ADAM, (0.001, 0.003, 0.03)),
    "sgd_rescaled": (_SGD, (0.01, 0.03, 0.3)),
    "sgd_lsuv": (_SGD, (1e-8, 0.001, 0.3)),
}
"""The rates of each optimizer of `ARMS`: those of the search and from scale 1; and the
three of all other maps. On validation data of the search (docs/rescue/rescue_search),
one of the three rescues the most cells alone, and the others add the most to it. Those
of polar LARS are from the search of an older version; the present one has 0.6, 0.8 and
1.2."""

_TRIED_SGD = (1e-3, 0.01, 0.1, 0.3)
_TRIED_ADAM = (1e-3, 3e-3, 0.01, 0.03)
_TRIED_MUON = (5e-3, 0.01, 0.02, 0.05)
_TRIED_ANGLES = (3e-3, 0.01, 0.03, 0.1)
_TRIED_POLAR = (0.3, 0.4, 0.6, 0.8)

RIVAL_RATES: dict[str, Rates] = {
    "polar_waking": _TRIED_POLAR,
    "polar": _TRIED_POLAR,
    "no_average": _TRIED_POLAR,
    "no_decay": _TRIED_POLAR,
    "no_sharing": (0.02, 0.05, 0.1, 0.2),
    "sgd": _TRIED_SGD,
    "adam": _TRIED_ADAM,
    "muon": _TRIED_MUON,
    "muon_waking": _TRIED_MUON,
    "sgd_waking": _TRIED_SGD,
    "lars_waking": (0.5, 2.0, 5.0, 20.0),
    "sgd_reset": (1e-3, 0.01, 0.03, 0.1),
    "adam_reset": _TRIED_ADAM,
    "muon_reset": _TRIED_MUON,
    "hyperball": _TRIED_ANGLES,
    "hyperball_preserving": _TRIED_ANGLES,
    "hyperball_adam": _TRIED_ANGLES,
    "scion": _TRIED_ANGLES,
    "scion_waking": _TRIED_ANGLES,
    "angular_muown": _TRIED_MUON,
    "muon_rescaled": _TRIED_MUON,
    "adam_rescaled": _TRIED_ADAM,
    "adam_lsuv": _TRIED_ADAM,
}
"""Of `RIVALS`, and of others beside them: four each, around the best of trials.
AngularMuown has those of Muon, and mended starts have those of the optimizer."""

REPAIR_RATES: dict[str, Rates] = {
    "polar_waking": (0.2, 0.4, 0.6, 0.8, 1.2),
    "sgd": (1e-4, 1e-3, 0.01, 0.03, 0.1),
    "adam": (1e-3, 3e-3, 0.01, 0.03, 0.1),
    "muon": (5e-3, 0.01, 0.02, 0.05, 0.1),
    "lars_waking": (1.0, 2.0, 5.0, 10.0, 20.0),
    "muon_reset": (0.01, 0.02, 0.05, 0.1, 0.2),
    "scion": (1e-3, 3e-3, 0.01, 0.03, 0.1),
    "adam_rescaled": (1e-3, 3e-3, 0.01, 0.03, 0.1),
    "muon_rescaled": (5e-3, 0.01, 0.02, 0.05, 0.1),
    "adam_lsuv": (1e-3, 3e-3, 0.01, 0.03, 0.1),
}
"""Five each, for trained networks that are damaged."""


def with_rates(
    arms: Mapping[str, Arm], rates: Mapping[str, tuple[Rates, Rates]]
) -> dict[str, Arm]:
    """The optimizers, each with its ``searched_rates`` and its ``learning_rates``.

    Raises:
        ValueError: if one of them has no rates, or if rates have no optimizer.
    """
    unmatched = sorted(arms.keys() ^ rates.keys())
    if unmatched:
        place = "RATES of experiments/studies/rescue/settings.py"
        if unmatched[0] in rates:
            place = "ARMS of configs/optimizers.py"
        raise ValueError(f"the rescue maps need an entry {unmatched[0]!r} in {place}.")
    return {
        name: {
            **{key: x for key, x in arm.items() if key != "learning_rate"},
            "searched_rates": rates[name][0],
            "learning_rates": rates[name][1],
        }
        for name, arm in arms.items()
    }


def _only(mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: mapping[name] for name in names}


_OPTIMIZERS = with_rates(ARMS, RATES)
_SEARCHED = with_rates(ARMS, {name: (x, x) for name, (x, _) in RATES.items()})

# What is done to the start alone has a scale of its own, and costs nothing later.
_NOT_MENDED = {
    name: arm for name, arm in _OPTIMIZERS.items() if arm["initialization"] == "scaled"
}

# Without a part, other rates may be best.
_RECOMMENDED = {
    **_OPTIMIZERS["polar_waking"],
    "learning_rates": (0.02, 0.2, 0.4, 0.8),
}


def _changed(label: str, name: str = "polar_waking", **settings: Any) -> Arm:
    """The recommended setting with another one in some place."""
    label = f"polar LARS {label}"
    return {**_RECOMMENDED, "label": label, "name": name, "settings": settings}


PARTS: dict[str, Arm] = {
    "polar_waking": _RECOMMENDED,
    "alone": _changed("alone, not waking", "polar"),
    "no_average": _changed("without an average of directions", momentum=0.0),
    "no_orthogonal": _changed("without orthogonal steps", steps=0),
    "no_balance": _changed(
        "without balancing constant inputs", "polar_unbalanced_waking"
    ),
    "own_norm": _changed(
        "with steps relative to the kernel's own norm", "polar_own_norm_waking"
    ),
    "no_radial": _changed("without radial steps", radial_rate=0.0),
    "no_decay": _changed("without decay", weight_decay=0.0),
    "no_radial_average": _changed(
        "without memory of signs and pulls", radial_momentum=0.0
    ),
    "no_fading": _changed("without growth that fades", "polar_unfading_waking"),
    # Each of 32 layers takes the whole rate, which must then be smaller.
    "no_sharing": {
        **_changed("without sharing among layers", depth_exponent=0.0),
        "learning_rates": (0.02, 0.05, 0.1, 0.2),
    },
    "no_bias_growth": _changed(
        "with biases that do not grow with kernels", "polar_fixed_bias_waking"
    ),
    "long_bias_steps": _changed(
        "with biases that step as rows of kernels do", bias_bound=1.0
    ),
}
"""The recommended setting, also without one of its parts at a time."""

_MLP: dict[str, Any] = {
    "name": "mlp",
    "width": 128,
    "use_bias": True,
    "normalization": "none",
    "compute_dtype": "float32",
}


def _mlp(activation: str, profile: str = "all", **settings: Any) -> dict[str, Any]:
    model = {**_MLP, "activation": activation, **settings}
    return {"model": model, "profile": profile}


def _network(name: str, profile: str = "all", **settings: Any) -> dict[str, Any]:
    of_all = {"name": name, "activation": "relu", "normalization": "none"}
    model = {**of_all, "compute_dtype": "float32", **settings}
    return {"model": model, "profile": profile}


def _transformer(**settings: Any) -> dict[str, Any]:
    sizes = {"width": 32, "patch": 2, "heads": 4, "activation": "gelu"}
    return _network("transformer", **{**sizes, **settings})


def _decoder(**settings: Any) -> dict[str, Any]:
    sizes = {"width": 32, "heads": 4, "activation": "gelu"}
    network = _network("decoder", **{**sizes, **settings})
    return {**network, "depths": (2,), "dataset": "python_reference"}


def _cnn(width: int, **settings: Any) -> dict[str, Any]:
    of_cnn = {"name": "cnn", "convolutions_per_pool": 1, "widening": 1}
    return _mlp("relu", width=width, **of_cnn, **settings)


def _broken(variant: dict[str, Any], kernel: str) -> dict[str, Any]:
    """A network with the path of its kernel that is damaged."""
    return {"model": variant["model"], "kernel": kernel}


def _start(activation: str, depth: int, init_scale: float) -> dict[str, Any]:
    return {**_mlp(activation, depth=depth), "init_scale": init_scale}


_FEWER_SCALES = (1e-8, 1e-4, 1.0, 1e4, 1e8)
_SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e4, 1e6, 1e8)
_MORE_SCALES = tuple(sorted((*_SCALES, 1e-3, 1e3)))

_WITH_RIVALS = ("polar_waking", "sgd", "adam", "muon")
"""Of `ARMS`, those that are compared with `RIVALS`."""

_NETWORKS_OPTIMIZERS = with_rates(
    {
        **_only(ARMS, _WITH_RIVALS),
        **_only(PARTS, ("no_average", "no_decay", "no_sharing")),
        **RIVALS,
    },
    {name: (rates, rates) for name, rates in RIVAL_RATES.items()},
)

CONFIRMED_RATES: dict[str, Rates] = {
    "polar_waking": (0.3, 0.4, 0.8),
    "sgd": (0.001, 0.01, 0.1),
    "adam": (0.003, 0.01, 0.03),
    "muon": (0.005, 0.02, 0.05),
    "lars_waking": (2.0, 5.0, 20.0),
    "muon_reset": (0.01, 0.02, 0.05),
    "scion": (0.003, 0.01, 0.1),
    "adam_lsuv": (0.001, 0.003, 0.01),
}
"""Of one optimizer of each kind: the three most useful ones of ``rescue_networks``.
Those of LARS and of polar LARS are from runs of older versions; later ones have 0.5 for
2, and 0.6 for 0.3."""

DEEP_RATES: dict[str, Rates] = {
    "polar_waking": (0.3, 0.5),
    "adam": (3e-4, 1e-3),
    "muon": (5e-4, 5e-3),
    "muon_rescaled": (5e-4, 5e-3),
    "adam_lsuv": (1e-3, 3e-3),
}
"""Two each, from trials of one seed with 128 layers, at scale 1 or 10⁻⁸. In a first run
Muon had 0.02 for 5e-4, and Adam after LSUV 3e-4 for 3e-3."""

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

# What the smaller maps show beside the recommended setting: a peer of each kind.
_SMALLER: dict[str, Any] = {
    **_MAP,
    "optimizers": _only(_OPTIMIZERS, ("polar_waking", "sgd", "adam", "optax_lars")),
    "depths": (2, 8),
}

_GOOD_START: dict[str, Any] = {
    **_MAP,
    "optimizers": _SEARCHED,
    "depths": (4,),
    "init_scales": (1.0,),
}

_TRAINING = ("dataset", "schedule", "batch_size")
"""The settings of the map that items of other kinds have as well."""

SIZES: dict[str, dict[str, Any]] = {
    "rescue_cost": {
        **_only(_MAP, (*_TRAINING, "recommended", "reference")),
        "optimizers": _NOT_MENDED,
        "model": {**_MLP, "activation": "relu"},
        "depths": (2, 8, 32),
        "num_steps": 100,
        "rounds": 5,
        "orthogonal": "muon",
        "with_and_without_waking": ("adam", "adam_waking"),
    },
    "rescue_mechanism": {
        **_only(_MAP, (*_TRAINING, "num_steps", "seeds")),
        "starts": {
            "ReLU, 8 layers, from 1e-8": _start("relu", 8, 1e-8),
            "sigmoid, 16 layers, from 1": _start("sigmoid", 16, 1.0),
            "tanh, 16 layers, from 100": _start("tanh", 16, 1e2),
        },
        "optimizers": {
            "polar_waking": _OPTIMIZERS["polar_waking"],
            "polar": {**PARTS["alone"], "learning_rates": RATES["polar_waking"][1]},
            **_only(_OPTIMIZERS, ("module", "optax_lars", "sgd")),
        },
        "recommended": "polar_waking",
        "layerwise": "module",
        "every": 2,
    },
    "rescue_recovery": {
        **_only(_MAP, (*_TRAINING, "seeds")),
        "model": {**_MLP, "activation": "relu", "depth": 2},
        "schedule": {**LINEAR, "decay": "constant"},
        "num_steps": 800,
        "init_scales": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
        "optimizers": {
            "module": {
                **_OPTIMIZERS["module"],
                "learning_rates": (5.0, 20.0),
                "settings": {
                    "layer": "module",
                    "trust_coefficient": 0.001,
                    "momentum": 0.9,
                },
            },
            "polar": {
                **_changed("alone", "polar", radial_rate=3.0),
                "label": "polar LARS, not waking",
                "learning_rates": (0.05, 0.2),
            },
        },
    },
    "rescue_search": {
        **_MAP,
        "variants": _only(_MAP["variants"], ("relu", "sigmoid")),
        "depths": (2, 16, 32),  # the deepest too: rates that train 16 may fail there
        "optimizers": _SEARCHED,
        "seeds": (0,),
    },
    "rescue": {
        **_MAP,
        "variants": {"relu": _mlp("relu")},
        "depths": (3,),
        "init_scales": _MORE_SCALES,
        "optimizers": _NOT_MENDED,
    },
    "rescue_map": _MAP,
    "rescue_networks": {
        **_MAP,
        "variants": {
            "residual perceptron": _network("residual_mlp", width=64),
            "transformer": _transformer(),
            "transformer, LayerNorm": _transformer(normalization="layer"),
        },
        "depths": (4,),
        "init_scales": (1e-4, 1.0, 1e4),
        "optimizers": _NETWORKS_OPTIMIZERS,
        "reference": "scion",  # the best of the rivals from scale 1
    },
    "rescue_transformer": {
        **_MAP,
        "variants": {"transformer": _transformer(patch=4)},
        "depths": (2,),
        "init_scales": (1e-4, 1e-2, 1.0, 1e2, 1e4),
        "optimizers": {
            name: {**_NETWORKS_OPTIMIZERS[name], "learning_rates": rates}
            for name, rates in CONFIRMED_RATES.items()
            if name in ("polar_waking", "adam", "muon", "scion")
        },
        "reference": "scion",
    },
    "rescue_mended": {
        **_MAP,
        "variants": {
            "perceptron": {**_mlp("relu"), "depths": (8,)},
            "transformer": {**_transformer(patch=4), "depths": (2,)},
        },
        "depths": (),
        "init_scales": (1e-4, 1.0, 1e4),
        "optimizers": {
            **_only(_NETWORKS_OPTIMIZERS, ("polar_waking", "adam")),
            **_only(_NETWORKS_OPTIMIZERS, ("adam_rescaled", "adam_lsuv")),
            "adam_metainit": {
                **_NETWORKS_OPTIMIZERS["adam"],
                "label": "Adam, MetaInit",
                "initialization": "metainit",
            },
        },
        "reference": "adam",
    },
    "rescue_confirmation": {
        **_MAP,
        "dataset": "fashion_mnist",
        "variants": {
            "perceptron, ReLU": _mlp("relu", width=48),
            "perceptron, tanh": _mlp("tanh", width=48),
            "residual perceptron": {
                **_network("residual_mlp", width=48),
                "depths": (24,),
            },
            "CNN, 8 channels": {**_cnn(8), "depths": (8,), "dataset": "digits"},
            "residual CNN": {
                **_network("residual_cnn", width=8),
                "depths": (3,),
                "dataset": "digits",
            },
            "transformer": {**_transformer(width=24, patch=7), "depths": (3,)},
            "transformer, LayerNorm": {
                **_transformer(width=24, patch=7, normalization="layer"),
                "depths": (3,),
            },
            "decoder": _decoder(),
            "decoder, LayerNorm": _decoder(normalization="layer"),
        },
        "depths": (24, 48),
        "init_scales": (1e-5, 1.0, 1e5),
        "optimizers": {
            name: {**_NETWORKS_OPTIMIZERS[name], "learning_rates": rates}
            for name, rates in CONFIRMED_RATES.items()
        },
        "reference": BEST,
        "num_steps": 450,  # 1.5 times the map's 300, as 48 layers are 1.5 times its 32
        "seeds": (10, 11, 12),
    },
    "rescue_depth": {
        **_MAP,
        "variants": {name: _mlp(name, width=64) for name in ("tanh", "relu")},
        "depths": (2, 64, 128),
        "init_scales": (1e-8, 1.0, 1e8),
        "optimizers": {
            name: {**_NETWORKS_OPTIMIZERS[name], "learning_rates": rates}
            for name, rates in DEEP_RATES.items()
        },
        "reference": BEST,
        "num_steps": 1500,
    },
    "rescue_repair": {
        **_only(_MAP, (*_TRAINING, "recommended")),
        "networks": {
            "perceptron, 8 layers": _broken(_mlp("relu", depth=8), "hidden_4/kernel"),
            "CNN, 4 layers": _broken(_cnn(16, depth=4), "hidden_1/kernel"),
            "transformer, 2 blocks": _broken(
                _transformer(normalization="layer", depth=2), "first/kernel"
            ),
        },
        "trained_with": {**ARMS["adam"], "learning_rate": 0.003, "num_steps": 600},
        "damages": (
            "none",
            "all kernels scaled",
            "one kernel is zero",
            "one kernel is fresh",
        ),
        "damage_scale": 1e4,
        "optimizers": {
            name: {**_NETWORKS_OPTIMIZERS[name], "learning_rates": rates}
            for name, rates in REPAIR_RATES.items()
        },
        "num_steps": 100,
        "points": 10,
        "seeds": (0, 1, 2, 3, 4),
    },
    "rescue_parts": {
        **_MAP,
        "variants": {
            "relu": {**_mlp("relu"), "depths": (2, 8)},
            "sigmoid": {**_mlp("sigmoid"), "depths": (2, 32)},
            "transformer": {**_transformer(), "depths": (4,)},
        },
        "depths": (),
        "init_scales": (1e-6, 1.0, 1e6),
        "optimizers": PARTS,
        "reference": "polar_waking",
    },
    "rescue_start_digits": {**_GOOD_START, "seeds": (0, 1, 2, 3, 4)},
    "rescue_start_fashion": {
        **_GOOD_START,
        "dataset": "fashion_mnist",
        "num_steps": 1000,
    },
    "rescue_normalized": {
        **_SMALLER,
        "variants": {
            kind: _mlp("relu", normalization=kind) for kind in ("batch", "layer")
        },
        "init_scales": _FEWER_SCALES,
    },
    "rescue_profiles": {
        **_SMALLER,
        "variants": {
            profile: _mlp("relu", profile)
            for profile in ("first", "alternating", "log_uniform")
        },
    },
    "rescue_transformer_profiles": {
        **_MAP,
        "variants": {
            label: {**_transformer(), "profile": profile}
            for label, profile in (
                ("keys of the first block", "first"),
                ("alternating", "alternating"),
                ("log_uniform", "log_uniform"),
            )
        },
        "depths": (4,),
        "init_scales": (1e-4, 1.0, 1e4),
        "optimizers": {
            name: {**_NETWORKS_OPTIMIZERS[name], "learning_rates": rates}
            for name, rates in CONFIRMED_RATES.items()
            if name in ("polar_waking", "adam", "muon", "muon_reset", "scion")
        },
        "reference": "scion",
    },
}

QUICK: dict[str, dict[str, Any]] = {
    "rescue_cost": {
        "optimizers": _only(
            _OPTIMIZERS, ("sgd", "adam", "adam_waking", "muon", "polar_waking")
        ),
        "depths": (2,),
        "num_steps": 5,
        "rounds": 2,
    },
    "rescue_mechanism": {
        "starts": {"ReLU, 4 layers, from 1e-8": _start("relu", 4, 1e-8)},
        "num_steps": 30,
        "seeds": (0, 1),
    },
    "rescue_recovery": {"init_scales": (1e-4, 1e-2), "num_steps": 100, "seeds": (0, 1)},
    "rescue_repair": {
        "networks": {
            "perceptron, 3 layers": _broken(_mlp("relu", depth=3), "hidden_1/kernel")
        },
        "trained_with": {**ARMS["adam"], "learning_rate": 0.003, "num_steps": 100},
        "optimizers": {
            name: {**arm, "learning_rates": arm["learning_rates"][-2:]}
            for name, arm in _NETWORKS_OPTIMIZERS.items()
            if name in ("polar_waking", "sgd")
        },
        "num_steps": 40,
        "points": 4,
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
            name: {**arm, "learning_rates": arm["learning_rates"][-3:]}
            for name, arm in sizes["optimizers"].items()
            if name in ("polar_waking", "sgd", "alone", sizes["reference"])
        },
        "num_steps": 50,
    }
    for name, sizes in SIZES.items()
    if name not in QUICK
}
