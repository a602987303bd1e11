"""The optimizers that are compared, by name, each with its schedule."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lars.optimizer import lars
from lars.training import MakeOptimizer

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    "lamb": optax.lamb,
    "optax_lars": optax.lars,
    "lars": lars,
}

SCHEDULES: dict[str, Callable[[jax.Array, int], optax.ScalarOrSchedule]] = {
    "constant": lambda peak, num_steps: peak,
    "linear": lambda peak, num_steps: optax.linear_schedule(peak, 0.0, num_steps),
    # The paper's "poly" policy of power 2.
    "quadratic": lambda peak, num_steps: optax.polynomial_schedule(
        peak, 0.0, power=2, transition_steps=num_steps
    ),
}


def optimizer_maker(
    name: str, hyperparameters: Mapping[str, Any], schedule: str, num_steps: int
) -> MakeOptimizer:
    """Turns names and settings into a function from a learning rate to an optimizer.

    Args:
        name: one of `OPTIMIZERS`.
        hyperparameters: its other arguments, by their names.
        schedule: one of `SCHEDULES`: from the peak at the first step down to zero
            after the last.
        num_steps: how long the schedule is.

    Raises:
        ValueError: for an unknown name, or a setting that the optimizer refuses.
        TypeError: for a setting that the optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {name!r}."
        )
    if schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}."
        )
    factory = OPTIMIZERS[name]
    known = inspect.signature(factory).parameters
    for setting in hyperparameters:
        if setting not in known:
            raise TypeError(
                f"optimizer {name!r} has no setting {setting!r}; "
                f"it has {', '.join(known)}."
            )

    def make_optimizer(learning_rate: jax.Array) -> optax.GradientTransformation:
        return factory(
            learning_rate=SCHEDULES[schedule](learning_rate, num_steps),
            **hyperparameters,
        )

    make_optimizer(jax.numpy.zeros(()))  # raises here what it would raise in a step
    return make_optimizer


def check_learning_rate(value: float) -> None:
    """Raises ValueError unless the value is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"learning_rate must be finite and above 0, got {value}.")
