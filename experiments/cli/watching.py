"""What a person sees of a long run, and how they stop it."""

import collections
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn, Self

import jax
from tqdm import tqdm

from experiments.training.sharding import on_any_host


class Display:
    """A progress bar with loss, accuracy, images a second and the time left."""

    def __init__(self, num_steps: int, first_step: int, batch_size: int) -> None:
        """Shows the bar, on the first host only."""
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=jax.process_index() > 0,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        self._batch_size = batch_size
        self._ahead: collections.deque[jax.Array] = collections.deque()
        self._step, self._timed_from = first_step, first_step
        self._since: float | None = None
        self._shown: dict[str, str] = {}

    def reached(self, step: int, loss: jax.Array) -> None:
        """Counts the steps that were sent to the devices; the loss is that of the last.

        The host runs two calls ahead, so that the devices never wait for it, and no
        more, so that the bar tells the truth and batches do not pile up.
        """
        self._ahead.append(loss)
        if len(self._ahead) > 2:
            self._ahead.popleft().block_until_ready()
        self._bar.update(step - self._step)
        self._step = step
        if self._since is None:  # the first call, which is compiled before it is made
            loss.block_until_ready()
            self._timed_from, self._since = step, time.perf_counter()

    def speed(self, loss: jax.Array) -> dict[str, float]:
        """Images a second since the last metrics, up to the step of this loss."""
        loss.block_until_ready()
        steps = self._step - self._timed_from
        if not steps or self._since is None:
            return {}
        seconds = time.perf_counter() - self._since
        return {"images_per_second": steps * self._batch_size / seconds}

    def show(self, line: dict[str, Any], speed: dict[str, float]) -> None:
        """Shows metrics beside the bar. From here on the speed is measured anew."""
        self._shown["loss"] = f"{line['train/batch_loss']:.3g}"
        if "validation/accuracy" in line:
            self._shown["accuracy"] = f"{line['validation/accuracy']:.1%}"
        for images_per_second in speed.values():
            self._shown["images/s"] = f"{images_per_second:.0f}"
        self._bar.set_postfix(self._shown, refresh=False)  # with the next update
        self._timed_from, self._since = self._step, time.perf_counter()

    def says(self, doing: str) -> None:
        """Says what is done now, before the bar."""
        self._bar.set_description(doing)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


class Interruption:
    """Turns SIGTERM and Ctrl-C into a question that the loop asks between steps.

    With many hosts, all of them stop after the same step, once any was told to. (JAX
    can find such a step as well, by its `reached_preemption_sync_point`, but only one
    that comes right after, which with many steps a call is none.)
    """

    def __enter__(self) -> Self:
        self._signal: int | None = None
        self._old = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def is_requested(self, hosts_meet: bool) -> bool:
        """Whether the run should stop now.

        Many hosts ask each other only where they wait for each other anyway.
        """
        if jax.process_count() > 1 and not hosts_meet:
            return False
        return on_any_host(self._signal is not None)

    def leave(self, message: str) -> NoReturn:
        """Ends the process: with status 0 after SIGTERM, as a scheduler expects."""
        if jax.process_index() == 0:
            print(f"{message}; the same command continues there.", file=sys.stderr)
        sys.exit(130 if self._signal == signal.SIGINT else 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Schedulers may say SIGTERM twice; a person who says Ctrl-C twice means it.
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None:
            sys.stderr.write("\nStopping after this step; Ctrl-C stops at once.\n")
        self._signal = number
