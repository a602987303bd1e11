"""Whether underflow is the only danger: four others of float32, or of depth alone."""

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
from experiments.studies.book.initialization import (
    ACTIVATIONS,
    draw_kernels,
    layer_shapes,
    rounded,
)
from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.style import line_with_band, look, panels

FORMATS = {"float32": 24, "float16": 11, "bfloat16": 8}
"""Bits of the significand, with the leading one."""

SATURATING = {"tanh": 13 * math.log(2), "sigmoid": 24 * math.log(2)}
"""Where the function, correctly rounded to float32, becomes 1: tanh where 2 exp(-2x) is
half of the spacing below 1; the sigmoid where exp(-x) is half of that above 1, for it
is computed as 1 / (1 + exp(-x))."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """One part for each danger."""
    del settings
    parts = ("range", "rounding", "step", "correlation", "saturation", "gradient")
    return [{"part": part} for part in parts]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """The table of a danger."""
    return {
        "range": _range,
        "rounding": _rounding,
        "step": _step,
        "correlation": _correlation,
        "saturation": _saturation,
        "gradient": _gradient,
    }[cell["part"]](settings)


def _range(settings: Settings) -> pd.DataFrame:
    """The share of inputs that are lost after each layer: all 0, or not all finite."""
    width, depth = settings["width"], settings["range_depth"]
    shapes = layer_shapes(width, width, depth, width)
    rows = []
    for scale in settings["scales"]:
        for seed in range(settings["seeds"]):
            x = jax.random.normal(jax.random.key(seed), (settings["inputs"], width))
            for layer, kernel in enumerate(draw_kernels("He", shapes, seed), start=1):
                x = jax.nn.relu(x @ jnp.asarray(np.float32(scale) * kernel))
                is_zero = np.asarray((x == 0).all(axis=1))
                is_finite = np.asarray(jnp.isfinite(x).all(axis=1))
                rows.append(
                    {
                        "series": f"He × {scale:g}",  # text, also alone in a file
                        "x": layer,
                        "share": float((is_zero | ~is_finite).mean()),
                    }
                )
    return _over_seeds(pd.DataFrame(rows))


def _scale_of(series: str) -> float:
    return float(series.removeprefix("He × "))


def layers_until_lost(scale: float) -> float:
    """After how many layers scale^layers, a typical activation, leaves float32."""
    limits = np.finfo(np.float32)
    limit = float(limits.tiny if scale < 1 else limits.max)
    return math.log(limit) / math.log(scale)


def _rounding(settings: Settings) -> pd.DataFrame:
    """The share of weights that w - r w leaves as they are, for relative steps r."""
    # Logarithms of weights that are spread over orders of magnitude are about uniform
    # within a power of two.
    exponents = np.random.default_rng(0).uniform(-3, 3, settings["weights"])
    rows = []
    for name in FORMATS:
        weights = (2.0**exponents).astype(jnp.dtype(name))
        for power in np.arange(-44, 0, 0.5):
            steps = (2.0**power * weights.astype(np.float64)).astype(weights.dtype)
            share = np.mean(weights - steps == weights)
            rows.append({"series": name, "x": 2.0**power, "share": share})
    return pd.DataFrame(rows)


def lost_share(step: Any, bits: int) -> np.ndarray:
    """The share of weights, uniform in their logarithm, that a relative step misses.

    A step is lost if it is less than half of the spacing of the numbers: for a weight
    m 2^e with 1 <= m < 2, if step m < 2^-bits.
    """
    return np.clip(-bits - np.log2(step), 0.0, 1.0)


def _step(settings: Settings) -> pd.DataFrame:
    """The share of weights that a step of SGD on the digits leaves as they are."""
    data, count = load("digits"), settings["images"]
    images = data.train.images[:count].reshape(count, -1)
    labels = data.train.labels[:count]
    shapes = layer_shapes(images.shape[1], settings["width"], 3, data.num_classes)

    def loss_of(kernels: Sequence[jax.Array]) -> jax.Array:
        x = images
        for kernel in kernels[:-1]:
            x = jax.nn.relu(x @ kernel)
        logits = x @ kernels[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rows = []
    for seed in range(settings["seeds"]):
        kernels = draw_kernels("He", shapes, seed)
        gradients = jax.grad(loss_of)([jnp.asarray(kernel) for kernel in kernels])
        w = np.concatenate([kernel.ravel() for kernel in kernels])
        g = np.concatenate([np.asarray(gradient).ravel() for gradient in gradients])
        w, g = w[g != 0], g[g != 0]  # units that are dead for all images have none
        for rate in settings["learning_rates"]:
            step = np.float32(rate) * g
            is_lost = w - step == w
            rows.append(
                {
                    "series": "digits",
                    "x": rate,
                    "share": is_lost.mean(),
                    "closed_form": (np.abs(step) < np.spacing(np.abs(w)) / 2).mean(),
                }
            )
    return _over_seeds(pd.DataFrame(rows))


def _correlation(settings: Settings) -> pd.DataFrame:
    """The cosine between two different digits after each ReLU layer."""
    data, count, width = load("digits"), settings["images"], settings["wide"]
    images = np.asarray(data.train.images[: 2 * count]).reshape(2 * count, -1)
    depth = settings["correlation_depth"]
    shapes = layer_shapes(images.shape[1], width, depth, width)
    rows = []
    for seed in range(settings["seeds"]):
        x = jnp.asarray(images)
        expected = cosines(images)
        for layer, kernel in enumerate(draw_kernels("He", shapes, seed), start=1):
            x = jax.nn.relu(x @ jnp.asarray(kernel))
            expected = next_cosine(expected)
            rows.append(
                {
                    "series": "digits",
                    "x": layer,
                    "share": cosines(np.asarray(x)).mean(),
                    "closed_form": expected.mean(),
                }
            )
    return _over_seeds(pd.DataFrame(rows))


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of the angle between each even row and the next, in float64."""
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit[::2] * unit[1::2]).sum(axis=1)


