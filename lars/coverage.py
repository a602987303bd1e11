"""How much of a plane of scales and depths each optimizer trains.

A *cell* of the plane is a network (``variant``, ``depth``) and an ``init_scale``. All
functions take a table of results, a row a run, with these columns, ``optimizer``,
``learning_rate``, ``seed``, ``validation_accuracy``, ``test_accuracy`` and
``diverged``. Rates are chosen by validation accuracy, what is reported is test
accuracy, and a diverged run counts as accuracy 0.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lars.rescue import RESCUED

NETWORK = ["variant", "depth"]
CELL = [*NETWORK, "init_scale"]


def medians(runs: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds, for every optimizer, cell and learning rate.

    Returns:
        Columns ``optimizer``, those of `CELL`, ``learning_rate``, ``validation`` and
        ``test``.
    """
    groups = _counted(runs).groupby(
        ["optimizer", *CELL, "learning_rate"], sort=False, observed=True
    )
    return groups.agg(
        validation=("validation_accuracy", "median"), test=("test_accuracy", "median")
    ).reset_index()


def standards(
    runs: pd.DataFrame, reference: str, measure: str = "test"
) -> dict[str, float]:
    """The accuracy from which on a cell counts as rescued, for every variant.

    That is `lars.rescue.RESCUED` of what the reference reaches in the shallowest
    network of the variant at scale 1, with its best rate: a standard that does not sink
    where networks are too deep to be trained from there.

    Raises:
        ValueError: if the reference was not run there.
    """
    table = medians(runs)
    table = table[(table["optimizer"] == reference) & (table["init_scale"] == 1.0)]
    if set(table["variant"]) != set(runs["variant"]):
        raise ValueError(
            f"no results of the reference {reference!r} at init_scale 1 for each of "
            f"{', '.join(map(str, runs['variant'].unique()))}."
        )
    shallow = table[
        table["depth"] == table.groupby("variant")["depth"].transform("min")
    ]
    best = _best(shallow)
    return dict(zip(best["variant"], RESCUED * best[measure], strict=True))


