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
import optax

from lars.kernels import (
    biases_of,
    by_constant_input,
    can_tell_constant_input,
    kernels_of,
    preserving_norm,
)
from lars.norms import l2_norm, unit, widen
from lars.options import check_number
from lars.rules import flatten_with_path, path_string

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
"""Steps with a signal, in a row, after which a network counts as awake."""

REASONS = ("not finite", "no gradient", "constant input", "lost in rounding")
"""What `WakingState.reasons` counts, in this order."""


class WakingState(NamedTuple):
    """State of `wake_silent_layers`."""

    inner_state: optax.OptState
    silent_steps: jax.Array  # shape=(), int32: how many there have been in a row
    signal_steps: jax.Array  # shape=(), int32: likewise with a signal, up to `AWAKE`
    level: jax.Array  # shape=(), int32: by how many half octaves the aim has moved
    # shape=(kernels,), float32: by how many octaves each has been moved since the
    # network was last awake or given up
    moved: jax.Array
    reasons: jax.Array  # shape=(4,), int32: moves by their reason, see `REASONS`


def wake_silent_layers(
    inner: optax.GradientTransformation,
    *,
    patience: int = 3,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the scale of a network's kernels until a signal passes, and no further.

    A network is *silent* if, of the gradients of one step,

    * one is not finite; or
    * that of a kernel is exactly zero while another parameter's is not; or
    * that of a kernel is what a constant input makes
      (:func:`lars.kernels.by_constant_input`), all but :math:`2^{-12}` of it, while
      another kernel's is not (of a kernel without a bias, or with a gradient for no
      more than two outputs, this cannot be told); or
    * a kernel is lost in rounding: either its gradient is smaller than that of its bias
      by :math:`2^{-24}`, all digits of float32, so that the inputs of its layer vanish
      beside the 1 that the bias multiplies; or what it can do to the loss, its
      :math:`\|g\|\,\|w\|`, is smaller by :math:`2^{-12}`, half of them, than that of
      another kernel, so that noise in the other does more. The first is where signals
      shrink from layer to layer, the second where they vanish or, in a chaotic network,
      explode on their way back.

    Then the inner optimizer is not asked. Instead, every kernel is multiplied by what
    brings its norm to the one that keeps the mean square of a layer's inputs
    (:func:`lars.kernels.preserving_norm`), or by 16 or 1/16 where this is closer; what
    is not finite only ever shrinks. Where all kernels are there and the network is
    silent still, the aim itself moves by half an octave a step: down while something is
    not finite, up otherwise, by 16 at most. Biases become zero, and so does what the
    inner optimizer remembers of the parameters, such as momentum; what it counts goes
    on. As soon as a signal passes the scale stays as it is, for the inner optimizer to
    do with as it likes.

    After ten steps in a row with a signal the network is *awake*. Silence is then no
    reason to move it any more; a gradient that is not finite is, and ends being awake.
    What looks silent later is most often a network that has learnt its images: the few
    errors that it still makes are all there is in its gradients, and the gradient of
    one image alone is what a constant input makes.

    What is silent at the highest aim as well, as a kernel that nothing depends on is,
    no scale can wake: kernels are given back the norms that they had, the inner
    optimizer is asked again, and nothing is seen to from then on until something is not
    finite. (Parameters that are not trained are better kept out, by
    :func:`optax.masked` or :func:`optax.partition`.)

    Where a kernel is zero, or an array of the name ``scale``, as Flax and Haiku call
    those of normalizations, is below :math:`2^{-6}` throughout, scales are not moved
    either: what is behind it is silent whatever they are, until the inner optimizer has
    moved it.

    A gradient that is not finite is seen to at once; silence of the other kinds only
    where it lasts for ``patience`` steps, through which the inner optimizer goes on: in
    a healthy run a layer may get no gradient from a single batch. A network all of
    whose gradients are zero has nothing left to learn, and is left alone.

    A run that is never silent gets the updates of the inner optimizer: to the bit,
    unless XLA's optimizations round sums of products differently inside of a branch, on
    a CPU by the last bit of float32.

    Args:
        inner: any optimizer.
        patience: silent steps in a row before something is done.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``; its state, `WakingState`, counts what it did and why.

    Raises:
        ValueError: for a number that makes no sense, with its value.
        TypeError: for something else than a number.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import lars
        >>> optimizer = lars.wake_silent_layers(optax.sgd(0.1, 0.9))
        >>> params = {"kernel": jnp.full((4, 3), 1e30), "bias": jnp.zeros(3)}
        >>> state = optimizer.init(params)
        >>> grads = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
        >>> updates, state = optimizer.update(grads, state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> moves = dict(zip(lars.waking.REASONS, state.reasons.tolist()))
        >>> print(f"{params['kernel'][0, 0]:.1e}", moves["not finite"])
        6.3e+28 1
    """
    check_number("patience", patience)
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience!r}.")
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WakingState:
        # What has no leaves stands for parameters: optax.tree.map_params asks with it.
        if jax.tree.leaves(params) and not kernels_of(params):
            raise ValueError(
                "wake_silent_layers needs parameters with kernels, arrays of two axes "
                f"or more, got {jax.tree.map(jnp.shape, params)}."
            )
        zero = jnp.zeros((), jnp.int32)
        return WakingState(
            inner.init(params),
            silent_steps=zero,
            signal_steps=zero,
            level=zero,
            moved=jnp.zeros(len(kernels_of(params)), jnp.float32),
            reasons=jnp.zeros(len(REASONS), jnp.int32),
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
        if not isinstance(state, WakingState):
            raise TypeError(
                f"the state is of another optimizer: got {type(state).__name__}, need "
                "WakingState. Make a new one with init(params)."
            )
        reasons = silence(updates, params)
        is_awake = state.signal_steps >= AWAKE  # then only what is not finite counts
        reasons = reasons.at[1:].set(reasons[1:] & ~is_awake)
        is_infinite, is_silent = reasons[0], reasons.any()
        silent_steps = jnp.where(
            is_infinite,
            state.silent_steps,
            jnp.where(is_silent, state.silent_steps + 1, 0),
        )
        signal_steps = jnp.where(
            is_silent, 0, jnp.minimum(state.signal_steps + 1, AWAKE)
        )
        is_called = is_infinite | (silent_steps >= patience)
        relative, level = _relative_norms(params, state.level, is_infinite)
        level = jnp.where(is_called, level, state.level)
        all_tried = level > MOST_LEVELS
        is_given_back = is_called & all_tried & (state.level <= MOST_LEVELS)
        is_moved = is_infinite | (is_called & ~all_tried) | is_given_back
        upper = jnp.where(is_infinite, 1.0, LARGEST_FACTOR)
        factors = jnp.where(
            is_given_back,
            jnp.exp2(-state.moved),
            jnp.clip(1 / relative, 1 / LARGEST_FACTOR, upper),
        )
        moved = jnp.where(is_moved, state.moved + jnp.log2(factors), state.moved)
        begins_anew = is_given_back | (signal_steps >= AWAKE)

        def step() -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state.inner_state, params, **extra_args)

        def move() -> tuple[optax.Updates, optax.OptState]:
            # In the types of the other branch: those of the inner optimizer's updates.
            like, _ = jax.eval_shape(step)
            moves = optax.tree.cast_like(_scaled(params, factors), like)
            return moves, _forgotten(inner, state.inner_state, params)

        new_updates, inner_state = jax.lax.cond(is_moved, move, step)
        return new_updates, WakingState(
            inner_state,
            silent_steps=silent_steps,
            signal_steps=signal_steps,
            level=level,
            moved=jnp.where(begins_anew, 0.0, moved),
            reasons=state.reasons + (is_moved & reasons).astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def silence(gradients: optax.Updates, params: optax.Params) -> jax.Array:
    """Whether a network is silent, and why.

    Args:
        gradients: of one step.
        params: what they are of.

    Returns:
        Booleans of shape [4], of which one at most is true: see `REASONS` and
        `wake_silent_layers`.
    """
    g, w = ([widen(x) for x in jax.tree.leaves(tree)] for tree in (gradients, params))
    kernels = [kernel.leaf for kernel in kernels_of(params)]
    biases = biases_of(params)
    is_zero = jnp.stack([(x == 0).all() for x in g])
    zero_kernels = is_zero[jnp.asarray(kernels, jnp.int32)]
    can_be_told = ~zero_kernels & jnp.stack(
        [
            can_tell_constant_input(g[biases[i]]) if i in biases else jnp.bool(False)
            for i in kernels
        ]
    )
    heard = jnp.stack(
        [_heard(g[i], g[biases[i]]) if i in biases else jnp.float32(1) for i in kernels]
    )
    is_deaf = can_be_told & (heard <= HEARD)
    hears = can_be_told & (heard > HEARD)
    found = [
        ~jnp.stack([jnp.isfinite(x).all() for x in g]).all(),
        zero_kernels.any() & ~is_zero.all(),
        is_deaf.any() & hears.any(),
        _is_drowned([g[i] for i in kernels], [w[i] for i in kernels])
        | jnp.stack(
            [jnp.bool(False)]
            + [_has_tiny_input(g[i], g[bias]) for i, bias in biases.items()]
        ).any(),
    ]
    is_open = ~_is_shut(params)
    found[1:] = [flag & is_open for flag in found[1:]]
    # The first that holds is the reason.
    before = jnp.cumsum(jnp.stack([jnp.bool(False), *found[:-1]])) > 0
    return jnp.stack(found) & ~before


def _is_shut(params: optax.Params) -> jax.Array:
    """Whether something else than a kernel's scale keeps signals back.

    A kernel of zero, which has no scale that could be moved, or the scale of a
    normalization: what is behind them is silent until an optimizer has moved them.
    """
    flags = [
        (x == 0).all() if jnp.ndim(x) >= 2 else (jnp.abs(widen(x)) < SHUT).all()
        for path, x in flatten_with_path(params)[0]
        if jnp.ndim(x) >= 2 or path_string(path[-1:]) == "scale"
    ]
    return jnp.stack(flags).any()


def _is_drowned(g: list[jax.Array], w: list[jax.Array]) -> jax.Array:
    """Whether half the digits of one kernel do more to the loss than all of another."""
    effects = jnp.stack(
        [
            (_log2_norm(x) + _log2_norm(y)).astype(jnp.float32)
            for x, y in zip(g, w, strict=True)
        ]
    )
    return effects.min() < effects.max() + math.log2(HEARD)


def _has_tiny_input(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Whether a layer's inputs are lost beside the 1 that the bias multiplies."""
    return _log2_norm(kernel) < _log2_norm(bias) - _digits(kernel)


def _digits(x: jax.Array) -> int:
    """Binary digits of a number of the array's type, 24 in float32."""
    return jnp.finfo(x.dtype).nmant + 1


def _log2_norm(x: jax.Array) -> jax.Array:
    norm = unit(x)[1]
    return jnp.log2(norm.fraction) + norm.exponent.astype(x.dtype)


def _forgotten(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> optax.OptState:
    """The state with what is remembered of the parameters as it was at the start."""
    of_params = optax.tree.map_params(
        inner, lambda _: True, state, transform_non_params=lambda _: False
    )
    return jax.tree.map(
        lambda is_of_params, old, fresh: fresh if is_of_params else old,
        of_params,
        state,
        inner.init(params),
    )


def _heard(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The part of a kernel's gradient that a constant input would not have made."""
    _, rest = by_constant_input(kernel, bias)
    return jnp.linalg.norm(rest).astype(jnp.float32)


def _relative_norms(
    params: optax.Params, level: jax.Array, is_infinite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kernels' norms relative to the aim; it moves where all are there."""
    w = [widen(jax.tree.leaves(params)[k.leaf]) for k in kernels_of(params)]
    relative = jnp.stack(
        [(l2_norm(x) / preserving_norm(x)).astype(jnp.float32) for x in w]
    )

    def to(aim: jax.Array) -> jax.Array:
        return relative * jnp.exp2(-aim.astype(relative.dtype) / 2)

    near = 1.01
    are_there = jnp.where(
        is_infinite, to(level) <= near, (to(level) <= near) & (to(level) >= 1 / near)
    ).all()
    moved = level + jnp.where(is_infinite, -1, 1)
    # One above the highest is that all have been tried.
    moved = jnp.clip(moved, -MOST_LEVELS, MOST_LEVELS + 1)
    level = jnp.where(are_there, moved, level)
    return jnp.maximum(to(level), jnp.finfo(relative.dtype).tiny), level


def _scaled(params: optax.Params, factors: jax.Array) -> optax.Updates:
    """The updates that multiply kernels by factors, and set their biases to zero."""
    w, treedef = jax.tree.flatten(params)
    moves = [jnp.zeros_like(x) for x in w]
    for number, (i, *_) in enumerate(kernels_of(params)):
        moves[i] = (factors[number] - 1).astype(w[i].dtype) * w[i]
    for i in biases_of(params).values():
        moves[i] = -w[i]
    return treedef.unflatten(moves)
