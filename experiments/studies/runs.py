"""Training runs that figures are made of: the rates or seeds of a setting at once."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments import data as datasets
from experiments.data import Data
from experiments.networks import Model
from experiments.networks.init_scales import profile_scales
from experiments.networks.initialization import Initialization
from experiments.training.setup import configured_training, model_of
from experiments.training.sharding import device_mesh, fetch, put, replicated, split
from experiments.training.training import (
    Curve,
    Result,
    Run,
    Training,
    num_kernels,
    sweep_over,
)
from lars.rules import flatten_with_path, path_string


class Setting(NamedTuple):
    """What distinguishes one training function from another; all else is data."""

    dataset: str
    model: Mapping[str, Any]  # with its name, as in ``config.model``
    optimizer: Mapping[str, Any]  # its ``name`` and ``settings``
    schedule: Mapping[str, Any]
    num_steps: int
    batch_size: int
    initialization: Initialization = "scaled"  # what is done to scaled kernels


def setting_of_arm(
    settings: Mapping[str, Any], model: Mapping[str, Any], arm: Mapping[str, Any]
) -> Setting:
    """The setting of one of the optimizers that an item's settings compare."""
    return Setting(
        model=model,
        optimizer={name: arm[name] for name in ("name", "settings")},
        **{
            name: settings[name]
            for name in ("dataset", "schedule", "num_steps", "batch_size")
        },
    )


def network_of(setting: Setting) -> tuple[Model, Data]:
    """The model of a setting, and its data."""
    data = datasets.load(setting.dataset)
    return model_of(setting.model, data.num_classes), data


def training_of(setting: Setting, model: Model, **options: Any) -> Training:
    """The training function of a setting, with options of `configured_training`."""
    return configured_training(
        setting._asdict(), model, initialization=setting.initialization, **options
    )


def stacked_runs(
    model: Model,
    data: Data,
    pairs: Sequence[tuple[float, int]],
    init_scale: float,
    profile: str,
) -> Run:
    """A run for each pair of a learning rate and a seed."""
    kernels = num_kernels(model, data)
    scales = [profile_scales(profile, init_scale, kernels, seed) for _, seed in pairs]
    return Run(
        seed=jnp.asarray([seed for _, seed in pairs], jnp.int32),
        kernel_scales=jnp.stack(scales),
        learning_rate=jnp.asarray([rate for rate, _ in pairs], jnp.float32),
    )


class _Prepared(NamedTuple):
    """A training function that is compiled, with its data where it runs."""

    model: Model
    data: Data
    compute: Callable[[Run, Data], Any]


def results_of(
    setting: Setting,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    init_scale: float = 1.0,
    profile: str = "all",
) -> pd.DataFrame:
    """Trains every rate with every seed, and evaluates at the end.

    Returns:
        A row a run: ``learning_rate``, ``seed`` and what `Result` holds.
    """
    pairs = [(rate, seed) for rate in learning_rates for seed in seeds]
    prepared = _prepare_once(setting, len(pairs), None)
    result: Result = _run(prepared, pairs, init_scale, profile)
    named = pd.DataFrame(pairs, columns=["learning_rate", "seed"])
    return named.assign(**result._asdict())


def curves_of(
    setting: Setting, learning_rate: float, seeds: Sequence[int], num_points: int
) -> pd.DataFrame:
    """Trains every seed, and looks at the run at points spread evenly over it.

    Returns:
        A row a run and point: ``learning_rate``, ``seed``, the ``step`` that it is
        after, the losses and the test accuracy of `Curve`, and ``weight_norm/PATH`` and
        ``gradient_norm/PATH`` of every parameter.
    """
    pairs = [(learning_rate, seed) for seed in seeds]
    prepared = _prepare_once(setting, len(pairs), num_points)
    curve: Curve = _run(prepared, pairs, 1.0, "all")
    names = _parameter_names(prepared)
    between = setting.num_steps // num_points
    return pd.concat(
        pd.DataFrame(
            {
                "learning_rate": learning_rate,
                "seed": seed,
                "step": setting.num_steps - between * np.arange(num_points)[::-1],
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


def runs_per_vmap(devices: Sequence[Any], runs: int) -> int:
    """How many runs a device vectorises: on a CPU one, where more is no faster."""
    return 1 if devices[0].platform == "cpu" else -(-runs // len(devices))


def shared_among(
    devices: Sequence[Any],
    compute: Callable[[Run, Data], Any],
    runs: Run,
    data: Data,
    per_vmap: int = 1,
) -> Any:
    """Computes any number of stacked runs, in equal parts on the devices.

    What the parts are too large by is made twice, and left out.

    `experiments.training.training.sweep_over` has made `compute` for these devices and
    for `per_vmap` runs at a time. The results are NumPy arrays.
    """
    count, at_once = len(runs.seed), len(devices) * per_vmap
    filled = np.arange(-(-count // at_once) * at_once) % count
    mesh = device_mesh(devices)
    stacked = put(jax.tree.map(lambda x: x[filled], runs), split(mesh))
    results = fetch(compute(stacked, put(data, replicated(mesh))))
    return jax.tree.map(lambda x: x[:count], results)


def at_best_rate(
    table: pd.DataFrame, keys: Sequence[str], measure: str = "validation_accuracy"
) -> pd.DataFrame:
    """The runs at the learning rate that is best on validation data.

    For each combination of the keys, that of the highest mean over seeds of the column
    `measure`; of equal ones the smallest. The table has a row a run.
    """
    means = table.groupby([*keys, "learning_rate"])[measure].mean()
    best = means.groupby(level=list(keys)).idxmax()
    chosen = pd.MultiIndex.from_tuples(best.tolist(), names=means.index.names)
    index = pd.MultiIndex.from_frame(table[[*keys, "learning_rate"]])
    return table[index.isin(chosen)]


def images_in(dataset: str) -> int:
    """How many training images there are."""
    return len(datasets.load(dataset).train.labels)


def _prepare_once(setting: Setting, runs: int, num_points: int | None) -> _Prepared:
    """Compiles a setting, unless it is the one that was compiled last."""
    return _prepare(json.dumps(setting._asdict()), runs, num_points)


@functools.lru_cache(maxsize=1)
def _prepare(description: str, runs: int, num_points: int | None) -> _Prepared:
    setting = Setting(**json.loads(description))
    model, data = network_of(setting)
    training = training_of(setting, model)

    def function(run: Run, data: Data) -> Result | Curve:
        if num_points is None:
            return training.train(run, data)
        return training.curve(run, data, num_points)

    devices = jax.devices()[:runs]
    data = put(data, replicated(device_mesh(devices)))
    compute = sweep_over(function, devices, runs_per_vmap(devices, runs))
    return _Prepared(model, data, compute)


def _run(
    prepared: _Prepared,
    pairs: Sequence[tuple[float, int]],
    init_scale: float,
    profile: str,
) -> Any:
    """Runs pairs of a rate and a seed, shared among the devices."""
    runs = stacked_runs(prepared.model, prepared.data, pairs, init_scale, profile)
    devices = jax.devices()[: len(pairs)]
    per_vmap = runs_per_vmap(devices, len(pairs))
    return shared_among(devices, prepared.compute, runs, prepared.data, per_vmap)


def _parameter_names(prepared: _Prepared) -> list[str]:
    images = jnp.zeros(prepared.data.train.images.shape[1:], jnp.float32)[None]
    shapes = jax.eval_shape(prepared.model.init, jax.random.key(0), images)
    return [path_string(path) for path, _ in flatten_with_path(shapes["params"])[0]]
