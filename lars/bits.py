"""Powers of two, read from and written to the bits of floating-point numbers.

A product with a power of two is exact as long as it is a normal number. Subnormal
numbers are read and written as integers here, because some backends flush them to zero
in arithmetic (XLA's CPU backend does).
"""

import jax
import jax.numpy as jnp


def integer_of(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The integers that hold the bits of float32 or float64."""
    return jnp.dtype(jnp.int32 if dtype == jnp.float32 else jnp.int64)


def power_of_two(exponent: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``2**exponent``, exact from the smallest normal number to the largest power.

    Zero below, and not more than the largest power above.
    """
    info = jnp.finfo(dtype)
    integer = integer_of(dtype)
    biased = jnp.clip(
        exponent.astype(integer) + info.maxexp - 1, 0, 2 * info.maxexp - 2
    )
    return jax.lax.bitcast_convert_type(biased << info.nmant, dtype)


def multiply_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """``x * 2**exponent``, exact where the result is a normal number.

    In two factors: 2**exponent may leave the range where the product does not.
    """
    half = exponent >> 1
    return x * power_of_two(half, x.dtype) * power_of_two(exponent - half, x.dtype)


def binary_exponent(x: jax.Array) -> jax.Array:
    """The binary exponents of normal numbers that are not negative; 0 of others."""
    info = jnp.finfo(x.dtype)
    # No derivative goes through the exponent, which is locally constant.
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), integer_of(x.dtype))
    biased = (bits >> info.nmant).astype(jnp.int32)
    is_normal = (biased > 0) & (biased < 2 * info.maxexp - 1)
    return jnp.where(is_normal, biased - (info.maxexp - 1), 0)


def magnitude(x: jax.Array) -> jax.Array:
    """The bits of x without the sign: integers in the order of the absolute values."""
    integer = integer_of(x.dtype)
    return jax.lax.bitcast_convert_type(x, integer) & jnp.iinfo(integer).max


def scale_exponent(largest: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The exponent to divide elements by, from the largest `magnitude` among them.

    Bounded, so that both 2**exponent and 2**-exponent are normal numbers.
    """
    info = jnp.finfo(dtype)
    exponent = (largest >> info.nmant).astype(jnp.int32) - (info.maxexp - 1)
    return jnp.clip(exponent, -_bound(dtype), _bound(dtype))


def rescaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``x * 2**-exponent``, in which subnormal elements count.

    Args:
        x: float32 or float64 array.
        exponent: from `scale_exponent`, of a shape that broadcasts against ``x``.
    """
    info = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, integer_of(x.dtype))
    size = magnitude(x)
    # A subnormal's bits are its value in units of the smallest one, 2**-149 in float32.
    is_subnormal = size < (1 << info.nmant)
    units = jnp.where(bits < 0, -size, size).astype(x.dtype)
    return jnp.where(
        is_subnormal,
        units * power_of_two(-_bound(x.dtype) - exponent - info.nmant, x.dtype),
        x * power_of_two(-exponent, x.dtype),
    )


def unscaled(fraction: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``fraction * 2**exponent``, subnormal where need be."""
    info = jnp.finfo(fraction.dtype)
    norm = fraction * power_of_two(exponent, fraction.dtype)
    in_smallest_units = jnp.round(fraction * 2.0**info.nmant)
    subnormal = jax.lax.bitcast_convert_type(
        in_smallest_units.astype(integer_of(fraction.dtype)), fraction.dtype
    )
    underflows = (exponent <= info.minexp) & (fraction < 1)
    return jnp.where(underflows, subnormal, norm)


def _bound(dtype: jax.typing.DTypeLike) -> int:
    return int(jnp.finfo(dtype).maxexp) - 2
