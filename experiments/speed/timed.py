"""What `experiments.throughput` times, each in a process of its own.

    python -m experiments.speed.timed JOB WHAT:SECONDS

Compiles, prints what it is as a line of JSON, and then measures for every line that it
reads.
"""

import functools
import importlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_mlp
from experiments import data as datasets
from experiments.cli.watching import Display
from experiments.data import standardise
from experiments.speed import throughput
from experiments.speed.flops import training_flops
from experiments.training.devices import use_every_core
from experiments.training.metrics import MetricsWriter
from experiments.training.plan import plan_of
from experiments.training.setup import configured_training, model_of
from experiments.training.single_run import layer_metrics
from experiments.training.training import Run, Training, sweep_over


class Timed(NamedTuple):
    """Something that is ready to be measured."""

    flops_per_image: float
    device: str
    measure: Callable[[], dict[str, float]]


def single_run(name: str, seconds: float) -> Timed:
    """The steps of ``configs/NAME.py``, with and without what surrounds them.

    Random images stand for those that would be streamed, at a speed that disks decide.
    """
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.image_size is not None:
        config.dataset = "synthetic"
    plan = plan_of(config)
    run, source, compiled = plan.run, plan.source, plan.compiled
    size, per_call = config.batch_size, config.steps_per_call
    progress = compiled.init(run, source.data)
    images = standardise(
        source.data.train.images[:1], source.data.mean, source.data.deviation
    )
    flops = training_flops(plan.model, progress.state.variables, images[0])
    batches = source.batches(config.seed, size, range(0, sys.maxsize, per_call))
    ready = list(itertools.islice(batches, 2))

    def bare(calls: int) -> None:
        """The steps alone, on batches that are there already."""
        nonlocal progress
        for call in range(calls):
            progress, _ = compiled.advance(progress, run, source.data, ready[call % 2])
        jax.block_until_ready(progress)

    step, random = 0, np.random.default_rng(0)
    writer = MetricsWriter(Path(tempfile.mkdtemp(prefix="lars-timed-")), step)

    def whole(calls: int) -> None:
        """The steps with batches, bar and metrics, as `experiments.train` has them."""
        nonlocal progress, step
        display = Display(step + calls * per_call, step, size)
        for batch in itertools.islice(batches, calls):
            progress, seen = compiled.advance(progress, run, source.data, batch)
            step += per_call
            display.reached(step, seen.loss)
            if step % config.log_every == 0:
                speed = display.speed(seen.loss)
                assert progress.diverged_at < 0
                line = {"step": step, "train/batch_loss": progress.mean_loss()}
                line |= layer_metrics(progress, seen)
                writer.write(line, speed)
                display.show(line, speed)
        display.close()
        jax.block_until_ready(progress)

    bare(2)
    whole(2)
    calls = max(2, round(seconds / 2 / _seconds(bare, 2) * 2))

    def measure() -> dict[str, float]:
        bare(1)  # while others were measured, memory may have been taken away
        ordered = [("seconds", whole), ("device_seconds", bare)]
        random.shuffle(ordered)
        images = calls * per_call * size
        return {name: _seconds(loop, calls) / images for name, loop in ordered}

    return Timed(flops, _device(), measure)


def _repeated(
    flops: float, loop: Callable[[int], Any], seconds: float, images: int
) -> Timed:
    """Times as many turns of a loop as take `seconds`; a turn is of `images` images."""
    loop(1)
    count = max(1, round(seconds / _seconds(loop, 1)))
    total = count * images
    return Timed(flops, _device(), lambda: {"seconds": _seconds(loop, count) / total})


def matrix_product(what: str, seconds: float) -> Timed:
    """Large matrix products on the device, with all of its cores."""
    del what
    x = jnp.full((throughput.PRODUCT_SIZE,) * 2, 1 / throughput.PRODUCT_SIZE)
    multiply = jax.jit(jnp.matmul)

    def loop(count: int) -> None:
        y = x
        for _ in range(count):
            y = multiply(y, x)
        jax.block_until_ready(y)

    return _repeated(0.0, loop, seconds, images=1)


def _digits() -> tuple[Any, datasets.Data, Training, float]:
    """Runs of ``configs/digits_mlp.py``."""
    config = digits_mlp.get_config()
    data = datasets.load(config.dataset)
    model = model_of(config.model, data.num_classes)
    training = configured_training(config, model)
    variables = model.init(jax.random.key(0), data.train.images[:1])
    flops = training_flops(model, variables, data.train.images[0])
    return config, data, training, flops


def _runs(config: Any, count: int) -> Run:
    seeds = jnp.arange(count, dtype=jnp.int32)
    rates = jnp.full(count, config.optimizer.learning_rate)
    return Run(seeds, jnp.ones((count, config.model.depth)), rates)


