"""The book's last exercise: if some terms diverge, can this be fixed after the fact?"""

import pandas as pd

from experiments.studies import rescue
from experiments.studies.item import Claim, Settings, judge
from experiments.studies.rescue import coverage
from experiments.studies.rescue.grid import runs_of, starts_in

LARS = ("paper", "module", "polar_waking")
"""The layerwise optimizers that are judged."""

NOT_LAYERWISE = ("sgd", "adam")
"""They have to be ahead of these, beyond the spread of seeds."""

CLAIMS = {
    "all_best": "Layerwise rates fix what diverges after the fact, with a learning "
    "rate for each start",
    "all_one": "They do with one learning rate for all starts",
}
"""By the columns of `coverage.summary`."""


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How many scales each LARS rescues, beside optimizers with one rate for all."""
    runs, arms = runs_of(table, settings), settings["optimizers"]
    counts = coverage.summary(runs, starts_in(table), settings["reference"])
    scales = settings["init_scales"]
    peers = counts.index.intersection(NOT_LAYERWISE)

    def claim(lars: str, column: str) -> Claim:
        row, others = counts.loc[lars], counts.index.drop(lars)
        rescued = "; ".join(
            f"{arms[name]['label']} {coverage.interval(counts.loc[name], column)}"
            for name in [lars, *others]
        )
        return judge(
            f"{CLAIMS[column]}: {arms[lars]['label']}.",
            f"Of {len(scales)} scales from {min(scales):g} to {max(scales):g}, "
            f"rescued: {rescued}.",
            row[column] == 1,
            row[f"{column}_lowest"] > counts.loc[peers, f"{column}_highest"].max(),
        )

    there = [name for name in LARS if name in counts.index]
    return [claim(lars, column) for column in CLAIMS for lars in there]


ABOUT = """If we know that some terms diverge, can we fix this after the fact? The book
points to LARS. A three-layer ReLU network on real digits starts from He's kernels times
a scale from 10⁻⁸ to 10⁸. All optimizers have the same steps, batches, number of
learning rates and three seeds. A scale is rescued where the median test accuracy is at
least 0.95 of what SGD reaches at scale 1. In brackets are the lowest and the highest
part if one seed alone were judged. The table is that of the small
[rescue map](rescue.md)."""
ITEM = rescue.ITEMS["rescue"]._replace(
    title="Exercise 4: can we fix this after the fact?",
    about=ABOUT,
    claims=claims,
    kept_in="rescue",
)
