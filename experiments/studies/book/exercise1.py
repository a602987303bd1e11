"""Exercise 1: other symmetries than permutation, and which optimizers respect them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.item import Claim, Item, Settings, judged, median_and_spread
from experiments.studies.style import COLORS, look, panels
from experiments.training.optimizers import WHOLE
from lars.optimizer import lars

Params = dict[str, Any]
DTYPES = ("float32", "float64")


class Symmetry(NamedTuple):
    """A network, and another choice of its weights that should not change it."""

    apply: Callable[[Params, jax.Array], jax.Array]
    """From weights and images [B, 8, 8, 1] to logits [B, 10]."""
    shapes: Mapping[str, tuple[int, ...]]
    transform: Callable[[Params, np.random.Generator], Params]
    """From weights in float64 to others."""
    is_one: bool = True  # False for a control that does change the function


UNITS, CHANNELS, HEADS, HEAD_SIZE = 32, 8, 4, 8


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
    order = random.permutation(params["second"].shape[0])
    return {"first": params["first"][:, order], "second": params["second"][order]}


def rescale_layers(params: Params, random: np.random.Generator) -> Params:
    """The first matrix times a power of two, the second times its inverse."""
    c = 2.0 ** random.choice([-3, -2, 2, 3])
    return {"first": params["first"] * c, "second": params["second"] / c}


def rescale_units(params: Params, random: np.random.Generator) -> Params:
    """Each unit's incoming weights times its own factor, the outgoing times 1/c."""
    c = np.exp(random.uniform(-1, 1, params["second"].shape[0]))
    return {"first": params["first"] * c, "second": params["second"] / c[:, None]}


def flip_signs(params: Params, random: np.random.Generator) -> Params:
    """The signs of both sides of some units."""
    c = random.choice([-1.0, 1.0], params["second"].shape[0])
    return {"first": params["first"] * c, "second": params["second"] * c[:, None]}


def permute_channels(params: Params, random: np.random.Generator) -> Params:
    """What a convolution gives, and what the next one takes."""
    order = random.permutation(params["first"].shape[-1])
    return {
        **params,
        "first": params["first"][..., order],
        "second": params["second"][:, :, order],
    }


def permute_heads(params: Params, random: np.random.Generator) -> Params:
    """The heads, which are summed up."""
    order = random.permutation(params["q"].shape[0])
    return {**params, **{name: params[name][order] for name in "qkvo"}}


def rotate_keys(params: Params, random: np.random.Generator) -> Params:
    """Q and K of each head times one orthogonal matrix."""
    size = params["q"].shape[-1]
    a = np.linalg.qr(random.standard_normal((params["q"].shape[0], size, size)))[0]
    return {**params, "q": params["q"] @ a, "k": params["k"] @ a}


def map_keys(params: Params, random: np.random.Generator) -> Params:
    """Q of each head times an invertible matrix A, K times its inverse transposed."""
    heads, _, size = params["q"].shape
    u, v = np.linalg.qr(random.standard_normal((2, heads, size, size)))[0]
    a = (u * np.exp(random.uniform(-1, 1, (heads, 1, size)))) @ v
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


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every symmetry in both precisions."""
    del settings
    return [
        {"symmetry": name, "dtype": dtype} for name in SYMMETRIES for dtype in DTYPES
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Relative differences of the logits of test images, before and in training."""
    # Optax' Adam mixes floats and integers, which strict promotion refuses.
    with (
        jax.enable_x64(cell["dtype"] == "float64"),
        jax.numpy_dtype_promotion("standard"),
    ):
        return pd.DataFrame(_rows(SYMMETRIES[cell["symmetry"]], cell, settings))


