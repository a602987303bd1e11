"""The spectral norm of a layer, and the steepest descent step in it.

The spectral norm of a matrix is its largest singular value. It and the polar factor
come from matrix products alone, which accelerators are good at. As with the Euclidean
norm, nothing on the way overflows or underflows.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.bits import magnitude, rescaled, scale_exponent
from lars.norms import accumulation_dtype
from lars.scaled import Scaled

# A quintic grows fast beyond its interval, and rounding to bfloat16 can lead there. All
# but the last are stretched to a longer one: with less than 1.005 some inputs diverge.
_STRETCH = 1.02
# How many steps are made on one Gram matrix, which rounds small singular values more
# than the matrix itself: with 3, products are fewest and rounding is that of float32.
_STEPS_PER_GRAM = 3
# Of the Krylov space in which the largest singular value is looked for.
_KRYLOV = 64


class Spectral(NamedTuple):
    r"""The spectral geometry: each layer is a matrix, measured by its spectral norm.

    The direction of steepest descent is :math:`d / \|d\|` in the Euclidean norm, and in
    the spectral norm :math:`UV^\top` of :math:`d = U \Sigma V^\top`, the singular value
    decomposition: a step in which all singular values are equal.

    References:
        Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024
    """

    steps: int = 6
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
    x: jax.Array,
    steps: int = 6,
    dtype: jax.typing.DTypeLike = jnp.float32,
    lowest: float | None = None,
) -> jax.Array:
    r"""The polar factor of each matrix: its singular values all set to one.

    .. math::
        X_0 = \frac{X}{\|X\|_F}, \qquad
        X_{k+1} = X_k \left(a_k + b_k X_k^\top X_k + c_k (X_k^\top X_k)^2\right)
        \;\to\; UV^\top \quad\text{where } X = U \Sigma V^\top

    The coefficients are those that bring all singular values from :math:`\ell` of the
    Frobenius norm on closest to one in the given number of steps: 3 steps bring those
    from 0.01 on to 0.7 to 1.3, 5 those from 0.001 on to 0.85 to 1.12, 6 to within 0.01
    of one, and 7 to within 1e-5. Each further step brings in those that are 1.9 times
    smaller. It does so with the rounding errors of singular values of zero, too: 8
    steps multiply them by 6,000, and 30 bring them to one. A vector becomes
    ``x / ‖x‖`` whatever the number of steps. The derivative is that of the iteration.

    Args:
        x: float32 or float64 array [*batch, rows, columns]. Subnormal elements count.
        steps: number of Newton–Schulz steps.
        dtype: of the factors in the products, with sums in float32 or wider. The rest
            is in the dtype of ``x``.
        lowest: :math:`\ell`, from 1e-4 to 0.5. None is that of `smallest_aim`.

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

    def product(x, y):
        return _product(x.astype(dtype), y.astype(dtype)).astype(x.dtype)

    def step(x, quintic):
        a, b, c = quintic
        gram = product(x.mT, x)
        return a * x + product(x, b * gram + c * product(gram, gram)), None

    # The Gram matrix of the shorter side is the smaller one.
    is_wide = x.shape[-2] < x.shape[-1]
    x = x.mT if is_wide else x
    quintics = _quintics(steps, smallest_aim(steps) if lowest is None else lowest)
    if x.shape[-2] >= 2 * x.shape[-1] and jnp.finfo(dtype).bits >= 32:
        for i in range(0, steps, _STEPS_PER_GRAM):
            x = product(x, _factor(product, x, quintics[i : i + _STEPS_PER_GRAM]))
    else:
        x, _ = jax.lax.scan(step, x, jnp.asarray(quintics, x.dtype))
    return x.mT if is_wide else x


def _factor(product: Any, x: jax.Array, quintics: np.ndarray) -> jax.Array:
    """What several steps multiply ``x`` by, a polynomial of its Gram matrix.

    All steps' factors commute. The Gram matrix G after a step with the factor P is GP².
    Beside products with a tall ``x``, those of Gram matrices are small.
    """
    gram = product(x.mT, x)
    identity = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), gram.shape)
    result = identity
    for number, (a, b, c) in enumerate(quintics.tolist()):
        factor = a * identity + b * gram + c * product(gram, gram)
        result = factor if number == 0 else product(result, factor)
        if number < len(quintics) - 1:
            gram = product(product(gram, factor), factor)
    return result


