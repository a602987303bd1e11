"""Units that start equal: what keeps them equal, and what tells them apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import Data, load
from experiments.networks.model import Model, Variables, as_model
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.style import line_over_seeds, panels
from experiments.training.optimizers import WHOLE
from experiments.training.training import Run, Training, make_training
from lars.optimizer import lars

STARTS = ("W1 and W2 constant", "W1 constant, W2 random", "both random")
ARMS = (
    "SGD, all images",
    "SGD, minibatches",
    "Adam, minibatches",
    "LARS, minibatches",
    "SGD, minibatches, dropout",
)


class Network(nn.Module):
    """One hidden layer of tanh units, with dropout on what they give."""

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
    """A network whose kernels start as one of `STARTS` says.

    Args:
        model: of `Network`.
        start: one of `STARTS`.
        constants: the range that a constant is drawn from, by the seed of the run.
    """

    def init(key: jax.Array, images: jax.Array) -> Variables:
        params = model.init(key, images)["params"]
        constant = jax.random.uniform(
            jax.random.fold_in(key, 1), (), minval=constants[0], maxval=constants[1]
        )
        for layer, is_constant in (
            ("hidden", start != "both random"),
            ("output", start == "W1 and W2 constant"),
        ):
            if is_constant:
                kernel = jnp.full_like(params[layer]["kernel"], constant)
                params = {**params, layer: {**params[layer], "kernel": kernel}}
        return {"params": params}

    return model._replace(init=init)


def spread_over_units(matrix: np.ndarray) -> float:
    """The largest difference of two units at an input, of the largest element.

    Args:
        matrix: [inputs, units]. Its units are equal bit for bit where this is 0.
    """
    largest = np.abs(matrix).max()
    return float(np.ptp(matrix, axis=1).max() / largest) if largest else 0.0


def rank(matrix: np.ndarray) -> int:
    """The rank, where singular values below the rounding of float32 count as zero."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    floor = values[0] * max(matrix.shape) * np.finfo(np.float32).eps
    return int((values > floor).sum())


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every start with every way to train."""
    del settings
    return [{"start": start, "arm": arm} for start in STARTS for arm in ARMS]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Runs of all seeds, looked at as often as the settings say."""
    data = load("digits")
    has_dropout = "dropout" in cell["arm"]
    network = Network(
        settings["width"], settings["dropout_rate"] if has_dropout else 0.0
    )
    model = started(as_model(network), cell["start"], settings["constants"])
    images = len(data.train.labels)
    training = make_training(
        model,
        _optimizers(settings)[cell["arm"].split(",")[0]],
        num_steps=settings["num_steps"],
        batch_size=images if "all images" in cell["arm"] else settings["batch_size"],
    )
    # Optax' Adam mixes floats and integers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return pd.DataFrame(_rows(training, model, data, cell["arm"], settings))


def _optimizers(
    settings: Settings,
) -> dict[str, Callable[[jax.Array], optax.GradientTransformation]]:
    momentum = settings["momentum"]
    return {
        "SGD": lambda rate: optax.sgd(rate, momentum),
        "Adam": lambda rate: optax.adam(rate, momentum),
        "LARS": lambda rate: lars(rate, momentum=momentum, partition_specs=WHOLE),
    }


