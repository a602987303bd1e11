"""What float32 can represent of a network's start: the physical line of the map."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def starts_of(
    dataset: str,
    model: Mapping[str, Any],
    batch_size: int,
    seeds: Sequence[int],
    init_scale: float,
    profile: str,
) -> pd.DataFrame:
    """Looks at the start of every seed, on its first batch.

    Kernels are scaled as in `experiments.studies.runs.results_of`.

    Returns:
        A row a seed: ``seed``, and as 0 or 1 ``is_finite``, whether the loss and all
        gradients are; ``has_gradient``, whether no kernel's is all zero; and
        ``has_signal``, whether the outputs of every layer depend on the image.
    """
    network, look = _prepared(json.dumps([dataset, dict(model), batch_size]))
    data = datasets.load(dataset)
    runs = stacked_runs(network, data, [(0.0, x) for x in seeds], init_scale, profile)
    (flags,) = shared_among(jax.devices()[:1], look, runs, data)
    return pd.DataFrame({**flags}, dtype=float).assign(seed=list(seeds))


@functools.lru_cache(maxsize=1)
def _prepared(description: str) -> tuple[Model, Callable[[Run, Data], Any]]:
    dataset, settings, batch_size = json.loads(description)
    num_classes = datasets.load(dataset).num_classes
    model = MODELS[settings.pop("name")](num_classes, **settings)
    training = make_training(
        model, lambda _: optax.set_to_zero(), num_steps=1, batch_size=batch_size
    )

    def look(run: Run, data: Data) -> tuple[dict[str, jax.Array]]:
        state = training.init(run, data)
        count = len(data.train.labels)
        batch = batch_positions(run.seed, state.step, 1, count, batch_size)[0]
        _, report = training.step(state, run, data, batch)
        images = standardise(data.train.images[batch], data.mean, data.deviation)
        # A key means training, as far as normalizations are concerned.
        outputs = model.outputs(state.variables, images, jax.random.key(0))
        named, _ = flatten_with_path(state.variables["params"])
        kernels = [kernel.leaf for kernel in kernels_of(state.variables["params"])]
        gradient_norms = report.gradient_norms
        has_signal = [
            _depends_on_image(
                outputs[path_string(path).rpartition("/")[0]], w.size // w.shape[-1]
            )
            for path, w in (named[i] for i in kernels)
        ]
        flags = {
            "is_finite": jnp.isfinite(report.loss) & jnp.isfinite(gradient_norms).all(),
            "has_gradient": (gradient_norms[jnp.asarray(kernels)] != 0).all(),
            "has_signal": jnp.stack(has_signal).all(),
        }
        return (flags,)

    return model, sweep_over(look, jax.devices()[:1], 1)


def _depends_on_image(outputs: jax.Array, terms: int) -> jax.Array:
    """Whether some output differs between images by more than rounding can make it.

    A sum of n products in float32 may be wrong by n 2⁻²⁴ times the sum of their sizes
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), of
    which the largest output is the least that is known here.
    """
    spread = (outputs.max(axis=0) - outputs.min(axis=0)).max()
    return spread > terms * 2.0**-24 * jnp.abs(outputs).max()
