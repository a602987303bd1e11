"""The one training function: every run and every sweep is made of these steps.

A run is data (a seed, scales, a learning rate), so that a sweep is an array of runs:

    make_training(model, make_optimizer, ...) ─► init(run) ─► step ... ─► evaluate
    sweep_over(train) = jit(runs sharded over the devices, and mapped within each)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from experiments.data import Data, Split, standardise
from experiments.data.augmentation import (
    Augmentation,
    alternating_flips,
    augment,
    mirrored,
)
from experiments.networks import Model, Variables
from experiments.networks.init_scales import kernel_positions, scale_kernels
from experiments.networks.initialization import Initialization, initialization_named
from experiments.training.sharding import device_mesh, replicated, split
from lars.norms import l2_norm
from lars.rules import flatten_with_path, path_string
from lars.state import trust_ratios
from lars.waking import WakingState

FIRST_IMAGES = 1000
"""How many training images a network may look at when it is initialized."""

_Outcome = TypeVar("_Outcome", bound=tuple)
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


class Report(NamedTuple):
    """What a step saw. The norms are those that it was made with, from before it."""

    loss: jax.Array  # shape=(), float32: the mean over the batch
    weight_norms: jax.Array  # shape=(parameters,), float32, in the order of the tree
    gradient_norms: jax.Array  # the same
    trust_ratios: jax.Array | None  # the same; None if the optimizer has none
    wakings: jax.Array | None
    """shape=(4,), int32: moves of the network so far, by `lars.silence.REASONS`; None
    if the optimizer makes none."""


class _Part(NamedTuple):
    """What one gradient is computed from."""

    batch: jax.Array | Split
    is_mirrored: jax.Array | None  # [B], bool, where flips alternate


class Metrics(NamedTuple):
    """The mean over examples."""

    loss: jax.Array  # cross-entropy in nats, without label smoothing
    accuracy: jax.Array  # in [0, 1]; an example with non-finite logits counts as wrong


class Sums(NamedTuple):
    """The sum over examples: those of the parts of a split add up."""

    loss: Any  # shape=(), float32; or a float where a host adds up
    correct: Any
    examples: Any


class Curve(NamedTuple):
    """What a run was like at several points [points, ...], the last of them its end."""

    train_loss: jax.Array  # over as many training images as there are test images
    test_loss: jax.Array
    test_accuracy: jax.Array
    weight_norms: jax.Array  # [points, parameters], as in `Report`: the mean over the
    gradient_norms: jax.Array  # same number of steps before each point


class Result(NamedTuple):
    """What a finished run reports."""

    train_loss: jax.Array  # of `some_of_training`
    validation_accuracy: jax.Array
    test_accuracy: jax.Array
    test_loss: jax.Array
    diverged: jax.Array  # bool: a parameter or `train_loss` is not finite


class Training(NamedTuple):
    """The parts of a run, and the whole. All are pure, none is compiled."""

    init: Callable[[Run, Data], State]
    step: Callable[[State, Run, Data, jax.Array | Split], tuple[State, Report]]
    """Makes one step, on training images at given positions [B] or on given ones."""
    are_finite: Callable[[State, Run, Data, jax.Array | Split], dict[str, jax.Array]]
    """Whether each thing that a step computes is finite, by its name and in order: the
    outputs of the layers, the loss, and the variables after it."""
    advance: Callable[[State, Run, Data, int], tuple[State, jax.Array]]
    """Makes a number of steps; returns the state and the loss of each batch."""
    evaluate: Callable[[State, Data, Split], Metrics]
    evaluate_part: Callable[[State, Data, Split, jax.Array], Sums]
    """Sums up over the images whose mask [B] is true."""
    result: Callable[[State, Data], Result]
    train: Callable[[Run, Data], Result]
    """Everything: `init`, all steps, `result`; ends early if a weight is not finite."""
    curve: Callable[[Run, Data, int], Curve]
    """Makes the steps of `train`, and looks at the run at a number of points."""


def make_training(
    model: Model,
    make_optimizer: MakeOptimizer,
    *,
    num_steps: int,
    batch_size: int,
    label_smoothing: float = 0.0,
    microbatches: int = 1,
    augmentation: Augmentation | None = None,
    mirrored_evaluation: bool = False,
    initialization: Initialization = "scaled",
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
        label_smoothing: α; the targets of the loss are (1 - α) one-hot + α / classes.
        microbatches: how many equal parts a batch is worked on in, one after the other,
            to save memory. The gradient is their mean; batch normalization sees each
            part alone.
        augmentation: what to do to the images, if anything.
        mirrored_evaluation: whether an image is evaluated by the mean of its logits and
            those of its mirror image.
        initialization: what is done to the kernels once they are scaled.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r}."
        )
    mend = initialization_named(initialization)

    def init(run: Run, data: Data) -> State:
        init_key, _ = jax.random.split(jax.random.key(run.seed))
        first = data.train.images[:FIRST_IMAGES]
        images = standardise(first, data.mean, data.deviation)
        # Compiled, so that what the parameters do not depend on is left out.
        variables = jax.jit(model.init)(init_key, images)
        params = scale_kernels(variables["params"], run.kernel_scales)
        if mend is not None:
            first = data.train.images[positions_of(run, data, jnp.int32(0), 1)[0]]
            batch = standardise(first, data.mean, data.deviation)
            params = mend(model, {**variables, "params": params}, batch)
        opt_state = make_optimizer(run.learning_rate).init(params)
        return State(jnp.int32(0), {**variables, "params": params}, opt_state)

    def positions_of(run: Run, data: Data, first: jax.Array, steps: int) -> jax.Array:
        count = len(data.train.labels)
        return batch_positions(run.seed, first, steps, count, batch_size)

    def seen(
        data: Data, part: _Part, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The images and labels that the model is given, and the key of its dropout."""
        batch = part.batch
        if not isinstance(batch, Split):
            batch = Split(data.train.images[batch], data.train.labels[batch])
        images, labels = batch
        model_key, image_key = jax.random.split(key)
        images = standardise(images, data.mean, data.deviation)
        if augmentation is not None:
            images = augment(image_key, images, augmentation, part.is_mirrored)
        return images, labels, model_key

    def flips_of(
        state: State, run: Run, data: Data, batch: jax.Array | Split
    ) -> jax.Array | None:
        """Which images of a batch are mirrored, where this is a matter of the epoch."""
        if augmentation is None or augmentation.flip != "alternating":
            return None
        assert not isinstance(
            batch, Split
        )  # `experiments.training.plan` has seen to it
        count = len(data.train.labels)
        _, data_key = jax.random.split(jax.random.key(run.seed))
        # Epochs have their orders from the keys of 0, 1, 2, ...
        key = jax.random.fold_in(data_key, jnp.uint32(2**32 - 1))
        epoch = state.step // (count // batch_size)
        return alternating_flips(key, epoch, batch, count)

    def parts_of(
        state: State, run: Run, data: Data, batch: jax.Array | Split
    ) -> tuple[_Part, jax.Array]:
        """The microbatches [microbatches, ...], and a key for each."""
        init_key, _ = jax.random.split(jax.random.key(run.seed))
        key = jax.random.fold_in(init_key, state.step)
        # Every so manieth image, so that each device works on its own ones.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1),
            _Part(batch, flips_of(state, run, data, batch)),
        )
        keys = key[None] if microbatches == 1 else jax.random.split(key, microbatches)
        return parts, keys

    def gradient(
        variables: Variables, data: Data, part: _Part, key: jax.Array
    ) -> tuple[jax.Array, Variables, Any]:
        images, labels, model_key = seen(data, part, key)

        def loss_of(params: Any) -> tuple[jax.Array, Variables]:
            logits, updated = model.apply(
                {**variables, "params": params}, images, model_key
            )
            if logits.shape[:-1] != labels.shape:
                raise ValueError(
                    f"the network gives logits of shape {logits.shape} for labels of "
                    f"shape {labels.shape}; texts need model.name='decoder', and "
                    "images another network."
                )
            return _smoothed_cross_entropy(logits, labels, label_smoothing), updated

        (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            variables["params"]
        )
        return loss, updated, gradients

    def step(
        state: State, run: Run, data: Data, batch: jax.Array | Split
    ) -> tuple[State, Report]:
        params = state.variables["params"]
        loss, variables, gradients = _mean_over_parts(
            lambda variables, part, key: gradient(variables, data, part, key),
            state.variables,
            *parts_of(state, run, data, batch),
        )
        updates, opt_state = make_optimizer(run.learning_rate).update(
            gradients, state.opt_state, params
        )
        weight_norms, gradient_norms = (
            jnp.stack([l2_norm(x).astype(jnp.float32) for x in jax.tree.leaves(tree)])
            for tree in (params, gradients)
        )
        params = optax.apply_updates(params, updates)
        state = State(state.step + 1, {**variables, "params": params}, opt_state)
        ratios, wakings = _trust_ratios(opt_state), _wakings(opt_state)
        return state, Report(loss, weight_norms, gradient_norms, ratios, wakings)

    def are_finite(
        state: State, run: Run, data: Data, batch: jax.Array | Split
    ) -> dict[str, jax.Array]:
        def outputs(part_and_key: Any) -> dict[str, jax.Array]:
            images, _, model_key = seen(data, *part_and_key)
            made = model.outputs(state.variables, images, model_key)
            names[:] = made  # in their order, which dictionaries lose in `map`
            return {name: jnp.isfinite(x).all() for name, x in made.items()}

        names: list[str] = []
        flags = jax.lax.map(outputs, parts_of(state, run, data, batch))
        after, report = step(state, run, data, batch)
        return {
            **{name: flags[name].all() for name in names},
            "the loss": jnp.isfinite(report.loss),
            **{
                f"the step of {path_string(path)}": jnp.isfinite(leaf).all()
                for path, leaf in flatten_with_path(after.variables)[0]
            },
        }

    def advance_reporting(
        state: State, run: Run, data: Data, steps: int, kept: Callable[[Report], Any]
    ) -> tuple[State, Any]:
        """Makes steps, and stacks what is kept of their reports."""

        def step_and_keep(state: State, batch: jax.Array) -> tuple[State, Any]:
            state, report = step(state, run, data, batch)
            return state, kept(report)

        positions = positions_of(run, data, state.step, steps)
        return jax.lax.scan(step_and_keep, state, positions)

    def advance(
        state: State, run: Run, data: Data, steps: int
    ) -> tuple[State, jax.Array]:
        return advance_reporting(state, run, data, steps, lambda report: report.loss)

    def evaluate_part(state: State, data: Data, split: Split, mask: jax.Array) -> Sums:
        images = standardise(split.images, data.mean, data.deviation)
        logits, _ = model.apply(state.variables, images, None)
        if mirrored_evaluation:
            others, _ = model.apply(state.variables, mirrored(images), None)
            logits = (logits + others) / 2
        correct = jnp.argmax(logits, axis=-1) == split.labels
        correct &= jnp.isfinite(logits).all(axis=-1)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
        # An image has one label, and a text has one for each character.
        mask = jnp.reshape(mask, (-1,) + (1,) * (loss.ndim - 1))
        mask = jnp.broadcast_to(mask, loss.shape)
        return Sums(
            jnp.where(mask, loss, 0).sum(),
            (correct & mask).astype(jnp.float32).sum(),
            mask.astype(jnp.float32).sum(),
        )

    def evaluate(state: State, data: Data, split: Split) -> Metrics:
        everything = jnp.ones(len(split.labels), bool)
        return metrics_of(evaluate_part(state, data, split, everything))

    def result(state: State, data: Data) -> Result:
        train_loss = evaluate(state, data, some_of_training(data)).loss
        test = evaluate(state, data, data.test)
        return Result(
            train_loss=train_loss,
            validation_accuracy=evaluate(state, data, data.validation).accuracy,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            diverged=~(jnp.isfinite(train_loss) & all_finite(state.variables)),
        )

    def train(run: Run, data: Data) -> Result:
        positions = positions_of(run, data, jnp.int32(0), num_steps)

        def goes_on(state: State) -> jax.Array:
            # Updates are added: what is not finite once is never finite again.
            is_alive = all_finite(state.variables["params"])
            return (state.step < num_steps) & is_alive

        def next_state(state: State) -> State:
            return step(state, run, data, positions[state.step])[0]

        state = jax.lax.while_loop(goes_on, next_state, init(run, data))
        return result(state, data)

    def curve(run: Run, data: Data, num_points: int) -> Curve:
        between = num_steps // num_points
        if not between:
            raise ValueError(
                f"num_points must be at most num_steps ({num_steps}), got {num_points}."
            )

        def to_next_point(state: State, _: None) -> tuple[State, Curve]:
            def norms_of(report: Report) -> tuple[jax.Array, jax.Array]:
                return report.weight_norms, report.gradient_norms

            state, norms = advance_reporting(state, run, data, between, norms_of)
            train, test = (
                evaluate(state, data, x) for x in (some_of_training(data), data.test)
            )
            means = (norm.mean(axis=0) for norm in norms)
            return state, Curve(train.loss, test.loss, test.accuracy, *means)

        # What does not divide comes before the first point: the last is the end.
        state, before = init(run, data), num_steps % num_points
        if before:
            state, _ = advance(state, run, data, before)
        _, points = jax.lax.scan(to_next_point, state, length=num_points)
        return points

    return Training(
        init, step, are_finite, advance, evaluate, evaluate_part, result, train, curve
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def some_of_training(data: Data) -> Split:
    """As many training images as there are test images: as good a mean of the loss."""
    return Split(*(x[: len(data.test.labels)] for x in data.train))


def metrics_of(sums: Sums) -> Metrics:
    """The means over all examples that were summed up."""
    return Metrics(sums.loss / sums.examples, sums.correct / sums.examples)


def epoch_order(seed: jax.Array, epoch: jax.Array, num_images: int) -> jax.Array:
    """The positions [num_images], int32, of the images in the order of an epoch."""
    _, data_key = jax.random.split(jax.random.key(seed))
    return jax.random.permutation(jax.random.fold_in(data_key, epoch), num_images)


def batch_positions(
    seed: jax.Array, first_step: jax.Array, steps: int, num_images: int, batch_size: int
) -> jax.Array:
    """The positions [steps, batch_size], int32, of the images of steps."""
    if not 1 <= batch_size <= num_images:
        raise ValueError(
            f"batch_size must be from 1 to the {num_images} training images, "
            f"got {batch_size}."
        )
    steps_per_epoch = num_images // batch_size
    step = first_step + jnp.arange(steps)
    first_epoch = first_step // steps_per_epoch
    # Steps that do not begin with an epoch reach into one epoch more.
    epochs = first_epoch + jnp.arange((steps - 1) // steps_per_epoch + 2)
    order = jax.vmap(lambda epoch: epoch_order(seed, epoch, num_images))(epochs)
    order = order[:, : steps_per_epoch * batch_size].reshape(-1, batch_size)
    return order[step - first_epoch * steps_per_epoch]


def sweep_over(
    train: Callable[[Run, Data], _Outcome],
    devices: Sequence[Any],
    runs_per_vmap: int,
) -> Callable[[Run, Data], _Outcome]:
    """Compiles a training function for stacked runs, shared among the devices.

    The stacked runs must be a multiple of ``len(devices) * runs_per_vmap``. A device
    vectorises `runs_per_vmap` runs at a time: more is not faster on a CPU, and
    necessary to fill a GPU.
    """
    mesh = device_mesh(devices)
    one, parts = replicated(mesh).spec, split(mesh).spec

    def on_one_device(runs: Run, data: Data) -> _Outcome:
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
            in_specs=(parts, one),
            out_specs=parts,
            check_vma=False,
        )
    )


