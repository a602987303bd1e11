"""Checks of what a person gives: errors of one line, with the value."""

import difflib
from collections.abc import Iterable
from typing import Any


def check_name(what: str, name: object, known: Iterable[object]) -> None:
    """Raises ValueError, with all names and the nearest, unless a name is known."""
    names = list(known)
    if name not in names:
        texts = list(map(str, names))
        raise ValueError(
            f"{what} must be one of {', '.join(texts)}, got {name!r}"
            f"{did_you_mean(str(name), texts)}"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: a question with the nearest name, if one is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is an int32 that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}."
        )
    if value >= 2**31:
        raise ValueError(
            f"{name} must be a whole number below 2**31 (an int32), got {value!r}."
        )


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
