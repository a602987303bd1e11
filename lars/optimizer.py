r"""LARS, layerwise adaptive rate scaling, as an Optax transformation.

For every layer, with weights w, gradient g, learning rate γ, trust coefficient η,
weight decay β and momentum m (You, Gitman and Ginsburg 2017, Algorithm 1):

    λ ← η ‖w‖ / (‖g‖ + β ‖w‖)         the trust ratio
    v ← m v + γ λ (g + β w)
    w ← w - v
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.norms import accumulation_dtype, joint_norm, scaled_l2_norm
from lars.scaled import multiply_by_ratio, ratio, scaled, times, total, where

Mask = Any
"""A tree of booleans like the parameters, a prefix of one, or a function of the
parameters that returns one, as in `optax.masked`. None is True everywhere."""

KeyPath = tuple[Any, ...]
Layer = Literal["parameter", "module"] | Callable[[KeyPath], Hashable]
ZeroNorm = Literal["trust_coefficient", "one", "zero"]


class ScaleByLarsState(NamedTuple):
    """State of `scale_by_lars`."""

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trust_ratio: optax.Params  # tree of the parameters; shape=(), dtype=float32


def scale_by_lars(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    *,
    layer: Layer = "parameter",
    zero_norm: ZeroNorm = "trust_coefficient",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each layer's decayed gradient by its trust ratio.

    .. math::
        u = \lambda\,(g + \beta w), \qquad
        \lambda = \frac{\eta \|w\|}{\|g\| + \beta \|w\| + \epsilon}

    The sign-free and rate-free part of :func:`lars.lars`, to be chained with a learning
    rate and with momentum, in the order that one wants.

    Args:
        weight_decay: :math:`\beta`, a number or a schedule of the step.
        weight_decay_mask: which parameters are decayed; see :func:`lars.lars`.
        trust_coefficient: :math:`\eta`.
        eps: :math:`\epsilon`.
        trust_ratio_mask: which parameters are adapted; see :func:`lars.lars`.
        layer: which arrays share one ratio; see :func:`lars.lars`.
        zero_norm: the ratio of a layer of norm zero; see :func:`lars.lars`.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs` whose state is a
        :class:`ScaleByLarsState`. Its ``update`` needs ``params``. Updates have the
        gradients' dtypes, after computations in float32 or wider.

    Raises:
        ValueError: as :func:`lars.lars`.
        TypeError: as :func:`lars.lars`.

    Example:
        Momentum with the learning rate outside the buffer, as apex and others have it:

        >>> import jax.numpy as jnp, optax
        >>> import lars
        >>> optimizer = optax.chain(
        ...     lars.scale_by_lars(trust_coefficient=0.01),
        ...     optax.trace(decay=0.9),
        ...     optax.scale_by_learning_rate(2.0),
        ... )
        >>> params = jnp.array([3.0, 4.0])
        >>> grads = jnp.array([0.0, 1e6])
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> print(f"{lars.l2_norm(updates) / lars.l2_norm(params):.3f} of the norm "
        ...       f"at a ratio of {lars.trust_ratios(state):.0e}")
        0.020 of the norm at a ratio of 5e-08

    References:
        You, Gitman and Ginsburg, `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017
    """
    return _widened(
        _scale_by_lars(
            weight_decay,
            weight_decay_mask,
            trust_coefficient,
            eps,
            trust_ratio_mask,
            layer,
            zero_norm,
        )
    )


