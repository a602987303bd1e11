"""Initializations, growth rates, statistics and training runs of several items."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes
from scipy.special import digamma

from experiments.data import Split
from experiments.studies.item import Settings
from experiments.studies.runs import (
    network_of,
    runs_per_vmap,
    setting_of_arm,
    shared_among,
    training_of,
)
from experiments.studies.style import line_with_band
from experiments.training.optimizers import WHOLE
from experiments.training.training import Run, sweep_over
from lars.optimizer import lars

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
}

Shapes = Sequence[tuple[int, int]]
"""Inputs and outputs of each layer, from the first to the last."""


def layer_shapes(inputs: int, width: int, depth: int, outputs: int) -> Shapes:
    """The shapes of the layers of a network with `depth` layers of weights."""
    return list(itertools.pairwise([inputs, *[width] * (depth - 1), outputs]))


def deviation(rule: str, n_in: int, n_out: int) -> float:
    """The standard deviation of the weights of a layer.

    The rule is ``Xavier`` (Glorot and Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html), ``He`` (He et al. 2015,
    https://arxiv.org/abs/1502.01852), or ``sd X`` for the number X.
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


def activations(
    kernels: Iterable[Any], x: Any, activation: str = "ReLU"
) -> Iterator[jax.Array]:
    """The activations after each layer, in float32."""
    x = jnp.asarray(x, jnp.float32)
    for kernel in kernels:
        x = ACTIVATIONS[activation](x @ jnp.asarray(kernel))
        yield x


def kernel_scales(rule: str, shapes: Shapes, activation: str) -> list[float]:
    """Factors that make kernels of `experiments.networks.mlp` those of a rule.

    That network draws from N(0, gain / n_in), with gain 2 for ReLU, else 1.
    """
    gain = 2.0 if activation == "ReLU" else 1.0
    return [deviation(rule, *shape) / (gain / shape[0]) ** 0.5 for shape in shapes]


def log_growth(size: int, position: int = 1) -> float:
    """The Lyapunov exponent of products of Gaussian matrices with variance 1.

    A Gaussian matrix turns any unit vector into one whose squared length is chi-squared
    with n degrees of freedom. Each matrix therefore adds (ln 2 + ψ(n/2)) / 2 to the
    expected logarithm of the length, and (ln 2 + ψ((n - i + 1)/2)) / 2 to that of the
    i-th largest of n singular values (Newman 1986,
    https://doi.org/10.1007/BF01464284).
    """
    return 0.5 * (math.log(2) + float(digamma((size - position + 1) / 2)))


def rounded(values: Any, digits: int = 5) -> np.ndarray:
    """To so many significant digits, to keep tables small."""
    return np.vectorize(lambda x: float(f"{x:.{digits}g}"), [float])(values)


def columns_over_seeds(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Median, lowest and highest of values [seeds, rows]; NaN if one is not finite."""
    values = np.where(np.isfinite(values), values, np.nan)
    return {
        name: rounded(np.median(values, axis=0)),
        f"{name}_lowest": rounded(values.min(axis=0)),
        f"{name}_highest": rounded(values.max(axis=0)),
    }


def line_of_columns(
    axes: Axes, rows: pd.DataFrame, x: str, name: str, number: int, label: str
) -> None:
    """The line and the band of `columns_over_seeds`."""
    edges = rows[f"{name}_lowest"], rows[f"{name}_highest"]
    line_with_band(axes, rows[x], rows[name], *edges, number, label, markersize=3)


def flattened(split: Split, count: int | None = None) -> tuple[jax.Array, jax.Array]:
    """The first images as vectors, and their labels."""
    labels = split.labels[:count]
    return split.images[:count].reshape(len(labels), -1), labels


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over examples."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def descended(
    gradient: Callable[[Any], Any],
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[Any, Any]:
    """The parameters after so many steps, and those before each step, stacked."""

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), params

    start = (params, optimizer.init(params))
    (params, _), path = jax.lax.scan(step, start, length=steps)
    return params, path


def optimizer_of(
    name: str, rate: Any, momentum: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD, Adam, LARS, or LARS with decay."""
    if name == "SGD":
        return optax.sgd(rate, momentum)
    if name == "Adam":
        return optax.adam(rate, momentum)
    decay = weight_decay if "decay" in name else 0.0
    return lars(rate, decay, momentum=momentum, partition_specs=WHOLE)


def trained(
    runs: pd.DataFrame,
    depth: int,
    activation: str,
    settings: Settings,
    scales: Any = 1.0,
    *,
    optimizer: str = "sgd",
    use_bias: bool = False,
) -> pd.DataFrame:
    """Trains plain networks on the digits, and adds the accuracies of each run.

    ``runs`` has a learning_rate and a seed in each row; ``scales`` multiply the initial
    kernels, [runs, depth]. Names are those of `experiments.networks.mlp` and
    `experiments.training.optimizers`.
    """
    network = {
        **{"name": "mlp", "depth": depth, "width": settings["width"]},
        **{"activation": activation, "use_bias": use_bias},
        **{"normalization": "none", "compute_dtype": "float32"},
    }
    momentum = {name: settings[name] for name in ("momentum",) if name in settings}
    arm = {"name": optimizer, "settings": momentum}
    setting = setting_of_arm({"dataset": "digits", **settings}, network, arm)
    model, data = network_of(setting)
    devices = jax.devices()
    per_vmap = runs_per_vmap(devices, len(runs))
    stacked = Run(
        jnp.asarray(runs["seed"].to_numpy(), jnp.int32),
        jnp.asarray(np.broadcast_to(scales, (len(runs), depth)), jnp.float32),
        jnp.asarray(runs["learning_rate"].to_numpy(), jnp.float32),
    )
    compute = sweep_over(training_of(setting, model).train, devices, per_vmap)
    result = shared_among(devices, compute, stacked, data, per_vmap)
    columns = ("validation_accuracy", "test_accuracy", "diverged")
    return runs.assign(**{name: getattr(result, name) for name in columns})
