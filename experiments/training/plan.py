"""What a run will be: everything that is built, and refused, before the first step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.checks import check_count
from experiments.networks import Model
from experiments.networks.init_scales import profile_scales
from experiments.training.optimizers import describe_parameters
from experiments.training.schedules import corner_values, learning_rate_schedule
from experiments.training.setup import augmentation_of, configured_training, model_of
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
    _check_numbers(config)
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
    training = configured_training(
        config,
        model,
        label_smoothing=config.label_smoothing,
        microbatches=config.microbatches,
        augmentation=augmentation_of(config.augmentation),
        mirrored_evaluation=config.mirrored_evaluation,
    )
    if config.batch_size > source.num_train:
        raise ValueError(
            f"batch_size must be at most the {source.num_train} training images, "
            f"got {config.batch_size}."
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


def _check_numbers(config: Any) -> None:
    for name, least in {
        **dict.fromkeys(("log_every", "evaluate_every", "checkpoint_every"), 1),
        **dict.fromkeys(("eval_batch_size", "steps_per_call", "microbatches"), 1),
        **dict.fromkeys(("data_workers", "seed"), 0),
    }.items():
        check_count(name, config[name], least)
    for name, divisor in (
        ("evaluate_every", "log_every"),
        ("log_every", "steps_per_call"),
        ("checkpoint_every", "steps_per_call"),
    ):
        if config[name] % config[divisor]:
            raise ValueError(
                f"{name} must be a multiple of {divisor} ({config[divisor]}), "
                f"got {config[name]}."
            )
    if config.image_size is not None and config.steps_per_call > 1:
        raise ValueError(
            "steps_per_call must be 1 where images are streamed (image_size "
            f"{config.image_size}), got {config.steps_per_call}."
        )
    if config.image_size is not None:
        if config.augmentation.flip == "alternating":
            raise ValueError(
                "augmentation.flip must be none or random where images are streamed "
                f"(image_size {config.image_size}), got 'alternating'."
            )
        if config.model.name == "whitened_cnn":
            raise ValueError(
                "model.name must be another where images are streamed (image_size "
                f"{config.image_size}), got 'whitened_cnn': its first layer is made "
                "from images in memory."
            )
    learning_rate = config.optimizer.learning_rate
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(
            f"learning_rate must be finite and above 0, got {learning_rate}."
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
