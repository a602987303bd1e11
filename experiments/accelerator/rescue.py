"""A small rescue map: every start and seed of an optimizer as one sharded sweep."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.models import DIGITS_MLP
from configs.optimizers import ARMS, LINEAR
from experiments.data import Data
from experiments.data.arrays import Split
from experiments.data.embedded import digits
from experiments.training.setup import configured_training, model_of
from experiments.training.sharding import device_mesh, put, replicated, split
from experiments.training.training import Run, num_kernels, sweep_over

COLUMNS = ("optimizer", "starts", "runs", "compile_s", "seconds", "rescued", "accuracy")
"""``rescued``: starts whose median accuracy is at least `ENOUGH`; ``accuracy``: the
median over all runs."""

OPTIMIZERS = ("sgd", "adam", "muon", "module", "polar_waking")
"""Of `configs.optimizers.ARMS`, each with its rate for a single run."""

ENOUGH = 0.92
_SCALES = 10.0 ** np.arange(-8, 9)


def rows(small: bool) -> Iterator[dict[str, Any]]:
    """A row for each optimizer."""
    scales = _SCALES[::8] if small else _SCALES
    seeds = np.arange(2 if small else 16)
    pairs = [(scale, seed) for scale in scales for seed in seeds]
    images, devices = digits_data(), jax.devices()
    model = model_of(DIGITS_MLP, images.num_classes)
    kernels = num_kernels(model, images)
    at_once = len(devices)
    # On an accelerator all runs at once; on a CPU more than one a core is no faster.
    per_vmap = 1 if devices[0].platform == "cpu" else -(-len(pairs) // at_once)
    count = -(-len(pairs) // (at_once * per_vmap)) * at_once * per_vmap
    filled = [pairs[i % len(pairs)] for i in range(count)]
    mesh = device_mesh(devices)
    images = put(images, replicated(mesh))
    for name in OPTIMIZERS:
        arm = ARMS[name]
        training = configured_training(
            {
                "optimizer": arm,
                "schedule": LINEAR,
                "num_steps": 50 if small else 300,
                "batch_size": 64,
            },
            model,
        )
        runs = Run(
            jnp.asarray([seed for _, seed in filled], jnp.int32),
            jnp.asarray([[scale] * kernels for scale, _ in filled], jnp.float32),
            jnp.full(count, arm["learning_rate"], jnp.float32),
        )
        runs = put(runs, split(mesh))
        started = time.perf_counter()
        sweep = sweep_over(training.train, devices, per_vmap)
        compiled = sweep.lower(runs, images).compile()  # pyright: ignore
        compile_s = time.perf_counter() - started
        jax.block_until_ready(compiled(runs, images))  # loads the program
        started = time.perf_counter()
        result = jax.device_get(compiled(runs, images))
        seconds = time.perf_counter() - started
        accuracy = result.test_accuracy[: len(pairs)].reshape(len(scales), len(seeds))
        yield {
            "optimizer": arm["label"],
            "starts": len(scales),
            "runs": len(pairs),
            "compile_s": compile_s,
            "seconds": seconds,
            "rescued": int((np.median(accuracy, axis=1) >= ENOUGH).sum()),
            "accuracy": float(np.median(accuracy)),
        }


def digits_data() -> Data:
    """The embedded digits as `experiments.data.load` gives them, in another order."""
    parts = {name: arrays for name, (_, arrays) in digits().items()}
    pixels = parts["train"].images.astype(np.float64)
    mean, deviation = pixels.mean(), pixels.std()
    return Data(
        **{
            name: Split(
                jnp.asarray((images - mean) / deviation, jnp.float32),
                jnp.asarray(labels, jnp.int32),
            )
            for name, (images, labels) in parts.items()
        },
        mean=jnp.zeros(1),
        deviation=jnp.ones(1),
    )
