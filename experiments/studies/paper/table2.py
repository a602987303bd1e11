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
KINDS = {"weights": "kernel", "biases": "bias"}
"""The two kinds of parameters, and their names in the network."""


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
    seeds = {
        "initial": settings["draws"],
        "gradient, own labels": settings["seeds"],
        "gradient, drawn labels": settings["seeds"],
    }
    return [{"part": part, "seed": x} for part in seeds for x in seeds[part]]


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
    key, *keys = jax.random.split(jax.random.key(cell["seed"]), 1 + parts)
    variables = _init(key, side, channels)
    part_size = size // parts
    mesh = device_mesh(jax.devices()[: math.gcd(parts, jax.device_count())])
    fixed = put((variables, data.mean, deviation), replicated(mesh))
    batches = (
        jnp.stack(keys),
        images.reshape(parts, part_size, *images.shape[1:]),
        labels.reshape(parts, part_size),
    )
    sums, norms = fetch(_gradients_over(mesh, side)(fixed, put(batches, split(mesh))))
    gradient = jax.tree.map(lambda x: x.sum(axis=0) / parts, sums)
    rows = _rows(
        {
            "weight_norm": variables["params"],
            "gradient_norm": gradient,
            # The root mean square of the norms of the parts.
            "gradient_norm_of_parts": jax.tree.map(lambda x: x / parts**0.5, norms),
        }
    )
    rows["gradient_norm_at_4096"] = at_batch_size(
        rows["gradient_norm_of_parts"], part_size, rows["gradient_norm"], size
    )
    return rows


def at_batch_size(
    small_norm: Any, small: int, large_norm: Any, large: int, batch_size=BATCH_SIZE
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
        for kind, name in KINDS.items()
    )


