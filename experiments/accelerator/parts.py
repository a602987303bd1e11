"""The parts, and how each computes and writes its table."""

import csv
import importlib
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = {"numbers": 3.0, "steps": 4.0, "resnet": 3.0, "rescue": 2.0, "resume": 1.5}
"""The parts, modules of this package, in order; and what share of the time that is left
each may take, relative to those after it."""

TITLES = {
    "numbers": "Numbers beside float64",
    "steps": "What a step costs",
    "resnet": "ResNet-50",
    "rescue": "A small rescue map as one sweep",
    "resume": "Killed and resumed",
}


def run_part(name: str, folder: Path, about: dict[str, Any]) -> None:
    """Computes the table of a part, and writes it after each row."""
    started, found = time.monotonic(), []
    part = importlib.import_module(f"{__package__}.{name}")
    for row in part.rows(about["small"]):
        found.append(row)
        write(file_of(folder, name, "csv"), as_csv(part.COLUMNS, found))
        say("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()))
    about = {**about, "seconds": round(time.monotonic() - started, 1)}
    write(file_of(folder, name, "json"), json.dumps(about, indent=2) + "\n")


def as_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A table as text, with a line of the columns' names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def file_of(folder: Path, name: str, ending: str) -> Path:
    """One of the files of a part."""
    return folder / f"{name}.{ending}"


def write(file: Path, content: str) -> None:
    """Writes a file so that it is never a part of what it was or will be."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(content)
    partial.replace(file)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """Prints at once, also into a pipe."""
    print(text, flush=True)
