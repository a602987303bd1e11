"""The pages of the paper and of the book: what was found, item by item, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import pandas as pd

from experiments.studies.item import Claim, Item, Verdict


class Entry(NamedTuple):
    """An item with what is to be said of its results."""

    name: str
    item: Item
    claims: Sequence[Claim]
    made: str  # by which command, how long, on what


def section_of(entry: Entry, folder: str) -> str:
    """The picture of an item, what it is, and the verdicts.

    Args:
        entry: the item.
        folder: where its picture is, as seen from the page.
    """
    return "\n".join(
        [
            f"### {entry.item.title}",
            "",
            entry.item.about,
            "",
            f"![{entry.item.title}]({folder}/{entry.name}/{entry.name}.png)",
            "",
            _table(entry.claims),
            "",
            entry.made,
        ]
    )


def overview(entries: Sequence[Entry]) -> str:
    """How many claims of each item have which verdict, with links to them."""
    verdicts = get_args(Verdict)
    return pd.DataFrame(
        [
            {
                "item": f"[{entry.item.title}](#{anchor_of(entry.item.title)})",
                "command's `--figure`": f"`{entry.name}`",
                **{
                    verdict: sum(claim.verdict == verdict for claim in entry.claims)
                    or ""
                    for verdict in verdicts
                },
            }
            for entry in entries
        ]
    ).to_markdown(index=False, disable_numparse=True)


def anchor_of(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _table(claims: Sequence[Claim]) -> str:
    rows: list[Mapping[str, str]] = [
        {
            "claim": _in_cell(claim.says),
            "found here": _in_cell(claim.found),
            "verdict": f"**{claim.verdict}**",
        }
        for claim in claims
    ]
    # Not aligned: cells are paragraphs.
    lines = [" | ".join(rows[0]), "|".join(["---"] * 3)]
    lines += [" | ".join(row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
