"""The speed of training: single runs, and a sweep beside plain loops.

    python -m experiments.throughput --workdir=results/throughput

Each thing that is timed has a process of its own, as it has in use, and all take turns
in every round. Writes ``throughput.csv``, ``config.json`` and ``provenance.json`` to
the workdir, in place of those of an earlier run, and prints the table. A configuration
whose data is not prepared is named and left out; so is PyTorch, if it is not installed.
For an accelerator, there are ``--configs=imagenet_resnet50,cifar10_resnet18``; random
images stand for those of ImageNet.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any, NamedTuple

import pandas as pd
from absl import flags
from tqdm import tqdm

from experiments import results
from experiments.checks import check_count, check_name, check_positive
from experiments.cli import command
from experiments.speed import throughput
from experiments.speed.timed import JOBS

CONFIGS = flags.DEFINE_list(
    "configs",
    ["digits_mlp", "fashion_mnist_cnn", "cifar10_cnn"],
    "Which single runs, files of configs/.",
)
ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each is timed.")
SWEEP = flags.DEFINE_bool("sweep", True, "Whether to time the sweep, and its loops.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "About how long timing one takes a round.")


class Worker(NamedTuple):
    """A process that measures whenever it is asked to."""

    process: subprocess.Popen
    log: IO[str]  # what it says on stderr
    facts: dict[str, Any]  # flops_per_image, device

    @classmethod
    def start(cls, job: str, argument: str) -> "Worker | str":
        """Starts a job and waits until it is compiled; or says why it cannot be."""
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.timed", job, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Several processes share an accelerator's memory.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        facts = cls._answer(process, log)
        if "problem" in facts:
            return str(facts["problem"])
        return cls(process, log, facts)

    def measure(self) -> dict[str, float]:
        """Measures once."""
        assert self.process.stdin is not None
        print("measure", file=self.process.stdin, flush=True)
        return self._answer(self.process, self.log)

    @staticmethod
    def _answer(process: subprocess.Popen, log: IO[str]) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        log.seek(0)
        said = log.read().strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{process.args} ended before it had measured: {said[-1]}")


def main(workdir: str) -> None:
    """Starts all processes, times them in turns, then prints the table."""
    with command.reported_errors():
        check_count("rounds", ROUNDS.value)
        check_positive("seconds", SECONDS.value)
        for name in CONFIGS.value:
            check_name("configs", f"configs/{name}.py", command.CONFIGS)
        settings = {"configs": CONFIGS.value, "rounds": ROUNDS.value}
        settings["seconds"], settings["sweep"] = SECONDS.value, SWEEP.value
        folder = results.claim(workdir, settings, files=["throughput.csv"])

    jobs = dict.fromkeys(CONFIGS.value, "run")
    jobs[throughput.PRODUCT] = throughput.PRODUCT
    if SWEEP.value:
        jobs |= {what: what for what in JOBS if what != "run"}
    workers: dict[str, Worker] = {}
    rounds: list[dict[tuple[str, str], float]] = []
    with (
        results.measured_anew(folder, "throughput") as file,
        contextlib.ExitStack() as stack,
        tqdm(
            total=len(jobs) + ROUNDS.value,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as bar,
    ):
        for what, job in jobs.items():
            bar.set_description(f"compiling: {what}")
            worker = Worker.start(job, f"{what}:{SECONDS.value}")
            if isinstance(worker, str):
                tqdm.write(f"{what} is left out: {worker}", file=sys.stderr)
            else:
                workers[what] = worker
                stack.callback(worker.process.kill)
            bar.update()
        for _ in range(ROUNDS.value):
            bar.set_description("timing")
            rounds.append(
                {
                    (what, quantity): value
                    for what, worker in workers.items()
                    for quantity, value in worker.measure().items()
                }
            )
            bar.update()
    table = throughput.summary(
        pd.DataFrame(rounds),
        {
            what: worker.facts["flops_per_image"]
            for what, worker in workers.items()
            if what != throughput.PRODUCT
        },
        {what: worker.facts["device"] for what, worker in workers.items()},
    )
    results.write_table(file, table)
    print(throughput.markdown(table))
    print(f"\nAll columns: {file}")


if __name__ == "__main__":
    command.run_measurement(main)
