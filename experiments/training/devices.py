"""How this machine's processors are used."""

import os

import jax


def use_every_core() -> None:
    """Makes each CPU core a JAX device of its own, for sweeps of small runs.

    One run a core keeps every core busy, where many threads on one small matrix product
    mostly wait for each other. To be called before JAX is first used; without effect on
    accelerators.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false {flags}"
    jax.config.update("jax_num_cpu_devices", cores or os.cpu_count() or 1)
