r"""Waking networks whose layers no signal reaches, around any optimizer.

Where an activation, a gradient or the loss has left the range of float32, or what it
says the digits, no optimizer has anything to go by: a gradient of zero has no
direction, one of NaN or of rounding neither. The scale of the weights is then what can
be mended.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.kernels import (
    biases_of,
    by_constant_input,
    can_tell_constant_input,
    kernels_of,
    preserving_norm,
)
from lars.layers import widen
from lars.norms import Split, unit
from lars.optimizer import check_number
from lars.rules import flatten_with_path, path_string
from lars.scaled import Scaled, ratio, scaled, value, where

HEARD = 2.0**-12
"""Half of the digits of float32: the part of a kernel's gradient that must differ from
what a constant input would have made, and what a kernel must be able to do to the loss
beside another one."""

LARGEST_FACTOR = 16.0
"""By how much a kernel is multiplied at most, in a step."""

MOST_LEVELS = 8
"""By how many half octaves the aim moves at most, up or down: by a factor of 16."""

SHUT = 2.0**-6
"""A scale of a normalization all of whose elements are smaller lets nothing through
that could be heard; one that starts at zero is larger after a few steps."""

AWAKE = 10
"""Steps with a signal, in a row, after which a network is awake, for good."""

UNUSUAL = 2.0
"""Octaves by which the sizes of most kernels are off, where sizes are to blame."""

ABSURD = 12.0
"""Octaves by which that of one kernel is off, where it is to blame for all others."""

REASONS = ("not finite", "no gradient", "constant input", "lost in rounding")
"""What `WakingState.reasons` counts, in this order."""


class Place(NamedTuple):
    """Where a network has been, and can be given back to."""

    # shape=(), int32: kernels without a gradient; more than there are if not finite
    silent_kernels: jax.Array
    norms: Scaled  # shape=(kernels,)
    biases: tuple[jax.Array, ...]  # of the kernels that have one


class WakingState(NamedTuple):
    """State of `wake_silent_layers`."""

    inner_state: optax.OptState
    silent_steps: jax.Array  # shape=(), int32: how many there have been in a row
    signal_steps: jax.Array  # shape=(), int32: likewise with a signal, up to `AWAKE`
    level: jax.Array  # shape=(), int32: by how many half octaves the aim has moved
    reasons: jax.Array  # shape=(4,), int32: moves by their reason, see `REASONS`
    given_up: jax.Array  # shape=(4,), bool: reasons for which nothing is done any more
    moving_for: jax.Array  # shape=(4,), bool: why the network is being moved, if it is
    has_just_moved: jax.Array  # shape=(), bool
    best: Place  # where most kernels had a gradient since it has been moved


def wake_silent_layers(
    inner: optax.GradientTransformation,
    *,
    patience: int = 3,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DOC"""
    check_number("patience", patience)
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience!r}.")
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WakingState:
        _check_params(params)
        zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros(len(REASONS), jnp.bool)
        kernels = len(kernels_of(params))
        return WakingState(
            inner.init(params),
            silent_steps=zero,
            signal_steps=zero,
            level=zero,
            reasons=jnp.zeros(len(REASONS), jnp.int32),
            given_up=nothing,
            moving_for=nothing,
            has_just_moved=jnp.zeros((), jnp.bool),
            best=Place(
                silent_kernels=zero,
                norms=Scaled(
                    jnp.zeros(kernels, _widest(params)), jnp.zeros(kernels, jnp.int32)
                ),
                biases=tuple(jnp.zeros_like(x) for x in _biases(params)),
            ),
        )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WakingState]:
        if params is None:
            raise ValueError(
                "wake_silent_layers needs the parameters: call "
                "update(gradients, state, params)."
            )
        _check_params(params)
        _check_gradients(updates, params)
        _check_state(state, params)
        splits = _splits(partition_specs, params)
        plan = _decide(updates, state, params, splits, patience)

        def step() -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state.inner_state, params, **extra_args)

        def move() -> tuple[optax.Updates, optax.OptState]:
            moves = _moved(params, plan.factors, plan.is_given_back, state.best.biases)
            return moves, _forgotten(inner, state.inner_state, params)

        is_moved = plan.is_moved | plan.is_given_back
        new_updates, inner_state = jax.lax.cond(is_moved, *_alike(move, step))
        return new_updates, plan.state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Plan(NamedTuple):
    """What is done in a step."""

    is_moved: jax.Array  # shape=(), bool: towards the aim
    is_given_back: jax.Array  # shape=(), bool
    factors: jax.Array  # shape=(kernels,): of kernels, where one of the two is true
    state: WakingState  # after it, but for that of the inner optimizer


