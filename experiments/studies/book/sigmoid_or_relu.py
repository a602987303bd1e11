"""When the sigmoid is the better choice: as a gate and as a probability."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from configs.optimizers import LINEAR
from experiments.data import Split, load
from experiments.studies.book.shared import descended, trained
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.runs import at_best_rate
from experiments.studies.style import look, middle_and_errors, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

FUNCTIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}
OUTPUT = {
    "infinite_losses": "infinite\nlog-loss",
    "no_gradient": "no gradient\nin training",
    "calibration_error": "calibration\nerror",
}


def gated(function: str, a: jax.Array, inputs: jax.Array) -> jax.Array:
    """The states of h' = f(a) h + (1 - f(a)) x, from h = 0, in each step."""

    def step(h: jax.Array, gate_and_x: Any) -> tuple[jax.Array, jax.Array]:
        gate, x = gate_and_x
        h = gate * h + (1 - gate) * x
        return h, h

    gates = FUNCTIONS[function](a)
    return jax.lax.scan(step, jnp.zeros((), a.dtype), (gates, inputs))[1]


def overflow_step(a: float) -> int:
    """At which step a ReLU as a gate leaves float32, for a constant a > 1 and x = 1.

    Then 1 - h is multiplied by a in every step, so that h = 1 - a^t.
    """
    largest = float(np.finfo(np.float32).max)
    return math.ceil(math.log(largest) / math.log(a))


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int
) -> float:
    """The mean distance of probability and frequency, over bins of equal width."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    sums = np.bincount(place, probabilities - labels)
    return float(np.abs(sums).sum() / len(labels))


def cells(settings: Settings) -> list[Cell]:
    """Both functions in three roles; the hidden layers by their depth."""
    depths = settings["depths"]
    return [
        *combinations(role=["gate", "output"], function=FUNCTIONS, depth=[0]),
        *combinations(role=["hidden"], function=FUNCTIONS, depth=depths),
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """The rows of one role of one function."""
    if cell["role"] != "hidden":
        rows = _gate_rows if cell["role"] == "gate" else _output_rows
        return pd.DataFrame(rows(cell["function"], settings))
    rates, seeds = settings["hidden_rates"], range(settings["seeds"])
    runs = pd.DataFrame(combinations(learning_rate=rates, seed=seeds))
    settings = {**settings, "schedule": LINEAR | {"decay": "constant"}}
    kind = (cell["depth"], cell["function"])
    result = trained(runs, *kind, settings, optimizer="adam", use_bias=True)
    return result[[*runs, "test_accuracy", "validation_accuracy"]]


def _gate_rows(function: str, settings: Settings) -> Iterator[Cell]:
    """Constant gates at x = 1, and random ones with random x between -1 and 1."""
    steps = settings["gate_steps"]
    run = jax.jit(gated, static_argnums=0)
    ones = np.ones(steps)
    gates = [(str(a), 0, a * ones, ones) for a in settings["gate_inputs"]]
    for seed in range(settings["seeds"]):
        random = np.random.default_rng(seed)
        a = settings["gate_deviation"] * random.standard_normal(steps)
        gates.append(("random", seed, a, random.uniform(-1, 1, steps)))
    for name, seed, a, inputs in gates:
        a, inputs = (jnp.asarray(x, jnp.float32) for x in (a, inputs))
        states = np.abs(np.asarray(run(function, a, inputs), np.float64))
        is_lost = ~np.isfinite(states)
        for step in settings["gate_shown"]:
            is_finite = not is_lost[:step].any()
            yield {
                "gate_input": name,
                "seed": seed,
                "step": step,
                # NaN, an empty field, where it is not finite any more.
                "largest_state": states[:step].max() if is_finite else np.nan,
                "largest_finite": states[~is_lost].max(),
                "overflow_step": is_lost.argmax() + 1 if is_lost.any() else np.nan,
            }


def _output_rows(function: str, settings: Settings) -> Iterator[Cell]:
    """Logistic regression on one digit or another, with each as the output."""
    data, pair = load("digits"), settings["digits"]

    def of_pair(split: Split) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(split.labels)
        chosen = np.isin(labels, pair)
        images = np.asarray(split.images, np.float32)[chosen]
        return images.reshape(len(images), -1), (labels[chosen] == pair[1]) * 1.0

    (x, y), (test_x, test_y) = of_pair(data.train), of_pair(data.test)
    features, targets = jnp.asarray(x), jnp.asarray(y, jnp.float32)
    is_sigmoid = function == "sigmoid"

    def loss_of(logit: jax.Array, target: jax.Array) -> jax.Array:
        if is_sigmoid:
            return optax.sigmoid_binary_cross_entropy(logit, target)
        # The log of a number outside (0, 1) would be infinite or NaN: it cannot be
        # trained without the floor.
        p = jnp.clip(jax.nn.relu(logit), settings["floor"], 1 - settings["floor"])
        return -target * jnp.log(p) - (1 - target) * jnp.log1p(-p)

    def logits_of(params: dict[str, jax.Array]) -> jax.Array:
        return features @ params["kernel"] + params["bias"]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return loss_of(logits_of(params), targets).mean()

    @jax.jit
    def fitted(params: dict[str, jax.Array], rate: float) -> dict[str, jax.Array]:
        steps = settings["output_steps"]
        return descended(jax.grad(loss), params, optax.sgd(rate), steps)[0]

    rates, seeds = settings["output_rates"], range(settings["seeds"])
    for run in combinations(learning_rate=rates, seed=seeds):
        random = np.random.default_rng(run["seed"])
        kernel = random.standard_normal(x.shape[1]) / np.sqrt(x.shape[1])
        start = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(())}
        params = fitted(start, run["learning_rate"])
        weights = np.asarray(params["kernel"], np.float64)
        logits, seen = (z @ weights + float(params["bias"]) for z in (test_x, x))
        # A ReLU's output as a probability: a number above one becomes one.
        p = 1 / (1 + np.exp(-logits)) if is_sigmoid else np.clip(logits, 0, 1)
        with np.errstate(divide="ignore"):
            log_loss = -np.log(np.where(test_y == 1, p, 1 - p))
        slopes = jax.vmap(jax.grad(loss_of))(logits_of(params), targets)
        is_stuck = np.asarray(slopes) == 0
        is_right = (seen > (0.0 if is_sigmoid else 0.5)) == (y == 1)
        yield {
            **run,
            "test_accuracy": ((p > 0.5) == (test_y == 1)).mean(),
            "train_loss": float(loss(params)),
            "infinite_losses": np.isinf(log_loss).mean(),
            "no_gradient": is_stuck.mean(),
            "wrong_without_gradient": (is_stuck & ~is_right).mean(),
            "calibration_error": calibration_error(p, test_y, settings["bins"]),
        }


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """One panel for each role."""
    title = (
        "Sigmoid or ReLU, in three roles\n"
        f"(bars: lowest to highest of {settings['seeds']} seeds)"
    )
    figure, axes = panels(1, 3, title, width=3.9, height=3.8)
    gate, output, hidden = axes[0]
    gates = settings["gate_inputs"]
    lines = {**{str(a): f"= {a:g}" for a in gates}, "random": "random"}
    for number, function in enumerate(FUNCTIONS):
        rows, style = only(table, function=function), look(number)
        name = function.replace("relu", "ReLU")
        for (kind, label), line in zip(lines.items(), ("-", "--", ":"), strict=True):
            states = only(rows, role="gate", gate_input=kind).groupby("step")
            marks = style | {"linestyle": line, "markersize": 4}
            states = states["largest_state"].median()
            gate.plot(states, label=f"{name}, a {label}", **marks)
        best = at_best_rate(only(rows, role="hidden"), ["depth"]).groupby("depth")
        middle, errors = middle_and_errors(best["test_accuracy"])
        bars = {"yerr": errors, "label": name, "capsize": 3}
        hidden.errorbar(middle.index, middle, **bars, **style)
        means = only(rows, role="output").groupby("seed")[list(OUTPUT)].mean()
        middle, errors = middle_and_errors(means)
        bars |= {"yerr": errors, "hatch": ("", "//")[number], "edgecolor": "white"}
        positions = np.arange(len(OUTPUT)) + 0.36 * number - 0.18
        output.bar(positions, middle, 0.34, color=style["color"], **bars)
    for a in gates:
        steps = np.arange(1, min(overflow_step(a), settings["gate_steps"] + 1))
        gate.plot(steps, a ** steps.astype(float) - 1, color="gray", linewidth=0.8)
        gate.axvline(overflow_step(a), color="gray", linewidth=0.8, linestyle=":")
    gate.axhline(1, color="gray", linewidth=1)
    gate.set(xscale="log", yscale="log", ylim=(0.05, 1e39), xlabel="step")
    gate.set(ylabel="largest |h| so far")
    gate.set(title="gate, inputs within ±1\n(gray: closed form and its overflow)")
    gate.legend(fontsize=8, loc="upper left")
    output.set_xticks(range(len(OUTPUT)), OUTPUT.values(), fontsize=8.5)
    output.set(
        ylabel="part of the examples",
        title=f"output probability, {settings['digits'][0]} or "
        f"{settings['digits'][1]}\n(mean over learning rates)",
    )
    output.legend(fontsize=8)
    hidden.set(
        xlabel="layers",
        ylabel="test accuracy",
        ylim=(0, 1.02),
        title="hidden activation\n(best of "
        f"{len(settings['hidden_rates'])} learning rates each)",
    )
    hidden.axhline(0.1, color="gray", linewidth=1, label="guessing")
    hidden.legend(fontsize=8, loc=(0.03, 0.2))
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Better as a gate and as a probability, worse in hidden layers."""
    gate = only(table, role="gate")
    last = only(gate, step=gate["step"].max())
    smooth, broken = (only(last, function=name) for name in FUNCTIONS)
    random = only(broken, gate_input="random")["largest_finite"]
    constant = broken[broken["gate_input"] != "random"]
    steps = [
        (float(a), step, overflow_step(float(a)))
        for a, step in constant[["gate_input", "overflow_step"]].to_numpy()
    ]
    soft, hard = (only(table, role="output", function=name) for name in FUNCTIONS)
    best = at_best_rate(only(table, role="hidden"), ["function", "depth"])
    depths = sorted(best["depth"].unique())
    by_depth = {
        depth: [
            only(best, function=name, depth=depth)["test_accuracy"]
            for name in FUNCTIONS
        ]
        for depth in depths
    }
    deep, (one, other) = depths[-1], settings["digits"]

    def of(rows: pd.DataFrame, column: str) -> str:
        return mean_and_spread(rows[column])

    return [
        judge(
            "As a gate: the state is then a convex combination of the inputs, and "
            "stays within their range at any length.",
            f"Inputs within ±1, {int(last['step'].max()):,} steps: the largest state "
            f"is {mean_and_spread(smooth['largest_state'], 6)}.",
            smooth["largest_state"].max() <= 1 + 1e-6,
        ),
        judge(
            "A ReLU as a gate multiplies the state, without a bound.",
            "It leaves float32 at step "
            + ", ".join(f"{seen:.0f} for a = {a:g} ({form})" for a, seen, form in steps)
            + " (in brackets the closed form, ln(largest)/ln(a)). For random a (of "
            f"standard deviation {settings['gate_deviation']:g}) the state reaches "
            f"{mean_and_spread(random)}.",
            all(abs(seen - form) <= 1 for _, seen, form in steps),
            random.min() > 1,
        ),
        judge(
            "As the probability of an output: every probability is between 0 and 1, so "
            "that the log-loss is finite and has a gradient everywhere.",
            f"{one} or {other}, {len(settings['output_rates'])} learning rates: with a "
            f"clipped ReLU the log-loss is infinite for {of(hard, 'infinite_losses')} "
            f"of the test images, and {of(hard, 'no_gradient')} of the training images "
            f"have no gradient ({of(hard, 'wrong_without_gradient')} are wrong, too); "
            f"with the sigmoid {of(soft, 'infinite_losses')} and "
            f"{of(soft, 'no_gradient')}. Test accuracies: {of(hard, 'test_accuracy')} "
            f"and {of(soft, 'test_accuracy')}.",
            soft["infinite_losses"].max() == 0,
            hard["infinite_losses"].max() > 0,
            hard["wrong_without_gradient"].mean() > 0,
        ),
        judge(
            "The sigmoid's probabilities are better calibrated than a clipped ReLU's.",
            f"Expected calibration error over {settings['bins']} bins: "
            f"{of(soft, 'calibration_error')} against {of(hard, 'calibration_error')}.",
            soft["calibration_error"].mean() < hard["calibration_error"].mean(),
        ),
        judge(
            "In hidden layers it is not: its gradient is at most 1/4, and deep "
            "networks do not learn.",
            "Test accuracy of sigmoid and ReLU: "
            + "; ".join(
                f"{depth} layers {' and '.join(map(mean_and_spread, accuracies))}"
                for depth, accuracies in by_depth.items()
            )
            + f". Through {deep - 1} sigmoids a factor of at most (1/4)^{deep - 1} = "
            f"{0.25 ** (deep - 1):.1g} remains.",
            by_depth[deep][0].max() < by_depth[deep][1].min() - 0.1,
            by_depth[deep][0].mean() < by_depth[depths[0]][0].mean() - 0.1,
        ),
    ]


TITLE = "When the sigmoid is the better choice"
ABOUT = """Readers of the book ask when the sigmoid is better than the ReLU. Here both
are tried in three roles, with three seeds: as a gate in a recurrence, in float32; as
the probability of logistic regression between two of scikit-learn's digits; and as the
activation of hidden layers on all ten digits, trained with Adam. There both have
equally many learning rates, and the best one is chosen by validation data."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
