"""Numbers that may lie beyond the range of float32, as fraction times power of two.

A ratio of two norms, or a norm of large numbers, can be too large or too small for
float32 where the step that is made of it is not. The exponent therefore stays apart
until the end. All functions are elementwise: one operation serves all layers.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.bits import binary_exponent, multiply_by_power_of_two, power_of_two


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("fraction", "exponent"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The numbers ``fraction * 2**exponent``, not negative.

    Sums are of two `Scaled` or with a number; products are with a number; quotients are
    of two `Scaled`. A *number* is an array or a scalar of ordinary size, not negative.
    """

    fraction: jax.Array  # any shape, float32 or float64
    exponent: jax.Array  # the same shape, int32

    __array_ufunc__ = None  # NumPy's numbers leave products to the operators here

    def __add__(self, other: "Scaled | jax.typing.ArrayLike") -> "Scaled":
        """The sum, of numbers of one shape or scalars."""
        if is_known_zero(other):
            return self
        if not isinstance(other, Scaled):
            other = scaled(other, self.fraction.dtype)
        # The larger exponent of those that are not 0; 0 if both are.
        terms, lowest = (self, other), jnp.int32(-(2**20))
        larger = jnp.maximum(*(jnp.where(x.is_zero, lowest, x.exponent) for x in terms))
        larger = jnp.where(larger == lowest, 0, larger)
        one, more = (
            multiply_by_power_of_two(x.fraction, x.exponent - larger) for x in terms
        )
        return Scaled(one + more, larger)

    def __mul__(self, number: jax.typing.ArrayLike) -> "Scaled":
        return Scaled(
            jnp.asarray(number, self.fraction.dtype) * self.fraction, self.exponent
        )

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: "Scaled") -> "Scaled":
        """The quotient; a divisor of zero counts as one, lest 0/0 be NaN."""
        n, d = normalized(self), normalized(where(other.is_zero, 1.0, other))
        return Scaled(n.fraction / d.fraction, n.exponent - d.exponent)

    @property
    def is_zero(self) -> jax.Array:
        """Where the numbers are zero."""
        return self.fraction == 0

    @property
    def value(self) -> jax.Array:
        """The numbers, infinite or zero where the dtype cannot hold them."""
        return multiply_by_power_of_two(self.fraction, self.exponent)


def scaled(number: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike) -> Scaled:
    """Numbers of ordinary size."""
    fraction = jnp.asarray(number, dtype)
    return Scaled(fraction, jnp.zeros(fraction.shape, jnp.int32))


def is_known_zero(number: object) -> bool:
    """Whether it is the number 0, and no array or schedule, whatever its value."""
    return isinstance(number, (int, float, np.number)) and number == 0


def where(condition: jax.Array, x: Scaled | float | jax.Array, y: Scaled) -> Scaled:
    """``x`` where the condition holds, else ``y``."""
    x = x if isinstance(x, Scaled) else scaled(x, y.fraction.dtype)
    return jax.tree.map(functools.partial(jnp.where, condition), x, y)


def normalized(x: Scaled) -> Scaled:
    """The same numbers with fractions from 1 to 2, or 0; not finite ones stay."""
    exponent = binary_exponent(x.fraction)
    return Scaled(
        multiply_by_power_of_two(x.fraction, -exponent), x.exponent + exponent
    )


class Factors(NamedTuple):
    """Two numbers to multiply by, one after the other, in place of their product."""

    first: jax.Array  # any shape, float32 or float64
    second: jax.Array  # the same shape


def factors(ratio: Scaled, size: Scaled) -> Factors:
    """A ratio as two factors, for arrays whose norm is about the given size.

    The ratio may leave the range of the dtype where a product with it does not. The
    first factor is a power of two. It brings elements to the geometric middle between 1
    and the size of the result; the second factor brings them to the result. Nothing on
    the way leaves the range unless the result does.

    Args:
        ratio: any finite numbers.
        size: of what is multiplied, of the same shape; 0 counts as 1.
    """
    dtype = ratio.fraction.dtype
    r, s = normalized(ratio), normalized(size)
    bound = jnp.finfo(dtype).maxexp - 2
    middle = jnp.where(r.is_zero, 0, (r.exponent + s.exponent) >> 1)
    first = jnp.clip(middle - s.exponent, -bound, bound)
    second = multiply_by_power_of_two(r.fraction, r.exponent - first)
    return Factors(power_of_two(first, dtype), second)
