"""Exercise 1: other symmetries than permutation, and which optimizers respect them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.shared import cross_entropy, descended, optimizer_of
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import COLORS, look, middle_and_errors, panels
from experiments.studies.tables import Cell, combinations, median_and_spread, only

Params = dict[str, Any]
Transform = Callable[[Params, np.random.Generator], Params]
DTYPES = ("float32", "float64")
UNITS, CHANNELS, HEADS, HEAD_SIZE = 32, 8, 4, 8


class Symmetry(NamedTuple):
    """A network, and another choice of its weights that should not change it."""

    apply: Callable[[Params, jax.Array], jax.Array]
    """From weights and images [B, 8, 8, 1] to logits [B, 10]."""
    shapes: Mapping[str, tuple[int, ...]]
    transform: Transform
    """From weights in float64 to others."""
    is_one: bool = True  # False for a control that does change the function


def mlp(activation: Callable) -> Callable[[Params, jax.Array], jax.Array]:
    """One hidden layer."""

    def apply(params: Params, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        return activation(x @ params["first"]) @ params["second"]

    return apply


def cnn(params: Params, images: jax.Array) -> jax.Array:
    """Two convolutions with ReLU, and a layer on the mean over pixels."""
    x = images
    for name in ("first", "second"):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # Nine products of matrices: XLA's convolutions in float64 are slow on a CPU.
        x = jax.nn.relu(
            sum(
                padded[:, i : i + 8, j : j + 8] @ params[name][i, j]
                for i in range(3)
                for j in range(3)
            )
        )
    return x.mean((1, 2)) @ params["output"]


def attention(params: Params, images: jax.Array) -> jax.Array:
    """Attention of several heads over the rows of an image, and a layer on the mean."""
    rows = images[..., 0] @ params["embed"]
    q, k, v = (jnp.einsum("btd,hde->bhte", rows, params[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bhte,bhse->bhts", q, k))
    mixed = jnp.einsum("bhts,bhse,hed->btd", weights, v, params["o"])
    return jax.nn.relu(mixed).mean(1) @ params["output"]


def permute_units(params: Params, random: np.random.Generator) -> Params:
    """Columns of the first matrix, and rows of the second likewise."""
    order = random.permutation(UNITS)
    return {"first": params["first"][:, order], "second": params["second"][order]}


def rescaled(factors: Callable[[np.random.Generator], Any]) -> Transform:
    """Incoming weights of units times factors, the outgoing ones divided by them."""

    def transform(params: Params, random: np.random.Generator) -> Params:
        c = np.broadcast_to(factors(random), UNITS)
        return {"first": params["first"] * c, "second": params["second"] / c[:, None]}

    return transform


rescale_layers = rescaled(lambda random: 2.0 ** random.choice([-3, -2, 2, 3]))
rescale_units = rescaled(lambda random: np.exp(random.uniform(-1, 1, UNITS)))
flip_signs = rescaled(lambda random: random.choice([-1.0, 1.0], UNITS))


def permute_channels(params: Params, random: np.random.Generator) -> Params:
    """Channels between two convolutions."""
    order = random.permutation(CHANNELS)
    first, second = params["first"][..., order], params["second"][:, :, order]
    return {**params, "first": first, "second": second}


def permute_heads(params: Params, random: np.random.Generator) -> Params:
    """The heads, which are summed up."""
    order = random.permutation(HEADS)
    return {**params, **{name: params[name][order] for name in "qkvo"}}


def rotate_keys(params: Params, random: np.random.Generator) -> Params:
    """Q and K of each head times one orthogonal matrix."""
    a = np.linalg.qr(random.standard_normal((HEADS, HEAD_SIZE, HEAD_SIZE)))[0]
    return {**params, "q": params["q"] @ a, "k": params["k"] @ a}


def map_keys(params: Params, random: np.random.Generator) -> Params:
    """Q of each head times an invertible matrix A, K times its inverse transposed."""
    u, v = np.linalg.qr(random.standard_normal((2, HEADS, HEAD_SIZE, HEAD_SIZE)))[0]
    a = (u * np.exp(random.uniform(-1, 1, (HEADS, 1, HEAD_SIZE)))) @ v
    inverse = np.linalg.inv(a).swapaxes(1, 2)
    return {**params, "q": params["q"] @ a, "k": params["k"] @ inverse}


_MLP = {"first": (64, UNITS), "second": (UNITS, 10)}
_CNN = {
    "first": (3, 3, 1, CHANNELS),
    "second": (3, 3, CHANNELS, CHANNELS),
    "output": (CHANNELS, 10),
}
_ATTENTION = {
    "embed": (8, UNITS),
    **dict.fromkeys("qkv", (HEADS, UNITS, HEAD_SIZE)),
    "o": (HEADS, HEAD_SIZE, UNITS),
    "output": (UNITS, 10),
}

SYMMETRIES: dict[str, Symmetry] = {
    "permuted units": Symmetry(mlp(jax.nn.relu), _MLP, permute_units),
    "permuted channels": Symmetry(cnn, _CNN, permute_channels),
    "permuted heads": Symmetry(attention, _ATTENTION, permute_heads),
    "tanh: signs": Symmetry(mlp(jnp.tanh), _MLP, flip_signs),
    "Q and K rotated": Symmetry(attention, _ATTENTION, rotate_keys),
    "ReLU: layers times c, 1/c": Symmetry(mlp(jax.nn.relu), _MLP, rescale_layers),
    "ReLU: units times c, 1/c": Symmetry(mlp(jax.nn.relu), _MLP, rescale_units),
    "Q A, K A⁻ᵀ": Symmetry(attention, _ATTENTION, map_keys),
    "tanh: layers times c, 1/c": Symmetry(mlp(jnp.tanh), _MLP, rescale_layers, False),
    "ReLU: signs": Symmetry(mlp(jax.nn.relu), _MLP, flip_signs, False),
}
OPTIMIZERS = ("SGD", "Adam", "LARS", "LARS, decay")


def trained_in(name: str) -> tuple[str, ...]:
    """The precisions in which a symmetry is trained.

    In float32 rounding differs where sums have another order, and training makes that
    grow. The one symmetry that rounds nothing is trained in float32 too.
    """
    symmetry = SYMMETRIES[name]
    if not symmetry.is_one:
        return ()
    return DTYPES[::-1] if symmetry.transform is rescale_layers else ("float64",)


def initial(symmetry: Symmetry, seed: int) -> tuple[Params, Params]:
    """The weights of a seed, and the others that should be the same function."""
    random = np.random.default_rng(seed)
    params = {
        name: random.standard_normal(shape) / np.sqrt(np.prod(shape[-4:-1]))
        for name, shape in symmetry.shapes.items()
    }
    for name in set("qkvo") & set(params):  # of shape [heads, fan in, fan out]
        params[name] *= np.sqrt(params[name].shape[0])
    return params, symmetry.transform(params, random)


def cells(settings: Settings) -> list[Cell]:
    """Every symmetry in both precisions."""
    return combinations(symmetry=SYMMETRIES, dtype=DTYPES)


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Relative differences of the logits of test images, before and in training."""
    with jax.enable_x64(cell["dtype"] == "float64"):
        return _differences(cell["symmetry"], cell["dtype"], settings)


