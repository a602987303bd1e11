"""The options of LARS: their kinds, and all checks of them, in one place."""

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from lars.layers import AxesRules, Layer, LayerMap, LayerRules
from lars.rules import Mask
from lars.scaled import is_known_zero
from lars.spectral import Spectral

Denominator = Literal["sum", "decayed", "gradient", "update"]
MomentumOf = Literal["step", "direction", "gradient"]
WeightDecayKind = Literal["coupled", "outside"]
ZeroRule = Literal["trust_coefficient", "one", "plain", "zero"]
ZeroGradient = Literal["formula", "trust_coefficient", "one", "plain", "zero"]
Geometry = Literal["frobenius", "spectral"] | Spectral


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `lars.scale_by_lars`, by their names there; valid once made.

    Raises:
        ValueError, TypeError: as `lars.lars`, for what no parameters could make right.
    """

    learning_rate: optax.ScalarOrSchedule
    weight_decay: optax.ScalarOrSchedule
    weight_decay_mask: Mask
    trust_coefficient: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    trust_ratio_mask: Mask
    momentum: jax.typing.ArrayLike
    nesterov: bool
    layer: Layer
    denominator: Denominator
    momentum_of: MomentumOf
    weight_decay_kind: WeightDecayKind
    clip: bool
    trust_ratio_bounds: tuple[float, float]
    direction_bound: jax.typing.ArrayLike | None
    zero_norm: ZeroRule
    zero_gradient: ZeroGradient
    geometry: Geometry
    stacked: AxesRules
    output_axes: AxesRules
    partition_specs: Any
    accumulator_dtype: jax.typing.DTypeLike | None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            check_number(name, getattr(self, name), schedule=True)
        for name in ("trust_coefficient", "eps", "momentum"):
            check_number(name, getattr(self, name))
        if self.direction_bound is not None:
            check_number("direction_bound", self.direction_bound)
        check_below_one("momentum", self.momentum)
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if field.type is bool and not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{field.name} must be True or False, got {value!r}.")
            if get_origin(field.type) is Literal and value not in choices:
                names = ", ".join(map(repr, choices))
                raise ValueError(f"{field.name} must be one of {names}, got {value!r}.")
        _check_geometry(self.geometry)
        _check_bounds(self.trust_ratio_bounds)
        self.rules.check()
        dtype = self.accumulator_dtype
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            kinds = "a floating-point dtype or None"
            raise TypeError(f"accumulator_dtype must be {kinds}, got {dtype!r}.")
        if self.denominator == "update" and self.momentum_of != "gradient":
            raise ValueError(
                "denominator='update' is the norm of what a buffer of gradients makes: "
                f"it needs momentum_of='gradient', got {self.momentum_of!r}."
            )

    @property
    def rules(self) -> LayerRules:
        """Those of the arguments that are rules."""
        return LayerRules(*(getattr(self, name) for name in LayerRules._fields))

    def layer_map(self, params: optax.Params) -> LayerMap:
        """As `LayerRules.layer_map`; a TypeError if only real parameters can step."""
        layers = self.rules.layer_map(params)
        for path, leaf, adapted in zip(
            layers.paths, jax.tree.leaves(params), layers.is_adapted, strict=True
        ):
            needs_real = self.direction_bound is not None or (self.spectral and adapted)
            if needs_real and jnp.iscomplexobj(leaf):
                raise TypeError(
                    "direction_bound and the spectral geometry need real parameters, "
                    f"got {jnp.result_type(leaf)} at {path!r}."
                )
        return layers

    @property
    def has_momentum(self) -> bool:
        """Whether there is a buffer; the number 0 spares its memory."""
        return not is_known_zero(self.momentum)

    @property
    def spectral(self) -> Spectral | None:
        """The settings of the spectral geometry; None in the Euclidean one."""
        if isinstance(self.geometry, Spectral):
            return self.geometry
        return Spectral() if self.geometry == "spectral" else None


def at(number: Any, count: jax.typing.ArrayLike) -> Any:
    """The value of a number or a schedule; a ValueError if that is not one number."""
    if not callable(number):
        return number
    value: Any = number(count)
    if value is None or np.ndim(value):
        raise ValueError(
            f"a schedule must return one number, {number!r} returned {value!r}."
        )
    return value


def check_number(name: str, number: Any, *, schedule: bool = False) -> None:
    """Refuses what cannot be a hyperparameter, traced or not."""
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
    """Refuses a momentum that lets its buffer grow for ever, with a ValueError."""
    value = known(number)
    if value is not None and value >= 1:
        raise ValueError(f"{name} must be below 1, got {number!r}.")


def known(number: Any) -> np.ndarray | None:
    """The number, or None if it is traced; NumPy compares under `jax.jit` too."""
    return None if isinstance(number, Tracer) else np.asarray(number)


def _check_geometry(geometry: Any) -> None:
    if isinstance(geometry, Spectral):
        steps, dtype = geometry.steps, geometry.dtype
        if not isinstance(steps, (int, np.integer)) or steps < 1:
            raise ValueError(f"Spectral: steps must be an integer >= 1, got {steps!r}.")
        try:
            is_floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        except TypeError:  # no dtype at all
            is_floating = False
        if not is_floating:
            kind = "a floating-point dtype"
            raise TypeError(f"Spectral: dtype must be {kind}, got {dtype!r}.")
    elif geometry not in ("frobenius", "spectral"):
        kinds = "'frobenius', 'spectral' or a lars.Spectral"
        raise ValueError(f"geometry must be {kinds}, got {geometry!r}.")


def _check_bounds(bounds: Any) -> None:
    is_pair = isinstance(bounds, tuple) and len(bounds) == 2
    if not is_pair or not all(isinstance(x, numbers.Real) for x in bounds):
        raise TypeError(
            f"trust_ratio_bounds must be a tuple of two numbers, got {bounds!r}."
        )
    low, high = bounds
    if not 0 <= low <= high or math.isinf(low):
        raise ValueError(
            "trust_ratio_bounds must be a finite lower bound >= 0 and an upper one "
            f"that is not below it, got {bounds!r}."
        )
