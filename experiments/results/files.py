"""A folder of results: what was asked for, what came out, and what produced it.

    workdir/
      config.json      the complete configuration
      results.csv      one row a run
      provenance.json  for each session that wrote here: commit, versions, device

Files are replaced as a whole, so that an interruption at any moment leaves each either
as it was or complete. One process at a time writes to a folder.
"""

import contextlib
import csv
import datetime
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from matplotlib.figure import Figure

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


def claim(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Path:
    """Makes a folder the place of this configuration's results, and of this process.

    Until the process ends, however it does, no other can claim the folder.

    Args:
        workdir: the folder; made if it is not there.
        config: the configuration, of what JSON can hold.
        may_change: settings at its top that are allowed to differ.
        files: names that results are written to, to find out now if they cannot be.

    Returns:
        The folder. ``config.json`` in it is the configuration it was first claimed for.

    Raises:
        OSError: if the folder cannot be written, or another process has it.
        ValueError: if the folder holds results of another configuration, with what
            differs; or if its ``config.json`` or ``provenance.json`` is damaged.
    """
    folder = Path(workdir)
    asked = json.loads(json.dumps(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"workdir {str(folder)!r} cannot be written ({error.strerror}); give "
            "--workdir a folder that can."
        ) from error
    _lock(folder)
    for name in ("config.json", "provenance.json", *files):
        if (folder / name).is_dir():
            raise OSError(
                f"{folder / name} is a folder, and a file is to be written there; move "
                "it away, or give another --workdir."
            )
    sessions_of(folder)
    file = folder / "config.json"
    if file.exists():
        held = read_json(file)
        differences = _differences({**held, **{x: asked[x] for x in may_change}}, asked)
        if differences:
            more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"workdir {str(folder)!r} holds results of another config; give "
                "another --workdir, or delete it. " + "; ".join(differences[:5]) + more
            )
    else:
        write_json(file, asked)
    return folder


_locked: set[Path] = set()


def _lock(folder: Path) -> None:
    """Has a folder until this process ends, and the system gives it back."""
    file = folder.resolve() / ".lock"
    if file in _locked:
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)  # stays open
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        holder = file.read_text().strip() or "another process"
        raise OSError(
            f"workdir {str(folder)!r} is being written by {holder}; wait until it has "
            "ended, or give another --workdir."
        ) from error
    except OSError:
        pass  # a file system that has no locks
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _locked.add(file)


def read_json(file: Path) -> Any:
    """What a JSON file holds; ValueError, with its name, if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(file, error) from error


def damaged(file: Path, problem: object) -> ValueError:
    """The error of a file that cannot be what was written, with what to do."""
    return ValueError(
        f"{file} is damaged ({problem}); restore it from a copy, or delete it or give "
        "another --workdir to make the results again."
    )


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with writing(file):
            data = content.encode() if isinstance(content, str) else content
            partial.write_bytes(data)
            partial.replace(file)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_picture(file: Path, figure: Figure) -> None:
    """Writes a picture as PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_whole(file, content.getvalue())


def write_json(file: Path, content: Any) -> None:
    """Writes what JSON can hold."""
    write_whole(file, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Gives an OSError the name of what cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file} cannot be written ({error.strerror}); make room or mend its "
            "folder, then give the same command again: what is there stays."
        ) from error


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, each number with the digits that its dtype needs."""
    write_whole(file, table.to_csv(index=False, lineterminator="\n"))


def read_table(file: Path, names: Sequence[str] = ()) -> pd.DataFrame:
    """Reads what `write_table` wrote.

    Raises:
        ValueError: if the file is cut off or damaged, with its name: a line that does
            not end, has fewer or more fields than the first, or has a broken number;
            or if one of the columns `names` is missing.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        rows = list(csv.reader(text.splitlines(keepends=True), strict=True))
        if not text.endswith("\n"):
            raise ValueError(f"line {len(rows)}, the last, does not end")
        for number, row in enumerate(rows, start=1):
            if len(row) != len(rows[0]):
                raise ValueError(
                    f"line {number} has {len(row)} fields, not {len(rows[0])}"
                )
        table = pd.read_csv(file)
    except (ValueError, csv.Error) as error:
        raise damaged(file, error) from error
    for name in names:
        if name not in table:
            raise damaged(file, f"it has no column {name!r}")
    for name in table.select_dtypes(exclude=["number", "bool"]):
        values = table[name].dropna().astype(str)
        is_text = pd.to_numeric(values, errors="coerce").isna()
        # A word among numbers has a meaning; what has digits was a number.
        broken = values[is_text & values.str.contains(r"\d")]
        if not is_text.all() and len(broken):
            raise damaged(file, f"column {name!r} has {broken.iloc[0]!r}")
    return table


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """The records of ``provenance.json``; none if there is no such file."""
    file = folder / "provenance.json"
    sessions = read_json(file) if file.exists() else []
    if not isinstance(sessions, list) or not all(isinstance(x, dict) for x in sessions):
        raise damaged(file, "it is no list of sessions")
    return sessions


class Session:
    """This process's record in ``provenance.json``, after those of earlier ones."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        """Adds a record with the commit, versions and device, and the given facts."""
        self._started = time.monotonic()
        self._file = folder / "provenance.json"
        self._earlier = sessions_of(folder)
        self._facts = _provenance()
        self.record(**facts)

    def record(self, **facts: Any) -> None:
        """Adds facts to the record, and the seconds until now.

        Of many hosts the first writes.
        """
        if jax.process_index():
            return
        seconds = round(time.monotonic() - self._started, 1)
        self._facts |= {**facts, "seconds": seconds}
        write_json(self._file, [*self._earlier, self._facts])


@contextlib.contextmanager
def measured_anew(folder: Path, name: str) -> Iterator[Path]:
    """Yields the file of a table that is measured anew, and records the session."""
    file = folder / f"{name}.csv"
    for earlier in (file, folder / "provenance.json"):
        earlier.unlink(missing_ok=True)
    session = Session(folder)
    try:
        yield file
    finally:
        session.record()


def _provenance() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _git("status", "--porcelain", "-uno") not in ("", None),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
        },
        "device": {
            "platform": device.platform,
            "kind": _processor() if device.platform == "cpu" else device.device_kind,
            "count": jax.device_count(),
        },
    }


def _command() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join([program, *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    """What git says of this source tree; None where there is no git or no tree."""
    try:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


_MISSING = object()


def _differences(held: Any, asked: Any, path: str = "config") -> list[str]:
    if isinstance(held, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*held, *asked})
            for line in _differences(
                held.get(key, _MISSING), asked.get(key, _MISSING), f"{path}.{key}"
            )
        ]
    if held == asked:
        return []
    texts = ["nothing" if x is _MISSING else json.dumps(x) for x in (held, asked)]
    return [f"{path}: there {texts[0]}, asked for {texts[1]}"]