def next_cosine(cosine: Any) -> np.ndarray:
    """What a wide random ReLU layer makes of the cosine between two inputs.

    The arc-cosine kernel of order 1 (Cho and Saul 2009,
    https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning).
    """
    cosine = np.clip(np.asarray(cosine, float), -1.0, 1.0)
    angle = np.arccos(cosine)
    return (np.sin(angle) + (np.pi - angle) * cosine) / np.pi


def _saturation(settings: Settings) -> pd.DataFrame:
    """The share of gradients that are exactly 0, for pre-activations of a deviation."""
    z = jax.random.normal(jax.random.key(0), (settings["weights"],))
    rows = []
    for name in SATURATING:
        gradient = jax.vmap(jax.grad(ACTIVATIONS[name]))
        for deviation in settings["deviations"]:
            share = float((gradient(jnp.float32(deviation) * z) == 0).mean())
            rows.append({"series": name, "x": deviation, "share": share})
    return pd.DataFrame(rows)


def saturated_share(name: str, deviation: Any, limit: float) -> np.ndarray:
    """The share of normal pre-activations whose gradient is exactly 0.

    Beyond the limit on both sides for tanh. For the sigmoid above the limit, and below
    -126 ln 2, where exp(x) is no normal number of float32 any more.
    """
    lower = limit if name == "tanh" else 126 * math.log(2)

    def tail(limit: float, deviation: float) -> float:
        return math.erfc(limit / deviation / 2**0.5) / 2

    return np.array([tail(limit, d) + tail(lower, d) for d in np.atleast_1d(deviation)])


