"""Whether underflow is the only danger: four others of float32, or of depth alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import ndtr

from experiments.data import load
from experiments.studies.book import shared
from experiments.studies.book.shared import (
    ACTIVATIONS,
    activations,
    draw_kernels,
    layer_shapes,
)
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import CLOSED_FORM, line_with_band, panels
from experiments.studies.tables import Cell, combinations, only, with_range

FORMATS = {"float32": 24, "float16": 11, "bfloat16": 8}
"""Bits of the significand, with the leading one."""

SATURATING = {"tanh": 13 * math.log(2), "sigmoid": 24 * math.log(2)}
"""Where the function, correctly rounded to float32, becomes 1: tanh where 2 exp(-2x) is
half of the spacing below 1; the sigmoid where exp(-x) is half of that above 1, for it
is computed as 1 / (1 + exp(-x))."""


def cells(settings: Settings) -> list[Cell]:
    """One part for each danger."""
    return combinations(part=PARTS)


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """The mean share over seeds, with the lowest and the highest where there are many.

    Each danger has one or more series of shares along x, some with a closed form.
    """
    rows = pd.DataFrame(PARTS[cell["part"]](settings))
    if cell["part"] in ("rounding", "saturation", "gradient"):
        return rows
    groups = rows.groupby(["series", "x"], sort=False)
    table = groups["share"].agg(share="mean", lowest="min", highest="max")
    if "closed_form" in rows:
        table["closed_form"] = groups["closed_form"].mean()
    return table.apply(shared.rounded, digits=9).reset_index()


def _range(settings: Settings) -> Iterator[Cell]:
    """The share of inputs that are lost after each layer: all 0, or not all finite."""
    width, depth = settings["width"], settings["range_depth"]
    shapes = layer_shapes(width, width, depth, width)
    for scale in settings["scales"]:
        series = f"He × {scale:g}"  # text, also alone in a file
        for seed in range(settings["seeds"]):
            size = (settings["inputs"], width)
            inputs = jax.random.normal(jax.random.key(seed), size)
            kernels = (np.float32(scale) * k for k in draw_kernels("He", shapes, seed))
            for layer, x in enumerate(activations(kernels, inputs), start=1):
                is_lost = (x == 0).all(axis=1) | ~jnp.isfinite(x).all(axis=1)
                share = float(np.mean(is_lost))
                yield {"series": series, "x": layer, "share": share}


def _scale_of(series: str) -> float:
    return float(series.removeprefix("He × "))


def layers_until_lost(scale: float) -> float:
    """After how many layers scale^layers, a typical activation, leaves float32."""
    limits = np.finfo(np.float32)
    limit = float(limits.tiny if scale < 1 else limits.max)
    return math.log(limit) / math.log(scale)


def _rounding(settings: Settings) -> Iterator[Cell]:
    """The share of weights that w - r w leaves as they are, for relative steps r."""
    # Logarithms of weights that are spread over orders of magnitude are about uniform
    # within a power of two.
    exponents = np.random.default_rng(0).uniform(-3, 3, settings["weights"])
    for name in FORMATS:
        weights = (2.0**exponents).astype(jnp.dtype(name))
        for step in 2.0 ** np.arange(-44, 0, 0.5):
            steps = (step * weights.astype(np.float64)).astype(weights.dtype)
            share = np.mean(weights - steps == weights)
            yield {"series": name, "x": step, "share": share}


def lost_share(step: Any, bits: int) -> np.ndarray:
    """The share of weights, uniform in their logarithm, that a relative step misses.

    A step is lost if it is less than half of the spacing of the numbers: for a weight
    m 2^e with 1 <= m < 2, if step m < 2^-bits.
    """
    return np.clip(-bits - np.log2(step), 0.0, 1.0)


def _step(settings: Settings) -> Iterator[Cell]:
    """The share of weights that a step of SGD on the digits leaves as they are."""
    data = load("digits")
    images, labels = shared.flattened(data.train, settings["images"])
    shapes = layer_shapes(images.shape[1], settings["width"], 3, data.num_classes)

    def loss_of(kernels: Sequence[jax.Array]) -> jax.Array:
        *_, x = activations(kernels[:-1], images)
        return shared.cross_entropy(x @ kernels[-1], labels)

    for seed in range(settings["seeds"]):
        kernels = draw_kernels("He", shapes, seed)
        gradients = jax.grad(loss_of)([jnp.asarray(kernel) for kernel in kernels])
        w, g = (
            np.concatenate([np.ravel(x) for x in xs]) for xs in (kernels, gradients)
        )
        w, g = w[g != 0], g[g != 0]  # units that are dead for all images have none
        for rate in settings["learning_rates"]:
            step = np.float32(rate) * g
            is_below = np.abs(step) < np.spacing(np.abs(w)) / 2
            share = (w - step == w).mean()
            row = {"series": "digits", "x": rate, "share": share}
            yield {**row, "closed_form": is_below.mean()}


def _correlation(settings: Settings) -> Iterator[Cell]:
    """The cosine between two different digits after each ReLU layer."""
    images, _ = shared.flattened(load("digits").train, 2 * settings["images"])
    depth, width = settings["correlation_depth"], settings["wide"]
    shapes = layer_shapes(images.shape[1], width, depth, width)
    for seed in range(settings["seeds"]):
        expected, kernels = cosines(images), draw_kernels("He", shapes, seed)
        for layer, x in enumerate(activations(kernels, images), start=1):
            expected = next_cosine(expected)
            row = {"series": "digits", "x": layer, "share": cosines(x).mean()}
            yield {**row, "closed_form": expected.mean()}


def cosines(vectors: Any) -> np.ndarray:
    """The cosine of the angle between each even row and the next, in float64."""
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit[::2] * unit[1::2]).sum(axis=1)


def next_cosine(cosine: Any) -> np.ndarray:
    """The cosine between two inputs after a wide random ReLU layer.

    The arc-cosine kernel of order 1 (Cho and Saul 2009,
    https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning).
    """
    cosine = np.clip(np.asarray(cosine, float), -1.0, 1.0)
    angle = np.arccos(cosine)
    return (np.sin(angle) + (np.pi - angle) * cosine) / np.pi


def _saturation(settings: Settings) -> Iterator[Cell]:
    """The share of gradients that are exactly 0, for pre-activations of a deviation."""
    z = jax.random.normal(jax.random.key(0), (settings["weights"],))
    for name in SATURATING:
        gradient = jax.vmap(jax.grad(ACTIVATIONS[name]))
        for deviation in settings["deviations"]:
            share = float((gradient(jnp.float32(deviation) * z) == 0).mean())
            yield {"series": name, "x": deviation, "share": share}


def saturated_share(name: str, deviation: Any, limit: float) -> np.ndarray:
    """The share of normal pre-activations whose gradient is exactly 0.

    Beyond the limit on both sides for tanh. For the sigmoid above the limit, and below
    -126 ln 2, where exp(x) is no normal number of float32 any more.
    """
    lower = limit if name == "tanh" else 126 * math.log(2)
    deviation = np.atleast_1d(deviation)
    return ndtr(-limit / deviation) + ndtr(-lower / deviation)


def _gradient(settings: Settings) -> pd.DataFrame:
    """The derivatives themselves, along the positive half of the axis."""
    x = jnp.linspace(0, settings["x_max"], settings["points"])
    derivatives = {
        name: jax.vmap(jax.grad(ACTIVATIONS[name]))(x) for name in SATURATING
    }
    return pd.concat(
        [
            pd.DataFrame({"series": name, "x": x, "share": share})
            for name, share in derivatives.items()
        ],
        ignore_index=True,
    )


PARTS = {
    "range": _range,
    "rounding": _rounding,
    "step": _step,
    "correlation": _correlation,
    "saturation": _saturation,
    "gradient": _gradient,
}
"""The dangers."""


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A panel for each danger."""
    title = (
        f"What can go wrong in float32; bands from lowest to highest of "
        f"{settings['seeds']} seeds"
    )
    figure, axes = panels(2, 3, title, width=3.5)
    lost, rounding, step, correlation, saturation, gradient = axes.flat

    def series(panel: Any, part: str, **style: Any) -> Iterator[tuple[str, Any]]:
        """Draws the measured shares of each series of a part, and gives its rows."""
        for number, (name, rows) in enumerate(_series(table, part)):
            values = rows["share"], rows["lowest"], rows["highest"]
            label = "measured" if name == "digits" else name
            line_with_band(panel, rows["x"], *values, number, label, **style)
            yield name, rows

    for name, _ in series(lost, "range", markersize=3):
        lost.axvline(layers_until_lost(_scale_of(name)), **CLOSED_FORM)
    lost.axvline(np.nan, label="closed form", **CLOSED_FORM)
    lost.set(xlabel="layers passed", ylabel="share of inputs", title="Inputs lost")

    for name, rows in series(rounding, "rounding", markersize=3):
        rounding.plot(rows["x"], lost_share(rows["x"], FORMATS[name]), **CLOSED_FORM)
    rounding.set(xscale="log", xlabel="size of the step / weight")
    rounding.set(ylabel="share of weights", title="Steps lost in rounding")

    for _, rows in series(step, "step"):
        closed_form = rows["closed_form"]
        step.plot(rows["x"], closed_form, label="|lr g| < ulp/2", **CLOSED_FORM)
    step.set(xscale="log", xlabel="learning rate of SGD", ylabel="share of weights")
    step.set(title="Weights unmoved by a step")

    for _, rows in series(correlation, "correlation", markersize=3):
        closed_form = rows["closed_form"]
        correlation.plot(rows["x"], closed_form, label="arc-cosine map", **CLOSED_FORM)
    correlation.axhline(1, color="gray", lw=0.8)
    correlation.set(xlabel="ReLU layers with He's weights")
    correlation.set(ylabel="cosine of two digits", title="Inputs become alike")

    for name, rows in series(saturation, "saturation", markersize=5):
        xs = np.geomspace(rows["x"].min(), rows["x"].max(), 100)
        expected = saturated_share(name, xs, SATURATING[name])
        saturation.plot(xs, expected, **CLOSED_FORM)
    saturation.plot([], [], label="rounded exactly", **CLOSED_FORM)
    saturation.set(xscale="log", xlabel="deviation of the pre-activations")
    saturation.set(ylabel="share of units", title="Gradient exactly 0")

    for name, _ in series(gradient, "gradient", marker=""):
        gradient.axvline(SATURATING[name], **CLOSED_FORM)
    gradient.axvline(np.nan, label="function is 1", **CLOSED_FORM)
    gradient.set_yscale("log", nonpositive="mask")
    gradient.set(xlabel="pre-activation", ylabel="derivative")
    gradient.set(title="It ends where the function is 1")
    places = ("center left", "center left", "best", "lower right", "upper left", "best")
    for panel, place in zip(axes.flat, places, strict=True):
        panel.legend(loc=place, fontsize=9)
    return figure


