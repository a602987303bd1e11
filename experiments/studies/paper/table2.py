"""Table 2: the norms of weights and gradients of AlexNet-BN at the first iteration."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax.sharding import Mesh
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import data as datasets
from experiments.data import standardise
from experiments.networks import Model, Variables, alexnet
from experiments.networks.alexnet import BIASES_WITH_NORM, KERNEL_DEVIATIONS
from experiments.studies.item import (
    Claim,
    Item,
    Settings,
    Verdict,
    judged,
    mean_and_spread,
)
from experiments.studies.style import look, panels
from experiments.training.sharding import device_mesh, fetch, put, replicated, split
from lars.norms import l2_norm

CLASSES = 1000  # of ImageNet
BATCH_SIZE = 4096
"""Of the paper's iteration, as the authors' technical report says."""
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
KINDS = ("weights", "biases")


class Printed(NamedTuple):
    """A column of the table, with the digits that are printed."""

    weight_norm: str
    gradient_norm: str
    ratio: str


PRINTED = {
    "conv1.b": Printed("1.86", "0.22", "8.48"),
    "conv1.w": Printed("0.098", "0.017", "5.76"),
    "conv2.b": Printed("5.546", "0.165", "33.6"),
    "conv2.w": Printed("0.16", "0.002", "83.5"),
    "conv3.b": Printed("9.40", "0.135", "69.9"),
    "conv3.w": Printed("0.196", "0.0015", "127"),
    "conv4.b": Printed("8.15", "0.109", "74.6"),
    "conv4.w": Printed("0.196", "0.0013", "148"),
    "conv5.b": Printed("6.65", "0.09", "73.6"),
    "conv5.w": Printed("0.16", "0.0002", "69"),
    "fc6.b": Printed("30.7", "0.26", "117"),
    "fc6.w": Printed("6.4", "0.005", "1345"),
    "fc7.b": Printed("20.5", "0.30", "68"),
    "fc7.w": Printed("6.4", "0.013", "489"),
    "fc8.b": Printed("20.2", "0.22", "93"),
    "fc8.w": Printed("0.316", "0.016", "19"),
}
"""The table, under the labels that it has."""


def printed(layer: str, kind: str, *, swapped: bool = True) -> Printed:
    """What is printed for a layer's weights or biases, the labels swapped or not."""
    is_weights = kind == "weights"
    return PRINTED[f"{layer}.{'b' if is_weights == swapped else 'w'}"]


def unit(number: str) -> float:
    """One in the last digit of a printed number."""
    return 10.0 ** -len(number.partition(".")[2])


def interval(number: str) -> tuple[float, float]:
    """The numbers that are printed so if they are rounded."""
    half = unit(number) / 2
    return float(number) - half, float(number) + half


