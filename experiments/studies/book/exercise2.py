"""Exercise 2: linear and softmax regression may start with all weights equal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

from experiments.data import load
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.style import line_over_seeds, panels

STARTS = ("zero", "constant", "random")
MODELS = ("linear regression", "softmax regression", "one hidden layer")

Weights = list[np.ndarray]


def problem(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, inputs] with a column of ones, and targets [N, outputs], in float64.

    Patients of scikit-learn's diabetes and the progression of their disease for linear
    regression, the training images of the digits for the others.
    """
    if model == "linear regression":
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

    Args:
        model: one of `MODELS`.
        start: one of `STARTS`.
        sizes: of inputs and outputs.
        hidden: units of the hidden layer, where there is one.
        seed: draws the constant, or the elements.
    """
    random = np.random.default_rng(seed)
    inputs, outputs = sizes
    shapes = [sizes]
    if model == "one hidden layer":
        shapes = [(inputs, hidden), (hidden, outputs)]
    if start == "zero":
        return [np.zeros(shape) for shape in shapes]
    if start == "constant":
        return [np.full(shape, random.uniform(-0.2, 0.2)) for shape in shapes]
    return [random.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes]


def loss_and_gradient(
    model: str, weights: Weights, x: np.ndarray, targets: np.ndarray, ridge: float
) -> tuple[float, Weights]:
    """The mean loss, with ridge/2 times the squares of all weights, and its gradient.

    Squared errors halved for linear regression, the cross-entropy for the others; the
    hidden layer has tanh units.
    """
    hidden = np.tanh(x @ weights[0]) if len(weights) == 2 else x
    outputs = hidden @ weights[-1]
    if model == "linear regression":
        loss = 0.5 * np.square(outputs - targets).sum(1).mean()
        errors = outputs - targets
    else:
        shifted = outputs - outputs.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        loss = -(targets * logs).sum(1).mean()
        errors = np.exp(logs) - targets  # p - y
    errors = errors / len(x)
    gradients = [hidden.T @ errors]  # X^T (p - y)
    if len(weights) == 2:
        back = errors @ weights[1].T * (1 - hidden**2)
        gradients = [x.T @ back, *gradients]
    loss += 0.5 * ridge * sum(np.square(w).sum() for w in weights)
    return float(loss), [g + ridge * w for g, w in zip(gradients, weights, strict=True)]


def rank(matrix: np.ndarray) -> int:
    """The rank, where singular values below 1e-6 of the largest count as zero.

    A start that is constant has rank one, and what the inputs make of it decays only
    with the ridge, so that the floor is far above rounding.
    """
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > 1e-6 * values[0]).sum()) if values[0] else 0


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every model from every start."""
    del settings
    return [{"model": model, "start": start} for model in MODELS for start in STARTS]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Plain gradient descent on all examples, in float64.

    The distance is to the weights that the random start of seed 0 ends at, relative to
    their norm, so that it is 0 for that run itself.
    """
    model = cell["model"]
    x, targets = problem(model)
    reference = _descended(model, "random", 0, x, targets, settings)[-1][1]
    rows = []
    # Of zeros there is one start only.
    for seed in range(1 if cell["start"] == "zero" else settings["seeds"]):
        for step, weights in _descended(
            model, cell["start"], seed, x, targets, settings
        ):
            loss, (gradient, *_) = loss_and_gradient(
                model, weights, x, targets, settings["ridges"][model]
            )
            rows.append(
                {
                    "seed": seed,
                    "step": step,
                    "loss": loss,
                    "accuracy": _accuracy(model, weights, x, targets),
                    "distance": float(
                        _norm([a - b for a, b in zip(weights, reference, strict=True)])
                        / _norm(reference)
                    ),
                    "rank": rank(weights[0]),
                    "gradient_rank": rank(gradient),
                    "gradient_spread": float(
                        np.ptp(gradient) / max(np.abs(gradient).max(), 1e-300)
                    ),
                }
            )
    return pd.DataFrame(rows)


def _descended(
    model: str,
    start: str,
    seed: int,
    x: np.ndarray,
    targets: np.ndarray,
    settings: Settings,
) -> list[tuple[int, Weights]]:
    """The weights at every power of two of steps, and at the last."""
    shape = (x.shape[1], targets.shape[1])
    weights = initial(model, start, shape, settings["hidden"], seed)
    last, ridge = settings["num_steps"][model], settings["ridges"][model]
    rate = settings["learning_rates"][model]
    shown = {0, *(2**k for k in range(last.bit_length())), last}
    kept = []
    for step in range(last + 1):
        if step in shown:
            kept.append((step, weights))
        _, gradients = loss_and_gradient(model, weights, x, targets, ridge)
        weights = [w - rate * g for w, g in zip(weights, gradients, strict=True)]
    return kept


def _accuracy(
    model: str, weights: Weights, x: np.ndarray, targets: np.ndarray
) -> float:
    """Of training examples; of linear regression the R², which is its like."""
    hidden = np.tanh(x @ weights[0]) if len(weights) == 2 else x
    outputs = hidden @ weights[-1]
    if model == "linear regression":
        return float(1 - np.square(outputs - targets).mean() / targets.var())
    return float((outputs.argmax(1) == targets.argmax(1)).mean())


def _norm(weights: Weights) -> float:
    return float(np.sqrt(sum(np.square(w).sum() for w in weights)))


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above the loss, below the distance of the weights; a column for each model."""
    figure, axes = panels(
        2,
        3,
        "Gradient descent from weights that are all zero, all one constant, or random\n"
        f"(median, lowest and highest of {settings['seeds']} seeds)",
        height=2.9,
        width=3.5,
    )
    for column, model in enumerate(MODELS):
        upper, lower = axes[:, column]
        for number, start in enumerate(STARTS):
            rows = table[(table["model"] == model) & (table["start"] == start)]
            for place, name in ((upper, "loss"), (lower, "distance")):
                # The run that distances are taken to has none of its own.
                is_itself = (start == "random") & (rows["seed"] == 0)
                shown = rows[~is_itself] if name == "distance" else rows
                line_over_seeds(
                    place,
                    shown,
                    "step",
                    name,
                    number,
                    start,
                    "median",
                    markersize=8 - 2 * number,
                )
        # The lowest loss at the end is the optimum of what is convex.
        best = table[table["model"] == model]["loss"].min()
        upper.axhline(best, color="gray", linewidth=1, label="lowest of all")
        upper.set(title=model)
        for place in (upper, lower):
            place.set_xscale("symlog", linthresh=1)
            place.minorticks_off()
            last = settings["num_steps"][model]
            place.set_xticks([0, *(10**k for k in range(len(str(last))))])
            place.set_xlim(-0.2, 1.5 * last)
        lower.set_yscale("symlog", linthresh=1e-12)
        lower.set_yticks([0, 1e-12, 1e-8, 1e-4, 1])
        lower.minorticks_off()
        lower.set_ylim(-2e-13, 30)
        lower.set(xlabel="step")
    axes[0, 0].set_ylabel("loss, with ridge")
    axes[1, 0].set_ylabel("distance to the weights from\na random start, relative")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Equal weights do no harm where nothing is hidden, and do where something is."""
    result = []
    for model in MODELS[:2]:
        rows = table[table["model"] == model]
        end = rows[rows["step"] == rows["step"].max()]
        losses = float(np.ptp(end["loss"]) / end["loss"].min())
        result.append(
            Claim(
                f"All weights of a {model} may start at one value.",
                f"After {rows['step'].max()} steps from zero, from "
                f"{settings['seeds']} constants and from {settings['seeds']} random "
                f"starts the losses differ by {losses:.1g} of themselves and the "
                f"weights by at most {end['distance'].max():.1g}; "
                f"{'R²' if model == MODELS[0] else 'training accuracy'} "
                f"{mean_and_spread(end['accuracy'])}. With the ridge of "
                f"{settings['ridges'][model]:g} the optimum is unique.",
                judged([losses < 1e-9, end["distance"].max() < 1e-4]),
            )
        )
    softmax = table[(table["model"] == MODELS[1]) & (table["start"] != "random")]
    first = softmax[softmax["step"] == 0]
    linear = table[(table["model"] == MODELS[0]) & (table["start"] != "random")]
    linear_first = linear[linear["step"] == 0]
    hidden = table[table["model"] == MODELS[2]]
    end = hidden[hidden["step"] == hidden["step"].max()].set_index("start")
    constant = hidden[hidden["start"] == "constant"]
    result += [
        Claim(
            "Their gradient, Xᵀ(p - y), differs for every feature and class, so that "
            "there is no symmetry to be broken.",
            "At equal weights its elements range over "
            f"{mean_and_spread(linear_first['gradient_spread'])} times the largest in "
            f"linear regression and {mean_and_spread(first['gradient_spread'])} times "
            "in softmax regression, where its rank is "
            f"{mean_and_spread(first['gradient_rank'])} (the errors of ten classes sum "
            "to zero).",
            judged(
                [
                    linear_first["gradient_spread"].min() > 0.1,
                    first["gradient_spread"].min() > 0.1,
                    first["gradient_rank"].min() > 1,
                ]
            ),
        ),
        Claim(
            "With a hidden layer they may not.",
            "From one constant W1 has rank "
            f"{mean_and_spread(constant['rank'])} at all {constant['step'].nunique()} "
            "looks, and the training accuracy is "
            f"{mean_and_spread(end.loc[['constant'], 'accuracy'])} at the end, against "
            f"{mean_and_spread(end.loc[['random'], 'accuracy'])} from a random start. "
            "From zero it is "
            f"{mean_and_spread(end.loc[['zero'], 'accuracy'])}: no gradient reaches "
            f"W1, whose rank is {mean_and_spread(end.loc[['zero'], 'rank'])}.",
            judged(
                [
                    constant["rank"].max() == 1,
                    end.loc[["zero"], "rank"].max() == 0,
                    end.loc[["constant", "zero"], "accuracy"].max()
                    < end.loc[["random"], "accuracy"].min() - 0.2,
                ]
            ),
        ),
    ]
    return result


ITEM = Item(
    title="Exercise 2: equal weights in linear and softmax regression",
    about=(
        "The exercise asks whether all weights of linear or softmax regression can "
        "start at one value. Here plain gradient descent in float64 starts from zeros, "
        "from constants and from random weights (three seeds): linear regression on "
        "scikit-learn's diabetes, softmax regression on its digits, and for contrast a "
        "network of one hidden layer on the digits. A small ridge makes the optimum of "
        "the two regressions unique."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
