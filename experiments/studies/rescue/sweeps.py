"""A sweep from its configuration: with progress, on disk, continued if interrupted.

On many hosts all compute, and the first writes.
"""

import sys
import time
from pathlib import Path

import jax
import pandas as pd
from tqdm import tqdm

from experiments import data as datasets, results
from experiments.cli import hosts
from experiments.cli.command import Config, interrupt_on_signals, reported_errors
from experiments.networks.init_scales import check_profile
from experiments.studies.rescue import sweep
from experiments.training.devices import use_every_core
from experiments.training.optimizers import check_learning_rate
from experiments.training.setup import (
    check_count,
    check_each,
    check_seed,
    model_of,
    training_of,
)
from experiments.training.training import num_kernels


def complete(config: Config, workdir: str) -> tuple[Path, pd.DataFrame]:
    """Computes what the workdir does not hold yet of the sweep.

    Args:
        config: as in ``configs/rescue.py``.
        workdir: where ``config.json``, ``results.csv`` and ``provenance.json`` go.

    Returns:
        The folder, and the table of all runs in the order of the grid.
    """
    use_every_core()
    with reported_errors():
        hosts.connect()
        wanted = wanted_runs(config)
        data = datasets.load(config.dataset)
        model = model_of(config.model, data.num_classes)
        trainings = {
            name: training_of(config, arm, model, len(data.train.labels)).train
            for name, arm in config.optimizers.items()
        }
        devices = jax.devices()
        runs_per_vmap = config.runs_per_vmap or sweep.default_runs_per_vmap(devices)
        folder = Path(workdir)
        hosts.first(lambda: results.claim(folder, config.to_dict()), folder)

    file = folder / "results.csv"
    finished = (
        results.read_table(file, sweep.DTYPES)
        if file.exists()
        else pd.DataFrame(columns=sweep.COLUMNS)
    )
    left = sweep.runs_left(wanted, finished)
    if left.empty:
        return folder, finished

    check_interrupt = interrupt_on_signals()
    # No host writes before all have computed, and so have read what there was.
    session = results.Session(folder, runs_before=len(finished))
    started = time.monotonic()
    tables = [finished] if len(finished) else []
    try:
        with tqdm(
            total=len(wanted),
            initial=len(finished),
            unit="run",
            disable=jax.process_index() > 0,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as bar:
            for name, rows in left.groupby("optimizer", sort=False):
                bar.set_description(str(name))
                for piece in sweep.run_sweep(
                    rows,
                    trainings[str(name)],
                    data,
                    num_kernels(model, data),
                    devices,
                    runs_per_vmap,
                ):
                    if jax.process_index() == 0:
                        results.write_table(file, pd.concat([*tables, piece]))
                    tables.append(piece)
                    bar.update(len(piece))
                    check_interrupt()
    except KeyboardInterrupt:
        print(
            f"{_rows(file)} of {len(wanted)} runs are in {file}; "
            "the same command continues from there.",
            file=sys.stderr,
        )
        raise
    finally:
        session.record(
            runs_after=_rows(file),
            seconds=round(time.monotonic() - started, 1),
        )
    return folder, pd.concat(tables, ignore_index=True)


def _rows(file: Path) -> int:
    return len(results.read_table(file)) if file.exists() else 0


def wanted_runs(config: Config) -> pd.DataFrame:
    """The grid that the configuration asks for, checked."""
    check_each(
        "init_scales", config.init_scales, lambda s: check_profile(config.profile, s)
    )
    if 1.0 not in config.init_scales:
        raise ValueError(
            "init_scales must have 1.0 among them, where the accuracy is taken that a "
            f"rescue is measured against, got {config.init_scales}."
        )
    check_each("seeds", config.seeds, check_seed)
    for name, arm in config.optimizers.items():
        check_each(f"learning_rates of {name}", arm.learning_rates, check_learning_rate)
    if config.runs_per_vmap is not None:
        check_count("runs_per_vmap", config.runs_per_vmap)
    if config.reference not in config.optimizers:
        raise ValueError(
            f"reference must be one of {', '.join(config.optimizers)}, "
            f"got {config.reference!r}."
        )
    return sweep.grid(
        {name: arm.learning_rates for name, arm in config.optimizers.items()},
        config.init_scales,
        config.profile,
        config.seeds,
    )