def initial_norm(layer: str, kind: str, count: int) -> float:
    r"""The expected norm of initial parameters.

    For :math:`n` numbers from :math:`N(0, \sigma^2)` it is :math:`\sigma \sqrt n` (to
    a part in :math:`4n`) with a standard deviation of :math:`\sigma / \sqrt 2`; that of
    :math:`n` equal numbers :math:`c` is :math:`c \sqrt n` exactly.
    """
    of_each = (KERNEL_DEVIATIONS if kind == "weights" else BIASES_WITH_NORM)[layer]
    return of_each * math.sqrt(count)


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Draws of the initial parameters, and gradients for two kinds of labels."""
    return [
        *({"part": "initial", "seed": seed} for seed in settings["draws"]),
        *(
            {"part": f"gradient, {labels}", "seed": seed}
            for labels in ("own labels", "drawn labels")
            for seed in settings["seeds"]
        ),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """The norms of one draw, or of the gradient of one batch."""
    if cell["part"] == "initial":
        variables = _init(jax.random.key(cell["seed"]), 227, 3)
        return _rows({"weight_norm": variables["params"]})
    data = datasets.load(settings["dataset"])
    size, parts = settings["images"], settings["microbatches"]
    rng = np.random.default_rng(cell["seed"])
    chosen = rng.choice(len(data.train.labels), size, replace=False)
    images = data.train.images[chosen]
    labels = data.train.labels[chosen]
    if cell["part"].endswith("drawn labels"):
        labels = jnp.asarray(rng.integers(CLASSES, size=size), jnp.int32)
    # As the authors' model has it: the mean subtracted, and divided by 256.
    are_bytes = images.dtype == jnp.uint8
    deviation = jnp.full_like(data.mean, 256.0) if are_bytes else data.deviation
    side, channels = settings["image_size"], images.shape[-1]
    keys = jax.random.split(jax.random.key(cell["seed"]), 1 + parts)
    variables = _init(keys[0], side, channels)

    part_size = size // parts
    mesh = device_mesh(jax.devices()[: math.gcd(parts, jax.device_count())])
    fixed = put((variables, data.mean, deviation), replicated(mesh))
    batches = (
        keys[1:],
        images.reshape(parts, part_size, *images.shape[1:]),
        labels.reshape(parts, part_size),
    )
    sums, norms = fetch(_gradients_over(mesh, side)(fixed, put(batches, split(mesh))))
    gradient = jax.tree.map(lambda x: x.sum(axis=0) / parts, sums)
    rows = _rows({"weight_norm": variables["params"], "gradient_norm": gradient})
    of_parts = jax.tree.map(lambda x: np.sqrt(np.mean(np.square(x))), norms)
    rows["gradient_norm_of_parts"] = [
        float(of_parts[row.layer][_NAMES[row.kind]]) for row in rows.itertuples()
    ]
    rows["gradient_norm_at_4096"] = at_batch_size(
        rows["gradient_norm_of_parts"], part_size, rows["gradient_norm"], size
    )
    return rows


def at_batch_size(
    small_norm: Any,
    small: int,
    large_norm: Any,
    large: int,
    batch_size: int = BATCH_SIZE,
) -> Any:
    r"""The norm of a gradient at another batch size, from those at two.

    That of the mean over :math:`B` examples has the expected square
    :math:`\|\mu\|^2 + v / B`, with the gradient :math:`\mu` over all examples and the
    total variance :math:`v` of an example's. An estimate of less than
    :math:`v / B` counts as that.
    """
    small_square, large_square = np.square(small_norm), np.square(large_norm)
    variance = (small_square - large_square) / (1 / small - 1 / large)
    variance = np.maximum(variance, 0)
    noise = variance / batch_size
    return np.sqrt(np.maximum(large_square - variance / large + noise, noise))


_NAMES = {"weights": "kernel", "biases": "bias"}


@functools.cache
def _model() -> Model:
    return alexnet(CLASSES, batch_norm=True, dropout_rate=0.5, compute_dtype="float32")


@functools.partial(jax.jit, static_argnums=(1, 2))
def _init(key: jax.Array, side: int, channels: int) -> Variables:
    return _model().init(key, jnp.zeros((1, side, side, channels)))


@functools.cache
def _gradients_over(mesh: Mesh, side: int) -> Callable[[Any, Any], Any]:
    """Compiles the sum of the gradients of parts of a batch, and the norm of each.

    Each device works on whole parts, and gives a sum of its own: batch normalization
    sees a part alone, and no device waits for another.
    """

    def on_one_device(fixed: Any, batches: Any) -> tuple[Any, Any]:
        variables, mean, deviation = fixed

        def add(total: Any, batch: Any) -> tuple[Any, Any]:
            key, images, labels = batch
            x = standardise(images, mean, deviation)
            x = jax.image.resize(x, (x.shape[0], side, side, x.shape[-1]), "bilinear")

            def loss(params: Any) -> jax.Array:
                logits, _ = _model().apply({**variables, "params": params}, x, key)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean()

            gradient = jax.grad(loss)(variables["params"])
            total = jax.tree.map(jnp.add, total, gradient)
            return total, jax.tree.map(l2_norm, gradient)

        zeros = jax.tree.map(jnp.zeros_like, variables["params"])
        total, norms = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda x: x[None], total), norms

    one, parts = replicated(mesh).spec, split(mesh).spec
    return jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(one, parts),
            out_specs=parts,
            check_vma=False,
        )
    )


def _rows(trees: Mapping[str, Any]) -> pd.DataFrame:
    """A row for the weights and one for the biases of every layer."""
    norms = jax.device_get(jax.jit(lambda x: jax.tree.map(l2_norm, x))(trees))
    counts = jax.tree.map(lambda x: x.size, next(iter(trees.values())))
    return pd.DataFrame(
        {
            "layer": layer,
            "kind": kind,
            "parameters": counts[layer][name],
            "expected_norm": initial_norm(layer, kind, counts[layer][name]),
            **{column: float(tree[layer][name]) for column, tree in norms.items()},
        }
        for layer in LAYERS
        for kind, name in _NAMES.items()
    )


def expected_norms() -> dict[tuple[str, str], float]:
    """The norms of initial parameters by layer and kind, from their shapes alone."""
    shapes = jax.eval_shape(
        _model().init, jax.random.key(0), jnp.zeros((1, 227, 227, 3))
    )["params"]
    return {
        (layer, kind): initial_norm(layer, kind, shapes[layer][name].size)
        for layer in LAYERS
        for kind, name in _NAMES.items()
    }


def agreement(expected: float, number: str) -> dict[str, bool]:
    """In which ways a number is the printed one."""
    error, one = expected - float(number), unit(number)
    slack = 1e-9 * one  # of sums of binary fractions
    return {
        "rounded": abs(error) <= one / 2 + slack,
        "truncated": -slack <= error < one - slack,
        "within a unit": abs(error) <= one + slack,
    }


def draws_apart(layer: str, kind: str, expected: float, number: str) -> float:
    """How many standard deviations of a draw a rounded number is from its mean."""
    low, high = interval(number)
    apart = max(low - expected, expected - high, 0.0)
    if kind == "biases":  # which are not drawn
        return 0.0 if apart <= 1e-9 else math.inf
    return apart / (KERNEL_DEVIATIONS[layer] / math.sqrt(2))


def ratio_interval(column: Printed) -> tuple[float, float]:
    """What the ratio can be, if both norms are rounded to their printed digits."""
    (low, high), (least, most) = map(interval, column[:2])
    return low / most, high / least


def ratio_fits(column: Printed) -> bool:
    """Whether the printed ratio can be the quotient of the printed norms."""
    (low, high), (least, most) = ratio_interval(column), interval(column.ratio)
    return low <= most and least <= high


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above both norms, below their ratio, of weights and biases apart."""
    figure, axes = panels(
        2,
        2,
        "Table 2 with its labels .w and .b exchanged, against computed values\n"
        f"(gradients: {settings['dataset']} enlarged to {settings['image_size']} "
        f"pixels, {settings['images']} images, mean and range of "
        f"{len(settings['seeds'])} seeds)",
        height=3.5,
    )
    (norms, gradients), ratios = axes
    exact = expected_norms()
    for kind in KINDS:
        _mark(norms, [float(printed(x, kind).weight_norm) for x in LAYERS], kind)
        norms.plot(
            [exact[layer, kind] for layer in LAYERS],
            "_k",
            markersize=17,
            label="from the initial values, without data",
        )
        _mark(gradients, [float(printed(x, kind).gradient_norm) for x in LAYERS], kind)
        _mark_computed(
            gradients, table, kind, "drawn labels", lambda x: x.gradient_norm_at_4096
        )
    norms.set(title="initial parameters", ylabel="norm of w")
    gradients.set(title="gradient at the first iteration", ylabel="norm of g")
    for axes_, kind in zip(ratios, KINDS, strict=True):
        _mark(axes_, [float(printed(x, kind).ratio) for x in LAYERS], kind)
        for labels in _LOOKS[1:]:
            _mark_computed(axes_, table, kind, labels, _ratios)
        axes_.set(title=f"ratio of the {kind}", ylabel="norm of w / norm of g")
    named: dict[str, Any] = {}
    for axes_ in axes.flat:
        axes_.set_yscale("log")
        axes_.set_xticks(range(len(LAYERS)), LAYERS)
        handles, names = axes_.get_legend_handles_labels()
        named = {**dict(zip(names, handles, strict=True)), **named}
    figure.legend(
        [named[name] for name in sorted(named)],
        sorted(named),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8.5,
    )
    return figure


