"""What a run will be: everything that is built, and refused, before the first step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.networks import Model
from experiments.networks.init_scales import check_profile, profile_scales
from experiments.training.optimizers import check_learning_rate, describe_parameters
from experiments.training.schedules import corner_values, learning_rate_schedule
from experiments.training.setup import (
    augmentation_of,
    check_count,
    check_seed,
    model_of,
    training_of,
)
from experiments.training.sharding import device_mesh
from experiments.training.single_run import Compiled, compile_run
from experiments.training.sources import Source, open_source
from experiments.training.training import Run, Training, num_kernels


class Plan(NamedTuple):
    """A run that can be made."""

    model: Model
    training: Training
    schedule: Callable[[int], jax.Array]  # the learning rate of a step
    source: Source
    run: Run
    compiled: Compiled


def plan_of(config: Any) -> Plan:
    """Checks a configuration and builds what it names, on all devices.

    Raises:
        ValueError, TypeError: for a setting that makes no sense, with its value.
        OSError: for data that cannot be read.
    """
    for name in ("log_every", "evaluate_every", "checkpoint_every", "eval_batch_size"):
        check_count(name, config[name])
    if config.evaluate_every % config.log_every:
        raise ValueError(
            f"evaluate_every must be a multiple of log_every ({config.log_every}), "
            f"got {config.evaluate_every}."
        )
    check_count("steps_per_call", config.steps_per_call)
    for name in ("log_every", "checkpoint_every"):
        if config[name] % config.steps_per_call:
            raise ValueError(
                f"{name} must be a multiple of steps_per_call "
                f"({config.steps_per_call}), got {config[name]}."
            )
    if config.image_size is not None and config.steps_per_call > 1:
        raise ValueError(
            "steps_per_call must be 1 where images are streamed (image_size "
            f"{config.image_size}), got {config.steps_per_call}."
        )
    check_count("data_workers", config.data_workers, least=0)
    check_count("microbatches", config.microbatches)
    check_seed(config.seed)
    check_learning_rate(config.optimizer.learning_rate)
    check_profile(config.profile, config.init_scale)
    mesh = device_mesh()
    parts = config.microbatches * mesh.size
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of {parts} ({config.microbatches} "
            f"microbatches on {mesh.size} devices), got {config.batch_size}."
        )
    source = open_source(
        config.dataset,
        mesh,
        image_size=config.image_size,
        num_workers=config.data_workers,
    )
    model = model_of(config.model, source.num_classes)
    training = training_of(
        config,
        config.optimizer,
        model,
        source.num_train,
        label_smoothing=config.label_smoothing,
        microbatches=config.microbatches,
        augmentation=augmentation_of(config.augmentation),
    )
    scales = profile_scales(
        config.profile, config.init_scale, num_kernels(model, source.data), config.seed
    )
    run = Run(
        seed=jnp.int32(config.seed),
        kernel_scales=jnp.asarray(scales),
        learning_rate=jnp.float32(config.optimizer.learning_rate),
    )
    compiled = compile_run(
        training,
        source,
        mesh,
        run,
        batch_size=config.batch_size,
        placement=config.placement,
        log_every=config.log_every,
        eval_batch_size=config.eval_batch_size,
    )
    schedule = learning_rate_schedule(
        config.optimizer.learning_rate, config.num_steps, **config.schedule
    )
    return Plan(
        model, training, jax.jit(schedule), source, jax.device_get(run), compiled
    )


def print_plan(config: Any, plan: Plan) -> None:
    """Prints who is adapted, decayed and where, and the learning rates."""
    params = plan.compiled.like.state.variables["params"]
    optimizer = config.optimizer
    print(describe_parameters(optimizer.name, optimizer.settings, params))
    epochs = config.num_steps * config.batch_size / plan.source.num_train
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    print(
        f"\n{config.num_steps} steps of {config.batch_size} images on {devices}: "
        f"{epochs:.1f} epochs of the {plan.source.num_train} of {config.dataset}."
    )
    print("\nlearning rate")
    for corner, value in corner_values(
        plan.schedule, config.num_steps, config.schedule.warmup_steps
    ).items():
        print(f"  {corner:28} {value:.6g}")
