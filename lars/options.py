"""The options of LARS: their kinds, and all checks of them, in one place."""

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from lars.layers import LayerMap, LayerRules
from lars.scaled import is_known_zero
from lars.spectral import Spectral

Denominator = Literal["sum", "decayed", "gradient", "update"]
MomentumOf = Literal["step", "direction", "gradient"]
WeightDecayKind = Literal["coupled", "outside"]
ZeroRule = Literal["trust_coefficient", "one", "plain", "zero"]
ZeroGradient = Literal["formula", "trust_coefficient", "one", "plain", "zero"]
Geometry = Literal["frobenius", "spectral"] | Spectral


@dataclass(frozen=True)
class Options:
    """The arguments of `lars.scale_by_lars`, by their names there; valid once made.

    Raises:
        ValueError: for a number that makes no sense, an unknown name, or options that
            exclude each other.
        TypeError: for an argument of the wrong kind.
    """

    learning_rate: optax.ScalarOrSchedule
    weight_decay: optax.ScalarOrSchedule
    trust_coefficient: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    momentum: jax.typing.ArrayLike
    nesterov: bool
    denominator: Denominator
    momentum_of: MomentumOf
    weight_decay_kind: WeightDecayKind
    clip: bool
    trust_ratio_bounds: tuple[float, float]
    direction_bound: jax.typing.ArrayLike | None
    zero_norm: ZeroRule
    zero_gradient: ZeroGradient
    geometry: Geometry
    accumulator_dtype: jax.typing.DTypeLike | None
    rules: LayerRules

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, schedule=True)
        check_number("weight_decay", self.weight_decay, schedule=True)
        for name in ("trust_coefficient", "eps", "momentum"):
            check_number(name, getattr(self, name))
        if self.direction_bound is not None:
            check_number("direction_bound", self.direction_bound)
        check_below_one("momentum", self.momentum)
        for name in ("nesterov", "clip"):
            flag = getattr(self, name)
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {flag!r}.")
        for name, kind in (
            ("denominator", Denominator),
            ("momentum_of", MomentumOf),
            ("weight_decay_kind", WeightDecayKind),
            ("zero_norm", ZeroRule),
            ("zero_gradient", ZeroGradient),
        ):
            choice, choices = getattr(self, name), get_args(kind)
            if choice not in choices:
                names = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {names}, got {choice!r}.")
        _check_geometry(self.geometry)
        _check_bounds(self.trust_ratio_bounds)
        self.rules.check()
        dtype = self.accumulator_dtype
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "accumulator_dtype must be a floating-point dtype or None, got "
                f"{dtype!r}."
            )
        if self.denominator == "update" and self.momentum_of != "gradient":
            raise ValueError(
                "denominator='update' is the norm of what a buffer of gradients makes: "
                f"it needs momentum_of='gradient', got {self.momentum_of!r}."
            )

    def layer_map(self, params: optax.Params) -> LayerMap:
        """What the rules say about parameters.

        Raises:
            ValueError: as `LayerRules.layer_map`.
            TypeError: likewise, and for complex parameters where there is no step.
        """
        layers = self.rules.layer_map(params)
        for path, leaf, adapted in zip(
            layers.paths, jax.tree.leaves(params), layers.is_adapted, strict=True
        ):
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jnp.complexfloating) and (
                self.direction_bound is not None or (self.spectral and adapted)
            ):
                raise TypeError(
                    "direction_bound and the spectral geometry need real parameters, "
                    f"got {dtype} at {path!r}."
                )
        return layers

    @property
    def has_momentum(self) -> bool:
        """Whether there is a buffer: a zero known beforehand spares its memory."""
        return not is_known_zero(self.momentum)

    @property
    def spectral(self) -> Spectral | None:
        """The settings of the spectral geometry; None in the Euclidean one."""
        if isinstance(self.geometry, Spectral):
            return self.geometry
        return Spectral() if self.geometry == "spectral" else None


def at(number: Any, count: jax.typing.ArrayLike) -> Any:
    """The value of a number or of a schedule.

    Raises:
        ValueError: for a schedule that returns something else than one number.
    """
    if not callable(number):
        return number
    value: Any = number(count)
    if value is None or np.ndim(value):
        raise ValueError(
            f"a schedule must return one number, {number!r} returned {value!r}."
        )
    return value


def check_number(name: str, number: Any, *, schedule: bool = False) -> None:
    """Refuses what cannot be a hyperparameter, as far as it is known: traced or not."""
    if schedule and callable(number):
        return
    value = known(number)
    dtype = number.dtype if value is None else value.dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer)):
        kind = "a number or a schedule" if schedule else "a number"
        raise TypeError(f"{name} must be {kind}, got {number!r}.")
    is_good = value is None or value.ndim or (math.isfinite(value) and value >= 0)
    if np.ndim(number) or not is_good:
        raise ValueError(f"{name} must be a finite number >= 0, got {number!r}.")


def check_below_one(name: str, number: Any) -> None:
    """Refuses a momentum with which a buffer would grow for ever."""
    value = known(number)
    if value is not None and value >= 1:
        raise ValueError(f"{name} must be below 1, got {number!r}.")


def known(number: Any) -> np.ndarray | None:
    """The number, or None of one that is traced.

    Within `jax.jit` a comparison of any array of JAX is traced, also of one whose value
    is there: NumPy compares values.
    """
    return None if isinstance(number, Tracer) else np.asarray(number)


def _check_geometry(geometry: Any) -> None:
    is_name = isinstance(geometry, str) and geometry in ("frobenius", "spectral")
    if not is_name and not isinstance(geometry, Spectral):
        raise ValueError(
            "geometry must be 'frobenius', 'spectral' or a lars.Spectral, "
            f"got {geometry!r}."
        )
    if isinstance(geometry, Spectral):
        steps = geometry.steps
        if not isinstance(steps, (int, np.integer)) or steps < 1:
            raise ValueError(f"Spectral: steps must be an integer >= 1, got {steps!r}.")
        if not jnp.issubdtype(geometry.dtype, jnp.floating):
            raise TypeError(
                "Spectral: dtype must be a floating-point dtype, got "
                f"{geometry.dtype!r}."
            )


def _check_bounds(bounds: Any) -> None:
    is_pair = isinstance(bounds, tuple) and len(bounds) == 2
    if not is_pair or not all(isinstance(x, numbers.Real) for x in bounds):
        raise TypeError(
            f"trust_ratio_bounds must be a tuple of two numbers, got {bounds!r}."
        )
    if not 0 <= bounds[0] <= bounds[1] or math.isinf(bounds[0]):
        raise ValueError(
            "trust_ratio_bounds must be a finite lower bound >= 0 and an upper one "
            f"that is not below it, got {bounds!r}."
        )
