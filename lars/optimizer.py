r"""LARS, layerwise adaptive rate scaling, as an Optax transformation.

For every layer, with weights w, gradient g, learning rate γ, trust coefficient η,
weight decay β and momentum m (You, Gitman and Ginsburg 2017, Algorithm 1):

    λ ← η ‖w‖ / (‖g‖ + β ‖w‖)         the trust ratio
    v ← m v + γ λ (g + β w)
    w ← w - v

Published variants differ in the denominator, in what the buffer v accumulates, in where
the decay enters, and in bounds of λ. These are the options of `lars`; `lars.presets`
has the combinations that are in use.
"""

import dataclasses
import functools
import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from lars.layers import Axes, Layer, Layout, Plan, Rules, widen
from lars.norms import accumulation_dtype, scaled_l2_norms
from lars.rules import Mask, Selection
from lars.scaled import (
    Factors,
    Scaled,
    factors,
    ratio,
    scaled,
    times,
    total,
    value,
    where,
)
from lars.sharded import ArrayAxes, of_all_layers, spread
from lars.spectral import (
    Spectral,
    as_matrices,
    from_matrices,
    orthogonalize,
    scaled_spectral_norm,
)

Denominator = Literal["sum", "decayed", "gradient", "update"]
MomentumOf = Literal["step", "direction", "gradient"]
WeightDecayKind = Literal["coupled", "outside", "decoupled"]
ZeroRule = Literal["trust_coefficient", "one", "plain", "zero"]
Nonfinite = Literal["skip_layer", "skip_step", "propagate"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("trust_ratio", "skipped_steps"),
    meta_fields=("layout",),
)
@dataclasses.dataclass(frozen=True)
class Telemetry:
    """What the last step did in every layer, as two vectors.

    Vectors, because thousands of scalars in a state would take longer to hand over than
    a step takes. `trust_ratios` and `skipped_steps` make trees of them.
    """

    trust_ratio: jax.Array  # shape=(layers,), float32
    skipped_steps: jax.Array  # shape=(layers,), int32
    layout: Layout


def _tell_flax() -> None:
    """Lets `flax.serialization`, where somebody uses it, save and restore the state."""
    serialization: Any = sys.modules.get("flax.serialization")
    if serialization is None:
        return
    names = ("trust_ratio", "skipped_steps")

    def to_dict(x: Telemetry) -> dict[str, Any]:
        return {name: getattr(x, name) for name in names}

    def from_dict(x: Telemetry, saved: dict[str, Any]) -> Telemetry:
        return dataclasses.replace(
            x,
            **{
                name: serialization.from_state_dict(
                    getattr(x, name), saved[name], name=name
                )
                for name in names
            },
        )

    serialization.register_serialization_state(
        Telemetry, to_dict, from_dict, override=True
    )


class LarsState(NamedTuple):
    """State of `lars` and `scale_by_lars`."""

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # the momentum buffer, like the parameters; () without one
    telemetry: Telemetry
    # shape=(learning rates,), of the last step; () where nothing needs them
    last_learning_rates: Any


