"""How much of a machine a training run and a sweep use.

The work is that of the model, as in the *model FLOPs utilization* of Chowdhery et al.
2022 (https://arxiv.org/abs/2204.02311, appendix B): three times the forward pass for a
step, whatever else the optimizer and the machine do. It is set beside what a large
matrix product reaches on the same devices in the same rounds.
"""

import math
from collections.abc import Mapping

import pandas as pd

from experiments.results import pages

PRODUCT_SIZE = 2048
"""Rows and columns of the matrices of the large product."""

PRODUCT = "matrix product"
SWEEP, LOOP, TORCH = "sweep", "plain loop of jitted runs", "plain loop, PyTorch"

COLUMNS = [
    *("what", "device", "rounds", "images_per_s", "images_per_s_q1", "images_per_s_q3"),
    *("gflop_per_s", "of_product", "wait", "sweep_is_faster"),
]
"""The columns of the table: medians, with the quartiles ``_q1`` and ``_q3``.

``of_product``: the part of the rate of the large matrix product in the same round.
``wait``: the part of the time in which the devices have nothing to do.
``sweep_is_faster``: how many times as fast the sweep makes the same runs.
"""


def summary(
    rounds: pd.DataFrame, flops_per_image: Mapping[str, float], devices: Mapping
) -> pd.DataFrame:
    """The table of medians; a ratio is the median of the ratios in the same round.

    Args:
        rounds: a row for each round, with the columns ``(what, quantity)``: seconds an
            image (of `PRODUCT`: a product) as ``"seconds"``, and of single runs also
            ``"device_seconds"``, which the steps alone take.
        flops_per_image: the model's operations for each.
        devices: what each ran on.
    """
    product = 2 * PRODUCT_SIZE**3 / rounds[PRODUCT, "seconds"]
    rows = [(PRODUCT, devices[PRODUCT], len(rounds), *(math.nan,) * 3)]
    rows[0] += (product.median() / 1e9, 1.0, math.nan, math.nan)
    for what, flops in flops_per_image.items():
        seconds = rounds[what, "seconds"]
        speed, rate = 1 / seconds, flops / seconds
        wait = faster = math.nan
        if (what, "device_seconds") in rounds:
            wait = (1 - rounds[what, "device_seconds"] / seconds).median()
        if what in (LOOP, TORCH):
            faster = (seconds / rounds[SWEEP, "seconds"]).median()
        quartiles = speed.quantile([0.5, 0.25, 0.75])
        row = (what, devices[what], len(rounds), *quartiles, rate.median() / 1e9)
        rows.append((*row, (rate / product).median(), wait, faster))
    return pd.DataFrame(rows, columns=COLUMNS)


def markdown(table: pd.DataFrame) -> str:
    """The table for people."""
    shown = pd.DataFrame(
        {
            "": table.what,
            "images/s": [
                ""
                if math.isnan(row.images_per_s)
                else f"{row.images_per_s:,.0f} ({row.images_per_s_q1:,.0f} to "
                f"{row.images_per_s_q3:,.0f})"
                for row in table.itertuples()
            ],
            "GFLOP/s": [f"{x:,.1f}" for x in table.gflop_per_s],
            "of the product": [f"{x:.1%}" for x in table.of_product],
            "devices wait": [_or_nothing(x, ".1%") for x in table.wait],
            "sweep is faster": [_or_nothing(x, ".1f") for x in table.sweep_is_faster],
        }
    )
    return pages.markdown(shown)


def _or_nothing(x: float, form: str) -> str:
    return "" if math.isnan(x) else format(x, form)
