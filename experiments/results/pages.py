"""Pages whose tables are made by a command: the prose is written, the numbers are not.

A page marks the places of its tables:

    <!-- begin NAME -->
    | what is here is replaced |
    <!-- end NAME -->
"""

import re
from collections.abc import Mapping

import pandas as pd

_BLOCK = re.compile(
    r"(?P<begin><!-- begin (?P<name>[\w-]+) -->\n)(?P<body>.*?)"
    r"(?P<end><!-- end (?P=name) -->)",
    re.DOTALL,
)


def blocks_of(page: str) -> dict[str, str]:
    """What stands between the marks of a page, by name."""
    return {m["name"]: m["body"].strip("\n") for m in _BLOCK.finditer(page)}


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, cells as they are."""
    return table.to_markdown(index=False, disable_numparse=True)


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """Replaces what stands between the marks of a page.

    Args:
        page: the text of the page.
        blocks: the new text for each name that the page has; others are not used.

    Raises:
        ValueError: if the page marks a place for which there is no text.
    """
    missing = blocks_of(page).keys() - blocks.keys()
    if missing:
        raise ValueError(f"no text for the marks {', '.join(sorted(missing))}.")
    return _BLOCK.sub(
        lambda m: f"{m['begin']}{blocks[m['name']].strip()}\n{m['end']}", page
    )
