"""The benchmark: what a step of each optimizer costs, on four trees of parameters.

    python -m experiments.benchmark --workdir=results/benchmark

Writes ``benchmark.csv`` and ``orthogonality.csv`` (the singular values of steps that
are orthogonalized), a picture of each, ``config.json`` and ``provenance.json`` to the
workdir, in place of those of an earlier run, and prints the tables.
``--only=resnet50,vmap`` measures some of the trees, ``--quick`` small ones, and
``--rounds`` less or more often.
"""

import sys

import jax
import pandas as pd
from absl import flags
from tqdm import tqdm

from experiments import results
from experiments.checks import check_count, check_name, check_positive
from experiments.cli import command
from experiments.speed import orthogonality, step_cost as benchmark, steps

ONLY = flags.DEFINE_list("only", None, "Only these trees, such as resnet50,vmap.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each optimizer is timed.")
SECONDS = flags.DEFINE_float(
    "seconds", 3.0, "About how long timing one optimizer on one tree may take."
)
QUICK = flags.DEFINE_bool("quick", False, "Small trees, to try the command.")


def main(workdir: str) -> None:
    """Measures the chosen trees, then prints the table."""
    cases = steps.cases(QUICK.value)
    with command.reported_errors():
        check_count("rounds", ROUNDS.value)
        check_positive("seconds", SECONDS.value)
        names = ONLY.value or list(cases)
        for name in names:
            check_name("only", name, cases)
        settings = {"trees": names, "quick": QUICK.value, "rounds": ROUNDS.value}
        settings["seconds"] = SECONDS.value
        folder = results.claim(
            workdir, settings, files=["benchmark.csv", "orthogonality.csv"]
        )

    # What is compiled is to be timed, not to be found from an earlier run.
    jax.config.update("jax_enable_compilation_cache", False)
    tables = []
    parts = sum(steps.num_parts(cases[name], ROUNDS.value) for name in names)
    with (
        results.measured_anew(folder, "benchmark") as file,
        tqdm(
            total=parts,
            unit="part",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as bar,
    ):

        def begin(part: str) -> None:
            bar.set_description(part, refresh=not bar.desc.startswith(part))
            bar.update()

        for name in names:
            times = ROUNDS.value, SECONDS.value
            tables.append(benchmark.measure(name, cases[name], *times, begin))
            results.write_table(file, pd.concat(tables))
        results.write_picture(
            file.with_suffix(".png"), benchmark.draw(pd.concat(tables))
        )
        singular = orthogonality.measure()
        results.write_table(folder / "orthogonality.csv", singular)
        results.write_picture(
            folder / "orthogonality.png", orthogonality.draw(singular)
        )
    print(benchmark.markdown(pd.concat(tables)))
    print(f"\n{orthogonality.markdown(singular)}")
    print(f"\nAll columns: {file}   Picture: {file.with_suffix('.png')}")


if __name__ == "__main__":
    command.run_measurement(main)