def best_rate_per_cell(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer and cell, the rate with the best median validation accuracy.

    Of equal rates the smallest. Returns the columns of `medians`, and ``rescued``.
    """
    return _with_rescued(_best(medians(runs)), standards(runs, reference))


def one_rate(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer, the one rate that rescues the most cells.

    Both counted on validation data. Of equal rates the one with the best mean
    validation accuracy over the cells, and then the smallest. Returns the columns of
    `medians`, and ``rescued``.
    """
    table = medians(runs)
    reached = table["variant"].map(standards(runs, reference, "validation"))
    score = (
        table.assign(rescued=table["validation"] >= reached)
        .groupby(["optimizer", "learning_rate"])[["rescued", "validation"]]
        .mean()
        .reset_index()
        .sort_values(["rescued", "validation"], ascending=False, kind="stable")
        .drop_duplicates("optimizer")
    )
    chosen = table.merge(score[["optimizer", "learning_rate"]])
    return _with_rescued(chosen, standards(runs, reference))


def representable(starts: pd.DataFrame) -> pd.DataFrame:
    """Which cells float32 can represent at the start: in the median seed.

    Args:
        starts: a row a cell and seed, with the columns of `CELL` and 0 or 1 in each of
            ``is_finite``, ``has_gradient`` and ``has_signal``.

    Returns:
        The columns of `CELL` and ``representable``.
    """
    flags = starts[["is_finite", "has_gradient", "has_signal"]].min(axis=1)
    cells = starts.assign(representable=flags).groupby(CELL, sort=False)
    return (cells["representable"].median() > 0.5).reset_index()


def summary(runs: pd.DataFrame, starts: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The part of the plane that each optimizer rescues, a row an optimizer.

    Returns:
        Indexed by optimizer, in the order of the results: of all cells and of those
        that float32 represents, with the best rate of each cell and with one rate for
        all, the part that is rescued, from 0 to 1: ``plane_best``, ``plane_one``,
        ``representable_best``, ``representable_one``, each also with ``_lowest`` and
        ``_highest``, the extremes if one seed alone were judged with the same rates and
        standards; ``one_rate`` itself, ``cells``, ``runs`` and ``diverged_runs``.
    """
    standard = standards(runs, reference)
    can = representable(starts)
    fixed = one_rate(runs, reference)
    by_optimizer = runs.groupby("optimizer")
    columns = {
        "one_rate": fixed.groupby("optimizer")["learning_rate"].first(),
        "cells": medians(runs)
        .groupby("optimizer")
        .apply(lambda table: len(table[CELL].drop_duplicates()), include_groups=False),
        "runs": by_optimizer.size(),
        "diverged_runs": by_optimizer["diverged"].sum(),
    }
    for kind, chosen in (
        ("best", best_rate_per_cell(runs, reference)),
        ("one", fixed),
    ):
        alone = _with_rescued(
            _counted(runs)
            .merge(chosen[["optimizer", *CELL, "learning_rate"]])
            .rename(columns={"test_accuracy": "test"}),
            standard,
        )
        for part in ("plane", "representable"):
            wanted = can if part == "plane" else can[can["representable"]]
            of_median = chosen.merge(wanted[CELL])
            of_seeds = alone.merge(wanted[CELL])
            by_seed = of_seeds.groupby(["optimizer", "seed"])["rescued"].mean()
            name = f"{part}_{kind}"
            columns[name] = of_median.groupby("optimizer")["rescued"].mean()
            columns[f"{name}_lowest"] = by_seed.groupby("optimizer").min()
            columns[f"{name}_highest"] = by_seed.groupby("optimizer").max()
    return pd.DataFrame(columns).reindex(runs["optimizer"].unique())


def most_useful_rates(
    runs: pd.DataFrame, reference: str, count: int
) -> dict[str, tuple[float, ...]]:
    """The rates that a search of limited size should try for each optimizer.

    Of all choices of ``count`` rates the one that rescues the most cells with the best
    of its rates for each, all on validation data; of equal ones the one with the best
    mean validation accuracy, and then the smallest rates.
    """
    standard = standards(runs, reference, "validation")
    chosen = {}
    for name, table in medians(runs).groupby("optimizer", sort=False):
        by_rate = table.pivot_table(
            index="learning_rate", columns=CELL, values="validation"
        )
        reached = by_rate.columns.get_level_values("variant").map(standard).to_numpy()
        choices = np.array(list(itertools.combinations(range(len(by_rate)), count)))
        best = by_rate.to_numpy()[choices].max(axis=1)  # [choices, cells]
        rescued, accuracy = (best >= reached).sum(axis=1), best.mean(axis=1)
        # Decided to the tenth digit: sums in another order must not decide.
        first = np.lexsort((-accuracy.round(10), -rescued))[0]
        chosen[str(name)] = tuple(by_rate.index[choices[first]])
    return chosen


def resisting(
    chosen: pd.DataFrame, starts: pd.DataFrame, names: Sequence[str]
) -> pd.DataFrame:
    """The cells that an optimizer does not rescue, and whether float32 represents them.

    Args:
        chosen: what `best_rate_per_cell` or `one_rate` returned.
        starts: as for `representable`.
        names: the optimizers.
    """
    left = chosen[chosen["optimizer"].isin(names) & ~chosen["rescued"]]
    return left.merge(representable(starts), on=CELL)


def _counted(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, a diverged one with accuracies of 0."""
    failed = runs["diverged"].astype(bool)
    return runs.assign(
        **{
            column: runs[column].mask(failed, 0.0)
            for column in ("validation_accuracy", "test_accuracy")
        }
    )


def _best(table: pd.DataFrame) -> pd.DataFrame:
    ordered = table.sort_values("learning_rate", kind="stable")
    cells = ordered.groupby(["optimizer", *CELL], sort=False)
    return ordered.loc[cells["validation"].idxmax()]


def _with_rescued(table: pd.DataFrame, standard: dict[str, float]) -> pd.DataFrame:
    rescued = table["test"] >= table["variant"].map(standard)
    return table.assign(rescued=rescued).reset_index(drop=True)
