"""Why dropout tells equal units apart, and the choice of a batch does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.book.shared import cross_entropy, flattened
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import legend_below, line_over_seeds, look, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

DIFFERENT, REPEATED = "different images", "one image repeated"


@jax.jit
def gradient_of_equal_units(
    images: jax.Array,
    labels: jax.Array,
    constant: jax.Array,
    outgoing: jax.Array,
    masks: jax.Array,
) -> jax.Array:
    """The gradient of W1 of a network of one layer of tanh units that are all equal.

    Args:
        images: [B, inputs].
        labels: [B].
        constant: every element of W1.
        outgoing: [10], the weights from any unit to the classes.
        masks: [B, units], the factors of dropout: 0, or 1/(1-p).
    """
    units = masks.shape[1]

    def loss(first: jax.Array) -> jax.Array:
        hidden = jnp.tanh(images @ first) * masks
        return cross_entropy(hidden @ jnp.tile(outgoing, (units, 1)), labels)

    return jax.grad(loss)(jnp.full((images.shape[1], units), constant))


_alone = jax.jit(jax.vmap(gradient_of_equal_units, (0, 0, None, None, None)))
"""The same by each image alone: [B, inputs, units]."""


def relative_spread(gradient: np.ndarray) -> float:
    """The standard deviation over units [inputs, units] relative to the mean."""
    gradient = gradient.astype(np.float64)
    # From the first unit, so that units equal bit for bit have the deviation 0.
    deviation = (gradient - gradient[:, :1]).std(1)
    return float(np.linalg.norm(deviation) / np.linalg.norm(gradient.mean(1)))


def expected_spread(rate: float, per_image: np.ndarray) -> float:
    """The spread that dropout makes, where masks are independent.

    A unit's gradient is the sum over images of mask times the image's own gradient g.
    The mask has the mean 1 and the variance p/(1-p), with the rate p, so that

        spread = sqrt(p/(1-p)) sqrt(Σ ‖g‖²) / ‖Σ g‖.
    """
    total = np.linalg.norm(per_image.sum(0))
    return float(np.sqrt(rate / (1 - rate)) * np.linalg.norm(per_image) / total)


def cells(settings: Settings) -> list[Cell]:
    """Every source of batches at every rate of dropout."""
    rates = settings["dropout_rates"]
    return combinations(batch=(DIFFERENT, REPEATED), dropout_rate=rates)


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """The spread over units at every batch size, for all seeds."""
    images, labels = flattened(load("digits").train)
    rate, units = cell["dropout_rate"], settings["units"]
    ones = jnp.ones((1, units))
    rows = []
    for size in settings["batch_sizes"]:
        for seed in range(settings["seeds"]):
            random = np.random.default_rng([seed, size])
            batch = random.choice(len(labels), size, replace=False)
            if cell["batch"] == REPEATED:
                batch = np.repeat(batch[:1], size)
            constant = np.float32(random.uniform(*settings["constants"]))
            outgoing = (random.standard_normal(10) / units).astype(np.float32)
            kept = random.random((size, units)) >= rate
            masks = jnp.asarray(kept / (1 - rate), jnp.float32)
            x, y, weights = images[batch], labels[batch], (constant, outgoing)
            gradient = np.asarray(gradient_of_equal_units(x, y, *weights, masks))
            alone = _alone(x[:, None], y[:, None], *weights, ones)[..., 0]
            rows.append(
                {
                    "batch_size": size,
                    "seed": seed,
                    "spread": relative_spread(gradient),
                    "expected": expected_spread(rate, np.asarray(alone, np.float64)),
                    # Exactly so for a batch of one, whose kept units are all equal.
                    "of_the_masks": float(np.sqrt((~kept).sum() / max(kept.sum(), 1))),
                }
            )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """The spread by batch size, with and without dropout, and its closed form."""
    title = (
        "Gradients of hidden units that are equal: their standard deviation over\n"
        "units relative to their mean, by batch size "
        f"(median and lowest to highest of {settings['seeds']} seeds)"
    )
    figure, axes = panels(1, 2, title)
    left, right = axes[0]
    sizes = np.array(settings["batch_sizes"])
    for panel, batch in ((left, DIFFERENT), (right, REPEATED)):
        for number, rate in enumerate(settings["dropout_rates"]):
            rows = only(table, batch=batch, dropout_rate=rate)
            label, line = (f"dropout {rate:g}", "none") if rate else ("no dropout", "-")
            marks = {"linestyle": line, "clip_on": False}
            columns = ("batch_size", "spread")
            line_over_seeds(panel, rows, *columns, number, label, "median", **marks)
            if rate:
                expected = rows.groupby("batch_size")["expected"].median()
                color, label = look(number)["color"], f"closed form, p = {rate:g}"
                panel.plot(sizes, expected, color=color, label=label)
        panel.set(title=batch, xlabel="batch size B (images)", xscale="log")
        panel.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
        panel.set(yticks=[0, 1e-3, 1e-2, 1e-1, 1, 10], ylim=(-1e-4, 20))
        panel.minorticks_off()
    largest = max(settings["dropout_rates"])
    shrinking = np.sqrt(largest / (1 - largest) / sizes)
    left.plot(sizes, shrinking, ":", color="gray", label="as 1/√B from B = 1")
    left.set_ylabel("spread over units (0 is exact)")
    legend_below(left, 3)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """A batch has the same noise for all units, dropout has another for each."""
    without = only(table, dropout_rate=0)
    dropped = table[table["dropout_rate"] > 0]
    repeated, different = (only(dropped, batch=x) for x in (REPEATED, DIFFERENT))
    single = only(different, batch_size=1)
    off_masks = (single["spread"] / single["of_the_masks"] - 1).abs().max()
    sizes = f"{min(settings['batch_sizes'])} to {max(settings['batch_sizes'])}"
    singles = [
        (rate, rows["spread"], float(np.sqrt(rate / (1 - rate))))
        for rate, rows in single.groupby("dropout_rate")
    ]
    slopes = [_slope(rows) for rows in (repeated, different)]
    small = different[different["batch_size"] <= 16]
    off_repeated, off_different = (
        (medians["spread"] / medians["expected"] - 1).abs().max()
        for medians in map(_medians, (repeated, different))
    )
    return [
        judge(
            "Which images are in a batch does not tell equal units apart.",
            f"Without dropout, {len(without)} batches of {sizes} images: the largest "
            f"spread over units is {without['spread'].max():.3g}. Every unit sees the "
            "same images and sends the same on, so that the noise is the same for all.",
            without["spread"].max() == 0,
        ),
        judge(
            "Dropout tells them apart in the first step: of one image, a unit's "
            "gradient is its mask, 0 or 1/(1-p), times one factor, so that the spread "
            "is √(p/(1-p)).",
            "Mean (lowest to highest) over batches of one, and the closed form: "
            + "; ".join(
                f"p = {rate:g}: {mean_and_spread(spread)}, {expected:.3g}"
                for rate, spread, expected in singles
            )
            + ". The masks that were drawn give the spread with a relative error of "
            f"at most {off_masks:.1g}.",
            *(abs(spread.mean() / x - 1) < 0.1 for _, spread, x in singles),
            off_masks < 1e-4,
        ),
        judge(
            "In a batch of B images the spread is smaller, as 1/√B.",
            f"Of one image B times the exponent of B is {slopes[0]:.3f}. Of different "
            f"images it is {slopes[1]:.3f}, and {_slope(small):.3f} up to B = "
            f"{small['batch_size'].max()}: their gradients partly cancel, and the mean "
            "shrinks too. √(p/(1-p)) √Σ‖g‖² / ‖Σg‖ has both; medians are within "
            f"{off_repeated:.1%} and {off_different:.1%} of it.",
            *(abs(slope + 0.5) < 0.05 for slope in slopes),
            max(off_repeated, off_different) < 0.1,
        ),
    ]


def _medians(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows.groupby(["dropout_rate", "batch_size"])
    return groups[["spread", "expected"]].median()


def _slope(rows: pd.DataFrame) -> float:
    """The exponent of the batch size in the median spread, over all rates."""
    logs = np.log(_medians(rows)["spread"]).groupby("batch_size").mean()
    return float(np.polyfit(np.log(logs.index), logs, 1)[0])


TITLE = "Why dropout breaks the symmetry and minibatch SGD does not"
ABOUT = """Readers of the book ask why dropout would tell equal hidden units apart and
the noise of minibatches would not. Here the gradient of W1 of a layer of equal tanh
units is computed in float32 on batches of scikit-learn's digits, without dropout and
with it, for many seeds, each with its own images, weights and masks. Its spread over
units is compared with the closed form."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
