"""The derivation of Xavier's initialization, by Monte Carlo."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.style import look, panels

DISTRIBUTIONS = ("normal", "uniform")
RULES = {
    "Xavier": "σ² = 2/(n_in + n_out)",
    "forward": "σ² = 1/n_in",
    "backward": "σ² = 1/n_out",
}
"""The variance of the weights: both directions half, or one of them."""


def variance(rule: str, n_in: int, n_out: int) -> float:
    """The variance of the weights under one of `RULES`."""
    return {
        "Xavier": 2 / (n_in + n_out),
        "forward": 1 / n_in,
        "backward": 1 / n_out,
    }[rule]


def closed_form(direction: str, rule: str, n_in: int, n_out: int) -> float:
    """The gain: n_in σ² of the output's variance, n_out σ² of the gradient's."""
    summands = n_in if direction == "forward" else n_out
    return summands * variance(rule, n_in, n_out)


def draw_weights(
    rng: np.random.Generator, distribution: str, sigma: float, n_in: int, n_out: int
) -> np.ndarray:
    """Weights [n_out, n_in] with mean 0 and standard deviation σ."""
    if distribution == "uniform":
        # Of variance a²/3; with Xavier's σ, a = √(6 / (n_in + n_out)).
        bound = 3**0.5 * sigma
        return rng.uniform(-bound, bound, (n_out, n_in))
    return sigma * rng.standard_normal((n_out, n_in))


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every shape of a layer, rule, and distribution of the weights."""
    return [
        {"n_in": n_in, "n_out": n_out, "rule": rule, "weights": distribution}
        for n_in, n_out in settings["shapes"]
        for rule in RULES
        for distribution in DISTRIBUTIONS
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Gains of a linear layer: mean over draws of weights and inputs, in float64.

    Besides the two of the derivation there are the variance of the weights over σ², and
    the gain of inputs with a mean, those behind a ReLU, as the derivation has them: the
    variance of the output over n_in σ² times that of the input.
    """
    n_in, n_out, rule = cell["n_in"], cell["n_out"], cell["rule"]
    sigma = variance(rule, n_in, n_out) ** 0.5
    gamma, count = settings["gamma"], settings["vectors"]
    gains = []
    for seed in range(settings["seeds"]):
        # Other draws for each cell, so that their errors are independent.
        kind = (list(RULES).index(rule), DISTRIBUTIONS.index(cell["weights"]))
        rng = np.random.default_rng([seed, n_in, n_out, *kind])
        weights = draw_weights(rng, cell["weights"], sigma, n_in, n_out)
        inputs = gamma * rng.standard_normal((n_in, count))
        gradients = gamma * rng.standard_normal((n_out, count))
        positive = np.maximum(inputs, 0)
        gains.append(
            {
                "forward": np.mean((weights @ inputs) ** 2) / gamma**2,
                "backward": np.mean((weights.T @ gradients) ** 2) / gamma**2,
                "weights": np.mean(weights**2) / sigma**2,
                "after_relu": np.mean((weights @ positive) ** 2)
                / (n_in * sigma**2 * positive.var()),
            }
        )
    table = pd.DataFrame(gains)
    return pd.DataFrame(
        {
            "gain": table.columns,
            "mean": table.mean().to_numpy(),
            "standard_error": table.sem().to_numpy(),
        }
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Both gains of every shape; one panel for each rule."""
    shapes = list(settings["shapes"])
    figure, axes = panels(
        1,
        len(RULES),
        f"Gain of the variance in one linear layer; {settings['seeds']} draws, "
        "±2 standard errors",
        width=3.4,
    )
    for panel, (rule, label) in zip(axes[0], RULES.items(), strict=True):
        for number, (direction, name) in enumerate(
            (("forward", "forward, Var[o]/γ²"), ("backward", "backward"))
        ):
            style = look(number)
            for place, distribution in enumerate(DISTRIBUTIONS):
                rows = table[
                    (table["rule"] == rule)
                    & (table["gain"] == direction)
                    & (table["weights"] == distribution)
                ]
                panel.errorbar(
                    np.arange(len(shapes)) - 0.12 + 0.24 * place,
                    rows["mean"],
                    2 * rows["standard_error"],
                    ls="",
                    marker=style["marker"],
                    color=style["color"],
                    markerfacecolor=style["color"] if not place else "white",
                    label=f"{name}, {distribution}",
                )
            for position, shape in enumerate(shapes):
                expected = closed_form(direction, rule, *shape)
                panel.plot(
                    [position - 0.35, position + 0.35],
                    [expected, expected],
                    color="black",
                    lw=1,
                    ls=":",
                    label="closed form" if not position and number else None,
                )
        panel.set(
            title=label,
            xlabel="n_in → n_out",
            yscale="log",
            xticks=range(len(shapes)),
            xticklabels=[f"{a}\n→ {b}" for a, b in shapes],
        )
        panel.set_ylim(0.04, 25)
    axes[0, 0].set_ylabel("gain of the variance")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The two gains, the compromise between them, and its uniform version."""

    def row(gain: str, rule: str, shape: tuple[int, int], weights: str) -> pd.Series:
        is_it = (table["gain"] == gain) & (table["rule"] == rule)
        is_it &= (table["n_in"] == shape[0]) & (table["n_out"] == shape[1])
        return table[is_it & (table["weights"] == weights)].iloc[0]

    def described(row: pd.Series) -> str:
        return f"{row['mean']:.4f} ± {row['standard_error']:.4f}"

    # From a file, shapes are lists.
    shapes = [tuple(shape) for shape in settings["shapes"]]

    def errors_off(direction: str, distribution: str) -> np.ndarray:
        """By how many standard errors each gain differs from the closed form."""
        off = []
        for shape in shapes:
            for rule in RULES:
                found = row(direction, rule, shape, distribution)
                difference = found["mean"] - closed_form(direction, rule, *shape)
                off.append(abs(difference) / found["standard_error"])
        return np.array(off)

    square = next(shape for shape in shapes if shape[0] == shape[1])
    other = next(shape for shape in shapes if shape[0] != shape[1])
    normal = {way: errors_off(way, "normal") for way in ("forward", "backward")}
    uniform = np.concatenate(
        [errors_off(way, "uniform") for way in ("forward", "backward")]
    )
    both = {
        shape: [row(way, "Xavier", shape, "normal") for way in normal]
        for shape in (square, other)
    }
    expected = [closed_form(way, "Xavier", *other) for way in normal]
    of_weights = row("weights", "Xavier", other, "uniform")
    after = row("after_relu", "Xavier", square, "normal")
    # E[x²] of the positive half is γ²/2, its variance γ²/2 - γ²/(2π).
    with_mean = 1 / (1 - 1 / np.pi)
    return [
        Claim(
            "A linear layer turns the variance γ² of its inputs into n_in σ² γ².",
            f"Over {len(normal['forward'])} shapes and variances the measured gain is "
            f"{np.max(normal['forward']):.2g} standard errors off at most; {other[0]} "
            f"→ {other[1]} with Xavier {described(both[other][0])}, closed form "
            f"{expected[0]:.4f}.",
            judged([bool((normal["forward"] < 4).all())]),
        ),
        Claim(
            "Backward the same argument gives n_out σ².",
            f"At most {np.max(normal['backward']):.2g} standard errors off; {other[0]} "
            f"→ {other[1]} with Xavier {described(both[other][1])}, closed form "
            f"{expected[1]:.4f}.",
            judged([bool((normal["backward"] < 4).all())]),
        ),
        Claim(
            "Both conditions cannot hold at once unless n_in = n_out; Xavier's "
            "variance 2/(n_in + n_out) makes the mean of the two gains 1.",
            f"In square layers both do: {square[0]} → {square[1]} has gains "
            f"{' and '.join(map(described, both[square]))}. In others neither: "
            f"{other[0]} → {other[1]} has {' and '.join(map(described, both[other]))}, "
            f"with a mean of {np.mean([gain['mean'] for gain in both[other]]):.4f}.",
            judged(
                [
                    all(abs(gain["mean"] - 1) < 0.05 for gain in both[square]),
                    all(abs(gain["mean"] - 1) > 0.05 for gain in both[other]),
                    bool(
                        abs(np.mean([gain["mean"] for gain in both[other]]) - 1) < 0.05
                    ),
                ]
            ),
        ),
        Claim(
            "The uniform distribution on ±√(6/(n_in + n_out)) does the same.",
            f"Its variance over 2/(n_in + n_out) is {described(of_weights)} for "
            f"{other[0]} → {other[1]}; the gains are at most {uniform.max():.2g} "
            "standard errors off the closed form.",
            judged(
                [
                    abs(of_weights["mean"] - 1) < 4 * of_weights["standard_error"],
                    bool((uniform < 4).all()),
                ]
            ),
        ),
        Claim(
            "The derivation needs inputs with mean zero.",
            "It does: behind a ReLU, whose outputs have a mean, the variance of the "
            f"output is {described(after)} times n_in σ² Var[x], for it is E[x²] that "
            f"counts; closed form π/(π − 1) = {with_mean:.4f}.",
            judged(
                [
                    abs(after["mean"] - 1) > 4 * after["standard_error"],
                    abs(after["mean"] - with_mean) < 4 * after["standard_error"],
                ]
            ),
        ),
    ]


ITEM = Item(
    title="The derivation of Xavier's initialization",
    about=(
        "The book derives the variance of a linear layer's outputs, n_in σ² γ², and of "
        "the gradients that come back through it, n_out σ², and with them "
        "[Xavier's initialization](https://proceedings.mlr.press/v9/glorot10a.html). "
        "Here both gains by Monte Carlo in float64, for several shapes, three "
        "variances of the weights, and normal and uniform weights: 30 draws of the "
        "weights, each with 64 random inputs and gradients."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
