"""Measures what this package does on an accelerator, in minutes.

    python -m experiments.accelerator --workdir=results/accelerator \
        [--minutes=8] [--only=numbers,steps]

Takes the JAX that is installed, and needs only jax, flax (with its Orbax), optax and
NumPy. Each part runs in a process of its own, within its share of the time, and writes
PART.csv after every row. PART.json has the device and the versions, and parts.json how
each part ended. Without an accelerator, or with ``--small``, sizes are small.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.accelerator.parts import (
    PARTS,
    TITLES,
    as_csv,
    file_of,
    run_part,
    say,
    write,
)

GRACE = 10.0
"""Seconds from the request to end until a process is killed."""

LEAST = 5.0
"""Seconds without which a part is not begun."""

DEVICE = "device"
"""The process that says what the device is, and holds it no longer than that."""

WORKDIR = flags.DEFINE_string("workdir", None, "Where tables go.")
MINUTES = flags.DEFINE_float("minutes", 8.0, "How long all parts may take.", 0.1)
ONLY = flags.DEFINE_list("only", None, f"Only some of {', '.join(PARTS)}.")
SMALL = flags.DEFINE_bool("small", False, "Small sizes, to try the command.")
_PART = flags.DEFINE_enum(
    "part", None, [DEVICE, *PARTS], "Internal: what this process is for."
)


def main(arguments: Sequence[str]) -> None:
    """Runs the parts one after the other; or is the process of one of them."""
    if _PART.value == DEVICE:
        say(json.dumps(_device()))
        return
    folder = _checked_workdir(arguments)
    if _PART.value:
        about = json.loads(file_of(folder, _PART.value, "json").read_text())
        run_part(_PART.value, folder, about)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    deadline = time.monotonic() + 60 * MINUTES.value
    names = ONLY.value or list(PARTS)
    about = json.loads(_answer(DEVICE, 60 * MINUTES.value).splitlines()[-1])
    about["small"] = SMALL.value or about["device"]["platform"] == "cpu"
    held = folder / "parts.json"
    states = json.loads(held.read_text()) if held.exists() else {}
    for i, name in enumerate(names):
        left = deadline - GRACE - time.monotonic()
        seconds = left * PARTS[name] / sum(PARTS[other] for other in names[i:])
        if seconds < LEAST:
            states[name] = "not begun: no time left"
        else:
            say(f"{TITLES[name]}: {name}.csv, at most {seconds:.0f} s")
            # So that no table of an earlier run stands beside this device.
            columns = importlib.import_module(f"{__package__}.{name}").COLUMNS
            write(file_of(folder, name, "csv"), as_csv(columns, []))
            write(file_of(folder, name, "json"), json.dumps(about, indent=2) + "\n")
            states[name] = _ended(name, seconds)
        say(f"{name}: {states[name]}\n")
        write(held, json.dumps(states, indent=2) + "\n")
    if any(states[name].startswith("failed") for name in names):
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
    folder = Path(WORKDIR.value or ".")
    if problem is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / ".probe", "")
            (folder / ".probe").unlink()
        except OSError as error:
            problem = f"--workdir={folder} cannot be written ({error.strerror})."
    if problem:
        sys.exit(f"error: {problem}")
    return folder


def _process(part: str, **given: Any) -> subprocess.Popen:
    """Starts this command anew for a part, as the leader of its own group."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        # What is right is computed there, in float64.
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"
    command = [sys.executable, "-m", __package__, *sys.argv[1:], f"--part={part}"]
    return subprocess.Popen(command, env=environment, start_new_session=True, **given)


def _answer(part: str, seconds: float) -> str:
    """What the process of a part prints."""
    process = _process(part, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate(timeout=seconds)
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        sys.exit("error: JAX finds no device; what it says is above.")
    return printed


def _ended(part: str, seconds: float) -> str:
    """Runs the process of a part; returns how it ended."""
    process = _process(part)
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
    """Ends a process and those that it has started."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def _device() -> dict[str, Any]:
    """What is measured, and with which versions."""
    import jax

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "driver": _driver(),
            "runtime": " ".join(device.client.platform_version.split()),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, if there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    return None if found.returncode else found.stdout.split("\n")[0]


if __name__ == "__main__":
    app.run(main)
