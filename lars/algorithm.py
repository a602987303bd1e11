r"""One step of LARS: the equations of Algorithm 1 and its relatives, beside their code.

For every layer, with weights w, gradient g, learning rate γ, trust coefficient η,
weight decay β and momentum m (You, Gitman and Ginsburg 2017, Algorithm 1):

    d ← g + β w                            the direction
    λ ← η ‖w‖ / (‖g‖ + β ‖w‖ + ε)          the trust ratio: `trust_ratios`
    v ← m v + a d                          the momentum
    w ← w - b v                            the step: `step`

    momentum_of     a      b
    "step"          γλ     1               the paper
    "direction"     λ      γ               timm, apex, Barlow Twins
    "gradient"      1      γλ              ColossalAI, SimCLR's popular momentum

Published variants differ in these two, in the norm that λ divides by (`denominator`),
and in bounds of λ; `lars.presets` has each by its name. Weight decay enters in d, and
in λ where its denominator has it. Vectors hold λ, γ and norms of all layers at once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars.layers import LayerMap
from lars.layerwise import (
    computed_first,
    for_parameters,
    joint,
    multiplied,
    norms,
    of_slices,
    orthogonalized,
    spectral_norms,
    times,
)
from lars.norms import accumulation_dtype
from lars.options import Options, at
from lars.scaled import Scaled, factors, is_known_zero, scaled, where
from lars.sharded import spread
from lars.state import LarsState, pieces


def step(
    o: Options,
    layers: LayerMap,
    updates: optax.Updates,
    state: LarsState,
    params: optax.Params,
) -> tuple[optax.Updates, LarsState]:
    """What is to be subtracted from the parameters, b v, and the new state."""
    treedef, leaves = jax.tree.structure(updates), jax.tree.leaves(updates)
    g, w, dtypes = _widened(leaves, jax.tree.leaves(params))
    traces = jax.tree.leaves(state.trace)  # none without momentum
    gamma, beta = (at(x, state.count) for x in (o.learning_rate, o.weight_decay))
    # Known beforehand, β = 0 spares the step a pass over the weights.
    is_decayed = [x and not is_known_zero(beta) for x in layers.is_decayed]

    # d ← g + β w
    d = list(g)
    if o.weight_decay_kind == "coupled":
        d = [
            x + times(beta, y) if decayed else x
            for x, y, decayed in zip(g, w, is_decayed, strict=True)
        ]

    # u is what becomes the step: d, then a d, what v makes of it, and b v.
    u = [_bounded(o, x) for x in d]
    v: list[Any] = [x.astype(y.dtype) for x, y in zip(traces, u, strict=False)]
    new_v = v
    if o.momentum_of == "gradient":  # a = 1: v needs no λ, and λ may need v
        u, new_v = _accumulated(o, v, u, [None] * len(u))

    measured = {"sum": g, "gradient": g, "decayed": d, "update": u}[o.denominator]
    ratios = trust_ratios(
        o, layers, u if o.spectral else measured, w, is_decayed, gamma, beta
    )
    if o.spectral:
        u = [
            orthogonalized(o.spectral, x, axes) if adapted else x
            for x, axes, adapted in zip(u, layers.axes, layers.is_adapted, strict=True)
        ]

    gamma = jnp.asarray(gamma, ratios.value.fraction.dtype)
    of_u = ratios.value if o.momentum_of == "direction" else gamma * ratios.value
    by = [factors(of_u, ratios.size)]
    if o.weight_decay_kind == "outside" and any(is_decayed):
        by.append(factors(gamma * (beta * ratios.value), ratios.param_norm))
    by, is_skipped = computed_first(state.count, (by, ~ratios.is_finite))
    u_by, *w_by = (for_parameters(layers, pair) for pair in by)
    # A layer with what is not finite takes no step and keeps its momentum.
    is_kept = [
        spread(skipped, axes, x.shape)
        for skipped, axes, x in zip(
            pieces(is_skipped, layers.shapes), layers.axes, g, strict=True
        )
    ]
    u = [multiplied(*each) for each in zip(u, u_by, layers.axes, strict=True)]
    if o.momentum_of != "gradient":
        u, new_v = _accumulated(o, v, u, is_kept)
    else:
        new_v = list(map(jnp.where, is_kept, v, new_v))
    if o.momentum_of == "direction":
        u = [times(gamma, x) for x in u]
    for of_w in w_by:  # γ λ β w, outside of the momentum
        u = [
            x + multiplied(y, by, axes) if decayed else x
            for x, y, by, axes, decayed in zip(
                u, w, of_w, layers.axes, is_decayed, strict=True
            )
        ]

    new_updates = [
        jnp.where(kept, 0, x).astype(dtype)
        for kept, x, dtype in zip(is_kept, u, dtypes, strict=True)
    ]
    new_traces = [
        _rounded(new, trace.dtype) for new, trace in zip(new_v, traces, strict=True)
    ]
    trust_ratio = jnp.where(ratios.is_finite, ratios.value.value, 0)
    return treedef.unflatten(new_updates), LarsState(
        count=optax.safe_increment(state.count),
        trace=jax.tree.unflatten(jax.tree.structure(state.trace), new_traces),
        trust_ratio=trust_ratio.astype(jnp.float32),
        skipped_steps=state.skipped_steps + is_skipped.astype(jnp.int32),
        parameters=state.parameters,
    )


class TrustRatios(NamedTuple):
    """Vectors over the slices of all parameters."""

    value: Scaled  # λ; 1 where the parameter is excluded
    size: Scaled  # about the norm of what is multiplied by λ
    param_norm: Scaled
    is_finite: jax.Array  # whether the numbers of its layer are


def trust_ratios(
    o: Options,
    layers: LayerMap,
    measured: Sequence[jax.Array],
    w: Sequence[jax.Array],
    is_decayed: Sequence[bool],
    gamma: Any,
    beta: Any,
) -> TrustRatios:
    """λ ← η ‖w‖ / (‖g‖ + β ‖w‖ + ε), and what holds where that has no value."""
    dtype = max((jnp.finfo(x.dtype).dtype for x in w), key=lambda dtype: dtype.itemsize)
    everywhere = [True] * len(w)
    g_slices, w_slices = norms([(measured, everywhere), (w, everywhere)], layers, dtype)
    g_norm, w_norm = joint(layers, g_slices), joint(layers, w_slices)
    is_finite = jnp.isfinite(g_norm.fraction) & jnp.isfinite(w_norm.fraction)
    if o.spectral:
        w_slices = spectral_norms(w, layers, dtype)
        w_norm = joint(layers, w_slices)
        # The orthogonal factor has norm 1, that of zero is zero.
        g_norm = joint(layers, scaled(jnp.sign(g_slices.fraction), dtype))

    beta_w_norm: Scaled | float = 0.0  # of the arrays of each layer that are decayed
    if any(is_decayed) and not o.spectral:
        decays = layers.repeat(is_decayed)
        decayed = Scaled(jnp.where(decays, w_slices.fraction, 0), w_slices.exponent)
        beta_w_norm = beta * joint(layers, decayed)
    size = g_norm + beta_w_norm

    if o.denominator != "sum":  # then "g_norm" is of g, of g + β w or of what v makes
        beta_w_norm = 0.0
    eta, eps = jnp.asarray(o.trust_coefficient, dtype), o.eps
    ratio = eta * w_norm / (denominator := g_norm + beta_w_norm + eps)

    # η‖w‖/0 has no value, and at ‖w‖ = 0 the ratio 0 would keep w there.
    rules = {"trust_coefficient": eta, "one": 1.0, "plain": 1.0, "zero": 0.0}
    is_zero = w_norm.is_zero | denominator.is_zero
    ratio = where(is_zero, rules[o.zero_norm], ratio)
    is_plain = is_zero & (o.zero_norm == "plain")
    if o.zero_gradient != "formula":
        is_zero = g_norm.is_zero & ~w_norm.is_zero
        ratio = where(is_zero, rules[o.zero_gradient], ratio)
        is_plain = jnp.where(is_zero, o.zero_gradient == "plain", is_plain)

    ratio = where(is_plain, ratio, _clipped(o, ratio, jnp.asarray(gamma, dtype)))
    ratio, size, is_finite = of_slices(layers, (ratio, size, is_finite))
    is_excluded = jnp.asarray(~layers.repeat(layers.is_adapted))
    return TrustRatios(
        where(is_excluded, 1.0, ratio),
        where(is_excluded, 1.0, size),
        w_slices,
        is_finite,
    )


def _clipped(o: Options, ratio: Scaled, gamma: jax.Array) -> Scaled:
    """The ratio within its bounds, and with γλ at most γ if it is to be clipped."""
    low, high = o.trust_ratio_bounds
    if low > 0:
        ratio = where(ratio.value < low, low, ratio)
    if high < math.inf:
        ratio = where(ratio.value > high, high, ratio)
    if o.clip:
        # min(λ/γ, 1), as apex writes it: the local rate is min(λ, γ).
        relative = ratio / scaled(gamma, gamma.dtype)
        ratio = where(ratio.value >= gamma, 1.0, relative)
    return ratio


def _accumulated(
    o: Options, v: Sequence[Any], x: Sequence[jax.Array], is_kept: Sequence[Any]
) -> tuple[list[jax.Array], list[Any]]:
    """v ← m v + x, but where it is kept. What is stepped by, and the buffers.

    The step is computed from the new buffer as it is stored, Nesterov's m v + x too:
    from the old one, XLA could not write the new one in its place.
    """
    if not o.has_momentum:
        return list(x), list(v)
    new_v = [times(o.momentum, old) + y for old, y in zip(v, x, strict=True)]
    new_v = [
        new if kept is None else jnp.where(kept, old, new)
        for kept, old, new in zip(is_kept, v, new_v, strict=True)
    ]
    if not o.nesterov:
        return new_v, new_v
    return [times(o.momentum, new) + y for new, y in zip(new_v, x, strict=True)], new_v


def _widened(
    updates: Sequence[Any], params: Sequence[Any]
) -> tuple[list[jax.Array], list[jax.Array], list[Any]]:
    """Gradients and parameters in the dtype of the steps; and the dtypes of updates.

    A float16 gradient of a float32 parameter says nothing about the step's size.
    """
    g, w, dtypes = [], [], []
    for x, y in zip(updates, params, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            dtypes.append(jnp.promote_types(jnp.result_type(x), jnp.result_type(y)))
        wide = accumulation_dtype(dtypes[-1])
        g.append(jnp.asarray(x).astype(wide))
        w.append(jnp.asarray(y).astype(wide))
    return g, w, dtypes


def _bounded(o: Options, x: jax.Array) -> jax.Array:
    if o.direction_bound is None:
        return x
    bound = jnp.asarray(o.direction_bound, x.dtype)
    return jnp.clip(x, -bound, bound)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounded to the dtype; what it cannot hold becomes the largest number it can.

    A momentum that is infinite would stay so for ever. In the dtype of the steps it
    stays as it is: there the step is infinite with it, which must be seen; and of two
    different numbers for the buffer and the step, XLA computes the second from a copy
    of the old buffer, which makes the step three times as slow.
    """
    if x.dtype == dtype:
        return x
    if jnp.iscomplexobj(x):
        return x.astype(dtype)
    largest = jnp.asarray(jnp.finfo(dtype).max, x.dtype)
    return jnp.clip(x, -largest, largest).astype(dtype)
