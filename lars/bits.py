"""Powers of two, read from and written to the bits of floating-point numbers.

A product with a power of two is exact as long as it is a normal number. Subnormal
numbers are read and written as integers here, because some backends flush them to zero
in arithmetic (XLA's CPU backend does). All arrays are float32 or float64.
"""

import jax
import jax.numpy as jnp


def power_of_two(exponent: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``2**exponent``; 0 below the normal numbers, the largest power above them."""
    info = jnp.finfo(dtype)
    biased = exponent.astype(_integer(dtype)) + info.maxexp - 1
    bits = jnp.clip(biased, 0, 2 * info.maxexp - 2) << info.nmant
    return jax.lax.bitcast_convert_type(bits, dtype)


def multiply_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """``x * 2**exponent``, exact where the result is a normal number."""
    # In two factors: 2**exponent may leave the range where the product does not.
    half = exponent >> 1
    return x * power_of_two(half, x.dtype) * power_of_two(exponent - half, x.dtype)


def binary_exponent(x: jax.Array) -> jax.Array:
    """The binary exponents of normal numbers that are not negative; 0 of others."""
    info = jnp.finfo(x.dtype)
    # No derivative goes through the exponent, which is locally constant.
    biased = (_bits(jax.lax.stop_gradient(x)) >> info.nmant).astype(jnp.int32)
    is_normal = (biased > 0) & (biased < 2 * info.maxexp - 1)
    return jnp.where(is_normal, biased - (info.maxexp - 1), 0)


def magnitude(x: jax.Array) -> jax.Array:
    """The bits of x without the sign: integers in the order of the absolute values."""
    return _bits(x) & jnp.iinfo(_integer(x.dtype)).max


def scale_exponent(largest: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The exponent for `rescaled`, from the largest `magnitude` of the elements.

    It is bounded, so that both 2**exponent and 2**-exponent are normal numbers.
    """
    info = jnp.finfo(dtype)
    exponent = (largest >> info.nmant).astype(jnp.int32) - (info.maxexp - 1)
    return jnp.clip(exponent, -_bound(dtype), _bound(dtype))


def rescaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """``x * 2**-exponent`` by a `scale_exponent`; subnormal elements count."""
    nmant, size = jnp.finfo(x.dtype).nmant, magnitude(x)
    # A subnormal's bits are its value in units of the smallest one, 2**-149 in float32.
    units = jnp.where(_bits(x) < 0, -size, size).astype(x.dtype)
    of_subnormal = units * power_of_two(-_bound(x.dtype) - exponent - nmant, x.dtype)
    of_normal = x * power_of_two(-exponent, x.dtype)
    return jnp.where(size < (1 << nmant), of_subnormal, of_normal)


def unscaled(fraction: jax.Array, exponent: jax.Array) -> jax.Array:
    """``fraction * 2**exponent``, of numbers >= 0; subnormal where need be."""
    info = jnp.finfo(fraction.dtype)
    units = jnp.round(fraction * 2.0**info.nmant).astype(_integer(fraction.dtype))
    subnormal = jax.lax.bitcast_convert_type(units, fraction.dtype)
    is_subnormal = (exponent <= info.minexp) & (fraction < 1)
    normal = fraction * power_of_two(exponent, fraction.dtype)
    return jnp.where(is_subnormal, subnormal, normal)


def _integer(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    return jnp.dtype(jnp.int32 if dtype == jnp.float32 else jnp.int64)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, _integer(x.dtype))


def _bound(dtype: jax.typing.DTypeLike) -> int:
    return int(jnp.finfo(dtype).maxexp) - 2
