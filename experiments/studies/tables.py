"""Parts of tables, their rows, and the spread of their numbers."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

Cell = Mapping[str, Any]
"""A part of a table: the columns that name it, with their values."""


def combinations(**values: Iterable[Any]) -> list[Cell]:
    """A part for every combination of values; the last name changes first."""
    chosen = itertools.product(*values.values())
    return [dict(zip(values, row, strict=True)) for row in chosen]


def only(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows that have the given values in the columns of these names."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def with_range(middle: float, lowest: float, highest: float, form: str = ".3g") -> str:
    """A number, and in brackets its lowest and its highest, as the pages have them."""
    return f"{middle:{form}} ({lowest:{form}} to {highest:{form}})"


def mean_and_spread(values: Any, digits: int = 3) -> str:
    """The mean, and in brackets the lowest and the highest."""
    values = np.asarray(values, float)
    return with_range(values.mean(), values.min(), values.max(), f".{digits}g")


def median_and_spread(values: Any, digits: int = 3) -> str:
    """The median, and in brackets the lowest and the highest."""
    values = np.asarray(values, float)
    return with_range(np.median(values), values.min(), values.max(), f".{digits}g")