def whole_sweep(what: str, seconds: float) -> Timed:
    """Runs as figures make them: sharded, and mapped on each device."""
    del what, seconds  # a piece takes as long as it takes
    use_every_core()
    config, data, training, flops = _digits()
    devices = jax.devices()
    # An accelerator needs many runs to be busy; on a CPU many at once are no faster.
    runs_per_vmap = 1 if devices[0].platform == "cpu" else 64
    count = max(8, runs_per_vmap) * len(devices)
    compute = sweep_over(training.train, devices, runs_per_vmap)
    runs = _runs(config, count)
    jax.block_until_ready(compute(runs, data))
    images = count * config.num_steps * config.batch_size

    def loop(pieces: int) -> None:
        for _ in range(pieces):
            jax.block_until_ready(compute(runs, data))

    return Timed(flops, _device(), lambda: {"seconds": _seconds(loop, 3) / 3 / images})


def plain_loop(what: str, seconds: float) -> Timed:
    """The same runs one after the other, each a call of a jitted function."""
    del what
    config, data, training, flops = _digits()
    train = jax.jit(training.train)
    runs = _runs(config, 8)

    def loop(count: int) -> None:
        for i in range(count):
            run = jax.tree.map(lambda x, i=i: x[i % 8], runs)
            jax.block_until_ready(train(run, data))

    return _repeated(flops, loop, seconds, config.num_steps * config.batch_size)


def torch_loop(what: str, seconds: float) -> Timed:
    """The same runs in PyTorch: network, batches, LARS and schedule.

    With as many threads as are fastest: small matrix products often want one.
    """
    del what
    import torch  # pyright: ignore[reportMissingImports]

    config, data, _, flops = _digits()
    images = torch.tensor(np.asarray(data.train.images).reshape(-1, 64))
    labels = torch.tensor(np.asarray(data.train.labels)).long()
    test_images = torch.tensor(np.asarray(data.test.images).reshape(-1, 64))
    test_labels = torch.tensor(np.asarray(data.test.labels)).long()
    width, steps, size = config.model.width, config.num_steps, config.batch_size
    accuracies: list[float] = []

    def train(seed: int) -> None:
        torch.manual_seed(seed)
        nn = torch.nn
        model = nn.Sequential(
            *(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 10),
        )
        for layer in model[::2]:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        params = list(model.parameters())
        momenta = [torch.zeros_like(x) for x in params]

        def module_norms(tensors: Any) -> Any:  # of each kernel and its bias together
            norms = torch.stack(torch._foreach_norm(tensors))
            return norms.reshape(-1, 2).square().sum(1).sqrt()

        batches: Any = iter(())
        for step in range(steps):
            batch = next(batches, None)
            if batch is None or len(batch) < size:
                batches = iter(torch.randperm(len(labels)).split(size))
                batch = next(batches)
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            grads = torch.autograd.grad(loss, params)
            with torch.no_grad():
                rate = 20.0 * (1 - step / steps)
                ratios = 1e-3 * module_norms(params) / module_norms(grads)
                factors = (rate * ratios).repeat_interleave(2).unbind()
                torch._foreach_mul_(momenta, 0.9)
                torch._foreach_add_(momenta, torch._foreach_mul(grads, factors))
                torch._foreach_sub_(params, momenta)
        with torch.no_grad():
            right = model(test_images).argmax(1) == test_labels
        accuracies.append(right.float().mean().item())

    def loop(count: int) -> None:
        for seed in range(count):
            train(seed)

    times = {}
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        loop(1)
        times[threads] = _seconds(loop, 2)
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    if min(accuracies) < 0.9:
        raise RuntimeError(f"PyTorch's runs did not learn: {accuracies}")
    count = max(1, round(seconds / times[best] * 2))
    total = count * steps * size
    device = f"PyTorch {torch.__version__}, {best} thread(s)"
    return Timed(flops, device, lambda: {"seconds": _seconds(loop, count) / total})


JOBS: dict[str, Callable[[str, float], Timed]] = {
    "run": single_run,
    throughput.PRODUCT: matrix_product,
    throughput.SWEEP: whole_sweep,
    throughput.LOOP: plain_loop,
    throughput.TORCH: torch_loop,
}


def _seconds(loop: Callable[[int], Any], count: int) -> float:
    started = time.perf_counter()
    loop(count)
    return time.perf_counter() - started


def _device() -> str:
    return f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"


def main() -> None:
    """Prepares the job of the command line and answers for it."""
    from absl import flags

    job, argument = sys.argv[1:]
    flags.FLAGS(sys.argv[:1])
    what, _, seconds = argument.rpartition(":")
    say = functools.partial(print, flush=True)
    try:
        timed = JOBS[job](what, float(seconds))
    except (ValueError, OSError, ImportError) as error:
        say(json.dumps({"problem": str(error)}))
        return
    facts = {"flops_per_image": timed.flops_per_image, "device": timed.device}
    say(json.dumps(facts))
    for _ in sys.stdin:
        say(json.dumps(timed.measure()))


if __name__ == "__main__":
    main()