def _decide(
    gradients: optax.Updates,
    state: WakingState,
    params: optax.Params,
    splits: list[Split],
    patience: int,
) -> _Plan:
    """Whether a network is moved or given back, and by what."""
    is_awake = state.signal_steps >= AWAKE
    # What is awake is not looked at any more, which costs nothing.
    seen = jax.lax.cond(
        is_awake,
        lambda: jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(lambda: _look(gradients, params, splits)),
        ),
        lambda: _look(gradients, params, splits),
    )
    given_up = state.given_up.at[1:].set(state.given_up[1:] | seen.is_shut)
    # The first reason that holds is the reason.
    reasons = seen.reasons & ~given_up
    reasons &= jnp.cumsum(reasons) == 1
    is_infinite, is_silent = reasons[0], reasons.any()
    silent_steps = jnp.where(
        is_infinite, state.silent_steps, jnp.where(is_silent, state.silent_steps + 1, 0)
    )
    signal_steps = jnp.where(is_silent, 0, jnp.minimum(state.signal_steps + 1, AWAKE))
    is_called = is_infinite | (silent_steps >= patience)

    is_moving = state.moving_for.any()
    is_better = seen.silent_kernels < state.best.silent_kernels
    is_worse = state.has_just_moved & (seen.silent_kernels > state.best.silent_kernels)
    here = Place(
        seen.silent_kernels, seen.norms, tuple(map(jnp.asarray, _biases(params)))
    )
    best = jax.tree.map(
        lambda x, y: jnp.where(is_moving & ~is_better, x, y), state.best, here
    )
    aims = _aims(params, splits, seen.norms.fraction.dtype)
    relative, level = _relative_norms(seen.norms, aims, state.level, is_infinite)
    all_tried = is_called & (jnp.abs(level) > MOST_LEVELS)
    is_given_back = is_worse | (all_tried & is_moving)
    is_moved = is_called & ~all_tried & ~is_worse
    # What nothing was tried for has nothing to be given back.
    is_over = is_worse | all_tried
    given_up = jnp.where(is_over, given_up | reasons | state.moving_for, given_up)
    upper = jnp.where(is_infinite, 1.0, LARGEST_FACTOR)
    towards = jnp.clip(1 / relative, 1 / LARGEST_FACTOR, upper)
    is_zero = seen.norms.fraction == 0
    back = value(ratio(best.norms, where(is_zero, scaled(1.0, aims.dtype), seen.norms)))
    back = jnp.where(is_zero, 1, back)
    return _Plan(
        is_moved,
        is_given_back,
        jnp.where(is_given_back, back, towards.astype(aims.dtype)),
        state._replace(
            silent_steps=jnp.where(is_over, 0, silent_steps),
            signal_steps=signal_steps,
            level=jnp.where(is_over, 0, jnp.where(is_called, level, state.level)),
            reasons=state.reasons + (is_moved & reasons).astype(jnp.int32),
            given_up=given_up,
            moving_for=jnp.where(
                is_moved, reasons, state.moving_for & is_silent & ~is_over
            ),
            has_just_moved=is_moved,
            best=best,
        ),
    )


class _Seen(NamedTuple):
    """What the gradients of a step say of a network."""

    reasons: jax.Array  # shape=(4,), bool: which of them hold
    is_shut: jax.Array  # shape=(), bool: something else than a scale may be to blame
    silent_kernels: jax.Array  # as in `Place`
    norms: Scaled


def silence(gradients: optax.Updates, params: optax.Params) -> jax.Array:
    """Whether a network is silent, and why.

    Args:
        gradients: of one step.
        params: what they are of.

    Returns:
        Booleans of shape [4], of which one at most is true: see `REASONS` and
        `wake_silent_layers`.
    """
    seen = _look(gradients, params, _splits(None, params))
    reasons = seen.reasons.at[1:].set(seen.reasons[1:] & ~seen.is_shut)
    return reasons & (jnp.cumsum(reasons) == 1)


