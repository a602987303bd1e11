"""What the paper lacks: LARS beside tuned peers, from small batches to large ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lars.figures.item import Claim, Item, Settings, judged, mean_and_spread
from lars.figures.paper import grid
from lars.figures.style import line_with_band, panels

TITLES = {"plain": "without batch normalization", "batch_norm": "with it"}


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every optimizer with batch normalization; without it SGD and LARS."""
    sizes = settings["batch_sizes"]
    return [
        *grid.cells_of(settings, ["batch_norm"], list(settings["optimizers"]), sizes),
        *grid.cells_of(settings, ["plain"], ["sgd", "lars"], sizes),
    ]


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against the batch size, a line an optimizer."""
    return accuracy_figure(
        table,
        settings,
        "Accuracy against batch size at equal epochs: best rate of each, by validation",
    )


def accuracy_figure(table: pd.DataFrame, settings: Settings, title: str) -> Figure:
    """Accuracy against batch size, a panel a model that is in the table."""
    best = grid.chosen(table)
    models = [model for model in settings["models"] if model in set(best["model"])]
    seeds = len(settings["seeds"])
    figure, axes = panels(
        1,
        len(models),
        f"{title}\nLines: mean of {seeds} seeds; bands: lowest to highest.",
    )
    for panel, model in zip(axes[0], models, strict=True):
        for number, (name, arm) in enumerate(settings["optimizers"].items()):
            rows = best[(best["model"] == model) & (best["optimizer"] == name)]
            if rows.empty:
                continue
            line = grid.over_seeds(rows, "batch_size")
            line_with_band(
                panel,
                line["batch_size"],
                line["mean"],
                line["min"],
                line["max"],
                number,
                arm["label"],
            )
        panel.set_xscale("log", base=2)
        panel.set_xticks(settings["batch_sizes"], map(str, settings["batch_sizes"]))
        panel.minorticks_off()
        panel.set(xlabel="batch size", ylabel="test accuracy", title=TITLES[model])
        panel.legend(frameon=False, fontsize=9)
    return figure


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
        "Fashion-MNIST for equally many epochs, each with four learning rates for every "
        "batch size, three seeds, and the same warm-up and decay; rates are chosen on "
        "validation images."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
