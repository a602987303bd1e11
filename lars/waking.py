r"""Waking networks that no signal passes through, around any optimizer.

Where a network is silent (`lars.silence`), gradients say nothing that an optimizer
could use. The scale of the weights can still be changed until they do.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.bits import multiply_by_power_of_two
from lars.kernels import kernels_of, preserving_norm, roles_of
from lars.layers import check_alike, check_leaves
from lars.norms import accumulation_dtype, widen
from lars.options import check_number
from lars.rules import flatten_with_path, path_string
from lars.scaled import Scaled
from lars.sharded import varying
from lars.silence import (
    REASONS as REASONS,
    Network,
    Seen,
    look,
    network_of,
    silence as silence,
)
from lars.state import check_same_shapes

LARGEST_FACTOR = 16.0
"""A step multiplies a kernel by at most this, or divides it."""

MOST_LEVELS = 8
"""The aim moves up or down by at most so many half octaves: by a factor of 16."""

AWAKE = 10
"""After so many steps with a signal, in a row, a network is awake for good."""


class Place(NamedTuple):
    """Norms and biases that a network had, and can be given back."""

    silent_kernels: jax.Array  # shape=(), int32: as in `lars.silence.Seen`
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
    given_up: jax.Array  # shape=(4,), bool: reasons that no longer cause moves
    moving_for: jax.Array  # shape=(4,), bool: why the network is being moved, if it is
    has_just_moved: jax.Array  # shape=(), bool
    best: Place  # where most kernels had a gradient since the first of the moves


def wake_silent_layers(
    inner: optax.GradientTransformation,
    *,
    patience: int = 3,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the scale of a network's kernels until a signal passes.

    .. math::
        \|w\| \leftarrow \min(\max(2^{l/2} \bar\rho,\ \|w\| / 16),\ 16\,\|w\|),
        \qquad \bar\rho = \sqrt{2 \cdot \text{outputs}}

    for every kernel w of a network that is *silent* (:func:`lars.silence.silence`): a
    gradient is not finite; or, because sizes are unusual, a kernel has no gradient or
    is lost in rounding; or the network sees a constant input. All other networks are
    left to the inner optimizer.

    **What is done.** While the network is silent the inner optimizer makes no step.
    Instead all kernels move towards :math:`2^{l/2} \bar\rho`. At first this *aim* is
    the norm that keeps the mean square of a layer's inputs
    (:func:`lars.kernels.preserving_norm`): the *level* l is 0. Once all kernels are
    there, l grows by one a step, up to 8; where something is not finite it falls
    instead, down to -8, and kernels only shrink. Biases become zero. The inner
    optimizer forgets what it knows of the parameters, such as momentum, but not what it
    counts. Once a signal passes, the inner optimizer goes on from there.

    **What is taken back.** The network returns to the norms and biases with which most
    kernels had a gradient (the first such place), if

    * gradients that were finite no longer are, after a move; or
    * fewer kernels have a gradient, after a move with all kernels at the aim; or
    * the network is silent at the last level too, as with a kernel that the loss does
      not depend on.

    That reason then causes no more moves.

    **When it acts.** At once where a gradient is not finite. Otherwise after
    ``patience`` silent steps in a row: in a healthy run a single batch may leave a
    layer without a gradient. The inner optimizer makes these steps if sizes are usual.
    If they are not, none is made: most optimizers' would be larger than kernels that
    are far too small, and take their place. After ten steps in a row with a signal the
    network is awake, and is not looked at again: what looks silent later is most often
    a network that has learnt its images. Once a kernel was zero, or a normalization
    nearly shut, only gradients that are not finite count.

    A run that is never silent gets the updates of the inner optimizer, to the bit. XLA
    may round differently inside a branch: on a CPU by the last bit of float32.

    Args:
        inner: any optimizer.
        patience: silent steps in a row before kernels are moved.
        partition_specs: inside :func:`jax.shard_map`, where arrays are local parts: a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them,
            so that all devices do the same. ``P()`` is for what is not divided, and for
            networks that have nothing to do with each other. In the state,
            ``best.biases`` is divided as biases are. Elsewhere it is None: XLA knows
            the sharding.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``; its state, `WakingState`, counts moves by their reasons.

    Raises:
        ValueError: for a number that makes no sense; for a tree that is empty or has no
            kernels; in ``update`` for gradients or a state of other parameters, and
            inside :func:`jax.shard_map` without ``partition_specs``.
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
        kernels, biases, _ = roles_of(params)

        # Each its own: of one array in several places, JAX donates none.
        def zeros(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
            return jnp.zeros(shape, dtype)

        return WakingState(
            inner.init(params),
            silent_steps=zeros(),
            signal_steps=zeros(),
            level=zeros(),
            reasons=zeros(len(REASONS)),
            given_up=zeros(len(REASONS), dtype=jnp.bool),
            moving_for=zeros(len(REASONS), dtype=jnp.bool),
            has_just_moved=zeros(dtype=jnp.bool),
            best=Place(
                silent_kernels=zeros(),
                fractions=zeros(len(kernels), dtype=_widest(params)),
                exponents=zeros(len(kernels)),
                biases=_biases(params, biases),
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
        network = network_of(params, partition_specs)

        def step() -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state.inner_state, params, **extra_args)

        if not network.axes:  # an empty tree that stands for parameters
            updates, inner_state = step()
            return updates, state._replace(inner_state=inner_state)
        outer = state._replace(inner_state=())

        def rest() -> tuple[_Plan, WakingState]:
            no = jnp.bool(False)
            return _Plan(no, no, no, jnp.ones_like(state.best.fractions)), outer

        def decide() -> tuple[_Plan, WakingState]:
            seen = look(updates, params, network, state.given_up, state.moving_for)
            biases = _biases(params, network.biases)
            return _decided(seen, outer, biases, network, patience)

        def move() -> tuple[optax.Updates, optax.OptState]:
            moves = _moves(plan, state.best.biases, params, network)
            moved = moves, _forgotten(inner, state.inner_state, params)
            held = optax.tree.zeros_like(params), state.inner_state
            return jax.tree.map(_of_one_dtype(plan.is_held), held, moved)

        is_awake = state.signal_steps >= AWAKE
        plan, outer = jax.lax.cond(is_awake, *_of_one_type(rest, decide))
        is_moved = plan.is_moved | plan.is_given_back | plan.is_held
        updates, inner_state = jax.lax.cond(is_moved, *_of_one_type(move, step))
        return updates, outer._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Plan(NamedTuple):
    """What a step does. If none of the three is true, the inner optimizer makes it."""

    is_moved: jax.Array  # shape=(), bool: towards the aim
    is_given_back: jax.Array  # shape=(), bool
    is_held: jax.Array  # shape=(), bool: as it is, for a step
    factors: jax.Array  # shape=(kernels,): of kernels


def _decided(
    seen: Seen,
    state: WakingState,
    biases: jax.Array,
    network: Network,
    patience: int,
) -> tuple[_Plan, WakingState]:
    """What a step does, and the state after it but for that of the inner optimizer."""
    reasons, norms, silent_kernels = seen.reasons, seen.norms, seen.silent_kernels
    is_infinite, is_silent = reasons[0], reasons.any()
    is_moving = state.moving_for.any()
    counted = state.silent_steps + (~is_infinite).astype(jnp.int32)
    silent_steps = jnp.where(is_silent, counted, 0)
    signal_steps = jnp.where(is_silent, 0, jnp.minimum(state.signal_steps + 1, AWAKE))
    is_called = is_infinite | (silent_steps >= patience)

    towards, level, is_there = _towards_the_aim(
        norms, state.level, is_infinite, network
    )
    # On the way to the aim fewer kernels may have a gradient: their biases are gone.
    is_worse = (
        state.has_just_moved
        & (silent_kernels > state.best.silent_kernels)
        & (is_there | (silent_kernels > len(network.kernels)))  # not finite
    )
    all_tried = is_called & (jnp.abs(level) > MOST_LEVELS)
    is_over = is_worse | all_tried
    is_moved = is_called & ~is_over
    # If nothing was tried there is nothing to be given back.
    is_given_back = is_worse | (all_tried & is_moving)
    # Steps of most optimizers are larger than a kernel that is far too small.
    is_held = is_silent & seen.is_unusual & ~is_called & ~is_over

    here = Place(silent_kernels, norms.fraction, norms.exponent, biases)
    is_best = ~is_moving | (silent_kernels < state.best.silent_kernels)
    best = jax.tree.map(lambda x, y: jnp.where(is_best, x, y), here, state.best)
    factors = jnp.where(is_given_back, _back_to(best, norms), towards)
    moving_for = state.moving_for & (is_silent & ~is_over)
    return _Plan(is_moved, is_given_back, is_held, factors), state._replace(
        silent_steps=jnp.where(is_over, 0, silent_steps),
        signal_steps=signal_steps,
        level=jnp.where(is_over, 0, jnp.where(is_called, level, state.level)),
        reasons=state.reasons + (is_moved & reasons).astype(jnp.int32),
        given_up=seen.given_up | (is_over & (reasons | state.moving_for)),
        moving_for=jnp.where(is_moved, reasons, moving_for),
        has_just_moved=is_moved,
        best=best,
    )


def _back_to(place: Place, norms: Scaled) -> jax.Array:
    """The factors that give kernels the norms of a place."""
    factors = multiply_by_power_of_two(
        place.fractions / jnp.where(norms.is_zero, 1, norms.fraction),
        place.exponents - norms.exponent,
    )
    return jnp.where(norms.is_zero, 1, factors)


def _towards_the_aim(
    norms: Scaled, level: jax.Array, is_infinite: jax.Array, network: Network
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factors of kernels, the level with which, and whether all kernels were there.

    The level is one beyond the last if all have been tried.
    """
    dtype = norms.fraction.dtype
    aims = [
        preserving_norm(jax.ShapeDtypeStruct(network.shapes[i], dtype), outputs)
        for i, _, outputs in network.kernels
    ]
    relative = multiply_by_power_of_two(
        norms.fraction / np.asarray(aims, dtype), norms.exponent
    ).astype(jnp.float32)

    def to(level: jax.Array) -> jax.Array:
        return relative * jnp.exp2(-level.astype(jnp.float32) / 2)

    near = 1.01
    is_small = (to(level) <= near).all()
    is_there = is_small & (to(level) >= 1 / near).all()
    next_level = jnp.clip(
        level + jnp.where(is_infinite, -1, 1), -MOST_LEVELS - 1, MOST_LEVELS + 1
    )
    level = jnp.where(jnp.where(is_infinite, is_small, is_there), next_level, level)
    factors = 1 / jnp.maximum(to(level), jnp.finfo(jnp.float32).tiny)
    largest = jnp.where(is_infinite, 1.0, LARGEST_FACTOR)
    factors = jnp.clip(factors, 1 / LARGEST_FACTOR, largest)
    return factors.astype(dtype), level, is_there


