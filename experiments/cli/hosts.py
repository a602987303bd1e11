"""Many hosts as one: they find each other, and the first speaks for all."""

import sys
from collections.abc import Callable
from typing import TypeVar, cast

import jax
from absl import flags

from experiments.training.sharding import on_any_host

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other hosts of this job, as the cluster names them."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first host, where none is found."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many hosts join.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")

T = TypeVar("T")


def connect() -> None:
    """Joins the other hosts if the flags say that there are any."""
    told = {
        "coordinator_address": COORDINATOR.value,
        "num_processes": NUM_PROCESSES.value,
        "process_id": PROCESS_ID.value,
    }
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if 0 < len(missing) < len(told):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id belong together; "
            f"{' and '.join(missing)} is missing."
        )
    if DISTRIBUTED.value or not missing:
        try:
            jax.distributed.initialize(**told)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the hosts cannot be joined ({error}); give --coordinator_address, "
                "--num_processes and --process_id."
            ) from error


def together(do: Callable[[], T]) -> T:
    """What each host does; if it fails on one, all end instead of waiting for it."""
    result, problem = None, None
    try:
        result = do()
    except Exception as error:
        problem = error
    failed = on_any_host(problem is not None)
    if problem is not None:
        raise problem
    if failed:
        print("error: another host has ended with an error.", file=sys.stderr)
        sys.exit(2)
    return cast(T, result)


def first(do: Callable[[], T], otherwise: T) -> T:
    """What the first host does for all of them, and what the others get instead."""
    return together(lambda: otherwise if jax.process_index() else do())


def first_says(flag: bool) -> bool:
    """The flag of the first host, on all of them."""
    return on_any_host(flag and jax.process_index() == 0)
