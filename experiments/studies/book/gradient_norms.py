"""Gradients layer by layer: activations, initializations and depths of a network."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.initialization import (
    ACTIVATIONS,
    deviation,
    draw_kernels,
    layer_shapes,
    rounded,
)
from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.style import line_with_band, look, panels

# The largest square of the derivative, or, for ReLU, its mean: of what sign a
# pre-activation has, half are positive.
SQUARED_DERIVATIVES = {"sigmoid": 1 / 16, "tanh": 1.0, "ReLU": 1 / 2}


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every activation, depth and initialization."""
    return [
        {"activation": activation, "depth": depth, "initialization": rule}
        for activation in ACTIVATIONS
        for depth in settings["depths"]
        for rule in settings["initializations"]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """For each layer the norms of two gradients of the loss, over seeds.

    ``zero`` counts the seeds whose gradient of this layer's kernel is all zeros,
    ``not_finite`` those with a gradient of any layer that is not finite.
    """
    depth, count = cell["depth"], settings["images"]
    data = load("digits")
    images = data.train.images[:count].reshape(count, -1)
    labels = data.train.labels[:count]
    shapes = layer_shapes(images.shape[1], settings["width"], depth, data.num_classes)
    norms = [
        gradient_norms(
            draw_kernels(cell["initialization"], shapes, seed),
            images,
            labels,
            cell["activation"],
        )
        for seed in range(settings["seeds"])
    ]
    signal, weight = np.moveaxis(np.array(norms), 1, 0)  # [seeds, layers] each
    # Back from the last hidden layer, by what the mean square changes in each layer.
    layers = np.arange(1, depth + 1)
    back = depth - 1 - layers[:-2]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = (signal[:, :-2] / signal[:, -2:-1]) ** (2 / back[None])
    factors = np.pad(factors, ((0, 0), (0, 2)), constant_values=np.nan)
    return pd.DataFrame(
        {
            "layer": layers,
            **_over_seeds("signal", signal),
            **_over_seeds("weight", weight),
            **_over_seeds("factor", factors),
            "zero": (weight == 0).sum(axis=0),
            "not_finite": int((~np.isfinite(weight)).any(axis=1).sum()),
        }
    )


def gradient_norms(
    kernels: Sequence[np.ndarray], images: jax.Array, labels: jax.Array, activation: str
) -> np.ndarray:
    """Norms of the gradients of the mean cross-entropy, computed in float32.

    Returns:
        float64 array of shape [2, layers]: the gradient by the layer's pre-activations,
        and that by its kernel. The norms themselves neither overflow nor underflow.
    """
    first, *hidden, last = kernels
    width = first.shape[1]
    stacked = np.array(hidden, np.float32).reshape(-1, width, width)
    by_kernel, by_signal = _gradients(
        (first, stacked, last), images, labels, activation
    )
    return np.array([_norms(by_signal), _norms(by_kernel)])


def _norms(parts: Any) -> np.ndarray:
    """The norms of the first layer, of the stacked hidden ones, and of the last."""
    first, hidden, last = (np.asarray(part, np.float64) for part in parts)
    stacks = (first[None], hidden, last[None])
    return np.concatenate([np.sqrt(np.square(x).sum(axis=(1, 2))) for x in stacks])


@partial(jax.jit, static_argnames="activation")
def _gradients(
    kernels: Any, images: jax.Array, labels: jax.Array, activation: str
) -> tuple[Any, Any]:
    activate = ACTIVATIONS[activation]

    def loss_of(kernels: Any, offsets: Any) -> jax.Array:
        (first, hidden, last), (at_first, at_hidden, at_last) = kernels, offsets

        def layer(x: jax.Array, parts: Any) -> tuple[jax.Array, None]:
            kernel, offset = parts
            return activate(x @ kernel + offset), None

        x, _ = layer(images, (first, at_first))
        x, _ = jax.lax.scan(layer, x, (hidden, at_hidden))
        logits = x @ last + at_last
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # Zeros added to the pre-activations have the gradient of these.
    offsets = jax.tree.map(
        lambda k: jnp.zeros((*k.shape[:-2], images.shape[0], k.shape[-1])), kernels
    )
    return jax.grad(loss_of, argnums=(0, 1))(kernels, offsets)


def _over_seeds(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The median, lowest and highest; not a number where a seed's is not finite."""
    values = np.where(np.isfinite(values), values, np.nan)
    return {
        name: rounded(np.median(values, axis=0)),
        f"{name}_lowest": rounded(np.min(values, axis=0)),
        f"{name}_highest": rounded(np.max(values, axis=0)),
    }


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above the signals back through one network, below kernels by the depth."""
    depth = settings["shown_depth"]
    figure, axes = panels(
        2,
        len(ACTIVATIONS),
        "Norms of the gradients of the loss on the digits: median over seeds, band "
        "from lowest to highest",
        width=3.3,
    )
    for column, activation in enumerate(ACTIVATIONS):
        above, below = axes[:, column]
        of_activation = table[table["activation"] == activation]
        for number, rule in enumerate(settings["initializations"]):
            rows = of_activation[of_activation["initialization"] == rule]
            shown = rows[(rows["depth"] == depth) & (rows["layer"] < depth)]
            _line(above, shown["layer"], shown, "signal", number, rule)
            factor = closed_form(activation, rule, settings["width"])
            back = depth - 1 - shown["layer"]
            above.plot(
                shown["layer"],
                shown["signal"].iloc[-1] * factor ** (back / 2),
                color="black",
                lw=0.9,
                ls=":",
            )
            first = rows[rows["layer"] == 1]
            _line(below, first["depth"], first, "weight", number, rule)
        above.set(title=activation, xlabel=f"layer, of {depth}", yscale="log")
        below.set(xlabel="depth of the network, in layers", yscale="log")
        above.set_ylim(1e-40, 1e40)
        below.set_ylim(1e-42, 1e42)
    axes[0, 0].set_ylabel("gradient norm, by pre-activations")
    axes[1, 0].set_ylabel("gradient norm, by the first kernel")
    axes[0, 0].plot([], [], color="black", lw=0.9, ls=":", label="closed form or bound")
    axes[1, 0].plot([], [], "kv", markersize=6, ls="", label="all exactly 0")
    axes[1, 0].plot([], [], "kx", markersize=6, ls="", label="some not finite")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    more, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(
        [*handles, *more[-2:]],
        [*labels, *names[-2:]],
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize=9,
    )
    return figure


def _line(
    axes: Axes, x: pd.Series, rows: pd.DataFrame, name: str, number: int, label: str
) -> None:
    """A line with its band; at the edges, where all is 0 or not all is finite."""
    positive = rows[[name, f"{name}_lowest", f"{name}_highest"]]
    positive = positive.where(positive > 0)
    line_with_band(
        axes,
        x,
        positive[name],
        positive[f"{name}_lowest"],
        positive[f"{name}_highest"],
        number,
        label,
        markersize=3,
    )
    at_edge = {"transform": axes.get_xaxis_transform(), "color": look(number)["color"]}
    for marker, height, reached in (
        ("v", 0.03, (rows[name] == 0) & (rows["not_finite"] == 0)),
        ("x", 0.94 - 0.04 * number, rows["not_finite"] > 0),
    ):
        axes.plot(
            x[reached], 0 * x[reached] + height, ls="", marker=marker, ms=6, **at_edge
        )


def closed_form(activation: str, rule: str, width: int) -> float:
    """What a square layer multiplies the mean square of the gradient by.

    Exact in the mean for ReLU, whose derivative is 1 for half of the pre-activations;
    a bound for the others, by their largest derivative.
    """
    return width * deviation(rule, width, width) ** 2 * SQUARED_DERIVATIVES[activation]


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What vanishes, what explodes, and what stays."""
    width, depth = settings["width"], settings["shown_depth"]
    rules = settings["initializations"]
    deepest = max(settings["depths"])
    small, large = rules[0], rules[1]

    def row(activation: str, rule: str, layer: int, depth: int = depth) -> pd.Series:
        is_it = (table["activation"] == activation) & (table["depth"] == depth)
        is_it &= (table["initialization"] == rule) & (table["layer"] == layer)
        return table[is_it].iloc[0]

    def loss_of_signal(activation: str, rule: str) -> float:
        last = row(activation, rule, depth - 1)["signal"]
        return row(activation, rule, 1)["signal"] / last

    def factor(activation: str, rule: str) -> str:
        first = row(activation, rule, 1)
        return (
            f"{first['factor']:.3g} ({first['factor_lowest']:.3g} to "
            f"{first['factor_highest']:.3g})"
        )

    def across_layers(activation: str, rule: str) -> float:
        hidden = table[
            (table["activation"] == activation)
            & (table["depth"] == depth)
            & (table["initialization"] == rule)
            & table["layer"].between(2, depth - 1)
        ]
        return hidden["weight"].max() / hidden["weight"].min()

    sigmoid = {rule: loss_of_signal("sigmoid", rule) for rule in rules}
    zero = row("ReLU", small, 1, deepest)
    burst = row("ReLU", large, 1, deepest)
    exploded = row("ReLU", large, 1)["weight"]
    he = row("ReLU", "He", 1)
    kept = {name: loss_of_signal(name, "Xavier") for name in ACTIVATIONS}
    spread = {name: across_layers(name, "Xavier") for name in ("sigmoid", "ReLU")}
    return [
        Claim(
            "Sigmoids make the gradient vanish in deep networks.",
            f"From layer {depth - 1} back to layer 1 of {depth} the gradient changes "
            "by a factor of "
            + ", ".join(f"{value:.2g} ({rule})" for rule, value in sigmoid.items())
            + f". With Xavier each layer leaves {factor('sigmoid', 'Xavier')} of the "
            "mean square; the derivative's maximum allows at most "
            f"{closed_form('sigmoid', 'Xavier', width):.4g}.",
            judged([value < 1e-3 for value in sigmoid.values()]),
        ),
        Claim(
            "Weights that are too small make it vanish without any sigmoid.",
            f"ReLU with {small}: at {depth} layers the gradient of the first kernel is "
            f"{row('ReLU', small, 1)['weight']:.2g}, at {deepest} layers exactly 0 in "
            f"{zero['zero']:.0f} of {settings['seeds']} seeds. Each layer leaves "
            f"{factor('ReLU', small)} of the mean square; closed form "
            f"{closed_form('ReLU', small, width):.3g}.",
            judged(
                [
                    row("ReLU", small, 1)["weight"] < 1e-20,
                    zero["zero"] == settings["seeds"],
                ]
            ),
        ),
        Claim(
            "Weights that are too large make it explode.",
            f"ReLU with {large}: at {depth} layers the gradient of the first kernel is "
            f"{exploded:.2g}. Each layer multiplies the mean square by "
            f"{factor('ReLU', large)}; closed form "
            f"{closed_form('ReLU', large, width):.3g}. At {deepest} layers gradients "
            f"are not finite in {burst['not_finite']:.0f} of {settings['seeds']} "
            f"seeds, and that of the first kernel is exactly 0 in {burst['zero']:.0f}: "
            "a pre-activation that is not a number is not positive, and ReLU passes "
            "nothing back.",
            judged([exploded > 1e10, burst["not_finite"] == settings["seeds"]]),
        ),
        Claim(
            "ReLU with He's initialization keeps the size of the gradient.",
            f"Factor of the mean square per layer {factor('ReLU', 'He')}; closed form "
            f"{closed_form('ReLU', 'He', width):.3g}.",
            judged(
                [
                    0.9 < he["factor_lowest"] < 1.1,
                    0.9 < he["factor_highest"] < 1.1,
                ]
            ),
        ),
        Claim(
            "Xavier's initialization works although nonlinearities violate its "
            "assumption.",
            f"Per layer of the mean square of the gradient it leaves "
            f"{factor('tanh', 'Xavier')} with tanh, {factor('ReLU', 'Xavier')} with "
            f"ReLU (closed form {closed_form('ReLU', 'Xavier', width):.3g}) and "
            f"{factor('sigmoid', 'Xavier')} with sigmoids. From layer {depth - 1} of "
            f"{depth} back to the first, what is left of the gradient is "
            + ", ".join(f"{value:.2g} ({name})" for name, value in kept.items())
            + "; more than a tenth counts as working.",
            judged([value > 0.1 for value in kept.values()]),
        ),
        Claim(
            "The layers nearest to the input get the smallest gradients.",
            f"With Xavier the largest of the gradients of the kernels of layers 2 to "
            f"{depth - 1} is {spread['sigmoid']:.2g} times the smallest with sigmoids, "
            f"and {spread['ReLU']:.3g} times with ReLU: without biases a ReLU network "
            "is homogeneous in each kernel, so that ⟨W, ∇W⟩ is the same in all layers, "
            "and what vanishes with the depth vanishes in all of them alike.",
            judged([value > 10 for value in spread.values()]),
        ),
    ]


ITEM = Item(
    title="Gradients layer by layer",
    about=(
        "The book writes the gradient of a layer as a product of the Jacobians of all "
        "layers after it, and says that it may vanish or explode. Here the gradients "
        "of the loss on 128 of scikit-learn's digits, in float32 at initialization, in "
        "plain networks of width 128 and up to 50 layers without biases, for three "
        "activations and four initializations (a small and a large standard deviation, "
        "[Xavier](https://proceedings.mlr.press/v9/glorot10a.html) and "
        "[He](https://arxiv.org/abs/1502.01852)), over five seeds."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
