"""Figure 2: the local rate of layers over the epochs, at three batch sizes."""

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import (
    Claim,
    Settings,
    judged,
    mean_and_spread,
    median_and_spread,
)
from experiments.studies.paper import curves, grid

PARAMETERS = ("conv1/kernel", "conv1/bias", "conv3/kernel", "conv3/bias")
"""The first and the last convolution, as the paper has conv1 and conv5."""


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A panel a parameter, a line a batch size."""
    title = "LARS: the local rate η‖w‖/‖g‖ of layers"
    figure, axes = grid.figure_of(2, title, settings, rows=2, height=2.9)
    by_size = curves.by_size(_with_rates(table, settings), "lars")
    for panel, name in zip(axes.flat, PARAMETERS, strict=True):
        for number, (size, rows) in enumerate(by_size.items()):
            curves.draw_over_epochs(panel, rows, name, number, f"batch {size}")
        panel.set(title=name, yscale="log")
    for panel in axes[:, 0]:
        panel.set_ylabel("local rate η‖w‖/‖g‖")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Rates differ between layers, change over the run, and with the batch."""
    rates, parameters = _with_rates(table, settings), list(PARAMETERS)
    kernels = [name for name in _parameters(table) if name.endswith("/kernel")]
    apart = rates[kernels].max(axis=1) / rates[kernels].min(axis=1)
    of_runs = rates.groupby(["batch_size", "seed"])[parameters]
    changes = of_runs.max() / of_runs.min()
    means = rates.groupby(["batch_size", "epoch"])[parameters].mean()
    ends = means.groupby("batch_size").last()
    peaks = means.groupby("batch_size").idxmax().map(lambda place: place[1])
    conv1, conv3 = peaks["conv1/kernel"], peaks["conv3/kernel"]
    epochs = rates.groupby("batch_size")["epoch"].agg(["min", "max"])
    falls = ends < 0.5 * means.groupby("batch_size").max()
    falls = falls["conv1/kernel"].tolist()

    def at_sizes(values: pd.Series) -> str:
        return ", ".join(f"{x:.3g} (batch {size})" for size, x in values.items())

    return [
        Claim(
            "The local rate differs much from layer to layer.",
            "The largest is "
            f"{median_and_spread(apart)} times the smallest among the kernels (median, "
            "lowest and highest of all points, seeds and batch sizes).",
            judged([apart.median() > 2, apart.min() > 2]),
        ),
        Claim(
            "It changes much in the course of training.",
            "; ".join(
                f"{name}: the largest is {mean_and_spread(changes[name])} times the "
                "smallest"
                for name in PARAMETERS
            )
            + ".",
            judged((changes.min() > 2).tolist()),
        ),
        Claim(
            "The rate of conv1 is highest in the first epochs and falls.",
            f"conv1/kernel is highest at epoch {at_sizes(conv1)}; at the end it is "
            f"below half of that at {sum(falls)} of {len(falls)} batch sizes.",
            judged([*falls, *(conv1 <= epochs["max"] / 4)]),
        ),
        Claim(
            "The rate of the last convolution first rises to an early peak, and then "
            "falls.",
            f"conv3/kernel is highest at epoch {at_sizes(conv3)}, of "
            f"{epochs['max'].max():g}.",
            judged([*((epochs["min"] < conv3) & (conv3 <= epochs["max"] / 2))]),
        ),
        Claim(
            "At the end the rate is smaller for larger batches.",
            "; ".join(f"{name}: {at_sizes(ends[name])}" for name in PARAMETERS) + ".",
            judged([ends[name].is_monotonic_decreasing for name in PARAMETERS]),
        ),
    ]


def _parameters(table: pd.DataFrame) -> list[str]:
    norms = [name for name in table.columns if name.startswith("weight_norm/")]
    return [name.removeprefix("weight_norm/") for name in norms]


def _with_rates(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The table with a column for the local rate of each parameter."""
    ratios = {
        name: table[f"weight_norm/{name}"] / table[f"gradient_norm/{name}"]
        for name in _parameters(table)
    }
    rates = {name: settings["trust_coefficient"] * x for name, x in ratios.items()}
    return table.assign(**rates)


ITEM = curves.item(
    title="Figure 2: local rates of layers",
    about=(
        "The paper draws the local rate of four parameters of AlexNet-BN over 100 "
        "epochs at batches of 256, 1024 and 8192. The scale of its axes fits η‖w‖/‖g‖ "
        "with η = 0.001, without the global rate and without weight decay. The same is "
        "drawn here for LARS in the proxy of Table 1 with batch normalization, from "
        "the norms that training reports, averaged over the steps between two points."
    ),
    cells=lambda settings: curves.cells_of(settings, ["lars"]),
    draw=draw,
    claims=claims,
)
