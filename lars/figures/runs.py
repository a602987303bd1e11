"""Training runs that figures are made of: all rates or all seeds of a setting at once."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from lars import data as datasets
from lars.data import Data
from lars.figures.item import Settings
from lars.models import MODELS, Model
from lars.optimizers import optimizer_maker
from lars.rules import flatten_with_path, path_string
from lars.sharding import device_mesh, fetch, put, replicated, split
from lars.training import (
    Curve,
    Result,
    Run,
    Training,
    make_training,
    num_kernels,
    sweep_over,
)


class _Prepared(NamedTuple):
    """A setting that is ready to run, with its data where it runs."""

    model: Model
    num_steps: int
    data: Data
    compute: Callable[[Run, Data], Any]


def results_of(
    cell: Mapping[str, Any],
    settings: Settings,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Trains every rate with every seed, and evaluates at the end.

    Args:
        cell: with ``model`` and ``optimizer``, names in the settings, ``batch_size`` and
            ``epochs``.
        settings: with ``dataset``, ``models``, ``optimizers``, ``warmup_epochs`` and
            ``decay``.
        learning_rates: peaks of the schedule.
        seeds: of the initial weights and the order of the images.

    Returns:
        A row a run: ``learning_rate``, ``seed``, ``steps`` and what `Result` holds.
    """
    pairs = [(rate, seed) for rate in learning_rates for seed in seeds]
    prepared = _prepare("train", _described(cell, settings, len(pairs)))
    result: Result = _run(prepared, pairs)
    return pd.DataFrame(
        {
            "learning_rate": [rate for rate, _ in pairs],
            "seed": [seed for _, seed in pairs],
            "steps": prepared.num_steps,
            **result._asdict(),
        }
    )


def curves_of(
    cell: Mapping[str, Any],
    settings: Settings,
    learning_rate: float,
    seeds: Sequence[int],
    num_points: int,
) -> pd.DataFrame:
    """Trains every seed, and looks at the run at points spread evenly over it.

    Returns:
        A row a run and point: ``learning_rate``, ``seed``, ``steps`` and ``epoch`` so
        far, the losses and the test accuracy of `Curve`, and ``weight_norm/PATH`` and
        ``gradient_norm/PATH`` of every parameter.
    """
    pairs = [(learning_rate, seed) for seed in seeds]
    prepared = _prepare(
        f"curve of {num_points}", _described(cell, settings, len(pairs))
    )
    curve: Curve = _run(prepared, pairs)
    names = _parameter_names(prepared)
    return pd.concat(
        pd.DataFrame(
            {
                "learning_rate": learning_rate,
                "seed": seed,
                "steps": steps_between(prepared.num_steps, num_points),
                "epoch": cell["epochs"] * np.arange(1, num_points + 1) / num_points,
                "train_loss": curve.train_loss[i],
                "test_loss": curve.test_loss[i],
                "test_accuracy": curve.test_accuracy[i],
                **{
                    f"{kind}/{name}": norms[i, :, j]
                    for kind, norms in (
                        ("weight_norm", curve.weight_norms),
                        ("gradient_norm", curve.gradient_norms),
                    )
                    for j, name in enumerate(names)
                },
            }
        )
        for i, (_, seed) in enumerate(pairs)
    )


def steps_between(num_steps: int, num_points: int) -> np.ndarray:
    """How many steps have been made at each point."""
    return num_steps // num_points * np.arange(1, num_points + 1)


def steps_per_epoch(settings: Settings, batch_size: int) -> int:
    """Full batches in the training images."""
    return len(datasets.load(settings["dataset"]).train.labels) // batch_size


def _described(cell: Mapping[str, Any], settings: Settings, runs: int) -> str:
    """What a compiled computation depends on: the same text is compiled once."""
    return json.dumps(
        {
            "dataset": settings["dataset"],
            "model": settings["models"][cell["model"]],
            "optimizer": {
                name: settings["optimizers"][cell["optimizer"]][name]
                for name in ("name", "settings")
            },
            "decay": settings["decay"],
            "warmup_epochs": settings["warmup_epochs"],
            "batch_size": cell["batch_size"],
            "epochs": cell["epochs"],
            "runs": runs,
        }
    )


@functools.lru_cache(maxsize=1)
def _prepare(kind: str, description: str) -> _Prepared:
    what = json.loads(description)
    data = datasets.load(what["dataset"])
    arguments = dict(what["model"])
    model = MODELS[arguments.pop("name")](data.num_classes, **arguments)
    in_epoch = len(data.train.labels) // what["batch_size"]
    schedule = {
        "decay": what["decay"],
        "warmup_steps": what["warmup_epochs"] * in_epoch,
        "warmup_start": 0.0,
        "restart_after_warmup": False,  # as in the paper
    }
    num_steps = what["epochs"] * in_epoch
    optimizer = what["optimizer"]
    training: Training = make_training(
        model,
        optimizer_maker(optimizer["name"], optimizer["settings"], schedule, num_steps),
        num_steps=num_steps,
        batch_size=what["batch_size"],
    )
    function: Any = training.train
    if kind != "train":
        num_points = int(kind.removeprefix("curve of "))

        def function(run: Run, data: Data) -> Curve:
            return training.curve(run, data, num_points)

    devices = jax.devices()[: what["runs"]]
    return _Prepared(
        model,
        num_steps,
        put(data, replicated(device_mesh(devices))),
        sweep_over(function, devices, 1),
    )


def _run(prepared: _Prepared, pairs: Sequence[tuple[float, int]]) -> Any:
    """Runs pairs of a rate and a seed, shared among the devices."""
    devices = jax.devices()[: len(pairs)]
    # The devices get equal parts; what is too much is made twice and left out.
    size = -(-len(pairs) // len(devices)) * len(devices)
    filled = [pairs[i % len(pairs)] for i in range(size)]
    runs = Run(
        seed=jnp.asarray([seed for _, seed in filled], jnp.int32),
        kernel_scales=jnp.ones((size, num_kernels(prepared.model, prepared.data))),
        learning_rate=jnp.asarray([rate for rate, _ in filled], jnp.float32),
    )
    runs = put(runs, split(device_mesh(devices)))
    results = fetch(prepared.compute(runs, prepared.data))
    return jax.tree.map(lambda x: x[: len(pairs)], results)


def _parameter_names(prepared: _Prepared) -> list[str]:
    images = jnp.zeros(prepared.data.train.images.shape[1:], jnp.float32)[None]
    shapes = jax.eval_shape(prepared.model.init, jax.random.key(0), images)
    return [path_string(path) for path, _ in flatten_with_path(shapes["params"])[0]]
