"""What every figure is: a computation in parts, a picture, and verdicts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.tables import (
    mean_and_spread as mean_and_spread,
    median_and_spread as median_and_spread,
)

Settings = Mapping[str, Any]
"""The sizes of an item, from the ``settings.py`` of its study."""

Verdict = Literal["confirmed", "partly", "not confirmed", "misprint", "untested"]


class Claim(NamedTuple):
    """A statement of the source, and what became of it."""

    says: str  # the statement, in words of this code's own; Markdown in one line
    found: str  # what the table says, with numbers and spread; Markdown in one line
    verdict: Verdict


class Item(NamedTuple):
    """A figure, a table or an exercise that one command computes, draws and judges."""

    title: str
    about: str  # what the source shows, and what is computed here; Markdown
    cells: Callable[[Settings], Sequence[Mapping[str, Any]]]
    """The parts that the table is computed in, each named by a few values. The names of
    the values are the first columns of the table."""
    measure: Callable[[Mapping[str, Any], Settings], pd.DataFrame]
    """From a part to its rows, without the columns that name the part."""
    draw: Callable[[pd.DataFrame, Settings], Figure]
    """Draws the whole table."""
    claims: Callable[[pd.DataFrame, Settings], list[Claim]]
    """What the whole table says of each claim. Verdicts follow from numbers by a rule,
    or, of what only other sources can tell, from what these print."""
    kept_in: str | None = None
    """The name of a table that several items share; None is a table of its own."""
    overview: Callable[[pd.DataFrame, Settings], pd.DataFrame] | None = None
    """The table in short, for people."""


def datasets_of(settings: Settings) -> list[str]:
    """The data sets that an item uses: its own, and those of its variants."""
    variants = settings.get("variants", {}).values()
    names = [x["dataset"] for x in (settings, *variants) if "dataset" in x]
    return list(dict.fromkeys(names))


def judged(holds: Sequence[bool]) -> Verdict:
    """The verdict on a claim of several parts: all of them hold, some, or none."""
    if all(holds):
        return "confirmed"
    return "partly" if any(holds) else "not confirmed"


def judge(says: str, found: str, *holds: bool | np.bool_) -> Claim:
    """The claim, with the verdict of `judged`."""
    return Claim(says, found, judged([bool(x) for x in holds]))
