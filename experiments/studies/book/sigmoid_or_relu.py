"""When the sigmoid is the better choice: as a gate and as a probability."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.networks import mlp
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.runs import at_best_rate
from experiments.studies.style import look, panels
from experiments.training.training import Run, make_training

FUNCTIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}


def gated(function: str, a: jax.Array, inputs: jax.Array) -> jax.Array:
    """The states of h' = f(a) h + (1 - f(a)) x, from h = 0.

    Args:
        function: the name of f.
        a: what the gate sees, [steps].
        inputs: the x, [steps].

    Returns:
        [steps].
    """
    gates = FUNCTIONS[function](a)

    def step(h: jax.Array, gate_and_x: Any) -> tuple[jax.Array, jax.Array]:
        gate, x = gate_and_x
        h = gate * h + (1 - gate) * x
        return h, h

    return jax.lax.scan(step, jnp.zeros((), a.dtype), (gates, inputs))[1]


def overflow_step(a: float) -> int:
    """At which step a ReLU as a gate leaves float32, for a constant a > 1 and x = 1.

    Then 1 - h is multiplied by a in every step, so that h = 1 - a^t.
    """
    largest = float(np.finfo(np.float32).max)
    return math.ceil(math.log(largest) / math.log(a))


def clipped(logits: np.ndarray) -> np.ndarray:
    """A ReLU's output as a probability: what is above one becomes one."""
    return np.clip(logits, 0, 1)


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int
) -> float:
    """The mean distance of probability and frequency, over bins of equal width."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(probabilities[place == i].sum() - labels[place == i].sum())
            for i in range(bins)
        )
        / len(labels)
    )


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Both functions in three roles; the hidden layers by their depth."""
    return [
        *({"role": "gate", "function": name, "depth": 0} for name in FUNCTIONS),
        *({"role": "output", "function": name, "depth": 0} for name in FUNCTIONS),
        *(
            {"role": "hidden", "function": name, "depth": depth}
            for name in FUNCTIONS
            for depth in settings["depths"]
        ),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """The rows of one role of one function."""
    rows = {"gate": _gate_rows, "output": _output_rows, "hidden": _hidden_rows}
    # Optax' Adam mixes floats and integers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return pd.DataFrame(rows[cell["role"]](cell, settings))


def _gate_rows(cell: Mapping[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Constant gates at x = 1, and random ones with random x between -1 and 1."""
    steps = settings["gate_steps"]
    run = jax.jit(gated, static_argnums=0)
    rows = []
    for name in [*settings["gate_inputs"], "random"]:
        for seed in range(settings["seeds"] if name == "random" else 1):
            random = np.random.default_rng(seed)
            if name == "random":
                a = settings["gate_deviation"] * random.standard_normal(steps)
                inputs = random.uniform(-1, 1, steps)
            else:
                a, inputs = np.full(steps, name), np.ones(steps)
            states = np.asarray(
                run(
                    cell["function"],
                    jnp.asarray(a, jnp.float32),
                    jnp.asarray(inputs, jnp.float32),
                )
            )
            is_lost = ~np.isfinite(states)
            first = int(is_lost.argmax()) + 1 if is_lost.any() else np.nan
            finite = np.abs(states[~is_lost].astype(np.float64))
            for step in settings["gate_shown"]:
                so_far = np.abs(states[:step].astype(np.float64))
                rows.append(
                    {
                        "gate_input": str(name),
                        "seed": seed,
                        "step": step,
                        # NaN, an empty field, where it is not finite any more.
                        "largest_state": float(so_far.max())
                        if np.isfinite(so_far).all()
                        else np.nan,
                        "largest_finite": float(finite.max()),
                        "overflow_step": first,
                    }
                )
    return rows


def _output_rows(cell: Mapping[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Logistic regression on one digit or another, with each as the output."""
    data, pair = load("digits"), settings["digits"]

    def of_pair(split: Any) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(split.labels)
        chosen = np.isin(labels, pair)
        images = np.asarray(split.images, np.float32)[chosen]
        return images.reshape(len(images), -1), (labels[chosen] == pair[1]) * 1.0

    (x, y), (test_x, test_y) = of_pair(data.train), of_pair(data.test)
    features, targets = jnp.asarray(x), jnp.asarray(y, jnp.float32)
    is_sigmoid = cell["function"] == "sigmoid"

    def loss_of(logit: jax.Array, target: jax.Array) -> jax.Array:
        if is_sigmoid:
            return optax.sigmoid_binary_cross_entropy(logit, target)
        # The log of what is outside (0, 1) would be infinite or NaN: the floor is what
        # lets it be trained at all.
        p = jnp.clip(jax.nn.relu(logit), settings["floor"], 1 - settings["floor"])
        return -target * jnp.log(p) - (1 - target) * jnp.log1p(-p)

    def logits_of(params: dict[str, jax.Array]) -> jax.Array:
        return features @ params["kernel"] + params["bias"]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return loss_of(logits_of(params), targets).mean()

    rows = []
    for rate in settings["output_rates"]:
        for seed in range(settings["seeds"]):

            @jax.jit
            def trained(params: Any, rate: float = rate) -> Any:
                def step(params: Any, _: None) -> tuple[Any, None]:
                    slope = jax.grad(loss)(params)
                    return jax.tree.map(lambda w, g: w - rate * g, params, slope), None

                return jax.lax.scan(step, params, length=settings["output_steps"])[0]

            random = np.random.default_rng(seed)
            kernel = random.standard_normal(x.shape[1]) / np.sqrt(x.shape[1])
            params = {
                "kernel": jnp.asarray(kernel, jnp.float32),
                "bias": jnp.zeros((), jnp.float32),
            }
            params = trained(params)
            weights = np.asarray(params["kernel"], np.float64)
            logits, seen = (z @ weights + float(params["bias"]) for z in (test_x, x))
            p = 1 / (1 + np.exp(-logits)) if is_sigmoid else clipped(logits)
            with np.errstate(divide="ignore"):
                log_loss = -np.log(np.where(test_y == 1, p, 1 - p))
            slopes = jax.vmap(jax.grad(loss_of))(logits_of(params), targets)
            stuck = np.asarray(slopes) == 0
            right = (seen > (0.0 if is_sigmoid else 0.5)) == (y == 1)
            rows.append(
                {
                    "learning_rate": rate,
                    "seed": seed,
                    "test_accuracy": float(((p > 0.5) == (test_y == 1)).mean()),
                    "train_loss": float(loss(params)),
                    "infinite_losses": float(np.isinf(log_loss).mean()),
                    "no_gradient": float(stuck.mean()),
                    "wrong_without_gradient": float((stuck & ~right).mean()),
                    "calibration_error": calibration_error(p, test_y, settings["bins"]),
                }
            )
    return rows


def _hidden_rows(cell: Mapping[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Networks of a depth at every learning rate, with Adam."""
    data = load("digits")
    model = mlp(
        10,
        depth=cell["depth"],
        width=settings["width"],
        activation=cell["function"],
        use_bias=True,
        normalization="none",
        compute_dtype="float32",
    )
    training = make_training(
        model,
        lambda rate: optax.adam(rate),
        num_steps=settings["num_steps"],
        batch_size=settings["batch_size"],
    )
    train = jax.jit(training.train)
    rows = []
    for rate in settings["hidden_rates"]:
        for seed in range(settings["seeds"]):
            run = Run(jnp.int32(seed), jnp.ones(cell["depth"]), jnp.float32(rate))
            result = train(run, data)
            rows.append(
                {
                    "learning_rate": rate,
                    "seed": seed,
                    "test_accuracy": float(result.test_accuracy),
                    "validation_accuracy": float(result.validation_accuracy),
                }
            )
    return rows


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """One panel for each role."""
    figure, axes = panels(
        1,
        3,
        "Sigmoid or ReLU, in three roles\n"
        f"(bars: lowest to highest of {settings['seeds']} seeds)",
        width=3.9,
        height=3.8,
    )
    gate, output, hidden = axes[0]
    for number, name in enumerate(FUNCTIONS):
        rows = table[(table["role"] == "gate") & (table["function"] == name)]
        for kind, style in zip(
            [*settings["gate_inputs"], "random"], ("-", "--", ":"), strict=True
        ):
            by_step = rows[rows["gate_input"] == str(kind)].groupby("step")
            label = (
                f"{_name(name)}, a {'random' if kind == 'random' else f'= {kind:g}'}"
            )
            gate.plot(
                list(by_step.groups),
                by_step["largest_state"].median(),
                label=label,
                **{**look(number), "linestyle": style, "markersize": 4},
            )
        rows = table[(table["role"] == "hidden") & (table["function"] == name)]
        by_depth = at_best_rate(rows, ["depth"]).groupby("depth")["test_accuracy"]
        middle = by_depth.mean()
        hidden.errorbar(
            list(by_depth.groups),
            middle,
            yerr=[middle - by_depth.min(), by_depth.max() - middle],
            label=_name(name),
            capsize=3,
            **look(number),
        )
        rows = table[(table["role"] == "output") & (table["function"] == name)]
        positions = np.arange(len(_OUTPUT)) + 0.36 * number - 0.18
        values = [rows.groupby("seed")[column].mean() for column in _OUTPUT]
        middle = np.array([value.mean() for value in values])
        output.bar(
            positions,
            middle,
            0.34,
            yerr=[
                middle - [value.min() for value in values],
                [value.max() for value in values] - middle,
            ],
            color=look(number)["color"],
            label=_name(name),
            capsize=3,
            hatch=("", "//")[number],
            edgecolor="white",
        )
    for a in settings["gate_inputs"]:
        steps = np.arange(1, min(overflow_step(a), settings["gate_steps"] + 1))
        gate.plot(steps, a ** steps.astype(float) - 1, color="gray", linewidth=0.8)
        gate.axvline(overflow_step(a), color="gray", linewidth=0.8, linestyle=":")
    gate.axhline(1, color="gray", linewidth=1)
    gate.set(
        xscale="log",
        yscale="log",
        ylim=(0.05, 1e39),
        xlabel="step",
        ylabel="largest |h| so far",
        title="gate, inputs within ±1\n(gray: closed form and its overflow)",
    )
    gate.legend(frameon=False, fontsize=8, loc="upper left")
    output.set_xticks(range(len(_OUTPUT)), _OUTPUT.values(), fontsize=8.5)
    output.set(
        ylabel="part of the examples",
        title=f"output probability, {settings['digits'][0]} or "
        f"{settings['digits'][1]}\n(mean over learning rates)",
    )
    output.legend(frameon=False, fontsize=8)
    hidden.set(
        xlabel="layers",
        ylabel="test accuracy",
        ylim=(0, 1.02),
        title="hidden activation\n(best of "
        f"{len(settings['hidden_rates'])} learning rates each)",
    )
    hidden.axhline(0.1, color="gray", linewidth=1, label="guessing")
    hidden.legend(frameon=False, fontsize=8, loc=(0.03, 0.2))
    return figure


_OUTPUT = {
    "infinite_losses": "infinite\nlog-loss",
    "no_gradient": "no gradient\nin training",
    "calibration_error": "calibration\nerror",
}


def _name(function: str) -> str:
    return {"sigmoid": "sigmoid", "relu": "ReLU"}[function]


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Better as a gate and as a probability, worse in hidden layers."""
    gate, output, hidden = (
        table[table["role"] == role] for role in ("gate", "output", "hidden")
    )
    last = gate[gate["step"] == gate["step"].max()]
    smooth, broken = (last[last["function"] == name] for name in FUNCTIONS)
    constant = broken[broken["gate_input"] != "random"]
    random = broken[broken["gate_input"] == "random"]
    steps = [
        (float(a), float(step), overflow_step(float(a)))
        for a, step in zip(
            constant["gate_input"], constant["overflow_step"], strict=True
        )
    ]
    soft, hard = (output[output["function"] == name] for name in FUNCTIONS)
    best = {
        name: at_best_rate(hidden[hidden["function"] == name], ["depth"]).set_index(
            "depth"
        )
        for name in FUNCTIONS
    }
    depths = sorted(best["relu"].index.unique())
    accuracies = {
        name: {depth: rows.loc[[depth], "test_accuracy"] for depth in depths}
        for name, rows in best.items()
    }
    deep = depths[-1]
    return [
        Claim(
            "As a gate: the state is then a convex combination of the inputs, and "
            "stays within their range at any length.",
            f"Inputs within ±1, {int(last['step'].max()):,} steps: the largest state "
            f"is {mean_and_spread(smooth['largest_state'], 6)}.",
            judged([smooth["largest_state"].max() <= 1 + 1e-6]),
        ),
        Claim(
            "A ReLU as a gate multiplies the state, without a bound.",
            "It leaves float32 at step "
            + ", ".join(f"{seen:.0f} for a = {a:g} ({form})" for a, seen, form in steps)
            + " (in brackets the closed form, ln(largest)/ln(a)). For random a (of "
            f"standard deviation {settings['gate_deviation']:g}) the state reaches "
            f"{mean_and_spread(random['largest_finite'])}.",
            judged(
                [
                    all(abs(seen - form) <= 1 for _, seen, form in steps),
                    random["largest_finite"].min() > 1,
                ]
            ),
        ),
        Claim(
            "As the probability of an output: every probability is between 0 and 1, so "
            "that the log-loss is finite and has a gradient everywhere.",
            f"{settings['digits'][0]} or {settings['digits'][1]}, "
            f"{len(settings['output_rates'])} learning rates: with a clipped ReLU the "
            f"log-loss is infinite for {mean_and_spread(hard['infinite_losses'])} of "
            "the test images, and "
            f"{mean_and_spread(hard['no_gradient'])} of the training images have no "
            f"gradient ({mean_and_spread(hard['wrong_without_gradient'])} are wrong, "
            f"too); with the sigmoid {mean_and_spread(soft['infinite_losses'])} "
            f"and {mean_and_spread(soft['no_gradient'])}. Test accuracies: "
            f"{mean_and_spread(hard['test_accuracy'])} and "
            f"{mean_and_spread(soft['test_accuracy'])}.",
            judged(
                [
                    soft["infinite_losses"].max() == 0,
                    hard["infinite_losses"].max() > 0,
                    hard["wrong_without_gradient"].mean() > 0,
                ]
            ),
        ),
        Claim(
            "The sigmoid's probabilities are better calibrated than a clipped ReLU's.",
            f"Expected calibration error over {settings['bins']} bins: "
            f"{mean_and_spread(soft['calibration_error'])} against "
            f"{mean_and_spread(hard['calibration_error'])}.",
            judged(
                [soft["calibration_error"].mean() < hard["calibration_error"].mean()]
            ),
        ),
        Claim(
            "In hidden layers it is not: its gradient is at most 1/4, and deep "
            "networks do not learn.",
            "Test accuracy of sigmoid and ReLU: "
            + "; ".join(
                f"{depth} layers {mean_and_spread(accuracies['sigmoid'][depth])} and "
                f"{mean_and_spread(accuracies['relu'][depth])}"
                for depth in depths
            )
            + f". A factor of at most (1/4)^{deep - 1} = {0.25 ** (deep - 1):.1g} is "
            f"left through {deep - 1} sigmoids.",
            judged(
                [
                    accuracies["sigmoid"][deep].max()
                    < accuracies["relu"][deep].min() - 0.1,
                    accuracies["sigmoid"][deep].mean()
                    < accuracies["sigmoid"][depths[0]].mean() - 0.1,
                ]
            ),
        ),
    ]


ITEM = Item(
    title="When the sigmoid is the better choice",
    about=(
        "Readers of the book ask when the sigmoid is better than the ReLU. Here both "
        "are tried in three roles, with three seeds: as a gate in a recurrence, in "
        "float32; as the probability of logistic regression between two of "
        "scikit-learn's digits; and as the activation of hidden layers on all ten "
        "digits, trained with Adam at equally many learning rates, of which the one of "
        "the best validation accuracy counts."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
