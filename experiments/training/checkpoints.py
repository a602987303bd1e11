"""Checkpoints that are whole, or are not used: Orbax, and a digest of every bit."""

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.training.sharding import on_any_host

KEPT = 2
"""How many checkpoints stay: the newest, and one to fall back on."""


class _Saved(NamedTuple):
    tree: Any
    digest: Any  # shape=(), uint32


class Checkpoints:
    """The checkpoints of one run in a folder.

    Written in the background, each under a temporary name until it is complete. A
    context manager: leaving it waits for what is being written.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder, and makes it if it is not there."""
        self._folder = folder.absolute()
        with self._named_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()

    def save(self, step: int, tree: Any) -> None:
        """Begins to write the arrays of a tree; they may be donated right after.

        Raises:
            OSError: if these, or those of the step before, cannot be written.
        """
        saved = _Saved(tree, digest(tree))
        with self._named_errors():
            self._manager.save(step, args=ocp.args.StandardSave(saved._asdict()))

    def wait(self) -> None:
        """Waits until what is being written is whole on disk."""
        with self._named_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore_newest(self, tree: Any) -> tuple[int, Any] | None:
        """Reads the newest checkpoint that is whole.

        One that is damaged (it cannot be read, or its bits are not those that were
        saved) is named on stderr and set aside, and the one before it is used.

        Args:
            tree: `jax.ShapeDtypeStruct` with shardings, like what was saved; the
                shardings may be others than then.

        Returns:
            The step and the tree, or None if there is no checkpoint.

        Raises:
            ValueError: if there are checkpoints, and none can be read.
        """
        # Without a place of its own the digest could be read only where it was written.
        place = jax.tree.leaves(tree)[0].sharding
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, PartitionSpec())
        held_digest = jax.ShapeDtypeStruct((), jnp.uint32, sharding=place)
        saved = _Saved(tree, held_digest)._asdict()
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            held = problem = None
            try:
                held = self._manager.restore(step, args=ocp.args.StandardRestore(saved))
            except Exception as error:  # whatever becomes of a broken file
                message = (str(error).splitlines() or [""])[0]
                problem = f"{type(error).__name__}: {message}"
            if on_any_host(problem is not None):  # all use the same one
                problems[step] = problem or "another host cannot read it"
                continue
            assert held is not None
            if int(digest(held["tree"])) != int(held["digest"]):
                problems[step] = "its bits are not those that were saved"
                continue
            for damaged, problem in problems.items():
                print(
                    f"warning: the checkpoint of step {damaged} in {self._folder} is "
                    f"damaged ({problem}); using that of step {step}.",
                    file=sys.stderr,
                )
            if problems:
                self._set_aside(problems)
            return step, held["tree"]
        if problems:
            raise ValueError(
                f"no checkpoint in {self._folder} can be read; delete the folder to "
                "start anew. "
                + "; ".join(f"step {step}: {text}" for step, text in problems.items())
            )
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, SystemExit):
            self.wait()
        with contextlib.suppress(Exception):  # what could not be written is named
            self._manager.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises many
            message = (str(error).splitlines() or [""])[0]
            raise OSError(
                f"checkpoints cannot be written to {self._folder} ({message}); make "
                "room or move what is in the way, then give the same command again: it "
                "goes on from the newest that is whole."
            ) from error

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT)
        return ocp.CheckpointManager(self._folder, options=options)

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames checkpoints, so that their steps can be saved again."""
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                aside = self._folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(step)).rename(aside)
        self._manager = self._open()


@jax.jit
def digest(tree: Any) -> jax.Array:
    """A uint32 that no flipped bit leaves as it is, whatever the shardings.

    The sum modulo 2^32 of the words, each times an odd number of its own: a change of
    one word by d changes it by d times an odd number, which is not zero. Whole numbers
    add up to the same in any order, so that it does not depend on the devices.
    """
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(leaf)
        place = jnp.full(words.shape, number, jnp.uint32)
        for axis in range(words.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            place = place * jnp.uint32(0x9E3779B1) + index
        total += jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
    return total


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    words = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
