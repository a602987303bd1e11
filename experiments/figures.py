"""Figures, tables and exercises of the LARS paper and of the book, by name.

    python -m experiments.figures --figure=NAME --workdir=results/figures

NAME is ``table1`` ... ``table5`` or ``figure1`` ... ``figure5`` of the paper, one of
the book's items (``book_...``), one of the rescue maps (``rescue``, the small one, and
``rescue_...``), several with commas between them, or ``paper``, ``book``, ``maps`` or
``all``. Writes NAME/NAME.csv, NAME/NAME.png and ``provenance.json`` to the workdir, and
prints what became of each claim. Results that docs/ has of the same settings are drawn
from there, at once; ``--recompute`` computes them anew. Interrupted, the same command
goes on where it stopped; figures that need the same runs share them.
``--quick`` makes a small version, in less than two minutes, that is not what the pages
show.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from tqdm import tqdm

from experiments import data as datasets, results
from experiments.cli import command
from experiments.results import pages
from experiments.studies import Item, Settings, book, paper, rescue
from experiments.training.devices import use_every_core

STUDIES = {"paper": paper, "book": book, "rescue": rescue}
"""By the names of their pages in docs/, and of the folders beside these."""

SOURCES: dict[str, Mapping[str, Item]] = {
    name: study.ITEMS for name, study in STUDIES.items()
}
ITEMS: dict[str, Item] = {
    name: item for items in SOURCES.values() for name, item in items.items()
}
GROUPS: dict[str, Mapping[str, Item]] = {
    "paper": paper.ITEMS,
    "book": book.ITEMS,
    "maps": rescue.ITEMS,
    "all": ITEMS,
}
"""What ``--figure`` calls several items."""

SIZES = {name: x for study in STUDIES.values() for name, x in study.SIZES.items()}
QUICK_SIZES = {name: x for study in STUDIES.values() for name, x in study.QUICK.items()}

DOCS = Path(__file__).parent.parent / "docs"
"""Where the results that pages show are kept, a folder an item of each source."""

SECONDS_BETWEEN_SAVES = 10
"""What a machine that fails may cost; an interrupt costs nothing."""

FIGURE = flags.DEFINE_list(
    "figure", None, "Names of figures, or paper, book, maps or all."
)
QUICK = flags.DEFINE_bool("quick", False, "A small version, in less than two minutes.")
RECOMPUTE = flags.DEFINE_bool(
    "recompute", False, "Compute also what docs/ has the results of."
)


def main(workdir: str) -> None:
    """Makes the figures that the flags ask for."""
    use_every_core()
    with command.reported_errors():
        names = chosen(FIGURE.value)
        for name in names:
            settings = settings_of(name, QUICK.value)
            kept = kept_place(workdir, name)
            for folder in {place(workdir, name), kept}:
                results.claim(folder, settings)
            if not RECOMPUTE.value:
                take_published(name, kept, settings)
            # A data set that is missing is named before anything is computed.
            if "dataset" in settings and not is_complete(name, kept, settings):
                datasets.load(settings["dataset"])
    check_interrupt = command.interrupt_on_signals()
    if QUICK.value:
        print("Quick versions: smaller, and not what the pages show and judge.")
    for name in names:
        make(name, workdir, settings_of(name, QUICK.value), check_interrupt)


def make(
    name: str,
    workdir: str,
    settings: Settings,
    check_interrupt: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Computes what is not there of one figure's table, draws and judges it."""
    item, folder = ITEMS[name], place(workdir, name)
    table = computed(name, kept_place(workdir, name), settings, check_interrupt)
    results.write_table(folder / f"{name}.csv", table)
    results.write_whole(
        folder / "provenance.json",
        (kept_place(workdir, name) / "provenance.json").read_text(),
    )
    item.draw(table, settings).savefig(folder / f"{name}.png", dpi=120)
    print(f"\n{name}: {item.title}")
    if item.overview is not None:
        print(f"\n{pages.markdown(item.overview(table, settings))}\n")
    for claim in item.claims(table, settings):
        print(f"  {claim.verdict:>13}: {claim.says}\n{'':17}{claim.found}")
    print(f"  Picture: {folder / name}.png   Table: {folder / name}.csv")
    return table


def take_published(name: str, folder: Path, settings: Settings) -> None:
    """Adds the parts of an item that docs/ has, and a folder has not, to the folder.

    It adds nothing if docs/ has no results of these settings.
    """
    (source,) = (source for source, items in SOURCES.items() if name in items)
    published = DOCS / source / name
    config = published / "config.json"
    as_read = json.loads(json.dumps(settings))  # without tuples
    if not config.exists() or json.loads(config.read_text()) != as_read:
        return
    rows = results.read_table(published / f"{name}.csv")
    held = held_parts(name, folder, settings)
    keys = list(ITEMS[name].cells(settings)[0])
    new = [part for key, part in _by_cell(rows, keys).items() if key not in held]
    if not new:
        return
    file, provenance = folder / "results.csv", folder / "provenance.json"
    old = [results.read_table(file)] if file.exists() else []
    results.write_table(file, pd.concat([*old, *new], ignore_index=True))
    sessions = json.loads(provenance.read_text()) if provenance.exists() else []
    sessions += json.loads((published / "provenance.json").read_text())
    results.write_whole(provenance, json.dumps(sessions, indent=2) + "\n")
    print(f"{name}: results of {published}; --recompute computes them anew.")


