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
    Kernel,
    biases_of,
    by_constant_input,
    can_tell_constant_input,
    kernels_of,
    preserving_norm,
)
from lars.layers import array_axes, check_alike, check_leaves
from lars.norms import accumulation_dtype, scaled_l2_norms, widen
from lars.options import check_number
from lars.rules import flatten_with_path, path_string
from lars.scaled import Scaled, scaled
from lars.sharded import ArrayAxes, varying
from lars.spectral import as_matrices
from lars.state import check_same_shapes

HEARD = 2.0**-12
"""Half of the digits of float32: the part of a kernel's gradient that must differ from
what a constant input would have made, and what a kernel must be able to do to the loss
beside another one."""

HARDLY = 2.0**-8
"""The part of all that a network's gradients do to the loss which must not be that of
constant inputs."""

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

SMALL_KERNEL = 2**16
"""Elements of kernels that are looked at together with others of their shape."""

ABSURD = 12.0
"""Octaves by which that of one kernel is off, where it is to blame for all others."""

REASONS = ("not finite", "no gradient", "constant input", "lost in rounding")
"""What `WakingState.reasons` counts, in this order."""


class Place(NamedTuple):
    """Where a network has been, and can be given back to."""

    # shape=(), int32: kernels without a gradient; more than there are if not finite
    silent_kernels: jax.Array
    fractions: jax.Array  # shape=(kernels,): of their norms, see `lars.scaled.Scaled`
    exponents: jax.Array  # shape=(kernels,), int32: likewise
    biases: jax.Array  # shape=(elements,): of kernels, one after the other


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
    r"""Moves the scale of a network's kernels until a signal passes, and no further.

    Waking is for networks whose sizes are to blame for there being nothing to learn
    from. It must do no harm to others: what an optimizer trains is left alone.

    **What is silent.** Of the gradients g of kernels w in one step, with effects
    :math:`e = \|g\|\,\|w\|` on the loss, a network is *silent* if

    1. one of its gradients is *not finite*, and its parameters are; or
    2. there is *no gradient*, exactly zero, for a kernel though there is one for
       another parameter, and sizes are unusual; or
    3. the network sees a *constant input*: let h be the part of a gradient that a
       constant input does not make (:func:`lars.kernels.by_constant_input`), of kernels
       that have a bias and more than two outputs with a gradient; then
       :math:`h \le 2^{-12}` for one of them and not for another, and
       :math:`\max h e \le 2^{-8} \max e` over all; or
    4. a kernel is *lost in rounding*, and sizes are unusual: either its gradient is
       smaller than that of its bias by :math:`2^{-24}`, all digits of float32, so that
       the inputs of its layer vanish beside the 1 that the bias multiplies; or its
       effect is smaller by :math:`2^{-12}`, half of them, than that of another, as
       where signals vanish or, in a chaotic network, explode on their way back.

    Why sizes? From gradients alone, a kernel that is saturated or underflows cannot be
    told from one that is frozen, nor one that is drowned from a query or a key, which
    do little to the loss by design. But float32 has eight binary digits of exponent:
    only sizes that are far from usual, or a constant input, reach its ends. And where
    sizes are usual there is nothing in them to mend. A size is *usual* if some choice
    of axes makes its mean square what initializations make it: with n the smallest
    axis, if :math:`\sqrt{2n} \le \|w\| \le \sqrt{2\,\mathrm{size}/n}`, which holds for
    attention heads, stacked layers and embeddings as well, and if the elements of its
    bias are at most 1. Sizes of a network are *unusual* if more than half of its
    kernels are off by a factor of 4 or more; and, for kernels that all have no gradient
    and for vanishing inputs, also if one is off by :math:`2^{12}`.

    **What is done.** Then the inner optimizer is not asked. Instead, every kernel is
    multiplied by what brings its norm to the one that keeps the mean square of a
    layer's inputs (:func:`lars.kernels.preserving_norm`), or by 16 or 1/16 where this
    is closer; what is not finite only ever shrinks. Where all kernels are there and the
    network is silent still, whatever its sizes, the aim itself moves by half an octave
    a step: down while something is not finite, up otherwise, by 16 at most. Biases
    become zero, and so does what the inner optimizer remembers of the parameters, such
    as momentum; what it counts goes on. As soon as a signal passes the scale stays as
    it is, for the inner optimizer to do with as it likes.

    **What is taken back.** A move after which gradients are not finite that were; one
    to the aim, if there more kernels have no gradient; and all moves, where the network
    is silent at the last aim as well, as one with a kernel is that nothing depends on.
    Kernels get the norms, and biases the values, of the place at which most kernels had
    a gradient, the first one of several; and nothing is done for this reason any more.

    **What is left alone.** After ten steps in a row with a signal the network is
    *awake*, for good: it is not looked at any more. What looks silent later is most
    often a network that has learnt its images, since the few errors that it still makes
    are all there is in its gradients; and what is not finite later is the doing of the
    inner optimizer, or of a batch, which inner optimizers may skip. Where a kernel is
    zero, or an array of the name ``scale``, as Flax and Haiku call those of
    normalizations, is below :math:`2^{-6}` throughout, somebody has begun with care:
    from then on only what is not finite counts. A network all of whose gradients are
    zero has nothing left to learn.

    A gradient that is not finite is seen to at once; silence of the other kinds only
    where it lasts for ``patience`` steps, through which the inner optimizer goes on: in
    a healthy run a layer may get no gradient from a single batch.

    A run that is never silent gets the updates of the inner optimizer: to the bit,
    unless XLA's optimizations round sums of products differently inside of a branch, on
    a CPU by the last bit of float32.

    Args:
        inner: any optimizer.
        patience: silent steps in a row before something is done.
        partition_specs: inside :func:`jax.shard_map`, where arrays are local parts: a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them,
            so that all devices do the same. ``P()`` is for what is not divided, and for
            networks that have nothing to do with each other. Of the state,
            ``best.biases`` is divided as biases are. Elsewhere XLA knows the sharding,
            and it is None.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``; its state, `WakingState`, counts what it did and why.

    Raises:
        ValueError: for a number that makes no sense, with its value; for a tree that is
            empty or has no kernels; in ``update`` for gradients or a state of other
            parameters, and inside :func:`jax.shard_map` without ``partition_specs``.
        TypeError: for something else than a number, for parameters or gradients that
            are not real floating point, and for the state of another optimizer.

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

    References:
        He, Zhang, Ren and Sun, `Delving Deep into Rectifiers
        <https://arxiv.org/abs/1502.01852>`_, 2015 (the norms that are aimed at)

        Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, `Deep Information Propagation
        <https://arxiv.org/abs/1611.01232>`_, 2017 (how far signals reach)
    """
    check_number("patience", patience)
    if patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience!r}.")
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WakingState:
        _check_params(params)
        kernels = len(kernels_of(params))

        # Each its own: of one array in several places, JAX donates none.
        def zero() -> jax.Array:
            return jnp.zeros((), jnp.int32)

        def nothing() -> jax.Array:
            return jnp.zeros(len(REASONS), jnp.bool)

        return WakingState(
            inner.init(params),
            silent_steps=zero(),
            signal_steps=zero(),
            level=zero(),
            reasons=jnp.zeros(len(REASONS), jnp.int32),
            given_up=nothing(),
            moving_for=nothing(),
            has_just_moved=jnp.zeros((), jnp.bool),
            best=Place(
                silent_kernels=zero(),
                fractions=jnp.zeros(kernels, _widest(params)),
                exponents=jnp.zeros(kernels, jnp.int32),
                biases=_biases(params),
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
                "LARS needs the parameters: call update(gradients, state, params)."
            )
        _check_params(params)
        check_alike(updates, params)
        _check_state(state, params, init_fn)
        axes = array_axes(params, partition_specs=partition_specs)
        if not axes:  # then nothing is here to be moved
            updates, inner_state = inner.update(
                updates, state.inner_state, params, **extra_args
            )
            return updates, state._replace(inner_state=inner_state)
        plan = _decide(updates, state, params, axes, patience)

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
    axes: list[ArrayAxes],
    patience: int,
) -> _Plan:
    """Whether a network is moved or given back, and by what."""
    is_awake, is_moving = state.signal_steps >= AWAKE, state.moving_for.any()

    def look() -> tuple[_Seen, jax.Array]:
        # One that is shrunk until it is finite has not been silent yet.
        was_silent = state.moving_for[1:].any()
        return _look(gradients, params, axes, was_silent), _biases(params)

    def look_away() -> tuple[_Seen, jax.Array]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look))

    # What is awake is not looked at any more, and costs nothing.
    seen, biases = jax.lax.cond(is_awake, *_alike(look_away, look))
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

    aims = _aims(params, axes, seen.norms.fraction.dtype)
    relative, level, is_there = _relative_norms(
        seen.norms, aims, state.level, is_infinite
    )
    is_better = seen.silent_kernels < state.best.silent_kernels
    all_kernels = seen.norms.fraction.size
    is_lost = seen.silent_kernels > all_kernels  # not finite
    # On the way to the aim fewer kernels may have a gradient: their biases are gone.
    is_worse = (
        state.has_just_moved
        & (seen.silent_kernels > state.best.silent_kernels)
        & (is_lost | is_there)
    )
    norms = seen.norms
    here = Place(seen.silent_kernels, norms.fraction, norms.exponent, biases)
    best = jax.tree.map(
        lambda x, y: jnp.where(is_moving & ~is_better, x, y), state.best, here
    )
    all_tried = is_called & (jnp.abs(level) > MOST_LEVELS)
    is_given_back = is_worse | (all_tried & is_moving)
    is_moved = is_called & ~all_tried & ~is_worse
    # What nothing was tried for has nothing to be given back.
    is_over = is_worse | all_tried
    given_up = jnp.where(is_over, given_up | reasons | state.moving_for, given_up)
    upper = jnp.where(is_infinite, 1.0, LARGEST_FACTOR)
    towards = jnp.clip(1 / relative, 1 / LARGEST_FACTOR, upper)
    back = (Scaled(best.fractions, best.exponents) / norms).value
    back = jnp.where(norms.is_zero, 1, back)
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
    is_shut: jax.Array  # shape=(), bool: what no scale opens is in the way
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
    seen = _look(gradients, params, array_axes(params), jnp.bool(False))
    reasons = seen.reasons.at[1:].set(seen.reasons[1:] & ~seen.is_shut)
    return reasons & (jnp.cumsum(reasons) == 1)


