"""The book's last exercise: if some terms diverge, can this be fixed after the fact?"""

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies import rescue
from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.rescue import coverage
from experiments.studies.rescue.grid import runs_of, starts_in

MAP = rescue.ITEMS["rescue"]
"""The small rescue map, which answers this exercise."""

LARS = ("paper", "module", "polar_waking")
"""The layerwise optimizers that are judged."""

NOT_LAYERWISE = ("sgd", "adam")
"""They have to be ahead of these, beyond the spread of seeds."""


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How many scales each LARS rescues, beside optimizers with one rate for all."""
    runs, arms = runs_of(table, settings), settings["optimizers"]
    counts = coverage.summary(runs, starts_in(table), settings["reference"])
    scales = settings["init_scales"]
    peers = [name for name in NOT_LAYERWISE if name in counts.index]

    def row_of(name: str, column: str) -> str:
        interval = coverage.interval(counts.loc[name], column)
        return f"{arms[name]['label']} {interval}"

    def claim(lars: str, says: str, column: str) -> Claim:
        row = counts.loc[lars]
        ahead = max(counts.loc[name, f"{column}_highest"] for name in peers)
        return Claim(
            f"{says}: {arms[lars]['label']}.",
            f"Of {len(scales)} scales from {min(scales):g} to {max(scales):g}, "
            f"rescued: {row_of(lars, column)}; "
            + "; ".join(row_of(str(n), column) for n in counts.index if n != lars)
            + ".",
            judged([row[column] == 1, row[f"{column}_lowest"] > ahead]),
        )

    return [
        claim(lars, says, column)
        for says, column in (
            (
                "Layerwise rates fix what diverges after the fact, with a learning "
                "rate for each start",
                "all_best",
            ),
            ("They do with one learning rate for all starts", "all_one"),
        )
        for lars in LARS
        if lars in counts.index
    ]


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """The small rescue map."""
    return MAP.draw(table, settings)


ITEM = Item(
    title="Exercise 4: can we fix this after the fact?",
    about=(
        "If we know that some terms diverge, can we fix this after the fact? The book "
        "points to LARS. A three-layer ReLU network on real digits starts from He's "
        "kernels times a scale from 10⁻⁸ to 10⁸. All optimizers have the same steps, "
        "batches, number of learning rates and three seeds. A scale is rescued where "
        "the median test accuracy is at least 0.95 of what SGD reaches at scale 1; in "
        "brackets are the parts if one seed alone were judged. The table is that of "
        "the small [rescue map](rescue.md)."
    ),
    cells=MAP.cells,
    measure=MAP.measure,
    draw=draw,
    claims=claims,
    overview=MAP.overview,
    kept_in="rescue",
)
