"""What a sweep over initial scales says: which scales does an optimizer rescue?

All functions take a table of results (`lars.sweep.COLUMNS`) and return tables. Settings
are chosen by validation accuracy, what is reported is test accuracy. A diverged run
counts as accuracy 0: it failed, and is not left out.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

RESCUED = 0.95
"""A scale is rescued if the median test accuracy over the seeds is at least this part
of the reference's median test accuracy at scale 1."""

_CELL = ["optimizer", "init_scale"]


def medians(results: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds of every optimizer, scale and learning rate.

    Returns:
        Columns ``optimizer``, ``init_scale``, ``learning_rate``, and of the validation
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
        counted.groupby([*_CELL, "learning_rate"], sort=False)
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
    return RESCUED * at_one.loc[at_one["validation"].idxmax(), measure]


def best_rate_per_scale(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer and scale, the rate with the best median validation accuracy.

    Of equal rates the smallest. Returns the columns of `medians`, and ``rescued``.
    """
    table = medians(results).sort_values("learning_rate", kind="stable")
    best = table.loc[table.groupby(_CELL, sort=False)["validation"].idxmax()]
    return _with_rescued(best, results, reference)


def one_rate(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer, the one rate that rescues the most scales.

    Both counted on validation data. Of equal rates the one with the best mean
    validation accuracy over the scales, and then the smallest. Returns the columns of
    `medians`, and ``rescued``.
    """
    table = medians(results).sort_values("learning_rate", kind="stable")
    standard = threshold(results, reference, "validation")
    score = (
        table.assign(rescued=table["validation"] >= standard)
        .groupby(["optimizer", "learning_rate"], sort=True)[["rescued", "validation"]]
        .mean()
        .reset_index()
        .sort_values(["rescued", "validation"], ascending=False, kind="stable")
        .drop_duplicates("optimizer")
    )
    chosen = table.merge(score[["optimizer", "learning_rate"]])
    return _with_rescued(chosen, results, reference)


def summary(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How much of the map each optimizer rescues, a row an optimizer.

    Returns:
        Indexed by optimizer, in the order of the results: ``scales`` in the map,
        ``rescued_best_rate`` and ``rescued_one_rate`` of them, ``one_rate`` itself,
        ``runs`` and ``diverged_runs``.
    """
    tuned = best_rate_per_scale(results, reference).groupby("optimizer")
    fixed = one_rate(results, reference).groupby("optimizer")
    runs = results.groupby("optimizer")
    return pd.DataFrame(
        {
            "scales": tuned.size(),
            "rescued_best_rate": tuned["rescued"].sum(),
            "rescued_one_rate": fixed["rescued"].sum(),
            "one_rate": fixed["learning_rate"].first(),
            "runs": runs.size(),
            "diverged_runs": runs["diverged"].sum(),
        }
    ).reindex(results["optimizer"].unique())


def overview_table(
    results: pd.DataFrame, reference: str, labels: Mapping[str, str]
) -> pd.DataFrame:
    """`summary` for people: with the optimizers' labels and spelled-out headings."""
    counts = summary(results, reference)
    scales = int(counts["scales"].iloc[0])
    return pd.DataFrame(
        {
            "optimizer": [labels[str(name)] for name in counts.index],
            f"scales rescued of {scales}, best rate for each": list(
                counts["rescued_best_rate"]
            ),
            "with one rate for all": list(counts["rescued_one_rate"]),
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


def search_space_table(
    arms: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
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
) -> dict[str, tuple[float, ...]]:
    """The learning rates that a search of limited size should try for each optimizer.

    Of all choices of ``count`` rates, the one that rescues the most scales with the
    best of its rates per scale, all on validation data; of equal ones, the one with the
    best mean accuracy.
    """
    standard = threshold(results, reference, "validation")
    chosen = {}
    for name, table in medians(results).groupby("optimizer", sort=False):
        by_rate = table.pivot(
            index="init_scale", columns="learning_rate", values="validation"
        )

        def merit(rates: tuple[float, ...], by_rate=by_rate) -> tuple[float, float]:
            best = by_rate[list(rates)].max(axis=1)
            return (best >= standard).sum(), best.mean()

        chosen[str(name)] = max(
            itertools.combinations(by_rate.columns, count), key=merit
        )
    return chosen


def _with_rescued(
    chosen: pd.DataFrame, results: pd.DataFrame, reference: str
) -> pd.DataFrame:
    order = {name: i for i, name in enumerate(results["optimizer"].unique())}
    return (
        chosen.assign(rescued=chosen["test"] >= threshold(results, reference))
        .sort_values(_CELL, key=lambda c: c.map(order) if c.name == "optimizer" else c)
        .reset_index(drop=True)
    )