def held_parts(
    name: str, folder: Path, settings: Settings
) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The parts that a folder has of an item, by the values of their cells."""
    file = folder / "results.csv"
    table = results.read_table(file) if file.exists() else pd.DataFrame()
    if table.empty:
        return {}
    return _by_cell(table, list(ITEMS[name].cells(settings)[0]))


def is_complete(name: str, folder: Path, settings: Settings) -> bool:
    """Whether a folder has all parts of an item."""
    held = held_parts(name, folder, settings)
    return all(tuple(c.values()) in held for c in ITEMS[name].cells(settings))


def computed(
    name: str,
    folder: Path,
    settings: Settings,
    check_interrupt: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """The table of an item, of what the folder holds and what is computed now."""
    file, cells = folder / "results.csv", ITEMS[name].cells(settings)
    kept = results.read_table(file) if file.exists() else pd.DataFrame()
    held = held_parts(name, folder, settings)
    left = [cell for cell in cells if tuple(cell.values()) not in held]
    if left:
        session = results.Session(folder, parts_before=len(held))
        started, done = time.monotonic(), len(cells) - len(left)
        new: list[pd.DataFrame] = []

        def save() -> None:
            results.write_table(file, pd.concat([kept, *new], ignore_index=True))

        try:
            saved = started
            try:
                for cell, rows in _measured(name, left, len(cells), settings):
                    new.append(rows)
                    held[tuple(cell.values())] = rows
                    done += 1
                    if time.monotonic() > saved + SECONDS_BETWEEN_SAVES:
                        save()
                        saved = time.monotonic()
                    check_interrupt()
            finally:
                if new:
                    save()
        except KeyboardInterrupt:
            print(
                f"{done} of {len(cells)} parts are in {file}; the same command "
                "continues from there.",
                file=sys.stderr,
            )
            raise
        finally:
            session.record(
                parts_after=len(held), seconds=round(time.monotonic() - started, 1)
            )
    parts = [held[tuple(cell.values())] for cell in cells]
    # Columns that only other items of a shared table have are not this one's.
    return pd.concat(parts, ignore_index=True).dropna(axis="columns", how="all")


def _measured(
    name: str, left: Sequence[Mapping[str, Any]], total: int, settings: Settings
) -> Iterator[tuple[Mapping[str, Any], pd.DataFrame]]:
    """Computes parts, with progress; each row says how long its part took."""
    with tqdm(
        desc=name,
        total=total,
        initial=total - len(left),
        unit="part",
        dynamic_ncols=True,
    ) as bar:
        for cell in left:
            bar.set_postfix_str(", ".join(str(value) for value in cell.values()))
            started = time.monotonic()
            rows = _in_float64(ITEMS[name].measure(cell, settings))
            rows["part_seconds"] = round(time.monotonic() - started, 3)
            rows = rows.assign(**cell)
            yield cell, rows[[*cell, *rows.columns.drop(list(cell))]]
            bar.update()


def seconds_of(name: str, table: pd.DataFrame, settings: Settings) -> float:
    """How long the parts of a table took."""
    keys = list(ITEMS[name].cells(settings)[0])
    return float(table.groupby(keys)["part_seconds"].first().sum())


def settings_of(name: str, quick: bool) -> dict[str, Any]:
    """The sizes of an item; items that share a table share its sizes."""
    owner = ITEMS[name].kept_in or name
    return copy.deepcopy(SIZES[owner] | (QUICK_SIZES[owner] if quick else {}))


def chosen(names: Sequence[str] | None) -> list[str]:
    """The items that are asked for.

    Raises:
        ValueError: for a name that there is not.
    """
    known = ", ".join([*GROUPS, *ITEMS])
    if not names:
        raise ValueError(f"--figure=NAME is missing; NAME is one or more of {known}.")
    for name in names:
        if name not in ITEMS and name not in GROUPS:
            raise ValueError(f"--figure must be of {known}, got {name!r}.")
    return list(dict.fromkeys(x for name in names for x in GROUPS.get(name, [name])))


def place(workdir: str, name: str) -> Path:
    """Where the picture of an item goes."""
    return Path(workdir) / name


def kept_place(workdir: str, name: str) -> Path:
    """Where the rows of an item are kept: alone, or with those of others."""
    return Path(workdir) / (ITEMS[name].kept_in or name)


def _by_cell(table: pd.DataFrame, keys: list[str]) -> dict[tuple, pd.DataFrame]:
    return {tuple(key): rows for key, rows in table.groupby(keys, sort=False)}


def _in_float64(rows: pd.DataFrame) -> pd.DataFrame:
    """float32 numbers as the shortest decimals that give them, as a file has them."""
    return rows.assign(
        **{
            name: rows[name].astype(str).astype(np.float64)
            for name in rows.columns
            if rows[name].dtype == np.float32
        }
    )


if __name__ == "__main__":
    command.run_measurement(main)
