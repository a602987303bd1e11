r"""The Euclidean norm over the whole range of float32.

Squaring halves the usable exponent range: in float32 ``sum(x * x)`` overflows from
|x| of 2e19 on and underflows below 1e-23, and in float16 from 256 on. A layerwise
ratio of two such norms is then infinite, zero, or a silent fallback. Here the sum of
squares is taken as it is where that is safe, and of rescaled elements where it is not.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from lars.scaled import (
    Scaled,
    align,
    integer_of,
    multiply_by_power_of_two,
    power_of_two,
    scaled,
)


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
        TypeError: if ``x`` is not real floating point.

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
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"l2_norm needs a real floating-point array, got {x.dtype}.")
    return _l2_norm(x.astype(accumulation_dtype(x.dtype)))


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype that norms, ratios and steps are computed in: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


@jax.custom_jvp
def scaled_l2_norm(x: jax.Array) -> Scaled:
    """`l2_norm` with the exponent apart, so that it is never infinite nor subnormal.

    Args:
        x: float32 or float64 array of any shape.

    Returns:
        The norm; its exponent is 0 in the ordinary case.
    """
    info = jnp.finfo(x.dtype)
    sum_of_squares = jnp.sum(x * x)
    # Squares below `tiny` are flushed, at most `size * tiny` of them: an eighth of the
    # last bit of a sum that passes.
    margin = float(info.tiny) * 2.0 ** (info.nmant + 3)
    is_safe = (sum_of_squares >= x.size * margin) & (sum_of_squares <= float(info.max))
    return jax.lax.cond(
        is_safe, lambda _: scaled(jnp.sqrt(sum_of_squares), x.dtype), _rescaled_norm, x
    )


def joint_norm(norms: Iterable[Scaled]) -> Scaled:
    """The norm of several arrays together, from the norm of each; 0 of none."""
    norms = list(norms)
    if not norms:
        return scaled(0.0, jnp.float32)
    if len(norms) == 1:
        return norms[0]
    fractions, exponent = align(*norms)
    norm = scaled_l2_norm(jnp.stack(fractions))
    return Scaled(norm.fraction, norm.exponent + exponent)


@scaled_l2_norm.defjvp
def _scaled_l2_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    norm = _rescaled_norm(x)
    tangent = multiply_by_power_of_two(jnp.sum(_unit(x) * dx), -norm.exponent)
    return norm, Scaled(tangent, np.zeros((), jax.dtypes.float0))  # pyright: ignore


@jax.custom_jvp
def _l2_norm(x: jax.Array) -> jax.Array:
    norm = scaled_l2_norm(x)
    return _unscale(norm.fraction, norm.exponent)


@_l2_norm.defjvp
def _l2_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _l2_norm(x), jnp.sum(_unit(x) * dx)


def _rescaled_norm(x: jax.Array) -> Scaled:
    rescaled, exponent = _rescale(x)
    return Scaled(jnp.sqrt(jnp.sum(rescaled * rescaled)), exponent)


def _unit(x: jax.Array) -> jax.Array:
    """``x / ‖x‖``, and zero at zero."""
    rescaled, _ = _rescale(x)
    norm = jnp.sqrt(jnp.sum(rescaled * rescaled))
    return rescaled / jnp.where(norm == 0, 1, norm)


def _rescale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ``(x * 2**-exponent, exponent)`` with the largest element near 1."""
    info = jnp.finfo(x.dtype)
    integer = integer_of(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, integer)
    magnitude = bits & jnp.iinfo(integer).max  # without the sign
    # The order of the bits is the order of the floats, subnormals included. An empty
    # array has no maximum: the initial value stands in for it.
    largest = jnp.max(magnitude, initial=0)
    # Both 2**exponent and 2**-exponent must be normal numbers.
    bound = info.maxexp - 2
    exponent = (largest >> info.nmant).astype(jnp.int32) - (info.maxexp - 1)
    exponent = jnp.clip(exponent, -bound, bound)
    # A subnormal's bits are its value in units of the smallest one, 2**-149 in float32.
    is_subnormal = magnitude < (1 << info.nmant)
    units = jnp.where(bits < 0, -magnitude, magnitude).astype(x.dtype)
    rescaled = jnp.where(
        is_subnormal,
        units * power_of_two(-bound - exponent - info.nmant, x.dtype),
        x * power_of_two(-exponent, x.dtype),
    )
    return rescaled, exponent


def _unscale(fraction: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``fraction * 2**exponent``, subnormal where need be."""
    info = jnp.finfo(fraction.dtype)
    norm = fraction * power_of_two(exponent, fraction.dtype)
    in_smallest_units = jnp.round(fraction * 2.0**info.nmant)
    subnormal = jax.lax.bitcast_convert_type(
        in_smallest_units.astype(integer_of(fraction.dtype)), fraction.dtype
    )
    underflows = (exponent <= info.minexp) & (fraction < 1)
    return jnp.where(underflows, subnormal, norm)
