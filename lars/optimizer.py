"""LARS, layerwise adaptive rate scaling, as an Optax transformation.

The signatures, and what each argument means. `lars.algorithm` has the equations and
their code, `lars.presets` the published variants.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lars import algorithm
from lars.layers import AxesRules, Layer, check_alike
from lars.options import (
    Denominator,
    Geometry,
    MomentumOf,
    Options,
    WeightDecayKind,
    ZeroGradient,
    ZeroRule,
)
from lars.rules import Mask
from lars.stacks import stacks_of
from lars.state import LarsState, check_state, initial_state


def scale_by_lars(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    momentum: jax.typing.ArrayLike = 0.0,
    nesterov: bool = False,
    layer: Layer = "parameter",
    denominator: Denominator = "sum",
    momentum_of: MomentumOf = "step",
    weight_decay_kind: WeightDecayKind = "coupled",
    clip: bool = False,
    trust_ratio_bounds: tuple[float, float] = (0.0, math.inf),
    direction_bound: jax.typing.ArrayLike | None = None,
    zero_norm: ZeroRule = "trust_coefficient",
    zero_gradient: ZeroGradient = "formula",
    geometry: Geometry = "frobenius",
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
    partition_specs: Any = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each layer's decayed gradient by its trust ratio.

    .. math::
        u = \lambda\,(g + \beta w), \qquad
        \lambda = \frac{\eta \|w\|}{\|g\| + \beta \|w\| + \epsilon}

    :func:`lars.lars` is this with the opposite sign. Alone, it can be chained with a
    learning rate and with momentum in any order.

    Args:
        weight_decay, ..., accumulator_dtype: as for :func:`lars.lars`. By default there
            is no momentum, and the learning rate is 1.

    Returns:
        As :func:`lars.lars`.

    Raises:
        ValueError: as :func:`lars.lars`.
        TypeError: likewise.

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
    return _transformation(Options(**locals()), sign=1)  # has the same arguments


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
    denominator: Denominator = "sum",
    momentum_of: MomentumOf = "step",
    weight_decay_kind: WeightDecayKind = "coupled",
    clip: bool = False,
    trust_ratio_bounds: tuple[float, float] = (0.0, math.inf),
    direction_bound: jax.typing.ArrayLike | None = None,
    zero_norm: ZeroRule = "trust_coefficient",
    zero_gradient: ZeroGradient = "formula",
    geometry: Geometry = "frobenius",
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
    partition_specs: Any = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Layerwise adaptive rate scaling: Algorithm 1 of its paper.

    .. math::
        \begin{align*}
        \lambda_t &= \frac{\eta\,\|w_t\|}{\|g_t\| + \beta\,\|w_t\| + \epsilon} \\
        v_{t+1} &= m\,v_t + \gamma_t\,\lambda_t\,(g_t + \beta w_t) \\
        w_{t+1} &= w_t - v_{t+1}
        \end{align*}

    for every layer, with learning rate :math:`\gamma`, trust coefficient :math:`\eta`,
    weight decay :math:`\beta` and momentum :math:`m`. Without momentum a step moves a
    layer by at most :math:`\gamma\eta\|w\|`, whatever the size of its gradient; at
    :math:`\beta = \epsilon = 0` by exactly that. Learning rates are therefore not those
    of SGD: the paper's Table 3 has 2 to 23 with :math:`\eta = 0.001`. (Elements that
    are subnormal, in float32 below 1.2e-38, count as zero on backends that flush them;
    the norms see them.)

    The arguments of :func:`optax.lars` mean the same here. Different are the
    denominator, which is :math:`\|g + \beta w\|` there and may cancel; the rule for
    zero norms, which is ``zero_norm="one"`` there; norms, which neither overflow nor
    underflow here (:func:`lars.l2_norm`); and layers whose gradient is not finite. Such
    a layer takes no step and keeps its momentum, and :func:`lars.skipped_steps` counts
    it. (A derivative through such a step is not finite. To leave out the whole step,
    put :func:`optax.apply_if_finite` around the optimizer.) Complex parameters have the
    norm of their absolute values. :mod:`lars.presets` has the published variants by
    name; :func:`lars.describe` shows what rules do to parameters.

    Args:
        learning_rate: :math:`\gamma`, a number or a schedule of the step.
        weight_decay: :math:`\beta`, a number or a schedule of the step.
        weight_decay_mask: which parameters are decayed: a tree of booleans, a prefix of
            one, or a function of the parameters that returns one. For the others
            :math:`\beta` is 0, in the step and in the ratio.
        trust_coefficient: :math:`\eta`.
        eps: :math:`\epsilon`; 0 in the paper.
        trust_ratio_mask: which parameters are adapted, given likewise. For the others
            :math:`\lambda` is 1: they step by the full learning rate.
        momentum: :math:`m`. The number 0 keeps no buffer.
        nesterov: whether to step by :math:`m v_{t+1}` plus the increment of the buffer.
        layer: which arrays share one ratio, from their joint norms. ``"parameter"``:
            none. ``"module"``: those whose paths differ in the last key only, such as a
            kernel and its bias. (It is an error if two of them at the top of the tree
            have two axes or more, beside those of ``stacked``.) A function from the key
            path, a tuple as in :func:`jax.tree_util.tree_map_with_path`, to a hashable
            label: those with equal labels. A sequence of selections: those that one
            selects, such as tied weights.
        denominator: of :math:`\lambda`, before :math:`\epsilon`. ``"sum"``:
            :math:`\|g\| + \beta\|w\|`, the paper's. ``"decayed"``:
            :math:`\|g + \beta w\|`, as in ``optax.lars``. ``"gradient"``:
            :math:`\|g\|`. ``"update"``: the norm of the momentum's output, as in LAMB;
            needs ``momentum_of="gradient"``.
        momentum_of: what the buffer accumulates, with :math:`d = g + \beta w`.
            ``"step"``: :math:`\gamma\lambda d`, the paper's. ``"direction"``:
            :math:`\lambda d`; the step is :math:`\gamma` times the buffer, which is the
            same while the rate is constant. ``"gradient"``: :math:`d`; the step is
            :math:`\gamma\lambda` times the buffer.
        weight_decay_kind: ``"coupled"``: :math:`\beta w` is part of :math:`d`.
            ``"outside"``: it is not, and :math:`\gamma\lambda\beta w` is added to the
            step. (For decay that no ratio touches, chain
            :func:`optax.add_decayed_weights`.)
        clip: whether :math:`\lambda` becomes :math:`\min(\lambda/\gamma, 1)`, so that
            the local rate :math:`\gamma\lambda` is at most :math:`\gamma`: LARC.
        trust_ratio_bounds: the least and the largest :math:`\lambda`, before clipping.
        direction_bound: elements of :math:`d` are clamped to plus and minus this, after
            the norms are taken; None is no bound.
        zero_norm: :math:`\lambda` where the norm of the weights, or the denominator, is
            exactly zero. ``"trust_coefficient"``: :math:`\eta`, so that a bias of zeros
            starts with a moderate step. ``"one"``: 1, as in ``optax.lars``, a full step
            along the gradient. ``"plain"``: 1, neither bounded nor clipped. ``"zero"``:
            0, as in the equation, with which zero weights stay zero.
        zero_gradient: :math:`\lambda` where the weights are not zero, but the norm in
            the denominator, :math:`\|g\|` for ``"sum"``, is. ``"formula"``: the
            equation, :math:`\eta/\beta` for the paper's. Or a rule of ``zero_norm``.
        geometry: ``"frobenius"``: norms are Euclidean, as in the paper.
            ``"spectral"``, or a :class:`lars.Spectral` with its options: weights have
            the norm of their largest singular value, and :math:`UV^\top` replaces the
            direction :math:`d = U\Sigma V^\top`, or with ``momentum_of="gradient"`` the
            momentum, as in Muon. The denominator is :math:`\sqrt n + \epsilon` where n
            arrays share a ratio. Kernels of convolutions are matrices of their last
            axis against the rest; biases are one column.
        stacked: pairs of a selection and the axis, or axes, that index layers, as in
            `flax.linen.scan` or stacks of experts. Each slice is a parameter.
        output_axes: pairs of a selection and the axis, or axes, that count outputs, for
            the spectral geometry: ``(1, 2)`` for attention kernels [embed, heads,
            head_dim]; ``()`` makes one column. The default is the last axis. All others
            that do not index layers count inputs.
        partition_specs: inside :func:`jax.shard_map`, where arrays are local parts: a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them.
            Norms are then summed over devices. Global arrays need nothing.
        accumulator_dtype: dtype of :math:`v`; None is the parameters' own. Steps are
            computed in float32 or wider and rounded once. Numbers that a narrow buffer
            cannot hold become the largest that it can.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. ``update`` needs ``params``.
        Updates have the wider dtype of gradient and parameter.
        :func:`lars.trust_ratios` reads the ratios of the last step from the state.

    Note:
        :func:`optax.inject_hyperparams` takes functions and types for schedules. List
        those that are none in its ``static_args``: ``layer``, the masks and
        ``accumulator_dtype``. It calls a forgotten mask with the count of the steps.

        A jitted step that donates its arguments should return them in the order in
        which it takes them, ``(params, state)``: otherwise XLA has to copy both.

    Raises:
        ValueError: for a negative, infinite or NaN hyperparameter, a momentum of 1 or
            more, an unknown name, or options that exclude each other; in ``init`` and
            ``update``, for an empty tree, a rule that selects nothing, and masks, specs
            or gradients that do not match the parameters; in ``update``, if ``params``
            is missing, or the state is of other parameters.
        TypeError: for a hyperparameter of the wrong kind; in ``init`` and ``update``,
            for gradients or parameters that are not floating point, or a mask that is
            not of booleans; in ``update``, for the state of another optimizer.

    Example:
        Two layers at scales 16 decades apart, and one learning rate. Each step changes
        each layer by one per cent of its own norm:

        >>> import jax.numpy as jnp
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
        <https://arxiv.org/abs/1708.03888>`_, 2017. Algorithm 1 prints the ratio without
        :math:`\eta`; equation 6 has it.
    """
    return _transformation(Options(**locals()), sign=-1)  # has the same arguments