def _series(table: pd.DataFrame, part: str) -> list[tuple[str, pd.DataFrame]]:
    groups = only(table, part=part).groupby("series", sort=False)
    return [(str(name), rows) for name, rows in groups]


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Each danger by itself, and then the question."""
    ranges = {_scale_of(name): rows for name, rows in _series(table, "range")}
    small, large = min(ranges), max(ranges)

    def range_claim(scale: float, says: str) -> Claim:
        rows, expected = ranges[scale], layers_until_lost(scale)
        # The layers after which the first, and after which all inputs are lost.
        first = rows[rows["highest"] > 0]["x"].min()
        last = rows[rows["lowest"] >= 1]["x"].min()
        return judge(
            says,
            f"With He's weights times {scale:g}, inputs are lost after {first:.0f} to "
            f"{last:.0f} layers, over {settings['seeds']} seeds; closed form "
            f"{expected:.1f}.",
            abs(first - expected) < 5,
            abs(last - expected) < 5,
        )

    rounding = dict(_series(table, "rounding"))
    off = max(
        np.abs(rows["share"] - lost_share(rows["x"], FORMATS[name])).max()
        for name, rows in rounding.items()
    )
    step, alike = (only(table, part=part) for part in ("step", "correlation"))
    step_off, cosine_off = (
        (rows["share"] - rows["closed_form"]).abs().max() for rows in (step, alike)
    )
    unmoved, first, last = step.iloc[0], alike.iloc[0], alike.iloc[-1]
    ends = {
        name: float(rows[rows["share"] == 0]["x"].min())
        for name, rows in _series(table, "gradient")
    }
    widest = {
        name: rows.sort_values("x").iloc[-1]
        for name, rows in _series(table, "saturation")
    }
    share_off = max(
        abs(row["share"] - saturated_share(name, row["x"], ends[name])[0])
        for name, row in widest.items()
    )

    def interval(row: pd.Series, form: str) -> str:
        return with_range(row["share"], row["lowest"], row["highest"], form)

    others = [
        range_claim(
            large, "Overflow is as near as underflow: the other end of the range."
        ),
        judge(
            "A step can be lost although nothing is near zero: w − lr g is w if the "
            "step is less than half of the spacing of the numbers at w.",
            "Relative steps from "
            + ", ".join(
                f"{rows[rows['share'] < 1]['x'].min():.2g} ({name}; 2^-{FORMATS[name]} "
                f"= {2.0 ** -FORMATS[name]:.2g})"
                for name, rows in rounding.items()
            )
            + " on move some of the weights; the share of those that stay is at "
            f"most {off:.2g} off the closed form. On the digits a step of SGD with "
            f"learning rate {unmoved['x']:g} leaves {interval(unmoved, '.1%')} of the "
            f"weights as they are; |lr g| < ulp/2 for {unmoved['closed_form']:.1%}, at "
            f"most {step_off:.2g} apart at any rate.",
            off < 0.03,
            step_off < 0.01,
            unmoved["share"] > 0.5,
        ),
        judge(
            "With all sizes kept, the outputs of deep networks depend ever less on "
            "the input.",
            f"The mean cosine between two digits is {first['share']:.3f} after one "
            f"ReLU layer with He's weights and {interval(last, '.4f')} after "
            f"{last['x']:.0f}; the arc-cosine map gives {first['closed_form']:.3f} and "
            f"{last['closed_form']:.4f}, at most {cosine_off:.2g} off.",
            last["share"] > 0.98,
            cosine_off < 0.03,
        ),
        judge(
            "Saturated units pass back a gradient of exactly zero, from finite "
            "activations.",
            f"The derivative is 0 from x = {ends['tanh']:.2f} for tanh (13 ln 2 = "
            f"{SATURATING['tanh']:.2f} by exact rounding; XLA's tanh is 1 earlier) and "
            f"x = {ends['sigmoid']:.2f} for the sigmoid (24 ln 2 = "
            f"{SATURATING['sigmoid']:.2f}). Of normal pre-activations of deviation "
            f"{widest['tanh']['x']:g}, {widest['tanh']['share']:.1%} (tanh) and "
            f"{widest['sigmoid']['share']:.1%} (sigmoid) are there, at most "
            f"{share_off:.2g} off the normal distribution's share.",
            *(row["share"] > 0.1 for row in widest.values()),
            share_off < 0.02,
            abs(ends["sigmoid"] / SATURATING["sigmoid"] - 1) < 0.02,
        ),
    ]
    seen = [claim.verdict == "confirmed" for claim in others]
    return [
        range_claim(small, "Numbers that are too small become zero."),
        *others,
        judge(
            "Underflow is the only danger.",
            f"{sum(seen)} of the {len(seen)} others above occur as well. Overflow and "
            "lost steps come from the format of the numbers as underflow does, "
            "saturation from the format and the activation, and inputs that become "
            "alike from the depth alone.",
            *(not was_seen for was_seen in seen),
        ),
    ]


TITLE = "Is underflow the only danger?"
ABOUT = """Readers of the book ask whether underflow is the only danger. Here are, in
float32 and at random weights: underflow and overflow of ReLU networks, steps that
rounding swallows, two inputs that become alike (the closed form is
[Cho and Saul's](https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning)
arc-cosine kernel), and gradients of tanh and sigmoid that are exactly zero. Inputs and
gradients are those of scikit-learn's digits where the picture says so, over three
seeds."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
