"""What several items of the book share: initializations, and many short runs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.data import Data, load
from experiments.networks import mlp
from experiments.networks.plain import Activation
from experiments.studies.item import Settings
from experiments.studies.runs import runs_per_vmap, shared_among
from experiments.training.optimizers import optimizer_maker
from experiments.training.training import Run, Training, make_training, sweep_over

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
}

Shapes = Sequence[tuple[int, int]]
"""Inputs and outputs of each layer, from the first to the last."""


def layer_shapes(inputs: int, width: int, depth: int, outputs: int) -> Shapes:
    """The shapes of the layers of a network with `depth` layers of weights."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    return list(itertools.pairwise(sizes))


def deviation(rule: str, n_in: int, n_out: int) -> float:
    """The standard deviation of the weights of a layer.

    Args:
        rule: ``Xavier`` (Glorot and Bengio 2010,
            https://proceedings.mlr.press/v9/glorot10a.html), ``He`` (He et al. 2015,
            https://arxiv.org/abs/1502.01852), or ``sd X`` for the number X.
        n_in: inputs of the layer.
        n_out: its outputs.
    """
    if rule == "Xavier":
        return (2 / (n_in + n_out)) ** 0.5
    if rule == "He":
        return (2 / n_in) ** 0.5
    return float(rule.removeprefix("sd "))


def draw_kernels(rule: str, shapes: Shapes, seed: int) -> list[np.ndarray]:
    """Normal kernels [n_in, n_out], float32, of a rule of `deviation`.

    The same seed draws the same numbers for every rule, but for their scale.
    """
    rng = np.random.default_rng(seed)
    return [
        np.float32(deviation(rule, *shape)) * rng.standard_normal(shape, np.float32)
        for shape in shapes
    ]


def kernel_scales(rule: str, shapes: Shapes, activation: str) -> list[float]:
    """What makes kernels of `experiments.networks.mlp` those of a rule of `deviation`.

    That network draws from N(0, gain / n_in), with gain 2 for ReLU, else 1.
    """
    gain = 2.0 if activation == "ReLU" else 1.0
    return [deviation(rule, *shape) / (gain / shape[0]) ** 0.5 for shape in shapes]


def rounded(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """To so many significant digits: what a table that is kept has room for."""
    short = [float(f"{value:.{digits}g}") for value in values.ravel().tolist()]
    return np.reshape(np.array(short, float), values.shape)


def plain_training(depth: int, activation: Activation, settings: Settings) -> Training:
    """SGD with momentum on a network of so many layers without biases, for digits.

    Args:
        depth: layers with weights.
        activation: as in `experiments.networks.mlp`.
        settings: with ``width``, ``momentum``, ``schedule``, ``num_steps`` and
            ``batch_size``.
    """
    model = mlp(
        load("digits").num_classes,
        depth=depth,
        width=settings["width"],
        activation=activation,
        use_bias=False,
        normalization="none",
        compute_dtype="float32",
    )
    return make_training(
        model,
        optimizer_maker(
            "sgd",
            {"momentum": settings["momentum"]},
            settings["schedule"],
            settings["num_steps"],
        ),
        num_steps=settings["num_steps"],
        batch_size=settings["batch_size"],
    )


def train_all(
    training: Training, runs: pd.DataFrame, scales: Sequence[Any], data: Data
) -> pd.DataFrame:
    """Trains every run, and adds what it came to.

    Args:
        training: what to do in each.
        runs: a table with the columns learning_rate and seed.
        scales: the kernel scales of each run.
        data: what to train and evaluate on.
    """
    devices = jax.devices()
    per_vmap = runs_per_vmap(devices, len(runs))
    stacked = Run(
        jnp.asarray(runs["seed"].to_numpy(), jnp.int32),
        jnp.asarray(np.array(scales), jnp.float32),
        jnp.asarray(runs["learning_rate"].to_numpy(), jnp.float32),
    )
    compute = sweep_over(training.train, devices, per_vmap)
    result = shared_among(devices, compute, stacked, data, per_vmap)
    columns = ("validation_accuracy", "test_accuracy", "diverged")
    return runs.assign(**{name: getattr(result, name) for name in columns})
