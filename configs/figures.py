"""Sizes of the figures of the paper and of the book: the full ones, and quick ones.

    python -m experiments.figures --figure=NAME --workdir=results/figures [--quick]

The pages docs/paper.md and docs/book.md state the time that each full one took.
"""

import copy
from typing import Any

from experiments.studies.book import settings as book
from experiments.studies.paper import settings as paper
from experiments.studies.rescue import settings as plane

SIZES: dict[str, dict[str, Any]] = {**paper.SIZES, **book.SIZES, **plane.SIZES}
QUICK: dict[str, dict[str, Any]] = {**paper.QUICK, **book.QUICK, **plane.QUICK}


def settings(name: str, quick: bool = False) -> dict[str, Any]:
    """The settings of an item: the full ones, or with those of the quick version."""
    return copy.deepcopy({**SIZES[name], **(QUICK[name] if quick else {})})