def spectral_norm(x: jax.Array) -> jax.Array:
    r"""The largest singular value of each matrix.

    .. math::
        \|X\| \approx \max_{v \in K} \frac{\|Xv\|}{\|v\|}, \qquad
        K = \operatorname{span}(v_0, Gv_0, G^2 v_0, \ldots), \quad G = X^\top X

    The Krylov space K has 64 dimensions, or as many as the shorter side of the matrix,
    in which case it is the whole space. The result is never too large, but for
    rounding. It is too small by less than one in a thousand for the worst of spectra,
    and by no more than rounding where few singular values are within 1% of the largest.

    Args:
        x: float32 or float64 array [*batch, rows, columns], with the largest element
            of each matrix from 1e-7 to 1e7. Else use `scaled_spectral_norm`.

    Returns:
        Array [*batch]; not finite where an element is not. The derivative is
        :math:`u v^\top`, and zero at zero; in higher ones v counts as constant, which
        it is not.

    References:
        Kuczyński and Woźniakowski, `Estimating the Largest Eigenvalue by the Power and
        Lanczos Algorithms with a Random Start <https://doi.org/10.1137/0613066>`_, 1992
    """
    x = x.mT if x.shape[-2] < x.shape[-1] else x
    if x.shape[-1] <= 1:
        return _length(x, (-2, -1))[..., 0, 0]
    # At a singular vector the quotient is stationary in v: no derivative goes there.
    gram = jax.lax.stop_gradient(_product(x.mT, x))
    if x.shape[-1] <= _KRYLOV:
        v = _largest_eigenvector(gram)
    else:
        basis = _krylov_basis(gram)
        ritz = _product(_product(basis, gram), basis.mT)
        v = _unit(_product(basis.mT, _largest_eigenvector(ritz)), -2)
    return _length(_product(x, v), (-2, -1))[..., 0, 0]


def _krylov_basis(gram: jax.Array) -> jax.Array:
    """Orthonormal rows [*batch, dimensions, columns] of the Krylov space."""
    size = (_KRYLOV, *gram.shape[:-1], 1)
    random = _unit(jax.random.normal(jax.random.key(0), size, gram.dtype), -2)

    def extend(carry, number):
        basis, v = carry
        basis = jax.lax.dynamic_update_slice_in_dim(basis, v.mT, number, axis=-2)
        v = _product(gram, v)
        # Where G maps the space to itself it goes on at random, as rounding would not.
        v = v + 100 * jnp.finfo(v.dtype).eps * _length(v, -2) * random[number]
        for _ in range(2):  # the second time for what the first one rounds
            v = v - _product(basis.mT, _product(basis, v))
        return (basis, _unit(v, -2)), None

    # Zeros made of gram, of the type that it has in jax.shard_map.
    basis = 0 * gram[..., :_KRYLOV, :]
    carry = (basis, 0 * gram[..., :1] + random[-1])
    return jax.lax.scan(extend, carry, jnp.arange(_KRYLOV))[0][0]


def _largest_eigenvector(x: jax.Array, squarings: int = 18) -> jax.Array:
    """The longest column of a power of a matrix: symmetric, no eigenvalue below zero.

    Each unit vector is a start, so that none can be unlucky. With n columns, the root
    of its quotient is too small by at most the fraction ln(n) / 2**(squarings + 2).
    """

    def square(power, _):
        # Eigenvalues that sum to 1: the largest can neither overflow nor underflow.
        trace = jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        power = power / jnp.where(trace == 0, 1, trace)
        return _product(power, power), None

    power, _ = jax.lax.scan(square, x, length=squarings)
    longest = jnp.argmax(_length(power, -2), axis=-1, keepdims=True)
    return _unit(jnp.take_along_axis(power, longest, axis=-1), -2)


def scaled_spectral_norm(x: jax.Array) -> Scaled:
    """`spectral_norm` of matrices of any scale; subnormal elements count."""
    x, exponent = _rescale_each(x)
    return Scaled(spectral_norm(x), exponent)


def smallest_aim(steps: int) -> float:
    """The ℓ of `orthogonalize`: singular values from it on are brought near one.

    More than 5 steps bring them closer, and do not begin at smaller ones.
    """
    return max(0.001, 0.1 ** ((1 + steps) / 2))


@functools.lru_cache
def _quintics(steps: int, lowest: float) -> np.ndarray:
    """The steps' coefficients of σ, σ³ and σ⁵, shape [steps, 3].

    Each quintic is the one closest to 1 on the interval to which those before it map
    [ℓ, 1]. Together they are the best of all compositions of as many.
    """
    low, high = lowest, 1.0
    quintics = []
    for _ in range(steps):
        quintic, error = _closest_to_one(low, high)
        low, high = 1 - error, 1 + error
        quintics.append(quintic / _STRETCH ** np.array([1, 3, 5]))
    if quintics:
        quintics[-1] = quintics[-1] * _STRETCH ** np.array([1, 3, 5])
    return np.reshape(quintics, (steps, 3))


def _closest_to_one(low: float, high: float) -> tuple[np.ndarray, float]:
    """The coefficients of x, x³ and x⁵ that are closest to 1 in [low, high].

    And the largest distance, which has alternating signs in four points: the ends and
    the two extrema between them, which the algorithm of Remez finds.
    """
    if low > (1 - 1e-5) * high:  # Newton and Schulz, in the limit
        return np.array([1.875, -1.25, 0.375]), 0.0
    x = low + (high - low) * np.array([0, 0.25, 0.75, 1])
    solution = np.zeros(4)
    for _ in range(50):
        equations = np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1)
        solution = np.linalg.solve(equations, np.ones(4))
        a, b, c, _ = solution
        root = np.sqrt(9 * b**2 - 20 * a * c)
        x[1:3] = np.sqrt((np.array([-root, root]) - 3 * b) / (10 * c))
    return solution[:3], abs(float(solution[3]))


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
