"""How much of a plane of networks and scales each optimizer rescues.

What `scales` says of one network, for many: tables have the columns ``variant`` and
``depth`` besides its own, and a cell is measured against its variant.
"""

from collections.abc import Mapping

import pandas as pd

from experiments.studies.rescue import scales as rescue

CELL = [*rescue.NETWORK, "init_scale"]
"""The columns that name a cell of the plane."""


def standards(
    runs: pd.DataFrame, reference: str, measure: str = "test"
) -> dict[str, float]:
    """The accuracy from which on a cell counts as rescued, for every variant.

    That is `scales.threshold` of its shallowest network: a standard that does not sink
    where networks are too deep to be trained.

    Raises:
        ValueError: if the reference was not run there at scale 1.
    """
    return {
        str(variant): rescue.threshold(
            rows[rows["depth"] == rows["depth"].min()], reference, measure
        )
        for variant, rows in runs.groupby("variant", sort=False)
    }


def best_rate_per_cell(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer and cell, the rate with the best median validation accuracy.

    Of equal rates the smallest. Returns the columns of `scales.medians`, and
    ``rescued``.
    """
    chosen = rescue.best_rates(rescue.medians(runs))
    return _judged(chosen, standards(runs, reference))


def one_rate(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """For every optimizer, the one rate that rescues the most cells.

    Chosen as by `scales.one_rate`. Returns the columns of `scales.medians`, and
    ``rescued``.
    """
    chosen = rescue.at_rate_of_most(_judged_on_validation(runs, reference))
    return _judged(chosen, standards(runs, reference))


def most_useful_rates(
    runs: pd.DataFrame, reference: str, count: int
) -> dict[str, tuple[float, ...]]:
    """The rates that a search of limited size should try for each optimizer.

    That which alone rescues the most cells, as of `one_rate`; and the others that
    together with it rescue the most, as of `scales.most_useful_rates`. So neither one
    rate for all cells nor a rate for each suffers more than it must.
    """
    judged = _judged_on_validation(runs, reference)
    one = rescue.at_rate_of_most(judged).groupby("optimizer")["learning_rate"].first()
    table = rescue.rates_that_cover(judged, count, one.to_dict())
    return table["learning_rates"].to_dict()


def representable(starts: pd.DataFrame) -> pd.DataFrame:
    """Which cells float32 can represent at the start: in most seeds.

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
        standards; ``one_rate`` itself, ``runs`` and ``diverged_runs``.
    """
    standard = standards(runs, reference)
    can = representable(starts)
    fixed = one_rate(runs, reference)
    by_optimizer = runs.groupby("optimizer")
    columns = {
        "one_rate": fixed.groupby("optimizer")["learning_rate"].first(),
        "runs": by_optimizer.size(),
        "diverged_runs": by_optimizer["diverged"].sum(),
    }
    for kind, chosen in (("best", best_rate_per_cell(runs, reference)), ("one", fixed)):
        alone = rescue.single_runs(runs, chosen)
        reached = alone["test_accuracy"] >= alone["variant"].map(standard)
        alone["rescued"] = ~alone["diverged"] & reached
        for part, wanted in (
            ("plane", can),
            ("representable", can[can["representable"]]),
        ):
            name = f"{part}_{kind}"
            of_median = chosen.merge(wanted[CELL]).groupby("optimizer")["rescued"]
            by_seed = alone.merge(wanted[CELL]).groupby(["optimizer", "seed"])
            of_seeds = by_seed["rescued"].mean().groupby("optimizer")
            columns[name] = of_median.mean()
            columns[f"{name}_lowest"] = of_seeds.min()
            columns[f"{name}_highest"] = of_seeds.max()
    return pd.DataFrame(columns).reindex(runs["optimizer"].unique())


def coverage_table(
    counts: pd.DataFrame, labels: Mapping[str, str], cells: int, representable: int
) -> pd.DataFrame:
    """`summary` for people: in %, with spelled-out headings.

    In brackets the lowest and the highest part if one seed alone were judged.

    Args:
        counts: what `summary` returns.
        labels: of the optimizers, which are also those of the table.
        cells: how many there are.
        representable: how many of them float32 represents.
    """
    rows = counts.loc[[name for name in labels if name in counts.index]]
    headings = {
        "representable_best": f"of the {representable} starts that float32 represents",
        "representable_one": "of these with one rate for all",
        "plane_best": f"of all {cells} starts",
        "plane_one": "of all with one rate for all",
    }
    return pd.DataFrame(
        {
            "optimizer": [labels[str(name)] for name in rows.index],
            **{
                heading: [interval(row, column) for _, row in rows.iterrows()]
                for column, heading in headings.items()
            },
            "that rate": [f"{rate:g}" for rate in rows["one_rate"]],
            "diverged runs": [
                f"{row.diverged_runs} of {row.runs}" for row in rows.itertuples()
            ],
        }
    )


def interval(row: pd.Series, column: str) -> str:
    """A part of `summary` in %, in brackets the extremes over single seeds."""
    low, high = row[f"{column}_lowest"], row[f"{column}_highest"]
    return f"{100 * row[column]:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def _judged(chosen: pd.DataFrame, standard: dict[str, float]) -> pd.DataFrame:
    reached = chosen["test"] >= chosen["variant"].map(standard)
    return chosen.assign(rescued=reached).reset_index(drop=True)


def _judged_on_validation(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    table = rescue.medians(runs)
    standard = standards(runs, reference, "validation")
    return table.assign(rescued=table["validation"] >= table["variant"].map(standard))
