"""Polar LARS without some of its parts: those that no argument turns off.

Functions of `lars.polar_optimizer` are replaced while a step is traced.
"""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax.numpy as jnp
import optax

from lars import polar_optimizer
from lars.norms import l2_norm
from lars.polar_optimizer import polar


def _with_replaced(
    **functions: Any,
) -> Callable[..., optax.GradientTransformation]:
    @functools.wraps(polar)
    def changed(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        optimizer = polar(*args, **kwargs)

        def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
            with mock.patch.multiple(polar_optimizer, **functions):
                return optimizer.update(updates, state, params)

        return optax.GradientTransformation(optimizer.init, update_fn)

    return changed


def _sign(_o: Any, cosine: Any, _norms: Any, pull: Any) -> Any:
    """The sign of e, whatever its pull."""
    return jnp.sign(cosine), pull


_vector_step = polar_optimizer._vector_step


def _fixed(o: Any, w: Any, g: Any, v: Any, body: Any) -> Any:
    """The step of a bias that neither grows nor shrinks with its kernel."""
    if body is not None:
        body = body._replace(growth=jnp.zeros_like(body.growth))
    return _vector_step(o, w, g, v, body)


polar_unbalanced = _with_replaced(can_tell_constant_input=lambda _: False)
"""All of a gradient that a constant input makes stays in its direction."""

polar_own_norm = _with_replaced(preserving_norm=l2_norm)
"""Steps are parts of the kernel's own norm, as in LARS, and nothing decays."""

polar_unfading = _with_replaced(_weighed_sign=_sign)
"""The sign of growth has no weight."""

polar_fixed_bias = _with_replaced(_vector_step=_fixed)
"""Biases do not grow and shrink with their kernels."""
