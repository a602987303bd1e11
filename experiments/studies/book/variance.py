"""The derivation of Xavier's initialization, by Monte Carlo."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import CLOSED_FORM, legend_below, look, panels
from experiments.studies.tables import Cell, combinations, only

DISTRIBUTIONS = ("normal", "uniform")
WAYS = ("forward", "backward")
RULES = {
    "Xavier": "σ² = 2/(n_in + n_out)",
    "forward": "σ² = 1/n_in",
    "backward": "σ² = 1/n_out",
}
"""The variance of the weights: both directions half, or one of them."""


def variance(rule: str, n_in: int, n_out: int) -> float:
    """The variance of the weights under one of `RULES`."""
    return 1 / {"Xavier": (n_in + n_out) / 2, "forward": n_in, "backward": n_out}[rule]


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


def cells(settings: Settings) -> list[Cell]:
    """Every shape of a layer, rule, and distribution of the weights."""
    return [
        {"n_in": n_in, "n_out": n_out, **cell}
        for n_in, n_out in settings["shapes"]
        for cell in combinations(rule=RULES, weights=DISTRIBUTIONS)
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
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
    table = pd.DataFrame(gains).agg(["mean", "sem"]).T.rename_axis("gain").reset_index()
    return table.rename(columns={"sem": "standard_error"})


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Both gains of every shape; one panel for each rule."""
    shapes = list(settings["shapes"])
    places = np.arange(len(shapes))
    title = (
        f"Gain of the variance in one linear layer; {settings['seeds']} draws, "
        "±2 standard errors"
    )
    figure, axes = panels(1, len(RULES), title, width=3.4)
    for panel, (rule, label) in zip(axes[0], RULES.items(), strict=True):
        for number, (direction, name) in enumerate(
            (("forward", "forward, Var[o]/γ²"), ("backward", "backward"))
        ):
            style = look(number) | {"linestyle": ""}
            for place, distribution in enumerate(DISTRIBUTIONS):
                rows = only(table, rule=rule, gain=direction, weights=distribution)
                panel.errorbar(
                    places - 0.12 + 0.24 * place,
                    rows["mean"],
                    2 * rows["standard_error"],
                    **style,
                    markerfacecolor=style["color"] if not place else "white",
                    label=f"{name}, {distribution}",
                )
            expected = [closed_form(direction, rule, *shape) for shape in shapes]
            label_once = "closed form" if number else None
            panel.hlines(
                expected, places - 0.35, places + 0.35, **CLOSED_FORM, label=label_once
            )
        panel.set(title=label, xlabel="n_in → n_out", yscale="log", ylim=(0.04, 25))
        panel.set(xticks=places, xticklabels=[f"{a}\n→ {b}" for a, b in shapes])
    axes[0, 0].set_ylabel("gain of the variance")
    legend_below(axes[0, 0], 3)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The two gains, the compromise between them, and its uniform version."""
    # From a file, shapes are lists.
    shapes = [tuple(shape) for shape in settings["shapes"]]
    square = next(shape for shape in shapes if shape[0] == shape[1])
    other = next(shape for shape in shapes if shape[0] != shape[1])
    here = f"{other[0]} → {other[1]}"

    def row(gain: str, shape: tuple[int, int], weights: str = "normal") -> pd.Series:
        """Of Xavier's rule."""
        n_in, n_out = shape
        rows = only(table, gain=gain, rule="Xavier", n_in=n_in, n_out=n_out)
        return only(rows, weights=weights).iloc[0]

    def described(row: pd.Series) -> str:
        return f"{row['mean']:.4f} ± {row['standard_error']:.4f}"

    def errors_off(distribution: str, *directions: str) -> np.ndarray:
        """By how many standard errors each gain differs from the closed form."""
        rows = only(table[table["gain"].isin(directions)], weights=distribution)
        expected = [
            closed_form(*row)
            for row in rows[["gain", "rule", "n_in", "n_out"]].itertuples(index=False)
        ]
        return (rows["mean"] - expected).abs().to_numpy() / rows["standard_error"]

    normal = {way: errors_off("normal", way) for way in WAYS}
    uniform = errors_off("uniform", *WAYS)
    in_square, in_other = (
        [row(way, shape) for way in WAYS] for shape in (square, other)
    )
    mean = np.mean([gain["mean"] for gain in in_other])
    expected = [closed_form(way, "Xavier", *other) for way in WAYS]
    of_weights = row("weights", other, "uniform")
    after = row("after_relu", square)
    # E[x²] of the positive half is γ²/2, its variance γ²/2 - γ²/(2π).
    with_mean = 1 / (1 - 1 / np.pi)
    return [
        judge(
            "A linear layer turns the variance γ² of its inputs into n_in σ² γ².",
            f"Over {len(normal['forward'])} shapes and variances the measured gain is "
            f"{normal['forward'].max():.2g} standard errors off at most; {here} with "
            f"Xavier {described(in_other[0])}, closed form {expected[0]:.4f}.",
            normal["forward"].max() < 4,
        ),
        judge(
            "Backward the same argument gives n_out σ².",
            f"At most {normal['backward'].max():.2g} standard errors off; {here} with "
            f"Xavier {described(in_other[1])}, closed form {expected[1]:.4f}.",
            normal["backward"].max() < 4,
        ),
        judge(
            "Both conditions cannot hold at once unless n_in = n_out; Xavier's "
            "variance 2/(n_in + n_out) makes the mean of the two gains 1.",
            f"In square layers both hold: {square[0]} → {square[1]} has gains "
            f"{' and '.join(map(described, in_square))}. In others neither does: "
            f"{here} has {' and '.join(map(described, in_other))}, with a mean of "
            f"{mean:.4f}.",
            all(abs(gain["mean"] - 1) < 0.05 for gain in in_square),
            all(abs(gain["mean"] - 1) > 0.05 for gain in in_other),
            abs(mean - 1) < 0.05,
        ),
        judge(
            "The uniform distribution on ±√(6/(n_in + n_out)) does the same.",
            f"Its variance over 2/(n_in + n_out) is {described(of_weights)} for "
            f"{here}; the gains are at most {uniform.max():.2g} standard errors off "
            "the closed form.",
            abs(of_weights["mean"] - 1) < 4 * of_weights["standard_error"],
            uniform.max() < 4,
        ),
        judge(
            "The derivation needs inputs with mean zero.",
            "It does: behind a ReLU, whose outputs have a mean, the variance of the "
            f"output is {described(after)} times n_in σ² Var[x], because it depends on "
            f"E[x²]; closed form π/(π − 1) = {with_mean:.4f}.",
            abs(after["mean"] - 1) > 4 * after["standard_error"],
            abs(after["mean"] - with_mean) < 4 * after["standard_error"],
        ),
    ]


TITLE = "The derivation of Xavier's initialization"
ABOUT = """The book derives the variance of a linear layer's outputs, n_in σ² γ², and of
the gradients that come back through it, n_out σ². From these it derives
[Xavier's initialization](https://proceedings.mlr.press/v9/glorot10a.html). Here both
gains are measured by Monte Carlo in float64, for several shapes, three variances of the
weights, and normal and uniform weights: 30 draws of the weights, each with 64 random
inputs and gradients."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