def _gradient(settings: Settings) -> pd.DataFrame:
    """The derivatives themselves, along the positive half of the axis."""
    x = jnp.linspace(0, settings["x_max"], settings["points"])
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "series": name,
                    "x": np.asarray(x),
                    "share": np.asarray(jax.vmap(jax.grad(ACTIVATIONS[name]))(x)),
                }
            )
            for name in SATURATING
        ],
        ignore_index=True,
    )


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds, the lowest and the highest; of the closed form, the mean."""
    groups = rows.groupby(["series", "x"], sort=False)
    table = groups["share"].agg(["mean", "min", "max"]).reset_index()
    table.columns = ["series", "x", "share", "lowest", "highest"]
    if "closed_form" in rows:
        table["closed_form"] = rounded(groups["closed_form"].mean().to_numpy(), 9)
    return table.assign(
        **{n: rounded(table[n].to_numpy(), 9) for n in ("share", "lowest", "highest")}
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A panel for each danger."""
    figure, axes = panels(
        2,
        3,
        f"What can go wrong in float32; bands from lowest to highest of "
        f"{settings['seeds']} seeds",
        width=3.5,
    )
    lost, rounding, step, correlation, saturation, gradient = axes.flat
    closed = {"color": "black", "lw": 0.9, "ls": ":"}

    for number, (series, rows) in enumerate(_series(table, "range")):
        _band(lost, rows, number, series, markersize=3)
        lost.axvline(layers_until_lost(_scale_of(series)), **closed)
    lost.axvline(np.nan, label="closed form", **closed)
    lost.set(xlabel="layers passed", ylabel="share of inputs", title="Inputs lost")
    lost.legend(frameon=False, loc="center left", fontsize=9)

    for number, (series, rows) in enumerate(_series(table, "rounding")):
        rounding.plot(
            rows["x"], rows["share"], label=series, **{**look(number), "markersize": 3}
        )
        rounding.plot(rows["x"], lost_share(rows["x"], FORMATS[series]), **closed)
    rounding.set(
        xscale="log",
        xlabel="size of the step / weight",
        ylabel="share of weights",
        title="Steps lost in rounding",
    )
    rounding.legend(frameon=False, loc="center left", fontsize=9)

    rows = _of(table, "step")
    _band(step, rows, 0, "measured")
    step.plot(rows["x"], rows["closed_form"], label="|lr g| < ulp/2", **closed)
    step.set(
        xscale="log",
        xlabel="learning rate of SGD",
        ylabel="share of weights",
        title="Weights unmoved by a step",
    )
    step.legend(frameon=False, fontsize=9)

    rows = _of(table, "correlation")
    _band(correlation, rows, 0, "measured", markersize=3)
    correlation.plot(rows["x"], rows["closed_form"], label="arc-cosine map", **closed)
    correlation.axhline(1, color="gray", lw=0.8)
    correlation.set(
        xlabel="ReLU layers with He's weights",
        ylabel="cosine of two digits",
        title="Inputs become alike",
    )
    correlation.legend(frameon=False, loc="lower right", fontsize=9)

    for number, (series, rows) in enumerate(_series(table, "saturation")):
        saturation.plot(
            rows["x"], rows["share"], label=series, **{**look(number), "markersize": 5}
        )
        xs = np.geomspace(rows["x"].min(), rows["x"].max(), 100)
        limit = SATURATING[series]
        saturation.plot(xs, saturated_share(series, xs, limit), **closed)
    saturation.set(
        xscale="log",
        xlabel="deviation of the pre-activations",
        ylabel="share of units",
        title="Gradient exactly 0",
    )
    saturation.plot([], [], label="rounded exactly", **closed)
    saturation.legend(frameon=False, loc="upper left", fontsize=9)

    for number, (series, rows) in enumerate(_series(table, "gradient")):
        positive = rows["share"].where(rows["share"] > 0)
        plain = {**look(number), "marker": ""}
        gradient.plot(rows["x"], positive, label=series, **plain)
        gradient.axvline(SATURATING[series], **closed)
    gradient.axvline(np.nan, label="function is 1", **closed)
    gradient.set(
        yscale="log",
        xlabel="pre-activation",
        ylabel="derivative",
        title="It ends where the function is 1",
    )
    gradient.legend(frameon=False, fontsize=9)
    return figure


def _of(table: pd.DataFrame, part: str) -> pd.DataFrame:
    return table[table["part"] == part]


def _series(table: pd.DataFrame, part: str) -> list[tuple[str, pd.DataFrame]]:
    groups = _of(table, part).groupby("series", sort=False)
    return [(str(name), rows) for name, rows in groups]


