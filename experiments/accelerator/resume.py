"""Whether a run that is killed and goes on ends with the same bits.

    python -m experiments.accelerator.resume FOLDER STEPS

is the run: it goes on from the newest checkpoint in the folder, saves one every
`EVERY` steps, and prints a digest of all its bits at the end.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("what", "seconds", "digest", "same_bits")
"""``same_bits``: as the first run."""

EVERY = 25


def rows(small: bool, data: Path | None) -> Iterator[dict[str, Any]]:
    """A run, the same again, and one that is killed after a checkpoint."""
    del data
    steps = 100 if small else 1000
    first = None
    for what in ("whole", "whole, again", "killed, then continued"):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            if what.startswith("killed"):
                _killed_after_a_checkpoint(Path(folder), steps)
            found = subprocess.run(
                _command(folder, steps), check=True, capture_output=True, text=True
            ).stdout.split()[-1]
            seconds = time.perf_counter() - started
        first = first or found
        yield {
            "what": f"{what}, {steps} steps",
            "seconds": seconds,
            "digest": found,
            "same_bits": found == first,
        }


def _command(folder: str | Path, steps: int) -> list[str]:
    return [sys.executable, "-m", __name__, str(folder), str(steps)]


def _killed_after_a_checkpoint(folder: Path, steps: int) -> None:
    """Kills a run as soon as it has a checkpoint and goes on."""
    process = subprocess.Popen(_command(folder, steps), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        saved = [int(x.name) for x in folder.iterdir() if x.name.isdecimal()]
        if saved and max(saved) < steps:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.01)
    raise RuntimeError(f"the run ended with {process.returncode} before it was killed.")


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
    kernels = num_kernels(model, data)
    run = Run(jnp.int32(0), jnp.full(kernels, 1e-6), jnp.float32(arm["learning_rate"]))
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
    print(f"{int(digest(state)):08x}")


if __name__ == "__main__":
    main()
