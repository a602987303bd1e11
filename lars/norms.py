r"""Euclidean norms over the whole range of float32.

Squaring halves the usable exponent range: in float32 ``sum(x * x)`` overflows from
|x| of 2e19 on and underflows below 1e-23, and in float16 from 256 on. A layerwise
ratio of two such norms is then infinite, zero, or a silent fallback. Here the sum of
squares is taken as it is where that is safe, and of rescaled elements where it is not.
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
    power_of_two,
    rescaled,
    scale_exponent,
    unscaled,
)
from lars.scaled import Scaled
from lars.sharded import ArrayAxes, Group, groups_of, in_order, over_devices, spread

_PLAIN = 30
"""The binary exponent of the scale of the first pass. With it, norms from about 1e-16
to 1e10 need no second one in float32: those of parameters and gradients."""


def l2_norm(x: jax.typing.ArrayLike) -> jax.Array:
    r"""Euclidean norm of all elements, without overflow or underflow inside.

    .. math::
        \|x\| = 2^k \sqrt{\textstyle\sum_i (2^{-k} x_i)^2},
        \qquad 2^k \approx \max_i |x_i|

    The ordinary case reads the data once, with :math:`k = 0`. Only where the plain sum
    of squares leaves the safe range does a second pass read the data again, with a
    power of two as the scale so that nothing is rounded twice. Subnormal elements
    count, also on backends that flush them to zero in arithmetic (XLA's CPU backend
    does): their bits are read as integers.

    The derivative is :math:`x / \|x\|`, and zero at :math:`x = 0`, where the norm has
    the subgradient 0.

    Args:
        x: floating-point array of any shape. float16 and bfloat16 are widened to
            float32 first, float32 and float64 keep their precision.

    Returns:
        Scalar of dtype float32 (float64 for float64). Elements from 1e-38 to 1e38 give
        a relative error below 1e-6. A norm that float32 cannot hold is inf; a NaN
        element gives NaN; an empty array gives 0.

    Raises:
        TypeError: if ``x`` is not one array of real floating point.

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
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"l2_norm needs a real floating-point array, got {x.dtype}.")
    return _l2_norm(x.astype(accumulation_dtype(x.dtype)))


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype that norms, ratios and steps are computed in: float32 or wider."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """The array in the dtype that steps are computed in, float32 or wider."""
    x = jnp.asarray(x)
    return x.astype(accumulation_dtype(x.dtype))


def scaled_l2_norms(arrays: Sequence[jax.Array], axes: Sequence[ArrayAxes]) -> Scaled:
    """The norms of the layers of many arrays, with the exponent apart.

    The ordinary case reads every array once. Whether all sums of squares are safe is
    one question for all arrays, and the second pass over those that are not is the body
    of a loop that then runs once: unlike a conditional, a loop is still skipped when it
    is vectorised by `jax.vmap` and no instance needs it.

    Args:
        arrays: float32 or float64 arrays of any shapes.
        axes: what is a layer in each of them.

    Returns:
        A vector with an element for each layer, in the order of the arrays, in the
        widest dtype of these. Exponents are 0 in the ordinary case.
    """
    if not arrays:
        return Scaled(jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.int32))
    return _scaled_l2_norms(tuple(axes), tuple(arrays))


def unit(x: jax.Array) -> tuple[jax.Array, Scaled]:
    """``x / ‖x‖``, and zero at zero; and the norm, with its exponent apart.

    Args:
        x: float32 or float64 array of any shape. Subnormal elements count.
    """
    exponent = scale_exponent(jnp.max(magnitude(x), initial=0), x.dtype)
    x = rescaled(x, exponent)
    norm = jnp.sqrt(jnp.sum(x * x))
    return x / jnp.where(norm == 0, 1, norm), Scaled(norm, exponent)


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
    local_sums = list(map(_plain_sum, stacks, groups))
    sums = over_devices(jax.lax.psum, local_sums, groups)
    are_safe = list(map(_are_safe, sums, groups))
    roots = [jnp.sqrt(s) * 2.0**-_PLAIN for s in sums]

    def norms(roots, exponents):
        return Scaled(in_order(roots, groups), in_order(exponents, groups))

    def rescue(carry):
        done, _ = carry
        squares, exponents = _rescued(stacks, groups, local_sums, are_safe, done)
        rescued = [jnp.sqrt(s) for s in squares]
        return jnp.bool(True), norms(
            list(map(jnp.where, are_safe, roots, rescued)),
            [
                jnp.where(safe, 0, e)
                for safe, e in zip(are_safe, exponents, strict=True)
            ],
        )

    all_safe = functools.reduce(jnp.logical_and, map(jnp.all, are_safe))
    plain = norms(roots, [jnp.zeros_like(s, jnp.int32) for s in sums])
    return jax.lax.while_loop(lambda carry: ~carry[0], rescue, (all_safe, plain))[1]


@_scaled_l2_norms.defjvp
def _scaled_l2_norms_jvp(axes, primals, tangents):
    (arrays,), (d_arrays,) = primals, tangents
    norms = _scaled_l2_norms(axes, arrays)
    groups = [
        Group((i,), of_x, x.shape)
        for i, (x, of_x) in enumerate(zip(arrays, axes, strict=True))
    ]
    changes, start = [], 0
    for x, dx, group in zip(arrays, d_arrays, groups, strict=True):
        shape = group.axes.layer_shape(x.shape)
        piece = slice(start, start + math.prod(shape))
        fraction, exponent = (
            spread(part[piece].reshape(shape).astype(dtype), group.axes, x.shape)
            for part, dtype in ((norms.fraction, x.dtype), (norms.exponent, jnp.int32))
        )
        # d‖x‖ = (x / ‖x‖) · dx, and 0 at ‖x‖ = 0.
        unit = multiply_by_power_of_two(x, -exponent)
        unit = unit / jnp.where(fraction == 0, 1, fraction)
        change = multiply_by_power_of_two(unit * dx, -exponent)
        changes.append(group.reduce(jnp.sum, change[None]))
        start = piece.stop
    tangent = in_order(over_devices(jax.lax.psum, changes, groups), groups)
    no_tangent = np.zeros(norms.exponent.shape, jax.dtypes.float0)
    return norms, Scaled(tangent, no_tangent)  # pyright: ignore[reportArgumentType]


def _plain_sum(x: jax.Array, group: Group) -> jax.Array:
    # XLA must not know the scale: it would take it out of the squares, which are then
    # flushed to zero.
    scale = jax.lax.optimization_barrier(jnp.asarray(2.0**_PLAIN, x.dtype))
    return _sum_of_squares(x, group, scale)


def _sum_of_squares(x: jax.Array, group: Group, scale: jax.Array) -> jax.Array:
    """One computation for both passes: what differs only in the scale rounds alike."""
    x = x * scale
    return group.reduce(jnp.sum, x * x)


def _are_safe(sums_of_squares: jax.Array, group: Group) -> jax.Array:
    info = jnp.finfo(sums_of_squares.dtype)
    # Squares below `tiny` are flushed. So far below the last bit of a sum that passes
    # they could decide how it is rounded with a probability of 2**-57 each.
    margin = float(info.tiny) * 2.0 ** (info.nmant + 57)
    return (sums_of_squares >= group.layer_size() * margin) & (
        sums_of_squares <= float(info.max)
    )


def _rescued(
    stacks: Sequence[jax.Array],
    groups: Sequence[Group],
    local_sums: Sequence[jax.Array],
    are_safe: Sequence[jax.Array],
    done: jax.Array,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The second pass: sums of squares, and exponents of the scales in them.

    Args:
        stacks: the arrays of each group.
        groups: of arrays.
        local_sums: of the squares of the local parts, from the first pass.
        are_safe: which of the sums over all devices need no second pass.
        done: false.
    """

    def computed(operation, *exponents):
        return [
            _unless_all(safe, done, operation, x, group, local, *more)
            for safe, x, group, local, *more in zip(
                are_safe, stacks, groups, local_sums, *exponents, strict=True
            )
        ]

    # Above zero, which stands for the layers of other devices.
    offset = 2**20
    exponents = [
        exponent - offset
        for exponent in over_devices(
            jax.lax.pmax, [e + offset for e in computed(_exponents)], groups
        )
    ]
    local = [group.local(e) for group, e in zip(groups, exponents, strict=True)]
    return over_devices(jax.lax.psum, computed(_rescaled_sum, local), groups), exponents


