"""Numbers that may lie beyond the range of float32, as fraction times power of two.

A ratio of two norms, or a norm of large numbers, can be too large or too small for
float32 where the step that is made of it is not. These few operations keep the exponent
apart until the end. Where every exponent is 0, the ordinary case, they are the plain
operations, bit for bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Scaled(NamedTuple):
    """The number ``fraction * 2**exponent``, not negative."""

    fraction: jax.Array  # shape=(), float32 or float64
    exponent: jax.Array  # shape=(), int32


def scaled(number: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike) -> Scaled:
    """A number of ordinary size."""
    return Scaled(jnp.asarray(number, dtype), jnp.zeros((), jnp.int32))


def times(number: jax.typing.ArrayLike, x: Scaled) -> Scaled:
    """The product of a number of ordinary size and a scaled one."""
    return Scaled(jnp.asarray(number, x.fraction.dtype) * x.fraction, x.exponent)


def align(*numbers: Scaled) -> tuple[list[jax.Array], jax.Array]:
    """Fractions of all numbers for one exponent, the largest of those that are not 0.

    Returns:
        The fractions, in the widest dtype of the numbers, and the exponent.
    """
    dtype = max((x.fraction.dtype for x in numbers), key=lambda dtype: dtype.itemsize)
    lowest = jnp.int32(-(2**20))
    exponents = jnp.stack(
        [jnp.where(x.fraction == 0, lowest, x.exponent) for x in numbers]
    )
    exponent = jnp.max(exponents)
    exponent = jnp.where(exponent == lowest, 0, exponent)
    fractions = [
        multiply_by_power_of_two(x.fraction.astype(dtype), x.exponent - exponent)
        for x in numbers
    ]
    return fractions, exponent


def total(*numbers: Scaled) -> Scaled:
    """The sum."""
    fractions, exponent = align(*numbers)
    return Scaled(sum(fractions[1:], start=fractions[0]), exponent)


def where(condition: jax.Array, x: Scaled, y: Scaled) -> Scaled:
    """``x`` where the condition holds, else ``y``."""
    return Scaled(
        jnp.where(condition, x.fraction, y.fraction),
        jnp.where(condition, x.exponent, y.exponent),
    )


def ratio(numerator: Scaled, denominator: Scaled) -> jax.Array:
    """``numerator / denominator``, infinite or zero where the dtype cannot hold it."""
    return multiply_by_power_of_two(
        numerator.fraction / denominator.fraction,
        numerator.exponent - denominator.exponent,
    )


def multiply_by_ratio(
    x: jax.Array, numerator: Scaled, denominator: Scaled
) -> jax.Array:
    """``x * numerator / denominator``, where no result on the way leaves the range.

    Args:
        x: array of any shape, each element at most about as large as the denominator.
        numerator: for all elements.
        denominator: for all elements, not zero.

    Returns:
        Array like ``x``. Elements that are subnormal, here and in ``x``, are zero on
        backends that flush them.
    """
    x = multiply_by_power_of_two(x, -denominator.exponent)
    x = x / denominator.fraction.astype(x.dtype)
    x = x * numerator.fraction.astype(x.dtype)
    return multiply_by_power_of_two(x, numerator.exponent)


def multiply_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """``x * 2**exponent``, exact where the result is a normal number.

    In two factors: 2**exponent may leave the range where the product does not.
    """
    half = exponent >> 1
    return x * power_of_two(half, x.dtype) * power_of_two(exponent - half, x.dtype)


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


def integer_of(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The integers that hold the bits of float32 or float64."""
    return jnp.dtype(jnp.int32 if dtype == jnp.float32 else jnp.int64)