def num_kernels(model: Model, data: Data) -> int:
    """How many scales a `Run` of this model has."""

    def init(data: Data) -> Variables:
        images = standardise(data.train.images[:1], data.mean, data.deviation)
        return model.init(jax.random.key(0), images)

    return len(kernel_positions(jax.eval_shape(init, data)["params"]))


def _trust_ratios(opt_state: optax.OptState) -> jax.Array | None:
    try:
        ratios = trust_ratios(opt_state)
    except ValueError:  # not a LARS
        return None
    return jnp.stack(jax.tree.leaves(ratios))


def _wakings(opt_state: optax.OptState) -> jax.Array | None:
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, WakingState))
    return next((x.reasons for x in states if isinstance(x, WakingState)), None)


def _mean_over_parts(
    gradient: Callable[..., tuple[jax.Array, Variables, Any]],
    variables: Variables,
    parts: Any,
    keys: jax.Array,
) -> tuple[jax.Array, Variables, Any]:
    """The mean loss and gradient; statistics are updated by one part after another."""
    count = len(keys)
    if count == 1:
        part, key = jax.tree.map(lambda x: x[0], (parts, keys))
        return gradient(variables, part, key)

    def add(carry: Any, part_and_key: Any) -> tuple[Any, None]:
        loss_sum, updated, gradient_sum = carry
        loss, updated, gradients = gradient(updated, *part_and_key)
        total = jax.tree.map(jnp.add, gradient_sum, gradients)
        return (loss_sum + loss, updated, total), None

    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    start = (jnp.zeros(()), variables, zeros)
    (loss, updated, total), _ = jax.lax.scan(add, start, (parts, keys))
    return loss / count, updated, jax.tree.map(lambda g: g / count, total)


def _smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float
) -> jax.Array:
    if not smoothing:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        one_hot = jax.nn.one_hot(labels, logits.shape[-1])
        targets = optax.smooth_labels(one_hot, smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
    return losses.mean()
