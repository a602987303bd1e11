"""The runs that several figures of the paper share: batch sizes, and learning rates.

The proxy of the paper's experiments: a miniature of AlexNet, without and with batch
normalization, on images that two cores can train on. Every optimizer has the same
epochs, warm-up, decay of the rate, number of learning rates and seeds.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.optimizers import going_on
from experiments.studies.item import Item, Settings, mean_and_spread
from experiments.studies.runs import (
    Setting,
    at_best_rate,
    images_in,
    results_of,
    setting_of_arm,
)
from experiments.studies.style import line_over_seeds, panels

TITLES = {
    "plain": "without batch normalization",
    "batch_norm": "with batch normalization",
}


def cells_of(
    settings: Settings,
    models: Iterable[str],
    optimizers: Iterable[str],
    batch_sizes: Iterable[int],
    epochs: Sequence[int] | None = None,
    rates: Sequence[str] = ("all",),
) -> list[dict[str, Any]]:
    """The parts for some models, optimizers and batch sizes, one for each seed."""
    return [
        {
            "model": model,
            "optimizer": optimizer,
            "batch_size": batch_size,
            "epochs": length,
            "rates": kind,
            "seed": seed,
        }
        for model in models
        for optimizer in optimizers
        for batch_size in batch_sizes
        for length in epochs or [settings["epochs"]]
        for kind in rates
        for seed in settings["seeds"]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains with every learning rate of the part."""
    setting = setting_of(cell, settings)
    rows = results_of(setting, learning_rates(settings, cell), [cell["seed"]])
    return rows.drop(columns="seed").assign(steps=setting.num_steps)


item = functools.partial(Item, measure=measure, kept_in="large_batch")
"""An item of the table that the items of this grid share."""


def setting_of(cell: Mapping[str, Any], settings: Settings) -> Setting:
    """The training of a part: so many whole epochs, with the paper's schedule."""
    in_epoch = images_in(settings["dataset"]) // cell["batch_size"]
    schedule = going_on(settings["warmup_epochs"] * in_epoch, warmup_start=0.0)
    of_cell = {
        "dataset": settings["dataset"],
        "schedule": {**schedule, "decay": settings["decay"]},
        "num_steps": cell["epochs"] * in_epoch,
        "batch_size": cell["batch_size"],
    }
    model = settings["models"][cell["model"]]
    return setting_of_arm(of_cell, model, settings["optimizers"][cell["optimizer"]])


def learning_rates(settings: Settings, cell: Mapping[str, Any]) -> list[float]:
    """The learning rates of a part.

    ``rates`` of it is ``"all"``, the search space of its optimizer, times a power of
    the batch size over the base batch size; ``"between"``, further ones; or
    ``"longer"``, those of longer training.
    """
    if cell["rates"] == "between":
        return list(settings["rates_between"])
    if cell["rates"] == "longer":
        return list(settings["rates_of_longer_training"])
    optimizer = settings["optimizers"][cell["optimizer"]]
    factor = cell["batch_size"] / settings["base_batch_size"]
    return [
        float(f"{rate * factor ** optimizer['scaling_power']:.4g}")
        for rate in optimizer["learning_rates"]
    ]


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """Of every model, optimizer, batch size and length the rate that is best.

    Chosen by the mean validation accuracy over the seeds, of equal rates the smallest;
    a diverged run counts as accuracy 0. Returns a row a seed, with ``accuracy``, as
    `counted_accuracies` has it.
    """
    keys = ["model", "optimizer", "batch_size", "epochs"]
    return at_best_rate(counted_accuracies(table), keys, "validation")


def counted_accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``accuracy`` and ``validation``: 0 where a run has diverged."""
    return table.assign(
        accuracy=table["test_accuracy"].mask(table["diverged"], 0.0),
        validation=table["validation_accuracy"].mask(table["diverged"], 0.0),
    )


def percent(accuracies: pd.Series) -> str:
    """The mean accuracy in %, and in brackets the lowest and the highest."""
    return mean_and_spread(100 * accuracies)


def figure_of(
    columns: int, title: str, settings: Settings, rows: int = 1, **size: float
) -> tuple[Figure, np.ndarray]:
    """The panels of a figure whose lines are means over seeds."""
    seeds = len(settings["seeds"])
    note = f"Lines: mean of {seeds} seeds; bands: lowest to highest."
    return panels(rows, columns, f"{title}\n{note}", **size)


def draw_accuracy(
    axes: Axes, rows: pd.DataFrame, x: str, number: int, label: str, **look: Any
) -> None:
    """The accuracy over one of the columns."""
    line_over_seeds(axes, rows, x, "accuracy", number, label, **look)
    axes.set_ylabel("test accuracy")


def accuracy_figure(table: pd.DataFrame, settings: Settings, title: str) -> Figure:
    """Accuracy against batch size, a panel a model that is in the table."""
    best = chosen(table)
    models = [model for model in settings["models"] if model in set(best["model"])]
    width = 4.6 if len(models) > 1 else 7.0
    figure, axes = figure_of(len(models), title, settings, width=width)
    for panel, model in zip(axes[0], models, strict=True):
        for number, (name, arm) in enumerate(settings["optimizers"].items()):
            rows = best[(best["model"] == model) & (best["optimizer"] == name)]
            if not rows.empty:
                draw_accuracy(panel, rows, "batch_size", number, arm["label"])
        panel.set_xscale("log", base=2)
        panel.set_xticks(settings["batch_sizes"], map(str, settings["batch_sizes"]))
        panel.minorticks_off()
        panel.set(xlabel="batch size", title=TITLES[model])
        panel.legend(frameon=False, fontsize=9)
    return figure
