"""ResNet-50 in bfloat16 on random images, beside the matrix product."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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
"""Medians over rounds, of all devices together. The work is that of the model, three
times its forward pass, as in the model FLOPs utilization of Chowdhery et al. 2022."""


def rows(small: bool) -> Iterator[dict[str, Any]]:
    """The matrix product of all devices, then ResNet-50 with LARS."""
    mesh = device_mesh()
    side, pixels, batch = (512, 64, 8) if small else (8192, 224, 256)
    rounds, calls = (3, 1) if small else (7, 10)
    product = _product(mesh, side, 4 * calls, rounds)
    yield {"what": "matrix product", "rounds": rounds, "tflop_per_s": product / 1e12}
    while True:
        try:
            row = _resnet(mesh, 18 if small else 50, pixels, batch, calls, rounds)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            batch //= 2
        else:
            yield {**row, "of_product": row["tflop_per_s"] * 1e12 / product}
            return


def _product(mesh: Mesh, side: int, calls: int, rounds: int) -> float:
    """Operations a second of a bfloat16 product on every device."""
    random = np.random.default_rng(0)
    # Of random numbers: on constant ones, devices draw less power and are faster. A
    # product of these has elements of the same size.
    x = random.standard_normal((side, side), np.float32) / side**0.5
    x = put(jnp.asarray(x, jnp.bfloat16)[None].repeat(mesh.size, 0), split(mesh))
    multiply = jax.jit(jnp.matmul)
    return (
        2 * side**3 * mesh.size / _seconds(lambda y: multiply(y, x), x, calls, rounds)
    )


def _resnet(
    mesh: Mesh, depth: int, pixels: int, batch: int, calls: int, rounds: int
) -> dict[str, Any]:
    """Training steps of a batch for each device."""
    batch *= mesh.size
    model = model_of({**RESNET50, "depth": depth}, num_classes=1000)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, pixels, pixels, 3), np.uint8)
    labels = random.integers(0, 1000, batch).astype(np.int32)
    one = Split(jnp.asarray(images[:1]), jnp.asarray(labels[:1]))
    data = Data(one, one, one, mean=jnp.full(3, 127.5), deviation=jnp.full(3, 74.0))
    arm = lars_with_decay(8.0, weight_decay=1e-4)
    settings = {"optimizer": arm, "schedule": LINEAR, "num_steps": 1000}
    training = configured_training(
        {**settings, "batch_size": batch}, model, label_smoothing=0.1
    )
    run = Run(jnp.int32(0), jnp.ones(num_kernels(model, data)), jnp.float32(8.0))
    whole = replicated(mesh)
    run, data = put(run, whole), put(data, whole)
    state = put(jax.jit(training.init)(run, data), whole)
    flops = training_flops(model, state.variables, jnp.zeros((pixels, pixels, 3)))
    # Arguments, and not constants of the program: a constant is on every device.
    placed = put({"images": images, "labels": labels}, split(mesh))

    def step(state: Any, run: Run, data: Data, batch: dict[str, jax.Array]) -> Any:
        return training.step(state, run, data, Split(**batch))[0]

    started = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    compiled = jitted.lower(state, run, data, placed).compile()
    compile_s = time.perf_counter() - started
    seconds = _seconds(lambda x: compiled(x, run, data, placed), state, calls, rounds)
    return {
        "what": f"ResNet-{depth}, bfloat16, LARS",
        **{"batch": batch, "pixels": pixels, "rounds": rounds, "compile_s": compile_s},
        "images_per_s": batch / seconds,
        "tflop_per_s": flops * batch / seconds / 1e12,
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
