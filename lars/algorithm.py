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

Published variants differ in a and b, in the norm that λ divides by (`denominator`), and
in bounds of λ; `lars.presets` has them by name. Weight decay enters in d, and in λ if
the `denominator` is "sum" or "decayed"; with `weight_decay_kind="outside"`, in the step
in place of d. Lists are of all parameters; vectors hold λ and norms of all layers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lars.layers import LayerMap
from lars.layerwise import (
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


class Step(NamedTuple):
    """What a step makes of lists of all parameters."""

    updates: list[jax.Array]  # to be subtracted from the parameters, b v
    trace: list[jax.Array]  # v
    trust_ratio: jax.Array  # shape=(slices,); 0 where the layer is skipped
    is_skipped: jax.Array  # shape=(slices,): something is not finite


def step(
    o: Options,
    layers: LayerMap,
    count: jax.Array,
    grads: Sequence[jax.Array],
    params: Sequence[jax.Array],
    traces: Sequence[jax.Array],
) -> Step:
    """One step; without momentum there are no traces."""
    g, w, dtypes = _widened(grads, params)
    gamma, beta = (at(x, count) for x in (o.learning_rate, o.weight_decay))
    # Known beforehand, β = 0 spares the step a pass over the weights.
    is_decayed = [x and not is_known_zero(beta) for x in layers.is_decayed]

    # d ← g + β w
    is_coupled = o.weight_decay_kind == "coupled"
    d = [
        x + times(beta, y) if decayed and is_coupled else x
        for x, y, decayed in zip(g, w, is_decayed, strict=True)
    ]
    # λ multiplies u: d, or m v + d where v accumulates d
    u = [_bounded(o, x) for x in d]
    v: list[Any] = [x.astype(y.dtype) for x, y in zip(traces, u, strict=False)]
    new_v = v
    if o.momentum_of == "gradient":
        u, new_v = _accumulated(o, v, u, [None] * len(u))

    # λ ← η ‖w‖ / (‖g‖ + β ‖w‖ + ε)
    measured = {"sum": g, "gradient": g, "decayed": d, "update": u}[o.denominator]
    measured = u if o.spectral else measured
    ratios = trust_ratios(o, layers, measured, w, is_decayed, gamma, beta)
    if o.spectral:
        u = [
            orthogonalized(o.spectral, x, axes) if adapted else x
            for x, axes, adapted in zip(u, layers.axes, layers.is_adapted, strict=True)
        ]
    gamma = jnp.asarray(gamma, ratios.value.fraction.dtype)
    of_u = ratios.value if o.momentum_of == "direction" else gamma * ratios.value
    by = [factors(of_u, ratios.size)]
    if not is_coupled and any(is_decayed):
        by.append(factors(gamma * (beta * ratios.value), ratios.param_norm))
    # A layer with what is not finite takes no step and keeps its momentum.
    is_skipped = ~ratios.is_finite
    parts = for_parameters(layers, count, (is_skipped, *by))
    skipped, u_by, *w_by = map(list, zip(*parts, strict=True))
    is_kept = list(map(spread, skipped, layers.axes, map(jnp.shape, g)))
    lambda_u = list(map(multiplied, u, u_by, layers.axes))

    # v ← m v + a d, and b v
    if o.momentum_of == "gradient":
        b_v, new_v = lambda_u, list(map(jnp.where, is_kept, v, new_v))
    else:
        b_v, new_v = _accumulated(o, v, lambda_u, is_kept)
    if o.momentum_of == "direction":
        b_v = [times(gamma, x) for x in b_v]
    for of_w in w_by:  # γ λ β w, outside of the momentum
        decay = map(multiplied, w, of_w, layers.axes)
        b_v = [
            x + y if decayed else x
            for x, y, decayed in zip(b_v, decay, is_decayed, strict=True)
        ]

    new_updates = [
        jnp.where(kept, 0, x).astype(dtype)
        for kept, x, dtype in zip(is_kept, b_v, dtypes, strict=True)
    ]
    new_traces = map(_rounded, new_v, (x.dtype for x in traces))
    trust_ratio = jnp.where(ratios.is_finite, ratios.value.value, 0)
    return Step(
        new_updates, list(new_traces), trust_ratio.astype(jnp.float32), is_skipped
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
    """λ ← η ‖w‖ / (‖g‖ + β ‖w‖ + ε), and the rules where that has no value."""
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
    # If it is not the sum, "g_norm" is the norm of g, of g + β w, or of u.
    denominator = (size if o.denominator == "sum" else g_norm) + o.eps
    eta = jnp.asarray(o.trust_coefficient, dtype)
    ratio = eta * w_norm / denominator

    # η‖w‖/0 has no value, and with λ = 0 at ‖w‖ = 0, w would stay zero.
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
    """The ratio within its bounds, and then min(λ/γ, 1) if it is to be clipped."""
    low, high = o.trust_ratio_bounds
    if low > 0:
        ratio = where(ratio.value < low, low, ratio)
    if high < math.inf:
        ratio = where(ratio.value > high, high, ratio)
    if o.clip:
        ratio = where(ratio.value >= gamma, 1.0, ratio / scaled(gamma, gamma.dtype))
    return ratio


def _accumulated(
    o: Options, v: Sequence[Any], x: Sequence[jax.Array], is_kept: Sequence[Any]
) -> tuple[list[jax.Array], list[Any]]:
    """v ← m v + x, except where it is kept. The steps, and the new buffers.

    A step is computed from the new buffer as it is stored, Nesterov's m v + x too: from
    the old one, XLA could not write the new one in its place.
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
    grads: Sequence[jax.Array], params: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array], list[Any]]:
    """Gradients and parameters in the dtype of the steps; and the dtypes of updates.

    These are the wider of two: a float16 gradient does not limit a float32 step.
    """
    g, w, dtypes = [], [], []
    for x, y in zip(grads, params, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            dtypes.append(jnp.promote_types(x.dtype, y.dtype))
        wide = accumulation_dtype(dtypes[-1])
        g.append(x.astype(wide))
        w.append(y.astype(wide))
    return g, w, dtypes


def _bounded(o: Options, x: jax.Array) -> jax.Array:
    if o.direction_bound is None:
        return x
    bound = jnp.asarray(o.direction_bound, x.dtype)
    return jnp.clip(x, -bound, bound)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounded to the dtype; numbers beyond its range become the largest in it.

    An infinite momentum would stay so. In the dtype of the steps it does: the step is
    infinite with it, which must be seen. (And if buffer and step differed, XLA would
    compute the step from a copy of the old buffer, three times as slowly.)
    """
    if x.dtype == dtype or jnp.iscomplexobj(x):
        return x.astype(dtype)
    largest = jnp.asarray(jnp.finfo(dtype).max, x.dtype)
    return jnp.clip(x, -largest, largest).astype(dtype)
