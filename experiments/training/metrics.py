"""The metrics of a run: lines of JSON that can be continued, and TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from experiments.results import write_whole

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writes ``metrics.jsonl`` and TensorBoard events to a folder.

    The lines hold what the run computed and no times, so that a run that was
    interrupted writes the same file, to the byte, as one that was not. Speeds go to
    TensorBoard only.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Continues the files of a run from a step.

        Lines of later steps are removed: they are about to be made again. Of many
        hosts the first writes.

        Args:
            folder: where the files go.
            first_step: the number of steps that the run has made.
        """
        self._is_first_host = jax.process_index() == 0
        if not self._is_first_host:
            return
        file = folder / METRICS
        kept = [line for line in read_lines(file) if line["step"] <= first_step]
        write_whole(file, "".join(map(json_line, kept)))
        self._lines = file.open("a")
        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step + 1
        )

    def write(self, metrics: Mapping[str, Any], speeds: Mapping[str, float]) -> None:
        """Writes the metrics of ``metrics["step"]``."""
        if not self._is_first_host:
            return
        self._lines.write(json_line(metrics))
        self._lines.flush()
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in {**metrics, **speeds}.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        # One event for all, where `SummaryWriter.add_scalar` writes one for each.
        file_writer: Any = self._events.file_writer
        file_writer.add_summary(Summary(value=values), metrics["step"])
        self._events.flush()

    def sync(self) -> None:
        """Makes sure that what was written stays, whatever happens to the machine.

        To be called before a checkpoint that continues from these metrics.
        """
        if self._is_first_host:
            os.fsync(self._lines.fileno())


def json_line(metrics: Mapping[str, Any]) -> str:
    """One line of JSON, which has no NaN or infinity: these become strings."""
    return (
        json.dumps(
            {
                name: str(value)
                if isinstance(value, float) and not math.isfinite(value)
                else value
                for name, value in metrics.items()
            }
        )
        + "\n"
    )


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """The last line of a run that has come to its end, or None of one that has not."""
    lines = read_lines(folder / METRICS)
    return lines[-1] if lines and "finished" in lines[-1] else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The metrics of a file up to the first line that is cut off or damaged."""
    lines = []
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines(keepends=True):
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            break
        if not line.endswith("\n"):
            break
        lines.append(metrics)
    return lines
