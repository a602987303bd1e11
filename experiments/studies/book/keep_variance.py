"""Why to keep the variance: what a factor per layer does to signals and to training."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.initialization import plain_training, rounded, train_all
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.runs import at_best_rate
from experiments.studies.style import line_over_seeds, line_with_band, panels

# Of normal numbers; what is smaller is lost early or late, by the device.
SMALLEST, LARGEST = (float(getattr(np.finfo(np.float32), x)) for x in ("tiny", "max"))


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The signals, and the training at each depth."""
    return [
        {"part": "signal", "depth": settings["signal_depth"]},
        *({"part": "training", "depth": depth} for depth in settings["depths"]),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Mean squares layer by layer for each factor, or runs for each factor."""
    if cell["part"] == "training":
        return _training(cell["depth"], settings)
    return _signals(cell["depth"], settings)


def _signals(depth: int, settings: Settings) -> pd.DataFrame:
    factors = jnp.asarray(settings["factors"], jnp.float32)
    both = np.array(
        [
            log_mean_squares(
                jax.random.key(seed),
                factors,
                depth=depth,
                width=settings["signal_width"],
                count=settings["signal_inputs"],
            )
            for seed in range(settings["seeds"])
        ],
        float,
    )  # [seeds, 2, layers, factors]
    layers = np.arange(1, depth + 1)
    is_shown = layers % settings["every"] == 0
    tables = []
    for i, factor in enumerate(settings["factors"]):
        is_in = np.isfinite(both[:, 0, :, i])
        left = np.where(is_in.all(axis=1), np.nan, is_in.argmin(axis=1) + 1)
        columns: dict[str, Any] = {"layer": layers[is_shown]}
        for number, name in enumerate(("forward", "backward")):
            values = both[:, number, is_shown, i]
            values = np.where(np.isfinite(values), values, np.nan)
            columns[name] = rounded(np.median(values, axis=0))
            columns[f"{name}_lowest"] = rounded(values.min(axis=0))
            columns[f"{name}_highest"] = rounded(values.max(axis=0))
        tables.append(
            pd.DataFrame(columns).assign(
                factor=factor, left_first=left.min(), left_last=left.max()
            )
        )
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

    Args:
        key: PRNG key.
        factors: of the mean square per layer, one for each network.
        depth: layers.
        width: units of each, also of the inputs.
        count: random inputs.

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


def _training(depth: int, settings: Settings) -> pd.DataFrame:
    data = load("digits")
    runs = pd.DataFrame(
        itertools.product(
            settings["trained_factors"],
            settings["learning_rates"],
            range(settings["seeds"]),
        ),
        columns=["factor", "learning_rate", "seed"],
    )
    scales = np.sqrt(runs["factor"].to_numpy())[:, None].repeat(depth, axis=1)
    training = plain_training(depth, "relu", settings)
    return train_all(training, runs, scales, data)


def layers_in_range(factor: float) -> float:
    """After how many layers factor^(layers / 2), a typical number, leaves float32."""
    limit = SMALLEST if factor < 1 else LARGEST
    return 2 * math.log(limit) / math.log(factor)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Signals and gradients layer by layer, and what training makes of the factors."""
    figure, axes = panels(
        1,
        3,
        "A factor per layer, to the power of the depth; bands from lowest to highest "
        f"of {settings['seeds']} seeds",
        width=3.5,
    )
    signals = table[table["part"] == "signal"]
    for panel, name, title in zip(
        axes[0], ("forward", "backward"), ("Activations", "Gradients"), strict=False
    ):
        for number, factor in enumerate(settings["factors"]):
            rows = signals[signals["factor"] == factor]
            panel.plot(
                rows["layer"],
                rows["layer"] * math.log10(factor),
                color="black",
                lw=0.8,
                ls=":",
                label=None if number else "closed form",
            )
            line_with_band(
                panel,
                rows["layer"],
                rows[name],
                rows[f"{name}_lowest"],
                rows[f"{name}_highest"],
                number,
                f"{factor:g}",
                markersize=3,
            )
        for limit in (SMALLEST, LARGEST):
            panel.axhline(2 * math.log10(limit), color="gray", lw=1)
        panel.set(xlabel="layers passed", title=title)
        panel.set_ylim(-95, 95)
        panel.text(3, 79, "float32 overflows", fontsize=8, color="gray")
        panel.text(3, -85, "float32 underflows", fontsize=8, color="gray")
    axes[0, 0].set_ylabel("log₁₀ mean square")
    best = _best(table)
    for number, depth in enumerate(settings["depths"]):
        line_over_seeds(
            axes[0, 2],
            best[best["depth"] == depth],
            "factor",
            "test_accuracy",
            number,
            f"{depth} layers",
        )
    axes[0, 2].set(
        xscale="log",
        xlabel="factor of the mean square per layer",
        ylabel="mean test accuracy, best rate",
        title="Training with SGD",
        xticks=settings["trained_factors"],
        xticklabels=[f"{factor:g}" for factor in settings["trained_factors"]],
    )
    axes[0, 2].minorticks_off()
    axes[0, 2].axvline(1, color="black", lw=0.8, ls=":")
    axes[0, 2].set_ylim(0, 1.02)
    axes[0, 2].legend(frameon=False, loc=(0.02, 0.52), fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=len(labels),
        frameon=False,
        fontsize=9,
        title="factor of the mean square per layer",
        title_fontsize=9,
    )
    return figure


def _best(table: pd.DataFrame) -> pd.DataFrame:
    return at_best_rate(table[table["part"] == "training"], ["depth", "factor"])


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Signals grow or shrink exponentially, leave float32, and stop the training."""
    signals = table[table["part"] == "signal"]
    slopes = {
        factor: [_factor_of(signals[signals["factor"] == factor], name) for name in way]
        for factor in settings["factors"]
        for way in [("forward", "backward")]
    }
    # With He's weights a layer's factor has mean 1 and variance 5/n, which is 4/n times
    # the variance of the squared positive part of a normal number. The mean of its
    # logarithm is half of that below 0.
    typical = math.exp(-2.5 / settings["signal_width"])
    out, expected = {}, {}
    for factor in settings["factors"]:
        layers = layers_in_range(factor) if factor != 1 else math.inf
        rows = signals[signals["factor"] == factor]
        if layers < settings["signal_depth"]:
            expected[factor] = layers
            out[factor] = rows["left_first"].iloc[0], rows["left_last"].iloc[0]
    stays = signals[signals["factor"] == 1]
    best = _best(table)

    def accuracy(depth: int, factor: float) -> pd.Series:
        is_it = (best["depth"] == depth) & (best["factor"] == factor)
        return best[is_it]["test_accuracy"]

    def listed(depth: int) -> str:
        return ", ".join(
            f"{mean_and_spread(accuracy(depth, factor))} at {factor:g}"
            for factor in settings["trained_factors"]
        )

    shallow, deep = min(settings["depths"]), max(settings["depths"])
    ends = min(settings["trained_factors"]), max(settings["trained_factors"])
    inner = [f for f in settings["trained_factors"] if f not in (1, *ends)]
    return [
        Claim(
            "What a layer does to the variance, L layers do to the power of L.",
            "Measured factor of the mean square per layer, forward and backward: "
            + "; ".join(
                f"{there:.3g} and {back:.3g} for {factor:g}"
                for factor, (there, back) in slopes.items()
            )
            + ". In a single network of finite width n the typical factor is smaller "
            f"by exp(−5/(2n)) = {typical:.3f}.",
            judged(
                [
                    all(abs(found / (factor * typical) - 1) < 0.05 for found in both)
                    for factor, both in slopes.items()
                ]
            ),
        ),
        Claim(
            "A factor other than 1 therefore leaves the range of the numbers at some "
            "depth.",
            "Activations leave float32 after "
            + "; ".join(
                f"{out[factor][0]:.0f} to {out[factor][1]:.0f} layers for {factor:g} "
                f"(closed form {expected[factor]:.0f})"
                for factor in out
            )
            + f". With 1 they are still at 10^{stays['forward'].iloc[-1]:.1f} after "
            f"{settings['signal_depth']} layers.",
            judged(
                [
                    *(
                        abs(layer / expected[factor] - 1) < 0.1
                        for factor in out
                        for layer in out[factor]
                    ),
                    bool(stays["forward"].notna().all()),
                ]
            ),
        ),
        Claim(
            "Deep networks train only if the variance is about kept.",
            f"Test accuracy of {deep} layers: {listed(deep)}.",
            judged(
                [
                    accuracy(deep, 1).mean() > 0.9,
                    *(accuracy(deep, end).mean() < 0.5 for end in ends),
                ]
            ),
        ),
        Claim(
            "It has to be kept exactly.",
            f"With {shallow} layers it has not: {listed(shallow)}. With {deep} "
            f"layers a factor of {' or '.join(f'{f:g}' for f in inner)} reaches "
            + " and ".join(mean_and_spread(accuracy(deep, f)) for f in inner)
            + f"; {mean_and_spread(accuracy(deep, 1))} at 1.",
            judged(
                [
                    accuracy(depth, f).mean() < accuracy(depth, 1).mean() - 0.1
                    for depth in (shallow, deep)
                    for f in inner
                ]
            ),
        ),
    ]


def _factor_of(rows: pd.DataFrame, name: str) -> float:
    """The factor per layer that a line through the logarithms has."""
    rows = rows[rows[name].notna()]
    return float(10 ** np.polyfit(rows["layer"], rows[name], 1)[0])


ITEM = Item(
    title="Why to keep the variance",
    about=(
        "Readers of the book ask why the variance should stay fixed. Here the mean "
        "squares of activations and gradients in a ReLU network of width 128, in "
        "float32, with weights that multiply them by a factor per layer; and what SGD "
        "with momentum makes of such starts on scikit-learn's digits, in plain "
        "networks of width 64 without biases: the same learning rates for all, the "
        "best by validation data. Three seeds."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
