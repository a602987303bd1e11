"""How the pictures look: colours that all readers tell apart, quiet axes."""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any common colour vision tell apart
# (https://jfly.uni-koeln.de/color/). Markers and line styles differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
CLOSED_FORM: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
"""The line of a prediction by theory."""

mpl.rcParams["legend.frameon"] = False


def panels(
    rows: int, columns: int, title: str, *, height: float = 3.4, width: float = 4.6
) -> tuple[Figure, np.ndarray]:
    """A figure, and its quiet axes in an array of shape [rows, columns]."""
    figure = Figure(
        figsize=(width * columns, height * rows + 0.6), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11.5)
    return figure, grid


def look(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series of a number."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def line_with_band(
    axes: Axes,
    x: Sequence[float] | Any,
    middle: Sequence[float] | Any,
    lowest: Sequence[float] | Any,
    highest: Sequence[float] | Any,
    number: int,
    label: str,
    **settings: Any,
) -> None:
    """A line, usually the median over seeds, in a band from the lowest to the highest.

    The series has the `look` of a number; further settings are those of `Axes.plot`.
    """
    style = {**look(number), "markersize": 4.5, "linewidth": 1.6, **settings}
    axes.plot(x, middle, label=label, **style)
    axes.fill_between(x, lowest, highest, color=style["color"], alpha=0.15, linewidth=0)


def line_over_seeds(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    number: int,
    label: str,
    middle: Literal["mean", "median"] = "mean",
    **settings: Any,
) -> None:
    """The mean or the median over seeds, and a band from the lowest to the highest.

    ``x`` and ``y`` are columns of ``rows``, which has a row a seed and position; all
    else is as in `line_with_band`.
    """
    line = rows.groupby(x)[y].agg([middle, "min", "max"])
    edges = line[middle], line["min"], line["max"]
    line_with_band(axes, line.index.to_numpy(), *edges, number, label, **settings)


def middle_and_errors(
    values: Any, middle: Literal["mean", "median"] = "mean"
) -> tuple[pd.Series, list[pd.Series]]:
    """The middles of groups, and how far the lowest and the highest are from them."""
    middles = values.agg(middle)
    return middles, [middles - values.min(), values.max() - middles]


def legend_below(axes: Axes, columns: int, **settings: Any) -> None:
    """One legend under all panels of a figure, with the entries of these axes."""
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 9, **settings}
    axes.figure.legend(*axes.get_legend_handles_labels(), **place)
