"""Which starts does an optimizer rescue? Tables of runs in, tables of verdicts out.

A *cell* is a start that optimizers are judged from: a network (``variant`` and
``depth``) and an initial scale. Learning rates are chosen by validation accuracy; test
accuracy is reported. A diverged run counts as accuracy 0: it failed, and is not left
out.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

CELL = ["variant", "depth", "init_scale"]
"""The columns that name a cell."""

RESCUED = 0.95
"""A cell is rescued if the median test accuracy over the seeds is at least this part of
the standard of its variant, see `standards`."""


def medians(runs: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds of every optimizer, cell and learning rate.

    Args:
        runs: a row a run: ``optimizer``, the columns of `CELL`, ``learning_rate``,
            ``seed``, ``validation_accuracy``, ``test_accuracy`` and ``diverged``.

    Returns:
        ``optimizer``, the columns of `CELL` and ``learning_rate``; the medians of both
        accuracies, ``validation`` and ``test``; and the extremes of the latter over
        seeds, ``lowest`` and ``highest``.
    """
    counted = runs.assign(
        **{
            column: runs[column].mask(runs["diverged"], 0.0)
            for column in ("validation_accuracy", "test_accuracy")
        }
    )
    return (
        counted.groupby(["optimizer", *CELL, "learning_rate"], sort=False)
        .agg(
            validation=("validation_accuracy", "median"),
            test=("test_accuracy", "median"),
            lowest=("test_accuracy", "min"),
            highest=("test_accuracy", "max"),
        )
        .reset_index()
    )


def standards(
    runs: pd.DataFrame, reference: str, measure: str = "test"
) -> dict[str, float]:
    """The accuracy from which on a cell of each variant counts as rescued.

    It is the part `RESCUED` of what the tuned reference reaches at scale 1 in the
    shallowest network. So the standard does not sink where networks are too deep to be
    trained.

    Args:
        runs: as for `medians`.
        reference: the optimizer that sets the standard.
        measure: ``"test"``, or ``"validation"`` for choosing without the test data.

    Raises:
        ValueError: if the reference was not run there at scale 1.
    """
    table = medians(runs)
    found = {}
    for variant, rows in table.groupby("variant", sort=False):
        usual = rows[
            (rows["depth"] == rows["depth"].min())
            & (rows["optimizer"] == reference)
            & (rows["init_scale"] == 1.0)
        ]
        if usual.empty:
            raise ValueError(
                f"no results of the reference {reference!r} at init_scale 1 for "
                f"{variant!r}: nothing to measure a rescue against."
            )
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
        by_rate = rows.pivot(index="learning_rate", columns=CELL, values="validation")
        rescued = rows.pivot(index="learning_rate", columns=CELL, values="rescued")
        if len(by_rate) < count:
            raise ValueError(
                f"{count} rates are to be chosen for {name!r}, "
                f"which has {len(by_rate)}."
            )
        choices = np.array(list(itertools.combinations(range(len(by_rate)), count)))
        given = by_rate.index.get_loc(alone[str(name)])
        choices = choices[(choices == given).any(axis=1)]
        accuracy = by_rate.to_numpy()[choices].max(axis=1).mean(axis=1)
        cells = rescued.to_numpy(bool)[choices].any(axis=1).sum(axis=1)
        # Rounded: sums in another order must not decide.
        best = np.lexsort((-accuracy.round(10), -cells))[0]
        useful[str(name)] = tuple(by_rate.index[choices[best]])
    return useful