def _rows(
    symmetry: Symmetry, cell: Mapping[str, Any], settings: Settings
) -> list[dict[str, Any]]:
    data, dtype = load("digits"), jnp.dtype(cell["dtype"])
    count = settings["images"]
    images = jnp.asarray(data.train.images[:count], dtype)
    labels = data.train.labels[:count]
    shown = jnp.asarray(data.test.images, dtype)
    logits = jax.jit(symmetry.apply)

    def loss(params: Params) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            symmetry.apply(params, images), labels
        ).mean()

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def trained(name: str, params: Params, steps: int) -> Params:
        optimizer = _optimizer(name, settings)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, length=steps)[0][0]

    # In float32 rounding differs where sums have another order, and training makes
    # that grow. The one symmetry that rounds nothing is trained in float32 too.
    names = [name for name in OPTIMIZERS if symmetry.is_one]
    if cell["dtype"] == "float32" and symmetry.transform is not rescale_layers:
        names = []
    rows = []
    for seed in range(settings["seeds"]):
        starts = [
            jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
            for params in initial(symmetry, seed)
        ]
        for name in ["none", *names]:
            ends = (
                starts
                if name == "none"
                else [trained(name, params, settings["num_steps"]) for params in starts]
            )
            plain, other = (np.asarray(logits(x, shown), np.float64) for x in ends)
            rows.append(
                {
                    "optimizer": name,
                    "seed": seed,
                    "difference": float(
                        np.linalg.norm(plain - other) / np.linalg.norm(plain)
                    ),
                    "test_accuracy": float(
                        (plain.argmax(1) == np.asarray(data.test.labels)).mean()
                    ),
                }
            )
    return rows


