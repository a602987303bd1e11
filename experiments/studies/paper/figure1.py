"""Figure 1: the gap between the test and the training loss, at two batch sizes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import curves
from experiments.studies.style import panels

OPTIMIZER = "sgd"


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """SGD at a small and at a large batch."""
    return curves.cells_of(settings, [OPTIMIZER])


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the gap, right the two losses it is the difference of."""
    figure, axes = panels(
        1,
        2,
        "SGD with batch normalization: the gap between test and training loss\n"
        f"Lines: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
    )
    left, right = axes[0]
    for number, batch_size in enumerate(curves.sizes_of(settings, OPTIMIZER)):
        rows = _with_gap(curves.rows_of(table, OPTIMIZER, batch_size))
        curves.draw_over_epochs(left, rows, "gap", number, f"batch {batch_size}")
        for i, name in enumerate(("train_loss", "test_loss")):
            label = f"batch {batch_size}, {name.removesuffix('_loss')}"
            curves.draw_over_epochs(right, rows, name, 2 * number + i, label)
    left.set(xlabel="epochs", ylabel="|test loss − training loss|, nats")
    right.set(xlabel="epochs", ylabel="loss, nats", yscale="log")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The large batch does not generalise worse: it is optimised worse."""
    sizes = curves.sizes_of(settings, OPTIMIZER)
    small, large = (_with_gap(curves.rows_of(table, OPTIMIZER, s)) for s in sizes)
    losses = [curves.at_end(rows, "train_loss") for rows in (small, large)]
    end, gaps = (curves.at_end(rows, "gap") for rows in (small, large))
    same = [
        gap_at(small[small["seed"] == seed], losses[1][seed]) for seed in gaps.index
    ]
    is_reached = bool(np.isfinite(same).all())
    return [
        Claim(
            "After equally many epochs the gap is not larger at the large batch.",
            "At the end, in nats: "
            + "; ".join(
                f"{mean_and_spread(gap)} at batch {size}"
                for gap, size in zip((end, gaps), sizes, strict=True)
            )
            + ".",
            judged([gaps.mean() <= end.max()]),
        ),
        Claim(
            "Nor is it at the same training loss, which is the fairer comparison: a "
            "gap grows as the loss falls.",
            f"Batch {sizes[1]} ends with a training loss of "
            f"{mean_and_spread(losses[1])}; "
            + (
                f"at the same loss batch {sizes[0]} has a gap of "
                f"{mean_and_spread(same)}."
                if is_reached
                else f"batch {sizes[0]} has a lower one from the first point on: "
                "there is nothing to compare with."
            ),
            judged([gaps.mean() <= max(same)]) if is_reached else "untested",
        ),
        Claim(
            "What a large batch costs is optimisation: its training loss stays higher.",
            "Training loss at the end: "
            + "; ".join(
                f"{mean_and_spread(loss)} at batch {size}"
                for loss, size in zip(losses, sizes, strict=True)
            )
            + ".",
            judged([losses[1].min() > losses[0].max()]),
        ),
    ]


def gap_at(rows: pd.DataFrame, train_loss: float) -> float:
    """The gap of a run where its training loss first falls to a value.

    Between two points it is interpolated; NaN where the loss is never as high or never
    as low.
    """
    rows = rows.sort_values("epoch")
    losses, gaps = rows["train_loss"].to_numpy(), rows["gap"].to_numpy()
    below = losses <= train_loss
    if not below.any() or below[0]:
        return math.nan
    after = int(below.argmax())
    part = (losses[after - 1] - train_loss) / (losses[after - 1] - losses[after])
    return float(gaps[after - 1] + part * (gaps[after] - gaps[after - 1]))


def _with_gap(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(gap=(rows["test_loss"] - rows["train_loss"]).abs())


ITEM = Item(
    title="Figure 1: the gap between test and training loss",
    about=(
        "The paper draws the gap of AlexNet-BN with SGD at batches of 512 (its text "
        "says 256) and 8192. The proxy is that of Table 1 with batch normalization, "
        "with the best rate of each batch size; the training loss is over as many "
        "training images as there are test images. At the large batch, what is seen in "
        "the first epochs suffers from running statistics of batch normalization that "
        "have seen few steps."
    ),
    cells=cells,
    measure=curves.measure,
    draw=draw,
    claims=claims,
    kept_in=curves.KEPT_IN,
)
