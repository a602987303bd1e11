"""Figure 4: accuracy against the learning rate of LARS at the two largest batches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.paper import grid
from experiments.studies.style import line_over_seeds, panels

MODEL, OPTIMIZER = "batch_norm", "lars"
STEEP = 0.05
"""A fall is steep if accuracy is so much lower at a rate at most twice as high."""
ON_PLATEAU = 0.02
"""A rate is on the plateau if its mean accuracy is at most this below the best."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The two largest batches, with the rates of the grid and some between."""
    return grid.cells_of(
        settings,
        [MODEL],
        [OPTIMIZER],
        sorted(settings["batch_sizes"])[-2:],
        rates=["all", "between"],
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A line for each of the two batches."""
    figure, axes = panels(
        1,
        1,
        "LARS with batch normalization: accuracy against the peak learning rate\n"
        f"Lines: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
        width=7.5,
        height=3.8,
    )
    panel = axes[0, 0]
    counted = grid.counted_accuracies(table)
    for number, (batch_size, rows) in enumerate(counted.groupby("batch_size")):
        line_over_seeds(
            panel,
            rows,
            "learning_rate",
            "accuracy",
            number,
            f"batch {batch_size}",
        )
    rates = sorted(table["learning_rate"].unique())
    panel.set_xscale("log")
    panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
    panel.minorticks_off()
    panel.set(xlabel="learning_rate γ (peak of the schedule)", ylabel="test accuracy")
    panel.legend(frameon=False)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """A plateau, and a cliff behind it."""
    del settings
    plateaus, cliffs, wide, falls = [], [], [], []
    for batch_size, line in _lines(table):
        best = line["mean"].max()
        plateau = plateau_of(line)
        close = line[line["mean"] >= best - ON_PLATEAU]["learning_rate"]
        apart = sorted(set(close) - set(plateau))
        fall, (before, after) = steepest_fall(line, plateau.max())
        plateaus.append(
            f"batch {batch_size}: at most {100 * ON_PLATEAU:g} points below the best "
            f"({100 * best:.3g}%) at γ = {', '.join(f'{x:g}' for x in plateau)}"
            + (
                f", and apart from these at {', '.join(f'{x:g}' for x in apart)}"
                if apart
                else ""
            )
        )
        cliffs.append(
            f"batch {batch_size}: {100 * fall:.3g} points less at γ = {after:g} than "
            f"at {before:g}"
        )
        wide.append(plateau.max() / plateau.min() >= 22 / 13)
        falls.append(fall > STEEP)
    return [
        Claim(
            "There is a plateau of learning rates that do equally well: from 13 to 22 "
            "at batch 16K, from 17 to 28 at 32K.",
            f"{'; '.join(plateaus)}.",
            judged(wide),
        ),
        Claim(
            "Behind the plateau accuracy falls steeply (from 28 to 30 on).",
            f"The steepest fall there between neighbouring rates: {'; '.join(cliffs)}.",
            judged(falls),
        ),
    ]


def steepest_fall(
    line: pd.DataFrame, above: float
) -> tuple[float, tuple[float, float]]:
    """What the accuracy falls by at most between neighbouring rates from one on.

    Neighbours are at most a factor of 2 apart: farther ones say nothing of a cliff.

    Returns:
        The fall, and the two rates; 0 and NaN where there are no neighbours.
    """
    line = line[line["learning_rate"] >= above].sort_values("learning_rate")
    rates, accuracies = line["learning_rate"].tolist(), line["mean"].tolist()
    falls = [
        (accuracies[i] - accuracies[i + 1], (rates[i], rates[i + 1]))
        for i in range(len(rates) - 1)
        if rates[i + 1] <= 2 * rates[i]
    ]
    return max(falls, default=(0.0, (math.nan, math.nan)))


def plateau_of(line: pd.DataFrame) -> pd.Series:
    """The rates around the best one that are all on the plateau, with no gap."""
    line = line.sort_values("learning_rate").reset_index(drop=True)
    is_on = line["mean"] >= line["mean"].max() - ON_PLATEAU
    stretch = (is_on != is_on.shift()).cumsum()
    return line["learning_rate"][stretch == stretch[line["mean"].idxmax()]]


def _lines(table: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    counted = grid.counted_accuracies(table)
    return [
        (int(str(batch_size)), grid.over_seeds(rows, "learning_rate"))
        for batch_size, rows in counted.groupby("batch_size")
    ]


ITEM = Item(
    title="Figure 4: accuracy against the learning rate of LARS",
    about=(
        "The paper trains AlexNet-BN at batches of 16K and 32K with two dozen learning "
        "rates. The proxy is that of Table 1 with batch normalization at its two "
        "largest batches, with eight rates and three seeds; Tables 3 and 5 choose "
        "among fewer."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
