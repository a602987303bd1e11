"""What a layer is: which arrays, or slices of arrays, have one trust ratio together."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.rules import (
    Mask,
    Selection,
    flat_mask,
    flatten_with_path,
    listed,
    path_string,
)
from lars.sharded import ArrayAxes, is_global

KeyPath = tuple[Any, ...]
Layer = (
    Literal["parameter", "module"] | Callable[[KeyPath], Hashable] | Sequence[Selection]
)
Axes = int | tuple[int, ...]
AxesRules = Sequence[tuple[Selection, Axes]]


class LayerMap(NamedTuple):
    """The results of the rules for every parameter, in the order of the leaves.

    A parameter is made of slices: one, or one for each index along its layer axes.
    Numbers for slices, such as norms, lie in vectors in the order of the parameters.
    """

    treedef: Any
    paths: list[str]
    axes: list[ArrayAxes]
    shapes: list[tuple[int, ...]]  # of the layer axes of every parameter
    is_adapted: list[bool]
    is_decayed: list[bool]
    members: np.ndarray  # shape=(layers, most members): slices of each, or the total
    layer_of: np.ndarray  # shape=(slices,): the layer of each slice

    @property
    def sizes(self) -> list[int]:
        """The number of slices of every parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def total(self) -> int:
        """The number of all slices."""
        return sum(self.sizes)

    def repeat(self, values: Sequence[Any]) -> np.ndarray:
        """A static value for every parameter, as a vector over its slices."""
        return np.repeat(np.asarray(values), self.sizes)


class LayerRules(NamedTuple):
    """The arguments that choose parameters and make layers of them."""

    layer: Layer = "parameter"
    trust_ratio_mask: Mask = True
    weight_decay_mask: Mask = True
    stacked: AxesRules = ()
    output_axes: AxesRules = ()
    partition_specs: Any = None

    def check(self) -> "LayerRules":
        """Refuses rules that are wrong for all parameters; else returns them.

        Raises:
            ValueError: for a layer of none of its kinds.
            TypeError: for axes that are not pairs of a selection and axes.
        """
        layer = self.layer
        is_named = isinstance(layer, str) and layer in ("parameter", "module")
        if not (is_named or callable(layer) or _is_sequence_of(layer, callable)):
            raise ValueError(
                "layer must be 'parameter', 'module', a function from a key path to a "
                f"label, or a sequence of selections, got {layer!r}."
            )
        check_axes_rules("stacked", self.stacked)
        check_axes_rules("output_axes", self.output_axes)
        return self

    def layer_map(self, params: optax.Params) -> LayerMap:
        """Applies the rules to parameters: arrays, or anything with shape and dtype.

        Raises:
            ValueError: for an empty tree, a rule that matches nothing, layers at the
                top of the tree that ``layer="module"`` would join, and rules that do
                not fit the parameters.
            TypeError: for parameters that are not floating point or complex.
        """
        named, treedef = flatten_with_path(params)
        paths = [path_string(path) for path, _ in named]
        leaves = [leaf for _, leaf in named]
        check_leaves(params, paths, leaves)
        axes = array_axes(params, self.stacked, self.output_axes, self.partition_specs)
        shapes = list(map(ArrayAxes.layer_shape, axes, map(np.shape, leaves)))
        is_adapted = flat_mask("trust_ratio_mask", self.trust_ratio_mask, params)
        labels = self._labels(params)
        for i, path in enumerate(paths):
            if not is_adapted[i]:
                labels[i] = ("excluded", path)
        if self.layer == "module":
            ranks = [np.ndim(x) - len(y) for x, y in zip(leaves, shapes, strict=True)]
            _check_modules(paths, labels, ranks)
        return LayerMap(
            treedef,
            paths,
            axes,
            shapes,
            is_adapted,
            flat_mask("weight_decay_mask", self.weight_decay_mask, params),
            *_members(labels, shapes, paths),
        )

    def _labels(self, params: optax.Params) -> list[Hashable]:
        """A label for every parameter. Parameters of one layer have the same label."""
        key_paths = [path for path, _ in flatten_with_path(params)[0]]
        rules = [self.layer] if isinstance(self.layer, Selection) else self.layer
        if callable(rules):
            return list(map(rules, key_paths))
        if isinstance(rules, str):
            return [path[:-1] if rules == "module" else path for path in key_paths]
        labels: list[Hashable] = list(key_paths)
        for number, rule in reversed(list(enumerate(rules))):
            for i, chosen in enumerate(flat_mask("layer", rule, params)):
                labels[i] = number if chosen else labels[i]
        return labels


