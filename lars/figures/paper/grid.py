"""The runs that several figures of the paper share: batch sizes, and learning rates.

The proxy of the paper's experiments: a miniature of AlexNet, without and with batch
normalization, on images that two cores can train on. Every optimizer has the same
epochs, warm-up, decay of the rate, number of learning rates and seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lars.figures.item import Settings
from lars.figures.runs import results_of

KEPT_IN = "large_batch"
"""The table that the items share."""


def cells_of(
    settings: Settings,
    models: Sequence[str],
    optimizers: Sequence[str],
    batch_sizes: Sequence[int],
    epochs: Sequence[int] | None = None,
    rates: Sequence[str] = ("all",),
) -> list[dict[str, Any]]:
    """The parts of some models, optimizers and batch sizes, each with all seeds apart."""
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
    rates = learning_rates(settings, cell)
    rows = results_of(cell, settings, rates, [cell["seed"]])
    return rows.drop(columns="seed")


def learning_rates(settings: Settings, cell: Mapping[str, Any]) -> list[float]:
    """The learning rates of a part.

    ``rates`` of it is ``"all"``, the search space of its optimizer, times a power of the
    batch size over the base batch size; ``"between"``, further ones; or ``"longer"``,
    those of longer training.
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
    a diverged run counts as accuracy 0.

    Returns:
        The rows of the chosen rates, one a seed, with ``accuracy``, the test accuracy
        or 0 for a run that has diverged.
    """
    keys = ["model", "optimizer", "batch_size", "epochs"]
    counted = counted_accuracies(table)
    means = (
        counted.groupby([*keys, "learning_rate"], sort=False)["validation"]
        .mean()
        .reset_index()
        .sort_values("learning_rate", kind="stable")
    )
    best = means.loc[means.groupby(keys, sort=False)["validation"].idxmax()]
    return counted.merge(best[[*keys, "learning_rate"]])


def counted_accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``accuracy`` and ``validation``: 0 where a run has diverged."""
    return table.assign(
        accuracy=table["test_accuracy"].mask(table["diverged"], 0.0),
        validation=table["validation_accuracy"].mask(table["diverged"], 0.0),
    )


def over_seeds(rows: pd.DataFrame, by: str, value: str = "accuracy") -> pd.DataFrame:
    """The mean, the lowest and the highest of a value over seeds, for each of `by`."""
    return rows.groupby(by)[value].agg(["mean", "min", "max"]).reset_index()
