"""Runs that are followed step by step: their losses, updates and kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from experiments.data import Data
from experiments.studies.runs import (
    Setting,
    network_of,
    shared_among,
    stacked_runs,
    training_of,
)
from experiments.training.training import Run, batch_positions, sweep_over
from lars.kernels import kernels_of, preserving_norm
from lars.norms import l2_norm, unit, widen
from lars.spectral import as_matrices
from lars.waking import WakingState


class ObservedState(NamedTuple):
    """State of `observed`: the last step in numbers, one for each kernel."""

    inner_state: optax.OptState
    # shape=(kernels,): `participation_rank` of the update without its part along the
    # kernel, which has the kernel's own rank
    turning_rank: jax.Array
    radial_part: jax.Array  # the same shape: |cosine| of the update with the kernel
    moves: jax.Array  # shape=(), float32: by which waking has moved the scale so far


def participation_rank(x: jax.Array) -> jax.Array:
    r"""About how many directions a matrix has: the participation ratio of its spectrum.

    :math:`(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4`, from 1, for a matrix of rank one,
    to the smaller of its sizes, for one with equal singular values. 0 for zero.
    """
    matrix = as_matrices(unit(x)[0])
    # Of the smaller size, so that it is cheap; the squares of singular values all same.
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    gram = matrix @ matrix.T
    fourth = jnp.sum(gram * gram)  # and the sum of the squares is 1
    return jnp.where(fourth > 0, 1 / jnp.where(fourth > 0, fourth, 1), 0.0)


def observed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer, unchanged, whose state describes its last step."""

    def init_fn(params: optax.Params) -> ObservedState:
        zeros = jnp.zeros(len(kernels_of(params)))
        return ObservedState(inner.init(params), zeros, zeros, jnp.zeros(()))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ObservedState]:
        assert isinstance(state, ObservedState)
        new, inner_state = inner.update(updates, state.inner_state, params)
        kernels = [kernel.leaf for kernel in kernels_of(params)]
        u, w = ([jax.tree.leaves(tree)[i] for i in kernels] for tree in (new, params))
        turns, radial_parts = zip(*map(_turn, u, w), strict=True)
        return new, ObservedState(
            inner_state,
            jnp.stack([participation_rank(x) for x in turns]),
            jnp.stack(radial_parts),
            _moves(inner_state),
        )

    return optax.GradientTransformation(init_fn, update_fn)


def follow(
    setting: Setting,
    learning_rate: float,
    seeds: Sequence[int],
    init_scale: float,
    profile: str,
) -> pd.DataFrame:
    """Trains every seed, and looks at each step.

    The arguments are those of `experiments.studies.runs.results_of`, with one rate.

    Returns:
        A row a seed and step: ``seed``, ``step``, ``loss`` (of the batch, before the
        step); the medians over kernels of the norm relative to `preserving_norm`,
        ``median_norm``, of ``turning_rank`` and of ``radial_part``; and ``moves`` so
        far.
    """
    model, data = network_of(setting)
    training = training_of(setting, model, around=observed)
    steps = setting.num_steps

    def one(run: Run, data: Data) -> tuple[dict[str, jax.Array]]:
        def step(state: Any, batch: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            params = state.variables["params"]
            w = [jax.tree.leaves(params)[k.leaf] for k in kernels_of(params)]
            norms = [l2_norm(widen(x)) / preserving_norm(x) for x in w]
            state, report = training.step(state, run, data, batch)
            return state, {
                "loss": report.loss,
                "median_norm": jnp.median(jnp.stack(norms)),
                "turning_rank": jnp.median(state.opt_state.turning_rank),
                "radial_part": jnp.median(state.opt_state.radial_part),
                "moves": state.opt_state.moves,
            }

        start, count = jnp.zeros((), jnp.int32), data.train.labels.shape[0]
        batches = batch_positions(run.seed, start, steps, count, setting.batch_size)
        return (jax.lax.scan(step, training.init(run, data), batches)[1],)

    pairs = [(learning_rate, seed) for seed in seeds]
    runs = stacked_runs(model, data, pairs, init_scale, profile)
    devices = jax.devices()[: len(seeds)]
    (followed,) = shared_among(devices, sweep_over(one, devices, 1), runs, data)
    return pd.DataFrame(
        {
            "seed": np.repeat(seeds, steps),
            "step": np.tile(np.arange(steps), len(seeds)),
            **{name: values.ravel() for name, values in followed.items()},
        }
    )


def _turn(update: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The part of the unit update across the kernel, and the size of that along it."""
    step, u = unit(update)[0], unit(w)[0]
    along = jnp.sum(step * u)
    across = step - along * u
    # Of a step along the kernel only rounding is left, which has a rank, too.
    is_there = jnp.linalg.norm(across) > 64 * jnp.finfo(across.dtype).eps
    return jnp.where(is_there, across, 0), jnp.abs(along)


def _moves(state: optax.OptState) -> jax.Array:
    """How often waking has moved the scale, 0 where no waking is."""
    if isinstance(state, WakingState):
        return state.reasons.sum().astype(jnp.float32)
    return jnp.zeros(())
