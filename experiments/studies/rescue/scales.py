"""What a sweep over initial scales says: which scales does an optimizer rescue?

All functions take a table of results (`sweep.COLUMNS`) and return tables. Settings are
chosen by validation accuracy; test accuracy is reported. A diverged run counts as
accuracy 0: it failed, and is not left out.

A *cell* is a start that an optimizer is judged from: an initial scale and, in tables of
several networks, which `coverage` is about, a ``variant`` and a ``depth``.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

RESCUED = 0.95
"""A scale is rescued if the median test accuracy over the seeds is at least this part
of the reference's median test accuracy at scale 1."""

NETWORK = ["variant", "depth"]
"""The columns that name a network, in tables of several."""


def cell_columns(table: pd.DataFrame) -> list[str]:
    """The columns that name a cell, and whose it is."""
    return ["optimizer", *(x for x in NETWORK if x in table), "init_scale"]


def medians(results: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds of every optimizer, cell and learning rate.

    Returns:
        Those of `cell_columns`, ``learning_rate``, and of the validation
        and the test accuracy the median, ``validation`` and ``test``, and of the latter
        the extremes over seeds, ``lowest`` and ``highest``.
    """
    counted = results.assign(
        **{
            column: results[column].mask(results["diverged"], 0.0)
            for column in ("validation_accuracy", "test_accuracy")
        }
    )
    return (
        counted.groupby([*cell_columns(results), "learning_rate"], sort=False)
        .agg(
            validation=("validation_accuracy", "median"),
            test=("test_accuracy", "median"),
            lowest=("test_accuracy", "min"),
            highest=("test_accuracy", "max"),
        )
        .reset_index()
    )


def threshold(results: pd.DataFrame, reference: str, measure: str = "test") -> float:
    """The accuracy from which on a scale counts as rescued.

    Args:
        results: a table of results with scale 1 in it.
        reference: the optimizer that sets the standard, tuned at scale 1.
        measure: ``"test"``, or ``"validation"`` for choosing without the test data.

    Raises:
        ValueError: if there are no results of the reference at scale 1.
    """
    table = medians(results)
    at_one = table[(table["optimizer"] == reference) & (table["init_scale"] == 1.0)]
    if at_one.empty:
        raise ValueError(
            f"no results of the reference {reference!r} at init_scale 1: nothing to "
            "measure a rescue against."
        )
    return RESCUED * best_rates(at_one)[measure].iloc[0]


def best_rate_per_scale(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer and scale, the rate with the best median validation accuracy.

    Of equal rates the smallest. Returns the columns of `medians`, and ``rescued``.
    """
    return _with_rescued(best_rates(medians(results)), results, reference)


def one_rate(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer, the one rate that rescues the most scales.

    Both counted on validation data. Of equal rates the one with the best mean
    validation accuracy over the scales, and then the smallest. Returns the columns of
    `medians`, and ``rescued``.
    """
    table = medians(results)
    standard = threshold(results, reference, "validation")
    chosen = at_rate_of_most(table.assign(rescued=table["validation"] >= standard))
    return _with_rescued(chosen, results, reference)


def summary(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How much of the map each optimizer rescues, a row an optimizer.

    Returns:
        Indexed by optimizer, in the order of the results: ``scales`` in the map,
        ``rescued_best_rate`` and ``rescued_one_rate`` of them, each also with
        ``_lowest`` and ``_highest``, the extremes if one seed alone were judged with
        the same rates and the same threshold; ``one_rate`` itself, ``runs`` and
        ``diverged_runs``.
    """
    standard = threshold(results, reference)
    runs = results.groupby("optimizer")
    fixed = one_rate(results, reference)
    columns = {
        "scales": runs["init_scale"].nunique(),
        "one_rate": fixed.groupby("optimizer")["learning_rate"].first(),
        "runs": runs.size(),
        "diverged_runs": runs["diverged"].sum(),
    }
    for name, chosen in (
        ("rescued_best_rate", best_rate_per_scale(results, reference)),
        ("rescued_one_rate", fixed),
    ):
        columns[name] = chosen.groupby("optimizer")["rescued"].sum()
        alone = single_runs(results, chosen)
        alone["rescued"] = ~alone["diverged"] & (alone["test_accuracy"] >= standard)
        by_seed = alone.groupby(["optimizer", "seed"])["rescued"].sum()
        columns[f"{name}_lowest"] = by_seed.groupby("optimizer").min()
        columns[f"{name}_highest"] = by_seed.groupby("optimizer").max()
    return pd.DataFrame(columns).reindex(results["optimizer"].unique())


def overview_table(
    results: pd.DataFrame, reference: str, labels: Mapping[str, str]
) -> pd.DataFrame:
    """`summary` for people: with the optimizers' labels and spelled-out headings.

    In brackets the lowest and the highest count if one seed alone were judged.
    """
    counts = summary(results, reference)
    scales = int(counts["scales"].iloc[0])
    return pd.DataFrame(
        {
            "optimizer": [labels[str(name)] for name in counts.index],
            f"scales rescued of {scales}, best rate for each": [
                f"{row.rescued_best_rate} ({row.rescued_best_rate_lowest} to "
                f"{row.rescued_best_rate_highest})"
                for row in counts.itertuples()
            ],
            "with one rate for all": [
                f"{row.rescued_one_rate} ({row.rescued_one_rate_lowest} to "
                f"{row.rescued_one_rate_highest})"
                for row in counts.itertuples()
            ],
            "that rate": [f"{rate:g}" for rate in counts["one_rate"]],
            "diverged runs": [
                f"{row.diverged_runs} of {row.runs}" for row in counts.itertuples()
            ],
        }
    )


def accuracy_table(
    results: pd.DataFrame, reference: str, labels: Mapping[str, str]
) -> pd.DataFrame:
    """Median test accuracy with the best rate per scale; in brackets the extremes.

    A row a scale, a column an optimizer; what is not rescued is marked with a dash.
    """
    tuned = best_rate_per_scale(results, reference)
    cells = [
        f"{row.test:.3f} ({row.lowest:.3f} to {row.highest:.3f})"
        + ("" if row.rescued else " –")
        for row in tuned.itertuples()
    ]
    table = tuned.assign(cell=cells).pivot(
        index="init_scale", columns="optimizer", values="cell"
    )
    table = table[list(results["optimizer"].unique())].rename(columns=labels)
    table.index = pd.Index([f"{scale:g}" for scale in table.index], name="init_scale")
    table.columns.name = None
    return table.reset_index()


def search_space_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The settings and the learning rates of every optimizer of a sweep."""
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


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, cells as they are."""
    return table.to_markdown(index=False, disable_numparse=True)


def most_useful_rates(
    results: pd.DataFrame, reference: str, count: int
) -> pd.DataFrame:
    """The learning rates that a search of limited size should try for each optimizer.

    Of all choices of ``count`` rates, the one that rescues the most scales with the
    best of its rates per scale, all on validation data; of equal ones the one with the
    best mean validation accuracy, and then the smallest rates.

    Returns:
        Indexed by optimizer: ``learning_rates``, a tuple; ``rescued``, how many scales
        these rescue on validation data; ``accuracy``, the mean of the best over scales.
    """
    table = medians(results)
    standard = threshold(results, reference, "validation")
    return rates_that_cover(
        table.assign(rescued=table["validation"] >= standard), count
    )


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of `medians`, the row of the best validation accuracy of each cell.

    Of equal ones that of the smallest rate.
    """
    ordered = table.sort_values("learning_rate", kind="stable")
    cells = ordered.groupby(cell_columns(table), sort=False)
    return ordered.loc[cells["validation"].idxmax()]


def at_rate_of_most(table: pd.DataFrame) -> pd.DataFrame:
    """Of `medians`, the rows at the one rate of each optimizer that rescues the most.

    Args:
        table: `medians`, with ``rescued``, which is judged on validation data.
    """
    score = (
        table.groupby(["optimizer", "learning_rate"], sort=True)[
            ["rescued", "validation"]
        ]
        .mean()
        .reset_index()
        .sort_values(["rescued", "validation"], ascending=False, kind="stable")
        .drop_duplicates("optimizer")
    )
    return table.merge(score[["optimizer", "learning_rate"]])


def single_runs(results: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The runs at the rates that were chosen for their cells."""
    return results.merge(chosen[[*cell_columns(chosen), "learning_rate"]])


def rates_that_cover(
    table: pd.DataFrame, count: int, containing: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """`most_useful_rates` of `medians` with ``rescued``, judged on validation data.

    Args:
        table: as said.
        count: how many for each optimizer.
        containing: a rate of each optimizer that is one of them, if one is to be.

    Raises:
        ValueError: for an optimizer with fewer rates than that.
    """
    cells = cell_columns(table)[1:]
    rows = {}
    for name, rates in table.groupby("optimizer", sort=False):
        by_rate = rates.pivot(index="learning_rate", columns=cells, values="validation")
        if len(by_rate) < count:
            raise ValueError(
                f"{count} rates are to be chosen for {name!r}, "
                f"which has {len(by_rate)}."
            )
        reached = rates.pivot(index="learning_rate", columns=cells, values="rescued")
        choices = np.array(list(itertools.combinations(range(len(by_rate)), count)))
        if containing is not None:
            given = by_rate.index.get_loc(containing[str(name)])
            choices = choices[(choices == given).any(axis=1)]
        accuracy = by_rate.to_numpy()[choices].max(axis=1).mean(axis=1)
        rescued = reached.to_numpy(bool)[choices].any(axis=1).sum(axis=1)
        # Decided to the tenth digit: sums in another order must not decide.
        first = np.lexsort((-accuracy.round(10), -rescued))[0]
        rows[str(name)] = {
            "learning_rates": tuple(by_rate.index[choices[first]]),
            "rescued": rescued[first],
            "accuracy": accuracy[first],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _with_rescued(
    chosen: pd.DataFrame, results: pd.DataFrame, reference: str
) -> pd.DataFrame:
    order = {name: i for i, name in enumerate(results["optimizer"].unique())}
    return (
        chosen.assign(rescued=chosen["test"] >= threshold(results, reference))
        .sort_values(
            cell_columns(chosen),
            key=lambda c: c.map(order) if c.name == "optimizer" else c,
        )
        .reset_index(drop=True)
    )
