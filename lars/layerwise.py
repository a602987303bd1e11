"""From arrays to vectors with an element for each layer, and back.

A network has thousands of arrays and a ratio for each. As vectors, the arithmetic of
ratios is a few operations for all of them.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lars.bits import power_of_two
from lars.layers import LayerMap
from lars.norms import scaled_l2_norms
from lars.scaled import Factors, Scaled, normalized
from lars.sharded import ArrayAxes, of_all_layers, spread
from lars.spectral import (
    Spectral,
    as_matrices,
    from_matrices,
    orthogonalize,
    scaled_spectral_norm,
)
from lars.state import pieces


def norms(
    of: Sequence[tuple[Sequence[jax.Array], Sequence[bool]]],
    layers: LayerMap,
    dtype: Any,
) -> list[Scaled]:
    """The Euclidean norms of the slices of arrays, for several trees of them at once.

    All trees together ask only once whether the ordinary sums of squares will do.

    Args:
        of: pairs of the arrays of a tree, and whether the norms of each are needed.
        layers: what is a slice.
        dtype: of the norms.

    Returns:
        For each tree a vector over slices, with 1 where the norm is not needed.
    """
    chosen, chosen_axes = [], []
    for arrays, needed in of:
        chosen += itertools.compress(arrays, needed)
        chosen_axes += itertools.compress(layers.axes, needed)
    all_norms = scaled_l2_norms(chosen, chosen_axes)
    found, start = [], 0
    for _, needed in of:
        end = start + int(layers.repeat(needed).sum())
        part = Scaled(all_norms.fraction[start:end], all_norms.exponent[start:end])
        found.append(_filled(part, needed, layers, dtype))
        start = end
    return found


def spectral_norms(arrays: Sequence[jax.Array], layers: LayerMap, dtype: Any) -> Scaled:
    """The largest singular values of the slices that are adapted; 1 for others."""
    fractions, exponents = [jnp.zeros(0, dtype)], [jnp.zeros(0, jnp.int32)]
    pairs = zip(arrays, layers.axes, strict=True)
    for x, axes in itertools.compress(pairs, layers.is_adapted):
        norm = scaled_spectral_norm(_matrices(axes.whole(x), axes))
        fraction = of_all_layers(norm.fraction, axes, x.shape)
        # Above zero, which stands for the layers of other devices.
        offset = 2**20
        exponent = of_all_layers(norm.exponent + offset, axes, x.shape) - offset
        fractions.append(jnp.ravel(fraction).astype(dtype))
        exponents.append(jnp.ravel(exponent))
    found = Scaled(jnp.concatenate(fractions), jnp.concatenate(exponents))
    return _filled(found, layers.is_adapted, layers, dtype)


def orthogonalized(spectral: Spectral, x: jax.Array, axes: ArrayAxes) -> jax.Array:
    """The array with each of its slices replaced by the polar factor."""
    whole = axes.whole(x)
    matrices = orthogonalize(_matrices(whole, axes), spectral.steps, spectral.dtype)
    whole = from_matrices(matrices, whole.shape, axes.layer_axes, axes.output_axes)
    return axes.part(whole, x)


def joint(layers: LayerMap, of_slices: Scaled) -> Scaled:
    """The norms of layers, from those of the slices that they are made of."""
    if layers.members.shape[1] == 1:
        return of_slices
    norms = normalized(of_slices)
    fraction = jnp.pad(norms.fraction, (0, 1))[layers.members]
    lowest = jnp.int32(-(2**20))
    exponent = jnp.where(norms.is_zero, lowest, norms.exponent)
    exponent = jnp.pad(exponent, (0, 1), constant_values=lowest)[layers.members]
    largest = jnp.max(exponent, axis=1)
    fraction = fraction * power_of_two(exponent - largest[:, None], fraction.dtype)
    square = jnp.sum(fraction * fraction, axis=1)
    # The root has no derivative at zero, where the norm's subgradient is 0.
    root = jnp.sqrt(jnp.where(square == 0, 1, square))
    return Scaled(
        jnp.where(square == 0, 0, root), jnp.where(largest == lowest, 0, largest)
    )


def of_slices(layers: LayerMap, of_layers: Any) -> Any:
    """For slices, the values of the layers that they belong to; of trees of vectors."""
    if layers.members.shape[1] == 1:
        return of_layers
    return jax.tree.map(lambda x: x[layers.layer_of], of_layers)


def for_parameters(layers: LayerMap, count: jax.Array, vectors: Any) -> list[Any]:
    """For every parameter, its elements of vectors over slices, computed once.

    XLA compiles equal kernels once. The kernels of two arrays of one shape would differ
    in the place where each finds its element. Therefore a vector is cut in two steps,
    into √n pieces of √n parameters: of n kernels only about √n differ.

    Args:
        layers: what is a slice.
        count: as for `computed_first`.
        vectors: a tree of vectors.

    Returns:
        For every parameter a tree like that of vectors, with arrays in the shape of its
        layer axes.
    """
    length = math.isqrt(len(layers.shapes))
    groups = [
        layers.shapes[i : i + length] for i in range(0, len(layers.shapes), length)
    ]
    sizes = [(sum(map(math.prod, group)),) for group in groups]
    vectors, treedef = jax.tree.flatten(vectors)
    cut = computed_first(count, [pieces(x, sizes) for x in vectors])
    of_vectors = [
        itertools.chain.from_iterable(map(pieces, of_groups, groups))
        for of_groups in cut
    ]
    return [treedef.unflatten(of_one) for of_one in zip(*of_vectors, strict=True)]


def multiplied(x: jax.Array, by: Factors, axes: ArrayAxes) -> jax.Array:
    """The array times the factors of its slices, whose product may leave the range."""
    for number in by:
        x = times(spread(number, axes, x.shape), x)
    return x


def times(number: Any, x: jax.Array) -> jax.Array:
    """The product with a real number, in the dtype of the array."""
    if jnp.iscomplexobj(x):  # as two products: infinity times 0j is NaN
        return jax.lax.complex(times(number, x.real), times(number, x.imag))
    return jnp.asarray(number, x.dtype) * x


@jax.custom_jvp
def computed_first(count: jax.Array, vectors: Any) -> Any:
    """The vectors as they are, but computed once, before their elements are used.

    XLA would compute them for all layers again in the kernel of every parameter: for
    thousands of parameters it would compile for minutes. It drops
    `jax.lax.optimization_barrier` before it fuses, but keeps a loop. This loop never
    iterates, because no count is negative.
    """

    def other(x: jax.Array) -> jax.Array:
        return ~x if x.dtype == jnp.bool else -x

    return jax.lax.while_loop(
        lambda carry: carry[0] < 0,
        lambda carry: (carry[0] + 1, jax.tree.map(other, carry[1])),
        (jnp.asarray(count), vectors),
    )[1]


@computed_first.defjvp
def _computed_first_jvp(primals, tangents):
    return computed_first(*primals), tangents[1]


def _matrices(x: jax.Array, axes: ArrayAxes) -> jax.Array:
    return as_matrices(x, axes.layer_axes, axes.output_axes)


def _filled(
    found: Scaled, needed: Sequence[bool], layers: LayerMap, dtype: Any
) -> Scaled:
    """A vector over all slices, from one over those of the parameters needed."""
    found = Scaled(found.fraction.astype(dtype), found.exponent)
    if all(needed):
        return found
    places = layers.repeat(needed)
    order = np.where(places, np.cumsum(places) - 1, places.sum()).astype(np.int32)
    return Scaled(
        jnp.pad(found.fraction, (0, 1), constant_values=1)[order],
        jnp.pad(found.exponent, (0, 1))[order],
    )