def _scale_by_lars(
    weight_decay: optax.ScalarOrSchedule,
    weight_decay_mask: Mask,
    trust_coefficient: jax.typing.ArrayLike,
    eps: jax.typing.ArrayLike,
    trust_ratio_mask: Mask,
    layer: Layer,
    zero_norm: ZeroNorm,
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_lars` whose updates come in float32 or wider, for a chain to round."""
    _check_number("weight_decay", weight_decay, schedule=True)
    _check_number("trust_coefficient", trust_coefficient)
    _check_number("eps", eps)
    label_of = _label_function(layer)
    if zero_norm not in ("trust_coefficient", "one", "zero"):
        raise ValueError(
            "zero_norm must be 'trust_coefficient', 'one' or 'zero', "
            f"got {zero_norm!r}."
        )

    def init_fn(params: optax.Params) -> ScaleByLarsState:
        return ScaleByLarsState(
            count=jnp.zeros((), jnp.int32),
            trust_ratio=jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params),
        )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLarsState]:
        del extra_args
        if params is None:
            raise ValueError(
                "LARS needs the parameters: call update(gradients, state, params)."
            )
        paths_and_gradients, treedef = jax.tree_util.tree_flatten_with_path(updates)
        paths = [path for path, _ in paths_and_gradients]
        g = [_widen(gradient) for _, gradient in paths_and_gradients]
        w = [_widen(param) for param in treedef.flatten_up_to(params)]
        is_adapted = _flat_mask(trust_ratio_mask, updates)
        is_decayed = _flat_mask(weight_decay_mask, updates)

        beta: Any = weight_decay
        if callable(weight_decay):
            beta = weight_decay(state.count)
        if isinstance(beta, (int, float)) and beta == 0:
            # Known beforehand, this spares the step a pass over the weights.
            is_decayed = [False] * len(g)

        # u = g + βw; then, layer by layer, u ← λu with λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)
        u = [
            g_i + _as(beta, g_i) * w_i if decayed else g_i
            for g_i, w_i, decayed in zip(g, w, is_decayed, strict=True)
        ]
        trust_ratio = [jnp.ones((), jnp.float32)] * len(u)
        for members in _layers(paths, is_adapted, label_of):
            w_norms = {i: scaled_l2_norm(w[i]) for i in members}
            w_norm = joint_norm(w_norms.values())
            g_norm = joint_norm(scaled_l2_norm(g[i]) for i in members)
            decayed_norm = joint_norm(w_norms[i] for i in members if is_decayed[i])

            dtype = w_norm.fraction.dtype
            numerator = times(trust_coefficient, w_norm)
            denominator = total(g_norm, times(beta, decayed_norm), scaled(eps, dtype))
            # η‖w‖/0 has no value, and at ‖w‖ = 0 the ratio 0 would keep w there.
            at_zero = {"trust_coefficient": trust_coefficient, "one": 1.0, "zero": 0.0}
            is_zero = (w_norm.fraction == 0) | (denominator.fraction == 0)
            numerator = where(is_zero, scaled(at_zero[zero_norm], dtype), numerator)
            denominator = where(is_zero, scaled(1.0, dtype), denominator)

            for i in members:
                # Not λ times u: λ may leave float32's range where λu does not.
                u[i] = multiply_by_ratio(u[i], numerator, denominator)
                trust_ratio[i] = ratio(numerator, denominator).astype(jnp.float32)

        return treedef.unflatten(u), ScaleByLarsState(
            count=optax.safe_increment(state.count),
            trust_ratio=treedef.unflatten(trust_ratio),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: jax.typing.ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    layer: Layer = "parameter",
    zero_norm: ZeroNorm = "trust_coefficient",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Layerwise adaptive rate scaling: Algorithm 1 of its paper.

    .. math::
        \begin{align*}
        \lambda_t &= \frac{\eta\,\|w_t\|}{\|g_t\| + \beta\,\|w_t\| + \epsilon} \\
        v_{t+1} &= m\,v_t + \gamma_t\,\lambda_t\,(g_t + \beta w_t) \\
        w_{t+1} &= w_t - v_{t+1}
        \end{align*}

    for every layer, with learning rate :math:`\gamma`, trust coefficient
    :math:`\eta`, weight decay :math:`\beta` and momentum :math:`m`. Without momentum a
    step moves a layer by at most :math:`\gamma\eta\|w\|`, however large or small its
    gradient is; at :math:`\beta = \epsilon = 0` by exactly that. (Elements of
    gradients, weights and steps that are subnormal, in float32 below 1.2e-38, count as
    zero on backends that flush them; the norms see them.) Learning rates are
    therefore not those of SGD: the paper uses 2 to 40 with :math:`\eta = 0.001`.

    The arguments of :func:`optax.lars` have its meaning here. What differs: the
    denominator (``optax.lars`` has :math:`\|g + \beta w\|`, which may cancel; the two
    are equal at :math:`\beta = 0`), the rule for zero norms (``optax.lars`` takes
    :math:`\lambda = 1`, here ``zero_norm="one"``), and norms that neither overflow nor
    underflow (:func:`lars.l2_norm`).

    Args:
        learning_rate: :math:`\gamma`, a number or a schedule of the step.
        weight_decay: :math:`\beta`, a number or a schedule of the step.
        weight_decay_mask: which parameters are decayed: a tree of booleans, a prefix of
            one, or a function of the parameters that returns one. Elsewhere
            :math:`\beta` is 0, in the step and in the ratio.
        trust_coefficient: :math:`\eta`.
        eps: :math:`\epsilon`, added to the denominator; 0 in the paper.
        trust_ratio_mask: which parameters are adapted, given likewise. Elsewhere
            :math:`\lambda` is 1, so that these step by the full learning rate.
        momentum: :math:`m`. The learning rate and the ratio are inside the buffer
            :math:`v`, as in the paper.
        nesterov: whether to step by :math:`m v_{t+1} + \gamma\lambda(g + \beta w)`.
        layer: which arrays share one ratio, from their joint norms. ``"parameter"``:
            each array is a layer, as in the authors' code. ``"module"``: arrays whose
            paths differ in the last key only, such as a kernel and its bias (in a tree
            of one level, all of them). Or a function from the key path, as
            :func:`jax.tree_util.tree_map_with_path` gives it, to a hashable label:
            equal labels share.
        zero_norm: :math:`\lambda` of a layer whose weights, or whose denominator, are
            exactly zero. ``"trust_coefficient"``: :math:`\eta`, as if the two norms
            were equal, so that a zero-initialised bias starts with a moderate step.
            ``"one"``: 1, as in ``optax.lars`` and in the authors' later code, which is
            a full step of the learning rate along the gradient. ``"zero"``: 0, the
            equation as it stands, under which zero weights stay zero for ever. A zero
            gradient alone needs no rule if :math:`\beta > 0`: the ratio is then
            :math:`\eta / \beta`.
        accumulator_dtype: dtype of :math:`v`; None is the parameters' own. Steps are
            computed in float32 or wider and rounded once whatever it is.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. ``update`` needs ``params``.
        Updates have the gradients' dtypes. :func:`lars.trust_ratios` reads the ratios
        of the last step from the state.

    Note:
        :func:`optax.inject_hyperparams` takes every function and type for a schedule.
        Name those that are none in its ``static_args``: ``layer``, the masks and
        ``accumulator_dtype``. A mask that is forgotten there may be false everywhere.

    Raises:
        ValueError: for a negative, infinite or NaN hyperparameter, a momentum of 1 or
            more, or an unknown name for ``layer`` or ``zero_norm``; in ``update``, if
            ``params`` is missing.
        TypeError: for a hyperparameter of the wrong kind; in ``update``, for gradients
            or parameters that are not real floating point, or a mask that is not of
            booleans.

    Example:
        Two layers at scales 16 decades apart, and one learning rate. Each step changes
        each layer by one per cent of its own norm:

        >>> import jax, jax.numpy as jnp, optax
        >>> import lars
        >>> params = {"small": jnp.full(3, 1e-8), "large": jnp.full(3, 1e8)}
        >>> grads = {"small": jnp.full(3, 1e8), "large": jnp.full(3, 1e-8)}
        >>> optimizer = lars.lars(learning_rate=10.0)
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> for name, ratio in lars.trust_ratios(state).items():
        ...     print(f"{name}: ratio {ratio:.0e}, relative step "
        ...           f"{updates[name][0] / params[name][0]:.3f}")
        large: ratio 1e+13, relative step -0.010
        small: ratio 1e-19, relative step -0.010

    References:
        You, Gitman and Ginsburg, `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017. Its Algorithm 1 prints the ratio
        without :math:`\eta`; equation 6 has it.
    """
    _check_number("learning_rate", learning_rate, schedule=True)
    _check_number("momentum", momentum)
    if isinstance(momentum, (int, float)) and momentum >= 1:
        raise ValueError(f"momentum must be below 1, got {momentum!r}.")
    if not isinstance(nesterov, (bool, np.bool_)):
        raise TypeError(f"nesterov must be True or False, got {nesterov!r}.")
    if accumulator_dtype is not None and not jnp.issubdtype(
        accumulator_dtype, jnp.floating
    ):
        raise TypeError(
            "accumulator_dtype must be a floating-point dtype or None, "
            f"got {accumulator_dtype!r}."
        )
    return _widened(
        optax.chain(
            _scale_by_lars(
                weight_decay,
                weight_decay_mask,
                trust_coefficient,
                eps,
                trust_ratio_mask,
                layer,
                zero_norm,
            ),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov, accumulator_dtype),
        )
    )


def trust_ratios(opt_state: optax.OptState) -> optax.Params:
    """Returns the trust ratio of every parameter in the last step.

    Args:
        opt_state: the state of :func:`lars.lars`, or of any optimizer around it
            (``optax.chain``, ``inject_hyperparams``, ``MultiSteps``, ``masked``,
            ``partition``).

    Returns:
        A tree like the parameters, with a float32 scalar for each: the ratio its layer
        was scaled by, 1 where ``trust_ratio_mask`` excludes it, 0 before the first
        step. A parameter that LARS does not own has `optax.MaskedNode()`.

    Raises:
        ValueError: if there is no LARS in the state, or more than one for a parameter.
    """

    def is_node(x: Any) -> bool:
        return isinstance(x, ScaleByLarsState)

    leaves = jax.tree.leaves(opt_state, is_leaf=is_node)
    found = [leaf.trust_ratio for leaf in leaves if is_node(leaf)]
    if not found:
        raise ValueError(
            "opt_state holds no ScaleByLarsState: trust_ratios needs the state of "
            f"lars.lars or of an optimizer around it, got {type(opt_state).__name__}."
        )

    return functools.reduce(_merge, found)


def _merge(one: Any, other: Any) -> Any:
    """Joins two trees of which each has what is masked in the other."""
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
            "them to trust_ratios."
        )
    others = treedef.flatten_up_to(other)
    return treedef.unflatten(map(_merge, children, others))


def _layers(
    paths: Sequence[KeyPath],
    is_adapted: Sequence[bool],
    label_of: Callable[[KeyPath], Hashable],
) -> list[list[int]]:
    """Groups the positions of the adapted parameters by the layer they belong to."""
    layers: dict[Hashable, list[int]] = {}
    for i, path in enumerate(paths):
        if is_adapted[i]:
            layers.setdefault(label_of(path), []).append(i)
    return list(layers.values())


def _label_function(layer: Layer) -> Callable[[KeyPath], Hashable]:
    if callable(layer):
        return layer
    if layer == "parameter":
        return lambda path: path
    if layer == "module":
        return lambda path: path[:-1]
    raise ValueError(
        "layer must be 'parameter', 'module' or a function from a key path to a label, "
        f"got {layer!r}."
    )


def _widen(x: jax.typing.ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"LARS needs real floating-point gradients and parameters, got {x.dtype}."
        )
    return x.astype(accumulation_dtype(x.dtype))


def _as(number: jax.typing.ArrayLike, like: jax.Array) -> jax.Array:
    return jnp.asarray(number, like.dtype)


def _flat_mask(mask: Mask, tree: optax.Updates) -> list[bool]:
    """The mask's value for every leaf of the tree."""
    mask = mask(tree) if callable(mask) else mask
    if mask is None:
        mask = True
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(f"a mask must hold True and False only, got {leaf!r}.")
    return jax.tree.leaves(jax.tree.broadcast(mask, tree))


def _widened(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Computes in float32 or wider, and keeps the dtypes of the updates and the state.

    Without this, low-precision leaves are rounded after every link of a chain, and a
    hyperparameter given as a float32 array promotes a bfloat16 state, which then no
    longer fits the carry of `jax.lax.scan`.
    """

    def widen(x: jax.Array) -> jax.Array:
        return _widen(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def update_fn(updates, state, params=None, **extra_args):
        new_updates, new_state = inner.update(
            updates, jax.tree.map(widen, state), params, **extra_args
        )
        new_updates, new_state = jax.tree.map(
            lambda new, old: new.astype(jnp.asarray(old).dtype),
            (new_updates, new_state),
            (updates, state),
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _check_number(name: str, value: Any, *, schedule: bool = False) -> None:
    """Refuses what cannot be a hyperparameter.

    JAX arrays may be traced, and are not looked into.
    """
    if (schedule and callable(value)) or isinstance(value, jax.Array):
        return
    number = np.asarray(value)
    if not jnp.issubdtype(number.dtype, np.floating) and not jnp.issubdtype(
        number.dtype, np.integer
    ):
        kind = "a number or a schedule" if schedule else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}.")
    if number.ndim or not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