def scale_by_lars(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    *,
    layer: Layer = "parameter",
    denominator: Denominator = "sum",
    weight_decay_kind: WeightDecayKind = "coupled",
    trust_ratio_bounds: tuple[float, float] = (0.0, math.inf),
    direction_bound: jax.typing.ArrayLike | None = None,
    zero_norm: ZeroRule = "trust_coefficient",
    zero_gradient: ZeroRule | Literal["formula"] = "formula",
    min_norm: jax.typing.ArrayLike = 0.0,
    nonfinite: Nonfinite = "skip_layer",
    geometry: Literal["frobenius", "spectral"] | Spectral = "frobenius",
    stacked: Sequence[tuple[Selection, Axes]] = (),
    partition_specs: Any = None,
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
        layer: what is a layer; see :func:`lars.lars`, here and below.
        denominator: of the ratio. ``"update"`` is not for here: it needs the momentum.
        weight_decay_kind: as ``"decoupled"``, :math:`u = \lambda g + \beta w`.
        trust_ratio_bounds: the least and the largest :math:`\lambda`.
        direction_bound: what elements of :math:`g + \beta w` are clamped to, or None.
        zero_norm: :math:`\lambda` where a norm is zero.
        zero_gradient: :math:`\lambda` where only the gradient's is.
        min_norm: norms up to this count as zero.
        nonfinite: what is done where a gradient or a parameter is not finite. A layer
            is skipped by an update of zero, which momentum that follows is not told.
        geometry: what a norm is.
        stacked: which axes index layers.
        partition_specs: of the parameters, inside :func:`jax.shard_map`.

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
    if denominator == "update":
        raise ValueError(
            "denominator='update' is the norm of what a momentum makes, and "
            "scale_by_lars has none: use lars.lars."
        )
    descent = lars(
        1.0,
        weight_decay,
        weight_decay_mask,
        trust_coefficient,
        eps,
        trust_ratio_mask,
        momentum=0.0,
        layer=layer,
        denominator=denominator,
        weight_decay_kind=weight_decay_kind,
        trust_ratio_bounds=trust_ratio_bounds,
        direction_bound=direction_bound,
        zero_norm=zero_norm,
        zero_gradient=zero_gradient,
        min_norm=min_norm,
        nonfinite=nonfinite,
        geometry=geometry,
        stacked=stacked,
        partition_specs=partition_specs,
    )

    def update_fn(updates, state, params=None, **extra_args):
        updates, state = descent.update(updates, state, params, **extra_args)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(descent.init, update_fn)


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
    dampening: jax.typing.ArrayLike = 0.0,
    momentum_correction: bool = False,
    clip: bool = False,
    trust_ratio_bounds: tuple[float, float] = (0.0, math.inf),
    direction_bound: jax.typing.ArrayLike | None = None,
    zero_norm: ZeroRule = "trust_coefficient",
    zero_gradient: ZeroRule | Literal["formula"] = "formula",
    min_norm: jax.typing.ArrayLike = 0.0,
    nonfinite: Nonfinite = "skip_layer",
    geometry: Literal["frobenius", "spectral"] | Spectral = "frobenius",
    learning_rates: Sequence[tuple[Selection, optax.ScalarOrSchedule]] = (),
    excluded_momentum_of: MomentumOf | None = None,
    stacked: Sequence[tuple[Selection, Axes]] = (),
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
    underflow (:func:`lars.l2_norm`), and what is done where a gradient is not finite.
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
            :math:`\gamma\lambda`.
        weight_decay_kind: ``"coupled"``: :math:`\beta w` is part of the direction.
            ``"outside"``: of the step but not of the buffer, which
            :math:`\gamma\lambda\beta w` is added to. ``"decoupled"``:
            :math:`\gamma\beta w` is added instead, and the ratio knows nothing of it.
        dampening: :math:`\tau`; what goes into the buffer is multiplied by
            :math:`1 - \tau`.
        momentum_correction: whether the buffer is multiplied by
            :math:`m\gamma_t/\gamma_{t-1}`, which makes ``momentum_of="step"`` equal to
            ``"direction"`` under any schedule of positive rates (Goyal et al. 2017,
            section 3). A rate of zero empties the buffer.
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
        min_norm: norms of layers up to this count as zero. At 0 none do: norms do not
            underflow.
        nonfinite: where a gradient, or the weights, of a layer have an element that is
            infinite or NaN. ``"skip_layer"``: it takes no step and keeps its momentum,
            the others are not affected, and :func:`lars.skipped_steps` counts it.
            ``"skip_step"``: no layer takes a step and the schedules stand still, as in
            :func:`optax.apply_if_finite`. ``"propagate"``: nothing is looked at.
            A derivative through a step in which something was skipped is not finite.
        geometry: ``"frobenius"``: norms are Euclidean, as in the paper.
            ``"spectral"``, or a :class:`lars.Spectral` with its options: weights are
            measured by their largest singular value, and the direction
            :math:`d = U\Sigma V^\top` is replaced by :math:`UV^\top`, whose norm is 1;
            the denominator is then :math:`1 + \epsilon` (:math:`\sqrt n + \epsilon` for
            a ratio that n arrays share). Kernels of convolutions are matrices of their
            last axis against the rest, biases one column. With
            ``momentum_of="gradient"`` it is the momentum that is orthogonalised, as in
            Muon.
        learning_rates: own learning rates: pairs of a selection (:func:`lars.select`)
            and a number or a schedule. The first that selects a parameter holds, the
            others have ``learning_rate``. A selection of nothing is an error, one whose
            parameters all have a rate from an earlier pair is not.
        excluded_momentum_of: ``momentum_of`` for the parameters that
            ``trust_ratio_mask`` excludes; None is as for the others.
        stacked: pairs of a selection and the axis, or axes, that index layers, as
            `flax.linen.scan`, stacks of experts and fused projections have them. Each
            slice has a ratio of its own, as if it were a parameter of its own.
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
            for gradients or parameters that are not real floating point, or a mask
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
    for name, number in (
        ("weight_decay", weight_decay),
        ("trust_coefficient", trust_coefficient),
        ("eps", eps),
        ("momentum", momentum),
        ("dampening", dampening),
        ("min_norm", min_norm),
    ):
        check_number(name, number, schedule=name == "weight_decay")
    check_number("learning_rate", learning_rate, schedule=True)
    if direction_bound is not None:
        check_number("direction_bound", direction_bound)
    for name, number in (("momentum", momentum), ("dampening", dampening)):
        check_below_one(name, number)
    for name, flag in (
        ("nesterov", nesterov),
        ("momentum_correction", momentum_correction),
        ("clip", clip),
    ):
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {flag!r}.")
    for name, choice, choices in (
        ("denominator", denominator, get_args(Denominator)),
        ("momentum_of", momentum_of, get_args(MomentumOf)),
        (
            "excluded_momentum_of",
            excluded_momentum_of,
            (None, *get_args(MomentumOf)),
        ),
        ("weight_decay_kind", weight_decay_kind, get_args(WeightDecayKind)),
        ("zero_norm", zero_norm, get_args(ZeroRule)),
        ("zero_gradient", zero_gradient, ("formula", *get_args(ZeroRule))),
        ("nonfinite", nonfinite, get_args(Nonfinite)),
    ):
        if choice not in choices:
            names = ", ".join(map(repr, choices))
            raise ValueError(f"{name} must be one of {names}, got {choice!r}.")
    if not (geometry in ("frobenius", "spectral") or isinstance(geometry, Spectral)):
        raise ValueError(
            "geometry must be 'frobenius', 'spectral' or a lars.Spectral, "
            f"got {geometry!r}."
        )
    if accumulator_dtype is not None and not jnp.issubdtype(
        accumulator_dtype, jnp.floating
    ):
        raise TypeError(
            "accumulator_dtype must be a floating-point dtype or None, "
            f"got {accumulator_dtype!r}."
        )
    _check_bounds(trust_ratio_bounds)
    if denominator == "update" and momentum_of != "gradient":
        raise ValueError(
            "denominator='update' is the norm of what a buffer of gradients makes: it "
            f"needs momentum_of='gradient', got {momentum_of!r}."
        )
    if momentum_correction and momentum_of != "step":
        raise ValueError(
            "momentum_correction is for a buffer that has the learning rate inside: it "
            f"needs momentum_of='step', got {momentum_of!r}."
        )
    rules = Rules(
        layer,
        trust_ratio_mask,
        weight_decay_mask,
        tuple(learning_rates) if isinstance(learning_rates, list) else learning_rates,
        tuple(stacked) if isinstance(stacked, list) else stacked,
        partition_specs,
    )
    rules.check()
    for rule, rate in rules.learning_rates:
        check_number(f"learning_rates: the rate of {rule!r}", rate, schedule=True)
    return _transformation(
        _Options(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            momentum=momentum,
            nesterov=bool(nesterov),
            denominator=denominator,
            momentum_of=momentum_of,
            excluded_momentum_of=excluded_momentum_of or momentum_of,
            weight_decay_kind=weight_decay_kind,
            dampening=dampening,
            momentum_correction=bool(momentum_correction),
            clip=bool(clip),
            trust_ratio_bounds=trust_ratio_bounds,
            direction_bound=direction_bound,
            zero_norm=zero_norm,
            zero_gradient=zero_gradient,
            min_norm=min_norm,
            nonfinite=nonfinite,
            spectral=Spectral()
            if geometry == "spectral"
            else geometry
            if isinstance(geometry, Spectral)
            else None,
            accumulator_dtype=accumulator_dtype,
            rules=rules,
        )
    )


class _Options(NamedTuple):
    """The arguments of `lars`, checked."""

    learning_rate: optax.ScalarOrSchedule
    weight_decay: optax.ScalarOrSchedule
    trust_coefficient: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    momentum: jax.typing.ArrayLike
    nesterov: bool
    denominator: Denominator
    momentum_of: MomentumOf
    excluded_momentum_of: MomentumOf
    weight_decay_kind: WeightDecayKind
    dampening: jax.typing.ArrayLike
    momentum_correction: bool
    clip: bool
    trust_ratio_bounds: tuple[float, float]
    direction_bound: jax.typing.ArrayLike | None
    zero_norm: ZeroRule
    zero_gradient: ZeroRule | Literal["formula"]
    min_norm: jax.typing.ArrayLike
    nonfinite: Nonfinite
    spectral: Spectral | None
    accumulator_dtype: Any
    rules: Rules

    @property
    def has_momentum(self) -> bool:
        """Whether there is a buffer: a zero known beforehand spares its memory."""
        return not _is_known_zero(self.momentum)


def _transformation(o: _Options) -> optax.GradientTransformationExtraArgs:
    def init_fn(params: optax.Params) -> LarsState:
        _tell_flax()
        layout = o.rules.plan(params).layout
        rates = 1 + len(o.rules.learning_rates)
        return LarsState(
            count=jnp.zeros((), jnp.int32),
            trace=optax.tree.zeros_like(params, dtype=o.accumulator_dtype)
            if o.has_momentum
            else (),
            telemetry=Telemetry(
                trust_ratio=jnp.zeros(layout.total, jnp.float32),
                skipped_steps=jnp.zeros(layout.total, jnp.int32),
                layout=layout,
            ),
            last_learning_rates=jnp.zeros(rates, _widest(params))
            if o.momentum_correction
            else (),
        )

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
        _tell_flax()
        plan = o.rules.plan(params)
        _check_alike(updates, params, plan)
        _check_state(o, state, params, plan)
        if not plan.paths:
            return updates, state
        return _update(o, plan, updates, state, params)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _update(
    o: _Options,
    plan: Plan,
    updates: optax.Updates,
    state: LarsState,
    params: optax.Params,
) -> tuple[optax.Updates, LarsState]:
    """One step, equation by equation."""
    old_updates, treedef = jax.tree.flatten(updates)
    old_traces = jax.tree.leaves(state.trace) if o.has_momentum else []
    g = [widen(x) for x in old_updates]
    w = [widen(x) for x in jax.tree.leaves(params)]
    v: list[Any] = [widen(x) for x in old_traces] or [None] * len(g)
    dtype = _widest((g, w))
    # A float16 gradient of a float32 parameter says nothing about the step's size.
    with jax.numpy_dtype_promotion("standard"):
        dtypes = [
            jnp.promote_types(jnp.result_type(x), jnp.result_type(y))
            for x, y in zip(old_updates, jax.tree.leaves(params), strict=True)
        ]

    beta = _at(o.weight_decay, state.count)
    schedules = (o.learning_rate, *(rate for _, rate in o.rules.learning_rates))
    rates = [jnp.asarray(_at(rate, state.count), dtype) for rate in schedules]
    gamma = [rates[k] for k in plan.rates]
    momentum_of = [
        o.momentum_of if adapted else o.excluded_momentum_of
        for adapted in plan.is_adapted
    ]
    # Known beforehand, β = 0 spares the step a pass over the weights.
    is_decayed = [x and not _is_known_zero(beta) for x in plan.is_decayed]

    # The direction: d = g + βw
    d = list(g)
    for i, decayed in enumerate(is_decayed):
        if decayed and o.weight_decay_kind == "coupled":
            d[i] = g[i] + _as(beta, g[i]) * w[i]
    bounded = [_bounded(x, o.direction_bound) for x in d]

    # A buffer of gradients does not need the ratio, and the ratio may need it.
    u, new_v = list(bounded), list(v)
    for i, kind in enumerate(momentum_of):
        if kind == "gradient":
            # Kept or not is not known yet.
            u[i], new_v[i] = _momentum(o, v[i], v[i], bounded[i], None)

    measured = {"sum": g, "gradient": g, "decayed": d, "update": u}[o.denominator]
    if o.spectral:
        measured = u
    layers = _trust_ratios(o, plan, measured, w, is_decayed, beta, rates)

    if o.spectral:
        u = [
            _orthogonalized(o.spectral, x, plan, i) if plan.is_adapted[i] else x
            for i, x in enumerate(u)
        ]
    one = jnp.ones((), dtype)
    rate = layers.learning_rate
    of_kind = {
        kind: factors(times(extra, layers.ratio), layers.size)
        for kind, extra in {"step": rate, "direction": one, "gradient": rate}.items()
        if kind in momentum_of
    }
    of_decay = {}
    if o.weight_decay_kind == "outside" and any(is_decayed):
        relative = times(rate, times(beta, layers.ratio))
        of_decay = {"outside": factors(relative, layers.param_norm)}
    are_kept = () if o.nonfinite == "propagate" else (~layers.is_finite,)
    by, are_kept = _computed_first(state.count, ({**of_kind, **of_decay}, are_kept))
    factor = {kind: _for_parameters(plan, pair) for kind, pair in by.items()}
    outside = factor.get("outside")
    is_kept: list[Any] = [None] * len(g)
    for vector in are_kept:
        is_kept = [
            spread(kept, split, x.shape)
            for kept, split, x in zip(
                plan.layout.pieces(vector), plan.splits, g, strict=True
            )
        ]

    new_updates, new_traces = [], []
    for i, kind in enumerate(momentum_of):
        split, kept = plan.splits[i], is_kept[i]
        step = _multiplied(u[i], factor[kind][i], split)
        if kind == "direction":
            step, new_v[i] = _momentum(o, v[i], v[i], step, kept)
            step = _as(gamma[i], step) * step
        elif kind == "step":
            old = _corrected(o, v[i], rates, state, plan.rates[i])
            # Where the whole step is left out, the last rate stands still as well.
            keep = v[i] if o.nonfinite == "skip_step" else old
            step, new_v[i] = _momentum(o, old, keep, step, kept)
        elif v[i] is not None and kept is not None:
            new_v[i] = jnp.where(kept, v[i], new_v[i])
        if is_decayed[i] and outside is not None:
            step = step + _multiplied(w[i], outside[i], split)
        elif is_decayed[i] and o.weight_decay_kind == "decoupled":
            step = step + _as(gamma[i], w[i]) * (_as(beta, w[i]) * w[i])

        if kept is not None:
            step = jnp.where(kept, 0, step)
        new_updates.append((-step).astype(dtypes[i]))
        if v[i] is not None:
            new_traces.append(_saturated(new_v[i], jnp.result_type(old_traces[i])))

    old = state.telemetry
    happened = jnp.bool(True)
    if o.nonfinite == "skip_step":
        happened = jnp.all(layers.is_finite)
    trust_ratio = value(layers.ratio)
    skipped = old.skipped_steps
    if o.nonfinite != "propagate":
        trust_ratio = jnp.where(layers.is_finite, trust_ratio, 0)
        skipped = skipped + (~layers.was_finite).astype(jnp.int32)
    return treedef.unflatten(new_updates), LarsState(
        count=jnp.where(happened, optax.safe_increment(state.count), state.count),
        trace=jax.tree.unflatten(jax.tree.structure(state.trace), new_traces)
        if o.has_momentum
        else (),
        telemetry=Telemetry(trust_ratio.astype(jnp.float32), skipped, plan.layout),
        last_learning_rates=jnp.where(
            happened, jnp.stack(rates), state.last_learning_rates
        )
        if o.momentum_correction
        else (),
    )


class _Layers(NamedTuple):
    """What is known of every slice of every parameter: vectors of one length."""

    ratio: Scaled
    size: Scaled  # about the norm of what is multiplied by the ratio
    param_norm: Scaled
    learning_rate: jax.Array
    is_finite: jax.Array  # whether it takes part in the step
    was_finite: jax.Array  # whether its own numbers are finite


def _trust_ratios(
    o: _Options,
    plan: Plan,
    measured: Sequence[jax.Array],
    w: Sequence[jax.Array],
    is_decayed: Sequence[bool],
    beta: Any,
    rates: Sequence[jax.Array],
) -> _Layers:
    """λ = η‖w‖ / (‖g‖ + β‖w‖ + ε), with what holds where that has no good value."""
    dtype = rates[0].dtype
    layout = plan.layout
    needed = [x or o.nonfinite != "propagate" for x in plan.is_adapted]
    x_norm, w_norm = _norms([(measured, needed), (w, needed)], plan, dtype)
    joint_x, joint_w = plan.joint(x_norm), plan.joint(w_norm)
    is_finite = jnp.isfinite(joint_x.fraction) & jnp.isfinite(joint_w.fraction)
    joint_x = _nonzero_above(o.min_norm, joint_x)
    if o.spectral:
        w_norm = _spectral_norms(w, plan, dtype)
        # The orthogonal factor has norm 1, that of zero is zero.
        factor_norm = plan.joint(scaled(jnp.sign(x_norm.fraction), dtype))
        joint_x = where(joint_x.fraction == 0, joint_x, factor_norm)
    is_adapted = jnp.asarray(layout.vector(plan.is_adapted))
    joint_w = _nonzero_above(o.min_norm, plan.joint(w_norm))
    direction_norm = joint_x
    if any(is_decayed) and o.weight_decay_kind != "decoupled" and not o.spectral:
        decays = jnp.asarray(layout.vector(is_decayed))
        decayed_norm = Scaled(jnp.where(decays, w_norm.fraction, 0), w_norm.exponent)
        direction_norm = total(joint_x, times(beta, plan.joint(decayed_norm)))
    in_ratio = direction_norm if o.denominator == "sum" else joint_x
    denominator = total(in_ratio, scaled(o.eps, dtype))

    # η‖w‖/0 has no value, and at ‖w‖ = 0 the ratio 0 would keep w there.
    eta = jnp.asarray(o.trust_coefficient, dtype)
    of_rule = {"trust_coefficient": eta, "one": 1.0, "plain": 1.0, "zero": 0.0}
    w_is_zero = joint_w.fraction == 0
    is_zero = w_is_zero | (denominator.fraction == 0)
    denominator = where(is_zero, scaled(1.0, dtype), denominator)
    formula = ratio(times(eta, joint_w), denominator)
    ratio_ = where(is_zero, scaled(of_rule[o.zero_norm], dtype), formula)
    is_plain = is_zero & (o.zero_norm == "plain")
    if o.zero_gradient != "formula":
        x_is_zero = (joint_x.fraction == 0) & ~w_is_zero
        ratio_ = where(x_is_zero, scaled(of_rule[o.zero_gradient], dtype), ratio_)
        is_plain = jnp.where(x_is_zero, o.zero_gradient == "plain", is_plain)

    ratio_ = Scaled(plan.slices(ratio_.fraction), plan.slices(ratio_.exponent))
    is_plain, was_finite = plan.slices(is_plain), plan.slices(is_finite)
    gamma = rates[0]
    if len(rates) > 1:
        gamma = jnp.stack(rates)[layout.vector(plan.rates)]
    gamma = jnp.broadcast_to(gamma, ratio_.fraction.shape)
    ratio_ = where(is_plain, ratio_, _clipped(o, ratio_, gamma))
    ratio_ = where(is_adapted, ratio_, scaled(1.0, dtype))
    is_finite = was_finite
    if o.nonfinite == "skip_step":
        is_finite = jnp.broadcast_to(jnp.all(was_finite), was_finite.shape)
    size = Scaled(
        plan.slices(direction_norm.fraction), plan.slices(direction_norm.exponent)
    )
    size = where(is_adapted, size, scaled(1.0, dtype))
    return _Layers(ratio_, size, w_norm, gamma, is_finite, was_finite)


def _clipped(o: _Options, x: Scaled, gamma: jax.Array) -> Scaled:
    """The ratio within its bounds, and with γλ at most γ if it is to be clipped."""
    low, high = o.trust_ratio_bounds
    dtype = x.fraction.dtype
    if low > 0:
        x = where(value(x) < low, scaled(low, dtype), x)
    if high < math.inf:
        x = where(value(x) > high, scaled(high, dtype), x)
    if o.clip:
        # min(λ/γ, 1), as apex writes it: the local rate is min(λ, γ).
        relative = ratio(x, scaled(jnp.where(gamma > 0, gamma, 1), dtype))
        x = where(value(x) >= gamma, scaled(1.0, dtype), relative)
    return x


def _norms(
    of: Sequence[tuple[Sequence[jax.Array], Sequence[bool]]], plan: Plan, dtype: Any
) -> list[Scaled]:
    """The norms of all slices of the arrays that are needed; 1 for the others.

    Of several sets of arrays like the parameters together, which asks only once whether
    the ordinary sums of squares will do.
    """
    chosen = [
        (x, split)
        for arrays, needed in of
        for x, split, wanted in zip(arrays, plan.splits, needed, strict=True)
        if wanted
    ]
    norms = scaled_l2_norms([x for x, _ in chosen], [split for _, split in chosen])
    found, start = [], 0
    for _, needed in of:
        end = start + int(plan.layout.vector(needed).sum())
        part = Scaled(norms.fraction[start:end], norms.exponent[start:end])
        found.append(_filled(part, needed, plan, dtype))
        start = end
    return found


def _filled(norms: Scaled, needed: Sequence[bool], plan: Plan, dtype: Any) -> Scaled:
    norms = Scaled(norms.fraction.astype(dtype), norms.exponent)
    if all(needed):
        return norms
    places = plan.layout.vector(needed)
    order = np.where(places, np.cumsum(places) - 1, places.sum()).astype(np.int32)
    return Scaled(
        jnp.pad(norms.fraction, (0, 1), constant_values=1)[order],
        jnp.pad(norms.exponent, (0, 1))[order],
    )


def _spectral_norms(w: Sequence[jax.Array], plan: Plan, dtype: Any) -> Scaled:
    fractions, exponents = [jnp.zeros(0, dtype)], [jnp.zeros(0, jnp.int32)]
    for x, split, adapted in zip(w, plan.splits, plan.is_adapted, strict=True):
        if adapted:
            norm = scaled_spectral_norm(as_matrices(split.whole(x), split.layer_axes))
            fraction = of_all_layers(norm.fraction, split, x.shape)
            # Above zero, which stands for the layers of other devices.
            offset = 2**20
            exponent = of_all_layers(norm.exponent + offset, split, x.shape) - offset
            fractions.append(jnp.ravel(fraction).astype(dtype))
            exponents.append(jnp.ravel(exponent))
    norms = Scaled(jnp.concatenate(fractions), jnp.concatenate(exponents))
    return _filled(norms, plan.is_adapted, plan, dtype)


def _orthogonalized(spectral: Spectral, x: jax.Array, plan: Plan, i: int) -> jax.Array:
    split = plan.splits[i]
    whole = split.whole(x)
    matrices = as_matrices(whole, split.layer_axes)
    matrices = orthogonalize(matrices, spectral.steps, spectral.dtype)
    return split.part(from_matrices(matrices, whole.shape, split.layer_axes), x)


def _nonzero_above(min_norm: Any, x: Scaled) -> Scaled:
    if _is_known_zero(min_norm):
        return x
    fraction = jnp.where(value(x) <= _as(min_norm, x.fraction), 0, x.fraction)
    return Scaled(fraction, x.exponent)


@jax.custom_jvp
def _computed_first(count: jax.Array, vectors: Any) -> Any:
    """The vectors as they are, computed once, before what takes single elements.

    Otherwise XLA computes them for all layers in the kernel of every parameter, which
    with thousands of parameters takes minutes to compile. It drops
    `jax.lax.optimization_barrier` before it fuses, but it does not look through a loop,
    not even through this one, which never iterates: no count is negative.
    """

    def other(x: jax.Array) -> jax.Array:
        return ~x if x.dtype == jnp.bool else -x

    _, vectors = jax.lax.while_loop(
        lambda carry: carry[0] < 0,
        lambda carry: (carry[0] + 1, jax.tree.map(other, carry[1])),
        (jnp.asarray(count), vectors),
    )
    return vectors


@_computed_first.defjvp
def _computed_first_jvp(primals, tangents):
    return _computed_first(*primals), tangents[1]


def _for_parameters(plan: Plan, by: Factors) -> list[Factors]:
    """For every parameter, the factors of its slices."""
    return [Factors(*pair) for pair in zip(*map(plan.layout.pieces, by), strict=True)]


def _multiplied(x: jax.Array, by: Factors, split: ArrayAxes) -> jax.Array:
    # Not by the product of the two: that may leave the range where this does not.
    for number in by:
        x = x * spread(number, split, x.shape).astype(x.dtype)
    return x


def _momentum(
    o: _Options,
    v: jax.Array | None,
    keep: jax.Array | None,
    x: jax.Array,
    kept: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Adds to the buffer, or keeps it. Returns what it makes, and the buffer.

    What it makes is computed from the new buffer: from the old one, XLA could not write
    the new one in its place.
    """
    x = x if _is_known_zero(o.dampening) else (1 - _as(o.dampening, x)) * x
    if v is None:
        return x, None
    new_v = _as(o.momentum, x) * v.astype(x.dtype) + x
    if kept is not None and keep is not None:
        new_v = jnp.where(kept, keep.astype(x.dtype), new_v)
    # The new buffer is of the present rate: the lookahead needs no correction.
    return (_as(o.momentum, x) * new_v + x if o.nesterov else new_v), new_v


def _corrected(
    o: _Options,
    v: jax.Array | None,
    rates: Sequence[jax.Array],
    state: LarsState,
    number: int,
) -> jax.Array | None:
    """v γ_t / γ_{t-1}, with which a buffer of γλd acts like γ times one of λd."""
    if v is None or not o.momentum_correction:
        return v
    last = state.last_learning_rates[number].astype(rates[number].dtype)
    # Nothing that a rate of zero brought into the buffer is there to be corrected.
    relative = rates[number] / jnp.where(last > 0, last, 1)
    return _as(jnp.where(last > 0, relative, 0), v) * v


def _saturated(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounded to the dtype; what it cannot hold becomes the largest number it can.

    A momentum that is infinite would stay so for ever. In the dtype of the steps it
    stays as it is: there the step is infinite with it, which must be seen; and of two
    different numbers for the buffer and the step, XLA computes the second from a copy
    of the old buffer, which makes the step three times as slow.
    """
    if x.dtype == dtype:
        return x
    largest = _as(jnp.finfo(dtype).max, x)
    return jnp.clip(x, -largest, largest).astype(dtype)


def _bounded(x: jax.Array, bound: Any) -> jax.Array:
    return x if bound is None else jnp.clip(x, -_as(bound, x), _as(bound, x))


def _widest(params: optax.Params) -> Any:
    dtypes = [accumulation_dtype(jnp.result_type(x)) for x in jax.tree.leaves(params)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)


def _at(number: Any, count: jax.typing.ArrayLike) -> Any:
    """The value of a number or of a schedule."""
    return number(count) if callable(number) else number


def _is_known_zero(number: Any) -> bool:
    return isinstance(number, (int, float, np.number)) and number == 0


def _as(number: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(number, like.dtype)


def trust_ratios(opt_state: optax.OptState) -> optax.Params:
    """Returns the trust ratio of every parameter in the last step.

    Args:
        opt_state: the state of :func:`lars.lars`, or of any optimizer around it
            (``optax.chain``, ``inject_hyperparams``, ``MultiSteps``, ``masked``,
            ``partition``).

    Returns:
        A tree like the parameters, with a float32 scalar for each: the ratio its layer
        was scaled by, 1 where ``trust_ratio_mask`` excludes it, 0 before the first step
        and where a step was skipped. A stacked parameter has an array of them, in the
        shape of its layer axes. A parameter that LARS does not own has
        `optax.MaskedNode()`.

    Raises:
        ValueError: if there is no LARS in the state, or more than one for a parameter.
    """
    return _telemetry_tree(opt_state, "trust_ratio", "trust_ratios")


def skipped_steps(opt_state: optax.OptState) -> optax.Params:
    """Returns how often each parameter was left out because something was not finite.

    Args:
        opt_state: as for :func:`lars.trust_ratios`.

    Returns:
        A tree like the parameters, with an int32 scalar for each (an array for a
        stacked one): in how many steps the gradient or the parameters of its layer had
        elements that were infinite or NaN. It does not count under
        ``nonfinite="propagate"``.

    Raises:
        ValueError: as for :func:`lars.trust_ratios`.
    """
    return _telemetry_tree(opt_state, "skipped_steps", "skipped_steps")


def _telemetry_tree(
    opt_state: optax.OptState, name: str, function: str
) -> optax.Params:
    def is_node(x: Any) -> bool:
        return isinstance(x, Telemetry)

    leaves = jax.tree.leaves(opt_state, is_leaf=is_node)
    found = [x.layout.tree(getattr(x, name)) for x in leaves if is_node(x)]
    if not found:
        raise ValueError(
            f"opt_state holds no LARS: {function} needs the state of lars.lars or of "
            f"an optimizer around it, got {type(opt_state).__name__}."
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
            "them."
        )
    others = treedef.flatten_up_to(other)
    return treedef.unflatten(map(_merge, children, others))


def _check_alike(updates: optax.Updates, params: optax.Params, plan: Plan) -> None:
    """Refuses gradients that are not those of the parameters."""
    if jax.tree.structure(updates) != plan.layout.treedef:
        raise ValueError(
            "the gradients are not a tree like the parameters: "
            f"{jax.tree.structure(updates)} and {plan.layout.treedef}."
        )
    for path, gradient, param in zip(
        plan.paths, jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        if np.shape(gradient) != np.shape(param):
            raise ValueError(
                f"the gradient of {path!r} has shape {np.shape(gradient)}, the "
                f"parameter {np.shape(param)}."
            )
        dtype = jnp.result_type(gradient)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "LARS needs real floating-point gradients and parameters, got "
                f"{dtype} for the gradient of {path!r}."
            )


def _check_state(o: _Options, state: Any, params: optax.Params, plan: Plan) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, LarsState):
        raise TypeError(
            "the state is of another optimizer, such as optax.lars, or of a chain "
            f"around this one: got {type(state).__name__}, need LarsState. Make a new "
            "one with init(params)."
        )
    shapes = [np.shape(x) for x in jax.tree.leaves(params)]
    buffers = [np.shape(x) for x in jax.tree.leaves(state.trace)]
    expected = shapes if o.has_momentum else []
    layers, expected_layers = state.telemetry.layout.shapes, plan.layout.shapes
    if buffers != expected or layers != expected_layers:
        raise ValueError(
            "the state is of other parameters, momentum or stacking: it has momentum "
            f"of the shapes {buffers} and layer axes {layers}, here they are "
            f"{expected} and {expected_layers}. Make a new one with init(params)."
        )


def _check_bounds(bounds: Any) -> None:
    is_pair = isinstance(bounds, tuple) and len(bounds) == 2
    if not is_pair or not all(isinstance(x, numbers.Real) for x in bounds):
        raise TypeError(
            f"trust_ratio_bounds must be a tuple of two numbers, got {bounds!r}."
        )
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(
            "trust_ratio_bounds must be a lower bound >= 0 and an upper one that is "
            f"not below it, got {bounds!r}."
        )


def check_number(name: str, value: Any, *, schedule: bool = False) -> None:
    """Refuses what cannot be a hyperparameter, as far as it is known: traced or not."""
    if schedule and callable(value):
        return
    is_traced = isinstance(value, Tracer)
    number = value if is_traced else np.asarray(value)
    if not jnp.issubdtype(number.dtype, np.floating) and not jnp.issubdtype(
        number.dtype, np.integer
    ):
        kind = "a number or a schedule" if schedule else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}.")
    if number.ndim or not (is_traced or (math.isfinite(number) and number >= 0)):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")


def check_below_one(name: str, number: Any) -> None:
    """Refuses a momentum with which a buffer would grow for ever."""
    if not isinstance(number, Tracer) and number >= 1:
        raise ValueError(f"{name} must be below 1, got {number!r}.")
