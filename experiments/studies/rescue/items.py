"""The rescue maps: the same computation with different settings."""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.rescue import coverage
from experiments.studies.rescue.coverage import CELL, interval
from experiments.studies.rescue.drawing import (
    good_starts,
    heat_maps,
    lines_over_scales,
)
from experiments.studies.rescue.grid import (
    GOOD_START,
    cells,
    measure,
    runs_of,
    starts_in,
)

GOAL_OF_CELLS, GOAL_OF_ALL, GOAL_OF_ONE_RATE = 1.0, 0.95, 0.95
"""What the recommended setting is to rescue: of the cells that float32 represents and
of all cells, with a rate for each; and of those it represents, with one rate."""

SEARCHED = 3
"""How many rates each optimizer gets after the search."""


def rescue_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How much the recommended setting rescues, beside the others."""
    runs, starts = runs_of(table, settings), starts_in(table)
    counts = coverage.summary(runs, starts, settings["reference"])
    mine = counts.loc[settings["recommended"]]
    others = counts.loc[
        [
            name
            for name, arm in settings["optimizers"].items()
            if arm["initialization"] == "scaled" and name != settings["recommended"]
        ]
    ]
    chosen = coverage.best_rate_per_cell(runs, settings["reference"])
    chosen = chosen[chosen["optimizer"] == settings["recommended"]]
    left = chosen[~chosen["rescued"]].merge(coverage.represented(starts))
    at = ["optimizer", *CELL]
    by_rate = coverage.medians(runs).set_index(at)
    resisting = [
        _resisting(row, by_rate.loc[tuple(row[c] for c in at)])
        for _, row in left.iterrows()
    ]

    def claim(says: str, column: str, goal: float) -> Claim:
        best = str(others[column].astype(float).idxmax())
        label = settings["optimizers"][best]["label"]
        return Claim(
            says,
            f"{interval(mine, column)}; of the others the most: {label}, "
            f"{interval(others.loc[best], column)}.",
            judged([mine[column] >= goal]),
        )

    return [
        claim(
            "The recommended setting rescues every start that float32 represents, with "
            "a learning rate for each.",
            "represented_best",
            GOAL_OF_CELLS,
        ),
        claim(
            f"With one rate for the whole map it rescues {GOAL_OF_ONE_RATE:.0%} of "
            "them.",
            "represented_one",
            GOAL_OF_ONE_RATE,
        ),
        claim(
            f"It rescues {GOAL_OF_ALL:.0%} of all starts, with a rate for each.",
            "all_best",
            GOAL_OF_ALL,
        ),
        Claim(
            "There is nothing that it does not rescue.",
            f"{len(left)} of {len(chosen)} starts resist"
            + (f": {'; '.join(resisting)}." if resisting else "."),
            judged([left.empty]),
        ),
    ]


def overview(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """How much each optimizer rescues; without those whose start is mended."""
    runs, starts = runs_of(table, settings), starts_in(table)
    labels = {
        name: arm["label"]
        for name, arm in settings["optimizers"].items()
        if arm["initialization"] == "scaled"
    }
    counts = coverage.summary(runs, starts, settings["reference"])
    return coverage.coverage_table(counts, labels, coverage.represented(starts))


def _resisting(row: pd.Series, by_rate: pd.DataFrame) -> str:
    """A start that is not rescued, and how far it gets with each rate."""
    others = by_rate[by_rate["learning_rate"] != row["learning_rate"]]
    return (
        f"{row.variant}, {row.depth} layers, from {row.init_scale:g} "
        f"({'' if row.represented else 'not '}represented): {row.test:.3f} "
        f"({row.lowest:.3f} to {row.highest:.3f}) with {row.learning_rate:g}, "
        "with the others "
        + ", ".join(f"{x.test:.3f} ({x.learning_rate:g})" for x in others.itertuples())
    )


def start_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether the recommended setting is as good as the best from a good start."""
    runs = runs_of(table, settings)
    chosen = coverage.best_rate_per_cell(runs, settings["reference"])
    claims = []
    for cell, rows in chosen.groupby(CELL, sort=False):
        assert isinstance(cell, tuple)
        by_name = rows.set_index("optimizer")
        best = str(by_name["test"].idxmax())
        mine = settings["recommended"]
        claims.append(
            Claim(
                f"From a good start it trains as well as the best optimizer, within "
                f"{100 * GOOD_START:g} points: {cell[0]}, {cell[1]} layers.",
                f"{_in_percent(by_name.loc[mine])}; the best: "
                f"{_in_percent(by_name.loc[best])}, "
                f"{settings['optimizers'][best]['label']}.",
                judged([by_name["test"][mine] >= by_name["test"][best] - GOOD_START]),
            )
        )
    return claims


