"""Whether Xavier's initialization is outdated beside He's."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.initialization import (
    ACTIVATIONS,
    draw_kernels,
    kernel_scales,
    layer_shapes,
    plain_training,
    train_all,
)
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.runs import at_best_rate
from experiments.studies.style import line_over_seeds, panels

TRAINED = ("ReLU", "tanh")
RULES = ("He", "Xavier")


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The signals of each activation, and its training at each depth."""
    return [
        *(
            {"part": "signal", "activation": name, "depth": max(settings["depths"])}
            for name in TRAINED
        ),
        *(
            {"part": "training", "activation": name, "depth": depth}
            for name in TRAINED
            for depth in settings["depths"]
        ),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Mean squares after each layer, or runs, under both initializations."""
    name, depth = cell["activation"], cell["depth"]
    if cell["part"] == "training":
        return _training(name, depth, settings)
    width, count = settings["signal_width"], settings["signal_inputs"]
    shapes = layer_shapes(width, width, depth, width)
    rows = []
    for rule, seed in itertools.product(RULES, range(settings["seeds"])):
        inputs = np.random.default_rng([seed]).standard_normal((count, width))
        squares = mean_squares(draw_kernels(rule, shapes, seed), inputs, name)
        rows += [
            {"rule": rule, "seed": seed, "layer": layer, "mean_square": square}
            for layer, square in enumerate(squares, start=1)
        ]
    return pd.DataFrame(rows)


def mean_squares(
    kernels: Sequence[np.ndarray], inputs: np.ndarray, activation: str
) -> list[float]:
    """The mean squares of the activations after each layer, in float32."""
    x = jnp.asarray(inputs, jnp.float32)
    squares = []
    for kernel in kernels:
        x = ACTIVATIONS[activation](x @ jnp.asarray(kernel))
        squares.append(float(jnp.square(x).mean()))
    return squares


def _training(name: str, depth: int, settings: Settings) -> pd.DataFrame:
    data = load("digits")
    runs = pd.DataFrame(
        itertools.product(RULES, settings["learning_rates"], range(settings["seeds"])),
        columns=["rule", "learning_rate", "seed"],
    )
    pixels = math.prod(data.train.images.shape[1:])
    shapes = layer_shapes(pixels, settings["width"], depth, data.num_classes)
    scales = [kernel_scales(rule, shapes, name) for rule in runs["rule"]]
    training = plain_training(depth, "relu" if name == "ReLU" else "tanh", settings)
    return train_all(training, runs, scales, data)


def closed_form(rule: str, layers: Any) -> Any:
    """The mean square after so many square ReLU layers, from inputs of mean square 1.

    He's weights make pre-activations of twice the mean square of the layer's inputs,
    and ReLU halves it; with Xavier's they have the same.
    """
    return (1.0 if rule == "He" else 0.5) ** np.asarray(layers, float)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the mean squares of both activations, then the accuracy by the depth."""
    figure, axes = panels(
        1,
        3,
        f"He or Xavier: mean and lowest to highest of {settings['seeds']} seeds",
        width=3.5,
    )
    signal = table[table["part"] == "signal"]
    best = _best(table)
    for column, name in enumerate(TRAINED):
        for number, rule in enumerate(RULES):
            of_rule = signal[signal["rule"] == rule]
            line_over_seeds(
                axes[0, 0],
                of_rule[of_rule["activation"] == name],
                "layer",
                "mean_square",
                2 * column + number,
                f"{name}, {rule}",
                markersize=3,
            )
            line_over_seeds(
                axes[0, 1 + column],
                best[(best["activation"] == name) & (best["rule"] == rule)],
                "depth",
                "test_accuracy",
                2 * column + number,
                rule,
            )
        axes[0, 1 + column].set(
            title=f"{name}, trained with SGD",
            xlabel="depth, in layers",
            ylabel="test accuracy at the best rate",
            xscale="log",
            xticks=settings["depths"],
            xticklabels=settings["depths"],
        )
        axes[0, 1 + column].minorticks_off()
        axes[0, 1 + column].set_ylim(0, 1.02)
        axes[0, 1 + column].legend(frameon=False, loc="lower left")
    layers = np.arange(1, max(settings["depths"]) + 1)
    for rule in RULES:
        axes[0, 0].plot(
            layers,
            closed_form(rule, layers),
            color="black",
            lw=1,
            ls=":",
            label="ReLU, closed form" if rule == RULES[-1] else None,
        )
    axes[0, 0].set(
        title="Signals at the start",
        xlabel="layers passed",
        ylabel="mean square of the activations",
        yscale="log",
    )
    axes[0, 0].legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def _best(table: pd.DataFrame) -> pd.DataFrame:
    training = table[table["part"] == "training"]
    return at_best_rate(training, ["activation", "depth", "rule"])


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What ReLU does to the signal under both, and what training makes of it."""
    signal, best = table[table["part"] == "signal"], _best(table)
    depths = settings["depths"]
    shallow, deep = min(depths), max(depths)

    def last(name: str, rule: str) -> pd.Series:
        is_it = (signal["activation"] == name) & (signal["rule"] == rule)
        return signal[is_it & (signal["layer"] == deep)]["mean_square"]

    def accuracy(name: str, rule: str, depth: int) -> pd.Series:
        is_it = (best["activation"] == name) & (best["rule"] == rule)
        return best[is_it & (best["depth"] == depth)]["test_accuracy"]

    def versus(name: str, depth: int) -> str:
        return (
            f"{mean_and_spread(accuracy(name, 'He', depth))} with He and "
            f"{mean_and_spread(accuracy(name, 'Xavier', depth))} with Xavier"
        )

    def advantage(name: str, depth: int) -> float:
        """Of He, in mean accuracy."""
        he, xavier = (accuracy(name, rule, depth).mean() for rule in RULES)
        return float(he - xavier)

    per_layer = {rule: last("ReLU", rule).mean() ** (1 / deep) for rule in RULES}
    close = [depth for depth in depths if abs(advantage("ReLU", depth)) < 0.02]
    return [
        Claim(
            "Behind ReLU, He's initialization keeps the mean square, and Xavier's "
            "halves it in each layer.",
            f"After {deep} layers it is {mean_and_spread(last('ReLU', 'He'))} with He, "
            f"closed form {closed_form('He', deep):g}, and "
            f"{mean_and_spread(last('ReLU', 'Xavier'))} with Xavier, closed form "
            f"{closed_form('Xavier', deep):.3g}: {per_layer['He']:.3f} and "
            f"{per_layer['Xavier']:.3f} per layer.",
            judged(
                [
                    abs(per_layer[rule] / closed_form(rule, 1) - 1) < 0.05
                    for rule in RULES
                ]
            ),
        ),
        Claim(
            "Deep ReLU networks therefore need He's.",
            f"Test accuracy of {deep} layers: {versus('ReLU', deep)}.",
            judged([advantage("ReLU", deep) > 0.1]),
        ),
        Claim(
            "Xavier's is outdated for ReLU networks of any depth.",
            "The two are less than 0.02 apart at depths "
            f"{', '.join(map(str, close)) or 'none'} of "
            f"{', '.join(map(str, depths))}; {shallow} layers: "
            f"{versus('ReLU', shallow)}.",
            judged([advantage("ReLU", depth) > 0.02 for depth in depths]),
        ),
        Claim(
            "For tanh Xavier's is the right one.",
            f"Mean square after {deep} layers: {mean_and_spread(last('tanh', 'He'))} "
            f"with He and {mean_and_spread(last('tanh', 'Xavier'))} with Xavier. Test "
            f"accuracy of {deep} layers: {versus('tanh', deep)}; the most that Xavier "
            "is ahead at any depth is "
            f"{max(-advantage('tanh', depth) for depth in depths):.3f}.",
            judged([advantage("tanh", depth) < -0.02 for depth in depths]),
        ),
    ]


ITEM = Item(
    title="He or Xavier",
    about=(
        "Readers of the book ask whether "
        "[Xavier's initialization](https://proceedings.mlr.press/v9/glorot10a.html) is "
        "outdated now that there is [He's](https://arxiv.org/abs/1502.01852) for ReLU. "
        "Here the mean square of the activations after each layer, and the accuracy on "
        "scikit-learn's digits after a short training with SGD with momentum, of plain "
        "networks of width 64 without biases and 2 to 32 layers, with ReLU and with "
        "tanh: equally many learning rates for both, the best by validation data. "
        "Three seeds."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
