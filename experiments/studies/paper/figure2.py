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
    by_size = _rates_by_size(table, settings)
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
    by_size = _rates_by_size(table, settings)
    every = pd.concat(by_size.values())
    kernels = [name for name in _parameters(table) if name.endswith("/kernel")]
    apart = every[kernels].max(axis=1) / every[kernels].min(axis=1)
    of_runs = every.groupby(["batch_size", "seed"])[list(PARAMETERS)]
    changes = of_runs.max() / of_runs.min()
    means = {
        size: rows.groupby("epoch")[list(PARAMETERS)].mean()
        for size, rows in by_size.items()
    }
    ends = {
        name: {size: curves.at_end(x, name).mean() for size, x in by_size.items()}
        for name in PARAMETERS
    }
    peaks = {
        name: {size: mean[name].idxmax() for size, mean in means.items()}
        for name in ("conv1/kernel", "conv3/kernel")
    }
    last = {size: mean.index[-1] for size, mean in means.items()}
    of_conv1 = [mean["conv1/kernel"] for mean in means.values()]
    falls = [rate.iloc[-1] < 0.5 * rate.max() for rate in of_conv1]

    def at_sizes(values: dict[int, float]) -> str:
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
            judged([changes[name].min() > 2 for name in PARAMETERS]),
        ),
        Claim(
            "The rate of conv1 is highest in the first epochs and falls.",
            f"conv1/kernel is highest at epoch {at_sizes(peaks['conv1/kernel'])}; at "
            f"the end it is below half of that at {sum(falls)} of {len(falls)} batch "
            "sizes.",
            judged(
                [*falls, *(x <= last[s] / 4 for s, x in peaks["conv1/kernel"].items())]
            ),
        ),
        Claim(
            "The rate of the last convolution first rises to an early peak, and then "
            "falls.",
            f"conv3/kernel is highest at epoch {at_sizes(peaks['conv3/kernel'])}, of "
            f"{max(last.values()):g}.",
            judged(
                [
                    means[size].index[0] < peak <= last[size] / 2
                    for size, peak in peaks["conv3/kernel"].items()
                ]
            ),
        ),
        Claim(
            "At the end the rate is smaller for larger batches.",
            "; ".join(f"{name}: {at_sizes(rates)}" for name, rates in ends.items())
            + ".",
            judged(
                [
                    sorted(rates.values(), reverse=True) == list(rates.values())
                    for rates in ends.values()
                ]
            ),
        ),
    ]


def _parameters(table: pd.DataFrame) -> list[str]:
    norms = [name for name in table.columns if name.startswith("weight_norm/")]
    return [name.removeprefix("weight_norm/") for name in norms]


def _rates_by_size(table: pd.DataFrame, settings: Settings) -> dict[int, pd.DataFrame]:
    """The curves of LARS, with a column for the local rate of each parameter."""
    rates = {
        name: settings["trust_coefficient"]
        * table[f"weight_norm/{name}"]
        / table[f"gradient_norm/{name}"]
        for name in _parameters(table)
    }
    return curves.by_size(table.assign(**rates), "lars")


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
