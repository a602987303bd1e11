"""The state of LARS, and how to read ratios and skipped steps from it."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.layers import LayerMap
from lars.options import Options
from lars.rules import path_string


class LarsState(NamedTuple):
    """State of `lars` and `scale_by_lars`: arrays alone.

    Ratios are in one vector: to hand over thousands of scalars would take longer than
    a step takes.
    """

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # the momentum buffer, like the parameters; () without one
    trust_ratio: jax.Array  # shape=(ratios,), float32: of the last step
    skipped_steps: jax.Array  # shape=(ratios,), int32
    parameters: Any  # like the parameters, of `marker`s: whose ratios these are


Marker = tuple[dict[str, tuple[()]] | tuple[()]]


def marker(shape: Sequence[int]) -> Marker:
    """Stands for a parameter in a state, and says how many ratios it has.

    It holds no array. ``((),)`` is a parameter of one ratio, ``({"3,4": ()},)`` one
    with layer axes of the lengths 3 and 4. All libraries can save these containers, and
    they cost least: a step hands over thousands.
    """
    return ({",".join(map(str, shape)): ()} if shape else (),)


def is_marker(x: Any) -> bool:
    """Whether it is a `marker`."""
    if type(x) is not tuple or len(x) != 1:
        return False
    content = x[0]
    if type(content) is dict and len(content) == 1:
        ((lengths, content),) = content.items()
        if not re.fullmatch(r"\d+(,\d+)*", str(lengths)):
            return False
    return type(content) is tuple and not content


def shape_of(x: Marker) -> tuple[int, ...]:
    """The lengths of the layer axes of a marker's parameter."""
    return tuple(int(n) for key in x[0] for n in key.split(","))


def initial_state(o: Options, layers: LayerMap, params: optax.Params) -> LarsState:
    """The state before the first step."""
    ratios = max(1, layers.total)  # Orbax saves no empty arrays
    trace = jax.tree.map(lambda x: jnp.zeros_like(x, _of_momentum(o, x)), params)
    return LarsState(
        count=jnp.zeros((), jnp.int32),
        trace=trace if o.has_momentum else (),
        trust_ratio=jnp.zeros(ratios, jnp.float32),
        skipped_steps=jnp.zeros(ratios, jnp.int32),
        parameters=_parameters(layers, params),
    )


def _of_momentum(o: Options, x: Any) -> Any:
    """The dtype of a parameter's momentum, complex for a complex one."""
    dtype = jnp.result_type(x)
    if o.accumulator_dtype is None:
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        with jax.numpy_dtype_promotion("standard"):
            return jnp.promote_types(o.accumulator_dtype, jnp.complex64)
    return o.accumulator_dtype


def check_state(o: Options, layers: LayerMap, state: Any, params: optax.Params) -> None:
    """Refuses a state of another optimizer or of other parameters.

    Raises:
        TypeError: for the state of another optimizer.
        ValueError: for one of other parameters or options, with the difference.
    """
    if not isinstance(state, LarsState):
        raise TypeError(
            "the state is of another optimizer, such as optax.lars, or of a chain "
            f"around this one: got {type(state).__name__}, need LarsState. Make a new "
            "one with init(params)."
        )
    new = jax.eval_shape(lambda: initial_state(o, layers, params))
    check_same_shapes(state, new, ("parameters", "trace"))


def check_same_shapes(state: Any, new: Any, fields: Sequence[str]) -> None:
    """Refuses a state whose fields are not trees like those of a new one.

    Raises:
        ValueError: with the first difference.
    """
    for field in fields:
        difference = _difference(getattr(state, field), getattr(new, field))
        if difference:
            raise ValueError(
                "the state is of other parameters, momentum or stacking: its "
                f"{field} {difference}. Make a new one with init(params)."
            )


