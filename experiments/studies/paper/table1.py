"""Table 1: SGD whose rate grows with the batch, without and with normalization."""

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
    sizes, models = settings["batch_sizes"], settings["models"]
    smallest, largest = min(sizes), max(sizes)
    best = grid.chosen(table).groupby(["model", "batch_size"])
    accuracies = {key: rows["accuracy"] for key, rows in best}
    rates = best["learning_rate"].first()
    highest = highest_rates(table, smallest)
    losses = {
        model: 100
        * (accuracies[model, smallest].mean() - accuracies[model, largest].mean())
        for model in models
    }
    factor = largest / smallest
    growth = {
        model: rates[model, largest] / rates[model, smallest]
        for model in models
        if highest[model, largest]
    }

    def at_both(model: str) -> str:
        return (
            f"{grid.percent(accuracies[model, smallest])} at batch {smallest}, "
            f"{grid.percent(accuracies[model, largest])} at {largest}"
        )

    def highest_of(model: str, size: int) -> str:
        rate = highest[model, size]
        return f"{rate:g}" if rate else "none"

    def growth_of(model: str) -> str:
        if model not in growth:
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
                f"{highest_of('batch_norm', size)} and {highest_of('plain', size)} at "
                f"batch {size}"
                for size in sizes
            )
            + ".",
            judged([highest["batch_norm", x] > highest["plain", x] for x in sizes]),
        ),
        Claim(
            "The rate cannot grow in proportion to the batch up to such sizes.",
            f"From batch {smallest} to {largest} it would grow by a factor of "
            f"{factor:g}: "
            + "; ".join(f"{grid.TITLES[model]} {growth_of(model)}" for model in models)
            + ".",
            judged([growth.get(model, 0) < factor for model in models]),
        ),
    ]


def highest_rates(table: pd.DataFrame, smallest: int) -> dict[tuple[str, int], float]:
    """The highest rate of each model and batch size that trains, or 0."""
    counted = grid.counted_accuracies(table)
    keys = ["model", "batch_size", "learning_rate"]
    means = counted.groupby(keys)["accuracy"].mean().reset_index("learning_rate")
    found = {}
    for (model, size), line in means.groupby(level=keys[:2]):
        needed = WORKS * means.loc[(model, smallest), "accuracy"].max()
        trains = line[line["accuracy"] >= needed]
        found[model, size] = trains["learning_rate"].max() if len(trains) else 0.0
    return found


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