def _look(
    gradients: optax.Updates,
    params: optax.Params,
    axes: list[ArrayAxes],
    was_silent: jax.Array,
) -> _Seen:
    """What the gradients say, of a network that is being moved for its silence or not.

    If it is, whether its sizes are usual by now is no question any more.
    """
    g, w = (list(map(widen, jax.tree.leaves(tree))) for tree in (gradients, params))
    norms = scaled_l2_norms([*g, *w], [*axes, *axes])
    kernels, biases = _kernels(params), biases_of(params)
    of_kernels = np.asarray(kernels)
    # Of the kernels that have none, their own stand for biases.
    of_biases = np.asarray([biases.get(i, i) for i in kernels])
    log_g, log_w = jnp.split(_log2(norms), 2)
    is_zero, is_finite = norms.fraction == 0, jnp.isfinite(norms.fraction)
    zero_kernels = is_zero[of_kernels]
    heard, can_tell = _heard(g, kernels_of(params), biases, axes)
    can_tell &= ~zero_kernels
    is_deaf = can_tell & (heard <= HEARD)
    effects = (log_g + log_w)[of_kernels]
    # What constant inputs can be told of, and how much of that is heard.
    told = jnp.where(can_tell, effects, -jnp.inf)
    is_network_deaf = (told + jnp.log2(heard)).max() <= told.max() + math.log2(HARDLY)
    digits = np.asarray([jnp.finfo(g[i].dtype).nmant + 1 for i in kernels], np.float32)
    has_tiny_input = ~zero_kernels & (log_g[of_kernels] < log_g[of_biases] - digits)
    off = _octaves_off(log_w, kernels, biases, _shapes(params, axes))
    # Of most kernels.
    are_off = was_silent | (jnp.sort(off)[(len(kernels) - 1) // 2] >= UNUSUAL)
    is_one_off = off.max() >= ABSURD
    gradients_are_finite = is_finite[: len(g)].all()
    reasons = jnp.stack(
        [
            ~gradients_are_finite,
            zero_kernels.any()
            & ~is_zero[: len(g)].all()
            & (are_off | (is_one_off & zero_kernels.all())),
            is_deaf.any()
            & (can_tell & ~is_deaf).any()
            & (was_silent | is_network_deaf),
            (_is_drowned(effects) & are_off)
            | (has_tiny_input.any() & (are_off | is_one_off)),
        ]
    )
    # What is not finite itself, no factor mends.
    reasons &= is_finite[len(g) :].all()
    silent = jnp.where(gradients_are_finite, zero_kernels.sum(), len(kernels) + 1)
    own = of_kernels + len(g)  # where the norms of kernels themselves are
    return _everywhere(
        _Seen(
            reasons,
            is_zero[own].any() | _is_shut(params, w, axes),
            silent.astype(jnp.int32),
            Scaled(norms.fraction[own], norms.exponent[own]),
        ),
        axes,
    )


def _everywhere(seen: _Seen, axes: list[ArrayAxes]) -> _Seen:
    """The same on all devices that have parts of parameters."""
    names = tuple({name: None for of_x in axes for name in of_x.all_mesh_axes()})
    if not names:
        return seen
    return jax.tree.map(
        lambda x: jax.lax.pmax(
            x.astype(jnp.int32) if x.dtype == jnp.bool else x, names
        ).astype(x.dtype),
        seen,
    )


def _is_shut(
    params: optax.Params, w: list[jax.Array], axes: list[ArrayAxes]
) -> jax.Array:
    """Whether a normalization lets nothing through, until an optimizer has moved it."""
    flags = [
        (jnp.abs(of_x.whole(x)) < SHUT).all()
        for (path, _), x, of_x in zip(
            flatten_with_path(params)[0], w, axes, strict=True
        )
        if x.ndim < 2 and path_string(path[-1:]) == "scale"
    ]
    return jnp.stack([jnp.bool(False), *flags]).any()


def _octaves_off(
    log_w: jax.Array,
    kernels: list[int],
    biases: dict[int, int],
    shapes: list[tuple[int, ...]],
) -> jax.Array:
    """How far the size of each kernel, or of its bias, is from all that are usual.

    Which axes count inputs is not known for sure: of attention heads, of layers that
    are stacked, of an embedding. Usual is what any choice of them would make.
    """
    least, most, of_bias = [], [], []
    for i in kernels:
        size, outputs = math.prod(shapes[i]), min(shapes[i])
        least.append(math.log2(2 * outputs) / 2)
        most.append(math.log2(2 * size / outputs) / 2)
        # Elements of one; where there is no bias, what is never reached.
        bias = shapes[biases[i]] if i in biases else None
        of_bias.append(math.inf if bias is None else math.log2(math.prod(bias)) / 2)
    log_kernels = log_w[np.asarray(kernels)]
    log_biases = log_w[np.asarray([biases.get(i, i) for i in kernels])]
    return jnp.stack(
        [
            jnp.asarray(least, jnp.float32) - log_kernels,
            log_kernels - jnp.asarray(most, jnp.float32),
            log_biases - jnp.asarray(of_bias, jnp.float32),
            jnp.zeros_like(log_kernels),
        ]
    ).max(0)


def _is_drowned(effects: jax.Array) -> jax.Array:
    """Whether half the digits of one kernel do more to the loss than all of another.

    Of those that have a gradient: where one has none, that is the reason.
    """
    least = jnp.where(jnp.isfinite(effects), effects, jnp.inf).min()
    return least < effects.max() + math.log2(HEARD)


def _log2(x: Scaled) -> jax.Array:
    return jnp.log2(x.fraction).astype(jnp.float32) + x.exponent.astype(jnp.float32)


def _forgotten(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> optax.OptState:
    """The state with what is remembered of the parameters as it was at the start.

    That is what lies in it as the parameters do, and vectors of what is known of each.
    Counts and hyperparameters are single numbers.
    """
    # By leaves: what is static in other trees may be that of a placeholder.
    old, treedef = jax.tree.flatten(state)
    return treedef.unflatten(
        [
            y if is_of_params or (jnp.ndim(y) and _is_float(y)) else x
            for is_of_params, x, y in zip(
                _are_of_params(inner, state, params),
                old,
                jax.tree.leaves(inner.init(params)),
                strict=True,
            )
        ]
    )


def _is_float(x: Any) -> bool:
    """Whether an array is of floating point."""
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _are_of_params(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> list[bool]:
    """Which leaves of a state belong to single parameters."""
    try:
        of_params = optax.tree.map_params(
            inner, lambda _: True, state, transform_non_params=lambda _: False
        )
    except (TypeError, ValueError):
        # Rules for these very parameters do not know what optax asks with. Then those
        # count that lie in the state as parameters do in their tree.
        ends = [path for path, _ in flatten_with_path(params)[0] if path]
        places = [path for path, _ in flatten_with_path(state)[0]]
        return [any(path[-len(end) :] == end for end in ends) for path in places]
    # What stands for a tree without arrays has no leaves of its own in the state.
    return jax.tree.leaves(jax.tree.broadcast(of_params, state))


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
    axes = (varying(like) | varying(other)) - varying(jax.typeof(x))
    return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x


def _heard(
    g: list[jax.Array],
    kernels: list[Kernel],
    biases: dict[int, int],
    axes: list[ArrayAxes],
) -> tuple[jax.Array, jax.Array]:
    """The part of kernels' gradients that no constant input makes, and if it is known.

    Kernels of one shape are taken together: starting computations costs more.
    """
    groups: dict[Any, list[int]] = {}
    whole = {}
    for i, _, outputs in kernels:
        if i not in biases:
            continue
        matrix = as_matrices(axes[i].whole(g[i]), (), outputs)
        bias = axes[biases[i]].whole(g[biases[i]]).ravel()
        if bias.size != matrix.shape[1]:  # a stack, whose layers have one each
            continue
        whole[i] = matrix, bias
        is_small = matrix.size <= SMALL_KERNEL
        alike = (matrix.shape, matrix.dtype, bias.dtype) if is_small else i
        groups.setdefault(alike, []).append(i)
    heard = {kernel.leaf: jnp.ones((), jnp.float32) for kernel in kernels}
    can_tell = {kernel.leaf: jnp.zeros((), jnp.bool) for kernel in kernels}
    for members in groups.values():
        stacks = [jnp.stack(x) for x in zip(*(whole[i] for i in members), strict=True)]
        of_group = jax.vmap(_heard_part)(*stacks)
        for i, part, is_known in zip(members, *of_group, strict=True):
            heard[i], can_tell[i] = part, is_known
    return jnp.stack(list(heard.values())), jnp.stack(list(can_tell.values()))


def _heard_part(kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, rest = by_constant_input(kernel, bias)
    return jnp.linalg.norm(rest).astype(jnp.float32), can_tell_constant_input(bias)


def _kernels(params: optax.Params) -> list[int]:
    return [kernel.leaf for kernel in kernels_of(params)]


def _shapes(params: optax.Params, axes: list[ArrayAxes]) -> list[tuple[int, ...]]:
    """The shapes of whole parameters, also where these are parts of them."""
    return [
        of_x.whole_shape(jnp.shape(x))
        for x, of_x in zip(jax.tree.leaves(params), axes, strict=True)
    ]


def _aims(params: optax.Params, axes: list[ArrayAxes], dtype: Any) -> jax.Array:
    """The norms that kernels are moved to, at level 0."""
    shapes = _shapes(params, axes)
    aims = [
        preserving_norm(jax.ShapeDtypeStruct(shapes[i], dtype), outputs)
        for i, _, outputs in kernels_of(params)
    ]
    return jnp.asarray(aims, dtype)


def _relative_norms(
    norms: Scaled, aims: jax.Array, level: jax.Array, is_infinite: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernels' norms relative to the aim, which moves where all are there."""
    relative = (norms / scaled(aims, aims.dtype)).value.astype(jnp.float32)

    def to(aim: jax.Array) -> jax.Array:
        return relative * jnp.exp2(-aim.astype(relative.dtype) / 2)

    near = 1.01
    is_small, is_large = to(level) <= near, to(level) >= 1 / near
    is_there = (is_small & is_large).all()
    moved = level + jnp.where(is_infinite, -1, 1)
    # One beyond the last is that all have been tried.
    moved = jnp.clip(moved, -MOST_LEVELS - 1, MOST_LEVELS + 1)
    level = jnp.where(jnp.where(is_infinite, is_small.all(), is_there), moved, level)
    return jnp.maximum(to(level), jnp.finfo(relative.dtype).tiny), level, is_there


def _moved(
    params: optax.Params,
    factors: jax.Array,
    is_given_back: jax.Array,
    biases: jax.Array,
) -> optax.Updates:
    """The updates that multiply kernels by factors, and set or give back biases."""
    w, treedef = jax.tree.flatten(params)
    moves = [jnp.zeros_like(x) for x in w]
    for number, i in enumerate(_kernels(params)):
        x = widen(w[i])
        moves[i] = ((factors[number] - 1).astype(x.dtype) * x).astype(w[i].dtype)
    start = 0
    for i in biases_of(params).values():
        bias = biases[start : start + w[i].size].astype(w[i].dtype).reshape(w[i].shape)
        moves[i] = jnp.where(is_given_back, bias, jnp.zeros_like(bias)) - w[i]
        start += w[i].size
    return treedef.unflatten(moves)


def _biases(params: optax.Params) -> jax.Array:
    """The biases of kernels, one after the other."""
    leaves, dtype = jax.tree.leaves(params), _widest(params)
    biases = [jnp.asarray(leaves[i], dtype).ravel() for i in biases_of(params).values()]
    return jnp.concatenate([jnp.zeros(0, dtype), *biases])


def _widest(params: optax.Params) -> Any:
    dtypes = [accumulation_dtype(jnp.result_type(x)) for x in jax.tree.leaves(params)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def _check_params(params: optax.Params) -> None:
    """Refuses parameters that nothing can be said of."""
    named, _ = flatten_with_path(params)
    paths = [path_string(path) for path, _ in named]
    check_leaves(params, paths, [leaf for _, leaf in named])
    for path, (_, x) in zip(paths, named, strict=True):
        if jnp.iscomplexobj(x):
            raise TypeError(
                "wake_silent_layers needs real parameters, got "
                f"{jnp.result_type(x)} at {path!r}: leave it to another optimizer "
                "with optax.masked or optax.partition."
            )
    # What has no leaves stands for parameters: optax.tree.map_params asks with it.
    if named and not kernels_of(params):
        raise ValueError(
            "wake_silent_layers needs parameters with kernels, arrays of two axes "
            f"or more, got {jax.tree.map(jnp.shape, params)}."
        )


def _check_state(state: Any, params: optax.Params, init: Any) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, WakingState):
        raise TypeError(
            f"the state is of another optimizer: got {type(state).__name__}, need "
            "WakingState. Make a new one with init(params)."
        )
    check_same_shapes(state, jax.eval_shape(init, params), ("best",))
