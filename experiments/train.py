"""One training run, on all devices of all hosts.

    python -m experiments.train --config=configs/digits_mlp.py --workdir=runs/digits

Writes ``config.json``, ``provenance.json``, ``metrics.jsonl``, TensorBoard events and
checkpoints to the workdir. If it is killed, the same command goes on and ends with the
same parameters and metrics, to the bit, as if it had not been; a finished run is not
made again. ``--dry_run`` prints who is adapted and decayed, and the learning rates, and
makes no step.

On many hosts, give the same command on each, and a workdir that all of them see: with
``--distributed`` they find each other through the cluster (Slurm, Open MPI, Kubernetes,
Cloud TPU), with ``--coordinator_address``, ``--num_processes`` and ``--process_id``
they are told.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import results
from experiments.cli import command, hosts
from experiments.cli.watching import Display, Interruption
from experiments.training.checkpoints import Checkpoints
from experiments.training.metrics import (
    METRICS,
    MetricsWriter,
    check_lines,
    finished_metrics,
)
from experiments.training.plan import Plan, plan_of, print_plan
from experiments.training.single_run import Progress, layer_metrics, where_it_began

MAY_CHANGE = ("placement", "data_workers", "checkpoint_every")
"""Settings that a run may go on with others of: they are of the machines."""

# So that --help shows their flags, too.
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(hosts)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, and end.")


def main(config: command.Config, workdir: str) -> None:
    """Trains, from where an earlier call of the same command was stopped."""
    with command.reported_errors():
        hosts.connect()
        plan = hosts.together(lambda: plan_of(config))
        if DRY_RUN.value:
            return hosts.first(lambda: print_plan(config, plan), None)
        folder = Path(workdir)
        settings = config.to_dict()
        hosts.first(
            lambda: results.claim(folder, settings, MAY_CHANGE, [METRICS]), folder
        )
    last = finished_metrics(folder)
    if not hosts.first_says(last is not None):
        last = train(config, plan, folder)
    if last is not None and jax.process_index() == 0:
        print(summary(last, folder))


def train(config: command.Config, plan: Plan, folder: Path) -> dict[str, Any]:
    """Makes the steps that are left, and returns the last metrics."""
    run, source, compiled = plan.run, plan.source, plan.compiled
    with Interruption() as interruption, contextlib.ExitStack() as stack:
        with command.reported_errors():
            checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
            restored = checkpoints.restore_newest(compiled.like)
            if restored is not None:
                logged = logged_steps(config, *restored)
                hosts.first(lambda: check_lines(folder, logged), None)
            step, progress = restored or (0, compiled.init(run, source.data))
            writer = MetricsWriter(folder, step)
            stack.callback(writer.close)
            session = results.Session(folder, first_step=step)
        display = Display(config.num_steps, step, config.batch_size)
        stack.callback(display.close)
        steps = range(step, config.num_steps, config.steps_per_call)
        batches = source.batches(config.seed, config.batch_size, steps)
        stack.enter_context(contextlib.closing(batches))

        for batch in batches:
            progress, seen = compiled.advance(progress, run, source.data, batch)
            step = min(step + config.steps_per_call, config.num_steps)
            display.reached(step, seen.loss)
            is_last = step == config.num_steps

            if step % config.log_every == 0 or is_last:
                if progress.diverged_at >= 0:
                    break  # nothing has changed since, and nothing will
                speed = display.speed(seen.loss)
                line = {"step": step, "train/batch_loss": progress.mean_loss()}
                line["learning_rate"] = float(plan.schedule(step - 1))
                line |= layer_metrics(progress, seen)
                if step % config.evaluate_every == 0 or is_last:
                    line |= compiled.evaluate(progress, source, "validation")
                writer.write(line, speed)
                display.show(line, speed)
                session.record()

            stops = interruption.is_requested(hosts_meet=step % config.log_every == 0)
            if step % config.checkpoint_every == 0 or is_last or stops:
                writer.sync()
                checkpoints.save(step, progress)
            if stops and not is_last:
                display.close()
                interruption.leave(f"Stopped after {step} of {config.num_steps} steps")

        checkpoints.wait()  # a run that says it is finished has its last checkpoint
        last: dict[str, Any] = {"finished": True, "step": step}
        if progress.diverged_at < 0:
            for split in source.evaluated:
                display.says(f"evaluating {split}")
                if interruption.is_requested(hosts_meet=True):
                    interruption.leave("Stopped before the last evaluation")
                last |= compiled.evaluate(progress, source, split)
        else:
            first = int(progress.diverged_at)
            batch = source.batch(config.seed, config.batch_size, first)
            last |= where_it_began(plan.training, progress, run, source, batch)
        writer.write(last, {})
        writer.sync()
        display.close()
        session.record()
    return last


def logged_steps(
    config: command.Config, step: int, progress: Progress
) -> Iterable[int]:
    """The steps whose metrics a run that is at a step has written."""
    last = step if progress.diverged_at < 0 else min(step, int(progress.diverged_at))
    steps = list(range(config.log_every, last + 1, config.log_every))
    return [*steps, last] if last == config.num_steps else steps


def summary(last: dict[str, Any], folder: Path) -> str:
    """How the run ended, in a line."""
    if "diverged_at" in last:
        return (
            f"diverged: step {last['diverged_at']} is not finite, first in "
            f"{last['first_nonfinite']}. Metrics: {folder / METRICS}"
        )
    return (
        f"finished after {last['step']} steps: test accuracy "
        f"{last['test/accuracy']:.4f}, test loss {last['test/loss']:.4g}. "
        f"Metrics: {folder / METRICS}"
    )


if __name__ == "__main__":
    command.run(main, needs_workdir=lambda: not DRY_RUN.value)
