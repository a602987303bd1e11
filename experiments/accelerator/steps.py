"""What a step of each optimizer costs on one device, beside the least that is possible.

On an accelerator several steps are one program. The arrays of small trees may fit into
its caches, where the floor is that of the caches.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.speed.steps import PASSES, SGD, cases, num_parameters, time_steps

COLUMNS = (
    *("parameters", "optimizer", "rounds", "compile_s", "ms", "ms_q1", "ms_q3"),
    *("floor_ms", "gb_per_s", "per_floor", "per_sgd", "temporary_mib"),
)
"""The medians over rounds, and quartiles ``_q1`` and ``_q3``. The floor is the time of
7 passes over memory; a ratio is the median of the ratios in the same round."""


def rows(small: bool) -> Iterator[dict[str, Any]]:
    """A row for each optimizer on each tree of parameters."""
    every = cases(quick=small)
    for name in ("transformer", "resnet50", "leaves"):  # the one with all rivals first
        case = every[name]
        timing = time_steps(name, case, rounds=5 if small else 15, seconds=1.0)
        floor = timing.additions * PASSES / 3
        size = num_parameters(case)
        for arm, seconds in timing.seconds.items():
            first, middle, third = 1e3 * np.nanquantile(seconds, [0.25, 0.5, 0.75])
            yield {
                "parameters": f"{case.label}, {size:,} numbers",
                "optimizer": arm,
                "rounds": int(np.isfinite(seconds).sum()),
                "compile_s": timing.runs[arm].compile_seconds,
                **{"ms": middle, "ms_q1": first, "ms_q3": third},
                "floor_ms": 1e3 * np.median(floor),
                "gb_per_s": 12e-9 * size / np.median(timing.additions),
                "per_floor": np.nanmedian(seconds / floor),
                "per_sgd": np.nanmedian(seconds / timing.seconds[SGD]),
                "temporary_mib": timing.runs[arm].temporary_bytes / 2**20,
            }
        del timing  # the arrays of all optimizers