def _look(gradients: optax.Updates, params: optax.Params, splits: list[Split]) -> _Seen:
    g, w = (
        [
            widen(split.whole(jnp.asarray(x)))
            for x, split in zip(jax.tree.leaves(tree), splits, strict=True)
        ]
        for tree in (gradients, params)
    )
    kernels, biases = kernels_of(params), biases_of(params)
    norms = _stacked([unit(w[i])[1] for i in kernels], _widest(params))
    log_w = _log2(norms)
    log_g = jnp.stack([_log2_norm(g[i]) for i in kernels])
    off = jnp.stack(
        [_octaves_off(w[i], w[biases[i]] if i in biases else None) for i in kernels]
    )
    is_zero = jnp.stack([(x == 0).all() for x in g])
    zero_kernels = is_zero[np.asarray(kernels)]
    can_be_told = ~zero_kernels & jnp.stack(
        [
            can_tell_constant_input(g[biases[i]]) if i in biases else jnp.bool(False)
            for i in kernels
        ]
    )
    heard = jnp.stack(
        [_heard(g[i], g[biases[i]]) if i in biases else jnp.float32(1) for i in kernels]
    )
    effects = log_g + log_w
    has_tiny_input = jnp.stack(
        [jnp.bool(False)]
        + [_has_tiny_input(g[i], g[bias]) for i, bias in biases.items()]
    ).any()
    are_off = jnp.sort(off)[(len(kernels) - 1) // 2] >= UNUSUAL  # of most kernels
    is_one_off = off.max() >= ABSURD
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in g]).all()
    # What is not finite itself, no factor mends.
    can_be_moved = jnp.isfinite(norms.fraction).all()
    reasons = jnp.stack(
        [
            ~is_finite,
            zero_kernels.any()
            & ~is_zero.all()
            & (are_off | (is_one_off & zero_kernels.all())),
            (can_be_told & (heard <= HEARD)).any()
            & (can_be_told & (heard > HEARD)).any(),
            (_is_drowned(effects) & are_off)
            | (has_tiny_input & (are_off | is_one_off)),
        ]
    )
    silent = jnp.where(is_finite, zero_kernels.sum(), len(kernels) + 1)
    seen = _Seen(
        reasons & can_be_moved, _is_shut(params, w), silent.astype(jnp.int32), norms
    )
    return _everywhere(seen, splits)


def _everywhere(seen: _Seen, splits: list[Split]) -> _Seen:
    """The same on all devices that have parts of parameters."""
    names = tuple({name: None for split in splits for name in split.all_mesh_axes()})
    if not names:
        return seen
    return jax.tree.map(
        lambda x: jax.lax.pmax(
            x.astype(jnp.int32) if x.dtype == jnp.bool else x, names
        ).astype(x.dtype),
        seen,
    )


def _is_shut(params: optax.Params, w: list[jax.Array]) -> jax.Array:
    """Whether something else than a kernel's scale keeps signals back.

    A kernel of zero, which has no scale that could be moved, or the scale of a
    normalization: what is behind them is silent until an optimizer has moved them.
    """
    flags = [
        (x == 0).all() if x.ndim >= 2 else (jnp.abs(x) < SHUT).all()
        for (path, _), x in zip(flatten_with_path(params)[0], w, strict=True)
        if x.ndim >= 2 or path_string(path[-1:]) == "scale"
    ]
    return jnp.stack(flags).any()


