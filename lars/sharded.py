"""How arrays are made of layers, and how they lie on the devices.

An array may hold many layers, along axes that count them. It may also be divided over
devices, along any axes. Every device computes the same values of all layers, such as
their norms.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**10
"""Arrays of at most so many elements are stacked with others of their shape before they
are reduced: starting a computation on one costs more than copying it."""


class ArrayAxes(NamedTuple):
    """The meaning of the axes of one array, and the devices they are divided over.

    Inside `jax.shard_map` an array is the local part of a global one; elsewhere
    ``spec`` is None and XLA knows the sharding itself.
    """

    layer_axes: tuple[int, ...] = ()  # that index layers: a norm for each index
    output_axes: tuple[int, ...] | None = None  # that count outputs; None: the last
    spec: jax.sharding.PartitionSpec | None = None  # mesh axes of every axis

    def stacked(self) -> "ArrayAxes":
        """Of such arrays stacked along a new first axis, which indexes layers."""
        outputs = self.output_axes
        spec = self.spec
        return ArrayAxes(
            (0, *(1 + axis for axis in self.layer_axes)),
            None if outputs is None else tuple(1 + axis for axis in outputs),
            None if spec is None else jax.sharding.PartitionSpec(None, *spec),
        )

    def mesh_axes(self, axis: int) -> tuple[str, ...]:
        """The names of the mesh axes that an array axis is divided over."""
        if self.spec is None or axis >= len(self.spec):
            return ()
        names = self.spec[axis]
        return () if names is None else names if isinstance(names, tuple) else (names,)

    def all_mesh_axes(self) -> tuple[str, ...]:
        """The names of all mesh axes that the array is divided over."""
        axes = range(len(self.spec or ()))
        return tuple(name for axis in axes for name in self.mesh_axes(axis))

    def layer_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The global lengths of the layer axes, from the shape of the local part."""
        whole = self.whole_shape(shape)
        return tuple(whole[axis] for axis in self.layer_axes)

    def whole_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The global shape, from that of the local part."""
        return tuple(
            n * _mesh_size(self.mesh_axes(axis)) for axis, n in enumerate(shape)
        )

    def whole(self, x: jax.Array) -> jax.Array:
        """The layers of the local part, each with all its elements, on every device."""
        if _is_explicit(x):
            return jax.sharding.reshard(x, jax.sharding.PartitionSpec())
        for axis in range(x.ndim):
            names = self.mesh_axes(axis)
            if names and axis not in self.layer_axes:
                x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
        return x

    def part(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """The inverse of `whole`: the elements that belong to the local part."""
        if _is_explicit(like):
            return jax.sharding.reshard(x, jax.typeof(like).sharding.spec)
        for axis in range(x.ndim):
            if axis not in self.layer_axes:
                x = self._own(x, axis, like.shape[axis], axis)
        return x

    def local(self, x: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Of values for all layers, those of the local part, of the given shape."""
        for position, axis in enumerate(self.layer_axes):
            x = self._own(x, axis, shape[axis], position)
        return x

    def _own(self, x: jax.Array, axis: int, length: int, position: int) -> jax.Array:
        """The device's piece of x, where the array's axis is at the given position."""
        names = self.mesh_axes(axis)
        if not names:
            return x
        start = jax.lax.axis_index(names) * length
        return jax.lax.dynamic_slice_in_dim(x, start, length, position)

    def expanded(self, x: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Values of the local layers, with length 1 along every other axis.

        Layer axes may be given in any order; those of the result are in the array's.
        """
        axes = self.layer_axes
        x = jnp.transpose(x, [axes.index(axis) for axis in sorted(axes)])
        return jnp.expand_dims(x, [i for i in range(len(shape)) if i not in axes])


def is_global(x: jax.Array) -> bool:
    """Whether an array is known not to be one of several parts inside `jax.shard_map`.

    With ``check_vma=False`` that is known of none: not even the number of a device is
    then said to differ between devices.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    types = [jax.typeof(jax.lax.axis_index(name)) for name in manual]
    return all(map(varying, types)) and not varying(jax.typeof(x))


def as_varying_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """The array, equal on all devices, in a type that says so as that of like does."""
    axes = tuple(sorted(varying(jax.typeof(x)) - varying(jax.typeof(like))))
    return jax.lax.pmax(x, axes) if axes else x


def may_be_divided(x: jax.Array) -> bool:
    """Whether XLA alone knows how the array lies on the devices.

    Arrays of a stack would all come out as one of them lies.
    """
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.AxisType.Auto in mesh.axis_types


def varying(of_type: Any) -> frozenset[str]:
    """The mesh axes that arrays of a type are known to vary over."""
    axes = getattr(of_type, "vma", None)  # JAX 0.10 has another name for it
    if axes is None:
        axes = getattr(getattr(of_type, "manual_axis_type", None), "varying", None)
    return frozenset(axes or ())


def spread(x: jax.Array, axes: ArrayAxes, shape: Sequence[int]) -> jax.Array:
    """Values of all layers, as an array that broadcasts against the local part."""
    return axes.expanded(axes.local(x, shape), shape) if axes.layer_axes else x


def of_all_layers(x: jax.Array, axes: ArrayAxes, shape: Sequence[int]) -> jax.Array:
    """Values of the local layers, not negative, as those of all layers everywhere."""
    group = Group((0,), axes, tuple(shape))
    return over_devices(jax.lax.pmax, [x[None]], [group])[0][0]


class Group(NamedTuple):
    """Arrays that are reduced together, stacked along a new first axis."""

    members: tuple[int, ...]  # positions of the arrays
    axes: ArrayAxes
    shape: tuple[int, ...]  # of one array, its local part

    def layer_size(self) -> int:
        """The number of elements of one layer, on all devices."""
        lengths = enumerate(self.axes.whole_shape(self.shape))
        return math.prod(n for axis, n in lengths if axis not in self.axes.layer_axes)

    def reduce(self, operation: Any, x: jax.Array) -> jax.Array:
        """Over all but the layers, whose axes come out in the order they are given."""
        axes = self.axes.layer_axes
        others = tuple(1 + axis for axis in range(x.ndim - 1) if axis not in axes)
        order = [1 + sorted(axes).index(axis) for axis in axes]
        return jnp.transpose(operation(x, axis=others), (0, *order))

    def local(self, x: jax.Array) -> jax.Array:
        """Of values for all layers, those of the local parts."""
        return jax.vmap(lambda x: self.axes.local(x, self.shape))(x)

    def expanded(self, x: jax.Array) -> jax.Array:
        """Values of the local layers, to broadcast against the stacked arrays."""
        return jax.vmap(lambda x: self.axes.expanded(x, self.shape))(x)


def groups_of(arrays: Sequence[jax.Array], axes: Sequence[ArrayAxes]) -> list[Group]:
    """Small arrays that are alike, in one group; every other array by itself."""
    groups: dict[Any, list[int]] = {}
    for i, (x, of_x) in enumerate(zip(arrays, axes, strict=True)):
        alike = (x.shape, x.dtype, of_x, jax.typeof(x).sharding)
        is_stacked = x.size <= SMALL and not may_be_divided(x)
        groups.setdefault(alike if is_stacked else i, []).append(i)
    return [Group(tuple(g), axes[g[0]], arrays[g[0]].shape) for g in groups.values()]


def in_order(values: Sequence[jax.Array], groups: Sequence[Group]) -> jax.Array:
    """One vector of the values of all layers of all groups, in the arrays' order."""
    dtype = max((x.dtype for x in values), key=lambda dtype: dtype.itemsize)
    vector = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in values])
    array_of = [
        np.repeat(group.members, math.prod(group.axes.layer_shape(group.shape)))
        for group in groups
    ]
    order = np.argsort(np.concatenate(array_of), kind="stable").astype(np.int32)
    return vector if (order == np.arange(len(order))).all() else vector[order]


