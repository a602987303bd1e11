"""Tables to axes: no files are read or written here."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter

from experiments.studies.rescue import scales as rescue

# Of Okabe and Ito's colours, which readers with any common colour vision tell apart
# (https://jfly.uni-koeln.de/color/). Line style and marker differ as well.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_COLUMNS = 3


def rescue_figure(
    results: pd.DataFrame, reference: str, labels: Mapping[str, str], setting: str
) -> Figure:
    """Test accuracy against the initial scale, a panel an optimizer.

    In each panel the optimizer with the best learning rate for every scale and with one
    for all, and in grey, for comparison, the others with their best.

    Args:
        results: a table of results.
        reference: the optimizer that sets the standard of a rescue.
        labels: what each optimizer is called.
        setting: what was trained, on what, for how long.
    """
    counts = rescue.summary(results, reference)
    tuned = rescue.best_rate_per_scale(results, reference)
    fixed = rescue.one_rate(results, reference)
    standard = rescue.threshold(results, reference)

    rows = -(-len(counts) // _COLUMNS)
    figure = Figure(figsize=(11.5, 1.6 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(counts) :]:
        axes.set_axis_off()
    for axes, (name, count) in zip(panels.flat, counts.iterrows(), strict=False):
        for _, other in tuned[tuned["optimizer"] != name].groupby("optimizer"):
            axes.plot(other["init_scale"], other["test"], color="0.85", linewidth=1)
        axes.axhline(standard, color="0.4", linestyle=":", linewidth=1)
        accuracy_against_scale(
            axes,
            fixed[fixed["optimizer"] == name],
            color=_ORANGE,
            marker="s",
            linestyle="--",
            label="one learning rate for all scales",
        )
        accuracy_against_scale(
            axes,
            tuned[tuned["optimizer"] == name],
            color=_BLUE,
            marker="o",
            linestyle="-",
            label="best learning rate for each scale",
        )
        axes.set_title(
            f"{labels[str(name)]}\nrescues {count.rescued_best_rate:.0f} of "
            f"{count.scales:.0f}, with one rate {count.rescued_one_rate:.0f}",
            fontsize=10.5,
        )
    first = panels[0, 0]
    first.set_xscale("log")
    first.xaxis.set_major_locator(LogLocator(numticks=9))
    first.minorticks_off()
    first.set_ylim(-0.03, 1.03)
    first.yaxis.set_major_formatter(PercentFormatter(1.0))

    handles = [*first.get_legend_handles_labels()[0][::-1]]
    for line, label in (
        (first.get_lines()[0], "the other optimizers, best rates"),
        (
            next(line for line in first.get_lines() if line.get_linestyle() == ":"),
            f"rescued from {standard:.1%} on",
        ),
    ):
        line.set_label(label)
        handles.append(line)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    for axes in panels[-1]:
        axes.set_xlabel("init_scale (factor on every kernel)")
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy")
    figure.suptitle(
        "Which initial scales does each optimizer rescue?\n"
        f"{setting} Lines: median of {results['seed'].nunique()} seeds; bands: lowest "
        "to highest.",
        fontsize=11.5,
    )
    return figure


def accuracy_against_scale(
    axes: Axes,
    table: pd.DataFrame,
    *,
    color: str,
    marker: str,
    linestyle: str,
    label: str,
) -> None:
    """Draws the median over seeds as a line, and a band from the lowest to the highest.

    Scales that are rescued have a filled marker, the others an empty one.

    Args:
        axes: where to draw.
        table: columns ``init_scale``, ``test``, ``lowest``, ``highest``, ``rescued``.
        color: of line, band and markers.
        marker: the shape of the markers.
        linestyle: of the line.
        label: for the legend.
    """
    axes.plot(
        table["init_scale"],
        table["test"],
        color=color,
        linestyle=linestyle,
        marker=marker,
        markersize=5,
        markerfacecolor="white",
        linewidth=1.6,
        label=label,
    )
    saved = table[table["rescued"]]
    axes.plot(
        saved["init_scale"], saved["test"], marker, color=color, markersize=5, zorder=3
    )
    axes.fill_between(
        table["init_scale"],
        table["lowest"],
        table["highest"],
        color=color,
        alpha=0.15,
        linewidth=0,
    )
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