def represented(starts: pd.DataFrame) -> pd.DataFrame:
    """Which cells float32 represents at the start: in most seeds.

    Args:
        starts: a row a cell and seed, with the columns of `CELL` and 0 or 1 in each of
            ``is_finite``, ``has_gradient`` and ``has_signal``.

    Returns:
        The columns of `CELL` and ``represented``.
    """
    flags = starts[["is_finite", "has_gradient", "has_signal"]].min(axis=1)
    cells = starts.assign(represented=flags).groupby(CELL, sort=False)
    return (cells["represented"].median() > 0.5).reset_index()


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
    fixed = one_rate(runs, reference)
    by_optimizer = runs.groupby("optimizer")
    columns = {
        "one_rate": fixed.groupby("optimizer")["learning_rate"].first(),
        "runs": by_optimizer.size(),
        "diverged_runs": by_optimizer["diverged"].sum(),
    }
    parts = {"all": can, "represented": can[can["represented"]]}
    for kind, chosen in (("best", best_rate_per_cell(runs, reference)), ("one", fixed)):
        alone = runs.merge(chosen[["optimizer", *CELL, "learning_rate"]])
        reached = alone["test_accuracy"] >= alone["variant"].map(standard)
        alone["rescued"] = ~alone["diverged"] & reached
        for part, cells in parts.items():
            name = f"{part}_{kind}"
            of_median = chosen.merge(cells[CELL]).groupby("optimizer")["rescued"]
            by_seed = alone.merge(cells[CELL]).groupby(["optimizer", "seed"])
            of_seeds = by_seed["rescued"].mean().groupby("optimizer")
            columns[name] = of_median.mean()
            columns[f"{name}_lowest"] = of_seeds.min()
            columns[f"{name}_highest"] = of_seeds.max()
    if "test_loss" in runs:
        chosen = best_rate_per_cell(runs, reference)
        rescued = chosen[chosen["rescued"]][["optimizer", *CELL, "learning_rate"]]
        losses = runs.merge(rescued).groupby(["optimizer", "seed"])["test_loss"]
        by_seed = losses.median().groupby("optimizer")
        columns["loss"] = by_seed.median()
        columns["loss_lowest"], columns["loss_highest"] = by_seed.min(), by_seed.max()
    return pd.DataFrame(columns).reindex(runs["optimizer"].unique())


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
    losses = {}
    if "loss" in rows:
        losses["test loss where rescued"] = [
            f"{row.loss:.3g} ({row.loss_lowest:.3g} to {row.loss_highest:.3g})"
            for row in rows.itertuples()
        ]
    headings = {
        "represented_best": (
            f"of the {int(can['represented'].sum())} starts that float32 represents"
        ),
        "represented_one": "of these with one rate for all",
        "all_best": f"of all {len(can)} starts",
        "all_one": "of all with one rate for all",
    }
    return pd.DataFrame(
        {
            "optimizer": [labels[str(name)] for name in rows.index],
            **{
                heading: [interval(row, column) for _, row in rows.iterrows()]
                for column, heading in headings.items()
            },
            "that rate": [f"{rate:g}" for rate in rows["one_rate"]],
            **losses,
            "diverged runs": [
                f"{row.diverged_runs} of {row.runs}" for row in rows.itertuples()
            ],
        }
    )


def interval(row: pd.Series, column: str) -> str:
    """A part of `summary` in %, in brackets the extremes over single seeds."""
    low, high = row[f"{column}_lowest"], row[f"{column}_highest"]
    return f"{100 * row[column]:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def search_space_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The settings and the learning rates of every optimizer, for people."""
    return pd.DataFrame(
        {
            "optimizer": [arm["label"] for arm in arms.values()],
            "is": [
                "`{}({})`".format(
                    arm["name"],
                    ", ".join(f"{k}={v!r}" for k, v in arm["settings"].items()),
                )
                for arm in arms.values()
            ],
            "learning rates": [
                ", ".join(f"{rate:g}" for rate in arm["learning_rates"])
                for arm in arms.values()
            ],
        }
    )


def _at_best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of `medians`, the rows of the best validation accuracy of each cell."""
    ordered = table.sort_values("learning_rate", kind="stable")
    cells = ordered.groupby(["optimizer", *CELL], sort=False)
    return ordered.loc[cells["validation"].idxmax()]


def _at_rate_of_most(judged: pd.DataFrame) -> pd.DataFrame:
    """The rows at the one rate of each optimizer that rescues the most cells."""
    score = (
        judged.groupby(["optimizer", "learning_rate"], sort=True)[
            ["rescued", "validation"]
        ]
        .mean()
        .reset_index()
        .sort_values(["rescued", "validation"], ascending=False, kind="stable")
        .drop_duplicates("optimizer")
    )
    return judged.merge(score[["optimizer", "learning_rate"]])


def _judged(chosen: pd.DataFrame, standard: Mapping[str, float]) -> pd.DataFrame:
    reached = chosen["test"] >= chosen["variant"].map(standard)
    return chosen.assign(rescued=reached).reset_index(drop=True)


def _judged_on_validation(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    table = medians(runs)
    standard = standards(runs, reference, "validation")
    return table.assign(rescued=table["validation"] >= table["variant"].map(standard))
