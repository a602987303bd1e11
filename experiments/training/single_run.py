"""One long run: the steps of `training`, a few a call, from a loop on the host.

So checkpoints and metrics fit between calls; and where steps are short, one call makes
many, so that the devices do not wait for Python.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.data import Data, Split
from experiments.training.sharding import replicated, shardings_of, split
from experiments.training.sources import Part, Source
from experiments.training.training import (
    Report,
    Run,
    State,
    Sums,
    Training,
    all_finite,
    epoch_order,
    metrics_of,
)
from lars.rules import flatten_with_path, path_string
from lars.silence import REASONS


class Progress(NamedTuple):
    """Everything that a run carries from step to step, and a checkpoint holds.

    The place in the data among it: batches, streamed ones too, and all random numbers
    depend on the seed and the step alone.
    """

    state: State
    order: jax.Array | None  # [N], int32: of the images of this epoch, held in memory
    loss_sum: jax.Array  # float32: of the steps since the last line of metrics
    loss_count: jax.Array  # float32: how many these are
    diverged_at: jax.Array  # int32: the step that was not finite for good, or -1

    def mean_loss(self) -> float:
        """The mean loss of the steps since the last line of metrics."""
        return float(self.loss_sum / self.loss_count)


class Compiled(NamedTuple):
    """The functions of a run on the devices of a mesh."""

    init: Callable[[Run, Data], Progress]
    advance: Callable[[Progress, Run, Data, Any], tuple[Progress, Report]]
    """Makes steps on what `Source.batches` yields; returns the progress and the report
    of the last one. The given progress cannot be used again."""
    evaluate: Callable[[Progress, Source, str], dict[str, float]]
    """The loss and the accuracy on a split, as metrics."""
    like: Progress
    """Shapes, dtypes and shardings of a progress."""


def compile_run(
    training: Training,
    source: Source,
    mesh: Mesh,
    run: Run,
    *,
    batch_size: int,
    placement: str,
    log_every: int,
    eval_batch_size: int,
) -> Compiled:
    """Puts a training function on the devices of a mesh.

    Once a parameter or a statistic is not finite, or a loss from which no step leads
    away, steps leave everything as it was before the step that made it: what happened
    there can still be looked at. A loss that is not finite is no end where the
    optimizer finds a step all the same, as `lars.wake_silent_layers` does.

    The mean loss of the steps begins anew after `log_every`. The images that are
    evaluated at a time, `eval_batch_size`, are rounded up to what the devices can
    share.
    """
    count = source.num_train

    def init(run: Run, data: Data) -> Progress:
        # No two the same array: each is given away by itself.
        state = training.init(run, data)
        order = None
        if source.is_in_memory:
            order = epoch_order(run.seed, jnp.int32(0), count)
        return Progress(state, order, jnp.zeros(()), jnp.zeros(()), jnp.int32(-1))

    def batch_in(
        order: jax.Array, run: Run, number: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The order of the epoch of a step, and its positions, as `batch_positions`."""
        epoch, in_epoch = jnp.divmod(number, count // batch_size)
        order = jax.lax.cond(
            in_epoch == 0, lambda: epoch_order(run.seed, epoch, count), lambda: order
        )
        batch = jax.lax.dynamic_slice_in_dim(order, in_epoch * batch_size, batch_size)
        return order, jax.lax.with_sharding_constraint(batch, split(mesh))

    def step(
        progress: Progress, run: Run, data: Data, batch: jax.Array | Split
    ) -> tuple[Progress, Report]:
        state, order, loss_sum, loss_count, diverged_at = progress
        if order is not None:
            assert not isinstance(batch, Split)
            order, batch = batch_in(order, run, batch)
        following, report = training.step(state, run, data, batch)
        was_fine = diverged_at < 0
        is_fine = was_fine & all_finite(following.variables)
        is_fine &= jax.lax.cond(
            jnp.isfinite(report.loss), lambda: True, lambda: _differ(following, state)
        )
        begins = state.step % log_every == 0
        after = Progress(
            jax.tree.map(lambda a, b: jnp.where(is_fine, a, b), following, state),
            order,
            jnp.where(begins, 0, loss_sum) + report.loss,
            jnp.where(begins, 0, loss_count) + 1,
            jnp.where(was_fine & ~is_fine, state.step, diverged_at),
        )
        return after, report

    def advance(
        progress: Progress, run: Run, data: Data, batches: jax.Array | Split
    ) -> tuple[Progress, Report]:
        progress, reports = jax.lax.scan(
            lambda progress, batch: step(progress, run, data, batch), progress, batches
        )
        return progress, jax.tree.map(lambda x: x[-1], reports)

    def sums_of(state: State, data: Data, part: Part) -> Sums:
        images, positions, mask = part
        if positions is not None:
            images = Split(images.images[positions], images.labels[positions])
        return training.evaluate_part(state, data, images, mask)

    shapes = jax.eval_shape(init, run, source.data)
    shardings = shardings_of(shapes, mesh, placement)
    like = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, shardings)
    compiled_sums = jax.jit(sums_of, out_shardings=replicated(mesh))
    size = -(-eval_batch_size // mesh.size) * mesh.size

    def evaluate(progress: Progress, source: Source, name: str) -> dict[str, float]:
        total = np.zeros(3)
        for part in source.parts(name, size):
            sums = compiled_sums(progress.state, source.data, part)
            total += np.asarray(jax.device_get(sums), np.float64)
        metrics = metrics_of(Sums(*total))
        return {f"{name}/{kind}": float(x) for kind, x in metrics._asdict().items()}

    return Compiled(
        init=jax.jit(init, out_shardings=shardings),
        advance=jax.jit(
            advance, donate_argnums=0, out_shardings=(shardings, replicated(mesh))
        ),
        evaluate=evaluate,
        like=like,
    )


def _differ(state: State, other: State) -> jax.Array:
    """Whether any parameter of the one is not that of the other."""
    pairs = zip(
        *(jax.tree.leaves(x.variables["params"]) for x in (state, other)), strict=True
    )
    return jnp.stack([(a != b).any() for a, b in pairs]).any()


def layer_metrics(progress: Progress, report: Report) -> dict[str, float]:
    """What the optimizer saw and did in the last step.

    The norms of every parameter and its gradient, and the ratio that was made of them
    if it has one; and, with `lars.wake_silent_layers`, how often the network has been
    moved so far, by the reason.
    """
    params = progress.state.variables["params"]
    names = [path_string(path) for path, _ in flatten_with_path(params)[0]]
    held = jax.device_get(report)
    metrics: dict[str, float] = {
        f"{kind}/{name}": float(value)
        for kind in ("weight_norm", "gradient_norm", "trust_ratio")
        if (values := getattr(held, f"{kind}s")) is not None
        for name, value in zip(names, values, strict=True)
    }
    if held.wakings is not None:
        moves = zip(REASONS, held.wakings, strict=True)
        metrics |= {f"waking/{reason}": int(count) for reason, count in moves}
    return metrics


def where_it_began(
    training: Training,
    progress: Progress,
    run: Run,
    source: Source,
    batch: jax.Array | Split,
) -> dict[str, Any]:
    """The step that was not finite, and the first thing in it that was not.

    Progress is as it was before that step, and `batch` what the step was made on. The
    metrics are ``diverged_at``, and ``first_nonfinite``, the path of the layer whose
    output it was, or what else `Training.are_finite` names.
    """
    names: list[str] = []

    @jax.jit
    def are_finite(
        state: State, run: Run, data: Data, batch: jax.Array | Split
    ) -> list[jax.Array]:
        named = training.are_finite(state, run, data, batch)
        names[:] = named  # in their order, which a dictionary loses in jit
        return list(named.values())

    flags = jax.device_get(are_finite(progress.state, run, source.data, batch))
    first = next(
        (name for name, is_finite in zip(names, flags, strict=True) if not is_finite),
        "nothing when it was computed again",
    )
    return {"diverged_at": int(progress.diverged_at), "first_nonfinite": first}