def _optimizer(name: str, settings: Settings) -> optax.GradientTransformation:
    rate = settings["learning_rates"][name.split(",")[0]]
    momentum = settings["momentum"]
    if name == "SGD":
        return optax.sgd(rate, momentum)
    if name == "Adam":
        return optax.adam(rate, momentum)
    decay = settings["weight_decay"] if "decay" in name else 0.0
    return lars(rate, decay, momentum=momentum, partition_specs=WHOLE)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the functions before training; right after training, by optimizer."""
    figure, axes = panels(
        1,
        2,
        "Two choices of weights for one function, before and after "
        f"{settings['num_steps']} steps from each\n(relative difference of the logits; "
        f"median of {settings['seeds']} seeds, bars: lowest to highest)",
        height=4.6,
        width=5.4,
    )
    left, right = axes[0]
    names = list(SYMMETRIES)
    for number, dtype in enumerate(DTYPES):
        eps = np.finfo(dtype).eps
        left.axvline(eps, color=COLORS[number], linestyle=":", label=f"ε of {dtype}")
        rows = table[(table["optimizer"] == "none") & (table["dtype"] == dtype)]
        # Zero, which a logarithm has no place for, is at the left edge.
        by_name = rows.groupby("symmetry")["difference"]
        middle = by_name.median()[names].clip(lower=1e-18)
        spread = [
            np.abs(middle - by_name.agg(side)[names].clip(lower=1e-18))
            for side in ("min", "max")
        ]
        left.errorbar(
            middle,
            np.arange(len(names)) + 0.2 * number - 0.1,
            xerr=spread,
            label=dtype,
            **{**look(number), "linestyle": "none"},
        )
    left.set(xscale="log", xlim=(3e-19, 30), xlabel="difference before training")
    left.set_xticks([1e-18, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1])
    left.set_xticklabels(["0", *(f"$10^{{{k}}}$" for k in range(-15, 1, 3))])
    left.minorticks_off()
    left.set_yticks(
        range(len(names)),
        [name if SYMMETRIES[name].is_one else f"{name} (control)" for name in names],
    )
    left.invert_yaxis()
    left.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(0.97, 1))

    trained = [
        (name, dtype)
        for name in names
        for dtype in ("float64", "float32")
        if SYMMETRIES[name].is_one
        and (dtype == "float64" or SYMMETRIES[name].transform is rescale_layers)
    ]
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
    right.set_yticks(
        range(len(trained)),
        [
            name + ("\nin float32" if dtype == "float32" else "")
            for name, dtype in trained
        ],
        fontsize=9,
    )
    right.set_xlabel(
        f"difference after {settings['num_steps']} steps\n"
        f"(blue: below {settings['same']:.0e}, orange: above {settings['other']:.0e})"
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which transformations keep the function, and which optimizers do not notice."""
    start = table[table["optimizer"] == "none"]
    is_one = start["symmetry"].map(lambda name: SYMMETRIES[name].is_one)
    by_dtype = {
        dtype: start[is_one & (start["dtype"] == dtype)]["difference"]
        for dtype in DTYPES
    }
    controls = start[~is_one]["difference"]

    def after(names: Sequence[str], optimizers: Sequence[str], dtype: str) -> pd.Series:
        return table[
            table["symmetry"].isin(names)
            & table["optimizer"].isin(optimizers)
            & (table["dtype"] == dtype)
        ]["difference"]

    def same(values: pd.Series) -> bool:
        return bool(values.max() < settings["same"])

    def other(values: pd.Series) -> bool:
        return bool(values.min() > settings["other"])

    permuted, names = list(SYMMETRIES)[:3], list(SYMMETRIES)
    signs, rotated, layers, units, mapped = names[3:8]
    everything = after(permuted, OPTIMIZERS, "float64")
    flipped = after([signs], OPTIMIZERS, "float64")
    turned = after([rotated], ["SGD", "LARS", "LARS, decay"], "float64")
    turned_adam = after([rotated], ["Adam"], "float64")
    exact = after([layers], ["LARS"], "float32")
    exact64 = after([layers], ["LARS"], "float64")
    sgd, adam, decayed = (
        after([layers], [name], "float64") for name in ("SGD", "Adam", "LARS, decay")
    )
    finer = {
        name: after([units, mapped], [name], "float64")
        for name in ("SGD", "Adam", "LARS")
    }
    learned = table[table["optimizer"] != "none"].groupby("optimizer")["test_accuracy"]
    return [
        Claim(
            "There are other symmetries than permutation: a ReLU's scale, a tanh's "
            "sign, channels, heads, and any invertible matrix between Q and K.",
            f"Largest relative difference of the logits, of {int(is_one.sum())} pairs: "
            f"{by_dtype['float64'].max():.1g} in float64, "
            f"{by_dtype['float32'].max():.1g} in float32. Of the two that are none "
            f"(tanh scaled, ReLU's sign): {median_and_spread(controls)}.",
            judged(
                [
                    by_dtype["float64"].max() < 1e-12,
                    by_dtype["float32"].max() < 1e-4,
                    controls.min() > 0.01,
                ]
            ),
        ),
        Claim(
            "Every optimizer here respects permutations and signs: from both starts "
            "training gives one function.",
            f"After {settings['num_steps']} steps in float64 permuted networks differ "
            f"by at most {everything.max():.1g}, those with flipped signs by "
            f"{flipped.max():.1g}. (Median accuracies: "
            + ", ".join(f"{k} {v:.2f}" for k, v in learned.median().items())
            + ".)",
            judged([same(everything), same(flipped)]),
        ),
        Claim(
            "LARS without decay respects the scales of layers exactly (factors of "
            "product 1); SGD, Adam and LARS with decay do not.",
            f"Powers of two: LARS differs by at most {exact.max():.1g} in float32 and "
            f"{exact64.max():.1g} in float64; SGD by {median_and_spread(sgd)}, Adam by "
            f"{median_and_spread(adam)}, LARS with a decay of "
            f"{settings['weight_decay']:g} by {median_and_spread(decayed)}.",
            judged(
                [
                    exact.max() == 0,
                    exact64.max() == 0,
                    other(sgd),
                    other(adam),
                    other(decayed),
                ]
            ),
        ),
        Claim(
            "What is a rotation SGD and LARS respect, and Adam, which works on single "
            "coordinates, does not.",
            f"Q and K rotated: SGD and LARS, with decay or not, at most "
            f"{turned.max():.1g}; Adam {median_and_spread(turned_adam)}.",
            judged([same(turned), other(turned_adam)]),
        ),
        Claim(
            "What scales parts of one array differently (single units, or a general "
            "matrix between Q and K) none respects, LARS neither.",
            "; ".join(f"{k}: {median_and_spread(v)}" for k, v in finer.items()) + ".",
            judged([other(values) for values in finer.values()]),
        ),
    ]


ITEM = Item(
    title="Exercise 1: symmetries of networks",
    about=(
        "The exercise asks for other symmetries of networks than the permutation of "
        "hidden units. Here ten transformations of the weights, two of which are "
        "controls that change the function, are applied to small networks on "
        "scikit-learn's digits, and the logits compared in float32 and float64. Then "
        "both weights are trained on the same images with SGD, Adam and LARS, with "
        "three seeds, to see which optimizers still give one function."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
