r"""Euclidean norms over the whole range of float32.

Squaring halves the usable exponent range: in float32 ``sum(x * x)`` overflows from
|x| of 2e19 on and underflows below 1e-23, and in float16 from 256 on. A layerwise
ratio of two such norms is then infinite, zero, or a silent fallback. Here the sum of
squares is taken as it is where that is safe, and of rescaled elements where it is not.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.scaled import (
    Scaled,
    integer_of,
    multiply_by_power_of_two,
    power_of_two,
)

SMALL = 2**10
"""Arrays of at most so many elements are stacked with others of their shape before they
are reduced: starting a computation on one costs more than copying it."""


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
        TypeError: if ``x`` is not one array of real floating point.

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
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"l2_norm takes one array, got {type(x).__name__}: for the norms of the "
            "arrays of a tree, jax.tree.map(lars.l2_norm, tree); for the norm of a "
            "whole tree, optax.tree.norm."
        ) from error
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"l2_norm needs a real floating-point array, got {x.dtype}.")
    return _l2_norm(x.astype(accumulation_dtype(x.dtype)))


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype that norms, ratios and steps are computed in: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


class Split(NamedTuple):
    """How one array is made of layers, and how it lies on the devices.

    Inside `jax.shard_map` an array is the local part of a global one; elsewhere
    ``spec`` is None and XLA knows the sharding itself.
    """

    layer_axes: tuple[int, ...] = ()  # axes that index layers: a norm for each index
    spec: jax.sharding.PartitionSpec | None = None  # mesh axes of every axis

    def mesh_axes(self, axis: int) -> tuple[str, ...]:
        """The names of the mesh axes that an array axis is divided over."""
        if self.spec is None or axis >= len(self.spec):
            return ()
        names = self.spec[axis]
        return () if names is None else names if isinstance(names, tuple) else (names,)

    def all_mesh_axes(self) -> tuple[str, ...]:
        """The names of all mesh axes that the array is divided over."""
        axes = () if self.spec is None else range(len(self.spec))
        return tuple(name for axis in axes for name in self.mesh_axes(axis))

    def layer_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The global lengths of the layer axes, from the shape of the local part."""
        return tuple(
            shape[axis] * _mesh_size(self.mesh_axes(axis)) for axis in self.layer_axes
        )

    def whole(self, x: jax.Array) -> jax.Array:
        """The layers of the local part, each with all its elements, on every device."""
        if any(axis is not None for axis in jax.typeof(x).sharding.spec):
            return jax.sharding.reshard(x, jax.sharding.PartitionSpec())
        for axis in range(x.ndim):
            names = self.mesh_axes(axis)
            if names and axis not in self.layer_axes:
                x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
        return x

    def part(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """The inverse of `whole`: the elements that belong to the local part."""
        spec = jax.typeof(like).sharding.spec
        if any(axis is not None for axis in spec):
            return jax.sharding.reshard(x, spec)
        for axis in range(x.ndim):
            names = self.mesh_axes(axis)
            if names and axis not in self.layer_axes:
                start = jax.lax.axis_index(names) * like.shape[axis]
                x = jax.lax.dynamic_slice_in_dim(x, start, like.shape[axis], axis)
        return x

    def local(self, x: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Of values for all layers, those of the local part, of the given shape."""
        for position, axis in enumerate(self.layer_axes):
            names = self.mesh_axes(axis)
            if names:
                start = jax.lax.axis_index(names) * shape[axis]
                x = jax.lax.dynamic_slice_in_dim(x, start, shape[axis], position)
        return x


def scaled_l2_norms(arrays: Sequence[jax.Array], splits: Sequence[Split]) -> Scaled:
    """The norms of the layers of many arrays, with the exponent apart.

    The ordinary case reads every array once. Whether all sums of squares are safe is
    one question for all arrays, and the second pass over those that are not is the body
    of a loop that then runs once: unlike a conditional, a loop is still skipped when it
    is vectorised by `jax.vmap` and no instance needs it.

    Args:
        arrays: float32 or float64 arrays of any shapes.
        splits: what is a layer in each of them.

    Returns:
        A vector with an element for each layer, in the order of the arrays, in the
        widest dtype of these. Exponents are 0 in the ordinary case.
    """
    if not arrays:
        return Scaled(jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.int32))
    return _scaled_l2_norms(tuple(splits), tuple(arrays))


def of_all_layers(
    x: jax.Array, split: Split, shape: Sequence[int], collective: Any = jax.lax.pmax
) -> jax.Array:
    """Values of the local layers of an array, as values of all layers everywhere."""
    group = _Group((0,), split, tuple(shape))
    return _over_devices(collective, [x[None]], [group])[0][0]


@jax.custom_jvp
def _l2_norm(x: jax.Array) -> jax.Array:
    norm = scaled_l2_norms([x], [Split()])
    return _unscale(norm.fraction[0], norm.exponent[0])


@_l2_norm.defjvp
def _l2_norm_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _l2_norm(x), jnp.sum(unit(x)[0] * dx)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled_l2_norms(splits: tuple[Split, ...], arrays: tuple[jax.Array, ...]):
    groups = _groups(arrays, splits)
    stacks = [jnp.stack([arrays[i] for i in group.members]) for group in groups]
    local_sums = [
        _sum_of_squares(x, group) for x, group in zip(stacks, groups, strict=True)
    ]
    sums = _over_devices(jax.lax.psum, local_sums, groups)
    is_safe = [_is_safe(s, group) for s, group in zip(sums, groups, strict=True)]
    norms = _in_order(
        [Scaled(jnp.sqrt(s), jnp.zeros_like(s, jnp.int32)) for s in sums], groups
    )

    def rescue(carry):
        done, _ = carry
        exponents = _over_devices(
            jax.lax.pmax,
            [
                _unless_all(safe, done, _largest_exponent, x, group, local)
                for x, group, local, safe in zip(
                    stacks, groups, local_sums, is_safe, strict=True
                )
            ],
            groups,
        )
        local_exponents = [
            jax.vmap(functools.partial(group.split.local, shape=group.shape))(e)
            for e, group in zip(exponents, groups, strict=True)
        ]
        squares = _over_devices(
            jax.lax.psum,
            [
                _unless_all(safe, done, _rescaled_sum_of_squares, x, group, local, e)
                for x, group, local, safe, e in zip(
                    stacks, groups, local_sums, is_safe, local_exponents, strict=True
                )
            ],
            groups,
        )
        return jnp.bool(True), _in_order(
            [
                Scaled(jnp.sqrt(jnp.where(safe, s, t)), jnp.where(safe, 0, exponent))
                for s, t, safe, exponent in zip(
                    sums, squares, is_safe, exponents, strict=True
                )
            ],
            groups,
        )

    all_safe = functools.reduce(jnp.logical_and, map(jnp.all, is_safe))
    _, norms = jax.lax.while_loop(lambda carry: ~carry[0], rescue, (all_safe, norms))
    return norms


@_scaled_l2_norms.defjvp
def _scaled_l2_norms_jvp(splits, primals, tangents):
    (arrays,), (d_arrays,) = primals, tangents
    norms = _scaled_l2_norms(splits, arrays)
    tangent, start = [], 0
    for x, dx, split in zip(arrays, d_arrays, splits, strict=True):
        shape = split.layer_shape(x.shape)
        piece = slice(start, start + math.prod(shape))
        fraction, exponent = (
            spread(part[piece].reshape(shape).astype(dtype), split, x.shape)
            for part, dtype in zip(norms, (x.dtype, jnp.int32), strict=True)
        )
        # d‖x‖ = (x / ‖x‖) · dx, and 0 at ‖x‖ = 0.
        unit = multiply_by_power_of_two(x, -exponent)
        unit = unit / jnp.where(fraction == 0, 1, fraction)
        group = _Group((0,), split, x.shape)
        change = multiply_by_power_of_two(unit * dx, -exponent)
        tangent.append(_reduce(jnp.sum, change[None], group))
        start = piece.stop
    groups = [
        _Group((i,), split, x.shape)
        for i, (x, split) in enumerate(zip(arrays, splits, strict=True))
    ]
    tangent = _over_devices(jax.lax.psum, tangent, groups)
    tangent = jnp.concatenate(
        [jnp.ravel(t).astype(norms.fraction.dtype) for t in tangent]
    )
    no_tangent = np.zeros(norms.exponent.shape, jax.dtypes.float0)
    return norms, Scaled(tangent, no_tangent)  # pyright: ignore[reportArgumentType]


def spread(x: jax.Array, split: Split, shape: Sequence[int]) -> jax.Array:
    """Values of all layers, as an array that broadcasts against the local part."""
    return _expanded(split.local(x, shape), split, shape) if split.layer_axes else x


def _expanded(x: jax.Array, split: Split, shape: Sequence[int]) -> jax.Array:
    """Values of the local layers, with an axis of length 1 for each that is none."""
    # Layer axes may be given in any order; those of the result are in the array's.
    x = jnp.transpose(x, tuple(map(int, np.argsort(split.layer_axes))))
    return jnp.expand_dims(
        x, [axis for axis in range(len(shape)) if axis not in split.layer_axes]
    )


class _Group(NamedTuple):
    """Arrays that are reduced together, stacked along a new first axis."""

    members: tuple[int, ...]  # positions of the arrays
    split: Split
    shape: tuple[int, ...]  # of one array, its local part

    def layer_size(self) -> int:
        """The number of elements of one layer, on all devices."""
        return math.prod(
            length * _mesh_size(self.split.mesh_axes(axis))
            for axis, length in enumerate(self.shape)
            if axis not in self.split.layer_axes
        )


def _groups(arrays: Sequence[jax.Array], splits: Sequence[Split]) -> list[_Group]:
    groups: dict[Any, list[int]] = {}
    for i, (x, split) in enumerate(zip(arrays, splits, strict=True)):
        alike = (x.shape, x.dtype, split, jax.typeof(x).sharding)
        groups.setdefault(alike if x.size <= SMALL else i, []).append(i)
    return [
        _Group(tuple(members), splits[members[0]], arrays[members[0]].shape)
        for members in groups.values()
    ]


def _in_order(norms: Sequence[Scaled], groups: Sequence[_Group]) -> Scaled:
    """One vector of the norms of all groups, in the order of the arrays."""
    dtype = max((x.fraction.dtype for x in norms), key=lambda dtype: dtype.itemsize)
    fraction = jnp.concatenate([jnp.ravel(x.fraction).astype(dtype) for x in norms])
    exponent = jnp.concatenate([jnp.ravel(x.exponent) for x in norms])
    lengths = {
        i: math.prod(group.split.layer_shape(group.shape))
        for group in groups
        for i in group.members
    }
    starts = np.cumsum([0, *lengths.values()])
    places = dict(zip(lengths, starts, strict=False))
    order = np.concatenate(
        [np.arange(places[i], places[i] + lengths[i]) for i in sorted(lengths)]
    ).astype(np.int32)
    if (order == np.arange(len(order))).all():
        return Scaled(fraction, exponent)
    return Scaled(fraction[order], exponent[order])


def _reduce(operation: Any, x: jax.Array, group: _Group) -> jax.Array:
    """Over all but the layers; the layer axes come out in the order they are given."""
    axes = group.split.layer_axes
    others = tuple(1 + axis for axis in range(x.ndim - 1) if axis not in axes)
    x = operation(x, axis=others)
    ranks = np.argsort(np.argsort(axes)) if axes else []
    return jnp.transpose(x, (0, *(1 + int(rank) for rank in ranks)))


def _sum_of_squares(x: jax.Array, group: _Group) -> jax.Array:
    return _reduce(jnp.sum, x * x, group)


def _is_safe(sum_of_squares: jax.Array, group: _Group) -> jax.Array:
    info = jnp.finfo(sum_of_squares.dtype)
    # Squares below `tiny` are flushed, at most `size * tiny` of them: an eighth of the
    # last bit of a sum that passes.
    margin = float(info.tiny) * 2.0 ** (info.nmant + 3)
    return (sum_of_squares >= group.layer_size() * margin) & (
        sum_of_squares <= float(info.max)
    )


def _unless_all(
    is_safe: jax.Array,
    done: jax.Array,
    operation: Any,
    x: jax.Array,
    group: _Group,
    local: jax.Array,
    *exponent: jax.Array,
) -> jax.Array:
    """The operation's result, or zeros where no member of the group needs it.

    XLA would move out of the loop, and compute always, what depends on nothing that
    changes in it: under `jax.vmap`, where no conditional holds it, all of this. It is
    therefore made to depend on ``done``, which is false in the loop.

    Like the result, the zeros differ between devices where the local sums of squares
    do: for `jax.shard_map` that is part of their type.
    """
    dtype = jax.eval_shape(lambda x: operation(x, group, *exponent), x).dtype

    def zeros(_: jax.Array) -> jax.Array:
        like = functools.reduce(jnp.logical_or, [y != y for y in (local, *exponent)])
        return jnp.where(like, jnp.zeros((), dtype), jnp.zeros((), dtype))

    def result(x: jax.Array) -> jax.Array:
        return operation(jnp.where(done, 0, x), group, *exponent)

    return jax.lax.cond(jnp.all(is_safe), zeros, result, x)


def _largest_exponent(x: jax.Array, group: _Group) -> jax.Array:
    info = jnp.finfo(x.dtype)
    # The order of the bits is the order of the floats, subnormals included. An empty
    # array has no maximum: the initial value stands in for it.
    largest = _reduce(functools.partial(jnp.max, initial=0), _magnitude(x), group)
    exponent = (largest >> info.nmant).astype(jnp.int32) - (info.maxexp - 1)
    # Both 2**exponent and 2**-exponent must be normal numbers.
    return jnp.clip(exponent, -_bound(x.dtype), _bound(x.dtype))


def _rescaled_sum_of_squares(
    x: jax.Array, group: _Group, exponent: jax.Array
) -> jax.Array:
    exponent = jax.vmap(lambda e: _expanded(e, group.split, group.shape))(exponent)
    rescaled = _rescale(x, exponent)
    return _reduce(jnp.sum, rescaled * rescaled, group)


def unit(x: jax.Array) -> tuple[jax.Array, Scaled]:
    """``x / ‖x‖``, and zero at zero; and the norm, with its exponent apart.

    Args:
        x: float32 or float64 array of any shape. Subnormal elements count.
    """
    exponent = _largest_exponent(x[None], _Group((0,), Split(), x.shape))[0]
    rescaled = _rescale(x, exponent)
    norm = jnp.sqrt(jnp.sum(rescaled * rescaled))
    return rescaled / jnp.where(norm == 0, 1, norm), Scaled(norm, exponent)


def _rescale(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns ``x * 2**-exponent``, in which subnormal elements count."""
    info = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, integer_of(x.dtype))
    magnitude = _magnitude(x)
    # A subnormal's bits are its value in units of the smallest one, 2**-149 in float32.
    is_subnormal = magnitude < (1 << info.nmant)
    units = jnp.where(bits < 0, -magnitude, magnitude).astype(x.dtype)
    return jnp.where(
        is_subnormal,
        units * power_of_two(-_bound(x.dtype) - exponent - info.nmant, x.dtype),
        x * power_of_two(-exponent, x.dtype),
    )


def _magnitude(x: jax.Array) -> jax.Array:
    """The bits of x without the sign."""
    integer = integer_of(x.dtype)
    return jax.lax.bitcast_convert_type(x, integer) & jnp.iinfo(integer).max


def _bound(dtype: jax.typing.DTypeLike) -> int:
    return int(jnp.finfo(dtype).maxexp) - 2


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


def _over_devices(
    collective: Any, values: Sequence[jax.Array], groups: Sequence[_Group]
) -> list[jax.Array]:
    """From the values of the local parts, those of the global arrays.

    One collective for all arrays that are divided over the same mesh axes.
    """
    values = [_placed(x, group) for x, group in zip(values, groups, strict=True)]
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(group.split.all_mesh_axes(), []).append(i)
    for mesh_axes, members in alike.items():
        if mesh_axes:
            flat = jnp.concatenate([jnp.ravel(values[i]) for i in members])
            flat, start = collective(flat, mesh_axes), 0
            for i in members:
                piece = flat[start : start + values[i].size]
                start += values[i].size
                values[i] = piece.reshape(values[i].shape)
    return values


def _placed(x: jax.Array, group: _Group) -> jax.Array:
    """The values of the local layers at their places among zeros for all layers."""
    sharding = jax.typeof(x).sharding
    if any(axis is not None for axis in sharding.spec):
        # With explicit shardings: all devices get the norms of all layers.
        return jax.sharding.reshard(x, jax.sharding.PartitionSpec())
    shape = group.split.layer_shape(group.shape)
    if x.shape[1:] == shape:
        return x
    starts = [jnp.int32(0)] + [
        jax.lax.axis_index(names) * group.shape[axis] if names else jnp.int32(0)
        for axis in group.split.layer_axes
        for names in [group.split.mesh_axes(axis)]
    ]
    everywhere = jnp.zeros((x.shape[0], *shape), x.dtype)
    return jax.lax.dynamic_update_slice(everywhere, x, starts)


def _mesh_size(names: tuple[str, ...]) -> int:
    """The number of devices along mesh axes; 1 outside of them, where all is global."""
    try:
        return math.prod(jax.lax.axis_size(name) for name in names)
    except NameError:
        return 1
