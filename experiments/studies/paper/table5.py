"""Table 5: longer training at the largest batch."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import grid
from experiments.studies.style import line_over_seeds, panels

MODEL, OPTIMIZER = "batch_norm", "lars"


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Several lengths at the largest batch, and the usual one at the smallest."""
    sizes = settings["batch_sizes"]
    return [
        *grid.cells_of(
            settings,
            [MODEL],
            [OPTIMIZER],
            [max(sizes)],
            settings["longer_epochs"],
            ["longer"],
        ),
        *grid.cells_of(settings, [MODEL], [OPTIMIZER], [min(sizes)]),
    ]


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against epochs, beside the small batch's."""
    largest, smallest = max(settings["batch_sizes"]), min(settings["batch_sizes"])
    best = grid.chosen(table)
    figure, axes = panels(
        1,
        1,
        f"Longer training with LARS at batch {largest}\n"
        f"Line: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
        width=6.5,
    )
    panel = axes[0, 0]
    large = best[best["batch_size"] == largest]
    line_over_seeds(
        panel,
        large,
        "epochs",
        "accuracy",
        0,
        f"batch {largest}",
    )
    small = best[best["batch_size"] == smallest][["accuracy"]]
    line_over_seeds(
        panel,
        # The same at every length, to compare with.
        small.merge(large[["epochs"]].drop_duplicates(), how="cross"),
        "epochs",
        "accuracy",
        1,
        f"batch {smallest}, {settings['epochs']} epochs",
        marker="",
    )
    panel.set_xticks(sorted(large["epochs"].unique()))
    panel.set(xlabel="epochs of training", ylabel="test accuracy")
    panel.legend(frameon=False)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Longer training recovers what a large batch costs."""
    largest, smallest = max(settings["batch_sizes"]), min(settings["batch_sizes"])
    best = grid.chosen(table)
    large = best[best["batch_size"] == largest]
    by_length = {length: rows["accuracy"] for length, rows in large.groupby("epochs")}
    means = [rows.mean() for rows in by_length.values()]
    small = best[best["batch_size"] == smallest]["accuracy"]
    first, last = by_length[min(by_length)], by_length[max(by_length)]
    row = ", ".join(
        f"{mean_and_spread(100 * rows)} after {length} epochs"
        for length, rows in by_length.items()
    )
    cost = small.mean() - first.mean()
    recovered = (last.mean() - first.mean()) / cost if cost > 0 else 1.0
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
            "Twice as many epochs recover most of what the large batch costs.",
            f"{100 * recovered:.3g}% of the distance to batch {smallest}, which "
            f"reaches {mean_and_spread(100 * small)}.",
            judged([recovered > 0.5]),
        ),
    ]


ITEM = Item(
    title="Table 5: longer training at the largest batch",
    about=(
        "The paper trains AlexNet-BN at batch 32K for 100 to 200 epochs. The proxy is "
        "that of Table 1 with batch normalization at its largest batch; for every "
        "length there are two learning rates and three seeds, and the rate is chosen "
        "on validation images."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
