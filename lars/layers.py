"""What a layer is: which arrays, or slices of arrays, have one trust ratio together."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.bits import power_of_two
from lars.norms import accumulation_dtype
from lars.rules import (
    Mask,
    Selection,
    flat_mask,
    flatten_with_path,
    listed,
    path_string,
)
from lars.scaled import Scaled, normalized
from lars.sharded import ArrayAxes

KeyPath = tuple[Any, ...]
Layer = (
    Literal["parameter", "module"] | Callable[[KeyPath], Hashable] | Sequence[Selection]
)
Axes = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a vector with an element for each layer makes a tree of the parameters.

    Static and hashable: a state that holds one keeps its structure. A layout of no
    parameters equals every other, because `optax.tree.map_params` compares the state
    with one that was made for a placeholder of the parameters.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]  # of the layer axes of every parameter

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        if not self.shapes or not other.shapes:
            return True
        return self.shapes == other.shapes and self.treedef == other.treedef

    def __hash__(self) -> int:
        return hash(Layout)

    # A tree definition may hold objects that equal nothing but themselves (Equinox's
    # does): a copy is the layout itself, and a pickle remembers a tree of its form.
    def __copy__(self) -> "Layout":
        return self

    def __deepcopy__(self, memo: Any) -> "Layout":
        return self

    def __reduce__(self) -> Any:
        tree = self.treedef.unflatten(range(self.treedef.num_leaves))
        return _restored, (tree, self.shapes)

    @property
    def sizes(self) -> list[int]:
        """The number of slices of every parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def starts(self) -> list[int]:
        """Where every parameter begins in the vector."""
        return [0, *np.cumsum(self.sizes)[:-1].tolist()]

    @property
    def total(self) -> int:
        """The length of the vector."""
        return sum(self.sizes)

    def pieces(self, vector: jax.Array) -> list[jax.Array]:
        """The values of every parameter, in the shape of its layer axes.

        Axes in front of the vector's, as `jax.vmap` adds them, stay in front.
        """
        return [
            # A slice, where a vector of positions would be a gather.
            vector[..., start]
            if shape == ()
            else vector[..., start : start + size].reshape(*vector.shape[:-1], *shape)
            for start, size, shape in zip(
                self.starts, self.sizes, self.shapes, strict=True
            )
        ]

    def tree(self, vector: jax.Array) -> optax.Params:
        """The values in a tree of the parameters."""
        return self.treedef.unflatten(self.pieces(vector))

    def vector(self, values: Sequence[Any]) -> np.ndarray:
        """A static value for every parameter, repeated for each of its slices."""
        return np.repeat(np.asarray(values), self.sizes)