def _transformation(o: Options, sign: int) -> optax.GradientTransformationExtraArgs:
    """Steps of the given sign: 1 to be subtracted, -1 to be added."""

    def init_fn(params: optax.Params) -> LarsState:
        return initial_state(o, o.layer_map(params), params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LarsState]:
        del extra_args
        if params is None:
            raise ValueError(
                "LARS needs the parameters: call update(gradients, state, params)."
            )
        layers = o.layer_map(params)
        check_alike(updates, params)
        check_state(o, layers, state, params)
        if not layers.paths:
            return updates, state
        trees = (updates, params, state.trace)
        lists = [list(map(jnp.asarray, jax.tree.leaves(tree))) for tree in trees]
        stacks = stacks_of(layers, bool(o.spectral), *lists)
        step = algorithm.step(
            o, stacks.layers, state.count, *stacks.together(state.count, *lists)
        )
        signed = [x if sign == 1 else -x for x in step.updates]
        new_updates, trace = stacks.apart(state.count, signed, step.trace)
        is_skipped = stacks.in_order(step.is_skipped)
        return jax.tree.unflatten(jax.tree.structure(updates), new_updates), LarsState(
            count=optax.safe_increment(state.count),
            trace=jax.tree.unflatten(jax.tree.structure(state.trace), trace),
            trust_ratio=stacks.in_order(step.trust_ratio),
            skipped_steps=state.skipped_steps + is_skipped.astype(jnp.int32),
            parameters=state.parameters,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
