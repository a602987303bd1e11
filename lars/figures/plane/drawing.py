"""The plane as heat maps: a panel an optimizer, the physical line drawn in."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lars import coverage
from lars.coverage import CELL
from lars.figures.item import Settings
from lars.figures.plane.plane import runs_of, scales_of, starts_in

COLUMNS = 4


def heat_maps(table: pd.DataFrame, settings: Settings) -> Figure:
    """Test accuracy with the best rate of each cell, an optimizer a panel.

    A dot is a cell that is rescued with the one rate that suits the whole map best, a
    small cross one that is not rescued with any. Inside of the red line float32
    represents the start.
    """
    runs, starts = runs_of(table, settings), starts_in(table)
    summary = coverage.summary(runs, starts, settings["reference"])
    tuned = coverage.best_rate_per_cell(runs, settings["reference"])
    fixed = coverage.one_rate(runs, settings["reference"])
    can = coverage.representable(starts)
    whole = [
        n for n in summary.index if scales_of(settings, n) == scales_of(settings, "")
    ]
    rows = -(-len(whole) // COLUMNS)
    lines = len(settings["variants"]) * len(settings["depths"])
    figure = Figure(
        figsize=(15, 1.4 + rows * (0.9 + 0.17 * lines)), layout="constrained"
    )
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    image = None
    for axes, name in zip(panels.flat, whole, strict=False):
        mine = tuned[tuned["optimizer"] == name]
        image = axes.imshow(
            _grid(mine, "test", settings),
            cmap="cividis",
            vmin=0,
            vmax=1,
            aspect="auto",
            origin="upper",
        )
        _marks(axes, mine, fixed[fixed["optimizer"] == name], settings)
        _physical_line(axes, _grid(can, "representable", settings) > 0.5)
        row = summary.loc[name]
        axes.set_title(
            f"{settings['optimizers'][name]['label']}\n"
            f"{row['plane_best']:.0%} of the plane; one rate: {row['plane_one']:.0%}",
            fontsize=10,
        )
        _ticks(axes, settings)
    for axes in panels.flat[len(whole) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("network, depth")
    for column in range(COLUMNS):
        below = [axes for axes in panels[:, column] if axes.axison]
        if below:
            below[-1].set_xlabel("init_scale (factor on kernels)")
            below[-1].tick_params(labelbottom=True)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=0.5, pad=0.01)
    bar.set_label("test accuracy, best rate of each cell (median over seeds)")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(
        "Which starts can the optimizer alone train?  "
        f"{settings['dataset']}, {settings['num_steps']} steps of "
        f"{settings['batch_size']}. Dot: rescued, also with one rate for the whole "
        "map; cross: not rescued;\nneither: rescued with a rate of its own. "
        "Within the red line float32 represents the start.",
        fontsize=11,
    )
    return figure


def _grid(table: pd.DataFrame, column: str, settings: Settings) -> np.ndarray:
    """Rows: the depths of each variant; columns: scales. NaN where nothing was run."""
    rows = pd.MultiIndex.from_product(
        [settings["variants"], settings["depths"]], names=CELL[:2]
    )
    values = table.set_index(CELL)[column].astype(float).unstack("init_scale")
    wanted = values.reindex(index=rows, columns=list(settings["init_scales"]))
    return wanted.to_numpy()


def _marks(
    axes: Axes, tuned: pd.DataFrame, fixed: pd.DataFrame, settings: Settings
) -> None:
    saved = _grid(tuned, "rescued", settings)
    with_one = _grid(fixed, "rescued", settings)
    for where, marker, color in (
        (with_one == 1, "o", "black"),
        (saved == 0, "x", "white"),
    ):
        y, x = np.nonzero(where)
        axes.scatter(x, y, s=7, marker=marker, c=color, linewidths=0.7)


def _physical_line(axes: Axes, inside: np.ndarray) -> None:
    """The border between true and false cells."""
    height, width = inside.shape
    for y in range(height):
        for x in range(width):
            if x + 1 < width and inside[y, x] != inside[y, x + 1]:
                axes.plot([x + 0.5] * 2, [y - 0.5, y + 0.5], color="#D55E00", lw=1.6)
            if y + 1 < height and inside[y, x] != inside[y + 1, x]:
                axes.plot([x - 0.5, x + 0.5], [y + 0.5] * 2, color="#D55E00", lw=1.6)


def _ticks(axes: Axes, settings: Settings) -> None:
    scales = settings["init_scales"]
    axes.set_xticks(
        range(len(scales)), [f"{s:g}" for s in scales], rotation=90, fontsize=7
    )
    depths = settings["depths"]
    names = [
        f"{variant}  {depth}" if number == 0 else f"{depth}"
        for variant in settings["variants"]
        for number, depth in enumerate(depths)
    ]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for number in range(1, len(settings["variants"])):
        axes.axhline(number * len(depths) - 0.5, color="white", linewidth=1.5)
