"""What the paper lacks: LARS beside tuned peers, from small batches to large ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import grid


def item_of(model: str, optimizers: Sequence[str], title: str, about: str) -> Item:
    """The comparison on one of the models.

    Args:
        model: a name in the settings.
        optimizers: those that are compared, LARS among them.
        title: of the item.
        about: of the item.
    """

    def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
        return grid.cells_of(settings, [model], optimizers, settings["batch_sizes"])

    def draw(table: pd.DataFrame, settings: Settings) -> Figure:
        return grid.accuracy_figure(
            table,
            settings,
            "Accuracy against batch size at equal epochs, best rate of each",
        )

    def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
        return [
            _best_at(batch_size, table, settings)
            for batch_size in sorted(settings["batch_sizes"])
        ]

    return Item(title, about, cells, grid.measure, draw, claims, grid.KEPT_IN)


def _best_at(batch_size: int, table: pd.DataFrame, settings: Settings) -> Claim:
    """Whether LARS is ahead of every other optimizer, beyond the spread of seeds."""
    best = grid.chosen(table)
    at = {
        str(name): rows
        for name, rows in best[best["batch_size"] == batch_size].groupby("optimizer")
    }
    labels = {name: settings["optimizers"][name]["label"] for name in at}
    order = sorted(at, key=lambda name: -at[name]["accuracy"].mean())
    is_here = table["batch_size"] == batch_size

    def rate_of(name: str) -> str:
        tried = table[is_here & (table["optimizer"] == name)]["learning_rate"]
        rate = at[name]["learning_rate"].iloc[0]
        edges = {tried.min(): ", its lowest", tried.max(): ", its highest"}
        return f"{rate:g}{edges.get(rate, '')}"

    found = "; ".join(
        f"{labels[name]} {mean_and_spread(100 * at[name]['accuracy'])} (rate "
        f"{rate_of(name)})"
        for name in order
    )
    lars = at["lars"]["accuracy"]
    others = [rows["accuracy"] for name, rows in at.items() if name != "lars"]
    return Claim(
        f"At batch {batch_size} LARS is better than the others, if each has the same "
        "number of learning rates to choose from.",
        f"Test accuracy in %: {found}.",
        judged([lars.min() > other.max() for other in others]),
    )


_ABOUT = (
    "The paper compares LARS with SGD whose rate grows with the batch. Nado et al. "
    "([2021](https://arxiv.org/abs/2102.06356)) found that a well-tuned baseline does "
    "as well. Here optimizers train a miniature of AlexNet on Fashion-MNIST for "
    "equally many epochs, each with four learning rates for every batch size, three "
    "seeds, and the same warm-up and decay; rates are chosen on validation images. The "
    "rates of SGD grow in proportion to the batch, those of the others do not. "
)

ITEM = item_of(
    "batch_norm",
    ("sgd", "nesterov", "lars", "lamb"),
    "Beyond the paper: tuned peers, with batch normalization",
    _ABOUT + "This is the network with batch normalization.",
)

PLAIN = item_of(
    "plain",
    ("sgd", "nesterov", "lars"),
    "Beyond the paper: tuned peers, without batch normalization",
    _ABOUT + "This is the network without batch normalization, and without LAMB.",
)