def _moves(
    plan: _Plan, biases: jax.Array, params: optax.Params, network: Network
) -> optax.Updates:
    """The updates that multiply kernels by factors, and set or give back biases."""
    w, treedef = jax.tree.flatten(params)
    moves = [jnp.zeros_like(x) for x in w]
    for (i, *_), factor in zip(network.kernels, plan.factors, strict=True):
        x = widen(w[i])
        moves[i] = ((factor - 1).astype(x.dtype) * x).astype(w[i].dtype)
    biases, start = jnp.where(plan.is_given_back, biases, 0), 0
    for i in network.biases.values():
        bias = biases[start : start + w[i].size].reshape(w[i].shape)
        moves[i] = bias.astype(w[i].dtype) - w[i]
        start += w[i].size
    return treedef.unflatten(moves)


def _biases(params: optax.Params, biases: dict[int, int]) -> jax.Array:
    """The biases of kernels, one after the other."""
    w, dtype = jax.tree.leaves(params), _widest(params)
    vectors = [jnp.asarray(w[i], dtype).ravel() for i in biases.values()]
    return jnp.concatenate([jnp.zeros(0, dtype), *vectors])


def _widest(params: optax.Params) -> Any:
    """The dtype that norms of all kernels have."""
    dtypes = [accumulation_dtype(jnp.result_type(x)) for x in jax.tree.leaves(params)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def _forgotten(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> optax.OptState:
    """The state with what it knows of the parameters as it was at the start.

    That is what lies in it as the parameters do, and vectors with numbers for each.
    Counts and hyperparameters are single numbers.
    """

    def is_known_of_params(x: Any, is_of_params: bool) -> bool:
        is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return is_of_params or bool(jnp.ndim(x) and is_float)

    # By leaves: what is static in other trees may be that of a placeholder.
    old, treedef = jax.tree.flatten(state)
    new = jax.tree.leaves(inner.init(params))
    are_of_params = _are_of_params(inner, state, params)
    return treedef.unflatten(
        [
            y if is_known_of_params(y, is_of_params) else x
            for x, y, is_of_params in zip(old, new, are_of_params, strict=True)
        ]
    )


def _are_of_params(
    inner: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> list[bool]:
    """Which leaves of a state belong to single parameters."""
    try:
        of_params = optax.tree.map_params(
            inner, lambda _: True, state, transform_non_params=lambda _: False
        )
    except (TypeError, ValueError):
        # Rules for these parameters do not know the placeholder that optax asks with.
        # Then those leaves count whose path ends as that of a parameter.
        ends = [path for path, _ in flatten_with_path(params)[0] if path]
        places = [path for path, _ in flatten_with_path(state)[0]]
        return [any(path[-len(end) :] == end for end in ends) for path in places]
    # What stands for a tree without arrays has no leaves of its own in the state.
    return jax.tree.leaves(jax.tree.broadcast(of_params, state))


def _of_one_dtype(is_first: jax.Array) -> Any:
    """A choice between two arrays, in the dtype of the first."""

    def chosen(x: Any, y: Any) -> jax.Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        return jnp.where(is_first, x, y if x.dtype == y.dtype else y.astype(x.dtype))

    return chosen


def _of_one_type(rare: Any, usual: Any) -> tuple[Any, Any]:
    """Two branches with results of one type: the tree and the dtypes of the second."""
    other, like = jax.eval_shape(rare), jax.eval_shape(usual)

    def adapted(x: Any, like: Any, other: Any) -> jax.Array:
        x = jnp.asarray(x)
        if x.dtype != like.dtype:
            x = x.astype(like.dtype)
        axes = (varying(like) | varying(other)) - varying(jax.typeof(x))
        return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x

    def of_one_type(branch: Any) -> Any:
        def run() -> Any:
            leaves = zip(*map(jax.tree.leaves, (branch(), like, other)), strict=True)
            return jax.tree.structure(like).unflatten([adapted(*x) for x in leaves])

        return run

    return of_one_type(rare), of_one_type(usual)


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