def _restored(tree: Any, shapes: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(jax.tree.structure(tree), shapes)


class Plan(NamedTuple):
    """What the rules say about every parameter, in the order of the leaves."""

    layout: Layout
    paths: list[str]
    splits: list[ArrayAxes]
    is_adapted: list[bool]
    is_decayed: list[bool]
    rates: list[int]  # which learning rate: 0 is the common one, then the rules'
    members: np.ndarray  # shape=(layers, most members): slices of each, or `total`
    layer_of: np.ndarray  # shape=(total,): the layer of each slice

    def joint(self, norms: Scaled) -> Scaled:
        """The norms of layers, from those of the slices they are made of."""
        if self.members.shape[1] == 1:
            return norms
        norms = normalized(norms)
        fraction = jnp.pad(norms.fraction, (0, 1))[self.members]
        lowest = jnp.int32(-(2**20))
        exponent = jnp.where(norms.fraction == 0, lowest, norms.exponent)
        exponent = jnp.pad(exponent, (0, 1), constant_values=lowest)[self.members]
        largest = jnp.max(exponent, axis=1)
        dtype = fraction.dtype
        fraction = fraction * power_of_two(exponent - largest[:, None], dtype)
        square = jnp.sum(fraction * fraction, axis=1)
        # The root has no derivative at zero, where the norm's subgradient is 0.
        root = jnp.sqrt(jnp.where(square == 0, 1, square))
        return Scaled(
            jnp.where(square == 0, 0, root), jnp.where(largest == lowest, 0, largest)
        )

    def slices(self, of_layers: jax.Array) -> jax.Array:
        """For slices, the values of the layers that they belong to."""
        return of_layers if self.members.shape[1] == 1 else of_layers[self.layer_of]


class Rules(NamedTuple):
    """The arguments that say which parameters, and what is a layer."""

    layer: Layer
    trust_ratio_mask: Mask
    weight_decay_mask: Mask
    learning_rates: Sequence[tuple[Selection, Any]]
    stacked: Sequence[tuple[Selection, Axes]]
    partition_specs: Any

    def check(self) -> None:
        """Refuses what no parameters could make right."""
        if not (
            callable(self.layer)
            or self.layer in ("parameter", "module")
            or _is_sequence_of(self.layer, callable)
        ):
            raise ValueError(
                "layer must be 'parameter', 'module', a function from a key path to a "
                f"label, or a sequence of selections, got {self.layer!r}."
            )
        for name in ("learning_rates", "stacked"):
            rules = getattr(self, name)
            if not _is_sequence_of(rules, _is_pair_of_rule):
                raise TypeError(
                    f"{name} must be a sequence of pairs, each of a selection (see "
                    f"lars.select) and its value, got {rules!r}."
                )
        for rule, axes in self.stacked:
            numbers = axes if isinstance(axes, tuple) else (axes,)
            if not numbers or any(type(axis) is not int for axis in numbers):
                raise TypeError(
                    f"stacked: {rule!r} must have the number of an axis, or a tuple of "
                    f"several, got {axes!r}."
                )

    def plan(self, params: optax.Params) -> Plan:
        """Applies the rules to parameters: arrays, or anything with shape and dtype.

        Raises:
            ValueError: for an empty tree, a rule that matches nothing, layers at the
                top of the tree that ``layer="module"`` would join, and whatever does
                not fit the parameters.
            TypeError: for parameters that are not real floating point.
        """
        named, treedef = flatten_with_path(params)
        key_paths = [path for path, _ in named]
        leaves = [leaf for _, leaf in named]
        paths = [path_string(path) for path in key_paths]
        _check_leaves(params, paths, leaves)
        shapes = [np.shape(leaf) for leaf in leaves]
        splits = [
            ArrayAxes(axes, spec=spec)
            for axes, spec in zip(
                self._layer_axes(params, paths, shapes),
                self._specs(treedef, paths, shapes),
                strict=True,
            )
        ]
        layout = Layout(
            treedef,
            tuple(
                split.layer_shape(shape)
                for split, shape in zip(splits, shapes, strict=True)
            ),
        )
        is_adapted = flat_mask("trust_ratio_mask", self.trust_ratio_mask, params)
        rates = [0] * len(leaves)
        for number, (rule, _) in reversed(list(enumerate(self.learning_rates, 1))):
            for i, chosen in enumerate(flat_mask("learning_rates", rule, params)):
                rates[i] = number if chosen else rates[i]
        labels = [
            label if adapted else ("excluded", path)
            for label, adapted, path in zip(
                self._labels(params, key_paths), is_adapted, paths, strict=True
            )
        ]
        members, layer_of = _members(labels, layout, paths)
        if self.layer == "module":
            ranks = [
                len(shape) - len(split.layer_axes)
                for shape, split in zip(shapes, splits, strict=True)
            ]
            _check_modules(key_paths, ranks, is_adapted)
        return Plan(
            layout,
            paths,
            splits,
            is_adapted,
            flat_mask("weight_decay_mask", self.weight_decay_mask, params),
            rates,
            members,
            layer_of,
        )

    def _labels(self, params: optax.Params, key_paths: list[KeyPath]) -> list[Hashable]:
        if self.layer == "parameter":
            return list(key_paths)
        if self.layer == "module":
            return [path[:-1] for path in key_paths]
        rules = self.layer
        if isinstance(rules, Selection):
            rules = (rules,)
        if callable(rules):
            return [_label(rules, path) for path in key_paths]
        labels: list[Hashable] = list(key_paths)
        for number, rule in reversed(list(enumerate(rules))):
            for i, chosen in enumerate(flat_mask("layer", rule, params)):
                labels[i] = number if chosen else labels[i]
        return labels

    def _layer_axes(self, params, paths, shapes) -> list[tuple[int, ...]]:
        axes: list[tuple[int, ...]] = [()] * len(paths)
        for rule, given in reversed(self.stacked):
            numbers = given if isinstance(given, tuple) else (given,)
            for i, chosen in enumerate(flat_mask("stacked", rule, params)):
                if not chosen:
                    continue
                rank = len(shapes[i])
                if any(not -rank <= n < rank for n in numbers):
                    raise ValueError(
                        f"stacked: {rule!r} gives axes {given!r} to {paths[i]!r}, "
                        f"whose shape is {shapes[i]}."
                    )
                axes[i] = tuple(n % rank for n in numbers)
                if len(set(axes[i])) < len(axes[i]):
                    raise ValueError(
                        f"stacked: {rule!r} names an axis of {paths[i]!r} twice in "
                        f"{given!r}."
                    )
        return axes

    def _specs(self, treedef, paths, shapes) -> list[Any]:
        if self.partition_specs is None:
            return [None] * len(paths)

        def is_spec(x: Any) -> bool:
            return isinstance(x, jax.sharding.PartitionSpec)

        specs, specs_treedef = jax.tree.flatten(self.partition_specs, is_leaf=is_spec)
        if is_spec(self.partition_specs):
            specs = [self.partition_specs] * len(paths)
        elif specs_treedef != treedef or not all(map(is_spec, specs)):
            raise ValueError(
                "partition_specs must be one PartitionSpec, or a tree of them like the "
                f"parameters, got {self.partition_specs!r}."
            )
        for spec, path, shape in zip(specs, paths, shapes, strict=True):
            if len(spec) > len(shape):
                raise ValueError(
                    f"partition_specs: {spec} has more axes than {path!r}, whose shape "
                    f"is {shape}."
                )
        return specs


def _check_leaves(params: optax.Params, paths: list[str], leaves: list[Any]) -> None:
    if not leaves and _is_empty(params):
        raise ValueError(
            f"params is an empty tree, {params!r}: there is nothing to optimize."
        )
    for path, leaf in zip(paths, leaves, strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "LARS needs real floating-point gradients and parameters, got "
                f"{dtype} at {path!r}: leave it to another optimizer with "
                "optax.masked or optax.partition."
            )


def _is_empty(tree: Any) -> bool:
    """Whether there is nothing but containers, not even what stands for masked ones."""

    def is_content(x: Any) -> bool:
        return hasattr(x, "_fields") or not isinstance(x, (dict, list, tuple))

    return not jax.tree.leaves(tree, is_leaf=is_content)


def _members(
    labels: Sequence[Hashable], layout: Layout, paths: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Which slices each layer is made of, and which layer each slice belongs to."""
    sharing: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        sharing.setdefault(label, []).append(i)
    layers: list[list[int]] = []
    layer_of = np.zeros(layout.total, np.int32)
    for parameters in sharing.values():
        first = parameters[0]
        for i in parameters:
            if layout.shapes[i] != layout.shapes[first]:
                raise ValueError(
                    f"{paths[first]!r} and {paths[i]!r} share a ratio, but are stacked "
                    f"differently: {layout.shapes[first]} and {layout.shapes[i]}. Give "
                    "both the same layer axes in stacked."
                )
        for offset in range(layout.sizes[first]):
            slices = [layout.starts[i] + offset for i in parameters]
            layer_of[slices] = len(layers)
            layers.append(slices)
    most = max(map(len, layers), default=1)
    members = np.full((len(layers), most), layout.total, np.int32)
    for i, slices in enumerate(layers):
        members[i, : len(slices)] = slices
    return members, layer_of


def _check_modules(
    key_paths: Sequence[KeyPath], ranks: Sequence[int], is_adapted: Sequence[bool]
) -> None:
    """Refuses to take the kernels of a tree that is not nested for one module."""
    joined = [
        repr(path_string(path))
        for path, rank, adapted in zip(key_paths, ranks, is_adapted, strict=True)
        if adapted and len(path) == 1 and rank > 1
    ]
    if len(joined) > 1:
        raise ValueError(
            f"layer='module' would give one ratio to {listed(joined)}, which lie at "
            "the top of the tree as if they were one module. Nest the parameters by "
            "module, as in {'first': {'kernel': ..., 'bias': ...}, ...}, or give "
            "layer='parameter', or a sequence of selections of what shares a ratio."
        )


def _label(label_of: Callable[[KeyPath], Hashable], path: KeyPath) -> Hashable:
    label = label_of(path)
    try:
        hash(label)
    except TypeError as error:
        raise TypeError(
            f"layer: the label of {path_string(path)!r} must be hashable, such as a "
            f"string or a tuple, got {label!r}."
        ) from error
    return label


def _is_sequence_of(x: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(x, (list, tuple)) and all(map(holds, x))


def _is_pair_of_rule(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and callable(x[0])


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """The array in the dtype that steps are computed in, float32 or wider."""
    x = jnp.asarray(x)
    return x.astype(accumulation_dtype(x.dtype))
