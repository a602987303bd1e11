"""Which starts does an optimizer rescue? Tables of runs in, tables of verdicts out.

A *cell* is a start that optimizers are judged from: a network (``variant`` and
``depth``) and an initial scale. Learning rates are chosen by validation accuracy; test
accuracy is reported. A diverged run counts as accuracy 0: it failed, and is not left
out.

``runs`` have a row a run: ``optimizer``, the columns of `CELL`, ``learning_rate``,
``seed``, ``validation_accuracy``, ``test_accuracy``, ``diverged`` and, if they are not
old, ``test_loss``. The ``reference`` is the optimizer that sets the standard, or
`BEST`.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

CELL = ["variant", "depth", "init_scale"]
"""The columns that name a cell."""

FLAGS = ["is_finite", "has_gradient", "has_signal"]
"""The columns, of 0 and 1, that say what float32 represents of a start."""

BEST = "best"
"""As a reference: in each variant, the optimizer that is best on validation data."""

RESCUED = 0.95
"""A cell is rescued if the median test accuracy over the seeds is at least this part of
the standard of its variant, see `standards`."""


def medians(runs: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds of every optimizer, cell and learning rate.

    Returns:
        ``optimizer``, the columns of `CELL` and ``learning_rate``; the medians of both
        accuracies, ``validation`` and ``test``, and the extremes of the latter,
        ``test_lowest`` and ``test_highest``. Where runs have a ``test_loss``, likewise
        ``loss``, ``loss_lowest`` and ``loss_highest``.
    """
    runs, diverged = runs.copy(), runs["diverged"]
    aggregates = {"validation": ("validation_accuracy", "median")}
    for name, column in (("test", "test_accuracy"), ("loss", "test_loss")):
        if column in runs:
            aggregates |= {
                name: (column, "median"),
                f"{name}_lowest": (column, "min"),
                f"{name}_highest": (column, "max"),
            }
    for _, (column, _) in aggregates.items():
        runs[column] = runs[column].mask(diverged, np.inf if "loss" in column else 0.0)
    groups = runs.groupby(["optimizer", *CELL, "learning_rate"], sort=False)
    return groups.agg(**aggregates).reset_index()


def standards(
    runs: pd.DataFrame, reference: str, measure: str = "test"
) -> dict[str, float]:
    """The accuracy from which on a cell of each variant counts as rescued.

    It is the part `RESCUED` of what the tuned reference reaches at scale 1 in the
    shallowest network. So the standard does not sink where networks are too deep to be
    trained. With the measure ``"validation"``, it is for choosing without test data.

    Raises:
        ValueError: if the reference was not run there at scale 1.
    """
    found = {}
    for variant, rows in medians(runs).groupby("variant", sort=False):
        usual = rows[
            (rows["depth"] == rows["depth"].min())
            & ((rows["optimizer"] == reference) | (reference == BEST))
            & (rows["init_scale"] == 1.0)
        ].sort_values("validation", ascending=False, kind="stable")
        if usual.empty:
            raise ValueError(
                f"no results of the reference {reference!r} at init_scale 1 for "
                f"{variant!r}: nothing to measure a rescue against."
            )
        if reference == BEST:
            usual = usual.iloc[:1]
        found[str(variant)] = RESCUED * float(_at_best_rates(usual)[measure].iloc[0])
    return found


