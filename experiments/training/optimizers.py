"""The optimizers that are compared, by name, each with its schedule."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from experiments.checks import check_name
from experiments.training.parts import (
    polar_fixed_bias,
    polar_own_norm,
    polar_unbalanced,
    polar_unfading,
)
from experiments.training.rivals import (
    angular_muown,
    hyperball,
    muon,
    scion,
    with_norms_reset,
)
from experiments.training.schedules import learning_rate_schedule
from experiments.training.training import MakeOptimizer
from lars.description import Description, describe
from lars.kernels import roles_of
from lars.optimizer import lars
from lars.polar_optimizer import polar
from lars.rules import Mask, select
from lars.waking import wake_silent_layers

WHOLE = jax.sharding.PartitionSpec()
"""Runs are divided over devices, and each has all of its parameters on one."""


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    weight_decay_mask: Mask = True,
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay, as `optax.lars` has it."""
    descent = optax.sgd(learning_rate, momentum, nesterov)
    if not weight_decay:
        return descent
    decay = optax.add_decayed_weights(weight_decay, weight_decay_mask)
    return optax.chain(decay, descent)


def clipped_sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, max_norm: float
) -> optax.GradientTransformation:
    """SGD with momentum on gradients whose joint norm is clipped to `max_norm`."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, momentum)
    )


def waking(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """The optimizer within `lars.wake_silent_layers`."""

    @functools.wraps(factory)
    def with_waking(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        return wake_silent_layers(factory(*args, **kwargs), partition_specs=WHOLE)

    return with_waking


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": optax.adam,
    "lamb": optax.lamb,
    "optax_lars": optax.lars,
    "lars": lars,
    "clipped_sgd": clipped_sgd,
    "muon": muon,
    "fromage": optax.fromage,
    "polar": polar,
    "sgd_reset": with_norms_reset(sgd),
    "adam_reset": with_norms_reset(optax.adam),
    "muon_reset": with_norms_reset(muon),
    "hyperball_adam": functools.partial(hyperball, directions=optax.adam),
    "hyperball_muon": functools.partial(hyperball, directions=muon),
    "scion": scion,
    "angular_muown": angular_muown,
    "sgd_waking": waking(sgd),
    "adam_waking": waking(optax.adam),
    "lars_waking": waking(lars),
    "muon_waking": waking(muon),
    "scion_waking": waking(scion),
    "polar_waking": waking(polar),
    "polar_unbalanced_waking": waking(polar_unbalanced),
    "polar_own_norm_waking": waking(polar_own_norm),
    "polar_unfading_waking": waking(polar_unfading),
    "polar_fixed_bias_waking": waking(polar_fixed_bias),
}

ADAPTIVE = (
    *("lamb", "fromage", "optax_lars", "lars", "lars_waking"),
    *("polar", "polar_waking", "polar_unbalanced_waking", "polar_own_norm_waking"),
    *("polar_unfading_waking", "polar_fixed_bias_waking"),
)
"""Those whose steps are parts of the norms of parameters."""


def optimizer_maker(
    name: str,
    hyperparameters: Mapping[str, Any],
    schedule: Mapping[str, Any],
    num_steps: int,
) -> MakeOptimizer:
    """Turns names and settings into a function from a learning rate to an optimizer.

    Args:
        name: one of `OPTIMIZERS`.
        hyperparameters: its other arguments, by their names. A mask is given as the
            arguments of `lars.select`: ``{"path": "kernel$"}`` or ``{"rank": (2, 4)}``.
        schedule: the settings of `schedules.learning_rate_schedule`.
        num_steps: how long the schedule is.

    """
    check_name("optimizer.name", name, OPTIMIZERS)
    factory = OPTIMIZERS[name]
    known = _settings_of(factory)
    for setting in hyperparameters:
        if setting not in known:
            others = [x for x, f in OPTIMIZERS.items() if setting in _settings_of(f)]
            belongs = f", which belongs to {', '.join(others)}" if others else ""
            raise TypeError(
                f"optimizer {name!r} has no setting {setting!r}{belongs}; it has "
                f"{', '.join(known)}. A name after the configuration's, as in "
                f"--config=configs/digits_mlp.py:{name}, chooses an optimizer with its "
                "settings."
            )

    arguments = with_rules(hyperparameters)
    if "partition_specs" in known:
        arguments["partition_specs"] = WHOLE

    def make_optimizer(learning_rate: jax.Array) -> optax.GradientTransformation:
        return factory(
            learning_rate=learning_rate_schedule(learning_rate, num_steps, **schedule),
            **arguments,
        )

    make_optimizer(jax.numpy.zeros(()))  # raises here what it would raise in a step
    return make_optimizer


def _settings_of(factory: Callable[..., Any]) -> Mapping[str, Any]:
    return inspect.signature(factory).parameters


def with_rules(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer, with rules in the place of their descriptions."""
    return {
        name: select(**value) if hasattr(value, "keys") else value
        for name, value in hyperparameters.items()
    }


def describe_parameters(
    name: str, hyperparameters: Mapping[str, Any], params: Any
) -> Description:
    """The table of what an optimizer does to each parameter, or to their shapes."""
    bound = inspect.signature(OPTIMIZERS[name]).bind_partial(
        **with_rules(hyperparameters)
    )
    bound.apply_defaults()
    settings = bound.arguments
    rules = {k: v for k, v in settings.items() if k == "layer" or k.endswith("_mask")}
    if name not in ADAPTIVE:
        rules["trust_ratio_mask"] = False
    if not settings.get("weight_decay"):  # some have none
        rules["weight_decay_mask"] = False
    elif name.startswith("polar"):
        rules["weight_decay_mask"] = _kernels_and_their_biases
    return describe(params, **{k: v for k, v in rules.items() if v is not None})


def _kernels_and_their_biases(params: Any) -> Any:
    """What `lars.polar` decays."""
    roles = roles_of(params)
    numbers = {*(kernel.leaf for kernel in roles.kernels), *roles.biases.values()}
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([i in numbers for i in range(len(leaves))])