_LOOKS = ("printed", "drawn labels", "own labels")


def _style(name: str, kind: str) -> dict[str, Any]:
    """A colour and a marker for the origin; biases are hollow."""
    style = {**look(_LOOKS.index(name)), "linestyle": "none", "markersize": 6.5}
    return style if kind == "weights" else {**style, "markerfacecolor": "none"}


def _mark(axes: Axes, values: Sequence[float], kind: str) -> None:
    axes.plot(values, label=f"printed, {kind}", **_style("printed", kind))


def _mark_computed(
    axes: Axes, table: pd.DataFrame, kind: str, labels: str, value: Any
) -> None:
    rows = _gradients(table, labels, kind)
    values = value(rows).groupby(rows["layer"])
    middle, low, high = (
        x[list(LAYERS)] for x in (values.mean(), values.min(), values.max())
    )
    axes.errorbar(
        range(len(LAYERS)),
        middle,
        np.stack([middle - low, high - middle]),
        label=f"computed for batch {BATCH_SIZE}, {labels}, {kind}",
        capsize=2,
        **_style(labels, kind),
    )


def _gradients(table: pd.DataFrame, labels: str, kind: str) -> pd.DataFrame:
    return table[(table["part"] == f"gradient, {labels}") & (table["kind"] == kind)]


