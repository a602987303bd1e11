"""Whether Xavier's initialization is outdated beside He's."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book import shared
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.runs import at_best_rate
from experiments.studies.style import CLOSED_FORM, line_over_seeds, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

TRAINED = ("ReLU", "tanh")
RULES = ("He", "Xavier")


def cells(settings: Settings) -> list[Cell]:
    """The signals of each activation, and its training at each depth."""
    depths = settings["depths"]
    return [
        *combinations(part=["signal"], activation=TRAINED, depth=[max(depths)]),
        *combinations(part=["training"], activation=TRAINED, depth=depths),
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Mean squares after each layer, or runs, under both initializations."""
    name, depth, seeds = cell["activation"], cell["depth"], range(settings["seeds"])
    if cell["part"] == "training":
        data, rates = load("digits"), settings["learning_rates"]
        runs = pd.DataFrame(combinations(rule=RULES, learning_rate=rates, seed=seeds))
        pixels, width = math.prod(data.train.images.shape[1:]), settings["width"]
        shapes = shared.layer_shapes(pixels, width, depth, data.num_classes)
        scales = [shared.kernel_scales(rule, shapes, name) for rule in runs["rule"]]
        return shared.trained(runs, depth, name.lower(), settings, scales)
    width, count = settings["signal_width"], settings["signal_inputs"]
    shapes = shared.layer_shapes(width, width, depth, width)
    rows = []
    for run in combinations(rule=RULES, seed=seeds):
        kernels = shared.draw_kernels(run["rule"], shapes, run["seed"])
        inputs = np.random.default_rng([run["seed"]]).standard_normal((count, width))
        rows += [
            {**run, "layer": layer, "mean_square": square}
            for layer, square in enumerate(mean_squares(kernels, inputs, name), start=1)
        ]
    return pd.DataFrame(rows)


def mean_squares(
    kernels: Sequence[np.ndarray], inputs: np.ndarray, activation: str
) -> list[float]:
    """The mean squares of the activations after each layer, in float32."""
    signals = shared.activations(kernels, inputs, activation)
    return [float(jnp.square(x).mean()) for x in signals]


def closed_form(rule: str, layers: Any) -> Any:
    """The mean square after so many square ReLU layers, from inputs of mean square 1.

    He's weights make pre-activations of twice the mean square of the layer's inputs,
    and ReLU halves it; with Xavier's they have the same.
    """
    return (1.0 if rule == "He" else 0.5) ** np.asarray(layers, float)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the mean squares of both activations, then the accuracy by the depth."""
    title = f"He or Xavier: mean and lowest to highest of {settings['seeds']} seeds"
    figure, axes = panels(1, 3, title, width=3.5)
    left, depths = axes[0, 0], settings["depths"]
    runs = {"signal": only(table, part="signal"), "training": _best(table)}
    for column, name in enumerate(TRAINED):
        panel = axes[0, 1 + column]
        for number, rule in enumerate(RULES):
            signal, best = (
                only(rows, activation=name, rule=rule) for rows in runs.values()
            )
            number, label = 2 * column + number, f"{name}, {rule}"
            line_over_seeds(
                left, signal, "layer", "mean_square", number, label, markersize=3
            )
            line_over_seeds(panel, best, "depth", "test_accuracy", number, rule)
        panel.set(title=f"{name}, trained with SGD", xlabel="depth, in layers")
        panel.set(ylabel="test accuracy at the best rate", xscale="log", xticks=depths)
        panel.set(xticklabels=depths, ylim=(0, 1.02))
        panel.minorticks_off()
        panel.legend(loc="lower left")
    layers = np.arange(1, max(depths) + 1)
    for rule, label in zip(RULES, (None, "ReLU, closed form"), strict=True):
        left.plot(layers, closed_form(rule, layers), label=label, **CLOSED_FORM)
    left.set(title="Signals at the start", xlabel="layers passed")
    left.set(ylabel="mean square of the activations", yscale="log")
    left.legend(loc="lower left", fontsize=9)
    return figure


def _best(table: pd.DataFrame) -> pd.DataFrame:
    return at_best_rate(only(table, part="training"), ["activation", "depth", "rule"])


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How ReLU changes the signal under both, and how well networks then train."""
    signal, best = only(table, part="signal"), _best(table)
    depths = settings["depths"]
    shallow, deep = min(depths), max(depths)

    def last(name: str, rule: str) -> pd.Series:
        return only(signal, activation=name, rule=rule, layer=deep)["mean_square"]

    def accuracy(name: str, rule: str, depth: int) -> pd.Series:
        return only(best, activation=name, rule=rule, depth=depth)["test_accuracy"]

    def versus(name: str, depth: int) -> str:
        he, xavier = (mean_and_spread(accuracy(name, rule, depth)) for rule in RULES)
        return f"{he} with He and {xavier} with Xavier"

    def advantage(name: str, depth: int) -> float:
        """Of He, in mean accuracy."""
        he, xavier = (accuracy(name, rule, depth).mean() for rule in RULES)
        return float(he - xavier)

    per_layer = {rule: last("ReLU", rule).mean() ** (1 / deep) for rule in RULES}
    close = [depth for depth in depths if abs(advantage("ReLU", depth)) < 0.02]
    return [
        judge(
            "Behind ReLU, He's initialization keeps the mean square, and Xavier's "
            "halves it in each layer.",
            f"After {deep} layers it is {mean_and_spread(last('ReLU', 'He'))} with He, "
            f"closed form {closed_form('He', deep):g}, and "
            f"{mean_and_spread(last('ReLU', 'Xavier'))} with Xavier, closed form "
            f"{closed_form('Xavier', deep):.3g}: {per_layer['He']:.3f} and "
            f"{per_layer['Xavier']:.3f} per layer.",
            *(abs(per_layer[r] / closed_form(r, 1) - 1) < 0.05 for r in RULES),
        ),
        judge(
            "Deep ReLU networks therefore need He's.",
            f"Test accuracy of {deep} layers: {versus('ReLU', deep)}.",
            advantage("ReLU", deep) > 0.1,
        ),
        judge(
            "Xavier's is outdated for ReLU networks of any depth.",
            "The two are less than 0.02 apart at depths "
            f"{', '.join(map(str, close)) or 'none'} of "
            f"{', '.join(map(str, depths))}; {shallow} layers: "
            f"{versus('ReLU', shallow)}.",
            *(advantage("ReLU", depth) > 0.02 for depth in depths),
        ),
        judge(
            "For tanh Xavier's is the right one.",
            f"Mean square after {deep} layers: {mean_and_spread(last('tanh', 'He'))} "
            f"with He and {mean_and_spread(last('tanh', 'Xavier'))} with Xavier. Test "
            f"accuracy of {deep} layers: {versus('tanh', deep)}; Xavier's largest lead "
            "at any depth is "
            f"{max(-advantage('tanh', depth) for depth in depths):.3f}.",
            *(advantage("tanh", depth) < -0.02 for depth in depths),
        ),
    ]


TITLE = "He or Xavier"
ABOUT = """Readers of the book ask whether
[Xavier's initialization](https://proceedings.mlr.press/v9/glorot10a.html) is outdated
now that there is [He's](https://arxiv.org/abs/1502.01852) for ReLU. Here are the mean
square of the activations after each layer, and the accuracy on scikit-learn's digits
after a short training with SGD with momentum. The networks are plain, of width 64
without biases and of 2 to 32 layers, with ReLU or tanh. Both initializations have
equally many learning rates, and the best one is chosen by validation data. Three
seeds."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
