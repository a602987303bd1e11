"""Pages whose tables are made by a command: the prose is written, the numbers are not.

A page marks the places of its tables:

    <!-- begin NAME -->
    | what is here is replaced |
    <!-- end NAME -->
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    """Replaces what stands between the marks of a page by the blocks of their names.

    Raises:
        ValueError: if the page marks a place for which there is no text.
    """
    missing = blocks_of(page).keys() - blocks.keys()
    if missing:
        raise ValueError(f"no text for the marks {', '.join(sorted(missing))}.")
    return _BLOCK.sub(
        lambda m: f"{m['begin']}{blocks[m['name']].strip()}\n{m['end']}", page
    )


def provenance(what: str, sessions: Sequence[Mapping[str, Any]]) -> str:
    """One sentence of all the sessions that made something, which begins with what.

    Raises:
        ValueError: if a session's code is not known: results that no commit can give
            again are not published.
    """
    for session in sessions:
        if session["commit"] is None or session["uncommitted_changes"]:
            raise ValueError(
                f"the session of {session['started']} ran on code that is in no "
                "commit: commit, delete the results and make them again."
            )

    def all_of(describe: Callable[[Mapping[str, Any]], str]) -> str:
        return " and ".join(dict.fromkeys(map(describe, sessions)))

    devices = all_of(
        lambda s: "{count} {platform} device(s), {kind}".format(**s["device"])
    )
    versions = all_of(lambda s: ", ".join(f"{k} {v}" for k, v in s["versions"].items()))
    commits = all_of(lambda s: s["commit"][:10])
    notes = dict.fromkeys(  # added by whoever ran it
        f" Commit {s['commit'][:10]}: {s['note']}." for s in sessions if "note" in s
    )
    return f"{what} on {devices}; {versions}; commit {commits}.{''.join(notes)}"
