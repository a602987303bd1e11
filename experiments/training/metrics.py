"""The metrics of a run: lines of JSON that can be continued, and TensorBoard."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments.results import write_whole, writing

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsWriter:
    """Writes ``metrics.jsonl`` and TensorBoard events to a folder.

    The lines hold what the run computed and no times, so that a run that was
    interrupted writes the same file, to the byte, as one that was not. Speeds go to
    TensorBoard only.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Continues the files of a run that has made so many steps.

        Lines of later steps are removed: they are about to be made again. Of many
        hosts the first writes.
        """
        self._is_first_host = jax.process_index() == 0
        if not self._is_first_host:
            return
        file = folder / METRICS
        kept = [line for line in read_lines(file) if line["step"] <= first_step]
        write_whole(file, "".join(map(json_line, kept)))
        self._folder = folder
        self._lines = file.open("a")
        with writing(folder / TENSORBOARD):
            (folder / TENSORBOARD).mkdir(exist_ok=True)
            # `SummaryWriter` has a thread, in which a full disk would go unnoticed.
            self._events = EventsWriter(str(folder / TENSORBOARD / "events"))
        started = SessionLog(status=SessionLog.START)  # later steps are made again
        self._add_event(step=first_step + 1, session_log=started)

    def write(self, metrics: Mapping[str, Any], speeds: Mapping[str, float]) -> None:
        """Writes the metrics of ``metrics["step"]``."""
        if not self._is_first_host:
            return
        with writing(self._folder / METRICS):
            self._lines.write(json_line(metrics))
            self._lines.flush()
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in {**metrics, **speeds}.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._add_event(step=metrics["step"], summary=Summary(value=values))

    def sync(self) -> None:
        """Makes what was written safe, before a checkpoint that continues from it."""
        if self._is_first_host:
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Closes the files; all that was written to them has been flushed."""
        if self._is_first_host:
            with contextlib.suppress(OSError):  # the disk that a write has named
                self._lines.close()
            with contextlib.suppress(OSError):
                self._events.close()

    def _add_event(self, **content: Any) -> None:
        with writing(self._folder / TENSORBOARD):
            self._events.write_event(Event(wall_time=time.time(), **content))
            self._events.flush()


def check_lines(folder: Path, steps: Iterable[int]) -> None:
    """Raises ValueError unless ``metrics.jsonl`` has the lines of some steps."""
    file = folder / METRICS
    held = {line["step"] for line in read_lines(file)}
    missing = [step for step in steps if step not in held]
    if missing:
        raise ValueError(
            f"{file} lacks the metrics of step {missing[0]}, and the checkpoint comes "
            "after it; restore the file from a copy, or delete the folder "
            f"{folder / 'checkpoints'} to train again from the start."
        )


def json_line(metrics: Mapping[str, Any]) -> str:
    """One line of JSON, which has no NaN or infinity: these become strings."""
    known = {
        name: str(x) if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in metrics.items()
    }
    return json.dumps(known) + "\n"


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """The last line of a run that has come to its end, or None of one that has not."""
    lines = read_lines(folder / METRICS)
    return lines[-1] if lines and "finished" in lines[-1] else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The metrics of a file up to the first line that is cut off or damaged."""
    lines = []
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.splitlines(keepends=True):
        try:
            metrics = json.loads(line)
            metrics["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        if not line.endswith("\n"):
            break
        lines.append(metrics)
    return lines