def array_axes(
    params: optax.Params,
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
    partition_specs: Any = None,
) -> list[ArrayAxes]:
    """The meaning of the axes of every parameter, in the order of the leaves.

    The arguments are those of :func:`lars.lars`.

    Raises:
        ValueError: for axes or specs that do not fit the parameters, and inside of
            `jax.shard_map` without specs.
    """
    specs = _specs(params, partition_specs)
    axes = selected_axes(params, stacked, output_axes)
    return [ArrayAxes(*pair, spec) for pair, spec in zip(axes, specs, strict=True)]


def selected_axes(
    params: optax.Params, stacked: AxesRules, output_axes: AxesRules
) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """The axes of every parameter that index layers, and that count outputs.

    Raises:
        ValueError: for axes that a parameter does not have, that are named twice, or
            that are both.
    """
    layers = _chosen_axes("stacked", stacked, params)
    outputs = _chosen_axes("output_axes", output_axes, params)
    named, _ = flatten_with_path(params)
    for (path, _), of_layers, of_outputs in zip(named, layers, outputs, strict=True):
        if set(of_layers or ()) & set(of_outputs or ()):
            raise ValueError(
                f"output_axes gives {path_string(path)!r} the axes {of_outputs}, of "
                f"which some index layers: stacked gives it {of_layers}."
            )
    return [(x or (), y) for x, y in zip(layers, outputs, strict=True)]


def check_axes_rules(name: str, rules: Any) -> None:
    """Refuses rules that are not pairs of a selection and the numbers of axes.

    Raises:
        TypeError: with the argument's name and its value.
    """
    if not _is_sequence_of(rules, _is_pair_of_rule):
        raise TypeError(
            f"{name} must be a sequence of pairs, each of a selection (see "
            f"lars.select) and its value, got {rules!r}."
        )
    for rule, axes in rules:
        numbers = _as_tuple(axes)
        lacks_axes = name == "stacked" and not numbers
        if lacks_axes or any(type(axis) is not int for axis in numbers):
            raise TypeError(
                f"{name}: {rule!r} must have the number of an axis, or a tuple of "
                f"several, got {axes!r}."
            )


def _chosen_axes(
    name: str, rules: AxesRules, params: optax.Params
) -> list[tuple[int, ...] | None]:
    """The axes that the first of the rules gives to each parameter; None without."""
    named, _ = flatten_with_path(params)
    axes: list[tuple[int, ...] | None] = [None] * len(named)
    for rule, given in reversed(rules):
        numbers = _as_tuple(given)
        for i, chosen in enumerate(flat_mask(name, rule, params)):
            if not chosen:
                continue
            path, shape = path_string(named[i][0]), np.shape(named[i][1])
            rank = len(shape)
            if any(not -rank <= n < rank for n in numbers):
                raise ValueError(
                    f"{name}: {rule!r} gives axes {given!r} to {path!r}, whose shape "
                    f"is {shape}."
                )
            axes[i] = positive = tuple(n % rank for n in numbers)
            if len(set(positive)) < len(positive):
                raise ValueError(
                    f"{name}: {rule!r} names an axis of {path!r} twice in {given!r}."
                )
    return axes


def _specs(params: optax.Params, partition_specs: Any) -> list[Any]:
    """The partition spec of every parameter; None without."""
    named, treedef = flatten_with_path(params)
    if partition_specs is None:
        for path, leaf in named:
            # The norms of a local part would be wrong, and nothing would show it.
            if isinstance(leaf, jax.Array) and not is_global(leaf):
                raise ValueError(
                    f"{path_string(path)!r} may be the local part of an array, inside "
                    "jax.shard_map: give partition_specs, the PartitionSpec of each "
                    "parameter; PartitionSpec() says that every device has all of it."
                )
        return [None] * len(named)

    def is_spec(x: Any) -> bool:
        return isinstance(x, jax.sharding.PartitionSpec)

    specs, specs_treedef = jax.tree.flatten(partition_specs, is_leaf=is_spec)
    if is_spec(partition_specs):
        specs = [partition_specs] * len(named)
    elif specs_treedef != treedef or not all(map(is_spec, specs)):
        raise ValueError(
            "partition_specs must be one PartitionSpec, or a tree of them like the "
            f"parameters, got {partition_specs!r}."
        )
    manual = jax.sharding.get_abstract_mesh().manual_axes
    for spec, (path, leaf) in zip(specs, named, strict=True):
        unknown = {*ArrayAxes(spec=spec).all_mesh_axes()} - {*manual}
        if manual and unknown:
            raise ValueError(
                f"partition_specs: {spec} of {path_string(path)!r} names the mesh axes "
                f"{sorted(unknown)}; those of the surrounding jax.shard_map are "
                f"{sorted(manual)}."
            )
        if len(spec) > np.ndim(leaf):
            raise ValueError(
                f"partition_specs: {spec} has more axes than {path_string(path)!r}, "
                f"whose shape is {np.shape(leaf)}."
            )
    return specs