def _band(
    axes: Any, rows: pd.DataFrame, number: int, label: str, **settings: Any
) -> None:
    line_with_band(
        axes,
        rows["x"],
        rows["share"],
        rows["lowest"],
        rows["highest"],
        number,
        label,
        **settings,
    )


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Each danger by itself, and then the question."""
    ranges = {_scale_of(name): rows for name, rows in _series(table, "range")}
    small, large = min(ranges), max(ranges)

    def lost_at(scale: float) -> tuple[float, float]:
        """The layers after which the first, and after which all inputs are lost."""
        rows = ranges[scale]
        return (
            rows[rows["highest"] > 0]["x"].min(),
            rows[rows["lowest"] >= 1]["x"].min(),
        )

    def range_claim(scale: float, says: str) -> Claim:
        first, last = lost_at(scale)
        expected = layers_until_lost(scale)
        return Claim(
            says,
            f"With He's weights times {scale:g}, inputs are lost after {first:.0f} to "
            f"{last:.0f} layers, over {settings['seeds']} seeds; closed form "
            f"{expected:.1f}.",
            judged([abs(first - expected) < 5, abs(last - expected) < 5]),
        )

    rounding = dict(_series(table, "rounding"))
    off = max(
        float(np.abs(rows["share"] - lost_share(rows["x"], FORMATS[name])).max())
        for name, rows in rounding.items()
    )
    step = _of(table, "step")
    unmoved = step.iloc[0]
    step_off = float((step["share"] - step["closed_form"]).abs().max())
    alike = _of(table, "correlation")
    first, last = alike.iloc[0], alike.iloc[-1]
    cosine_off = float((alike["share"] - alike["closed_form"]).abs().max())
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
    others = [
        range_claim(
            large, "Overflow is as near as underflow: the other end of the range."
        ),
        Claim(
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
            f"learning rate {unmoved['x']:g} leaves {unmoved['share']:.1%} "
            f"({unmoved['lowest']:.1%} to {unmoved['highest']:.1%}) of the weights as "
            f"they are; |lr g| < ulp/2 for {unmoved['closed_form']:.1%}, at most "
            f"{step_off:.2g} apart at any rate.",
            judged([off < 0.03, step_off < 0.01, unmoved["share"] > 0.5]),
        ),
        Claim(
            "With all sizes kept, the outputs of deep networks depend ever less on "
            "the input.",
            f"The mean cosine between two digits is {first['share']:.3f} after one "
            f"ReLU layer with He's weights and {last['share']:.4f} "
            f"({last['lowest']:.4f} to {last['highest']:.4f}) after {last['x']:.0f}; "
            f"the arc-cosine map gives {first['closed_form']:.3f} and "
            f"{last['closed_form']:.4f}, at most {cosine_off:.2g} off.",
            judged([last["share"] > 0.98, cosine_off < 0.03]),
        ),
        Claim(
            "Saturated units pass back a gradient of exactly zero, from finite "
            "activations.",
            "The derivative is 0 from "
            + " and ".join(
                f"x = {end:.2f} for {name} (13 ln 2 = {SATURATING[name]:.2f} by exact "
                "rounding; XLA's tanh is 1 earlier)"
                if name == "tanh"
                else f"x = {end:.2f} for the {name} (24 ln 2 = {SATURATING[name]:.2f})"
                for name, end in ends.items()
            )
            + ". Of normal pre-activations of deviation "
            f"{widest['tanh']['x']:g}, {widest['tanh']['share']:.1%} (tanh) and "
            f"{widest['sigmoid']['share']:.1%} (sigmoid) are there, at most "
            f"{share_off:.2g} off the normal distribution's share.",
            judged(
                [
                    *(row["share"] > 0.1 for row in widest.values()),
                    share_off < 0.02,
                    abs(ends["sigmoid"] / SATURATING["sigmoid"] - 1) < 0.02,
                ]
            ),
        ),
    ]
    seen = [claim.verdict == "confirmed" for claim in others]
    return [
        range_claim(small, "Numbers that are too small become zero."),
        *others,
        Claim(
            "Underflow is the only danger.",
            f"{sum(seen)} of the {len(seen)} others above occur as well. Overflow and "
            "lost steps come from the format of the numbers as underflow does, "
            "saturation from the format and the activation, and inputs that become "
            "alike from the depth alone.",
            judged([not was_seen for was_seen in seen]),
        ),
    ]


ITEM = Item(
    title="Is underflow the only danger?",
    about=(
        "Readers of the book ask whether underflow is all there is to fear. Here, in "
        "float32 and at random weights: underflow and overflow of ReLU networks, steps "
        "that rounding swallows, two inputs that become alike (the closed form is "
        "[Cho and Saul's](https://papers.nips.cc/paper/3628-kernel-methods-for-deep-"
        "learning) arc-cosine kernel), and gradients of tanh and sigmoid that are "
        "exactly zero. Inputs and gradients are those of scikit-learn's digits where "
        "the picture says so, over three seeds."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