def expected_norms() -> dict[tuple[str, str], float]:
    """The norms of initial parameters by layer and kind, from their shapes alone."""
    shapes = jax.eval_shape(
        _model().init, jax.random.key(0), jnp.zeros((1, 227, 227, 3))
    )["params"]
    return {
        (layer, kind): initial_norm(layer, kind, shapes[layer][name].size)
        for layer in LAYERS
        for kind, name in KINDS.items()
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
    return apart / deviation_of_draw(layer)


def deviation_of_draw(layer: str) -> float:
    """The standard deviation of the norm of drawn weights, see `initial_norm`."""
    return KERNEL_DEVIATIONS[layer] / math.sqrt(2)


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
    for kind, panel in zip(KINDS, ratios, strict=True):
        _mark_printed(norms, "weight_norm", kind)
        norms.plot(
            [exact[layer, kind] for layer in LAYERS],
            "_k",
            markersize=17,
            label="from the initial values, without data",
        )
        _mark_printed(gradients, "gradient_norm", kind)
        _mark_computed(gradients, table, "gradient_norm_at_4096", kind, "drawn labels")
        _mark_printed(panel, "ratio", kind)
        for labels in _LOOKS[1:]:
            _mark_computed(panel, table, "ratio", kind, labels)
        panel.set(title=f"ratio of the {kind}", ylabel="norm of w / norm of g")
    norms.set(title="initial parameters", ylabel="norm of w")
    gradients.set(title="gradient at the first iteration", ylabel="norm of g")
    named: dict[str, Any] = {}
    for panel in axes.flat:
        panel.set_yscale("log")
        panel.set_xticks(range(len(LAYERS)), LAYERS)
        handles, names = panel.get_legend_handles_labels()
        named = {**dict(zip(names, handles, strict=True)), **named}
    names = sorted(named)
    figure.legend(
        [named[name] for name in names],
        names,
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


def _mark_printed(axes: Axes, row: str, kind: str) -> None:
    style = _style("printed", kind)
    axes.plot(_printed_row(row, kind), label=f"printed, {kind}", **style)


def _mark_computed(
    axes: Axes, table: pd.DataFrame, column: str, kind: str, labels: str
) -> None:
    values = _gradients(table, labels, kind).groupby("layer")[column]
    middle, low, high = (
        values.agg(["mean", "min", "max"]).loc[list(LAYERS)].T.to_numpy()
    )
    axes.errorbar(
        range(len(LAYERS)),
        middle,
        [middle - low, high - middle],
        label=f"computed for batch {BATCH_SIZE}, {labels}, {kind}",
        capsize=2,
        **_style(labels, kind),
    )


def _printed_row(row: str, kind: str) -> list[float]:
    """A row of the table, layer by layer, the labels exchanged."""
    return [float(getattr(printed(layer, kind), row)) for layer in LAYERS]


def _gradients(table: pd.DataFrame, labels: str, kind: str) -> pd.DataFrame:
    """The rows of gradients, with the ratio of the norms."""
    rows = table[(table["part"] == f"gradient, {labels}") & (table["kind"] == kind)]
    return rows.assign(ratio=rows["weight_norm"] / rows["gradient_norm_at_4096"])


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
    stated = {
        key: (x, printed(*key).weight_norm) for key, x in expected_norms().items()
    }
    ways = pd.DataFrame(agreement(*values) for values in stated.values()).sum()
    apart = {key: draws_apart(*key, *values) for key, values in stated.items()}
    furthest = max(apart, key=lambda key: apart[key])
    drawn = table[(table["part"] == "initial") & (table["kind"] == "weights")]
    scores = (drawn["weight_norm"] - drawn["expected_norm"]) / drawn["layer"].map(
        deviation_of_draw
    )
    units = max(
        deviation_of_draw(x) / unit(printed(x, "weights").weight_norm) for x in LAYERS
    )
    return Claim(
        "These are the norms of AlexNet-BN's initial parameters.",
        "The deviation (of biases: the constant) times √(number) gives "
        f"{ways['rounded']} of the {len(stated)} norms as printed if they are rounded, "
        f"{ways['truncated']} if they are cut off, and {ways['within a unit']} to one "
        "unit of the last digit. The norm of a draw of weights has the standard "
        f"deviation σ/√2, up to {units:.0f} such units. From its mean, the rounded "
        f"numbers are at most {apart[furthest]:.2g} standard deviations of a draw away "
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
    column = PRINTED["conv5.w"]
    (low, high), stated = ratio_interval(column), float(column.ratio)
    rows = _gradients(table, "drawn labels", "biases")
    is_conv5 = rows["layer"] == "conv5"
    conv5, others = rows[is_conv5], rows[~is_conv5]
    # The number that is nearer to the computed one, by the factor between them.
    computed = conv5["ratio"].mean()
    is_gradient = computed / stated < math.sqrt(low * high) / computed
    # The other columns tell whether these images can decide it.
    stated_there = others["layer"].map(lambda x: float(printed(x, "biases").ratio))
    apart = np.log(others["ratio"] / stated_there).abs()
    misprinted = "these images cannot tell which of the two is wrong"
    if apart.median() < math.log(2):
        culprit = "the gradient" if is_gradient else "the ratio"
        misprinted = f"{culprit} is the misprint"
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
        "Within the rounding of the norms, it is in "
        f"{len(PRINTED) - len(wrong)} of {len(PRINTED)} columns. Not in "
        f"{', '.join(wrong)}: its norms leave {low:.0f} to {high:.0f} for a ratio that "
        f"is printed as {column.ratio}. That ratio needs a gradient of "
        f"{float(column.weight_norm) / stated:.2g} in the place of "
        f"{column.gradient_norm}. Computed here, on other images, the gradient is "
        f"{mean_and_spread(conv5['gradient_norm_at_4096'], 2)} and the ratio "
        f"{mean_and_spread(conv5['ratio'], 2)}: {misprinted}.",
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
    rows = _gradients(table, "drawn labels", "biases").set_index("layer").loc["fc8"]
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
        + f". The paper prints {stated}, the number for "
        f"{' and '.join(map(str, fitting)) or 'none of them'}. On drawn labels it is "
        f"{mean_and_spread(rows['gradient_norm_at_4096'])} here.",
        judged([fitting == [BATCH_SIZE]]),
    )


def _spread_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    ratios = {
        "printed": pd.DataFrame(
            {kind: _printed_row("ratio", kind) for kind in KINDS}, index=list(LAYERS)
        ),
        "computed": pd.DataFrame(
            {
                kind: _gradients(table, "drawn labels", kind)
                .groupby("layer")["ratio"]
                .mean()
                for kind in KINDS
            }
        ).loc[list(LAYERS)],
    }
    stated, computed = ratios.values()
    spans = {name: x.max() / x.min() for name, x in ratios.items()}
    factors = computed / stated
    correlations = np.log(stated).corrwith(np.log(computed))
    return [
        Claim(
            "The ratio varies much between layers, and between weights and biases, so "
            "that one learning rate does not fit all.",
            "Among the weights it varies from "
            f"{stated['weights'].min():.3g} to {stated['weights'].max():.3g}, "
            f"{spans['printed']['weights']:.0f}-fold. The range that is quoted, "
            f"{stated['biases'].min():.3g} to {stated['biases'].max():.4g}, "
            f"{spans['printed']['biases']:.0f}-fold, is that of the biases. Computed "
            f"on {settings['dataset']} enlarged to {settings['image_size']} pixels, "
            "which is another data set, with labels drawn from 1000 classes, it varies "
            f"{spans['computed']['weights']:.0f}-fold and "
            f"{spans['computed']['biases']:.0f}-fold.",
            judged([span > 5 for x in spans.values() for span in x]),
        ),
        Claim(
            "The ratio is smallest in the first convolution, and largest in the first "
            "fully connected layer.",
            "In the paper's table it is, for weights and for biases. Computed on those "
            "images, "
            + " and ".join(
                f"the smallest of the {kind} is that of {computed[kind].idxmin()} "
                f"({computed[kind].min():.3g}), the largest that of "
                f"{computed[kind].idxmax()} ({computed[kind].max():.3g})"
                for kind in KINDS
            )
            + ". The logarithms of the printed and the computed ratios have a "
            f"correlation of {correlations['weights']:.2f} (weights) and "
            f"{correlations['biases']:.2f} (biases). A computed ratio is "
            f"{factors.min(axis=None):.2f} to {factors.max(axis=None):.2f} times the "
            "printed one.",
            judged(
                [
                    layer == expected
                    for x in ratios.values()
                    for ends, expected in ((x.idxmin(), "conv1"), (x.idxmax(), "fc6"))
                    for layer in ends
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