def check_leaves(params: optax.Params, paths: list[str], leaves: list[Any]) -> None:
    """Refuses parameters that no optimizer can step.

    Raises:
        ValueError: for a tree of nothing but containers.
        TypeError: for an array that is neither floating point nor complex.
    """

    def is_content(x: Any) -> bool:
        return hasattr(x, "_fields") or not isinstance(x, (dict, list, tuple))

    # `optax.MaskedNode` has no leaves, but stands for parameters.
    if not leaves and not jax.tree.leaves(params, is_leaf=is_content):
        raise ValueError(
            f"params is an empty tree, {params!r}: there is nothing to optimize."
        )
    for path, leaf in zip(paths, leaves, strict=True):
        _check_inexact(
            leaf,
            f"at {path!r}: leave it to another optimizer with optax.masked or "
            "optax.partition",
        )


def check_alike(updates: optax.Updates, params: optax.Params) -> None:
    """Refuses gradients that are not those of the parameters.

    Raises:
        ValueError: for another tree or another shape.
        TypeError: for a dtype that the parameter cannot take.
    """
    structures = [jax.tree.structure(tree) for tree in (updates, params)]
    if structures[0] != structures[1]:
        raise ValueError(
            "the gradients are not a tree like the parameters: "
            f"{structures[0]} and {structures[1]}."
        )
    for (key_path, param), gradient in zip(
        flatten_with_path(params)[0], jax.tree.leaves(updates), strict=True
    ):
        path = path_string(key_path)
        if np.shape(gradient) != np.shape(param):
            raise ValueError(
                f"the gradient of {path!r} has shape {np.shape(gradient)}, the "
                f"parameter {np.shape(param)}."
            )
        _check_inexact(gradient, f"for the gradient of {path!r}")
        if jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(param):
            raise TypeError(
                f"the gradient of {path!r} is complex, {jnp.result_type(gradient)}, "
                f"and the parameter {jnp.result_type(param)}: take the real part first."
            )


def _check_inexact(x: Any, place: str) -> None:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"LARS needs floating-point gradients and parameters, got {dtype} {place}."
        )


def _members(
    labels: Sequence[Hashable],
    shapes: Sequence[tuple[int, ...]],
    paths: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Which slices each layer is made of, and which layer each slice belongs to."""
    sharing: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        try:
            sharing.setdefault(label, []).append(i)
        except TypeError as error:
            raise TypeError(
                f"layer: the label of {paths[i]!r} must be hashable, such as a string "
                f"or a tuple, got {label!r}."
            ) from error
    for first, *others in sharing.values():
        for i in others:
            if shapes[i] != shapes[first]:
                raise ValueError(
                    f"{paths[first]!r} and {paths[i]!r} share a ratio, but are stacked "
                    f"differently: {shapes[first]} and {shapes[i]}. Give both the same "
                    "layer axes in stacked."
                )
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int)
    total = int(ends[-1]) if len(ends) else 0
    slices_of = np.split(np.arange(total), ends[:-1])
    layers = [
        list(slices)
        for parameters in sharing.values()
        for slices in zip(*(slices_of[i] for i in parameters), strict=True)
    ]
    most = max(map(len, layers), default=1)
    members = np.full((len(layers), most), total, np.int32)
    layer_of = np.zeros(total, np.int32)
    for number, slices in enumerate(layers):
        members[number, : len(slices)] = slices
        layer_of[slices] = number
    return members, layer_of


def _check_modules(
    paths: Sequence[str], labels: Sequence[Hashable], ranks: Sequence[int]
) -> None:
    """Refuses to take the kernels of a tree that is not nested for one module."""
    named = zip(map(repr, paths), labels, ranks, strict=True)
    joined = [path for path, label, rank in named if label == () and rank > 1]
    if len(joined) > 1:
        raise ValueError(
            f"layer='module' would give one ratio to {listed(joined)}, which lie at "
            "the top of the tree as if they were one module. Nest the parameters by "
            "module, as in {'first': {'kernel': ..., 'bias': ...}, ...}, or give "
            "layer='parameter', or a sequence of selections of what shares a ratio."
        )


def _as_tuple(axes: Axes) -> tuple[int, ...]:
    return axes if isinstance(axes, tuple) else (axes,)


def _is_sequence_of(x: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(x, (list, tuple)) and all(map(holds, x))


def _is_pair_of_rule(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and callable(x[0])
