"""The rescue maps: the same computation with different settings."""

import functools
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.rescue import coverage
from experiments.studies.rescue.coverage import CELL, interval
from experiments.studies.rescue.drawing import (
    good_starts,
    heat_maps,
    lines_by_network,
    lines_over_scales,
)
from experiments.studies.rescue.grid import (
    GOOD_START,
    cells,
    from_any_scale,
    measure,
    network_name,
    rivals_in,
    runs_of,
    starts_in,
)

GOALS = {
    "represented_best": (
        1.0,
        "The recommended setting rescues every start that float32 represents, with a "
        "learning rate for each.",
    ),
    "represented_one": (
        0.95,
        "With one rate for the whole map it rescues 95% of them.",
    ),
    "all_best": (0.95, "It rescues 95% of all starts, with a rate for each."),
}
"""By columns of `coverage.summary`: the part to rescue, and the claim that it is."""

SEARCHED = 3
"""How many rates each optimizer gets after the search."""


def rescue_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How much the recommended setting rescues, and how much its best rival."""
    runs, starts = runs_of(table, settings), starts_in(table)
    counts = coverage.summary(runs, starts, settings["reference"])
    mine = counts.loc[settings["recommended"]]
    others = counts.loc[rivals_in(settings)]
    chosen = coverage.best_rate_per_cell(runs, settings["reference"])
    chosen = chosen[chosen["optimizer"] == mine.name]
    left = chosen[~chosen["rescued"]].merge(coverage.represented(starts))
    at = ["optimizer", *CELL]
    by_rate = coverage.medians(runs).set_index(at)
    resisting = [
        _resisting(settings, row, by_rate.loc[tuple(row[at])])
        for _, row in left.iterrows()
    ]

    claims = []
    for column, (goal, says) in GOALS.items():
        best = str(others[column].astype(float).idxmax())
        found = (
            f"{interval(mine, column)}; the best rival: "
            f"{settings['optimizers'][best]['label']}, "
            f"{interval(others.loc[best], column)}."
        )
        claims.append(Claim(says, found, judged([mine[column] >= goal])))
    says = "It rescues every start, with a rate for each."
    found = f"{len(left)} of {len(chosen)} starts resist"
    found += f": {'; '.join(resisting)}." if resisting else "."
    return [*claims, Claim(says, found, judged([left.empty]))]


def overview(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """How much each optimizer rescues; of those that are run from all scales."""
    runs, starts = runs_of(table, settings), starts_in(table)
    labels = {name: arm["label"] for name, arm in from_any_scale(settings).items()}
    counts = coverage.summary(runs, starts, settings["reference"])
    return coverage.coverage_table(counts, labels, coverage.represented(starts))


def _resisting(settings: Settings, row: pd.Series, by_rate: pd.DataFrame) -> str:
    """A start that is not rescued, and how far it gets with each rate."""
    others = by_rate[by_rate["learning_rate"] != row["learning_rate"]]
    return (
        f"{network_name(settings, row.variant, row.depth)}, from {row.init_scale:g} "
        f"({'' if row.represented else 'not '}represented): {row.test:.3f} "
        f"({row.test_lowest:.3f} to {row.test_highest:.3f}) with "
        f"{row.learning_rate:g}, "
        "with the others "
        + ", ".join(f"{x.test:.3f} ({x.learning_rate:g})" for x in others.itertuples())
    )


def start_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether the recommended setting is as good as the best from a good start."""
    claims = []
    for (variant, depth), rows in _at_best_rates(table, settings):
        mine = rows.loc[settings["recommended"]]
        best = rows.loc[rows["test"].idxmax()]
        claims.append(
            Claim(
                f"From a good start it trains as well as the best optimizer, within "
                f"{100 * GOOD_START:g} points: {variant}, {depth} layers.",
                f"{_reached(mine)}; the best: {_reached(best)}, "
                f"{settings['optimizers'][best.name]['label']}.",
                judged([mine["test"] >= best["test"] - GOOD_START]),
            )
        )
    return claims


