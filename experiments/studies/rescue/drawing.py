"""Pictures of maps: heat maps, lines over the scale, and accuracies from one start."""

import collections
import itertools
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from experiments.studies import style
from experiments.studies.item import Settings, datasets_of
from experiments.studies.rescue import coverage
from experiments.studies.rescue.coverage import CELL
from experiments.studies.rescue.grid import (
    GOOD_START,
    from_any_scale,
    network_name,
    networks_in,
    rivals_in,
    runs_of,
    starts_in,
)

COLUMNS = 4

BEST_RIVALS = 3
"""How many others `lines_by_network` shows."""


def heat_maps(table: pd.DataFrame, settings: Settings, title: str) -> Figure:
    """Test accuracy with the best rate of each cell, an optimizer a panel.

    A dot is a cell that is rescued with the one rate that suits the whole map best, a
    small cross one that is not with the rate that is best there on validation data.
    Between the orange lines float32 represents the start.
    """
    runs, starts = runs_of(table, settings), starts_in(table)
    summary = coverage.summary(runs, starts, settings["reference"])
    tuned = coverage.best_rate_per_cell(runs, settings["reference"])
    fixed = coverage.one_rate(runs, settings["reference"])
    represented = _grid(coverage.represented(starts), "represented", settings) > 0.5
    arms = from_any_scale(settings)
    whole = [name for name in summary.index if name in arms]
    columns = min(COLUMNS, len(whole))
    rows = -(-len(whole) // columns)
    size = (3 + 3 * max(columns, 3), 1.6 + rows * (0.9 + 0.17 * len(represented)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    image = None
    for axes, name in zip(panels.flat, whole, strict=False):
        mine, with_one = (x[x["optimizer"] == name] for x in (tuned, fixed))
        accuracies = _grid(mine, "test", settings)
        image = axes.imshow(accuracies, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for is_marked, look in (
            (_grid(with_one, "rescued", settings) == 1, {"marker": "o", "c": "black"}),
            (_grid(mine, "rescued", settings) == 0, {"marker": "x", "c": "white"}),
        ):
            y, x = np.nonzero(is_marked)
            axes.scatter(x, y, s=7, linewidths=0.7, **look)
        for first, last in _rows_of_variants(settings):
            _draw_borders(axes, represented[first:last], first)
        row = summary.loc[name]
        axes.set_title(
            f"{textwrap.fill(arms[name]['label'], 30)}\n"
            f"{row['all_best']:.1%} of all starts; one rate: {row['all_one']:.1%}",
            fontsize=10,
        )
        _set_ticks(axes, settings)
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(whole) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("network, depth")
    figure.supxlabel("init_scale (factor on kernels)", fontsize=10)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=0.5, pad=0.01)
    bar.set_label("test accuracy\n(best rate of each cell,\nmedian over seeds)")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(
        f"{title}: which starts does each optimizer train?  {_run_of(settings)}.\n"
        "Dot: rescued with one rate for the whole map. Cross: not rescued with the "
        "rate that is best there on validation data.\nNo mark: rescued with that rate "
        "alone. Dot and cross: with the one rate alone, which can therefore rescue "
        "more.\nBetween the orange lines float32 represents the start.",
        fontsize=11,
    )
    return figure


def lines_over_scales(table: pd.DataFrame, settings: Settings) -> Figure:
    """Test accuracy against the initial scale of one network, a panel an optimizer.

    In each panel: the optimizer with the best rate of each scale, and with one rate for
    all; and in grey, for comparison, the others with their best rates. A filled marker
    is a start that is rescued.
    """
    runs = runs_of(table, settings)
    counts = coverage.summary(runs, starts_in(table), settings["reference"])
    tuned = coverage.best_rate_per_cell(runs, settings["reference"])
    fixed = coverage.one_rate(runs, settings["reference"])
    (standard,) = coverage.standards(runs, settings["reference"]).values()
    columns = min(COLUMNS, len(counts))
    figure, panels = style.panels(
        -(-len(counts) // columns),
        columns,
        "Which initial scales does each optimizer rescue?  "
        f"{_run_of(settings)}.\n"
        f"Lines: median of {len(settings['seeds'])} seeds; bands: lowest to highest. "
        "Filled markers: rescued, from the dotted line on.\n"
        "Blue: the best rate of each scale; orange: one rate for all; grey: the "
        "others with their best rates.",
        height=2.5,
        width=3.3,
    )
    for axes in panels.flat[len(counts) :]:
        axes.set_axis_off()
    for axes, (name, row) in zip(panels.flat, counts.iterrows(), strict=False):
        for _, other in tuned[tuned["optimizer"] != name].groupby("optimizer"):
            axes.plot(other["init_scale"], other["test"], color="0.85", linewidth=1)
        axes.axhline(standard, color="0.4", linestyle=":", linewidth=1)
        for number, chosen in ((1, fixed), (0, tuned)):
            _draw_line(axes, chosen[chosen["optimizer"] == name], number)
        axes.set(
            title=f"{settings['optimizers'][name]['label']}\n"
            f"rescues {row['all_best']:.0%}, with one rate {row['all_one']:.0%}",
            xlabel="init_scale (factor on kernels)",
            ylabel="test accuracy",
            xscale="log",
            ylim=(-0.03, 1.03),
        )
        axes.title.set_fontsize(9.5)
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def lines_by_network(table: pd.DataFrame, settings: Settings, title: str) -> Figure:
    """Test accuracy with one rate for all against the scale, a network a panel.

    The recommended setting, and those of the others that rescue the most starts with
    one rate; of equal ones, those of the higher mean accuracy. The recommended setting
    without a part is no other. Where the ground is grey, float32 does not represent the
    start.
    """
    runs, starts = runs_of(table, settings), starts_in(table)
    arms = from_any_scale(settings)
    runs = runs[runs["optimizer"].isin(list(arms))]
    fixed = coverage.one_rate(runs, settings["reference"])
    fixed["share"] = fixed["rescued"].astype(float)
    score = fixed.groupby("optimizer")[["share", "test"]].mean()
    others = score.loc[rivals_in(settings)].sort_values(["share", "test"])
    shown = [settings["recommended"], *others.index[::-1][:BEST_RIVALS]]
    rates = fixed.groupby("optimizer")["learning_rate"].first()
    standards = coverage.standards(runs, settings["reference"])
    can = coverage.represented(starts)
    unseen = can[~can["represented"]].groupby(CELL[:2])["init_scale"].apply(list)
    networks = networks_in(settings)
    columns = min(COLUMNS, len(networks))
    figure, panels = style.panels(
        -(-len(networks) // columns),
        columns,
        f"{title}, with one rate for all  ({_run_of(settings)})\n"
        f"Lines: median of {len(settings['seeds'])} seeds; bands: lowest to highest. "
        "Filled markers: rescued, from the dotted line on.\n"
        f"The {len(shown) - 1} others that rescue the most, of {len(others)}. Grey "
        "ground: float32 does not represent the start.",
        height=2.4,
        width=max(3.3, 9 / columns),  # the title needs that much
    )
    for axes in panels.flat[len(networks) :]:
        axes.set_axis_off()
    for axes, (variant, depth) in zip(panels.flat, networks, strict=False):
        axes.axhline(standards[variant], color="0.4", linestyle=":", linewidth=1)
        here = fixed[(fixed["variant"] == variant) & (fixed["depth"] == depth)]
        for number, name in enumerate(shown):
            label = f"{arms[name]['label']}, rate {rates[name]:g}"
            _draw_line(axes, here[here["optimizer"] == name], number, label)
        for scale in unseen.get((variant, depth), []):
            span = scale / 10**0.7, scale * 10**0.7
            axes.axvspan(*span, color="black", alpha=0.1, linewidth=0)
        axes.set(
            title=network_name(settings, variant, depth),
            xlabel="init_scale (factor on kernels)",
            ylabel="test accuracy",
            xscale="log",
            ylim=(-0.03, 1.03),
        )
        axes.title.set_fontsize(9.5)
        axes.set_xticks(settings["init_scales"])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style.legend_below(panels.flat[0], columns=min(2, len(shown)))
    return figure


def good_starts(table: pd.DataFrame, settings: Settings) -> Figure:
    """Test accuracy from one start with the best rate; its loss, if the table has it.

    The band is where an optimizer is as good as the best, within `GOOD_START`.
    """
    runs = runs_of(table, settings)
    chosen = coverage.best_rate_per_cell(runs, settings["reference"])
    networks = list(chosen.groupby(CELL, sort=False))
    shown = {"test": "test accuracy", "loss": "test loss (nats)"}
    shown = {name: label for name, label in shown.items() if name in chosen}
    columns = min(2, len(networks) * len(shown))
    figure, grid = style.panels(
        -(-len(networks) * len(shown) // columns),
        columns,
        f"How well does each optimizer train from a good start?  {_run_of(settings)}.\n"
        f"Best rate on validation data. Points: median of {len(settings['seeds'])} "
        "seeds; lines: lowest to highest.\n"
        f"Band: within {100 * GOOD_START:g} points of the best.",
        height=0.9 + 0.2 * len(settings["optimizers"]),
        width=5.4,
    )
    panels = list(itertools.product(networks, shown.items()))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((cell, rows), (value, label)) in zip(grid.flat, panels, strict=False):
        assert isinstance(cell, tuple)
        for y, optimizer in enumerate(rows["optimizer"]):
            is_ours = optimizer == settings["recommended"]
            color = style.COLORS[1 if is_ours else 0]
            row = rows.iloc[y]
            ends = [row[f"{value}_lowest"], row[f"{value}_highest"]]
            axes.plot(ends, [y, y], color=color, linewidth=1.6)
            axes.plot(row[value], y, "D" if is_ours else "o", color=color, markersize=6)
        labels = [settings["optimizers"][name]["label"] for name in rows["optimizer"]]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if value == "test":
            best = rows["test"].max()
            axes.axvspan(best - GOOD_START, best, color="black", alpha=0.1, linewidth=0)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        title = f"{cell[0]}, {cell[1]} layers, init_scale {cell[2]:g}"
        axes.set(xlabel=label, title=title)
    return figure


def _run_of(settings: Settings) -> str:
    return (
        f"{', '.join(datasets_of(settings))}, {settings['num_steps']} steps of "
        f"{settings['batch_size']}"
    )


def _draw_line(axes: Axes, rows: pd.DataFrame, number: int, label: str = "") -> None:
    """The median and the spread over seeds; markers of rescued starts are filled."""
    rows = rows.sort_values("init_scale")
    style.line_with_band(
        axes,
        *(rows[x] for x in ("init_scale", "test", "test_lowest", "test_highest")),
        number=number,
        label=label,
        markerfacecolor="white",
    )
    rescued, look = rows[rows["rescued"]], style.look(number)
    look["linestyle"] = "none"
    axes.plot(rescued["init_scale"], rescued["test"], **look, markersize=4.5, zorder=3)


def _grid(table: pd.DataFrame, column: str, settings: Settings) -> np.ndarray:
    """Rows: the depths of each variant; columns: scales. NaN where nothing was run."""
    rows = pd.MultiIndex.from_tuples(networks_in(settings), names=CELL[:2])
    values = table.set_index(CELL)[column].astype(float).unstack("init_scale")
    wanted = values.reindex(index=rows, columns=list(settings["init_scales"]))
    return wanted.to_numpy()


def _draw_borders(axes: Axes, inside: np.ndarray, first: int) -> None:
    """The borders between true and false cells of one variant, from a row on."""
    look = {"color": style.COLORS[1], "linewidth": 1.6}
    for y, x in np.argwhere(inside[:, 1:] != inside[:, :-1]):
        axes.plot([x + 0.5] * 2, [first + y - 0.5, first + y + 0.5], **look)
    for y, x in np.argwhere(inside[1:] != inside[:-1]):
        axes.plot([x - 0.5, x + 0.5], [first + y + 0.5] * 2, **look)


def _set_ticks(axes: Axes, settings: Settings) -> None:
    scales = settings["init_scales"]
    labels = [f"{scale:g}" for scale in scales]
    axes.set_xticks(range(len(scales)), labels, rotation=90, fontsize=7)
    networks = networks_in(settings)
    starts = [first for first, _ in _rows_of_variants(settings)]
    names = [
        f"{variant}  {depth}" if row in starts else f"{depth}"
        for row, (variant, depth) in enumerate(networks)
    ]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for first in starts[1:]:
        axes.axhline(first - 0.5, color="white", linewidth=1.5)


def _rows_of_variants(settings: Settings) -> list[tuple[int, int]]:
    """The first row of each variant, and the first that is not of it any more."""
    counts = collections.Counter(variant for variant, _ in networks_in(settings))
    ends = list(itertools.accumulate(counts.values()))
    return list(zip([0, *ends], ends, strict=False))