def _differences(name: str, dtype: str, settings: Settings) -> pd.DataFrame:
    symmetry, data = SYMMETRIES[name], load("digits")
    count = settings["images"]
    images = jnp.asarray(data.train.images[:count], dtype)
    labels = data.train.labels[:count]
    shown = jnp.asarray(data.test.images, dtype)
    logits = jax.jit(symmetry.apply)

    @jax.grad
    def gradient(params: Params) -> jax.Array:
        return cross_entropy(symmetry.apply(params, images), labels)

    @functools.partial(jax.jit, static_argnums=0)
    def trained(name: str, params: Params) -> Params:
        momentum, decay = settings["momentum"], settings["weight_decay"]
        rate = settings["learning_rates"][name.split(",")[0]]
        optimizer = optimizer_of(name, rate, momentum, decay)
        return descended(gradient, params, optimizer, settings["num_steps"])[0]

    optimizers = OPTIMIZERS if dtype in trained_in(name) else ()
    rows = []
    for seed in range(settings["seeds"]):
        starts = jax.tree.map(lambda x: jnp.asarray(x, dtype), initial(symmetry, seed))
        for optimizer in ("none", *optimizers):
            ends = starts
            if optimizer != "none":
                ends = [trained(optimizer, params) for params in starts]
            plain, other = (np.asarray(logits(x, shown), np.float64) for x in ends)
            difference = np.linalg.norm(plain - other) / np.linalg.norm(plain)
            is_right = plain.argmax(1) == np.asarray(data.test.labels)
            rows.append((optimizer, seed, difference, is_right.mean()))
    columns = ["optimizer", "seed", "difference", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the functions before training; right after training, by optimizer."""
    title = (
        "Two choices of weights for one function, before and after "
        f"{settings['num_steps']} steps from each\n(relative difference of the logits; "
        f"median of {settings['seeds']} seeds, bars: lowest to highest)"
    )
    figure, axes = panels(1, 2, title, height=4.6, width=5.4)
    left, right = axes[0]
    names = list(SYMMETRIES)
    for number, dtype in enumerate(DTYPES):
        eps = np.finfo(dtype).eps
        left.axvline(eps, color=COLORS[number], linestyle=":", label=f"ε of {dtype}")
        rows = only(table, optimizer="none", dtype=dtype)
        # Zero, which a logarithm has no place for, is at the left edge.
        shown = rows["difference"].clip(lower=1e-18)
        middle, errors = middle_and_errors(shown.groupby(rows["symmetry"]), "median")
        positions = np.arange(len(names)) + 0.2 * number - 0.1
        bars = {"xerr": [error[names] for error in errors], "label": dtype}
        bars |= look(number) | {"linestyle": "none"}
        left.errorbar(middle[names], positions, **bars)
    left.set(xscale="log", xlim=(3e-19, 30), xlabel="difference before training")
    left.set_xticks(
        [1e-18, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1],
        ["0", *(f"$10^{{{k}}}$" for k in range(-15, 1, 3))],
    )
    left.minorticks_off()
    left.set_yticks(
        range(len(names)),
        [name if SYMMETRIES[name].is_one else f"{name} (control)" for name in names],
    )
    left.invert_yaxis()
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(0.97, 1))

    trained = [(name, dtype) for name in names for dtype in trained_in(name)]
    grid = table.groupby(["symmetry", "dtype", "optimizer"])["difference"].median()
    values = np.array([[grid[(*row, name)] for name in OPTIMIZERS] for row in trained])
    # Three colours: the same, in between, another function.
    kind = np.digitize(values, [settings["same"], settings["other"]])
    colours = ListedColormap(["#9ECAE1", "#F0F0F0", "#FDBE85"])
    right.imshow(kind, cmap=colours, vmin=0, vmax=2, aspect="auto")
    right.grid(False)
    for (i, j), value in np.ndenumerate(values):
        text = "exactly 0" if value == 0 else f"{value:.0e}"
        right.text(j, i, text, ha="center", va="center", fontsize=8.5)
    right.set_xticks(
        range(len(OPTIMIZERS)), [name.replace(" ", "\n") for name in OPTIMIZERS]
    )
    endings = {"float32": "\nin float32", "float64": ""}
    labels = [name + endings[dtype] for name, dtype in trained]
    right.set_yticks(range(len(trained)), labels, fontsize=9)
    right.set_xlabel(
        f"difference after {settings['num_steps']} steps\n"
        f"(blue: below {settings['same']:.0e}, orange: above {settings['other']:.0e})"
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which transformations keep the function, and which optimizers do not notice."""
    start = only(table, optimizer="none")
    is_one = start["symmetry"].map(lambda name: SYMMETRIES[name].is_one)
    controls, one = start[~is_one]["difference"], start[is_one]
    float32, float64 = (only(one, dtype=x)["difference"].max() for x in DTYPES)

    def after(names: list[str], *optimizers: str, dtype: str = "float64") -> pd.Series:
        is_in = table["symmetry"].isin(names) & table["optimizer"].isin(optimizers)
        return only(table[is_in], dtype=dtype)["difference"]

    def is_same(values: pd.Series) -> bool:
        return values.max() < settings["same"]

    def is_other(values: pd.Series) -> bool:
        return values.min() > settings["other"]

    names = list(SYMMETRIES)
    permuted, (signs, rotated, layers, units, mapped) = names[:3], names[3:8]
    everything = after(permuted, *OPTIMIZERS)
    flipped = after([signs], *OPTIMIZERS)
    turned = after([rotated], "SGD", "LARS", "LARS, decay")
    turned_adam = after([rotated], "Adam")
    exact32, exact64 = (after([layers], "LARS", dtype=dtype) for dtype in DTYPES)
    others = [after([layers], name) for name in ("SGD", "Adam", "LARS, decay")]
    sgd, adam, decayed = map(median_and_spread, others)
    finer = {name: after([units, mapped], name) for name in ("SGD", "Adam", "LARS")}
    learned = table[table["optimizer"] != "none"].groupby("optimizer")["test_accuracy"]
    return [
        judge(
            "There are other symmetries than permutation: a ReLU's scale, a tanh's "
            "sign, channels, heads, and any invertible matrix between Q and K.",
            f"Largest relative difference of the logits, of {len(one)} pairs: "
            f"{float64:.1g} in float64, {float32:.1g} in float32. Of the two that are "
            f"none (tanh scaled, ReLU's sign): {median_and_spread(controls)}.",
            float64 < 1e-12,
            float32 < 1e-4,
            controls.min() > 0.01,
        ),
        judge(
            "Every optimizer here respects permutations and signs: from both starts "
            "training gives one function.",
            f"After {settings['num_steps']} steps in float64 permuted networks differ "
            f"by at most {everything.max():.1g}, those with flipped signs by "
            f"{flipped.max():.1g}. (Median accuracies: "
            + ", ".join(f"{k} {v:.2f}" for k, v in learned.median().items())
            + ".)",
            is_same(everything),
            is_same(flipped),
        ),
        judge(
            "LARS without decay respects the scales of layers exactly (factors of "
            "product 1); SGD, Adam and LARS with decay do not.",
            f"Powers of two: LARS differs by at most {exact32.max():.1g} in float32 "
            f"and {exact64.max():.1g} in float64; SGD by {sgd}, Adam by {adam}, LARS "
            f"with a decay of {settings['weight_decay']:g} by {decayed}.",
            exact32.max() == 0,
            exact64.max() == 0,
            *map(is_other, others),
        ),
        judge(
            "SGD and LARS respect rotations. Adam works on single coordinates and does "
            "not.",
            f"Q and K rotated: SGD and LARS, with decay or not, at most "
            f"{turned.max():.1g}; Adam {median_and_spread(turned_adam)}.",
            is_same(turned),
            is_other(turned_adam),
        ),
        judge(
            "No optimizer, LARS included, respects factors that differ within one "
            "array (for single units, or a general matrix between Q and K).",
            "; ".join(f"{k}: {median_and_spread(v)}" for k, v in finer.items()) + ".",
            *map(is_other, finer.values()),
        ),
    ]


TITLE = "Exercise 1: symmetries of networks"
ABOUT = """The exercise asks for other symmetries of networks than the permutation of
hidden units. Here ten transformations of the weights are applied to small networks on
scikit-learn's digits, and the logits are compared in float32 and float64. Two of them
are controls that change the function. Then both weights are trained on the same images
with SGD, Adam and LARS, with three seeds, to see which optimizers still give one
function."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
