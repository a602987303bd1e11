r"""The spectral norm of a layer, and the steepest descent step in it.

The spectral norm of a matrix is its largest singular value. Both it and the matrix with
all singular values set to one come from products of matrices alone, which accelerators
are good at, and from no decomposition. As with the Euclidean norm, nothing on the way
overflows or underflows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.norms import _bound, _magnitude, _rescale, accumulation_dtype
from lars.scaled import Scaled

# Polar Express: quintics a σ + b σ³ + c σ⁵, each the best for the interval that the
# ones before it map [0.001, 1] to.
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749475, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# From there on Newton and Schulz's of order 3, whose fixed point is exactly 1.
_LAST_QUINTIC = (1.875, -1.25, 0.375)
# Beyond its interval a quintic grows fast, and rounding to bfloat16 can lead there:
# each is stretched to a longer interval. With less than 1.005 some matrices diverge.
_STRETCH = 1.02


class Spectral(NamedTuple):
    r"""The spectral geometry: each layer is a matrix, measured by its spectral norm.

    The steepest descent direction in a norm is the one of unit norm that decreases the
    loss most. In the Euclidean norm that is :math:`d / \|d\|`; in the spectral norm it
    is :math:`UV^\top` where :math:`d = U \Sigma V^\top` is the singular value
    decomposition: all directions are taken equally far.

    References:
        Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024
    """

    steps: int = 8
    """Newton–Schulz steps that approximate :math:`UV^\top`, see `orthogonalize`."""

    dtype: jax.typing.DTypeLike = jnp.float32
    """Of the factors in the matrix products of these steps. bfloat16 is fast on
    accelerators, and leaves singular values within about 0.01 of one."""


def as_matrices(
    x: jax.Array,
    batch_axes: Sequence[int] = (),
    output_axes: Sequence[int] | None = None,
) -> jax.Array:
    """The matrix, or the matrices, that an array of parameters stands for.

    The axes that count outputs become the columns, all others become the rows. Where
    nothing is said it is the last axis: a convolution kernel HWIO becomes a matrix
    (H·W·I, O). A vector then becomes one column, a scalar a matrix (1, 1).

    Args:
        x: array of any shape.
        batch_axes: axes that count layers; the others are each layer's parameters.
        output_axes: which of the others count outputs. None is the last of two or more;
            an empty sequence is for one column.

    Returns:
        Array [*batch, rows, columns], with the batch axes in the given order, and so
        the outputs.
    """
    batch, rows, columns = _axes(x.ndim, batch_axes, output_axes)
    lengths = [[x.shape[axis] for axis in axes] for axes in (batch, rows, columns)]
    x = x.transpose(batch + rows + columns)
    return x.reshape(*lengths[0], *map(math.prod, lengths[1:]))


def from_matrices(
    matrices: jax.Array,
    shape: Sequence[int],
    batch_axes: Sequence[int] = (),
    output_axes: Sequence[int] | None = None,
) -> jax.Array:
    """The inverse of `as_matrices`.

    Args:
        matrices: array [*batch, rows, columns].
        shape: of the array that became the matrices.
        batch_axes: as they were given to `as_matrices`.
        output_axes: likewise.

    Returns:
        Array of the given shape.
    """
    batch, rows, columns = _axes(len(shape), batch_axes, output_axes)
    order = batch + rows + columns
    x = matrices.reshape([shape[axis] for axis in order])
    return x.transpose(np.argsort(order))


def orthogonalize(
    x: jax.Array, steps: int = 8, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    r"""The polar factor of each matrix: its singular values all set to one.

    .. math::
        X_0 = \frac{X}{\|X\|_F}, \qquad
        X_{k+1} = X_k \left(a_k + b_k X_k^\top X_k + c_k (X_k^\top X_k)^2\right)
        \;\to\; UV^\top \quad\text{where } X = U \Sigma V^\top

    After 8 steps, singular values from 0.001 of the Frobenius norm on are within 1e-5
    of one; each further step brings in those that are 1.9 times smaller. Singular
    values of zero stay about zero, but rounding errors there grow with the steps too,
    by 6,000 in the first 8. Fewer than 8 steps leave all singular values further from
    one. A vector becomes ``x / ‖x‖`` whatever the number of steps.

    The derivative is that of the iteration, which converges to that of the polar factor
    where there is one.

    Args:
        x: float32 or float64 array [*batch, rows, columns]. Subnormal elements count.
        steps: number of Newton–Schulz steps.
        dtype: of the factors in the products, with sums in float32 or wider. The rest
            is in the dtype of ``x``.

    Returns:
        Array like ``x``. A zero matrix gives zero; a NaN element gives NaN in its whole
        matrix and in no other.

    References:
        Amsel, Persson, Musco and Gower, `The Polar Express: Optimal Matrix Sign Methods
        and Their Application to the Muon Algorithm <https://arxiv.org/abs/2505.16932>`_,
        2025 (the coefficients)
    """
    x, _ = _rescale_each(x)
    x = _unit(x, (-2, -1))
    if min(x.shape[-2:]) <= 1:
        return x

    def step(x, coefficients):
        a, b, c = coefficients
        gram = product(x.mT, x)
        return a * x + product(x, b * gram + c * product(gram, gram)), None

    def product(x, y):
        return _product(x.astype(dtype), y.astype(dtype)).astype(x.dtype)

    # The Gram matrix of the shorter side is the smaller one.
    is_wide = x.shape[-2] < x.shape[-1]
    x = x.mT if is_wide else x
    x, _ = jax.lax.scan(step, x, jnp.asarray(_coefficients(steps), x.dtype))
    return x.mT if is_wide else x


def spectral_norm(x: jax.Array, squarings: int = 18) -> jax.Array:
    r"""The largest singular value of each matrix.

    .. math::
        \|X\| \approx \frac{\|Xv\|}{\|v\|},
        \qquad v = \text{the largest column of } (X^\top X)^{2^s}

    The power is squared :math:`s` times. As the start is each unit vector in turn, none
    can be unlucky: the result is too small by at most the fraction
    :math:`\ln(n) / 2^{s+2}`, where :math:`n` is the number of rows or columns,
    whichever is smaller, even where many singular values are about as large.

    Args:
        x: float32 or float64 array [*batch, rows, columns], with the largest element
            of each matrix near 1 (anything from 1e-7 to 1e7 will do). For other arrays
            there is `scaled_spectral_norm`.
        squarings: :math:`s`. By default the error is about that of float32.

    Returns:
        Array [*batch], 0 for a zero matrix, not finite where an element is not. The
        derivative is :math:`u v^\top`, and zero at zero.
    """
    x = x.mT if x.shape[-2] < x.shape[-1] else x
    if x.shape[-1] <= 1:
        return _length(x, (-2, -1))[..., 0, 0]

    def square(power, _):
        # Eigenvalues that sum to 1: the largest can neither overflow nor underflow.
        trace = jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        power = power / jnp.where(trace == 0, 1, trace)
        return _product(power, power), None

    # At a singular vector the quotient is stationary in v: no derivative goes there.
    gram = jax.lax.stop_gradient(_product(x.mT, x))
    power, _ = jax.lax.scan(square, gram, length=squarings)
    longest = jnp.argmax(_length(power, -2), axis=-1, keepdims=True)
    v = _unit(jnp.take_along_axis(power, longest, axis=-1), -2)
    return _length(_product(x, v), (-2, -1))[..., 0, 0]


def scaled_spectral_norm(x: jax.Array) -> Scaled:
    """`spectral_norm` of matrices of any scale, with the exponents apart.

    Args:
        x: float32 or float64 array [*batch, rows, columns]. Subnormal elements count.

    Returns:
        Fraction and exponent, each an array [*batch].
    """
    x, exponent = _rescale_each(x)
    return Scaled(spectral_norm(x), exponent)


def _coefficients(steps: int) -> np.ndarray:
    """The steps' coefficients of σ, σ³ and σ⁵, shape [steps, 3]."""
    stretched = np.array(_QUINTICS) / _STRETCH ** np.array([1, 3, 5])
    last = np.tile(_LAST_QUINTIC, (max(0, steps - len(_QUINTICS)), 1))
    return np.concatenate([stretched[:steps], last])


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Matrix product in full precision, also where the hardware offers less."""
    return jnp.matmul(
        x,
        y,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulation_dtype(x.dtype),
    )


def _unit(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """``x / ‖x‖``, and zero at zero."""
    length = _length(x, axis)
    return x / jnp.where(length == 0, 1, length)


def _length(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """The Euclidean norm over axes, which are kept; at zero with a zero derivative."""
    return root(jnp.sum(x * x, axis, keepdims=True))


def root(x: Any) -> jax.Array:
    """The square root, whose derivative at zero is zero: infinity times zero is NaN."""
    is_zero = x <= 0  # or below, by rounding; what is not a number stays so
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, x)))


def _rescale_each(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ``(x * 2**-exponent, exponent)``, with an exponent for each matrix."""
    info = jnp.finfo(x.dtype)
    largest = jnp.max(_magnitude(x), axis=(-2, -1), keepdims=True, initial=0)
    exponent = (largest >> info.nmant).astype(jnp.int32) - (info.maxexp - 1)
    exponent = jnp.clip(exponent, -_bound(x.dtype), _bound(x.dtype))
    return _rescale(x, exponent), exponent[..., 0, 0]


def _axes(
    ndim: int, batch_axes: Sequence[int], output_axes: Sequence[int] | None
) -> tuple[list[int], list[int], list[int]]:
    """The axes of the batch, of the rows and of the columns."""
    batch = [axis % ndim for axis in batch_axes]
    others = [axis for axis in range(ndim) if axis not in batch]
    if output_axes is None:
        output_axes = others[1:][-1:]
    columns = [axis % ndim for axis in output_axes]
    return batch, [axis for axis in others if axis not in columns], columns
