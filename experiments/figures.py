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
from experiments.checks import check_name
from experiments.cli import command
from experiments.results import pages
from experiments.studies import Item, Settings, book, paper, rescue
from experiments.studies.item import datasets_of
from experiments.training.devices import use_every_core

STUDIES = {"paper": paper, "book": book, "rescue": rescue}
"""By the names of their pages in docs/, and of the folders beside these."""

SOURCES: dict[str, Mapping[str, Item]] = {
    name: study.ITEMS for name, study in STUDIES.items()
}
ITEMS: dict[str, Item] = {**paper.ITEMS, **book.ITEMS, **rescue.ITEMS}
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

flags.declare_key_flag("workdir")  # so that --help shows it, too
FIGURE = flags.DEFINE_list(
    "figure",
    None,
    f"One or more of {', '.join(ITEMS)}, or {', '.join(GROUPS)}, which are several.",
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
            files = [f"{name}.csv", f"{name}.png", "results.csv"]
            for folder in {place(workdir, name), kept}:
                results.claim(folder, settings, files=files)
            if not RECOMPUTE.value:
                take_published(name, kept, settings)
            # What is damaged or missing is named before anything is computed.
            if not is_complete(name, kept, settings):
                for dataset in datasets_of(settings):
                    datasets.load(dataset)
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
    results.write_picture(folder / f"{name}.png", item.draw(table, settings))
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
    if not config.exists() or results.read_json(config) != as_read:
        return
    rows = table_in(published / f"{name}.csv", name, settings)
    kept = held_table(name, folder, settings)
    held = by_cell(kept, name, settings)
    parts = by_cell(rows, name, settings)
    new = [part for key, part in parts.items() if key not in held]
    if not new:
        return
    whole = pd.concat([kept, *new], ignore_index=True)
    results.write_table(folder / "results.csv", whole)
    sessions = [*results.sessions_of(folder), *results.sessions_of(published)]
    results.write_json(folder / "provenance.json", sessions)
    print(f"{name}: results of {published}; --recompute computes them anew.")


def held_table(name: str, folder: Path, settings: Settings) -> pd.DataFrame:
    """The table that a folder has of an item, or that several items share."""
    file = folder / "results.csv"
    return table_in(file, name, settings) if file.exists() else pd.DataFrame()


def table_in(file: Path, name: str, settings: Settings) -> pd.DataFrame:
    """Reads the table of an item; ValueError if one of its parts has lost rows."""
    table = results.read_table(file, names=_keys(name, settings))
    for key, rows in by_cell(table, name, settings).items():
        # Tables of earlier code do not say how many rows a part has.
        counts = set(rows["part_rows"].dropna()) if "part_rows" in rows else set()
        if counts - {len(rows)}:
            part, had = ", ".join(map(str, key)), ", ".join(f"{x:g}" for x in counts)
            raise results.damaged(
                file, f"part {part} has {len(rows)} rows, and had {had}"
            )
    return table


def by_cell(
    table: pd.DataFrame, name: str, settings: Settings
) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The parts of a table, by the values of their cells."""
    if table.empty:
        return {}
    groups = table.groupby(_keys(name, settings), sort=False)
    return {tuple(key): rows for key, rows in groups}


def _keys(name: str, settings: Settings) -> list[str]:
    return list(ITEMS[name].cells(settings)[0])


def is_complete(name: str, folder: Path, settings: Settings) -> bool:
    """Whether a folder has all parts of an item."""
    held = by_cell(held_table(name, folder, settings), name, settings)
    return all(tuple(c.values()) in held for c in ITEMS[name].cells(settings))


def computed(
    name: str,
    folder: Path,
    settings: Settings,
    check_interrupt: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """The table of an item, of what the folder holds and what is computed now."""
    file, cells = folder / "results.csv", ITEMS[name].cells(settings)
    kept = held_table(name, folder, settings)
    held = by_cell(kept, name, settings)
    left = [cell for cell in cells if tuple(cell.values()) not in held]
    if left:
        session = results.Session(folder, parts_before=len(held))
        done, new = len(cells) - len(left), []

        def save() -> None:
            results.write_table(file, pd.concat([kept, *new], ignore_index=True))

        saved = time.monotonic()
        try:
            try:
                for cell, rows in _measured(name, left, len(cells), settings):
                    new.append(rows)
                    held[tuple(cell.values())] = rows
                    if time.monotonic() > saved + SECONDS_BETWEEN_SAVES:
                        save()
                        saved = time.monotonic()
                    check_interrupt()
            finally:
                if new:
                    save()
        except KeyboardInterrupt:
            print(
                f"{done + len(new)} of {len(cells)} parts are in {file}; the same "
                "command continues from there.",
                file=sys.stderr,
            )
            raise
        finally:
            session.record(parts_after=len(held))
    parts = [held[tuple(cell.values())] for cell in cells]
    # Columns that only other items of a shared table have are not this one's.
    return pd.concat(parts, ignore_index=True).dropna(axis="columns", how="all")


def _measured(
    name: str, left: Sequence[Mapping[str, Any]], total: int, settings: Settings
) -> Iterator[tuple[Mapping[str, Any], pd.DataFrame]]:
    """Computes parts, with progress; each row says how long its part took."""
    done = total - len(left)
    with tqdm(
        desc=name, total=total, initial=done, unit="part", dynamic_ncols=True
    ) as bar:
        for cell in left:
            bar.set_postfix_str(", ".join(str(value) for value in cell.values()))
            started = time.monotonic()
            rows = _in_float64(ITEMS[name].measure(cell, settings))
            seconds = round(time.monotonic() - started, 3)
            rows = rows.assign(part_seconds=seconds, part_rows=len(rows), **cell)
            yield cell, rows[[*cell, *rows.columns.drop(list(cell))]]
            bar.update()


def seconds_of(name: str, table: pd.DataFrame, settings: Settings) -> float:
    """How long the parts of a table took."""
    seconds = table.groupby(_keys(name, settings))["part_seconds"]
    return float(seconds.first().sum())


def settings_of(name: str, quick: bool) -> dict[str, Any]:
    """The sizes of an item; items that share a table share its sizes."""
    owner = ITEMS[name].kept_in or name
    return copy.deepcopy(SIZES[owner] | (QUICK_SIZES[owner] if quick else {}))


def chosen(names: Sequence[str] | None) -> list[str]:
    """The items that are asked for; ValueError for a name that there is not."""
    known = [*GROUPS, *ITEMS]
    if not names:
        raise ValueError(
            f"--figure=NAME is missing; NAME is one or more of {', '.join(known)}."
        )
    for name in names:
        check_name("--figure", name, known)
    return list(dict.fromkeys(x for name in names for x in GROUPS.get(name, [name])))


def place(workdir: str, name: str) -> Path:
    """Where the picture of an item goes."""
    return Path(workdir) / name


def kept_place(workdir: str, name: str) -> Path:
    """Where the rows of an item are kept: alone, or with those of others."""
    return Path(workdir) / (ITEMS[name].kept_in or name)


def _in_float64(rows: pd.DataFrame) -> pd.DataFrame:
    """float32 numbers as the shortest decimals that give them, as a file has them."""
    narrow = rows.select_dtypes(np.float32)
    return rows.assign(**narrow.astype(str).astype(np.float64))


if __name__ == "__main__":
    command.run_measurement(main)
