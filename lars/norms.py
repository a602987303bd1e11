r"""Euclidean norms over the whole range of float32.

Squaring halves the range of exponents: in float32 ``sum(x * x)`` overflows from |x| of
2e19 on, and underflows below 1e-23. A ratio of two such norms would be infinite or
zero. Here elements are rescaled before they are squared, where that is needed.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lars.bits import (
    magnitude,
    multiply_by_power_of_two,
    rescaled,
    scale_exponent,
    unscaled,
)
from lars.scaled import Scaled
from lars.sharded import ArrayAxes, Group, groups_of, in_order, over_devices, spread


def l2_norm(x: jax.typing.ArrayLike) -> jax.Array:
    r"""Euclidean norm of all elements, without overflow or underflow inside.

    .. math::
        \|x\| = 2^k \sqrt{\textstyle\sum_i (2^{-k} x_i)^2},
        \qquad 2^k \approx \max_i |x_i|

    The ordinary case reads the data once, with :math:`k = 0`. Only where that sum of
    squares leaves the safe range, a second pass reads the data again. The scale is a
    power of two, so that nothing is rounded twice. Subnormal elements count, also on
    backends that flush them to zero in arithmetic, as XLA's CPU backend does.

    The derivative is :math:`x / \|x\|`, and zero at :math:`x = 0`.

    Args:
        x: floating-point or complex array of any shape. float16 and bfloat16 are
            widened to float32 first.

    Returns:
        Scalar of dtype float32 (float64 for float64 and complex128). Elements from
        1e-38 to 1e38 give a relative error below 1e-6. A norm that float32 cannot hold
        is inf; a NaN element gives NaN; an empty array gives 0. If no element is
        subnormal, ``l2_norm(x * 2**k)`` is ``l2_norm(x) * 2**k`` to the last bit.

    Raises:
        TypeError: if ``x`` is not one array of floating-point or complex numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from lars import l2_norm
        >>> x = jnp.array([3e30, 4e30])
        >>> print(jnp.linalg.norm(x), l2_norm(x))
        inf 5e+30

    References:
        Blue, `A Portable Fortran Program to Find the Euclidean Norm of a Vector
        <https://doi.org/10.1145/355769.355771>`_, 1978 (the idea of several ranges)
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"l2_norm takes one array, got {type(x).__name__}: for the norms of the "
            "arrays of a tree, jax.tree.map(lars.l2_norm, tree); for the norm of a "
            "whole tree, optax.tree.norm."
        ) from error
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"l2_norm needs a floating-point array, got {x.dtype}.")
    return _l2_norm(_real(widen(x)))


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype that steps are computed in: float32 or wider, complex for complex."""
    wide = (jnp.float64, jnp.complex64, jnp.complex128)
    return jnp.dtype(dtype if dtype in wide else jnp.float32)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """The array in its `accumulation_dtype`."""
    x = jnp.asarray(x)
    return x.astype(accumulation_dtype(x.dtype))


def scaled_l2_norms(arrays: Sequence[jax.Array], axes: Sequence[ArrayAxes]) -> Scaled:
    """The norms of the layers of many arrays, with the exponent apart.

    The ordinary case reads every array once. One condition for all arrays says whether
    a second pass is needed. That is a loop, which runs once or not at all: `jax.vmap`
    keeps a loop that no instance needs from running, but not a conditional.

    Args:
        arrays: of any shapes, float32 or float64 or complex numbers of these.
        axes: what is a layer in each of them.

    Returns:
        Vectors with an element for each layer, in the order of the arrays, in the
        widest real dtype of these. Exponents are 0 in the ordinary case.
    """
    if not arrays:
        return Scaled(jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.int32))
    return _scaled_l2_norms(tuple(axes), tuple(map(_real, arrays)))


def unit(x: jax.Array) -> tuple[jax.Array, Scaled]:
    """``x / ‖x‖``, and zero at zero; and the norm, with its exponent apart.

    Args:
        x: array of any shape, of float32 or float64 or complex numbers of these.
            Subnormal elements count.
    """
    if jnp.iscomplexobj(x):
        parts, norm = unit(_real(x))
        return jax.lax.complex(parts[..., 0], parts[..., 1]), norm
    exponent = scale_exponent(jnp.max(magnitude(x), initial=0), x.dtype)
    x = rescaled(x, exponent)
    norm = jnp.sqrt(jnp.sum(x * x))
    return x / jnp.where(norm == 0, 1, norm), Scaled(norm, exponent)


def _real(x: jax.Array) -> jax.Array:
    """Complex numbers as pairs of real ones, along a new last axis: |z|² = a² + b²."""
    return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x


@jax.custom_jvp
def _l2_norm(x: jax.Array) -> jax.Array:
    norm = scaled_l2_norms([x], [ArrayAxes()])
    return unscaled(norm.fraction[0], norm.exponent[0])


@_l2_norm.defjvp
def _l2_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _l2_norm(x), jnp.sum(unit(x)[0] * dx)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled_l2_norms(axes: tuple[ArrayAxes, ...], arrays: tuple[jax.Array, ...]):
    groups = groups_of(arrays, axes)
    stacks = [jnp.stack([arrays[i] for i in group.members]) for group in groups]
    local_sums = list(map(_sum_of_squares, stacks, groups))
    sums = over_devices(jax.lax.psum, local_sums, groups)
    are_safe = list(map(_are_safe, sums, groups))
    zeros = [jnp.zeros_like(s, jnp.int32) for s in sums]

    def norms(sums, exponents):
        roots = [jnp.sqrt(s) for s in sums]
        return Scaled(in_order(roots, groups), in_order(exponents, groups))

    def where_needed(operation, done, *exponents):
        arguments = zip(groups, *exponents, strict=True)
        operations = [functools.partial(operation, done, *more) for more in arguments]
        return list(map(_unless_safe, are_safe, local_sums, stacks, operations))

    def rescue(carry):
        # XLA moves out of the loop, and computes always, whatever does not change in
        # it. Therefore all depends on `done`, which is false.
        done, _ = carry
        # Above zero, which stands for the layers of other devices.
        offset = 2**20
        shifted = [exponent + offset for exponent in where_needed(_exponents, done)]
        exponents = [e - offset for e in over_devices(jax.lax.pmax, shifted, groups)]
        local = [group.local(e) for group, e in zip(groups, exponents, strict=True)]
        rescaled_sums = where_needed(_rescaled_sum, done, local)
        rescaled_sums = over_devices(jax.lax.psum, rescaled_sums, groups)
        return done | True, norms(
            list(map(jnp.where, are_safe, sums, rescaled_sums)),
            list(map(jnp.where, are_safe, zeros, exponents)),
        )

    all_safe = functools.reduce(jnp.logical_and, map(jnp.all, are_safe))
    start = (all_safe, norms(sums, zeros))
    return jax.lax.while_loop(lambda carry: ~carry[0], rescue, start)[1]


@_scaled_l2_norms.defjvp
def _scaled_l2_norms_jvp(axes, primals, tangents):
    (arrays,), (d_arrays,) = primals, tangents
    norms = _scaled_l2_norms(axes, arrays)
    groups, changes, start = [], [], 0
    for i, (x, dx, of_x) in enumerate(zip(arrays, d_arrays, axes, strict=True)):
        groups.append(Group((i,), of_x, x.shape))
        shape = of_x.layer_shape(x.shape)
        end = start + math.prod(shape)
        fraction, exponent = (
            spread(of_layers[start:end].reshape(shape), of_x, x.shape)
            for of_layers in (norms.fraction.astype(x.dtype), norms.exponent)
        )
        start = end
        # d‖x‖ = (x / ‖x‖) · dx, and 0 at ‖x‖ = 0.
        direction = multiply_by_power_of_two(x, -exponent)
        direction = direction / jnp.where(fraction == 0, 1, fraction)
        change = multiply_by_power_of_two(direction * dx, -exponent)
        changes.append(groups[i].reduce(jnp.sum, change[None]))
    tangent = in_order(over_devices(jax.lax.psum, changes, groups), groups)
    no_tangent = np.zeros(norms.exponent.shape, jax.dtypes.float0)
    return norms, Scaled(tangent, no_tangent)  # pyright: ignore[reportArgumentType]


def _sum_of_squares(x: jax.Array, group: Group) -> jax.Array:
    return group.reduce(jnp.sum, x * x)


def _are_safe(sums_of_squares: jax.Array, group: Group) -> jax.Array:
    info = jnp.finfo(sums_of_squares.dtype)
    # Squares below `tiny` are flushed. Beside a sum that passes, each is so small that
    # it would change how this is rounded in one case of 2**30.
    lowest = group.layer_size() * float(info.tiny) * 2.0 ** (info.nmant + 31)
    return (sums_of_squares >= lowest) & (sums_of_squares <= float(info.max))


def _unless_safe(
    are_safe: jax.Array, local_sum: jax.Array, x: jax.Array, operation: Any
) -> jax.Array:
    """The operation's result, or zeros where no member of the group needs it."""

    def zeros(x: jax.Array) -> jax.Array:
        # Made of a sum that differs between devices where the result does: for
        # `jax.shard_map` that is part of their type.
        dtype = jax.eval_shape(operation, x).dtype
        return (local_sum != local_sum).astype(dtype)

    return jax.lax.cond(jnp.all(are_safe), zeros, operation, x)


def _exponents(done: jax.Array, group: Group, x: jax.Array) -> jax.Array:
    # An empty array has no maximum: the initial value stands in for it.
    maximum = functools.partial(jnp.max, initial=0)
    largest = group.reduce(maximum, magnitude(jnp.where(done, 0, x)))
    return scale_exponent(largest, x.dtype)


def _rescaled_sum(
    done: jax.Array, group: Group, exponent: jax.Array, x: jax.Array
) -> jax.Array:
    def rescue(carry):
        done, x = carry
        return done | True, rescaled(x, group.expanded(exponent))

    # The result of a loop, which runs once, lies in memory, as x does at first. Without
    # it XLA rescales inside the sum, and adds up in another order.
    _, x = jax.lax.while_loop(lambda carry: ~carry[0], rescue, (done, x))
    return _sum_of_squares(x, group)