def _octaves_off(kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """How far the size of a kernel, or of its bias, is from all that are usual.

    Which axes count inputs is not known for sure: of attention heads, of layers that
    are stacked, of an embedding. Usual is what any choice of them would make.
    """
    outputs = min(kernel.shape)
    log_w = _log2_norm(kernel)
    least = math.log2(2 * outputs) / 2
    most = math.log2(2 * kernel.size / outputs) / 2
    off = jnp.maximum(least - log_w, log_w - most)
    if bias is not None:
        off = jnp.maximum(off, _log2_norm(bias) - math.log2(bias.size) / 2)
    return jnp.maximum(off, 0)


def _is_drowned(effects: jax.Array) -> jax.Array:
    """Whether half the digits of one kernel do more to the loss than all of another."""
    return effects.min() < effects.max() + math.log2(HEARD)


def _has_tiny_input(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Whether a layer's inputs are lost beside the 1 that the bias multiplies."""
    return _log2_norm(kernel) < _log2_norm(bias) - _digits(kernel)


def _digits(x: jax.Array) -> int:
    """Binary digits of a number of the array's type, 24 in float32."""
    return jnp.finfo(x.dtype).nmant + 1


def _log2_norm(x: jax.Array) -> jax.Array:
    return _log2(unit(x)[1])


def _log2(x: Scaled) -> jax.Array:
    return jnp.log2(x.fraction).astype(jnp.float32) + x.exponent.astype(jnp.float32)


def _stacked(numbers: list[Scaled], dtype: Any) -> Scaled:
    return Scaled(
        jnp.stack([x.fraction.astype(dtype) for x in numbers]),
        jnp.stack([x.exponent.astype(jnp.int32) for x in numbers]),
    )


def _forgotten(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> optax.OptState:
    """The state with what is remembered of the parameters as it was at the start."""
    of_params = optax.tree.map_params(
        inner, lambda _: True, state, transform_non_params=lambda _: False
    )
    # By leaves: what is static in the first tree is that of a placeholder.
    old, treedef = jax.tree.flatten(state)
    return treedef.unflatten(
        [
            y if is_of_params else x
            for is_of_params, x, y in zip(
                jax.tree.leaves(of_params),
                old,
                jax.tree.leaves(inner.init(params)),
                strict=True,
            )
        ]
    )


def _alike(move: Any, step: Any) -> tuple[Any, Any]:
    """The two branches with results of one type: the tree and dtypes of the second."""
    other, like = jax.eval_shape(move), jax.eval_shape(step)
    treedef = jax.tree.structure(like)

    def of_one_type(branch: Any) -> Any:
        def run() -> Any:
            return treedef.unflatten(
                [
                    _in_the_type_of(x, y, z)
                    for x, y, z in zip(
                        *map(jax.tree.leaves, (branch(), like, other)), strict=True
                    )
                ]
            )

        return run

    return of_one_type(move), of_one_type(step)


def _in_the_type_of(x: Any, like: Any, other: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype != like.dtype:
        x = x.astype(like.dtype)
    varying = (_varying(like) | _varying(other)) - _varying(jax.typeof(x))
    return jax.lax.pcast(x, tuple(varying), to="varying") if varying else x


def _varying(x: Any) -> frozenset[Any]:
    """The mesh axes along which an array differs, inside `jax.shard_map`."""
    return frozenset(getattr(x, "vma", None) or ())


def _heard(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The part of a kernel's gradient that a constant input would not have made."""
    _, rest = by_constant_input(kernel, bias)
    return jnp.linalg.norm(rest).astype(jnp.float32)


def _aims(params: optax.Params, splits: list[Split], dtype: Any) -> jax.Array:
    """The norms that kernels are moved to, at level 0."""
    leaves = jax.tree.leaves(params)
    shapes = [
        Split(tuple(range(jnp.ndim(leaves[i]))), splits[i].spec).layer_shape(
            jnp.shape(leaves[i])
        )
        for i in kernels_of(params)
    ]
    return jnp.asarray(
        [preserving_norm(jax.ShapeDtypeStruct(shape, dtype)) for shape in shapes], dtype
    )


def _relative_norms(
    norms: Scaled, aims: jax.Array, level: jax.Array, is_infinite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kernels' norms relative to the aim; it moves where all are there."""
    relative = value(ratio(norms, scaled(aims, aims.dtype))).astype(jnp.float32)

    def to(aim: jax.Array) -> jax.Array:
        return relative * jnp.exp2(-aim.astype(relative.dtype) / 2)

    near = 1.01
    are_there = jnp.where(
        is_infinite, to(level) <= near, (to(level) <= near) & (to(level) >= 1 / near)
    ).all()
    moved = level + jnp.where(is_infinite, -1, 1)
    # One beyond the last is that all have been tried.
    moved = jnp.clip(moved, -MOST_LEVELS - 1, MOST_LEVELS + 1)
    level = jnp.where(are_there, moved, level)
    return jnp.maximum(to(level), jnp.finfo(relative.dtype).tiny), level


def _moved(
    params: optax.Params,
    factors: jax.Array,
    is_given_back: jax.Array,
    biases: tuple[jax.Array, ...],
) -> optax.Updates:
    """The updates that multiply kernels by factors, and set or give back biases."""
    w, treedef = jax.tree.flatten(params)
    moves = [jnp.zeros_like(x) for x in w]
    for number, i in enumerate(kernels_of(params)):
        x = widen(w[i])
        moves[i] = ((factors[number] - 1).astype(x.dtype) * x).astype(w[i].dtype)
    for i, bias in zip(biases_of(params).values(), biases, strict=True):
        moves[i] = jnp.where(is_given_back, bias, 0) - w[i]
    return treedef.unflatten(moves)


def _biases(params: optax.Params) -> list[jax.Array]:
    """The biases of kernels, in one order."""
    leaves = jax.tree.leaves(params)
    return [leaves[i] for i in biases_of(params).values()]


def _widest(params: optax.Params) -> Any:
    dtypes = [
        widen(jnp.zeros((), jnp.result_type(x))).dtype for x in jax.tree.leaves(params)
    ]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def _splits(partition_specs: Any, params: optax.Params) -> list[Split]:
    """How every parameter lies on the devices."""
    leaves, treedef = jax.tree.flatten(params)
    if partition_specs is None:
        if jax.sharding.get_abstract_mesh().manual_axes or any(
            _varying(jax.typeof(jnp.asarray(x))) for x in leaves
        ):
            raise ValueError(
                "inside jax.shard_map wake_silent_layers needs partition_specs, so "
                "that all devices do the same: give the PartitionSpec of the "
                "parameters, or a tree of them; P() for what is replicated."
            )
        return [Split()] * len(leaves)

    def is_spec(x: Any) -> bool:
        return isinstance(x, jax.sharding.PartitionSpec)

    specs, specs_treedef = jax.tree.flatten(partition_specs, is_leaf=is_spec)
    if is_spec(partition_specs):
        specs = [partition_specs] * len(leaves)
    elif specs_treedef != treedef or not all(map(is_spec, specs)):
        raise ValueError(
            "partition_specs must be one PartitionSpec, or a tree of them like the "
            f"parameters, got {partition_specs!r}."
        )
    for spec, (path, x) in zip(specs, flatten_with_path(params)[0], strict=True):
        if len(spec) > jnp.ndim(x):
            raise ValueError(
                f"partition_specs: {spec} has more axes than {path_string(path)!r}, "
                f"whose shape is {jnp.shape(x)}."
            )
    return [Split((), spec) for spec in specs]


def _check_params(params: optax.Params) -> None:
    named, _ = flatten_with_path(params)
    if not named and _is_empty(params):
        raise ValueError(
            f"params is an empty tree, {params!r}: there is nothing to optimize."
        )
    for path, x in named:
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "wake_silent_layers needs real floating-point gradients and "
                f"parameters, got {dtype} at {path_string(path)!r}: leave it to "
                "another optimizer with optax.masked or optax.partition."
            )
    # What has no leaves stands for parameters: optax.tree.map_params asks with it.
    if named and not kernels_of(params):
        raise ValueError(
            "wake_silent_layers needs parameters with kernels, arrays of two axes "
            f"or more, got {jax.tree.map(jnp.shape, params)}."
        )


def _is_empty(tree: Any) -> bool:
    """Whether there is nothing but containers, not even what stands for masked ones."""

    def is_content(x: Any) -> bool:
        return hasattr(x, "_fields") or not isinstance(x, (dict, list, tuple))

    return not jax.tree.leaves(tree, is_leaf=is_content)


def _check_gradients(updates: optax.Updates, params: optax.Params) -> None:
    """Refuses gradients that are not those of the parameters."""
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise ValueError(
            "the gradients are not a tree like the parameters: "
            f"{jax.tree.structure(updates)} and {jax.tree.structure(params)}."
        )
    for (path, param), gradient in zip(
        flatten_with_path(params)[0], jax.tree.leaves(updates), strict=True
    ):
        if jnp.shape(gradient) != jnp.shape(param):
            raise ValueError(
                f"the gradient of {path_string(path)!r} has shape "
                f"{jnp.shape(gradient)}, the parameter {jnp.shape(param)}."
            )
        dtype = jnp.result_type(gradient)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "wake_silent_layers needs real floating-point gradients and "
                f"parameters, got {dtype} for the gradient of {path_string(path)!r}."
            )


def _check_state(state: Any, params: optax.Params) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, WakingState):
        raise TypeError(
            f"the state is of another optimizer: got {type(state).__name__}, need "
            "WakingState. Make a new one with init(params)."
        )
    shapes = [jnp.shape(state.best.norms.fraction), *map(jnp.shape, state.best.biases)]
    expected = [(len(kernels_of(params)),), *map(jnp.shape, _biases(params))]
    if shapes != expected:
        raise ValueError(
            "the state is of other parameters: it has norms and biases of the shapes "
            f"{shapes}, here they are {expected}. Make a new one with init(params)."
        )
