"""Table 3: the same batches with LARS."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import grid


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """LARS, and SGD beside it, for both models and all batch sizes."""
    return grid.cells_of(
        settings, list(settings["models"]), ["sgd", "lars"], settings["batch_sizes"]
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against batch size, a panel a model."""
    return grid.accuracy_figure(
        table, settings, "LARS and SGD: accuracy against batch size at equal epochs"
    )


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How far the accuracy is kept, and what SGD keeps."""
    best = grid.chosen(table)
    sizes = sorted(settings["batch_sizes"])
    smallest, largest = sizes[0], sizes[-1]
    at = {
        key: rows["accuracy"]
        for key, rows in best.groupby(["model", "optimizer", "batch_size"])
    }

    def row_of(model: str, optimizer: str) -> str:
        return ", ".join(
            f"{mean_and_spread(100 * at[model, optimizer, size])} at {size}"
            for size in sizes
        )

    def loss(model: str, size: int) -> float:
        """Points of accuracy that LARS loses from the smallest batch."""
        small, large = (at[model, "lars", batch] for batch in (smallest, size))
        return 100 * (small.mean() - large.mean())

    kept = [
        Claim(
            f"{name} keeps its accuracy with LARS up to a batch of 8192, within 2 "
            f"points, and loses less than 5 at 16384 ({printed}).",
            f"Test accuracy in %: {row_of(model, 'lars')}: "
            f"{loss(model, sizes[-2]):.3g} points less at {sizes[-2]} than at "
            f"{smallest}, {loss(model, largest):.3g} at {largest}.",
            judged(
                [
                    loss(model, sizes[-2]) < 2,
                    loss(model, largest) < 5,
                ]
            ),
        )
        for model, name, printed in (
            ("plain", "AlexNet", "58.7, 58.5, 58.2, 55.0% at 512, 4K, 8K, 16K"),
            ("batch_norm", "AlexNet-BN", "60.2, 60.4, 60.1, 59.3%"),
        )
    ]
    return [
        *kept,
        *(
            Claim(
                f"At large batches LARS is better than SGD with linear scaling, "
                f"{grid.TITLES[model]}.",
                f"At batch {largest}: LARS "
                f"{mean_and_spread(100 * at[model, 'lars', largest])}%, SGD "
                f"{mean_and_spread(100 * at[model, 'sgd', largest])}%; at {sizes[-2]}: "
                f"{mean_and_spread(100 * at[model, 'lars', sizes[-2]])}% and "
                f"{mean_and_spread(100 * at[model, 'sgd', sizes[-2]])}%.",
                judged(
                    [
                        at[model, "lars", size].min() > at[model, "sgd", size].max()
                        for size in sizes[-2:]
                    ]
                ),
            )
            for model in settings["models"]
        ),
    ]


ITEM = Item(
    title="Table 3: LARS at large batches",
    about=(
        "The paper trains AlexNet and AlexNet-BN with LARS at batches of 512 to 32K. "
        "The proxy is that of Table 1, with the same budget. The largest batch leaves "
        "it a few dozen steps, where the paper had thousands: losses are larger here, "
        "and what the proxy can tell is the comparison with SGD, which the last two "
        "items also have with rates that are tuned for each batch."
    ),
    cells=cells,
    measure=grid.measure,
    draw=draw,
    claims=claims,
    kept_in=grid.KEPT_IN,
)
