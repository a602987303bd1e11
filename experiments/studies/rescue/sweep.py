"""A sweep: a table of runs, computed piece by piece, kept on disk as it grows."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.data import Data
from experiments.networks.init_scales import profile_scales
from experiments.training.sharding import device_mesh, fetch, put, replicated, split
from experiments.training.training import Result, Run, sweep_over

KEYS = ["optimizer", "init_scale", "profile", "learning_rate", "seed"]
"""The columns that name a run."""

COLUMNS = [*KEYS, "validation_accuracy", "test_accuracy", "train_loss", "diverged"]
"""The columns of a table of results, one row a run."""

DTYPES = dict.fromkeys(
    ["validation_accuracy", "test_accuracy", "train_loss"], "float32"
)
"""What the measurements are read from a file as."""


RUNS_PER_PIECE = 8
"""How many runs each device makes, at least, between two results: less than a second
on a CPU."""


def grid(
    arms: Mapping[str, Sequence[float]],
    init_scales: Sequence[float],
    profile: str,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Every combination, as a table with the columns `KEYS`.

    Args:
        arms: the learning rates of each optimizer, by its name.
        init_scales: initial scales s.
        profile: what s applies to, a name of `init_scales.PROFILES`.
        seeds: one run for each.
    """
    rows = [
        (name, scale, profile, rate, seed)
        for name, rates in arms.items()
        for scale, rate, seed in itertools.product(init_scales, rates, seeds)
    ]
    return pd.DataFrame(rows, columns=KEYS)


def runs_left(wanted: pd.DataFrame, finished: pd.DataFrame) -> pd.DataFrame:
    """The wanted runs that are not among the finished ones, in their order."""
    done = pd.MultiIndex.from_frame(finished[KEYS])
    return wanted[~pd.MultiIndex.from_frame(wanted).isin(done)]


def default_runs_per_vmap(devices: Sequence[Any]) -> int:
    """How many runs a device should vectorise at a time.

    On a CPU one: more are no faster. An accelerator needs many to be busy; 65
    divides the 195 runs of an optimizer in ``configs/rescue.py``.
    """
    return 1 if devices[0].platform == "cpu" else 65


def run_sweep(
    runs: pd.DataFrame,
    train: Callable[[Run, Data], Result],
    data: Data,
    num_kernels: int,
    devices: Sequence[Any],
    runs_per_vmap: int,
) -> Iterator[pd.DataFrame]:
    """Computes runs of one optimizer, some at a time.

    The grid is compiled once, whatever is left of it: the last piece is filled up with
    repetitions, which are dropped from the result.

    Args:
        runs: a table with the columns `KEYS`.
        train: `experiments.training.training.Training.train`.
        data: what to train and evaluate on.
        num_kernels: how many kernels the model has.
        devices: where to run, of all hosts; each makes the same number of runs. All
            hosts call this alike, and all get the tables.
        runs_per_vmap: how many runs a device vectorises at a time.

    Yields:
        Tables with the columns `COLUMNS`, as soon as each is computed.
    """
    per_device = -(-RUNS_PER_PIECE // runs_per_vmap) * runs_per_vmap
    size = len(devices) * per_device
    compute = sweep_over(train, devices, runs_per_vmap)
    mesh = device_mesh(devices)
    data = put(data, replicated(mesh))
    for first in range(0, len(runs), size):
        piece = runs.iloc[first : first + size]
        filled = piece.iloc[np.arange(size) % len(piece)]
        runs_there = put(stack_runs(filled, num_kernels), split(mesh))
        result = fetch(compute(runs_there, data))
        columns = {
            name: values[: len(piece)] for name, values in result._asdict().items()
        }
        yield piece.assign(**columns)[COLUMNS]


def stack_runs(rows: pd.DataFrame, num_kernels: int) -> Run:
    """The arrays of the runs in a table with the columns `KEYS`."""
    scales = [
        profile_scales(profile, scale, num_kernels, seed)
        for profile, scale, seed in zip(
            rows.profile, rows.init_scale, rows.seed, strict=True
        )
    ]
    return Run(
        seed=jnp.asarray(rows.seed, jnp.int32),
        kernel_scales=jnp.stack(scales),
        learning_rate=jnp.asarray(rows.learning_rate, jnp.float32),
    )