def start_overview(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """What each optimizer reaches in each network, with its best rate there."""
    lines = []
    for (variant, depth), rows in _at_best_rates(table, settings):
        for name, row in rows.iterrows():
            line = {
                "network": f"{variant}, {depth} layers",
                "optimizer": settings["optimizers"][name]["label"],
                "rate": f"{row['learning_rate']:g}",
                "test accuracy": interval(row, "test", digits=2),
            }
            if "loss" in row:
                line["test loss"] = coverage.loss_interval(row)
            lines.append(line)
    return pd.DataFrame(lines)


def _at_best_rates(table: pd.DataFrame, settings: Settings) -> list[tuple]:
    """The networks, by variant and depth, each with its rows by optimizer."""
    runs = runs_of(table, settings)
    chosen = coverage.best_rate_per_cell(runs, settings["reference"])
    groups = chosen.groupby(CELL[:2], sort=False)
    return [(network, rows.set_index("optimizer")) for network, rows in groups]


def _reached(row: pd.Series) -> str:
    loss = f", test loss {coverage.loss_interval(row)}" if "loss" in row else ""
    return interval(row, "test", digits=2) + loss


def search_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which rates the other maps use, and whether they would be others further out."""
    runs = runs_of(table, settings)
    useful = coverage.most_useful_rates(runs, settings["reference"], SEARCHED)
    claims = []
    for name, rates in useful.items():
        arm = settings["optimizers"][name]
        lowest, *_, highest = sorted(arm["learning_rates"])
        claims.append(
            Claim(
                f"{arm['label']}: the {SEARCHED} most useful rates, on validation "
                "data, are not at the edge of those searched.",
                f"{', '.join(f'{rate:g}' for rate in rates)}; the search went from "
                f"{lowest:g} to {highest:g}.",
                judged([lowest < rate < highest for rate in rates]),
            )
        )
    return claims


def _map(
    title: str,
    about: str,
    claims: Callable[[pd.DataFrame, Settings], list[Claim]] = rescue_claims,
    draw: Callable[[pd.DataFrame, Settings], Figure] | None = None,
    overview: Callable[[pd.DataFrame, Settings], pd.DataFrame] = overview,
) -> Item:
    draw = draw or functools.partial(heat_maps, title=title)
    return Item(title, about, cells, measure, draw, claims, overview=overview)


SEARCH = _map(
    "The search for learning rates",
    "Every optimizer with twelve rates and one seed, on two activations and three "
    "depths. The other maps give it three of them: the rate that alone rescues the "
    "most cells, and the two that rescue the most together with it, all on validation "
    "data.",
    search_claims,
)
MAP = _map(
    "The rescue map",
    "A perceptron without normalization on real digits, with every kernel times "
    "`init_scale`. The same steps, batches, seeds and number of rates for each "
    "optimizer.",
)
SMALL = _map(
    "The small map",
    "One perceptron of three layers, ReLU, from more scales: the large map in a "
    "minute. Every optimizer has the rates that it has there.",
    draw=lines_over_scales,
)
SMALL_TRANSFORMER = _map(
    "A small transformer",
    "A transformer of two blocks without normalization: the map of residual networks "
    "in two minutes. Rates are the three most useful ones there.",
    draw=functools.partial(lines_by_network, title="A small transformer"),
)
NORMALIZED = _map(
    "The map with normalization layers",
    "The same with batch or layer normalization between each hidden layer and its "
    "activation, ReLU.",
)
MENDED = _map(
    "Mending the start",
    "Adam from starts that are mended before the first step: kernels rescaled to the "
    "preserving norm, LSUV, and MetaInit with the 500 steps, the rate and the momentum "
    "of its authors' code. These steps take third derivatives and are not counted. "
    "Adam and polar LARS have the four rates that they have on the map of residual "
    "networks.",
    draw=functools.partial(lines_by_network, title="Mended starts"),
)
NETWORKS = _map(
    "Residual networks and transformers, and more rivals",
    "A residual perceptron and transformers on image patches, of four blocks. The "
    "standard is that of tuned Scion at scale 1. Rivals are optimizers inside waking, "
    "those that reset or prescribe norms or learn sizes apart, and those whose start "
    "is mended. Each has four rates, around the best of trials; AngularMuown has those "
    "of Muon.",
    draw=functools.partial(
        lines_by_network, title="Residual networks and transformers"
    ),
)
DEPTH = _map(
    "Very deep networks",
    "Perceptrons of width 64 with up to 128 layers, without skips or normalization. "
    "All train for the same number of steps, five times those of the large map, and "
    "each optimizer has two rates. The standard is that of the optimizer that is best "
    "on validation data at scale 1 with 2 layers.",
    draw=functools.partial(lines_by_network, title="Very deep networks"),
)
CONFIRMATION = _map(
    "Held-out networks",
    "Plain and residual networks and transformers of other widths and depths, with "
    "seeds of their own. Convolutional networks are trained on the digits, decoders on "
    "the characters of Python's language reference, and the others on Fashion-MNIST. "
    "Rates are the three most useful ones on "
    "[residual networks](rescue.md#residual-networks-and-transformers), for each "
    "optimizer. The standard is that of the optimizer that is best on validation data "
    "at scale 1, in the shallowest network of its kind. Before the item was run it was "
    "to be that of Scion, which fails in one of the networks. The plain convolutional "
    "network is of the size that once resisted on Fashion-MNIST. After the item was "
    "run, Adam after LSUV was added; and a second bound of the steps of biases was "
    "removed from polar LARS, which then ran again with the same rates.",
    draw=functools.partial(lines_by_network, title="Held-out networks"),
)
PROFILES = _map(
    "Other profiles of the scale",
    "One layer alone scaled, scales that alternate between s and 1/s, and scales drawn "
    "from between the two, ReLU. One rate for the whole map may rescue more than a "
    "rate for each start: the rate of a start is the best one there on validation "
    "data, and rescues are counted on test data.",
)
TRANSFORMER_PROFILES = _map(
    "Other profiles of the scale, in a transformer",
    "A transformer of four blocks without normalization, of which one kernel alone is "
    "scaled, or whose kernels are scaled in turn by s and 1/s in the order of their "
    "paths, or by factors drawn from between the two. Rates are the three most useful "
    "ones of the map of residual networks.",
    draw=functools.partial(
        lines_by_network, title="Profiles of the scale in a transformer"
    ),
)
PARTS = _map(
    "What each part of the recommended setting does",
    "The recommended setting as a whole, and without one of its parts at a time, in "
    "shallow and deep perceptrons and in a transformer. Each has four rates; without "
    "sharing among layers, lower ones. The standard is that of the whole setting at "
    "scale 1, in the shallowest network.",
)


def _good_start(data: str) -> Item:
    return _map(
        f"From a good start: {data}",
        "Scale 1, with the rate that is best on validation data. This is the price of "
        "the recommended setting where nothing has to be rescued.",
        start_claims,
        good_starts,
        start_overview,
    )


START_DIGITS, START_FASHION = _good_start("digits"), _good_start("Fashion-MNIST")
