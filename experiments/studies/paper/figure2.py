"""Figure 2: the local rate of layers over the epochs, at three batch sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import (
    Claim,
    Item,
    Settings,
    judged,
    mean_and_spread,
    median_and_spread,
)
from experiments.studies.paper import curves
from experiments.studies.style import panels

OPTIMIZER = "lars"
PARAMETERS = ("conv1/kernel", "conv1/bias", "conv3/kernel", "conv3/bias")
"""The first and the last convolution, as the paper has conv1 and conv5."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """LARS at all batch sizes that there are curves of."""
    return curves.cells_of(settings, [OPTIMIZER])


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A panel a parameter, a line a batch size."""
    figure, axes = panels(
        2,
        2,
        "LARS: the local rate η‖w‖/‖g‖ of layers\n"
        f"Lines: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
        height=2.9,
    )
    for panel, name in zip(axes.flat, PARAMETERS, strict=True):
        for number, batch_size in enumerate(curves.sizes_of(settings, OPTIMIZER)):
            rows = _with_rates(table, settings, batch_size)
            curves.draw_over_epochs(panel, rows, name, number, f"batch {batch_size}")
        panel.set(title=name, yscale="log")
    for panel in axes[:, 0]:
        panel.set_ylabel("local rate η‖w‖/‖g‖")
    for panel in axes[-1]:
        panel.set_xlabel("epochs")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Rates differ between layers, change over the run, and with the batch."""
    sizes = curves.sizes_of(settings, OPTIMIZER)
    by_size = {size: _with_rates(table, settings, size) for size in sizes}
    kernels = [name for name in _parameters(table) if name.endswith("/kernel")]
    apart = pd.concat(
        rows[kernels].max(axis=1) / rows[kernels].min(axis=1)
        for rows in by_size.values()
    )
    changes = {
        name: pd.concat(
            rows.groupby("seed")[name].max() / rows.groupby("seed")[name].min()
            for rows in by_size.values()
        )
        for name in PARAMETERS
    }
    ends = {
        name: [curves.at_end(by_size[size], name).mean() for size in sizes]
        for name in PARAMETERS
    }
    end_of = {size: rows["epoch"].max() for size, rows in by_size.items()}

    def mean_over_seeds(size: int, name: str) -> pd.Series:
        return by_size[size].groupby("epoch")[name].mean()

    peaks = {
        name: [mean_over_seeds(size, name).idxmax() for size in sizes]
        for name in ("conv1/kernel", "conv3/kernel")
    }
    falls = [
        mean_over_seeds(size, "conv1/kernel").iloc[-1]
        < 0.5 * mean_over_seeds(size, "conv1/kernel").max()
        for size in sizes
    ]
    is_early = [
        peak <= end_of[size] / 4
        for size, peak in zip(sizes, peaks["conv1/kernel"], strict=True)
    ]
    rises_first = [
        by_size[size]["epoch"].min() < peak <= end_of[size] / 2
        for size, peak in zip(sizes, peaks["conv3/kernel"], strict=True)
    ]

    def at_epochs(name: str) -> str:
        return f"{name} is highest at epoch " + ", ".join(
            f"{peak:.3g} (batch {size})"
            for peak, size in zip(peaks[name], sizes, strict=True)
        )

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
                f"{name}: the largest is {mean_and_spread(change)} times the smallest"
                for name, change in changes.items()
            )
            + ".",
            judged([change.min() > 2 for change in changes.values()]),
        ),
        Claim(
            "That of conv1 is highest in the first epochs and falls.",
            f"{at_epochs('conv1/kernel')}; at the end it is below half of that at "
            f"{sum(falls)} of {len(falls)} batch sizes.",
            judged([*falls, *is_early]),
        ),
        Claim(
            "That of the last convolution rises first, and falls from an early peak "
            "on.",
            f"{at_epochs('conv3/kernel')}, of {max(end_of.values()):g}.",
            judged(rises_first),
        ),
        Claim(
            "At the end it is smaller for larger batches.",
            "; ".join(
                f"{name}: "
                + ", ".join(
                    f"{rate:.3g} (batch {size})"
                    for rate, size in zip(rates, sizes, strict=True)
                )
                for name, rates in ends.items()
            )
            + ".",
            judged([sorted(rates, reverse=True) == rates for rates in ends.values()]),
        ),
    ]


def _parameters(table: pd.DataFrame) -> list[str]:
    norms = [name for name in table.columns if name.startswith("weight_norm/")]
    return [name.removeprefix("weight_norm/") for name in norms]


def _with_rates(table: pd.DataFrame, settings: Settings, batch_size: int) -> Any:
    """The rows of a batch size, with a column for the local rate of each parameter."""
    rows = curves.rows_of(table, OPTIMIZER, batch_size)
    return rows.assign(
        **{
            name: settings["trust_coefficient"]
            * rows[f"weight_norm/{name}"]
            / rows[f"gradient_norm/{name}"]
            for name in _parameters(table)
        }
    )


ITEM = Item(
    title="Figure 2: local rates of layers",
    about=(
        "The paper draws the local rate of four parameters of AlexNet-BN over 100 "
        "epochs at batches of 256, 1024 and 8192. The scale of its axes fits η‖w‖/‖g‖ "
        "with η = 0.001, without the global rate and without weight decay, which is "
        "what is drawn here: of LARS in the proxy of Table 1 with batch "
        "normalization, from "
        "the norms that training reports, averaged over the steps between two points."
    ),
    cells=cells,
    measure=curves.measure,
    draw=draw,
    claims=claims,
    kept_in=curves.KEPT_IN,
)
