r"""The Euclidean norm over the whole range of float32.

Squaring halves the usable exponent range: in float32 ``sum(x * x)`` overflows from
|x| of 2e19 on and underflows below 1e-23, and in float16 from 256 on. A layerwise
ratio of two such norms is then infinite, zero, or a silent fallback. Here the sum of
squares is taken as it is where that is safe, and of rescaled elements where it is not.
"""

import jax
import jax.numpy as jnp


def l2_norm(x: jax.typing.ArrayLike) -> jax.Array:
    r"""Euclidean norm of all elements, without overflow or underflow inside.

    .. math::
        \|x\| = 2^k \sqrt{\textstyle\sum_i (2^{-k} x_i)^2},
        \qquad 2^k \approx \max_i |x_i|

    The ordinary case reads the data once, with :math:`k = 0`. Only where the plain sum
    of squares leaves the safe range does a second pass read the data again, with a
    power of two as the scale so that nothing is rounded twice. Subnormal elements
    count, also on backends that flush them to zero in arithmetic (XLA's CPU and TPU
    backends do): their bits are read as integers.

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
def _l2_norm(x: jax.Array) -> jax.Array:
    info = jnp.finfo(x.dtype)
    sum_of_squares = jnp.sum(x * x)
    # Squares below `tiny` are flushed, at most `size * tiny` of them: no more than one
    # part in 2**26 of a sum that passes, which is below float32's rounding.
    safe = (sum_of_squares >= x.size * float(info.tiny) * 2.0**26) & (
        sum_of_squares <= float(info.max)
    )
    return jax.lax.cond(safe, lambda _: jnp.sqrt(sum_of_squares), _rescaled_norm, x)


@_l2_norm.defjvp
def _l2_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    scaled, exponent = _rescale(x)
    scaled_norm = jnp.sqrt(jnp.sum(scaled * scaled))
    unit = scaled / jnp.where(scaled_norm == 0, 1, scaled_norm)
    return _unscale(scaled_norm, exponent), jnp.sum(unit * dx)


def _rescaled_norm(x: jax.Array) -> jax.Array:
    scaled, exponent = _rescale(x)
    return _unscale(jnp.sqrt(jnp.sum(scaled * scaled)), exponent)


def _rescale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ``(x * 2**-exponent, exponent)`` with the largest element near 1."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    bits = jax.lax.bitcast_convert_type(x, integer)
    magnitude = bits & jnp.iinfo(integer).max  # without the sign
    # The order of the bits is the order of the floats, subnormals included. An empty
    # array has no maximum: the initial value stands in for it.
    largest = jnp.max(magnitude, initial=0)
    # Both 2**exponent and 2**-exponent must be normal numbers.
    bound = info.maxexp - 2
    exponent = jnp.clip((largest >> info.nmant) - (info.maxexp - 1), -bound, bound)
    # A subnormal's bits are its value in units of the smallest one, 2**-149 in float32.
    is_subnormal = magnitude < (1 << info.nmant)
    units = jnp.where(bits < 0, -magnitude, magnitude).astype(x.dtype)
    scaled = jnp.where(
        is_subnormal,
        units * _power_of_two(-bound - exponent - info.nmant, x.dtype),
        x * _power_of_two(-exponent, x.dtype),
    )
    return scaled, exponent


def _unscale(scaled_norm: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``scaled_norm * 2**exponent``, subnormal where need be."""
    dtype = scaled_norm.dtype
    info = jnp.finfo(dtype)
    integer = jnp.int32 if dtype == jnp.float32 else jnp.int64
    norm = scaled_norm * _power_of_two(exponent, dtype)
    in_smallest_units = scaled_norm * 2.0**info.nmant
    subnormal = jax.lax.bitcast_convert_type(
        jnp.round(in_smallest_units).astype(integer), dtype
    )
    underflows = (exponent <= info.minexp) & (scaled_norm < 1)
    return jnp.where(underflows, subnormal, norm)


def _power_of_two(exponent: jax.Array, dtype) -> jax.Array:
    """Returns ``2**exponent``, exact, and zero below the normal range."""
    info = jnp.finfo(dtype)
    bits = jnp.clip(exponent + info.maxexp - 1, 0, 2 * info.maxexp - 2) << info.nmant
    return jax.lax.bitcast_convert_type(bits, dtype)
