"""ResNet-50 in bfloat16 on random images, beside the matrix product."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.models import RESNET50
from configs.optimizers import LINEAR, lars_with_decay
from experiments.data import Data, Split
from experiments.speed.flops import training_flops
from experiments.training.setup import configured_training, model_of
from experiments.training.sharding import device_mesh, put, replicated, split
from experiments.training.training import Run, num_kernels

COLUMNS = (
    *("what", "batch", "pixels", "rounds", "compile_s", "images_per_s"),
    *("tflop_per_s", "of_product"),
)
"""Medians over rounds. The work is that of the model, three times its forward pass, as
in the model FLOPs utilization of Chowdhery et al. 2022."""


def rows(small: bool, data: Path | None) -> Iterator[dict[str, Any]]:
    """The matrix product of all devices, then ResNet-50 with LARS."""
    del data
    devices = jax.devices()
    mesh = device_mesh(devices)
    side, pixels, batch = (512, 64, 8) if small else (8192, 224, 256)
    batch *= len(devices)
    rounds, calls = (3, 1) if small else (7, 10)

    x = jnp.full((len(devices), side, side), 1 / side, jnp.bfloat16)
    x = put(x, split(mesh))
    multiply = jax.jit(jnp.matmul)
    product = 2 * side**3 * len(devices) / _seconds(lambda y: multiply(y, x), x, 10, 3)
    yield {"what": "matrix product", "rounds": 3, "tflop_per_s": product / 1e12}

    settings = {**RESNET50, "depth": 18} if small else RESNET50
    model = model_of(settings, num_classes=1000)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, pixels, pixels, 3), np.uint8)
    labels = random.integers(0, 1000, batch).astype(np.int32)
    nothing = Split(jnp.asarray(images[:1]), jnp.asarray(labels[:1]))
    statistics = jnp.full(3, 127.5), jnp.full(3, 74.0)
    held = Data(nothing, nothing, nothing, *statistics)
    training = configured_training(
        {
            "optimizer": lars_with_decay(8.0, weight_decay=1e-4),
            "schedule": LINEAR,
            "num_steps": 1000,
            "batch_size": batch,
        },
        model,
        label_smoothing=0.1,
    )
    run = Run(jnp.int32(0), jnp.ones(num_kernels(model, held)), jnp.float32(8.0))
    state = put(jax.jit(training.init)(run, held), replicated(mesh))
    flops = training_flops(model, state.variables, jnp.zeros((pixels, pixels, 3)))
    placed = put(Split(jnp.asarray(images), jnp.asarray(labels)), split(mesh))

    def step(state: Any) -> Any:
        return training.step(state, run, held, placed)[0]

    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
    compile_s = time.perf_counter() - started
    seconds = _seconds(compiled, state, calls, rounds)
    rate = flops * batch / seconds
    yield {
        "what": f"ResNet-{settings['depth']}, bfloat16, LARS",
        **{"batch": batch, "pixels": pixels, "rounds": rounds, "compile_s": compile_s},
        "images_per_s": batch / seconds,
        "tflop_per_s": rate / 1e12,
        "of_product": rate / product,
    }


def _seconds(step: Callable, state: Any, calls: int, rounds: int) -> float:
    """The median over rounds of the time of a call, of calls one after another."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for _ in range(calls):
            state = step(state)
        jax.block_until_ready(state)
        found.append((time.perf_counter() - started) / calls)
    return float(np.median(found[1:]))  # the first warms up
