"""Table 1: SGD whose rate grows with the batch, without and with normalization."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import grid
from experiments.studies.style import line_over_seeds, panels

OPTIMIZER = "sgd"
WORKS = 0.5
"""A rate trains if the mean accuracy is at least this part of the model's best one at
the smallest batch."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Both models, all batch sizes."""
    return grid.cells_of(
        settings, list(settings["models"]), [OPTIMIZER], settings["batch_sizes"]
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against learning rate, a panel a model, a line a batch size."""
    seeds = len(settings["seeds"])
    figure, axes = panels(
        1,
        len(settings["models"]),
        "SGD with warm-up: accuracy against the peak learning rate\n"
        f"Lines: mean of {seeds} seeds; bands: lowest to highest. "
        "A diverged run counts as 0.",
    )
    counted = grid.counted_accuracies(table)
    for panel, model in zip(axes[0], settings["models"], strict=True):
        for number, batch_size in enumerate(settings["batch_sizes"]):
            is_one = (counted["model"] == model) & (counted["batch_size"] == batch_size)
            line_over_seeds(
                panel,
                counted[is_one],
                "learning_rate",
                "accuracy",
                number,
                f"batch {batch_size}",
            )
        panel.set_xscale("log")
        panel.set(
            xlabel="learning_rate (peak of the schedule)",
            ylabel="test accuracy",
            title=grid.TITLES[model],
            ylim=(0, 1),
        )
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What large batches cost SGD, and what batch normalization changes."""
    smallest, largest = min(settings["batch_sizes"]), max(settings["batch_sizes"])
    best = grid.chosen(table)
    at = {
        (model, size): rows
        for (model, size), rows in best.groupby(["model", "batch_size"])
    }

    def percent(model: str, size: int) -> str:
        return mean_and_spread(100 * at[model, size]["accuracy"])

    def loss(model: str) -> float:
        small, large = (at[model, size]["accuracy"] for size in (smallest, largest))
        return 100 * (small.mean() - large.mean())

    losses = {model: loss(model) for model in settings["models"]}
    highest = {
        model: {
            size: _highest_that_trains(table, model, size, smallest)
            for size in settings["batch_sizes"]
        }
        for model in settings["models"]
    }

    def named(rate: float) -> str:
        return f"{rate:g}" if rate else "none"

    factor = largest / smallest
    used = {
        model: at[model, largest]["learning_rate"].iloc[0]
        / at[model, smallest]["learning_rate"].iloc[0]
        for model in settings["models"]
        if highest[model][largest]
    }
    return [
        Claim(
            "Without batch normalization, SGD with a rate that grows with the batch "
            "and a warm-up loses much accuracy at large batches (58.8% to 44.8%).",
            f"Test accuracy in %: {percent('plain', smallest)} at batch {smallest}, "
            f"{percent('plain', largest)} at {largest}.",
            judged(
                [
                    losses["plain"] > 2,
                    at["plain", smallest]["accuracy"].min()
                    > at["plain", largest]["accuracy"].max(),
                ]
            ),
        ),
        Claim(
            "With batch normalization it loses less (60.2% to 58.0%).",
            f"{percent('batch_norm', smallest)} at batch {smallest}, "
            f"{percent('batch_norm', largest)} at {largest}: "
            f"{losses['batch_norm']:.3g} points lost, without it "
            f"{losses['plain']:.3g}.",
            judged([losses["batch_norm"] < losses["plain"]]),
        ),
        Claim(
            "Batch normalization makes larger learning rates possible.",
            f"The highest of the rates that train (to {WORKS:.0%} of the accuracy at "
            f"batch {smallest}), with it and without: "
            + "; ".join(
                f"{named(highest['batch_norm'][size])} and "
                f"{named(highest['plain'][size])} at batch {size}"
                for size in settings["batch_sizes"]
            )
            + ".",
            judged(
                [
                    highest["batch_norm"][size] > highest["plain"][size]
                    for size in settings["batch_sizes"]
                ]
            ),
        ),
        Claim(
            "The rate cannot grow in proportion to the batch up to such sizes.",
            f"From batch {smallest} to {largest} it would grow by a factor of "
            f"{factor:g}: "
            + "; ".join(
                f"{grid.TITLES[model]} "
                + (
                    f"the best of those tried grows by a factor of {used[model]:.3g}"
                    if model in used
                    else f"none of those tried trains at {largest}"
                )
                for model in settings["models"]
            )
            + ".",
            judged([used.get(model, 0) < factor for model in settings["models"]]),
        ),
    ]


def _highest_that_trains(
    table: pd.DataFrame, model: str, batch_size: int, smallest: int
) -> float:
    """The highest rate that trains, or 0."""
    counted = grid.counted_accuracies(table[table["model"] == model])

    def line(size: int) -> pd.DataFrame:
        return grid.over_seeds(counted[counted["batch_size"] == size], "learning_rate")

    of_size = line(batch_size)
    trains = of_size["mean"] >= WORKS * line(smallest)["mean"].max()
    return float(of_size.loc[trains, "learning_rate"].max()) if trains.any() else 0.0


ITEM = Item(
    title="Table 1: SGD at large batches",
    about=(
        "The paper trains AlexNet and AlexNet-BN on ImageNet with SGD and a rate that "
        "grows with the batch, at batches of 512 to 8192; AlexNet has a warm-up, "
        "AlexNet-BN none and more epochs. The proxy is a miniature of AlexNet "
        "(`experiments.networks.miniature_alexnet`) on Fashion-MNIST, with a warm-up "
        "throughout, at equally many epochs of whole batches, with four rates and "
        "three seeds for each batch size; the best rate is chosen on validation "
        "images. The four rates grow in proportion to the batch. Where the smallest of "
        "them is best, a smaller one may be better: the last two items have SGD that "
        "is tuned for each batch. At the largest batch the running statistics of batch "
        "normalization still hold a part of their initial values, for all optimizers "
        "alike."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
