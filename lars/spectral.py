"""The spectral norm of a layer, and the steepest descent step in it.

The spectral norm of a matrix is its largest singular value. It and the polar factor
come from matrix products alone, which accelerators are good at. As with the Euclidean
norm, nothing on the way overflows or underflows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.bits import magnitude, rescaled, scale_exponent
from lars.norms import accumulation_dtype
from lars.scaled import Scaled

# Polar Express: quintics a σ + b σ³ + c σ⁵, each the best one for the interval to which
# those before it map [0.001, 1].
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749475, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# Then that of Newton and Schulz, whose fixed point is exactly 1.
_LAST_QUINTIC = (1.875, -1.25, 0.375)
# A quintic grows fast beyond its interval, and rounding to bfloat16 can lead there.
# Each is stretched to a longer one. With less than 1.005 some matrices diverge.
_STRETCH = 1.02


class Spectral(NamedTuple):
    r"""The spectral geometry: each layer is a matrix, measured by its spectral norm.

    The direction of steepest descent is :math:`d / \|d\|` in the Euclidean norm, and in
    the spectral norm :math:`UV^\top` of :math:`d = U \Sigma V^\top`, the singular value
    decomposition: a step in which all singular values are equal.

    References:
        Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024
    """

    steps: int = 8
    """Newton–Schulz steps for :math:`UV^\top`, see `orthogonalize`."""

    dtype: jax.typing.DTypeLike = jnp.float32
    """Of the factors in their matrix products. bfloat16 is fast on accelerators, and
    leaves singular values within about 0.01 of one."""


def as_matrices(
    x: jax.Array,
    layer_axes: Sequence[int] = (),
    output_axes: Sequence[int] | None = None,
) -> jax.Array:
    """The matrix of each layer of an array: inputs are rows and outputs columns.

    All axes of a layer that do not count outputs become its rows: a convolution kernel
    HWIO becomes a matrix (H·W·I, O). A vector becomes one column, a scalar a matrix
    (1, 1).

    Args:
        x: array of any shape.
        layer_axes: axes that index layers.
        output_axes: axes that count outputs; None is the last of several.

    Returns:
        Array [*layers, rows, columns], with the layer axes in the given order.
    """
    layers, rows, columns = _grouped(x.ndim, layer_axes, output_axes)
    lengths = [x.shape[axis] for axis in layers]
    sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (rows, columns)]
    return x.transpose([*layers, *rows, *columns]).reshape(*lengths, *sizes)


def from_matrices(
    matrices: jax.Array,
    shape: Sequence[int],
    layer_axes: Sequence[int] = (),
    output_axes: Sequence[int] | None = None,
) -> jax.Array:
    """The inverse of `as_matrices`: an array of the given shape."""
    layers, rows, columns = _grouped(len(shape), layer_axes, output_axes)
    order = [*layers, *rows, *columns]
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
    of one; each further step brings in those that are 1.9 times smaller. With fewer
    steps all are further from one. Singular values of zero stay about zero, but 8 steps
    multiply rounding errors there by 6,000, and more steps by more. A vector becomes
    ``x / ‖x‖`` whatever the number of steps. The derivative is that of the iteration.

    Args:
        x: float32 or float64 array [*batch, rows, columns]. Subnormal elements count.
        steps: number of Newton–Schulz steps.
        dtype: of the factors in the products, with sums in float32 or wider. The rest
            is in the dtype of ``x``.

    Returns:
        Array like ``x``. A zero matrix gives zero; a NaN gives NaN in its whole matrix.

    References:
        Amsel, Persson, Musco and Gower, `The Polar Express: Optimal Matrix Sign Methods
        and Their Application to the Muon Algorithm <https://arxiv.org/abs/2505.16932>`_,
        2025 (the coefficients)
    """
    x = _unit(_rescale_each(x)[0], (-2, -1))
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

    Each unit vector is a start, so that none can be unlucky. The result is too small by
    at most the fraction :math:`\ln(n) / 2^{s+2}`, where n is the number of rows or of
    columns, whichever is smaller.

    Args:
        x: float32 or float64 array [*batch, rows, columns], with the largest element
            of each matrix from 1e-7 to 1e7. Else use `scaled_spectral_norm`.
        squarings: :math:`s`. By default the error is about that of float32.

    Returns:
        Array [*batch]; not finite where an element is not. The derivative is
        :math:`u v^\top`, and zero at zero.
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
    """`spectral_norm` of matrices of any scale; subnormal elements count."""
    x, exponent = _rescale_each(x)
    return Scaled(spectral_norm(x), exponent)


def _coefficients(steps: int) -> np.ndarray:
    """The steps' coefficients of σ, σ³ and σ⁵, shape [steps, 3]."""
    stretched = np.array(_QUINTICS) / _STRETCH ** np.array([1, 3, 5])
    return np.concatenate([stretched, np.tile(_LAST_QUINTIC, (steps, 1))])[:steps]


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Matrix product in full precision, also where the hardware offers less."""
    highest, dtype = jax.lax.Precision.HIGHEST, accumulation_dtype(x.dtype)
    return jnp.matmul(x, y, precision=highest, preferred_element_type=dtype)


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
    largest = jnp.max(magnitude(x), axis=(-2, -1), keepdims=True, initial=0)
    exponent = scale_exponent(largest, x.dtype)
    return rescaled(x, exponent), exponent[..., 0, 0]


def _grouped(
    ndim: int, layer_axes: Sequence[int], output_axes: Sequence[int] | None
) -> tuple[list[int], list[int], list[int]]:
    """The axes of layers, of rows and of columns."""
    layers = [axis % ndim for axis in layer_axes]
    others = [axis for axis in range(ndim) if axis not in layers]
    if output_axes is None:
        output_axes = others[-1:] if len(others) > 1 else []
    columns = [axis % ndim for axis in output_axes]
    return layers, [axis for axis in others if axis not in columns], columns
