"""A folder of results: what was asked for, what came out, and what produced it.

    workdir/
      config.json      the complete configuration
      results.csv      one row a run
      provenance.json  for each session that wrote here: commit, versions, device

Files are replaced as a whole, so that an interruption at any moment leaves each either
as it was or complete.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


def claim(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
) -> Path:
    """Makes a folder the place of this configuration's results.

    Args:
        workdir: the folder; made if it is not there.
        config: the configuration, of what JSON can hold.
        may_change: settings at its top that are allowed to differ.

    Returns:
        The folder. ``config.json`` in it is the configuration it was first claimed for.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the folder holds results of another configuration; the message
            lists what differs.
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
    file = folder / "config.json"
    if file.exists():
        try:
            held = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file} is damaged ({error}); give another --workdir, or delete it."
            ) from error
        differences = _differences({**held, **{x: asked[x] for x in may_change}}, asked)
        if differences:
            more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"workdir {str(folder)!r} holds results of another config; give "
                "another --workdir, or delete it. " + "; ".join(differences[:5]) + more
            )
    else:
        write_whole(file, json.dumps(asked, indent=2) + "\n")
    return folder


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, each number with the digits that its dtype needs."""
    write_whole(file, table.to_csv(index=False, lineterminator="\n"))


def read_table(file: Path, dtypes: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Reads what `write_table` wrote; columns are float64 unless told otherwise.

    float32 numbers are written with the digits that float32 needs: only read as float32
    again are they the same, and written the same.
    """
    return pd.read_csv(file, dtype=dtypes)


class Session:
    """This process's record in ``provenance.json``, after those of earlier ones."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        """Adds a record with the commit, versions and device, and the given facts."""
        self._file = folder / "provenance.json"
        self._earlier = (
            json.loads(self._file.read_text()) if self._file.exists() else []
        )
        self._facts = _provenance()
        self.record(**facts)

    def record(self, **facts: Any) -> None:
        """Adds facts to the record. Of many hosts the first writes."""
        if jax.process_index():
            return
        self._facts.update(facts)
        sessions = [*self._earlier, self._facts]
        write_whole(self._file, json.dumps(sessions, indent=2) + "\n")


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
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _differences(held: Any, asked: Any, path: str = "config") -> list[str]:
    if isinstance(held, dict) and isinstance(asked, dict):
        missing = object()
        return [
            line
            for key in sorted({*held, *asked})
            for line in _differences(
                held.get(key, missing), asked.get(key, missing), f"{path}.{key}"
            )
        ]
    if held == asked:
        return []
    there, here = (
        "nothing" if type(x) is object else json.dumps(x) for x in (held, asked)
    )
    return [f"{path}: there {there}, asked for {here}"]
