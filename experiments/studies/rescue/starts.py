"""What float32 can represent of a network's start: the physical line of the map."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pandas as pd

from experiments import data as datasets
from experiments.data import Data, standardise
from experiments.networks import MODELS, Model
from experiments.studies.runs import shared_among, stacked_runs
from experiments.training.training import (
    Run,
    batch_positions,
    make_training,
    sweep_over,
)
from lars.kernels import kernels_of
from lars.rules import flatten_with_path, path_string


class Start(NamedTuple):
    """A network before its first step, on its first batch."""

    is_finite: jax.Array  # bool: the loss, and every gradient
    has_gradient: jax.Array  # bool: every kernel's is not all zero
    has_signal: jax.Array  # bool: every layer's outputs depend on the image


def starts_of(
    dataset: str,
    model: Mapping[str, Any],
    batch_size: int,
    seeds: Sequence[int],
    init_scale: float,
    profile: str,
) -> pd.DataFrame:
    """Looks at the start of every seed, on its first batch.

    Kernels are scaled as in `experiments.studies.runs.results_of`. Returns a row a
    seed: ``seed`` and the fields of `Start`, as 0 or 1.
    """
    network, look = _prepared(json.dumps([dataset, dict(model), batch_size]))
    data = datasets.load(dataset)
    pairs = [(0.0, seed) for seed in seeds]
    runs = stacked_runs(network, data, pairs, init_scale, profile)
    start: Start = shared_among(jax.devices()[:1], look, runs, data)
    flags = {name: x.astype(float) for name, x in start._asdict().items()}
    return pd.DataFrame({"seed": list(seeds), **flags})


def look_at(model: Model, batch_size: int) -> Callable[[Run, Data], Start]:
    """The function that looks at the start of a run."""
    training = make_training(
        model, lambda _: optax.set_to_zero(), num_steps=1, batch_size=batch_size
    )

    def look(run: Run, data: Data) -> Start:
        state = training.init(run, data)
        count = len(data.train.labels)
        batch = batch_positions(run.seed, state.step, 1, count, batch_size)[0]
        _, report = training.step(state, run, data, batch)
        images = standardise(data.train.images[batch], data.mean, data.deviation)
        # A key means training, as far as normalizations are concerned.
        outputs = model.outputs(state.variables, images, jax.random.key(0))
        named, _ = flatten_with_path(state.variables["params"])
        kernels = [k.leaf for k in kernels_of(state.variables["params"])]
        return Start(
            jnp.isfinite(report.loss) & jnp.isfinite(report.gradient_norms).all(),
            (report.gradient_norms[jnp.asarray(kernels)] != 0).all(),
            jnp.stack(
                [
                    _depends_on_image(
                        outputs[path_string(named[i][0]).rpartition("/")[0]],
                        named[i][1].size // named[i][1].shape[-1],
                    )
                    for i in kernels
                ]
            ).all(),
        )

    return look


def _depends_on_image(outputs: jax.Array, terms: int) -> jax.Array:
    """Whether some output differs between images by more than rounding can make it.

    A sum of n products in float32 may be wrong by n 2⁻²⁴ times the sum of their sizes
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), of
    which the largest output is the least that is known here.
    """
    spread = (outputs.max(axis=0) - outputs.min(axis=0)).max()
    return spread > terms * 2.0**-24 * jnp.abs(outputs).max()


@functools.lru_cache(maxsize=1)
def _prepared(description: str) -> tuple[Model, Callable[[Run, Data], Start]]:
    dataset, settings, batch_size = json.loads(description)
    num_classes = datasets.load(dataset).num_classes
    model = MODELS[settings.pop("name")](num_classes, **settings)
    return model, sweep_over(look_at(model, batch_size), jax.devices()[:1], 1)
