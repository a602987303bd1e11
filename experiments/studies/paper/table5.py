"""Table 5: longer training at the largest batch."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import grid


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Several lengths at the largest batch, and the usual one at the smallest."""
    sizes, lars = settings["batch_sizes"], (["batch_norm"], ["lars"])
    longer = (settings["longer_epochs"], ["longer"])
    return [
        *grid.cells_of(settings, *lars, [max(sizes)], *longer),
        *grid.cells_of(settings, *lars, [min(sizes)]),
    ]


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against epochs, beside the small batch's."""
    small, large = _chosen(table)
    smallest, largest = small["batch_size"].iloc[0], large["batch_size"].iloc[0]
    title = f"Longer training with LARS at batch {largest}"
    figure, axes = grid.figure_of(1, title, settings, width=6.5)
    panel = axes[0, 0]
    grid.draw_accuracy(panel, large, "epochs", 0, f"batch {largest}")
    lengths = large[["epochs"]].drop_duplicates()
    # The same at every length, to compare with.
    constant = small[["accuracy"]].merge(lengths, how="cross")
    label = f"batch {smallest}, {settings['epochs']} epochs"
    grid.draw_accuracy(panel, constant, "epochs", 1, label, marker="")
    panel.set_xticks(sorted(lengths["epochs"]))
    panel.set_xlabel("epochs of training")
    panel.legend(frameon=False)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Longer training recovers the cost of a large batch."""
    del settings
    small, large = _chosen(table)
    base, smallest = small["accuracy"], small["batch_size"].iloc[0]
    by_length = {length: rows["accuracy"] for length, rows in large.groupby("epochs")}
    means = [rows.mean() for rows in by_length.values()]
    first, *_, last = by_length.values()
    cost = base.mean() - first.mean()
    recovered = (last.mean() - first.mean()) / cost if cost > 0 else 1.0
    row = ", ".join(
        f"{grid.percent(rows)} after {length} epochs"
        for length, rows in by_length.items()
    )
    return [
        Claim(
            "Longer training raises the accuracy at the largest batch (57.8, 59.2, "
            "59.5, 59.5, 59.9% after 100 to 200 epochs).",
            f"Test accuracy in %: {row}.",
            judged(
                [
                    last.min() > first.max(),
                    all(b >= a for a, b in itertools.pairwise(means)),
                ]
            ),
        ),
        Claim(
            "Twice as many epochs recover most of the accuracy that the large batch "
            "costs.",
            f"{100 * recovered:.3g}% of the distance to batch {smallest}, which "
            f"reaches {grid.percent(base)}.",
            judged([recovered > 0.5]),
        ),
    ]


def _chosen(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs with the best rates, of the smallest batch and of the largest."""
    best = grid.chosen(table)
    sizes = best["batch_size"]
    return best[sizes == sizes.min()], best[sizes == sizes.max()]


ITEM = grid.item(
    title="Table 5: longer training at the largest batch",
    about=(
        "The paper trains AlexNet-BN at batch 32K for 100 to 200 epochs. The proxy is "
        "that of Table 1 with batch normalization at its largest batch; for every "
        "length there are two learning rates and three seeds, and the rate is chosen "
        "on validation images."
    ),
    cells=cells,
    draw=draw,
    claims=claims,
)