def _ratios(rows: pd.DataFrame) -> pd.Series:
    return rows["weight_norm"] / rows["gradient_norm_at_4096"]


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The norms follow from the model; the labels and one ratio are misprints."""
    return [
        _norms_claim(table),
        _labels_claim(),
        _ratio_claim(table),
        _batch_size_claim(table),
        *_spread_claims(table, settings),
    ]


def _norms_claim(table: pd.DataFrame) -> Claim:
    expected = expected_norms()
    ways = pd.DataFrame(
        agreement(value, printed(*key).weight_norm) for key, value in expected.items()
    ).sum()
    apart = {
        key: draws_apart(*key, value, printed(*key).weight_norm)
        for key, value in expected.items()
    }
    furthest = max(apart, key=lambda key: apart[key])
    drawn = table[(table["part"] == "initial") & (table["kind"] == "weights")]
    deviations = drawn["layer"].map(KERNEL_DEVIATIONS) / math.sqrt(2)
    scores = (drawn["weight_norm"] - drawn["expected_norm"]) / deviations
    total = len(expected)
    units = max(
        KERNEL_DEVIATIONS[x] / math.sqrt(2) / unit(printed(x, "weights").weight_norm)
        for x in LAYERS
    )
    return Claim(
        "These are the norms of AlexNet-BN's initial parameters.",
        "The deviation (of biases: the constant) times √(number) gives "
        f"{ways.rounded} of the {total} norms as printed if they are rounded, "
        f"{ways.truncated} if they are cut off, and {ways['within a unit']} to one "
        "unit of the last digit. The norm of a draw of weights has the standard "
        f"deviation σ/√2, up to {units:.0f} such units: from its mean the rounded "
        "numbers are at most "
        f"{max(apart.values()):.2g} standard deviations of a draw away "
        f"({' '.join(furthest)}), and {len(drawn)} norms of draws made here are "
        f"{mean_and_spread(scores, 2)} standard deviations away. No data is needed.",
        judged([x <= 2 for x in apart.values()]),
    )


def _labels_claim() -> Claim:
    expected = expected_norms()
    fits = {
        swapped: sum(
            draws_apart(*key, value, printed(*key, swapped=swapped).weight_norm) <= 3
            for key, value in expected.items()
        )
        for swapped in (False, True)
    }
    total = len(expected)
    verdict: Verdict = judged([fits[False] == total])
    if fits[True] == total and not fits[False]:
        verdict = "misprint"
    return Claim(
        "The columns named .w are of weights, those named .b of biases.",
        f"With these names {fits[False]} of the {total} printed norms are those of the "
        f"initial parameters, to 3 standard deviations of a draw; with the names "
        f"exchanged {fits[True]} are. The ratios that the text quotes, "
        f"{PRINTED['conv1.w'].ratio} of conv1.w and {PRINTED['fc6.w'].ratio} of fc6.w, "
        "are those of bias vectors.",
        verdict,
    )


def _ratio_claim(table: pd.DataFrame) -> Claim:
    wrong = [name for name, column in PRINTED.items() if not ratio_fits(column)]
    (low, high), stated = ratio_interval(PRINTED["conv5.w"]), PRINTED["conv5.w"].ratio
    needed = float(PRINTED["conv5.w"].weight_norm) / float(stated)
    rows = _gradients(table, "drawn labels", "biases")
    conv5 = rows[rows["layer"] == "conv5"]
    # Which of the two is nearer to what is computed, by the factor between them.
    computed = _ratios(conv5).mean()
    is_gradient = computed / float(stated) < math.sqrt(low * high) / computed
    # The other columns tell whether these images can decide it.
    others = rows[rows["layer"] != "conv5"]
    stated_there = np.array(
        [float(printed(layer, "biases").ratio) for layer in others["layer"]]
    )
    apart = np.abs(np.log(_ratios(others).to_numpy() / stated_there))
    can_tell = bool(np.median(apart) < math.log(2))
    culprit = "the gradient" if is_gradient else "the ratio"
    misprinted = (
        f"{culprit} is the misprint"
        if can_tell
        else "these images cannot tell which of the two is wrong"
    )
    far_off = [
        name
        for name in wrong
        if not 0.5
        < float(PRINTED[name].ratio) / np.mean(ratio_interval(PRINTED[name]))
        < 2
    ]
    verdict: Verdict = "misprint" if wrong and wrong == far_off else judged([not wrong])
    return Claim(
        "The last row is the quotient of the two above it.",
        "Within what rounding the norms leaves open, it is in "
        f"{len(PRINTED) - len(wrong)} of {len(PRINTED)} columns. Not in "
        f"{', '.join(wrong)}: its norms leave {low:.0f} to {high:.0f} for a ratio that "
        f"is printed as {stated}. That ratio "
        f"needs a gradient of {needed:.2g} in the place of "
        f"{PRINTED['conv5.w'].gradient_norm}. Computed here, on other images, the "
        f"gradient is {mean_and_spread(conv5['gradient_norm_at_4096'], 2)} and the "
        f"ratio {mean_and_spread(_ratios(conv5), 2)}: {misprinted}.",
        verdict,
    )


def last_bias_gradient(batch_size: int, classes: int = CLASSES) -> float:
    r"""The norm of the last bias's gradient, if all classes are alike.

    It is :math:`\|p - \bar y\|`, with equal probabilities :math:`p` and the frequencies
    :math:`\bar y` of the labels, which vary around them:
    :math:`\sqrt{(1 - 1/K) / B}`.
    """
    return math.sqrt((1 - 1 / classes) / batch_size)


def _batch_size_claim(table: pd.DataFrame) -> Claim:
    stated = printed("fc8", "biases").gradient_norm
    rows = _gradients(table, "drawn labels", "biases")
    rows = rows[rows["layer"] == "fc8"]
    low, high = interval(stated)
    from_closed_form = {
        size: last_bias_gradient(size) for size in (256, 512, 1024, BATCH_SIZE, 8192)
    }
    fitting = [size for size, x in from_closed_form.items() if low <= x <= high]
    return Claim(
        f"The batch was of {BATCH_SIZE} images (so the authors' technical report).",
        "At first all classes are about equally likely, and the gradient of the last "
        "bias is the chance imbalance of the labels, √((1 − 1/1000)/B): "
        + ", ".join(f"{x:.3f} at {size}" for size, x in from_closed_form.items())
        + f". Printed is {stated}, of the batch sizes that of "
        f"{' and '.join(map(str, fitting)) or 'none'}. On drawn labels it is "
        f"{mean_and_spread(rows['gradient_norm_at_4096'])} here.",
        judged([fitting == [BATCH_SIZE]]),
    )


def _spread_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    stated = {
        kind: [float(printed(layer, kind).ratio) for layer in LAYERS] for kind in KINDS
    }
    computed = {
        kind: _ratios(rows).groupby(rows["layer"]).mean()[list(LAYERS)]
        for kind in KINDS
        for rows in [_gradients(table, "drawn labels", kind)]
    }
    spans = {
        (name, kind): max(values[kind]) / min(values[kind])
        for name, values in (("printed", stated), ("computed", computed))
        for kind in KINDS
    }
    where = (
        f"the same on {settings['dataset']} enlarged to {settings['image_size']} "
        "pixels, which is another data set, with labels drawn from 1000 classes"
    )
    ends = {
        (name, kind): tuple(
            LAYERS[int(at(list(values[kind])))] for at in (np.argmin, np.argmax)
        )
        for name, values in (("printed", stated), ("computed", computed))
        for kind in KINDS
    }
    factors = [
        x / float(printed(layer, kind).ratio)
        for kind in KINDS
        for layer, x in computed[kind].items()
    ]
    correlations = {
        kind: np.corrcoef(np.log(stated[kind]), np.log(computed[kind]))[0, 1]
        for kind in KINDS
    }
    return [
        Claim(
            "The ratio varies much between layers, and between weights and biases, so "
            "that one learning rate does not fit all.",
            "Among the weights it varies from "
            f"{min(stated['weights']):.3g} to {max(stated['weights']):.3g}, "
            f"{spans['printed', 'weights']:.0f}-fold; the range that is quoted, "
            f"{min(stated['biases']):.3g} to {max(stated['biases']):.4g}, "
            f"{spans['printed', 'biases']:.0f}-fold, is that of the biases. Computed, "
            f"{where}: {spans['computed', 'weights']:.0f}-fold and "
            f"{spans['computed', 'biases']:.0f}-fold.",
            judged([span > 5 for span in spans.values()]),
        ),
        Claim(
            "The ratio is smallest in the first convolution, and largest in the first "
            "fully connected layer.",
            "Printed it is, of weights and of biases. Computed, on those images, "
            + " and ".join(
                f"the smallest of {kind} is that of {ends['computed', kind][0]} "
                f"({computed[kind].min():.3g}), the largest that of "
                f"{ends['computed', kind][1]} ({computed[kind].max():.3g})"
                for kind in KINDS
            )
            + "; the logarithms of the printed and the computed ratios have a "
            f"correlation of {correlations['weights']:.2f} and "
            f"{correlations['biases']:.2f}, and a computed one is "
            f"{min(factors):.2f} to {max(factors):.2f} times the printed one.",
            judged(
                [
                    layer == expected
                    for pair in ends.values()
                    for layer, expected in zip(pair, ("conv1", "fc6"), strict=True)
                ]
            ),
        ),
    ]


ITEM = Item(
    title="Table 2: norms of weights and gradients at the first iteration",
    about=(
        "The paper's table gives, for every layer of AlexNet-BN, the norms of its "
        "parameters and of their gradient at the first iteration, and their ratio "
        "([You et al. 2017](https://arxiv.org/abs/1708.03888v3); its [technical report]"
        "(https://www2.eecs.berkeley.edu/Pubs/TechRpts/2017/EECS-2017-156.html) adds "
        "that the batch had 4096 images of ImageNet). The norms of the parameters need "
        "no data: they follow from how the [authors' model]"
        "(https://github.com/NVIDIA/caffe/blob/caffe-0.17/models/alexnet_bn/"
        "train_val2.prototxt) begins, and are computed exactly and from draws. The "
        "gradients are computed on the images of CIFAR-10, enlarged to 227 pixels, "
        "which are not those of ImageNet: with 3 seeds, once with their own labels, "
        "which are 10 of the 1000 outputs, and once with labels drawn from all 1000. "
        "What they would be at a batch of 4096 follows from the norms at two batch "
        "sizes, as their square is a constant plus another one over the batch size."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
