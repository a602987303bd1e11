"""Gradients layer by layer: activations, initializations and depths of a network."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.shared import (
    ACTIVATIONS,
    columns_over_seeds,
    cross_entropy,
    deviation,
    draw_kernels,
    flattened,
    layer_shapes,
    line_of_columns,
)
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import CLOSED_FORM, legend_below, look, panels
from experiments.studies.tables import Cell, combinations, only, with_range

# The largest square of the derivative, or, for ReLU, its mean: half of the
# pre-activations are positive.
SQUARED_DERIVATIVES = {"sigmoid": 1 / 16, "tanh": 1.0, "ReLU": 1 / 2}


def cells(settings: Settings) -> list[Cell]:
    """Every activation, depth and initialization."""
    return combinations(
        activation=ACTIVATIONS,
        depth=settings["depths"],
        initialization=settings["initializations"],
    )


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """For each layer the norms of two gradients of the loss, over seeds.

    ``zero`` counts the seeds whose gradient of this layer's kernel is all zeros,
    ``not_finite`` those with a gradient of any layer that is not finite.
    """
    depth, rule = cell["depth"], cell["initialization"]
    data = load("digits")
    images, labels = flattened(data.train, settings["images"])
    shapes = layer_shapes(images.shape[1], settings["width"], depth, data.num_classes)
    kernels = [draw_kernels(rule, shapes, seed) for seed in range(settings["seeds"])]
    norms = [gradient_norms(k, images, labels, cell["activation"]) for k in kernels]
    signal, weight = np.moveaxis(np.array(norms), 1, 0)  # [seeds, layers] each
    # Back from the last hidden layer, the factor of the mean square in each layer.
    layers = np.arange(1, depth + 1)
    back = depth - 1 - layers[:-2]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = (signal[:, :-2] / signal[:, -2:-1]) ** (2 / back[None])
    factors = np.pad(factors, ((0, 0), (0, 2)), constant_values=np.nan)
    return pd.DataFrame(
        {
            "layer": layers,
            **columns_over_seeds("signal", signal),
            **columns_over_seeds("weight", weight),
            **columns_over_seeds("factor", factors),
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
    def loss_of(kernels: Any, offsets: Any) -> jax.Array:
        (first, hidden, last), (at_first, at_hidden, at_last) = kernels, offsets

        def layer(x: jax.Array, parts: Any) -> tuple[jax.Array, None]:
            kernel, offset = parts
            return ACTIVATIONS[activation](x @ kernel + offset), None

        x, _ = layer(images, (first, at_first))
        x, _ = jax.lax.scan(layer, x, (hidden, at_hidden))
        return cross_entropy(x @ last + at_last, labels)

    # Zeros added to the pre-activations have the gradient of these.
    offsets = jax.tree.map(
        lambda k: jnp.zeros((*k.shape[:-2], images.shape[0], k.shape[-1])), kernels
    )
    return jax.grad(loss_of, argnums=(0, 1))(kernels, offsets)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above the signals back through one network, below kernels by the depth."""
    depth = settings["shown_depth"]
    title = (
        "Norms of the gradients of the loss on the digits: median over seeds, band "
        "from lowest to highest"
    )
    figure, axes = panels(2, len(ACTIVATIONS), title, width=3.3)
    for (above, below), activation in zip(axes.T, ACTIVATIONS, strict=True):
        for number, rule in enumerate(settings["initializations"]):
            rows = only(table, activation=activation, initialization=rule)
            shown = only(rows, depth=depth).query("layer < @depth")
            first = only(rows, layer=1)
            for axes_and_rows in (
                (above, shown, "layer", "signal"),
                (below, first, "depth", "weight"),
            ):
                _line(*axes_and_rows, number, rule)
            factor = closed_form(activation, rule, settings["width"])
            back = depth - 1 - shown["layer"]
            expected = shown["signal"].iloc[-1] * factor ** (back / 2)
            above.plot(shown["layer"], expected, **CLOSED_FORM)
        above.set(title=activation, xlabel=f"layer, of {depth}", yscale="log")
        below.set(xlabel="depth of the network, in layers", yscale="log")
        above.set_ylim(1e-40, 1e40)
        below.set_ylim(1e-42, 1e42)
    above, below = axes[:, 0]
    above.set_ylabel("gradient norm, by pre-activations")
    below.set_ylabel("gradient norm, by the first kernel")
    above.plot([], [], label="closed form or bound", **CLOSED_FORM)
    above.plot([], [], "kv", markersize=6, ls="", label="all exactly 0")
    above.plot([], [], "kx", markersize=6, ls="", label="some not finite")
    legend_below(above, 7)
    return figure


def _line(
    axes: Any, rows: pd.DataFrame, x: str, name: str, number: int, label: str
) -> None:
    """A line with its band; at the edges, where all is 0 or not all is finite."""
    positive = rows.where((rows != 0) | ~rows.columns.str.startswith(name))
    line_of_columns(axes, positive, x, name, number, label)
    at_edge = {"transform": axes.get_xaxis_transform(), "color": look(number)["color"]}
    is_finite = rows["not_finite"] == 0
    for marker, height, reached in (
        ("v", 0.03, (rows[name] == 0) & is_finite),
        ("x", 0.94 - 0.04 * number, ~is_finite),
    ):
        places = rows[x][reached]
        axes.plot(places, 0 * places + height, ls="", marker=marker, ms=6, **at_edge)