def best_rate_per_cell(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer and cell, the rate with the best median validation accuracy.

    Of equal rates it is the smallest. Returns the columns of `medians`, and
    ``rescued``.
    """
    return _judged(_at_best_rates(medians(runs)), standards(runs, reference))


def one_rate(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer, the one rate that rescues the most cells.

    They are counted on validation data. Of equal rates it is the one with the best mean
    validation accuracy over the cells, and then the smallest. Returns the columns of
    `medians`, and ``rescued``.
    """
    chosen = _at_rate_of_most(_judged_on_validation(runs, reference))
    return _judged(chosen, standards(runs, reference))


def most_useful_rates(
    runs: pd.DataFrame, reference: str, count: int
) -> dict[str, tuple[float, ...]]:
    """The rates that a search of limited size should try for each optimizer.

    One is that of `one_rate`. With the others it rescues more cells than with any other
    choice, if each cell has its best rate, all on validation data. Of equal choices it
    is that of the best mean validation accuracy, and then of the smallest rates. So
    neither one rate for all cells nor a rate for each suffers more than it must.

    Raises:
        ValueError: for an optimizer with fewer rates than that.
    """
    judged = _judged_on_validation(runs, reference)
    alone = _at_rate_of_most(judged).groupby("optimizer")["learning_rate"].first()
    useful = {}
    for name, rows in judged.groupby("optimizer", sort=False):
        by_rate = rows.pivot(index="learning_rate", columns=CELL)
        rates = by_rate.index
        if len(rates) < count:
            raise ValueError(
                f"{count} rates are to be chosen for {name!r}, which has {len(rates)}."
            )
        choices = np.array(list(itertools.combinations(range(len(rates)), count)))
        given = rates.get_loc(alone[str(name)])
        choices = choices[(choices == given).any(axis=1)]
        accuracies = by_rate["validation"].to_numpy()[choices]
        rescued = by_rate["rescued"].to_numpy(bool)[choices].any(axis=1)
        # Rounded: sums in another order must not decide.
        means = accuracies.max(axis=1).mean(axis=1).round(10)
        best = np.lexsort((-means, -rescued.sum(axis=1)))[0]
        useful[str(name)] = tuple(rates[choices[best]])
    return useful


def represented(starts: pd.DataFrame) -> pd.DataFrame:
    """Which cells float32 represents at the start: in most seeds.

    Args:
        starts: a row a cell and seed, with the columns of `CELL` and of `FLAGS`.

    Returns:
        The columns of `CELL` and ``represented``.
    """
    cells = starts.assign(represented=starts[FLAGS].min(axis=1))
    medians = cells.groupby(CELL, sort=False)["represented"].median()
    return (medians > 0.5).reset_index()


def summary(runs: pd.DataFrame, starts: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The part of the map that each optimizer rescues, a row an optimizer.

    Returns:
        Indexed by optimizer, in the order of the runs. Parts are from 0 to 1, of all
        cells and of those that float32 represents, with the best rate of each cell and
        with one rate for all: ``all_best``, ``all_one``, ``represented_best``,
        ``represented_one``. With ``_lowest`` and ``_highest`` behind these names, the
        extremes if one seed alone were judged with the same rates and standards. And
        ``one_rate`` itself, ``runs`` and ``diverged_runs``. Where runs have a
        ``test_loss``, its median over the cells that are rescued with their best rates,
        ``loss``, and ``loss_lowest`` and ``loss_highest``, those of single seeds.
    """
    standard, can = standards(runs, reference), represented(starts)
    tuned, fixed = best_rate_per_cell(runs, reference), one_rate(runs, reference)
    at_rate = ["optimizer", *CELL, "learning_rate"]
    by_optimizer = runs.groupby("optimizer")
    columns = {
        "one_rate": fixed.groupby("optimizer")["learning_rate"].first(),
        "runs": by_optimizer.size(),
        "diverged_runs": by_optimizer["diverged"].sum(),
    }
    parts = {"all": can, "represented": can[can["represented"]]}
    for kind, chosen in (("best", tuned), ("one", fixed)):
        alone = runs.merge(chosen[at_rate])
        reached = alone["test_accuracy"] >= alone["variant"].map(standard)
        alone["rescued"] = ~alone["diverged"] & reached
        for part, cells in parts.items():
            of_median = chosen.merge(cells[CELL]).groupby("optimizer")["rescued"]
            by_seed = alone.merge(cells[CELL]).groupby(["optimizer", "seed"])["rescued"]
            name = f"{part}_{kind}"
            columns[name] = of_median.mean()
            columns |= _extremes(name, by_seed.mean())
    if "test_loss" in runs:
        rescued = runs.merge(tuned[tuned["rescued"]][at_rate])
        by_seed = rescued.groupby(["optimizer", "seed"])["test_loss"].median()
        columns["loss"] = by_seed.groupby("optimizer").median()
        columns |= _extremes("loss", by_seed)
    return pd.DataFrame(columns).reindex(runs["optimizer"].unique())


def _extremes(name: str, by_seed: pd.Series) -> dict[str, pd.Series]:
    groups = by_seed.groupby("optimizer")
    return {f"{name}_lowest": groups.min(), f"{name}_highest": groups.max()}


def coverage_table(
    counts: pd.DataFrame, labels: Mapping[str, str], can: pd.DataFrame
) -> pd.DataFrame:
    """`summary` for people: in %, with spelled-out headings.

    In brackets are the lowest and the highest part if one seed alone were judged.

    Args:
        counts: the result of `summary`.
        labels: of the optimizers that the table shows.
        can: the result of `represented`.
    """
    rows = counts.loc[[name for name in labels if name in counts.index]]
    headings = {
        "represented_best": (
            f"of the {int(can['represented'].sum())} starts that float32 represents"
        ),
        "represented_one": "of these with one rate for all",
        "all_best": f"of all {len(can)} starts",
        "all_one": "of all with one rate for all",
    }
    table = pd.DataFrame(
        {
            "optimizer": [labels[str(name)] for name in rows.index],
            **{
                heading: [interval(row, column) for _, row in rows.iterrows()]
                for column, heading in headings.items()
            },
            "that rate": [f"{rate:g}" for rate in rows["one_rate"]],
        }
    )
    if "loss" in rows:
        losses = [loss_interval(row) for _, row in rows.iterrows()]
        table["test loss where rescued"] = losses
    table["diverged runs"] = [
        f"{row.diverged_runs} of {row.runs}" for row in rows.itertuples()
    ]
    return table


def interval(row: pd.Series, column: str, digits: int = 1) -> str:
    """A column of `summary` or `medians` in %, in brackets its extremes over seeds."""
    values = [
        100 * row[name] for name in (column, f"{column}_lowest", f"{column}_highest")
    ]
    return "{:.{d}f}% ({:.{d}f} to {:.{d}f})".format(*values, d=digits)


def loss_interval(row: pd.Series) -> str:
    """The test loss in a row of `summary` or `medians`, in brackets its extremes.

    Nothing if no start is rescued.
    """
    if math.isnan(row["loss"]):
        return ""
    return f"{row['loss']:.3g} ({row['loss_lowest']:.3g} to {row['loss_highest']:.3g})"


def search_space_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The settings and the learning rates of every optimizer, for people."""

    def call(arm: Mapping[str, Any]) -> str:
        settings = ", ".join(f"{name}={x!r}" for name, x in arm["settings"].items())
        return f"`{arm['name']}({settings})`"

    return pd.DataFrame(
        {
            "optimizer": arm["label"],
            "is": call(arm),
            "learning rates": ", ".join(f"{rate:g}" for rate in arm["learning_rates"]),
        }
        for arm in arms.values()
    )


def _at_best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of `medians`, the rows of the best validation accuracy of each cell."""
    ordered = table.sort_values("learning_rate", kind="stable")
    cells = ordered.groupby(["optimizer", *CELL], sort=False)
    return ordered.loc[cells["validation"].idxmax()]


def _at_rate_of_most(judged: pd.DataFrame) -> pd.DataFrame:
    """The rows at the one rate of each optimizer that rescues the most cells."""
    by_rate = judged.groupby(["optimizer", "learning_rate"])
    score = by_rate[["rescued", "validation"]].mean().reset_index()
    best_first = score.sort_values(
        ["rescued", "validation"], ascending=False, kind="stable"
    )
    chosen = best_first.drop_duplicates("optimizer")
    return judged.merge(chosen[["optimizer", "learning_rate"]])


def _judged(
    table: pd.DataFrame, standard: Mapping[str, float], measure: str = "test"
) -> pd.DataFrame:
    reached = table[measure] >= table["variant"].map(standard)
    return table.assign(rescued=reached).reset_index(drop=True)


def _judged_on_validation(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    measure = "validation"
    return _judged(medians(runs), standards(runs, reference, measure), measure)