def _rows(
    training: Training, model: Model, data: Data, arm: str, settings: Settings
) -> list[dict[str, float]]:
    between = settings["num_steps"] // settings["points"]
    advance = jax.jit(training.advance, static_argnums=3)
    evaluate = jax.jit(training.evaluate)

    @jax.jit
    def gradient(variables: Variables) -> Any:
        """Of the first image alone."""

        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply({"params": params}, data.train.images[:1], None)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, data.train.labels[:1]
            ).mean()

        return jax.grad(loss)(variables["params"])

    x = np.asarray(data.train.images[0]).ravel()
    rows = []
    for seed in range(settings["seeds"]):
        rate = settings["learning_rates"][arm.split(",")[0]]
        run = Run(jnp.int32(seed), jnp.ones(2), jnp.float32(rate))
        state = jax.jit(training.init)(run, data)
        for point in range(settings["points"] + 1):
            if point:
                state, _ = advance(state, run, data, between)
            kernel = np.asarray(state.variables["params"]["hidden"]["kernel"])
            of_hidden = gradient(state.variables)["hidden"]
            slope, error = (np.asarray(of_hidden[name]) for name in ("kernel", "bias"))
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
                    # The bias' gradient is what reaches the unit: times the inputs, it
                    # should be the kernel's.
                    "gradient_off_product": float(
                        np.abs(slope - np.outer(x, error)).max()
                        / max(np.abs(slope).max(), np.finfo(np.float32).tiny)
                    ),
                }
            )
    return rows


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Above how far units are apart, below the accuracy; a column for each start."""
    figure, axes = panels(
        2,
        3,
        "Hidden units that start equal: how far apart they are, and the accuracy\n"
        f"(line: median of {settings['seeds']} seeds; band: lowest to highest)",
        height=3.0,
        width=3.5,
    )
    for column, start in enumerate(STARTS):
        upper, lower = axes[:, column]
        for number, arm in enumerate(ARMS):
            rows = table[(table["start"] == start) & (table["arm"] == arm)]
            for place, name in ((upper, "spread_over_units"), (lower, "test_accuracy")):
                line_over_seeds(
                    place,
                    rows,
                    "step",
                    name,
                    number,
                    arm,
                    "median",
                    # Lines of equal values: the later ones are smaller, and leave the
                    # earlier ones in sight.
                    markersize=9 - 1.5 * number,
                    markevery=max(1, settings["points"] // 8),
                    clip_on=False,
                )
        upper.set(title=start, yscale="symlog", ylim=(-2e-9, 10))
        upper.set_yscale("symlog", linthresh=1e-8)
        upper.set_yticks([0, 1e-8, 1e-6, 1e-4, 1e-2, 1])
        upper.minorticks_off()
        lower.set(xlabel="step", ylim=(0, 1))
    axes[0, 0].set_ylabel("spread over units, of the\nlargest weight (0 is exact)")
    axes[1, 0].set_ylabel("test accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """SGD, Adam and LARS keep equal units equal; dropout and a random W2 do not."""
    constant, mixed, random = (
        table[table["start"] == start].reset_index(drop=True) for start in STARTS
    )

    def at_end(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["step"] == rows["step"].max()]

    def kept(rows: pd.DataFrame) -> tuple[str, list[bool]]:
        """What became of units that should stay equal."""
        end = at_end(rows)
        return (
            f"the largest spread over units at any of {rows['step'].nunique()} looks "
            f"is {_exactly(rows['spread_over_units'].max())}, the rank of W1 at most "
            f"{rows['rank'].max()}, the test accuracy at the end "
            f"{mean_and_spread(end['test_accuracy'])}"
        ), [
            rows["spread_over_units"].max() < np.finfo(np.float32).eps,
            rows["rank"].max() == 1,
        ]

    # Of these the units are equal, so that the book's statements are about them.
    equal = constant[constant["arm"] != ARMS[-1]]
    is_sgd = equal["arm"].isin(ARMS[:2])
    sgd, sgd_holds = kept(equal[is_sgd])
    others, others_hold = kept(equal[~is_sgd])
    dropout = at_end(constant[constant["arm"] == ARMS[-1]])
    broken = mixed[mixed["step"] > 0]
    broken_first = broken[broken["step"] == broken["step"].min()]
    broken_at_end = at_end(mixed)
    reached = at_end(random)["test_accuracy"]
    first, moved = equal[equal["step"] == 0], equal[equal["step"] > 0]
    return [
        Claim(
            "Under minibatch SGD, units that start equal stay equal, and the layer is "
            "as good as one unit.",
            f"All images or minibatches: {sgd}, against {mean_and_spread(reached)} "
            "from a random start.",
            judged(sgd_holds),
        ),
        Claim(
            "Dropout breaks the symmetry.",
            f"At the end the spread is {mean_and_spread(dropout['spread_over_units'])}"
            f", the rank {mean_and_spread(dropout['rank'])} of {settings['width']}, "
            f"the accuracy {mean_and_spread(dropout['test_accuracy'])}.",
            judged(
                [
                    dropout["spread_over_units"].min() > 0.01,
                    dropout["rank"].min() > 1,
                    dropout["test_accuracy"].min()
                    > at_end(equal[is_sgd])["test_accuracy"].max(),
                ]
            ),
        ),
        Claim(
            "Not in the book: Adam and LARS do not break it either.",
            f"Adam and LARS: {others}.",
            judged(others_hold),
        ),
        Claim(
            "Not in the book: if only W1 is constant, and W2 random, nothing needs to "
            "be broken.",
            f"Of all ways to train, after {broken['step'].min()} steps the spread is "
            f"{mean_and_spread(broken_first['spread_over_units'])}; at the end the "
            f"rank is {mean_and_spread(broken_at_end['rank'])}, the accuracy "
            f"{mean_and_spread(broken_at_end['test_accuracy'])}.",
            judged(
                [
                    broken["spread_over_units"].min() > 1e-4,
                    broken_at_end["test_accuracy"].min() > 0.8,
                ]
            ),
        ),
        Claim(
            "All elements of the gradient of W1 are then equal.",
            "Equal over units (largest difference "
            f"{_exactly(equal['gradient_over_units'].max())}), but not over inputs: "
            "there the difference is "
            f"{mean_and_spread(moved['gradient_over_inputs'])} of the largest element. "
            "The gradient is the input times what comes back to the unit; largest "
            f"difference from that {_exactly(equal['gradient_off_product'].max())}. "
            "(With a softmax the first gradient of W1 is zero but for rounding, norm "
            f"{first['gradient_norm'].max():.1g}, since the errors of the classes sum "
            f"to zero; later {mean_and_spread(moved['gradient_norm'])}.)",
            judged(
                [
                    equal["gradient_over_units"].max() < 1e-6,
                    moved["gradient_over_inputs"].max() < 1e-6,
                ]
            ),
        ),
    ]


def _exactly(value: float) -> str:
    return "exactly 0" if value == 0 else f"{value:.2g}"


ITEM = Item(
    title="Breaking the symmetry of equal units",
    about=(
        "The book starts all weights of a layer at one constant and says that "
        "minibatch SGD never tells the hidden units apart, while dropout would. Here a "
        "network of one hidden layer of tanh units is trained on scikit-learn's "
        "digits, in float32, from three starts in five ways, with three seeds, of "
        "which each draws a constant. (48 units: products of other widths may be added "
        "up in another order for some units than for others, and rounding alone would "
        "tell them apart.) The spread over units is the largest difference "
        "of two units' weights at the same input, relative to the largest weight; the "
        "rank is that of W1."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