def trust_ratios(opt_state: optax.OptState) -> optax.Params:
    """Returns the trust ratio of every parameter in the last step.

    Args:
        opt_state: the state of :func:`lars.lars`, or of any optimizer around it
            (``optax.chain``, ``inject_hyperparams``, ``MultiSteps``, ``masked``,
            ``partition``).

    Returns:
        A tree like the parameters, with a float32 scalar for each: the ratio of its
        layer, 1 where ``trust_ratio_mask`` excludes it, 0 before the first step and
        where a step was skipped. A stacked parameter has an array of them, in the shape
        of its layer axes. A parameter that LARS does not own has `optax.MaskedNode()`.

    Raises:
        ValueError: if there is no LARS in the state, or more than one for a parameter.
    """
    return _tree_of(opt_state, "trust_ratio", "trust_ratios")


def skipped_steps(opt_state: optax.OptState) -> optax.Params:
    """Returns in how many steps each parameter was left out as not finite.

    Args:
        opt_state: as for :func:`lars.trust_ratios`.

    Returns:
        A tree as that of :func:`lars.trust_ratios`, of int32: the number of steps in
        which the gradient or the parameters of the layer held infinities or NaN.

    Raises:
        ValueError: as for :func:`lars.trust_ratios`.
    """
    return _tree_of(opt_state, "skipped_steps", "skipped_steps")


def pieces(vector: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """A vector over slices as an array for every parameter, of the given shapes.

    Axes in front of the vector's, as `jax.vmap` adds them, stay in front.
    """
    found, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        if shape == ():  # a slice, where positions in an array would be a gather
            found.append(vector[..., start])
        else:
            found.append(vector[..., start:end].reshape(*vector.shape[:-1], *shape))
        start = end
    return found


def _parameters(layers: LayerMap, params: optax.Params) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    is_nothing = params is None or isinstance(params, optax.MaskedNode)
    if not leaves and treedef.num_nodes == 1 and not is_nothing:
        # `optax.tree.map_params` asks with one object in the place of parameters, and
        # maps all that a state has at its places. An array here keeps markers out.
        return np.zeros(0, np.float32)
    if len(jax.tree.leaves(params, is_leaf=is_marker)) > len(leaves):
        raise ValueError(
            "params has an empty place of the form ((),) or ({'3': ()},), which stands "
            f"for a parameter in the state, got {treedef}. Write (), or leave it out."
        )
    return treedef.unflatten(map(marker, layers.shapes))


def _difference(old: Any, new: Any) -> str:
    """The first difference between two trees, in words; "" for none."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_marker)
        return {
            path_string(path): shape_of(x) if is_marker(x) else np.shape(x)
            for path, x in named
        }

    has, needs = shapes(old), shapes(new)
    for path in has | needs:
        if path not in has:
            return f"lacks {path!r}"
        if path not in needs:
            return f"has in addition {path!r}"
        if has[path] != needs[path]:
            return (
                f"has the shape {has[path]} of {path!r}, where {needs[path]} is needed"
            )
    is_like, should_be = jax.tree.structure(old), jax.tree.structure(new)
    return "" if is_like == should_be else f"is {is_like}, where {should_be} is needed"


def _tree_of(opt_state: optax.OptState, field: str, function: str) -> optax.Params:
    def is_state(x: Any) -> bool:
        return isinstance(x, LarsState)

    found = []
    for state in filter(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)):
        markers, treedef = jax.tree.flatten(state.parameters, is_leaf=is_marker)
        shapes = [shape_of(x) for x in markers]
        found.append(treedef.unflatten(pieces(getattr(state, field), shapes)))
    if not found:
        raise ValueError(
            f"opt_state holds no LARS: {function} needs the state of lars.lars or of "
            f"an optimizer around it, got {type(opt_state).__name__}."
        )
    return functools.reduce(_merge, found)


def _merge(one: Any, other: Any) -> Any:
    """Joins two trees, each with the parameters that are masked in the other."""
    if isinstance(one, optax.MaskedNode):
        return other
    if isinstance(other, optax.MaskedNode):
        return one
    # One level at a time, because a mask may stand for a whole subtree.
    children, treedef = jax.tree.flatten(one, is_leaf=lambda x: x is not one)
    if treedef.num_leaves == 0:  # None, or an empty container
        return one
    if jax.tree_util.treedef_is_leaf(treedef):
        raise ValueError(
            "Two LARS transformations own the same parameter: pass the state of one of "
            "them."
        )
    others = treedef.flatten_up_to(other)
    return treedef.unflatten(map(_merge, children, others))
