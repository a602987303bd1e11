"""The runs that Figures 1 to 3 and 5 share: what changes from epoch to epoch."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from experiments.studies.item import Item, Settings
from experiments.studies.paper.grid import setting_of
from experiments.studies.runs import curves_of
from experiments.studies.style import line_over_seeds

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
    rate = settings["rates_of_curves"][cell["optimizer"]][str(cell["batch_size"])]
    setting = setting_of(cell, settings)
    rows = curves_of(setting, rate, settings["seeds"], settings["num_points"])
    epochs = cell["epochs"] * rows["step"] / setting.num_steps
    return rows.assign(epoch=epochs.round(4))


item = functools.partial(Item, measure=measure, kept_in="curves")
"""An item of the table that the items with curves share."""


def by_size(table: pd.DataFrame, optimizer: str) -> dict[int, pd.DataFrame]:
    """The curves of an optimizer, all seeds, from the smallest batch size on."""
    rows = table[table["optimizer"] == optimizer]
    sizes = sorted(rows["batch_size"].unique().tolist())
    return {size: rows[rows["batch_size"] == size] for size in sizes}


def at_end(rows: pd.DataFrame, value: str) -> pd.Series:
    """A value at the last point, of every seed."""
    return rows.sort_values("epoch").groupby("seed")[value].last()


def draw_over_epochs(
    axes: Axes, rows: pd.DataFrame, value: str, number: int, label: str
) -> None:
    """A value over the epochs, as `line_over_seeds` draws it."""
    line_over_seeds(axes, rows, "epoch", value, number, label, markersize=3.5)
    axes.set_xlabel("epochs")
