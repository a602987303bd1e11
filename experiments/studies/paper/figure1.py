"""Figure 1: the gap between the test and the training loss, at two batch sizes."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged, mean_and_spread
from experiments.studies.paper import curves, grid


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the gap, right the two losses it is the difference of."""
    title = "SGD with batch normalization: the gap between test and training loss"
    figure, axes = grid.figure_of(2, title, settings)
    left, right = axes[0]
    for number, (size, rows) in enumerate(curves.by_size(table, "sgd").items()):
        rows = _with_gap(rows)
        curves.draw_over_epochs(left, rows, "gap", number, f"batch {size}")
        for i, kind in enumerate(("train", "test")):
            line = (f"{kind}_loss", 2 * number + i, f"batch {size}, {kind}")
            curves.draw_over_epochs(right, rows, *line)
    left.set(ylabel="|test loss − training loss|, nats")
    right.set(ylabel="loss, nats", yscale="log")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The large batch does not generalise worse: it is optimised worse."""
    del settings
    runs = {size: _with_gap(x) for size, x in curves.by_size(table, "sgd").items()}
    small, large = runs
    gaps = {size: curves.at_end(rows, "gap") for size, rows in runs.items()}
    losses = {size: curves.at_end(rows, "train_loss") for size, rows in runs.items()}
    same = [
        gap_at(rows, losses[large][seed]) for seed, rows in runs[small].groupby("seed")
    ]
    is_reached = bool(np.isfinite(same).all())

    def at_both(values: dict[int, pd.Series]) -> str:
        return "; ".join(
            f"{mean_and_spread(x)} at batch {size}" for size, x in values.items()
        )

    return [
        Claim(
            "After equally many epochs the gap is not larger at the large batch.",
            f"At the end, in nats: {at_both(gaps)}.",
            judged([gaps[large].mean() <= gaps[small].max()]),
        ),
        Claim(
            "At the same training loss the gap is not larger either. This comparison "
            "is fairer, as a gap grows when the loss falls.",
            f"Batch {large} ends with a training loss of "
            f"{mean_and_spread(losses[large])}; "
            + (
                f"at the same loss batch {small} has a gap of {mean_and_spread(same)}."
                if is_reached
                else f"batch {small} has a lower one from the first point on, so that "
                "there is nothing to compare with."
            ),
            judged([gaps[large].mean() <= max(same)]) if is_reached else "untested",
        ),
        Claim(
            "A large batch costs optimisation: its training loss stays higher.",
            f"Training loss at the end: {at_both(losses)}.",
            judged([losses[large].min() > losses[small].max()]),
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


ITEM = curves.item(
    title="Figure 1: the gap between test and training loss",
    about=(
        "The paper draws the gap of AlexNet-BN with SGD at batches of 512 (its text "
        "says 256) and 8192. The proxy is that of Table 1 with batch normalization, "
        "with the best rate of each batch size. The training loss is over as many "
        "training images as there are test images. In the first epochs of the large "
        "batch, the running statistics of batch normalization have seen few steps, "
        "which shows in both losses."
    ),
    cells=lambda settings: curves.cells_of(settings, ["sgd"]),
    draw=draw,
    claims=claims,
)