def _in_percent(row: pd.Series) -> str:
    median, lowest, highest = 100 * row[["test", "lowest", "highest"]]
    return f"{median:.2f}% ({lowest:.2f} to {highest:.2f})"


def search_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which rates the other maps use, and whether they would be others further out."""
    useful = coverage.most_useful_rates(
        runs_of(table, settings), settings["reference"], SEARCHED
    )
    claims = []
    for name, rates in useful.items():
        arm = settings["optimizers"][name]
        lowest, *_, highest = sorted(arm["learning_rates"])
        claims.append(
            Claim(
                f"{arm['label']}: the {SEARCHED} most useful rates, on validation "
                "data, are not at the edge of those searched.",
                ", ".join(f"{rate:g}" for rate in rates)
                + f"; of {lowest:g} to {highest:g}.",
                judged([lowest < rate < highest for rate in rates]),
            )
        )
    return claims


def _item(
    title: str,
    about: str,
    claims: Callable[[pd.DataFrame, Settings], Sequence[Claim]] = rescue_claims,
    draw: Callable[[pd.DataFrame, Settings], Figure] = heat_maps,
) -> Item:
    return Item(
        title=title,
        about=about,
        cells=cells,
        measure=measure,
        draw=draw,
        claims=lambda table, settings: list(claims(table, settings)),
        overview=overview,
    )


SEARCH = _item(
    "The search for learning rates",
    "Every optimizer with twelve rates and one seed, on two activations and three "
    "depths. What the maps give it is, on validation data, the rate that alone rescues "
    "the most cells, and the two that rescue the most together with it.",
    search_claims,
)
MAP = _item(
    "The rescue map",
    "A perceptron without normalization on real digits, every kernel times "
    "`init_scale`. The same steps, batches, seeds and number of rates for each "
    "optimizer.",
)
SMALL = _item(
    "The small map",
    "One perceptron of three layers, ReLU, from more scales: the large map in a "
    "minute. Every optimizer has the rates that it has there.",
    draw=lines_over_scales,
)
NORMALIZED = _item(
    "The map with normalization layers",
    "The same with batch or layer normalization between each hidden layer and its "
    "activation, ReLU: what they take care of, and what is left.",
)
PROFILES = _item(
    "Other profiles of the scale",
    "One layer alone scaled, scales that alternate between s and 1/s, and scales drawn "
    "from between the two, ReLU.",
)
CNN = _item(
    "The map of convolutional networks",
    "Plain convolutional networks on Fashion-MNIST, ReLU. Of 8 channels, which are "
    "easily all shut at once.",
)
WIDER_CNN = _item(
    "Convolutional networks of twice the width",
    "The same with 16 channels, from some of the scales.",
)
ELSEWHERE = _item(
    "Where nothing was chosen",
    "Perceptrons on Fashion-MNIST, with seeds that neither the recommended setting nor "
    "any rate was chosen with; each optimizer has the rates that it has on digits.",
)
PARTS = _item(
    "What each part of the recommended setting does",
    "The recommended setting, and what is left of it without one of its parts.",
)
_FROM_A_GOOD_START = (
    "Scale 1, with the rate that is best on validation data: what the setting that "
    "rescues costs where nothing is to be rescued."
)
START_DIGITS = _item(
    "From a good start: digits", _FROM_A_GOOD_START, start_claims, good_starts
)
START_FASHION = _item(
    "From a good start: Fashion-MNIST", _FROM_A_GOOD_START, start_claims, good_starts
)
