"""Names that a person gives, and the one that was meant."""

import difflib
from collections.abc import Iterable


def check_name(what: str, name: object, known: Iterable[str]) -> None:
    """Raises ValueError, with all names and the nearest, unless a name is known."""
    names = list(known)
    if name not in names:
        raise ValueError(
            f"{what} must be one of {', '.join(names)}, got {name!r}"
            f"{did_you_mean(str(name), names)}"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: a question with the nearest name, if one is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."
