"""Why to keep the variance: a factor per layer, and its effect on training."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.book import shared
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.runs import at_best_rate
from experiments.studies.style import CLOSED_FORM, legend_below, line_over_seeds, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

# Of normal numbers; some devices keep smaller ones, others lose them.
SMALLEST, LARGEST = (float(getattr(np.finfo(np.float32), x)) for x in ("tiny", "max"))


def cells(settings: Settings) -> list[Cell]:
    """The signals, and the training at each depth."""
    return [
        {"part": "signal", "depth": settings["signal_depth"]},
        *combinations(part=["training"], depth=settings["depths"]),
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Mean squares layer by layer for each factor, or runs for each factor."""
    depth = cell["depth"]
    if cell["part"] == "signal":
        return _signals(depth, settings)
    factors, rates = settings["trained_factors"], settings["learning_rates"]
    seeds = range(settings["seeds"])
    runs = combinations(factor=factors, learning_rate=rates, seed=seeds)
    runs = pd.DataFrame(runs)
    scales = np.sqrt(runs[["factor"]].to_numpy())
    return shared.trained(runs, depth, "relu", settings, scales)


def _signals(depth: int, settings: Settings) -> pd.DataFrame:
    factors = jnp.asarray(settings["factors"], jnp.float32)
    sizes = {"width": settings["signal_width"], "count": settings["signal_inputs"]}
    both = [
        log_mean_squares(jax.random.key(seed), factors, depth=depth, **sizes)
        for seed in range(settings["seeds"])
    ]
    layers = np.arange(1, depth + 1)
    is_shown = layers % settings["every"] == 0
    tables = []
    for factor, values in zip(  # [seeds, 2, layers] each
        settings["factors"], np.moveaxis(np.array(both, float), -1, 0), strict=True
    ):
        is_in = np.isfinite(values[:, 0])
        left = np.where(is_in.all(axis=1), np.nan, is_in.argmin(axis=1) + 1)
        forward, backward = np.moveaxis(values[..., is_shown], 1, 0)
        columns = {
            "layer": layers[is_shown],
            **shared.columns_over_seeds("forward", forward),
            **shared.columns_over_seeds("backward", backward),
            **{"factor": factor, "left_first": left.min(), "left_last": left.max()},
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


@partial(jax.jit, static_argnames=("depth", "width", "count"))
def log_mean_squares(
    key: jax.Array, factors: jax.Array, *, depth: int, width: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """log10 of mean squares in ReLU networks in float32, after each layer.

    Weights have variance 2 factor / width, which multiplies the mean square by the
    factor in each layer. What has left the range of float32 gives an infinity or not a
    number. Which units are active is taken from activations that are kept at size 1,
    with which it is the same in all networks: gradients then leave the range by
    themselves, and not because the activations have.

    Returns:
        Of the activations after 1, 2, ... layers, [depth, factors], and of a random
        gradient that has come back through as many.
    """
    input_key, output_key, weight_key = jax.random.split(key, 3)
    sigmas = jnp.sqrt(2 * factors / width)[:, None, None]

    def weights(layer: jax.Array) -> jax.Array:
        layer_key = jax.random.fold_in(weight_key, layer)
        return jax.random.normal(layer_key, (width, width))

    def forward(both: Any, layer: jax.Array) -> tuple[Any, Any]:
        xs, kept = both
        w = weights(layer)
        xs, kept = jax.nn.relu(xs @ (sigmas * w[None])), jax.nn.relu(kept @ w)
        kept = kept / jnp.sqrt(jnp.square(kept).mean())
        return (xs, kept), (_log_mean_square(xs), kept > 0)

    def backward(gs: jax.Array, parts: Any) -> tuple[jax.Array, jax.Array]:
        layer, is_active = parts
        gs = jnp.where(is_active[None], gs, 0) @ (sigmas * weights(layer).T[None])
        return gs, _log_mean_square(gs)

    layers, size = jnp.arange(depth), (len(factors), count, width)
    x = jax.random.normal(input_key, (count, width))
    start = jnp.broadcast_to(x, size), x
    _, (of_signals, are_active) = jax.lax.scan(forward, start, layers)
    g = jnp.broadcast_to(jax.random.normal(output_key, (count, width)), size)
    _, of_gradients = jax.lax.scan(backward, g, (layers[::-1], are_active[::-1]))
    return of_signals, of_gradients


def _log_mean_square(xs: jax.Array) -> jax.Array:
    """log10 of the mean square of each network; squares may be out of range."""
    largest = jnp.abs(xs).max(axis=(1, 2))
    ratios = xs / largest[:, None, None]
    return 2 * jnp.log10(largest) + jnp.log10(jnp.square(ratios).mean(axis=(1, 2)))


def layers_in_range(factor: float) -> float:
    """After how many layers factor^(layers / 2), a typical number, leaves float32."""
    limit = SMALLEST if factor < 1 else LARGEST
    return 2 * math.log(limit) / math.log(factor)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Signals and gradients layer by layer, and the accuracy of training from them."""
    title = (
        "A factor per layer, to the power of the depth; bands from lowest to highest "
        f"of {settings['seeds']} seeds"
    )
    figure, axes = panels(1, 3, title, width=3.5)
    left, middle, right = axes[0]
    for panel, name, title in (
        (left, "forward", "Activations"),
        (middle, "backward", "Gradients"),
    ):
        for number, factor in enumerate(settings["factors"]):
            rows = only(table, part="signal", factor=factor)
            expected = rows["layer"] * math.log10(factor)
            label = None if number else "closed form"
            panel.plot(rows["layer"], expected, label=label, **CLOSED_FORM)
            shared.line_of_columns(panel, rows, "layer", name, number, f"{factor:g}")
        for limit in (SMALLEST, LARGEST):
            panel.axhline(2 * math.log10(limit), color="gray", lw=1)
        panel.set(xlabel="layers passed", title=title, ylim=(-95, 95))
        panel.text(3, 79, "float32 overflows", fontsize=8, color="gray")
        panel.text(3, -85, "float32 underflows", fontsize=8, color="gray")
    left.set_ylabel("log₁₀ mean square")
    best = _best(table)
    for number, depth in enumerate(settings["depths"]):
        rows, label = only(best, depth=depth), f"{depth} layers"
        line_over_seeds(right, rows, "factor", "test_accuracy", number, label)
    right.set(xscale="log", xlabel="factor of the mean square per layer")
    right.set(ylabel="mean test accuracy, best rate", title="Training with SGD")
    right.set(xticks=settings["trained_factors"])
    right.set(xticklabels=[f"{factor:g}" for factor in settings["trained_factors"]])
    right.set(ylim=(0, 1.02))
    right.minorticks_off()
    right.axvline(1, **CLOSED_FORM)
    right.legend(loc=(0.02, 0.52), fontsize=9)
    columns = len(settings["factors"]) + 1
    title = {"title": "factor of the mean square per layer", "title_fontsize": 9}
    legend_below(left, columns, loc="outside lower left", **title)
    return figure


def _best(table: pd.DataFrame) -> pd.DataFrame:
    return at_best_rate(only(table, part="training"), ["depth", "factor"])


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Signals grow or shrink exponentially, leave float32, and stop the training."""
    signals, best = only(table, part="signal"), _best(table)
    of_factor = {factor: only(signals, factor=factor) for factor in settings["factors"]}
    slopes = {
        factor: [_factor_of(rows, name) for name in ("forward", "backward")]
        for factor, rows in of_factor.items()
    }
    # With He's weights a layer's factor has mean 1 and variance 5/n, which is 4/n times
    # the variance of the squared positive part of a normal number. The mean of its
    # logarithm is half of that below 0.
    typical = math.exp(-2.5 / settings["signal_width"])
    expected = {f: layers_in_range(f) for f in settings["factors"] if f != 1}
    out = {
        factor: of_factor[factor].iloc[0][["left_first", "left_last"]]
        for factor, layers in expected.items()
        if layers < settings["signal_depth"]
    }
    stays = of_factor[1]["forward"]

    def accuracy(depth: int, factor: float) -> pd.Series:
        return only(best, depth=depth, factor=factor)["test_accuracy"]

    def listed(depth: int) -> str:
        return ", ".join(
            f"{mean_and_spread(accuracy(depth, factor))} at {factor:g}"
            for factor in settings["trained_factors"]
        )

    shallow, deep = min(settings["depths"]), max(settings["depths"])
    ends = min(settings["trained_factors"]), max(settings["trained_factors"])
    inner = [f for f in settings["trained_factors"] if f not in (1, *ends)]
    return [
        judge(
            "If each layer multiplies the variance by a factor, L layers multiply it "
            "by the factor to the power of L.",
            "Measured factor of the mean square per layer, forward and backward: "
            + "; ".join(
                f"{there:.3g} and {back:.3g} for {factor:g}"
                for factor, (there, back) in slopes.items()
            )
            + ". In a single network of finite width n the typical factor is smaller "
            f"by exp(−5/(2n)) = {typical:.3f}.",
            *(
                all(abs(found / (factor * typical) - 1) < 0.05 for found in both)
                for factor, both in slopes.items()
            ),
        ),
        judge(
            "A factor other than 1 therefore leaves the range of the numbers at some "
            "depth.",
            "Activations leave float32 after "
            + "; ".join(
                f"{first:.0f} to {last:.0f} layers for {factor:g} (closed form "
                f"{expected[factor]:.0f})"
                for factor, (first, last) in out.items()
            )
            + f". With 1 they are still at 10^{stays.iloc[-1]:.1f} after "
            f"{settings['signal_depth']} layers.",
            *(
                abs(layer / expected[factor] - 1) < 0.1
                for factor in out
                for layer in out[factor]
            ),
            stays.notna().all(),
        ),
        judge(
            "Deep networks train only if the variance is about kept.",
            f"Test accuracy of {deep} layers: {listed(deep)}.",
            accuracy(deep, 1).mean() > 0.9,
            *(accuracy(deep, end).mean() < 0.5 for end in ends),
        ),
        judge(
            "The variance has to be kept exactly.",
            f"With {shallow} layers it does not have to be: {listed(shallow)}. With "
            f"{deep} layers a factor of {' or '.join(f'{f:g}' for f in inner)} reaches "
            + " and ".join(mean_and_spread(accuracy(deep, f)) for f in inner)
            + f"; {mean_and_spread(accuracy(deep, 1))} at 1.",
            *(
                accuracy(depth, f).mean() < accuracy(depth, 1).mean() - 0.1
                for depth in (shallow, deep)
                for f in inner
            ),
        ),
    ]


def _factor_of(rows: pd.DataFrame, name: str) -> float:
    """The factor per layer that a line through the logarithms has."""
    rows = rows[rows[name].notna()]
    return float(10 ** np.polyfit(rows["layer"], rows[name], 1)[0])


TITLE = "Why to keep the variance"
ABOUT = """Readers of the book ask why the variance should stay fixed. Here are the mean
squares of activations and gradients in a ReLU network of width 128, in float32, with
weights that multiply them by a factor per layer. Plain networks of width 64 without
biases are then trained from such starts with SGD with momentum on scikit-learn's
digits. All have the same learning rates, and the best one is chosen by validation data.
Three seeds."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