def closed_form(activation: str, rule: str, width: int) -> float:
    """The factor of a square layer on the mean square of the gradient.

    Exact in the mean for ReLU, whose derivative is 1 for half of the pre-activations;
    a bound for the others, by their largest derivative.
    """
    return width * deviation(rule, width, width) ** 2 * SQUARED_DERIVATIVES[activation]


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which gradients vanish, which explode, and which keep their size."""
    width, depth, seeds = (settings[x] for x in ("width", "shown_depth", "seeds"))
    rules = settings["initializations"]
    deepest = max(settings["depths"])
    small, large = rules[0], rules[1]

    def row(activation: str, rule: str, layer: int, depth: int = depth) -> pd.Series:
        rows = only(table, activation=activation, depth=depth, layer=layer)
        return only(rows, initialization=rule).iloc[0]

    def loss_of_signal(activation: str, rule: str) -> float:
        last = row(activation, rule, depth - 1)["signal"]
        return row(activation, rule, 1)["signal"] / last

    def factor(activation: str, rule: str) -> str:
        first = row(activation, rule, 1)
        return with_range(*first[["factor", "factor_lowest", "factor_highest"]])

    def across_layers(activation: str, rule: str) -> float:
        rows = only(table, activation=activation, depth=depth, initialization=rule)
        hidden = rows[rows["layer"].between(2, depth - 1)]["weight"]
        return hidden.max() / hidden.min()

    def form(rule: str) -> str:
        return f"{closed_form('ReLU', rule, width):.3g}"

    sigmoid = {rule: loss_of_signal("sigmoid", rule) for rule in rules}
    vanished, exploded = (row("ReLU", rule, 1)["weight"] for rule in (small, large))
    zero, burst = (row("ReLU", rule, 1, deepest) for rule in (small, large))
    he = row("ReLU", "He", 1)
    kept = {name: loss_of_signal(name, "Xavier") for name in ACTIVATIONS}
    spread = {name: across_layers(name, "Xavier") for name in ("sigmoid", "ReLU")}
    return [
        judge(
            "Sigmoids make the gradient vanish in deep networks.",
            f"From layer {depth - 1} back to layer 1 of {depth} the gradient changes "
            "by a factor of "
            + ", ".join(f"{value:.2g} ({rule})" for rule, value in sigmoid.items())
            + ". With Xavier each layer multiplies the mean square by "
            f"{factor('sigmoid', 'Xavier')}; the derivative's maximum allows at most "
            f"{closed_form('sigmoid', 'Xavier', width):.4g}.",
            *(value < 1e-3 for value in sigmoid.values()),
        ),
        judge(
            "Weights that are too small make it vanish without any sigmoid.",
            f"ReLU with {small}: at {depth} layers the gradient of the first kernel is "
            f"{vanished:.2g}, at {deepest} layers exactly 0 in {zero['zero']:.0f} of "
            f"{seeds} seeds. Each layer multiplies the mean square by "
            f"{factor('ReLU', small)}; closed form {form(small)}.",
            vanished < 1e-20,
            zero["zero"] == seeds,
        ),
        judge(
            "Weights that are too large make it explode.",
            f"ReLU with {large}: at {depth} layers the gradient of the first kernel is "
            f"{exploded:.2g}. Each layer multiplies the mean square by "
            f"{factor('ReLU', large)}; closed form {form(large)}. At {deepest} layers "
            f"gradients are not finite in {burst['not_finite']:.0f} of {seeds} seeds, "
            f"and that of the first kernel is exactly 0 in {burst['zero']:.0f}: a "
            "pre-activation that is not a number is not positive, and ReLU passes "
            "nothing back.",
            exploded > 1e10,
            burst["not_finite"] == seeds,
        ),
        judge(
            "ReLU with He's initialization keeps the size of the gradient.",
            f"Factor of the mean square per layer {factor('ReLU', 'He')}; closed form "
            f"{form('He')}.",
            0.9 < he["factor_lowest"] < 1.1,
            0.9 < he["factor_highest"] < 1.1,
        ),
        judge(
            "Xavier's initialization works although nonlinearities violate its "
            "assumption.",
            "Each layer multiplies the mean square of the gradient by "
            f"{factor('tanh', 'Xavier')} with tanh, {factor('ReLU', 'Xavier')} with "
            f"ReLU (closed form {form('Xavier')}) and {factor('sigmoid', 'Xavier')} "
            f"with sigmoids. From layer {depth - 1} of {depth} back to the first, the "
            "gradient changes by a factor of "
            + ", ".join(f"{value:.2g} ({name})" for name, value in kept.items())
            + "; more than a tenth counts as working.",
            *(value > 0.1 for value in kept.values()),
        ),
        judge(
            "The layers nearest to the input get the smallest gradients.",
            f"With Xavier the largest of the gradients of the kernels of layers 2 to "
            f"{depth - 1} is {spread['sigmoid']:.2g} times the smallest with sigmoids, "
            f"and {spread['ReLU']:.3g} times with ReLU. A ReLU network without biases "
            "is homogeneous in each kernel, so that ⟨W, ∇W⟩ is the same in all "
            "layers. If the gradient vanishes with the depth, it vanishes in all "
            "layers alike.",
            *(value > 10 for value in spread.values()),
        ),
    ]


TITLE = "Gradients layer by layer"
ABOUT = """The book writes the gradient of a layer as a product of the Jacobians of all
layers after it, and says that it may vanish or explode. Here are the gradients of the
loss on 128 of scikit-learn's digits, in float32 at initialization, in plain networks of
width 128 and up to 50 layers without biases, for three activations and four
initializations (a small and a large standard deviation,
[Xavier](https://proceedings.mlr.press/v9/glorot10a.html) and
[He](https://arxiv.org/abs/1502.01852)), over five seeds."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
