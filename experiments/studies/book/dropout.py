"""Why dropout tells equal units apart, and the choice of a batch does not."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import load
from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.style import line_over_seeds, look, panels


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
        constant: what every element of W1 is.
        outgoing: [10], the weights from any unit to the classes.
        masks: [B, units], the factors of dropout: 0, or 1/(1-p).

    Returns:
        [inputs, units].
    """
    units = masks.shape[1]

    def loss(first: jax.Array) -> jax.Array:
        hidden = jnp.tanh(images @ first) * masks
        logits = hidden @ jnp.tile(outgoing, (units, 1))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(jnp.full((images.shape[1], units), constant))


def relative_spread(gradient: np.ndarray) -> float:
    """The standard deviation over units relative to the mean, over all inputs.

    Args:
        gradient: [inputs, units].
    """
    gradient = gradient.astype(np.float64)
    # From the first unit, so that units equal bit for bit have the deviation 0.
    offset = gradient - gradient[:, :1]
    deviation = offset - offset.mean(1, keepdims=True)
    mean = gradient.mean(1, keepdims=True)
    per_unit = np.sqrt(gradient.shape[1])
    return float(np.linalg.norm(deviation) / np.linalg.norm(mean) / per_unit)


def expected_spread(rate: float, per_image: np.ndarray) -> float:
    """The spread that dropout makes, where masks are independent.

    A unit's gradient is the sum over images of mask times the image's own gradient g.
    The mask has the mean 1 and the variance p/(1-p), so that

        spread = sqrt(p/(1-p)) sqrt(Σ ‖g‖²) / ‖Σ g‖.

    Args:
        rate: p.
        per_image: [B, inputs], the g.
    """
    total = np.linalg.norm(per_image.sum(0))
    return float(np.sqrt(rate / (1 - rate)) * np.linalg.norm(per_image) / total)


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every source of batches at every rate of dropout."""
    return [
        {"batch": batch, "dropout_rate": rate}
        for batch in ("different images", "one image repeated")
        for rate in settings["dropout_rates"]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """The spread over units at every batch size, for all seeds."""
    data = load("digits")
    images = jnp.reshape(data.train.images, (len(data.train.labels), -1))
    labels = data.train.labels
    rate, units = cell["dropout_rate"], settings["units"]
    rows = []
    for size in settings["batch_sizes"]:
        for seed in range(settings["seeds"]):
            random = np.random.default_rng([seed, size])
            batch = random.choice(len(labels), size, replace=False)
            if cell["batch"] == "one image repeated":
                batch = np.repeat(batch[:1], size)
            constant = np.float32(random.uniform(*settings["constants"]))
            outgoing = (random.standard_normal(10) / units).astype(np.float32)
            kept = random.random((size, units)) >= rate
            masks = jnp.asarray(kept / (1 - rate), jnp.float32)
            start = (images[batch], labels[batch], constant, outgoing)
            rows.append(
                {
                    "batch_size": size,
                    "seed": seed,
                    "spread": relative_spread(np.asarray(_gradient(*start, masks))),
                    "expected": expected_spread(
                        rate, np.asarray(_alone(*start, units), np.float64)
                    ),
                    # Exactly so for a batch of one, whose kept units are all equal.
                    "of_the_masks": float(np.sqrt((~kept).sum() / max(kept.sum(), 1))),
                }
            )
    return pd.DataFrame(rows)


# Compiled once for every batch size, and not in every part anew.
_gradient = jax.jit(gradient_of_equal_units)


@functools.partial(jax.jit, static_argnums=4)
def _alone(
    images: jax.Array,
    labels: jax.Array,
    constant: jax.Array,
    outgoing: jax.Array,
    units: int,
) -> jax.Array:
    """The gradient of one unit by each image alone, without dropout: [B, inputs]."""

    def of_one(x: jax.Array, y: jax.Array) -> jax.Array:
        masks = jnp.ones((1, units))
        start = (x[None], y[None], constant, outgoing)
        return gradient_of_equal_units(*start, masks)[:, 0]

    return jax.vmap(of_one)(images, labels)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """The spread by batch size, with and without dropout, and what is expected."""
    figure, axes = panels(
        1,
        2,
        "Gradients of hidden units that are equal: their standard deviation over\n"
        "units relative to their mean, by batch size "
        f"(median and lowest to highest of {settings['seeds']} seeds)",
    )
    sizes = np.array(settings["batch_sizes"])
    for place, (batch, rows) in zip(
        axes[0], table.groupby("batch", sort=False), strict=True
    ):
        for number, rate in enumerate(settings["dropout_rates"]):
            of_rate = rows[rows["dropout_rate"] == rate]
            label = f"dropout {rate:g}" if rate else "no dropout"
            line_over_seeds(
                place,
                of_rate,
                "batch_size",
                "spread",
                number,
                label,
                "median",
                linestyle="none" if rate else "-",
                clip_on=False,
            )
            if rate:
                place.plot(
                    sizes,
                    of_rate.groupby("batch_size")["expected"].median(),
                    color=look(number)["color"],
                    label=f"closed form, p = {rate:g}",
                )
        if batch == "different images":
            largest = max(settings["dropout_rates"])
            shrinking = np.sqrt(largest / (1 - largest) / sizes)
            place.plot(sizes, shrinking, ":", color="gray", label="as 1/√B from B = 1")
        place.set(title=batch, xlabel="batch size B (images)", xscale="log")
        place.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
        place.set_yticks([0, 1e-3, 1e-2, 1e-1, 1, 10])
        place.minorticks_off()
        place.set_ylim(-1e-4, 20)
    axes[0, 0].set_ylabel("spread over units (0 is exact)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """A batch has the same noise for all units, dropout has another for each."""
    without = table[table["dropout_rate"] == 0]
    dropped = table[table["dropout_rate"] > 0]
    is_different = dropped["batch"] == "different images"
    single = dropped[is_different & (dropped["batch_size"] == 1)]
    off_masks = (single["spread"] / single["of_the_masks"] - 1).abs().max()
    sizes = f"{min(settings['batch_sizes'])} to {max(settings['batch_sizes'])}"

    means, mean_holds = [], []
    for rate, rows in single.groupby("dropout_rate"):
        expected = float(np.sqrt(rate / (1 - rate)))
        means.append(f"p = {rate:g}: {mean_and_spread(rows['spread'])}, {expected:.3g}")
        mean_holds.append(abs(rows["spread"].mean() / expected - 1) < 0.1)

    repeated, different = dropped[~is_different], dropped[is_different]
    slopes = [_slope(rows) for rows in (repeated, different)]
    small = different[different["batch_size"] <= 16]
    off = {
        name: rows.groupby(["dropout_rate", "batch_size"])[["spread", "expected"]]
        .median()
        .pipe(lambda x: (x["spread"] / x["expected"] - 1).abs().max())
        for name, rows in (("repeated", repeated), ("different", different))
    }
    return [
        Claim(
            "Which images are in a batch does not tell equal units apart.",
            f"Without dropout, {len(without)} batches of {sizes} images: the largest "
            f"spread over units is {without['spread'].max():.3g}. Every unit sees the "
            "same images and sends the same on, so that the noise is the same for all.",
            judged([without["spread"].max() == 0]),
        ),
        Claim(
            "Dropout tells them apart in the first step: of one image, a unit's "
            "gradient is its mask, 0 or 1/(1-p), times one factor, so that the spread "
            "is √(p/(1-p)).",
            f"Mean (lowest to highest) over batches of one, and the closed form: "
            f"{'; '.join(means)}. From the masks that were drawn it follows with a "
            f"relative error of at most {off_masks:.1g}.",
            judged([*mean_holds, off_masks < 1e-4]),
        ),
        Claim(
            "In a batch of B images the spread is smaller, as 1/√B.",
            f"Of one image B times the exponent of B is {slopes[0]:.3f}. Of different "
            f"images it is {slopes[1]:.3f}, and {_slope(small):.3f} up to B = "
            f"{small['batch_size'].max()}: their gradients partly cancel, and the mean "
            "shrinks too. "
            "√(p/(1-p)) √Σ‖g‖² / ‖Σg‖ has both; medians are within "
            f"{off['repeated']:.1%} and {off['different']:.1%} of it.",
            judged(
                [
                    abs(slopes[0] + 0.5) < 0.05,
                    abs(slopes[1] + 0.5) < 0.05,
                    max(off.values()) < 0.1,
                ]
            ),
        ),
    ]


def _slope(rows: pd.DataFrame) -> float:
    """The exponent of the batch size in the median spread, over all rates."""
    medians = rows.groupby(["dropout_rate", "batch_size"])["spread"].median()
    logs = np.log(medians.unstack("batch_size"))
    size = np.log(np.asarray(logs.columns, float))
    return float(np.polyfit(size, logs.mean().to_numpy(), 1)[0])


ITEM = Item(
    title="Why dropout breaks the symmetry and minibatch SGD does not",
    about=(
        "Readers of the book ask why dropout would tell equal hidden units apart and "
        "the noise of minibatches would not. Here the gradient of W1 of a layer of "
        "equal tanh units is computed in float32 on batches of scikit-learn's digits, "
        "without dropout and with it, for many seeds, each with its own images, "
        "weights and masks, and its spread over units is compared with the closed form."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