def over_devices(
    collective: Any, values: Sequence[jax.Array], groups: Sequence[Group]
) -> list[jax.Array]:
    """From the values of the local parts, those of the global arrays.

    One collective, `jax.lax.psum` or `jax.lax.pmax`, for all arrays that are divided
    over the same mesh axes. An array [members, *local layers] for each group becomes
    one [members, *layers].
    """
    values = [_placed(x, group) for x, group in zip(values, groups, strict=True)]
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(group.axes.all_mesh_axes(), []).append(i)
    alike.pop((), None)
    for mesh_axes, numbers in alike.items():
        flat = jnp.concatenate([jnp.ravel(values[i]) for i in numbers])
        ends = np.cumsum([values[i].size for i in numbers])
        parts = jnp.split(collective(flat, mesh_axes), ends[:-1])
        for i, part in zip(numbers, parts, strict=True):
            values[i] = part.reshape(values[i].shape)
    return values


def _placed(x: jax.Array, group: Group) -> jax.Array:
    """The values of the local layers at their places among zeros for all layers."""
    if _is_explicit(x):
        return jax.sharding.reshard(x, jax.sharding.PartitionSpec())
    shape = group.axes.layer_shape(group.shape)
    if x.shape[1:] == shape:
        return x
    starts = [jnp.int32(0)]
    for axis in group.axes.layer_axes:
        names, length = group.axes.mesh_axes(axis), group.shape[axis]
        starts.append(jax.lax.axis_index(names) * length if names else jnp.int32(0))
    everywhere = jnp.zeros((x.shape[0], *shape), x.dtype)
    return jax.lax.dynamic_update_slice(everywhere, x, starts)


def _is_explicit(x: jax.Array) -> bool:
    """Whether the array is divided in a way that its type says."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def _mesh_size(names: tuple[str, ...]) -> int:
    """The number of devices along mesh axes; 1 outside of them, where all is global."""
    try:
        return math.prod(jax.lax.axis_size(name) for name in names)
    except NameError:
        return 1
