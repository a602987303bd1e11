"""What a step of an optimizer costs, as a table and a picture.

The floor is the time of the `PASSES` passes over memory that a step of LARS needs, at
the bandwidth that the same rounds measure: see `experiments.speed.steps`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.results import pages
from experiments.speed.steps import (
    MUON,
    PASSES,
    REFERENCE,
    SGD,
    Case,
    num_parameters,
    time_steps,
)


def measure(
    name: str,
    case: Case,
    rounds: int,
    seconds: float,
    begin: Callable[[str], None] = lambda part: None,
) -> pd.DataFrame:
    """Times the optimizers of a case, see `time_steps`.

    Returns:
        One row for each optimizer, with the columns `COLUMNS`.
    """
    timing = time_steps(name, case, rounds, seconds, begin)
    times, additions = pd.DataFrame(timing.seconds), pd.Series(timing.additions)
    return summary(name, case, times, additions, timing.runs)


COLUMNS = [
    *("case", "tree", "optimizer", "arrays", "parameters", "rounds", "compile_s"),
    *("ms", "ms_q1", "ms_q3", "floor_ms", "gb_per_s"),
    *("per_floor", "per_sgd", "per_optax_lars", "per_muon", "temporary_mib"),
]
"""The columns of the table: times are medians, ``_q1`` and ``_q3`` their quartiles."""


def summary(
    name: str,
    case: Case,
    times: pd.DataFrame,
    additions: pd.Series,
    runs: Mapping[str, Any],
) -> pd.DataFrame:
    """The rows of a case.

    Args:
        name: of the case.
        case: what was timed.
        times: seconds of a step, a row each round and a column each optimizer; NaN
            where it was not timed.
        additions: seconds of an addition of two arrays of the parameters' size.
        runs: the `Stepper` of each optimizer.
    """
    size = num_parameters(case)
    floor = additions * PASSES / 3

    def ratio(seconds: pd.Series, other: pd.Series | None) -> float:
        return math.nan if other is None else (seconds / other).median()

    rows = []
    for arm, seconds in times.items():
        run = runs[str(arm)]
        first, middle, third = 1e3 * seconds.quantile([0.25, 0.5, 0.75])
        row = (name, case.label, arm, len(jax.tree.leaves(case.tree)), size)
        row += (seconds.count(), run.compile_seconds, middle, first, third)
        row += (1e3 * floor.median(), 12e-9 * size / additions.median())
        others = [times.get(other) for other in (SGD, REFERENCE, MUON)]
        row += tuple(ratio(seconds, other) for other in (floor, *others))
        row += (run.temporary_bytes / 2**20,)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def overview_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: a row each optimizer, after a row for each tree's floor."""
    rows = []
    for tree, of_tree in table.groupby("tree", sort=False):
        one = of_tree.iloc[0]
        floor = f"floor: {PASSES} passes at {one.gb_per_s:.1f} GB/s"
        rows.append((tree, floor, "", _number(one.floor_ms), "", "1", *[""] * 4))
        for row in of_tree.itertuples():
            rows.append(
                (
                    *("", f"`{row.optimizer}`", f"{row.compile_s:.1f}"),
                    f"{_number(row.ms)} ({_number(row.ms_q1)} to {_number(row.ms_q3)})",
                    *(str(row.rounds), f"{row.per_floor:.2f}"),
                    *map(_ratio, (row.per_sgd, row.per_optax_lars, row.per_muon)),
                    f"{row.temporary_mib:.1f}",
                )
            )
    columns = ["parameters", "optimizer", "compile, s", "step, ms"]
    columns += ["timed", "of the floor", "of optax.sgd", "of optax.lars", "of Muon"]
    return pd.DataFrame(rows, columns=[*columns, "temporary, MiB"])


def _ratio(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2f}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"


def markdown(table: pd.DataFrame) -> str:
    """`overview_table` as Markdown."""
    return pages.markdown(overview_table(table))


def draw(table: pd.DataFrame) -> Figure:
    """Bars from the floor to each step, a panel for each tree."""
    trees = [rows for _, rows in table.groupby("tree", sort=False)]
    heights = [1 + len(rows) for rows in trees]
    figure = Figure(figsize=(7.5, 0.3 * sum(heights) + 1.4), layout="constrained")
    grid = figure.subplots(len(trees), 1, squeeze=False, height_ratios=heights)
    ends = table["per_floor"].min(), table["per_floor"].max()
    for axes, rows in zip(grid[:, 0], trees, strict=True):
        one = rows.iloc[0]
        steps = rows["per_floor"]
        low, high = (steps * rows[end] / rows["ms"] for end in ("ms_q1", "ms_q3"))
        is_ours = rows["optimizer"].str.startswith("lars")
        color = np.where(is_ours, "#0072B2", "#B0B0B0")  # after Okabe and Ito
        axes.barh(rows["optimizer"], steps - 1, left=1, color=color)
        axes.hlines(rows["optimizer"], low, high, color="black", linewidth=1)
        for name, end, step in zip(rows["optimizer"], high, steps, strict=True):
            axes.annotate(
                f"{step:.3g}",
                (max(1, end), name),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.axvline(1, color="#D55E00")
        axes.set_xscale("log")
        axes.set_xlim(ends[0] / 1.5, ends[1] * 3)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(
            f"{one.tree}, {one.parameters / 1e6:.1f} million parameters; floor "
            f"{_number(one.floor_ms)} ms",
            fontsize=9.5,
            loc="left",
        )
        axes.tick_params(labelsize=8.5)
    grid[-1, 0].set_xlabel("time of a step, of the floor")
    figure.suptitle(
        f"What a step costs. Orange line: the floor, {PASSES} passes of memory.\n"
        "Blue: this package. Number and bar: the median; black line: the quartiles.",
        fontsize=10.5,
    )
    return figure
