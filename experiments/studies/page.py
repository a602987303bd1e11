"""The pages of the paper and of the book: what was found, item by item, as Markdown."""

from collections import Counter
from collections.abc import Sequence
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
    """The picture of an item in a folder, what it is, and the verdicts."""
    name, item = entry.name, entry.item
    picture = f"![{item.title}]({folder}/{name}/{name}.png)"
    table = _table(entry.claims)
    return "\n\n".join([f"### {item.title}", item.about, picture, table, entry.made])


def overview(entries: Sequence[Entry]) -> str:
    """How many claims of each item have which verdict, with links to them."""
    rows = []
    for name, item, claims, _ in entries:
        row = {
            "item": f"[{item.title}](#{anchor_of(item.title)})",
            "command's `--figure`": f"`{name}`",
        }
        counts = Counter(claim.verdict for claim in claims)
        rows.append(row | {name: counts[name] or "" for name in get_args(Verdict)})
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def anchor_of(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _table(claims: Sequence[Claim]) -> str:
    # Not aligned: cells are paragraphs.
    lines = ["claim | found here | verdict", "---|---|---"]
    for claim in claims:
        says, found = _in_cell(claim.says), _in_cell(claim.found)
        lines.append(f"{says} | {found} | **{claim.verdict}**")
    return "\n".join(f"| {line} |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
