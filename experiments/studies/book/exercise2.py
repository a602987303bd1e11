"""Exercise 2: linear and softmax regression may start with all weights equal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

from experiments.data import load
from experiments.studies.book.shared import descended
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import legend_below, line_over_seeds, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

STARTS = ("zero", "constant", "random")
LINEAR, SOFTMAX, HIDDEN = "linear regression", "softmax regression", "one hidden layer"
MODELS = (LINEAR, SOFTMAX, HIDDEN)

Weights = list[np.ndarray]


@functools.lru_cache
def problem(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, inputs] with a column of ones, and targets [N, outputs], in float64.

    Patients of scikit-learn's diabetes and the progression of their disease for linear
    regression, the training images of the digits for the others.
    """
    if model == LINEAR:
        x, y = load_diabetes(return_X_y=True)
        targets = ((y - y.mean()) / y.std())[:, None]
        x = (x - x.mean(0)) / x.std(0)
    else:
        split = load("digits").train
        x = np.asarray(split.images, np.float64).reshape(len(split.labels), -1)
        targets = np.eye(10)[np.asarray(split.labels)]
    return np.hstack([x, np.ones((len(x), 1))]), targets


def initial(
    model: str, start: str, sizes: tuple[int, int], hidden: int, seed: int
) -> Weights:
    """The matrices of a model: all zero, all one constant, or random.

    The sizes are those of inputs and outputs; the seed draws constants or elements.
    """
    random = np.random.default_rng(seed)
    inputs, outputs = sizes
    shapes = [(inputs, hidden), (hidden, outputs)] if model == HIDDEN else [sizes]
    draw = {
        "zero": np.zeros,
        "constant": lambda shape: np.full(shape, random.uniform(-0.2, 0.2)),
        "random": lambda shape: random.standard_normal(shape) / np.sqrt(shape[0]),
    }[start]
    return [draw(shape) for shape in shapes]


def outputs_of(weights: Weights, x: jax.Array) -> jax.Array:
    """Of one matrix, or of two with tanh units between them."""
    *hidden, last = weights
    for kernel in hidden:
        x = jnp.tanh(x @ kernel)
    return x @ last


def loss(
    weights: Weights, model: str, x: jax.Array, targets: jax.Array, ridge: float
) -> jax.Array:
    """The mean loss, with ridge/2 times the squares of all weights.

    Squared errors halved for linear regression, the cross-entropy for the others.
    """
    outputs = outputs_of(weights, x)
    if model == LINEAR:
        losses = optax.squared_error(outputs, targets).sum(1) / 2
    else:
        losses = optax.softmax_cross_entropy(outputs, targets)
    return losses.mean() + ridge / 2 * sum(jnp.square(w).sum() for w in weights)


@functools.partial(jax.jit, static_argnames=("model", "shown"))
def _looks(
    weights: Weights, model: str, shown: tuple[int, ...], rate: float, *problem: Any
) -> tuple[Weights, jax.Array, jax.Array, jax.Array]:
    """Weights, losses, gradients of the first matrix and outputs after some steps."""
    of = jax.value_and_grad(lambda weights: loss(weights, model, *problem))
    steps = max(shown) + 1
    _, path = descended(lambda weights: of(weights)[1], weights, optax.sgd(rate), steps)
    kept = jax.tree.map(lambda w: w[jnp.array(shown)], path)
    losses, (gradients, *_) = jax.vmap(of)(kept)
    return kept, losses, gradients, jax.vmap(outputs_of, (0, None))(kept, problem[0])


# All starts of a model have one reference.
@functools.lru_cache(maxsize=8)
def _run(model: str, start: str, seed: int, hidden: int, *settings: Any) -> list[Any]:
    """The results of `_looks`, one entry for each step that is shown."""
    x, targets = problem(model)
    sizes = (x.shape[1], targets.shape[1])
    weights = initial(model, start, sizes, hidden, seed)
    shown, rate, ridge = settings
    with jax.enable_x64(True):
        looks = _looks(weights, model, shown, rate, x, targets, ridge)
        kept, *others = jax.tree.map(np.asarray, looks)
    return list(zip(zip(*kept, strict=True), *others, strict=True))