def _unless_all(
    are_safe: jax.Array,
    done: jax.Array,
    operation: Any,
    x: jax.Array,
    group: Group,
    local: jax.Array,
    *exponent: jax.Array,
) -> jax.Array:
    """The operation's result, or zeros where no member of the group needs it.

    XLA would move out of the loop, and compute always, what depends on nothing that
    changes in it: under `jax.vmap`, where no conditional holds it, all of this. It is
    therefore made to depend on ``done``, which is false in the loop.

    Like the result, the zeros differ between devices where the local sums of squares
    do: for `jax.shard_map` that is part of their type.
    """
    dtype = jax.eval_shape(lambda x: operation(x, group, done, *exponent), x).dtype

    def zeros(_: jax.Array) -> jax.Array:
        like = functools.reduce(jnp.logical_or, [y != y for y in (local, *exponent)])
        return jnp.where(like, jnp.zeros((), dtype), jnp.zeros((), dtype))

    def result(x: jax.Array) -> jax.Array:
        return operation(x, group, done, *exponent)

    return jax.lax.cond(jnp.all(are_safe), zeros, result, x)


def _exponents(x: jax.Array, group: Group, done: jax.Array) -> jax.Array:
    # An empty array has no maximum: the initial value stands in for it.
    sizes = magnitude(jnp.where(done, 0, x))
    return scale_exponent(
        group.reduce(functools.partial(jnp.max, initial=0), sizes), x.dtype
    )


def _rescaled_sum(
    x: jax.Array, group: Group, done: jax.Array, exponent: jax.Array
) -> jax.Array:
    # Subnormal elements count only beside others that are hardly larger.
    lift = jnp.where(exponent < jnp.finfo(x.dtype).minexp + 64, -64, 0)
    x = jax.lax.cond(
        jnp.any(lift != 0), lambda: rescaled(x, group.expanded(lift)), lambda: x
    )
    scale = power_of_two(jnp.where(done, 0, lift - exponent), x.dtype)
    return _sum_of_squares(x, group, group.expanded(scale))
