"""Units that start equal: which optimizers keep them so, and how to break it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.networks.model import Model, Variables, as_model
from experiments.studies.book.shared import cross_entropy, optimizer_of
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import legend_below, line_over_seeds, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only
from experiments.training.training import Run, make_training

STARTS = ("W1 and W2 constant", "W1 constant, W2 random", "both random")
ARMS = (
    "SGD, all images",
    "SGD, minibatches",
    "Adam, minibatches",
    "LARS, minibatches",
    "SGD, minibatches, dropout",
)
EPS = float(np.finfo(np.float32).eps)


class Network(nn.Module):
    """One hidden layer of tanh units, with dropout on their outputs."""

    width: int
    dropout_rate: float

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        """From images [B, H, W, C] to logits [B, 10]."""
        x = images.reshape(images.shape[0], -1)
        x = nn.tanh(nn.Dense(self.width, name="hidden")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not is_training)(x)
        return nn.Dense(10, name="output")(x)


def started(model: Model, start: str, constants: tuple[float, float]) -> Model:
    """A `Network` whose kernels start as one of `STARTS` says.

    The seed of the run draws the constant from a range.
    """

    def init(key: jax.Array, images: jax.Array) -> Variables:
        params = model.init(key, images)["params"]
        low, high = constants
        key = jax.random.fold_in(key, 1)
        constant = jax.random.uniform(key, (), minval=low, maxval=high)
        equal = ("hidden", "output")[: 2 - STARTS.index(start)]
        for layer in equal:
            kernel = jnp.full_like(params[layer]["kernel"], constant)
            params = {**params, layer: {**params[layer], "kernel": kernel}}
        return {"params": params}

    return model._replace(init=init)


def spread_over_units(matrix: np.ndarray) -> float:
    """The largest difference of two units at an input, of the largest element.

    Units of a matrix [inputs, units] are equal bit for bit where this is 0.
    """
    largest = np.abs(matrix).max()
    return float(np.ptp(matrix, axis=1).max() / largest) if largest else 0.0


def rank(matrix: np.ndarray) -> int:
    """The rank, where singular values below the rounding of float32 count as zero."""
    floor = max(matrix.shape) * EPS
    return int(np.linalg.matrix_rank(matrix.astype(np.float64), rtol=floor))


def cells(settings: Settings) -> list[Cell]:
    """Every start with every way to train."""
    return combinations(start=STARTS, arm=ARMS)


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Runs of all seeds, looked at as often as the settings say."""
    data, arm = load("digits"), cell["arm"]
    optimizer = arm.split(",")[0]
    rate = settings["learning_rates"][optimizer]
    dropout_rate = settings["dropout_rate"] if "dropout" in arm else 0.0
    network = as_model(Network(settings["width"], dropout_rate))
    model = started(network, cell["start"], settings["constants"])
    images = len(data.train.labels)
    training = make_training(
        model,
        lambda rate: optimizer_of(optimizer, rate, settings["momentum"]),
        num_steps=settings["num_steps"],
        batch_size=images if "all images" in arm else settings["batch_size"],
    )
    between = settings["num_steps"] // settings["points"]
    init, evaluate = jax.jit(training.init), jax.jit(training.evaluate)
    advance = jax.jit(training.advance, static_argnums=3)

    @jax.jit
    @jax.grad
    def gradient(params: Variables) -> jax.Array:
        """Of the first image alone."""
        logits, _ = model.apply({"params": params}, data.train.images[:1], None)
        return cross_entropy(logits, data.train.labels[:1])

    x = np.asarray(data.train.images[0]).ravel()
    rows = []
    for seed in range(settings["seeds"]):
        run = Run(jnp.int32(seed), jnp.ones(2), jnp.float32(rate))
        state = init(run, data)
        for point in range(settings["points"] + 1):
            if point:
                state, _ = advance(state, run, data, between)
            params = state.variables["params"]
            kernel = np.asarray(params["hidden"]["kernel"])
            of_hidden = gradient(params)["hidden"]
            slope, error = (np.asarray(of_hidden[name]) for name in ("kernel", "bias"))
            # The gradient of the bias is what reaches the unit. Times the inputs, it
            # should be the gradient of the kernel.
            off = np.abs(slope - np.outer(x, error)).max()
            largest = max(np.abs(slope).max(), np.finfo(np.float32).tiny)
            rows.append(
                {
                    "seed": seed,
                    "step": point * between,
                    "spread_over_units": spread_over_units(kernel),
                    "rank": rank(kernel),
                    "test_accuracy": float(evaluate(state, data, data.test).accuracy),
                    "gradient_norm": float(np.linalg.norm(slope)),
                    "gradient_over_units": spread_over_units(slope),
                    "gradient_over_inputs": spread_over_units(slope.T),
                    "gradient_off_product": float(off / largest),
                }
            )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above how far units are apart, below the accuracy; a column for each start."""
    title = (
        "Hidden units that start equal: how far apart they are, and the accuracy\n"
        f"(line: median of {settings['seeds']} seeds; band: lowest to highest)"
    )
    figure, axes = panels(2, 3, title, height=3.0, width=3.5)
    some = {"clip_on": False, "markevery": max(1, settings["points"] // 8)}
    for (upper, lower), start in zip(axes.T, STARTS, strict=True):
        for number, arm in enumerate(ARMS):
            rows = only(table, start=start, arm=arm)
            # Lines of equal values: the later ones are smaller, and leave the earlier
            # ones in sight.
            marks = {"markersize": 9 - 1.5 * number, **some}
            for panel, name in ((upper, "spread_over_units"), (lower, "test_accuracy")):
                series = (rows, "step", name, number, arm, "median")
                line_over_seeds(panel, *series, **marks)
        upper.set_yscale("symlog", linthresh=1e-8)
        upper.set(title=start, ylim=(-2e-9, 10), yticks=[0, 1e-8, 1e-6, 1e-4, 1e-2, 1])
        upper.minorticks_off()
        lower.set(xlabel="step", ylim=(0, 1))
    axes[0, 0].set_ylabel("spread over units, of the\nlargest weight (0 is exact)")
    axes[1, 0].set_ylabel("test accuracy")
    legend_below(axes[0, 0], 3)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """SGD, Adam and LARS keep equal units equal; dropout and a random W2 do not."""
    constant, mixed, random = (only(table, start=start) for start in STARTS)

    def exactly(values: pd.Series) -> str:
        return f"{values.max():.2g}" if values.max() else "exactly 0"

    def at_end(rows: pd.DataFrame) -> pd.DataFrame:
        return only(rows, step=rows["step"].max())

    def kept(rows: pd.DataFrame) -> str:
        """The findings on units that should stay equal."""
        return (
            f"the largest spread over units at any of {rows['step'].nunique()} looks "
            f"is {exactly(rows['spread_over_units'])}, the rank of W1 at most "
            f"{rows['rank'].max()}, the test accuracy at the end "
            f"{mean_and_spread(at_end(rows)['test_accuracy'])}"
        )

    def is_kept(rows: pd.DataFrame) -> tuple[bool, bool]:
        return rows["spread_over_units"].max() < EPS, rows["rank"].max() == 1

    # Of these the units are equal, so that the book's statements are about them.
    equal = constant[constant["arm"] != ARMS[-1]]
    is_sgd = equal["arm"].isin(ARMS[:2])
    sgd, others = equal[is_sgd], equal[~is_sgd]
    dropout = at_end(only(constant, arm=ARMS[-1]))
    broken, broken_at_end = mixed[mixed["step"] > 0], at_end(mixed)
    step = broken["step"].min()
    apart = only(broken, step=step)["spread_over_units"]
    reached = at_end(random)["test_accuracy"]
    first, moved = only(equal, step=0), equal[equal["step"] > 0]
    return [
        judge(
            "Under minibatch SGD, units that start equal stay equal, and the layer is "
            "as good as one unit.",
            f"All images or minibatches: {kept(sgd)}, against "
            f"{mean_and_spread(reached)} from a random start.",
            *is_kept(sgd),
        ),
        judge(
            "Dropout breaks the symmetry.",
            f"At the end the spread is {mean_and_spread(dropout['spread_over_units'])}"
            f", the rank {mean_and_spread(dropout['rank'])} of {settings['width']}, "
            f"the accuracy {mean_and_spread(dropout['test_accuracy'])}.",
            dropout["spread_over_units"].min() > 0.01,
            dropout["rank"].min() > 1,
            dropout["test_accuracy"].min() > at_end(sgd)["test_accuracy"].max(),
        ),
        judge(
            "Not in the book: Adam and LARS do not break it either.",
            f"Adam and LARS: {kept(others)}.",
            *is_kept(others),
        ),
        judge(
            "Not in the book: if only W1 is constant, and W2 random, nothing needs to "
            "be broken.",
            f"With every way to train, after {step} steps the spread is "
            f"{mean_and_spread(apart)}; at the end the rank is "
            f"{mean_and_spread(broken_at_end['rank'])}, the accuracy "
            f"{mean_and_spread(broken_at_end['test_accuracy'])}.",
            broken["spread_over_units"].min() > 1e-4,
            broken_at_end["test_accuracy"].min() > 0.8,
        ),
        judge(
            "All elements of the gradient of W1 are then equal.",
            "Equal over units (largest difference "
            f"{exactly(equal['gradient_over_units'])}), but not over inputs: "
            "there the difference is "
            f"{mean_and_spread(moved['gradient_over_inputs'])} of the largest element. "
            "The gradient is the input times what comes back to the unit; largest "
            f"difference from that {exactly(equal['gradient_off_product'])}. "
            "(With a softmax the first gradient of W1 is zero but for rounding, norm "
            f"{first['gradient_norm'].max():.1g}, since the errors of the classes sum "
            f"to zero; later {mean_and_spread(moved['gradient_norm'])}.)",
            equal["gradient_over_units"].max() < 1e-6,
            moved["gradient_over_inputs"].max() < 1e-6,
        ),
    ]


TITLE = "Breaking the symmetry of equal units"
ABOUT = """The book starts all weights of a layer at one constant and says that
minibatch SGD never tells the hidden units apart, while dropout would. Here a network of
one hidden layer of tanh units is trained on scikit-learn's digits, in float32, from
three starts in five ways, with three seeds. Each seed draws a constant. (48 units:
products of other widths may be added up in another order for some units than for
others, and rounding alone would tell them apart.) The spread over units is the largest
difference of two units' weights at the same input, relative to the largest weight; the
rank is that of W1."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
