"""One training run.

    python -m experiments.train --config=configs/digits_mlp.py --workdir=runs/digits

Writes ``config.json``, ``provenance.json`` and, line by line, ``metrics.jsonl`` to the
workdir: every ``log_every`` steps the loss on the batches since, the validation loss
and accuracy, and the trust ratio of every layer where the optimizer has them; at the
end the test accuracy, which is also printed. A finished run is not made again.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lars
from experiments import command
from experiments.setup import check_count, check_seed, model_of, training_of
from lars import data as datasets, results
from lars.init_scales import check_profile, profile_scales
from lars.optimizers import check_learning_rate
from lars.training import Run, State, batch_positions, num_kernels


def main(config: command.Config, workdir: str) -> None:
    """Trains, writes metrics on the way, and prints the test accuracy."""
    with command.reported_errors():
        check_count("log_every", config.log_every)
        check_seed(config.seed)
        check_learning_rate(config.optimizer.learning_rate)
        check_profile(config.profile, config.init_scale)
        data = datasets.load(config.dataset)
        model = model_of(config.model, data)
        training = training_of(config, config.optimizer, model, data)
        folder = results.claim(workdir, config.to_dict())

    file = folder / "metrics.jsonl"
    finished = last_line(file)
    if "test/accuracy" in finished:
        return report(finished, file)

    session = results.Session(folder)
    started = time.monotonic()
    scales = profile_scales(
        config.profile, config.init_scale, num_kernels(model, data), config.seed
    )
    run = Run(
        seed=jnp.int32(config.seed),
        kernel_scales=jnp.asarray(scales),
        learning_rate=jnp.float32(config.optimizer.learning_rate),
    )
    # A loop here and not `advance`: in a compiled loop XLA's CPU backend makes
    # convolutions some sixty times slower.
    make_step = jax.jit(training.step, donate_argnums=0)
    positions = jax.jit(batch_positions, static_argnums=(2, 3, 4))
    evaluate = jax.jit(training.evaluate)

    state = jax.jit(training.init)(run, data)
    step = 0
    with (
        file.open("w") as lines,
        tqdm(total=config.num_steps, unit="step", dynamic_ncols=True) as bar,
    ):
        while step < config.num_steps:
            steps = min(config.log_every, config.num_steps - step)
            losses = []
            for batch in positions(
                run.seed, step, steps, len(data.train.labels), config.batch_size
            ):
                state, loss = make_step(state, run, data, batch)
                losses.append(loss)
                bar.update()
            step += steps
            validation = evaluate(state, data.validation)
            line = {
                "step": step,
                "train/batch_loss": float(np.mean(jax.device_get(losses))),
                "validation/loss": float(validation.loss),
                "validation/accuracy": float(validation.accuracy),
                **trust_ratio_metrics(state),
            }
            lines.write(json_line(line))
            lines.flush()
            bar.set_postfix(
                loss=f"{line['train/batch_loss']:.3g}",
                accuracy=f"{line['validation/accuracy']:.1%}",
            )
        outcome = jax.device_get(jax.jit(training.result)(state, data))
        last = {
            "step": step,
            "train/loss": outcome.train_loss.item(),
            "validation/accuracy": outcome.validation_accuracy.item(),
            "test/accuracy": outcome.test_accuracy.item(),
            "diverged": outcome.diverged.item(),
        }
        lines.write(json_line(last))
    session.record(seconds=round(time.monotonic() - started, 1))
    report(last, file)


def trust_ratio_metrics(state: State) -> dict[str, float]:
    """The trust ratio of every parameter by its path, if the optimizer is a LARS."""
    try:
        ratios = lars.trust_ratios(state.opt_state)
    except ValueError:
        return {}
    paths_and_ratios, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(ratios))
    return {
        f"trust_ratio/{jax.tree_util.keystr(path, simple=True, separator='/')}": (
            np.asarray(ratio).item()
        )
        for path, ratio in paths_and_ratios
    }


def json_line(metrics: dict[str, Any]) -> str:
    """One line of JSON, which has no NaN or infinity: these become strings."""
    return (
        json.dumps(
            {
                name: value if math.isfinite(value) else str(value)
                for name, value in metrics.items()
            }
        )
        + "\n"
    )


def last_line(file: Path) -> dict[str, Any]:
    """The last metrics of a file, or nothing if there are none or they are cut off."""
    try:
        return json.loads(file.read_text().splitlines()[-1])
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return {}


def report(last: dict[str, Any], file: Path) -> None:
    """Prints how the run ended."""
    state = "diverged" if last["diverged"] else "finished"
    print(
        f"{state} after {last['step']} steps: test accuracy "
        f"{last['test/accuracy']:.4f}, train loss {float(last['train/loss']):.4g}. "
        f"Metrics: {file}"
    )


if __name__ == "__main__":
    command.run(main)
