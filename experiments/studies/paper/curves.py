"""The runs that Figures 1 to 3 share: what changes from epoch to epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from experiments.studies.item import Settings
from experiments.studies.paper.grid import setting_of
from experiments.studies.runs import curves_of
from experiments.studies.style import line_over_seeds

KEPT_IN = "curves"
"""The table that the items share."""

MODEL = "batch_norm"


def cells_of(settings: Settings, optimizers: Sequence[str]) -> list[dict[str, Any]]:
    """Every batch size that there are curves of, for some optimizers."""
    return [
        {
            "model": MODEL,
            "optimizer": optimizer,
            "batch_size": int(batch_size),
            "epochs": settings["epochs"],
        }
        for optimizer in optimizers
        for batch_size in settings["rates_of_curves"][optimizer]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains every seed with the rate of the settings."""
    rates = settings["rates_of_curves"][cell["optimizer"]]
    setting = setting_of(cell, settings)
    rows = curves_of(
        setting,
        rates[str(cell["batch_size"])],
        settings["seeds"],
        settings["num_points"],
    )
    epochs = cell["epochs"] * rows["step"] / setting.num_steps
    return rows.assign(epoch=epochs.round(4))


def sizes_of(settings: Settings, optimizer: str) -> list[int]:
    """The batch sizes that there are curves of, from the smallest."""
    return sorted(int(size) for size in settings["rates_of_curves"][optimizer])


def rows_of(table: pd.DataFrame, optimizer: str, batch_size: int) -> pd.DataFrame:
    """The rows of one curve, of all seeds."""
    is_one = (table["optimizer"] == optimizer) & (table["batch_size"] == batch_size)
    return table[is_one]


def at_end(rows: pd.DataFrame, value: str) -> pd.Series:
    """A value at the last point, of every seed."""
    return rows.sort_values("epoch").groupby("seed")[value].last()


def draw_over_epochs(
    axes: Axes, rows: pd.DataFrame, value: str, number: int, label: str
) -> None:
    """A value over the epochs, as `line_over_seeds` draws it."""
    line_over_seeds(axes, rows, "epoch", value, number, label, markersize=3.5)
