"""What the paper lacks: LARS beside tuned peers, from small batches to large ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lars.figures.item import Claim, Item, Settings, judged, mean_and_spread
from lars.figures.paper import grid


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every optimizer with batch normalization; without it SGD and LARS."""
    sizes = settings["batch_sizes"]
    return [
        *grid.cells_of(settings, ["batch_norm"], list(settings["optimizers"]), sizes),
        *grid.cells_of(settings, ["plain"], ["sgd", "lars"], sizes),
    ]


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against the batch size, a line an optimizer."""
    return grid.accuracy_figure(
        table,
        settings,
        "Accuracy against batch size at equal epochs: best rate of each, by validation",
    )


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Who is best at the largest batch, and by how much."""
    best = grid.chosen(table)
    best = best[best["model"] == "batch_norm"]
    largest = max(settings["batch_sizes"])
    at = {
        name: best[(best["optimizer"] == name) & (best["batch_size"] == largest)]
        for name in settings["optimizers"]
    }
    found = "; ".join(
        f"{settings['optimizers'][name]['label']} "
        f"{mean_and_spread(100 * rows['accuracy'])}"
        for name, rows in at.items()
    )
    lars = at["lars"]["accuracy"]
    others = [rows["accuracy"] for name, rows in at.items() if name != "lars"]
    return [
        Claim(
            "LARS trains with larger batches than other optimizers, if each has the "
            "same number of learning rates to choose from.",
            f"Test accuracy in % at batch {largest}: {found}.",
            judged([lars.min() > other.max() for other in others]),
        )
    ]


ITEM = Item(
    title="Accuracy against batch size, beside tuned peers",
    about=(
        "The paper compares LARS with SGD whose rate grows with the batch. Nado et al. "
        "([2021](https://arxiv.org/abs/2102.06356)) found that a well-tuned baseline "
        "does as well. Here four optimizers train a miniature of AlexNet on "
        "Fashion-MNIST for equally many epochs, each with four learning rates for "
        "every batch size, three seeds, and the same warm-up and decay; rates are "
        "chosen on validation images."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
