"""Whether a run that is killed and goes on ends with the same bits.

    python -m experiments.accelerator.resume FOLDER STEPS

is the run: it goes on from the newest checkpoint in the folder, saves one every
`EVERY` steps, and prints where it ran, the step that it went on from, and a digest of
all its bits at the end. XLA's operations are deterministic here. Otherwise two
processes on a GPU may choose different programs for the same product.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("what", "platform", "steps", "from_step", "seconds", "digest", "same_bits")
"""``same_bits``: as the first run."""

EVERY = 25


def rows(small: bool) -> Iterator[dict[str, Any]]:
    """A run, the same again, and one that is killed after a checkpoint."""
    steps = 100 if small else 1000
    first = None
    for what in ("whole", "whole, again", "killed, then continued"):
        is_killed = what.startswith("killed")
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            if is_killed:
                _kill_after_a_checkpoint(Path(folder), steps)
            with _process(folder, steps, text=True) as process:
                printed, _ = process.communicate()
            seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"the run ended with code {process.returncode}.")
        where, from_step, digest = printed.split()[-3:]
        if is_killed != (int(from_step) > 0):
            raise RuntimeError(f"the run {what!r} began from step {from_step}.")
        first = first or digest
        yield {
            "what": what,
            "platform": where,
            "steps": steps,
            "from_step": int(from_step),
            "seconds": seconds,
            "digest": digest,
            "same_bits": digest == first,
        }


def _process(folder: str | Path, steps: int, **given: Any) -> subprocess.Popen:
    """Starts the run."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    command = [sys.executable, "-m", __name__, str(folder), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, **given)


def _kill_after_a_checkpoint(folder: Path, steps: int) -> None:
    """Kills a run once its first checkpoint is whole."""
    saved: list[int] = []
    with _process(folder, steps) as process:
        try:
            while process.poll() is None:
                saved = [int(x.name) for x in folder.iterdir() if x.name.isdecimal()]
                if saved:
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    if not saved or max(saved) >= steps:
        raise RuntimeError("the run could not be killed between its checkpoints.")


def main() -> None:
    """The run of the command line."""
    import jax
    import jax.numpy as jnp

    from configs.models import DIGITS_MLP
    from configs.optimizers import ARMS, LINEAR
    from experiments.accelerator.rescue import digits_data
    from experiments.training.checkpoints import Checkpoints, digest
    from experiments.training.setup import configured_training, model_of
    from experiments.training.training import Run, num_kernels

    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    arm, data = ARMS["polar_waking"], digits_data()
    model = model_of(DIGITS_MLP, data.num_classes)
    training = configured_training(
        {
            "optimizer": arm,
            "schedule": LINEAR,
            "num_steps": steps,
            "batch_size": 64,
        },
        model,
    )
    scales = jnp.full(num_kernels(model, data), 1e-6)
    run = Run(jnp.int32(0), scales, jnp.float32(arm["learning_rate"]))
    state = jax.jit(training.init)(run, data)
    advance = jax.jit(training.advance, static_argnums=3)
    with Checkpoints(folder) as checkpoints:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        held = checkpoints.restore_newest(shapes)
        done, state = held if held else (0, state)
        for step in range(done, steps, EVERY):
            state, _ = advance(state, run, data, EVERY)
            checkpoints.save(step + EVERY, state)
    print(f"{jax.devices()[0].platform} {done} {int(digest(state)):08x}")


if __name__ == "__main__":
    main()
