"""Table 1: SGD whose rate grows with the batch, without and with normalization."""

import math

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import grid

WORKS = 0.5
"""A rate trains if the mean accuracy is at least this part of the model's best one at
the smallest batch."""


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against learning rate, a panel a model, a line a batch size."""
    figure, axes = grid.figure_of(
        len(settings["models"]),
        "SGD with warm-up: accuracy against the peak learning rate "
        "(of a diverged run: 0)",
        settings,
    )
    counted = grid.counted_accuracies(table)
    for panel, model in zip(axes[0], settings["models"], strict=True):
        sizes = counted[counted["model"] == model].groupby("batch_size")
        for number, (size, rows) in enumerate(sizes):
            grid.draw_accuracy(panel, rows, "learning_rate", number, f"batch {size}")
        xlabel, title = "learning_rate (peak of the schedule)", grid.TITLES[model]
        panel.set(xscale="log", xlabel=xlabel, title=title, ylim=(0, 1))
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The cost of large batches for SGD, and the effect of batch normalization."""
    sizes = settings["batch_sizes"]
    smallest, largest = min(sizes), max(sizes)
    best = grid.chosen(table).groupby(["model", "batch_size"])
    accuracies = {key: rows["accuracy"] for key, rows in best}
    means = best["accuracy"].mean().unstack()
    losses = 100 * (means[smallest] - means[largest])
    rates = best["learning_rate"].first().unstack()
    highest = highest_rates(table, smallest)
    factor = largest / smallest
    growth = (rates[largest] / rates[smallest]).where(highest[largest] > 0)

    def at_both(model: str) -> str:
        return (
            f"{grid.percent(accuracies[model, smallest])} at batch {smallest}, "
            f"{grid.percent(accuracies[model, largest])} at {largest}"
        )

    def growth_of(model: str) -> str:
        if math.isnan(growth[model]):
            return f"none of those tried trains at {largest}"
        return f"the best of those tried grows by a factor of {growth[model]:.3g}"

    return [
        Claim(
            "Without batch normalization, SGD with a rate that grows with the batch "
            "and a warm-up loses much accuracy at large batches (58.8% to 44.8%).",
            f"Test accuracy in %: {at_both('plain')}.",
            judged(
                [
                    losses["plain"] > 2,
                    accuracies["plain", smallest].min()
                    > accuracies["plain", largest].max(),
                ]
            ),
        ),
        Claim(
            "With batch normalization it loses less (60.2% to 58.0%).",
            f"{at_both('batch_norm')}. It loses {losses['batch_norm']:.3g} points, and "
            f"{losses['plain']:.3g} without batch normalization.",
            judged([losses["batch_norm"] < losses["plain"]]),
        ),
        Claim(
            "Batch normalization makes larger learning rates possible.",
            f"The highest of the rates that train (to {WORKS:.0%} of the accuracy at "
            f"batch {smallest}), with it and without: "
            + "; ".join(
                " and ".join(
                    f"{x:g}" if x else "none"
                    for x in highest[size][["batch_norm", "plain"]]
                )
                + f" at batch {size}"
                for size in sizes
            )
            + ".",
            judged((highest.loc["batch_norm"] > highest.loc["plain"]).tolist()),
        ),
        Claim(
            "The rate cannot grow in proportion to the batch up to such sizes.",
            f"From batch {smallest} to {largest} it would grow by a factor of "
            f"{factor:g}: "
            + "; ".join(f"{grid.TITLES[x]} {growth_of(x)}" for x in settings["models"])
            + ".",
            judged((growth.fillna(0) < factor).tolist()),
        ),
    ]


def highest_rates(table: pd.DataFrame, smallest: int) -> pd.DataFrame:
    """The highest rate that trains, or 0, by model (rows) and batch size (columns)."""
    keys = ["model", "batch_size", "learning_rate"]
    accuracies = grid.counted_accuracies(table).groupby(keys)["accuracy"]
    means = accuracies.mean().reset_index()
    at_smallest = means[means["batch_size"] == smallest]
    needed = WORKS * at_smallest.groupby("model")["accuracy"].max()
    trains = means["accuracy"] >= means["model"].map(needed)
    rates = means.assign(rate=means["learning_rate"].where(trains, 0))
    return rates.groupby(["model", "batch_size"])["rate"].max().unstack()


ITEM = grid.item(
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
    cells=lambda settings: grid.cells_of(
        settings, settings["models"], ["sgd"], settings["batch_sizes"]
    ),
    draw=draw,
    claims=claims,
)
