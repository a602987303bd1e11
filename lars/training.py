"""The one training function: every run and every sweep is made of these steps.

A run is data (a seed, scales, a learning rate), so that a sweep is an array of runs:

    make_training(model, make_optimizer, ...) ─► init(run) ─► advance ─► evaluate
    sweep_over(train) = jit(runs sharded over the devices, and mapped within each)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars.data import Data, Split
from lars.init_scales import count_kernels, scale_kernels
from lars.models import Model, Variables

MakeOptimizer = Callable[[jax.Array], optax.GradientTransformation]


class Run(NamedTuple):
    """What distinguishes one run from another. Arrays, so that runs can be stacked."""

    seed: jax.Array  # shape=(), int32: of the initial weights and of the batches
    kernel_scales: jax.Array  # shape=(kernels,), float32: factors on initial kernels
    learning_rate: jax.Array  # shape=(), float32: the peak of the schedule


class State(NamedTuple):
    """Everything that a run carries from step to step."""

    step: jax.Array  # shape=(), int32: steps made
    variables: Variables  # "params", and "batch_stats" where the model has them
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """The mean over examples."""

    loss: jax.Array  # cross-entropy in nats
    accuracy: jax.Array  # in [0, 1]; an example with non-finite logits counts as wrong


class Result(NamedTuple):
    """What a finished run reports."""

    train_loss: jax.Array
    validation_accuracy: jax.Array
    test_accuracy: jax.Array
    diverged: jax.Array  # bool: a parameter or the training loss is not finite


class Training(NamedTuple):
    """The parts of a run, and the whole. All are pure, none is compiled."""

    init: Callable[[Run, Data], State]
    step: Callable[[State, Run, Data, jax.Array], tuple[State, jax.Array]]
    """Makes one step on the images at given positions; returns the batch's loss too."""
    advance: Callable[[State, Run, Data, int], tuple[State, jax.Array]]
    """Makes a number of steps; returns the state and the loss of each batch."""
    evaluate: Callable[[State, Split], Metrics]
    result: Callable[[State, Data], Result]
    train: Callable[[Run, Data], Result]
    """Everything: `init`, all steps, `result`."""


def make_training(
    model: Model, make_optimizer: MakeOptimizer, *, num_steps: int, batch_size: int
) -> Training:
    """Puts a model and an optimizer together into a training function.

    Every epoch visits the training images in an order that only the seed decides, in
    batches of one size; what is left over at an epoch's end is left out of that epoch.
    Optimizers that are compared with the same seeds therefore start from the same
    weights and see the same batches.

    Args:
        model: the network.
        make_optimizer: from a learning rate (a traced scalar) to the optimizer,
            including its schedule.
        num_steps: steps of `Training.train`.
        batch_size: images a step.
    """

    def init(run: Run, data: Data) -> State:
        init_key, _ = jax.random.split(jax.random.key(run.seed))
        variables = model.init(init_key, data.train.images[:1])
        params = scale_kernels(variables["params"], run.kernel_scales)
        opt_state = make_optimizer(run.learning_rate).init(params)
        return State(
            jnp.zeros((), jnp.int32), {**variables, "params": params}, opt_state
        )

    def step(
        state: State, run: Run, data: Data, positions: jax.Array
    ) -> tuple[State, jax.Array]:
        images, labels = data.train.images[positions], data.train.labels[positions]

        def loss_of(params: Any) -> tuple[jax.Array, Variables]:
            logits, variables = model.apply(
                {**state.variables, "params": params}, images, True
            )
            return _cross_entropy(logits, labels).mean(), variables

        params = state.variables["params"]
        (loss, variables), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = make_optimizer(run.learning_rate).update(
            gradients, state.opt_state, params
        )
        params = optax.apply_updates(params, updates)
        return State(state.step + 1, {**variables, "params": params}, opt_state), loss

    def advance(
        state: State, run: Run, data: Data, steps: int
    ) -> tuple[State, jax.Array]:
        positions = batch_positions(
            run.seed, state.step, steps, data.train.labels.shape[0], batch_size
        )
        return jax.lax.scan(
            lambda state, batch: step(state, run, data, batch), state, positions
        )

    def evaluate(state: State, split: Split) -> Metrics:
        logits, _ = model.apply(state.variables, split.images, False)
        correct = jnp.argmax(logits, axis=-1) == split.labels
        correct &= jnp.isfinite(logits).all(axis=-1)
        return Metrics(
            loss=_cross_entropy(logits, split.labels).mean(),
            accuracy=correct.astype(jnp.float32).mean(),
        )

    def result(state: State, data: Data) -> Result:
        train_loss = evaluate(state, data.train).loss
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(state.variables)]
        return Result(
            train_loss=train_loss,
            validation_accuracy=evaluate(state, data.validation).accuracy,
            test_accuracy=evaluate(state, data.test).accuracy,
            diverged=~(jnp.isfinite(train_loss) & jnp.stack(finite).all()),
        )

    def train(run: Run, data: Data) -> Result:
        state, _ = advance(init(run, data), run, data, num_steps)
        return result(state, data)

    return Training(init, step, advance, evaluate, result, train)


def batch_positions(
    seed: jax.Array, first_step: jax.Array, steps: int, num_images: int, batch_size: int
) -> jax.Array:
    """Which images the steps from `first_step` on are made on.

    Returns:
        int32 array of shape [steps, batch_size] of positions in the training set.

    Raises:
        ValueError: if a batch is larger than the data.
    """
    if not 1 <= batch_size <= num_images:
        raise ValueError(
            f"batch_size must be from 1 to the {num_images} training images, "
            f"got {batch_size}."
        )
    _, data_key = jax.random.split(jax.random.key(seed))
    steps_per_epoch = num_images // batch_size
    step = first_step + jnp.arange(steps)
    first_epoch = first_step // steps_per_epoch
    # Steps that do not begin with an epoch reach into one epoch more.
    epochs = first_epoch + jnp.arange((steps - 1) // steps_per_epoch + 2)
    order = jax.vmap(
        lambda epoch: jax.random.permutation(
            jax.random.fold_in(data_key, epoch), num_images
        )
    )(epochs)
    order = order[:, : steps_per_epoch * batch_size].reshape(-1, batch_size)
    return order[step - first_epoch * steps_per_epoch]


def sweep_over(
    train: Callable[[Run, Data], Result],
    devices: Sequence[Any],
    runs_per_vmap: int,
) -> Callable[[Run, Data], Result]:
    """Compiles a training function for stacked runs, shared among the devices.

    Args:
        train: `Training.train`.
        devices: where to run; each gets an equal part of the runs.
        runs_per_vmap: how many runs a device vectorises at a time. The stacked runs
            must be a multiple of ``len(devices) * runs_per_vmap``. More is not faster
            on a CPU, and necessary to fill a GPU.

    Returns:
        A jitted function from stacked runs and data to stacked results.
    """
    mesh = jax.sharding.Mesh(devices, ("runs",))
    one, runs = jax.P(), jax.P("runs")

    def on_one_device(runs: Run, data: Data) -> Result:
        return jax.lax.map(
            lambda run: train(run, data),
            runs,
            batch_size=None if runs_per_vmap == 1 else runs_per_vmap,
        )

    return jax.jit(
        # The check does not know that a run's loop stays on its device.
        jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(runs, one),
            out_specs=runs,
            check_vma=False,
        )
    )


def num_kernels(model: Model, data: Data) -> int:
    """How many scales a `Run` of this model has."""
    variables = jax.eval_shape(model.init, jax.random.key(0), data.train.images[:1])
    return count_kernels(variables["params"])


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
