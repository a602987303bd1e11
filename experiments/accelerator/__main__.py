"""Measures what this package does on an accelerator, in minutes.

    python -m experiments.accelerator --workdir=results/accelerator \
        [--minutes=8] [--data=cifar10.npz] [--only=numbers,steps]

Takes the JAX that is installed, and needs only jax, flax, optax and NumPy. Each part
runs in a process of its own, within its share of the time, and writes PART.csv after
every row and PART.json, with the device and the versions. ``--data`` is CIFAR-10 as one
file: uint8 ``train_images`` [50000, 32, 32, 3] and ``test_images``, ``train_labels``
and ``test_labels``. Without an accelerator, or with ``--small``, sizes are small.
"""

import csv
import importlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

PARTS = {
    "numbers": 2.0,
    "steps": 4.0,
    "resnet": 3.0,
    "rescue": 2.0,
    "resume": 1.5,
}
"""The parts, modules of this package, in order; and what share of the time that is left
each may take, relative to those after it."""

TITLES = {
    "numbers": "Numbers beside float64",
    "steps": "What a step costs",
    "resnet": "ResNet-50",
    "rescue": "A small rescue map as one sweep",
    "resume": "Killed and resumed",
}

_GRACE = 10
"""Seconds from the request to end until a process is killed."""

WORKDIR = flags.DEFINE_string("workdir", None, "Where tables go.")
MINUTES = flags.DEFINE_float("minutes", 8.0, "How long all parts may take.", 0.1)
DATA = flags.DEFINE_string("data", None, "CIFAR-10 as one file of NumPy.")
ONLY = flags.DEFINE_list("only", None, f"Only some of {', '.join(PARTS)}.")
SMALL = flags.DEFINE_bool("small", False, "Small sizes, to try the command.")
_PART = flags.DEFINE_string("part", None, "Runs one part in this process.")


def main(arguments: Sequence[str]) -> None:
    """Runs the parts one after the other, or one of them."""
    folder = _checked_workdir(arguments)
    if _PART.value:
        run_part(_PART.value, folder, SMALL.value, DATA.value)
        return
    ended = time.monotonic() + 60 * MINUTES.value
    names, states = ONLY.value or list(PARTS), {}
    for i, name in enumerate(names):
        left = ended - time.monotonic()
        share = PARTS[name] / sum(PARTS[other] for other in names[i:])
        _say(f"{TITLES[name]}: {name}.csv, at most {left * share:.0f} s")
        states[name] = _start(name, left * share)
        _say(f"{name}: {states[name]}\n")
    _write(folder / "parts.json", json.dumps(states, indent=2) + "\n")
    if any(state.startswith("failed") for state in states.values()):
        sys.exit(1)


def _checked_workdir(arguments: Sequence[str]) -> Path:
    """Refuses what cannot be run, before anything starts."""
    problem = None
    for name in ONLY.value or ():
        if name not in PARTS:
            problem = f"--only must be some of {', '.join(PARTS)}, got {name!r}."
    if len(arguments) > 1:
        problem = f"{arguments[1]!r} is no flag; flags begin with --."
    if not WORKDIR.value:
        problem = "--workdir=FOLDER is missing: the folder that tables are written to."
    if DATA.value and not Path(DATA.value).is_file():
        problem = f"--data={DATA.value} is no file; give CIFAR-10 as one .npz."
    folder = Path(WORKDIR.value or ".")
    if problem is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / ".probe", "")
            (folder / ".probe").unlink()
        except OSError as error:
            problem = f"--workdir={folder} cannot be written ({error.strerror})."
    if problem:
        sys.exit(f"error: {problem}")
    return folder


def _start(name: str, seconds: float) -> str:
    """Runs a part in a process of its own; returns what became of it."""
    command = [sys.executable, "-m", __spec__.name.removesuffix(".__main__")]
    given = [x for x in sys.argv[1:] if not x.startswith("--only")]
    # Parts follow each other on the device, and "resume" has two processes at a time.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen([*command, *given, f"--part={name}"], env=environment)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"stopped after {seconds:.0f} s"
    except BaseException:
        _end(process)
        raise
    return "complete" if code == 0 else f"failed with code {code}"


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_part(name: str, folder: Path, small: bool, data: str | None) -> None:
    """Computes the table of a part, and writes it after each row."""
    import jax

    started = time.monotonic()
    device = jax.devices()[0]
    small = small or device.platform == "cpu"
    about = {
        "part": name,
        "small": small,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "driver": _driver(),
            "runtime": device.client.platform_version.splitlines()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{x: importlib.metadata.version(x) for x in ("jax", "flax", "optax")},
        },
    }
    _write(folder / f"{name}.json", json.dumps(about, indent=2) + "\n")
    part = importlib.import_module(f"experiments.accelerator.{name}")
    found = []
    for row in part.rows(small, Path(data) if data else None):
        found.append({column: row.get(column, "") for column in part.COLUMNS})
        _write(folder / f"{name}.csv", as_csv(part.COLUMNS, found))
        _say("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()))
    about["seconds"] = round(time.monotonic() - started, 1)
    _write(folder / f"{name}.json", json.dumps(about, indent=2) + "\n")


def as_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A table as text, with a line of the columns' names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(file: Path, content: str) -> None:
    """Writes a file so that it is never a part of what it was or will be."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(content)
    partial.replace(file)


def _driver() -> str | None:
    """The version of NVIDIA's driver, if there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[0] or None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    app.run(main)
