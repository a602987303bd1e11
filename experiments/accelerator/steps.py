"""What a step of each optimizer costs, beside the least that the memory allows."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.speed.steps import MUON, PASSES, SGD, cases, num_parameters, time_steps

COLUMNS = (
    *("parameters", "optimizer", "rounds", "compile_s", "ms", "ms_q1", "ms_q3"),
    *("floor_ms", "gb_per_s", "per_floor", "per_sgd", "temporary_mib"),
)
"""The medians over rounds, and quartiles ``_q1`` and ``_q3``. The floor is the time of
7 passes over memory; a ratio is the median of the ratios in the same round."""


def rows(small: bool, data: Path | None) -> Iterator[dict[str, Any]]:
    """A row for each optimizer on each tree of parameters."""
    del data
    for name, case in cases(quick=small).items():
        if name == "vmap":
            continue
        arms = (*case.arms, MUON) if name == "resnet50" else case.arms
        case = dataclasses.replace(case, arms=arms)
        timing = time_steps(name, case, rounds=5 if small else 15, seconds=1.0)
        floor = timing.additions * PASSES / 3
        size = num_parameters(case)
        for arm, seconds in timing.seconds.items():
            run = timing.runs[arm]
            first, middle, third = 1e3 * np.nanquantile(seconds, [0.25, 0.5, 0.75])
            yield {
                "parameters": f"{case.label}, {size:,} numbers",
                "optimizer": arm,
                "rounds": int(np.isfinite(seconds).sum()),
                "compile_s": run.compile_seconds,
                **{"ms": middle, "ms_q1": first, "ms_q3": third},
                "floor_ms": 1e3 * np.median(floor),
                "gb_per_s": 12e-9 * size / np.median(timing.additions),
                "per_floor": np.nanmedian(seconds / floor),
                "per_sgd": np.nanmedian(seconds / timing.seconds[SGD]),
                "temporary_mib": run.temporary_bytes / 2**20,
            }
        jax.clear_caches()  # of the device's memory
