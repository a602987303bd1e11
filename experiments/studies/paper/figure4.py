"""Figure 4: accuracy against the learning rate of LARS at the two largest batches."""

import math

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import grid

STEEP = 0.05
"""A fall is steep if accuracy is so much lower at a rate at most twice as high."""
ON_PLATEAU = 0.02
"""A rate is on the plateau if its mean accuracy is at most this below the best."""


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A line for each of the two batches."""
    title = "LARS with batch normalization: accuracy against the peak learning rate"
    figure, axes = grid.figure_of(1, title, settings, width=7.5, height=3.8)
    panel = axes[0, 0]
    batches = grid.counted_accuracies(table).groupby("batch_size")
    for number, (size, rows) in enumerate(batches):
        grid.draw_accuracy(panel, rows, "learning_rate", number, f"batch {size}")
    rates = sorted(table["learning_rate"].unique())
    panel.set_xscale("log")
    panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
    panel.minorticks_off()
    panel.set_xlabel("learning rate γ (peak of the schedule)")
    panel.legend(frameon=False)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """A plateau, and a cliff behind it."""
    del settings
    plateaus, cliffs, wide, falls = [], [], [], []
    for size, rows in grid.counted_accuracies(table).groupby("batch_size"):
        line = rows.groupby("learning_rate")["accuracy"].mean()
        plateau = plateau_of(line)
        apart = line.index[line >= line.max() - ON_PLATEAU].difference(plateau)
        fall, (before, after) = steepest_fall(line.loc[plateau.max() :])
        others = f", and apart from these at {_listed(apart)}" if len(apart) else ""
        plateaus.append(
            f"batch {size}: at most {100 * ON_PLATEAU:g} points below the best "
            f"({100 * line.max():.3g}%) at γ = {_listed(plateau)}{others}"
        )
        cliffs.append(
            f"batch {size}: {100 * fall:.3g} points less at γ = {after:g} than at "
            f"{before:g}"
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


def _listed(rates: pd.Index) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def steepest_fall(line: pd.Series) -> tuple[float, tuple[float, float]]:
    """The largest fall of the accuracy between neighbouring rates, and the two rates.

    Neighbours are at most a factor of 2 apart: farther ones say nothing of a cliff.
    The fall is 0, and the rates are NaN, where there are no neighbours.
    """
    pairs = zip(line.items(), line.iloc[1:].items(), strict=False)
    falls = [(x - y, (rate, other)) for (rate, x), (other, y) in pairs]
    return max(
        (fall for fall in falls if fall[1][1] <= 2 * fall[1][0]),
        default=(0.0, (math.nan, math.nan)),
    )


def plateau_of(line: pd.Series) -> pd.Index:
    """The rates around the best one that are all on the plateau, with no gap.

    ``line`` has the mean accuracy of each rate, from the smallest rate on.
    """
    is_on = line >= line.max() - ON_PLATEAU
    stretch = (is_on != is_on.shift()).cumsum()
    return line.index[stretch == stretch[line.idxmax()]]


ITEM = grid.item(
    title="Figure 4: accuracy against the learning rate of LARS",
    about=(
        "The paper trains AlexNet-BN at batches of 16K and 32K with two dozen learning "
        "rates. The proxy is that of Table 1 with batch normalization at its two "
        "largest batches, with eight rates and three seeds; Tables 3 and 5 choose "
        "among fewer."
    ),
    cells=lambda settings: grid.cells_of(
        settings,
        ["batch_norm"],
        ["lars"],
        sorted(settings["batch_sizes"])[-2:],
        rates=["all", "between"],
    ),
    draw=draw,
    claims=claims,
)