def cells(settings: Settings) -> list[Cell]:
    """Every model from every start."""
    return combinations(model=MODELS, start=STARTS)


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Plain gradient descent on all examples, in float64.

    The distance is to the weights that the random start of seed 0 ends at, relative to
    their norm, so that it is 0 for that run itself.
    """
    model, start = cell["model"], cell["start"]
    last, rate, ridge = (
        settings[name][model] for name in ("num_steps", "learning_rates", "ridges")
    )
    # Every power of two, and the last.
    shown = tuple(sorted({0, *(2**k for k in range(last.bit_length())), last}))
    arguments = (settings["hidden"], shown, rate, ridge)

    def flat(weights: Weights) -> np.ndarray:
        return np.concatenate([np.ravel(w) for w in weights])

    reference = flat(_run(model, "random", 0, *arguments)[-1][0])
    rows = []
    # Of zeros there is one start only.
    for seed in range(1 if start == "zero" else settings["seeds"]):
        looks = _run(model, start, seed, *arguments)
        for step, (weights, value, gradient, outputs) in zip(shown, looks, strict=True):
            apart = np.linalg.norm(flat(weights) - reference)
            largest = max(np.abs(gradient).max(), 1e-300)
            rows.append(
                {
                    "seed": seed,
                    "step": step,
                    "loss": value,
                    "accuracy": _accuracy(model, outputs),
                    "distance": apart / np.linalg.norm(reference),
                    "rank": rank(weights[0]),
                    "gradient_rank": rank(gradient),
                    "gradient_spread": np.ptp(gradient) / largest,
                }
            )
    return pd.DataFrame(rows)


def rank(matrix: np.ndarray) -> int:
    """The rank, where singular values below 1e-6 of the largest count as zero.

    A start that is constant has rank one. Other parts of it, which the inputs make,
    decay only with the ridge, so that the floor is far above rounding.
    """
    return int(np.linalg.matrix_rank(matrix, rtol=1e-6))


def _accuracy(model: str, outputs: np.ndarray) -> float:
    """Of training examples; of linear regression the R², which is its like."""
    _, targets = problem(model)
    if model == LINEAR:
        return 1 - np.square(outputs - targets).mean() / targets.var()
    return (outputs.argmax(1) == targets.argmax(1)).mean()


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above the loss, below the distance of the weights; a column for each model."""
    title = (
        "Gradient descent from weights that are all zero, all one constant, or random\n"
        f"(median, lowest and highest of {settings['seeds']} seeds)"
    )
    figure, axes = panels(2, 3, title, height=2.9, width=3.5)
    for (upper, lower), model in zip(axes.T, MODELS, strict=True):
        for number, start in enumerate(STARTS):
            rows = only(table, model=model, start=start)
            # The run that distances are taken to has none of its own.
            others = rows[rows["seed"] > 0] if start == "random" else rows
            size = 8 - 2 * number
            for panel, shown, name in (
                (upper, rows, "loss"),
                (lower, others, "distance"),
            ):
                series = (shown, "step", name, number, start, "median")
                line_over_seeds(panel, *series, markersize=size)
        # The lowest loss at the end is the optimum where the loss is convex.
        best = only(table, model=model)["loss"].min()
        upper.axhline(best, color="gray", linewidth=1, label="lowest of all")
        upper.set(title=model)
        last = settings["num_steps"][model]
        ticks = [0, *(10**k for k in range(len(str(last))))]
        lower.set_yscale("symlog", linthresh=1e-12)
        lower.set(xlabel="step", yticks=[0, 1e-12, 1e-8, 1e-4, 1], ylim=(-2e-13, 30))
        for panel in (upper, lower):
            panel.set_xscale("symlog", linthresh=1)
            panel.set(xticks=ticks, xlim=(-0.2, 1.5 * last))
            panel.minorticks_off()
    axes[0, 0].set_ylabel("loss, with ridge")
    axes[1, 0].set_ylabel("distance to the weights from\na random start, relative")
    legend_below(axes[0, 0], 4)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Equal weights do no harm without a hidden layer, and do harm with one."""
    result = []
    for model in (LINEAR, SOFTMAX):
        rows = only(table, model=model)
        end = only(rows, step=rows["step"].max())
        losses = float(np.ptp(end["loss"]) / end["loss"].min())
        result.append(
            judge(
                f"All weights of a {model} may start at one value.",
                f"After {rows['step'].max()} steps from zero, from "
                f"{settings['seeds']} constants and from {settings['seeds']} random "
                f"starts the losses differ by {losses:.1g} of themselves and the "
                f"weights by at most {end['distance'].max():.1g}; "
                f"{'R²' if model == LINEAR else 'training accuracy'} "
                f"{mean_and_spread(end['accuracy'])}. With the ridge of "
                f"{settings['ridges'][model]:g} the optimum is unique.",
                losses < 1e-9,
                end["distance"].max() < 1e-4,
            )
        )
    equal = only(table, step=0).query("start != 'random'")
    linear, softmax = (only(equal, model=model) for model in (LINEAR, SOFTMAX))
    hidden = only(table, model=HIDDEN)
    rank_of_constant = only(hidden, start="constant")["rank"]
    zero, constant, random = (
        only(hidden, start=start, step=hidden["step"].max()) for start in STARTS
    )
    return [
        *result,
        judge(
            "Their gradient, Xᵀ(p - y), differs for every feature and class, so that "
            "there is no symmetry to be broken.",
            "At equal weights its elements range over "
            f"{mean_and_spread(linear['gradient_spread'])} times the largest in "
            f"linear regression and {mean_and_spread(softmax['gradient_spread'])} "
            "times in softmax regression, where its rank is "
            f"{mean_and_spread(softmax['gradient_rank'])} (the errors of ten classes "
            "sum to zero).",
            linear["gradient_spread"].min() > 0.1,
            softmax["gradient_spread"].min() > 0.1,
            softmax["gradient_rank"].min() > 1,
        ),
        judge(
            "With a hidden layer they may not.",
            f"From one constant W1 has rank {mean_and_spread(rank_of_constant)} at all "
            f"{hidden['step'].nunique()} looks, and the training accuracy is "
            f"{mean_and_spread(constant['accuracy'])} at the end, against "
            f"{mean_and_spread(random['accuracy'])} from a random start. From zero it "
            f"is {mean_and_spread(zero['accuracy'])}: no gradient reaches W1, whose "
            f"rank is {mean_and_spread(zero['rank'])}.",
            rank_of_constant.max() == 1,
            zero["rank"].max() == 0,
            max(constant["accuracy"].max(), zero["accuracy"].max())
            < random["accuracy"].min() - 0.2,
        ),
    ]


TITLE = "Exercise 2: equal weights in linear and softmax regression"
ABOUT = """The exercise asks whether all weights of linear or softmax regression can
start at one value. Here plain gradient descent in float64 starts from zeros, from
constants and from random weights (three seeds): linear regression on scikit-learn's
diabetes, softmax regression on its digits, and for contrast a network of one hidden
layer on the digits. A small ridge makes the optimum of the two regressions unique."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
