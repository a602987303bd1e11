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
from lars.layers import AxesRules, Layer, LayerRules, check_alike
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

    The primitive that :func:`lars.lars` is made with, to be chained with a learning
    rate and with momentum, in the order that one wants. It is :func:`lars.lars` with
    the opposite sign, and by default without momentum and at a learning rate of 1.

    Args:
        weight_decay: :math:`\beta`, a number or a schedule of the step.
        weight_decay_mask: which parameters are decayed; see :func:`lars.lars`.
        trust_coefficient: :math:`\eta`.
        eps: :math:`\epsilon`.
        trust_ratio_mask: which parameters are adapted; see :func:`lars.lars`, here and
            below.
        learning_rate: :math:`\gamma`, a number or a schedule of the step.
        momentum: :math:`m`. The number 0 keeps no buffer.
        nesterov: whether the step looks ahead.
        layer: what is a layer.
        denominator: of the ratio.
        momentum_of: what the buffer accumulates.
        weight_decay_kind: whether :math:`\beta w` is in the buffer.
        clip: whether the local rate is at most :math:`\gamma`.
        trust_ratio_bounds: the least and the largest :math:`\lambda`.
        direction_bound: what elements of :math:`g + \beta w` are clamped to, or None.
        zero_norm: :math:`\lambda` where a norm is zero.
        zero_gradient: :math:`\lambda` where only the gradient's is.
        geometry: what a norm is.
        stacked: which axes index layers.
        output_axes: which axes count outputs, for the spectral geometry.
        partition_specs: of the parameters, inside :func:`jax.shard_map`.
        accumulator_dtype: of the momentum.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``. Updates have the wider dtype of gradient and parameter, after
        computations in float32 or wider.

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
    o = Options(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
        denominator=denominator,
        momentum_of=momentum_of,
        weight_decay_kind=weight_decay_kind,
        clip=clip,
        trust_ratio_bounds=trust_ratio_bounds,
        direction_bound=direction_bound,
        zero_norm=zero_norm,
        zero_gradient=zero_gradient,
        geometry=geometry,
        accumulator_dtype=accumulator_dtype,
        rules=LayerRules(
            layer,
            trust_ratio_mask,
            weight_decay_mask,
            stacked,
            output_axes,
            partition_specs,
        ),
    )

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
        return algorithm.step(o, layers, updates, state, params)

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

    for every layer, with learning rate :math:`\gamma`, trust coefficient
    :math:`\eta`, weight decay :math:`\beta` and momentum :math:`m`. Without momentum a
    step moves a layer by at most :math:`\gamma\eta\|w\|`, however large or small its
    gradient is; at :math:`\beta = \epsilon = 0` by exactly that. (Elements of
    gradients, weights and steps that are subnormal, in float32 below 1.2e-38, count as
    zero on backends that flush them; the norms see them.) Learning rates are
    therefore not those of SGD: the paper's Table 3 has 2 to 23 with
    :math:`\eta = 0.001`.

    The arguments of :func:`optax.lars` have its meaning here. What differs: the
    denominator (``optax.lars`` has :math:`\|g + \beta w\|`, which may cancel; the two
    are equal at :math:`\beta = 0`), the rule for zero norms (``optax.lars`` takes
    :math:`\lambda = 1`, here ``zero_norm="one"``), norms that neither overflow nor
    underflow (:func:`lars.l2_norm`), and a gradient that is not finite: its layer takes
    no step and keeps its momentum, the others are not affected, and
    :func:`lars.skipped_steps` counts it. (A derivative through such a step is not
    finite. To leave out the whole step: :func:`optax.apply_if_finite` around this.)
    Complex parameters have the norm of their absolute values, and one ratio.
    :mod:`lars.presets` has this and the other published variants by name;
    :func:`lars.describe` shows what rules do to one's own parameters.

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
        momentum: :math:`m`. The number 0 keeps no buffer.
        nesterov: whether to step by :math:`m v_{t+1}` plus the increment of the buffer.
        layer: which arrays share one ratio, from their joint norms. ``"parameter"``:
            each array is a layer, as in the authors' code. ``"module"``: arrays whose
            paths differ in the last key only, such as a kernel and its bias. (In a tree
            of one level these are all: it is an error if two of them have two axes or
            more, beside those of ``stacked``.) Or a function from the key path to a
            hashable label: equal labels share. The path is a tuple of keys, such as
            ``DictKey('kernel')``, as :func:`jax.tree_util.tree_map_with_path` gives it,
            not the string that ``test`` of :func:`lars.select` gets. Or a sequence of
            selections: what one selects shares, as tied weights should; the rest is
            each its own.
        denominator: of :math:`\lambda`, to which :math:`\epsilon` is added. ``"sum"``:
            :math:`\|g\| + \beta\|w\|`, the paper's. ``"decayed"``:
            :math:`\|g + \beta w\|`, as in ``optax.lars``. ``"gradient"``:
            :math:`\|g\|`. ``"update"``: :math:`\|u\|` of what the momentum made of
            decayed gradients, as in LAMB; needs ``momentum_of="gradient"``.
        momentum_of: what the buffer accumulates. ``"step"``: :math:`\gamma\lambda d`
            with :math:`d = g + \beta w`, the paper's. ``"direction"``:
            :math:`\lambda d`, and the buffer is multiplied by the present
            :math:`\gamma`; the same while the rate is constant. ``"gradient"``:
            :math:`d`, and the buffer is multiplied by the present
            :math:`\gamma\lambda`. (Momentum correction, :math:`m\gamma_t/\gamma_{t-1}`
            in the place of :math:`m`, makes ``"step"`` equal to ``"direction"``: Goyal
            et al. 2017, section 3.)
        weight_decay_kind: ``"coupled"``: :math:`\beta w` is part of the direction.
            ``"outside"``: of the step but not of the buffer, which
            :math:`\gamma\lambda\beta w` is added to. (Decay that no ratio touches is
            :func:`optax.add_decayed_weights` in a chain.)
        clip: whether :math:`\lambda` is replaced by :math:`\min(\lambda/\gamma, 1)`, so
            that the local rate :math:`\gamma\lambda` is at most :math:`\gamma`: LARC.
        trust_ratio_bounds: the least and the largest :math:`\lambda`, before clipping.
        direction_bound: elements of :math:`d` are clamped to plus and minus this, after
            the norms are taken; None is no bound.
        zero_norm: :math:`\lambda` of a layer whose weights, or whose denominator, are
            exactly zero. ``"trust_coefficient"``: :math:`\eta`, as if the two norms
            were equal, so that a zero-initialised bias starts with a moderate step.
            ``"one"``: 1, as in ``optax.lars`` and in the authors' later code, which is
            a full step of the learning rate along the gradient. ``"plain"``: 1, and
            neither bounded nor clipped. ``"zero"``: 0, the equation as it stands, under
            which zero weights stay zero for ever.
        zero_gradient: :math:`\lambda` of a layer whose weights are not zero, but whose
            norm that the denominator takes beside decay and :math:`\epsilon` is:
            :math:`\|g\|`, or whichever ``denominator`` names. ``"formula"``: the
            equation as it stands; for the paper's, :math:`\eta/\beta`. Or one of the
            rules of ``zero_norm``.
        geometry: ``"frobenius"``: norms are Euclidean, as in the paper.
            ``"spectral"``, or a :class:`lars.Spectral` with its options: weights are
            measured by their largest singular value, and the direction
            :math:`d = U\Sigma V^\top` is replaced by :math:`UV^\top`, whose norm is 1;
            the denominator is then :math:`1 + \epsilon` (:math:`\sqrt n + \epsilon` for
            a ratio that n arrays share). Kernels of convolutions are matrices of their
            last axis against the rest, biases one column. With
            ``momentum_of="gradient"`` it is the momentum that is orthogonalised, as in
            Muon.
        stacked: pairs of a selection and the axis, or axes, that index layers, as
            `flax.linen.scan`, stacks of experts and fused projections have them. Each
            slice has a ratio of its own, as if it were a parameter of its own.
        output_axes: pairs of a selection and the axis, or axes, that count outputs, for
            the spectral geometry: those of attention kernels [embed, heads, head_dim]
            are ``(1, 2)``. None of them, ``()``, makes a matrix of one column. Without
            a pair it is the last axis; all others, that do not index layers, count
            inputs.
        partition_specs: inside :func:`jax.shard_map`, where arrays are local parts: a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them
            like the parameters. Norms are then summed over the devices. Under
            :func:`jax.jit` global arrays need nothing.
        accumulator_dtype: dtype of :math:`v`; None is the parameters' own. Steps are
            computed in float32 or wider and rounded once whatever it is. Elements of a
            step's momentum that a narrower dtype cannot hold become the largest number
            that it can. What it does not change is that parameters are rounded to their
            own dtype after each step.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. ``update`` needs ``params``.
        Updates have the wider dtype of gradient and parameter.
        :func:`lars.trust_ratios` reads the ratios of the last step from the state.

    Note:
        :func:`optax.inject_hyperparams` takes every function and type for a schedule.
        List those that are no schedules in its ``static_args``: ``layer``, the masks
        and ``accumulator_dtype``. A mask that is forgotten there is called with the
        count of the steps. :func:`lars.select` has an error for that, where it selects
        nothing; a function of one's own may be false everywhere without one.

        A jitted step that donates its arguments should return them in the order in
        which it takes them, ``(params, state)``: otherwise XLA puts the parameters
        where the momentum was and has to copy both.

    Raises:
        ValueError: for a negative, infinite or NaN hyperparameter, a momentum of 1 or
            more, an unknown name, or options that exclude each other; in ``init`` and
            ``update``, for an empty tree, a rule that selects nothing,
            ``layer="module"`` for a tree that is not nested by module, and masks, specs
            or gradients that do not match the parameters; in ``update``, if ``params``
            is missing, or the state is of other parameters.
        TypeError: for a hyperparameter of the wrong kind; in ``init`` and ``update``,
            for gradients or parameters that are not floating point, or a mask
            that is not of booleans; in ``update``, for the state of another optimizer.

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

        Goyal et al., `Accurate, Large Minibatch SGD
        <https://arxiv.org/abs/1706.02677>`_, 2017 (momentum correction)
    """
    ascent = scale_by_lars(
        weight_decay,
        weight_decay_mask,
        trust_coefficient,
        eps,
        trust_ratio_mask,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        layer=layer,
        denominator=denominator,
        momentum_of=momentum_of,
        weight_decay_kind=weight_decay_kind,
        clip=clip,
        trust_ratio_bounds=trust_ratio_bounds,
        direction_bound=direction_bound,
        zero_norm=zero_norm,
        zero_gradient=zero_gradient,
        geometry=geometry,
        stacked=stacked,
        output_axes=output_axes,
        partition_specs=partition_specs,
        accumulator_dtype=accumulator_dtype,
    )

    def update_fn(updates, state, params=None, **extra_args):
        updates, state = ascent.update(updates, state, params, **extra_args)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(ascent.init, update_fn)
