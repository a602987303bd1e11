"""The book's one printed experiment: a product of a hundred random matrices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import digamma

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.style import line_with_band, look, panels

RULES = {
    "standard": "σ = 1, the book's",
    "mean_square": "σ = 1/√n, keeps the mean square",
    "typical": "σ = exp(−λ), keeps the typical size",
}
"""The standard deviation of the entries, by name."""


def exponent(width: int) -> float:
    """The Lyapunov exponent λ of standard Gaussian matrices of a width n.

    A Gaussian matrix turns any unit vector into a vector whose squared length is
    chi-squared with n degrees of freedom, whatever came before it. Each matrix
    therefore adds (ln 2 + ψ(n/2)) / 2 to the expected logarithm of the length
    (Newman 1986, https://doi.org/10.1007/BF01464284).
    """
    return 0.5 * (math.log(2) + float(digamma(width / 2)))


def deviation(rule: str, width: int) -> float:
    """The standard deviation σ of the entries under one of `RULES`."""
    return {
        "standard": 1.0,
        "mean_square": width**-0.5,
        "typical": math.exp(-exponent(width)),
    }[rule]


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Products under each rule, where float32 overflows, and vectors by the width."""
    n = settings["width"]
    return [
        *({"part": "product", "rule": rule, "width": n} for rule in RULES),
        {"part": "overflow", "rule": "standard", "width": n},
        *(
            {"part": "vector", "rule": "mean_square", "width": width}
            for width in settings["widths"]
        ),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Quantiles over seeds, with the mean and the standard deviation."""
    width = cell["width"]
    sigma = deviation(cell["rule"], width)
    if cell["part"] == "overflow":
        seeds = settings["overflow_seeds"]
        return _quantiles(matrices_until_overflow(width, seeds), 0, seeds + 1)
    if cell["part"] == "vector":
        rng = np.random.default_rng(width)
        logs = log_vector_gains(
            rng, width, sigma, settings["matrices"], settings["vector_seeds"]
        )
        return _quantiles(logs / math.log(10), settings["matrices"], 3)
    rng = np.random.default_rng(list(RULES).index(cell["rule"]))
    logs = log_norms(rng, width, sigma, settings["matrices"], settings["seeds"])
    every, last = settings["every"], settings["matrices"]
    tables = [
        _quantiles(
            row / math.log(10), count, settings["levels"] if count == last else 5
        )
        for count, row in enumerate(logs, start=1)
        if count == last or count % every == 1
    ]
    return pd.concat(tables, ignore_index=True)


def log_norms(
    rng: np.random.Generator, width: int, sigma: float, matrices: int, seeds: int
) -> np.ndarray:
    """ln of the Frobenius norm of the product of the first 1, 2, ... matrices.

    In float64. The product is divided by its norm after each matrix, so that nothing
    overflows.

    Returns:
        Array of shape [matrices, seeds].
    """
    product = np.broadcast_to(np.eye(width), (seeds, width, width))
    logs = np.zeros((matrices, seeds))
    for i in range(matrices):
        product = product @ (sigma * rng.standard_normal((seeds, width, width)))
        norms = np.linalg.norm(product, axis=(1, 2))
        product = product / norms[:, None, None]
        logs[i] = logs[i - 1] + np.log(norms) if i else np.log(norms)
    return logs


def log_vector_gains(
    rng: np.random.Generator, width: int, sigma: float, matrices: int, seeds: int
) -> np.ndarray:
    """ln of a vector's length after a product of matrices, from 1, of each seed."""
    logs = np.zeros(seeds)
    for seed in range(seeds):
        vector = np.full(width, width**-0.5)
        for _ in range(matrices):
            vector = sigma * rng.standard_normal((width, width)) @ vector
            length = np.linalg.norm(vector)
            vector /= length
            logs[seed] += np.log(length)
    return logs


def matrices_until_overflow(width: int, seeds: int) -> np.ndarray:
    """How many standard matrices make an entry of a float32 product not finite."""
    rng = np.random.default_rng(0)
    product = np.broadcast_to(np.eye(width, dtype=np.float32), (seeds, width, width))
    counts, made = np.zeros(seeds, int), 0
    while not counts.all():
        made += 1
        with np.errstate(over="ignore", invalid="ignore"):
            product = product @ rng.standard_normal((seeds, width, width), np.float32)
        is_finite = np.isfinite(product).all(axis=(1, 2))
        counts[~is_finite & (counts == 0)] = made
    return counts


def _quantiles(values: np.ndarray, matrices: int, levels: int) -> pd.DataFrame:
    quantiles = np.linspace(0, 1, levels)
    return pd.DataFrame(
        {
            "matrices": matrices,
            "quantile": quantiles,
            "value": np.quantile(values, quantiles),
            "mean": values.mean(),
            "sd": values.std(ddof=1),
        }
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Sizes after all matrices and on the way, overflow, and the gap by the width."""
    n, last = settings["width"], settings["matrices"]
    figure, axes = panels(2, 2, f"Products of {n}x{n} Gaussian matrices")
    sizes, growth, overflow, gap = axes.flat
    for number, (rule, label) in enumerate(RULES.items()):
        rows = _of(table, "product", rule)
        end = rows[rows["matrices"] == last]
        plain = {**look(number), "marker": ""}
        sizes.plot(end["value"], end["quantile"], label=label, **plain)
        by_quantile = rows.pivot_table(
            index="matrices", columns="quantile", values="value"
        )[[0.25, 0.5, 0.75]]
        line_with_band(
            growth,
            by_quantile.index,
            by_quantile[0.5],
            by_quantile[0.25],
            by_quantile[0.75],
            number,
            label.split(",")[0],
            markersize=0,
        )
        slope = _slope(rule, n)
        growth.plot([0, last], [0, slope * last], color="black", lw=0.8, ls=":")
        sizes.axvline(slope * last, ymax=1 / 1.75, color="black", lw=0.8, ls=":")
    sizes.axvline(np.nan, color="black", lw=0.8, ls=":", label="closed form, mean")
    sizes.set(
        xlabel=f"log₁₀ Frobenius norm after {last} matrices",
        ylabel="share of seeds below",
        title=f"{settings['seeds']} seeds each",
        ylim=(0, 1.75),
        yticks=[0, 0.25, 0.5, 0.75, 1],
    )
    sizes.legend(frameon=False, loc="upper left", fontsize=9)
    growth.set(
        xlabel="matrices",
        ylabel="log₁₀ Frobenius norm",
        title="Median and quartiles; dotted: closed form",
    )
    growth.legend(frameon=False, loc="upper left", fontsize=9)

    rows = _of(table, "overflow", "standard")
    overflow.plot(rows["value"], rows["quantile"], color=look(0)["color"])
    overflow.axvline(
        _overflow_by_exponent(n), color="black", lw=0.8, ls=":", label="ln(max) / λ"
    )
    overflow.set(
        xlabel="matrices until a float32 entry overflows",
        ylabel="share of seeds",
        title=f"σ = 1, {settings['overflow_seeds']} seeds",
    )
    overflow.legend(frameon=False)

    widths = np.array(settings["widths"])
    means, errors = _per_matrix(table, settings)
    line = 0.5 * np.log(widths) - np.array([exponent(n) for n in widths])
    gap.errorbar(
        widths, -means, 2 * errors, fmt="o", color=look(1)["color"], label="measured"
    )
    gap.plot(widths, line, color="black", lw=0.8, ls=":", label="closed form")
    gap.plot(widths, 0.5 / widths, color=look(2)["color"], ls="--", label="1 / (2n)")
    gap.set(
        xlabel="width n",
        ylabel="decay of ln length per matrix",
        title=f"σ = 1/√n, {settings['vector_seeds']} seeds, ±2 standard errors",
        xscale="log",
        yscale="log",
        xticks=widths,
        xticklabels=widths,
    )
    gap.minorticks_off()
    gap.legend(frameon=False)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The product explodes; what growth to expect; what a chosen scale does for it."""
    n, last = settings["width"], settings["matrices"]
    products = table[(table["part"] == "product") & (table["matrices"] == last)]
    ends = {rule: products[products["rule"] == rule] for rule in RULES}
    rate = (ends["standard"]["mean"].iloc[0] - _first_mean(table)) / (last - 1)
    rate *= math.log(10)
    widths = np.array(settings["widths"])
    means, errors = _per_matrix(table, settings)
    gaps = 0.5 * np.log(widths) - np.array([exponent(n) for n in widths])
    overflow = _of(table, "overflow", "standard")
    expected = _overflow_by_exponent(n)
    drifts = {r: _slope(r, n) * last for r in RULES}
    slope = np.polyfit(np.log(widths[1:]), np.log(-means[1:]), 1)[0]
    return [
        Claim(
            f"A product of {last} matrices of size {n}x{n} with standard Gaussian "
            "entries explodes.",
            f"log₁₀ of its Frobenius norm is {_described(ends['standard'])} over "
            f"{settings['seeds']} seeds; closed form of the drift "
            f"{drifts['standard']:+.1f}.",
            judged([ends["standard"]["value"].min() > 10]),
        ),
        Claim(
            "The growth is no accident of one draw: each matrix adds the same amount "
            "to the logarithm, λ = (ln 2 + ψ(n/2)) / 2.",
            f"Between the first and the last matrix {rate:.4f} each; closed form "
            f"{exponent(n):.4f}. For vectors of widths {_listed(widths)} the measured "
            f"λ differs from the closed form by at most "
            f"{np.max(np.abs(means + gaps)):.2g}, "
            f"{np.max(np.abs(means + gaps) / errors):.2g} standard errors.",
            judged(
                [
                    abs(rate / exponent(n) - 1) < 0.02,
                    bool(np.all(np.abs(means + gaps) < 4 * errors)),
                ]
            ),
        ),
        Claim(
            f"Exploded is not yet overflowed: float32 still holds a product of {last}.",
            f"float32 overflows after {_median_of(overflow)} matrices over "
            f"{settings['overflow_seeds']} seeds; ln(3.4e38) / λ = {expected:.0f}.",
            judged(
                [
                    overflow["value"].min() > last,
                    abs(overflow["value"].median() / expected - 1) < 0.05,
                ]
            ),
        ),
        Claim(
            "A variance that keeps the mean square (σ = 1/√n) cures it.",
            "It cures the explosion, but the typical product decays: log₁₀ of the "
            f"norm is {_described(ends['mean_square'])}; closed form of the drift "
            f"{drifts['mean_square']:+.2f}. With σ = exp(−λ) = "
            f"{deviation('typical', n):.4f} it is {_described(ends['typical'])}.",
            judged(
                [
                    ends["mean_square"]["value"].max() < 10,
                    abs(_median(ends["mean_square"])) < 1,
                ]
            ),
        ),
        Claim(
            "In wide layers the difference does not matter: it shrinks as 1/width.",
            f"With σ = 1/√n the length decays by a factor exp(−d) per matrix, d = "
            f"{-means[0]:.3g} at n = {widths[0]} and {-means[-1]:.3g} at n = "
            f"{widths[-1]}; 1/(2n) is {0.5 / widths[0]:.3g} and "
            f"{0.5 / widths[-1]:.3g}. d goes as n to the power {slope:.2f}, n = "
            f"{widths[0]} left out.",
            judged(
                [
                    abs(slope + 1) < 0.15,
                    abs(-means[-1] * 2 * widths[-1] - 1)
                    < 4 * errors[-1] * 2 * widths[-1] + 1 / widths[-1],
                ]
            ),
        ),
    ]


def _of(table: pd.DataFrame, part: str, rule: str) -> pd.DataFrame:
    return table[(table["part"] == part) & (table["rule"] == rule)]


def _slope(rule: str, width: int) -> float:
    """What a matrix adds to log10 of a length, in closed form."""
    return (exponent(width) + math.log(deviation(rule, width))) / math.log(10)


def _overflow_by_exponent(width: int) -> float:
    return math.log(float(np.finfo(np.float32).max)) / exponent(width)


def _first_mean(table: pd.DataFrame) -> float:
    rows = _of(table, "product", "standard")
    return float(rows[rows["matrices"] == 1]["mean"].iloc[0])


def _per_matrix(
    table: pd.DataFrame, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of ln of the gain of a vector per matrix, and its standard error."""
    rows = table[table["part"] == "vector"].groupby("width").first()
    rows = rows.loc[list(settings["widths"])]
    to_nats = math.log(10) / settings["matrices"]
    seeds = settings["vector_seeds"]
    means, deviations = rows["mean"].to_numpy(float), rows["sd"].to_numpy(float)
    return means * to_nats, deviations * to_nats / seeds**0.5


def _median(rows: pd.DataFrame) -> float:
    return float(rows["value"].median())


def _described(rows: pd.DataFrame) -> str:
    value, first = rows["value"], rows.iloc[0]
    return (
        f"{first['mean']:.1f} ± {first['sd']:.2f} ({value.min():.1f} to "
        f"{value.max():.1f})"
    )


def _median_of(rows: pd.DataFrame) -> str:
    value = rows["value"]
    return f"{value.median():.0f} ({value.min():.0f} to {value.max():.0f})"


def _listed(widths: np.ndarray) -> str:
    return ", ".join(map(str, widths))


ITEM = Item(
    title="A product of a hundred random matrices",
    about=(
        "The book multiplies a 4x4 Gaussian matrix by 100 more and prints one result. "
        "Here the distribution over 2,000 seeds, in float64 with the norm divided out "
        "after each matrix, and the number of matrices at which a float32 product "
        "overflows over 300 seeds. Each matrix adds the "
        "[Lyapunov exponent](https://doi.org/10.1007/BF01464284) to the logarithm of "
        "a length. That a scale which keeps the mean square still lets the typical "
        "product decay, by depth over width, is failure mode 2 of "
        "[Hanin and Rolnick](https://arxiv.org/abs/1803.01719)."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
