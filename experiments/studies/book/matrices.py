"""The book's one printed experiment: a product of a hundred random matrices."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.book.shared import log_growth
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import CLOSED_FORM, line_with_band, look, panels
from experiments.studies.tables import Cell, combinations, only, with_range

RULES = {
    "standard": "σ = 1, the book's",
    "mean_square": "σ = 1/√n, keeps the mean square",
    "typical": "σ = exp(−λ), keeps the typical size",
}
"""The standard deviation of the entries, by name. λ is the exponent `log_growth`."""


def deviation(rule: str, width: int) -> float:
    """The standard deviation σ of the entries under one of `RULES`."""
    return {
        "standard": 1.0,
        "mean_square": width**-0.5,
        "typical": math.exp(-log_growth(width)),
    }[rule]


def cells(settings: Settings) -> list[Cell]:
    """Products under each rule, where float32 overflows, and vectors by the width."""
    width, widths = [settings["width"]], settings["widths"]
    return [
        *combinations(part=["product"], rule=RULES, width=width),
        *combinations(part=["overflow"], rule=["standard"], width=width),
        *combinations(part=["vector"], rule=["mean_square"], width=widths),
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Quantiles over seeds, with the mean and the standard deviation."""
    width, every, last = cell["width"], settings["every"], settings["matrices"]
    sigma = deviation(cell["rule"], width)
    if cell["part"] == "overflow":
        seeds = settings["overflow_seeds"]
        return _quantiles(matrices_until_overflow(width, seeds), 0, seeds + 1)
    if cell["part"] == "vector":
        rng = np.random.default_rng(width)
        logs = log_vector_gains(rng, width, sigma, last, settings["vector_seeds"])
        return _quantiles(logs / math.log(10), last, 3)
    rng = np.random.default_rng(list(RULES).index(cell["rule"]))
    logs = log_norms(rng, width, sigma, last, settings["seeds"]) / math.log(10)
    tables = [
        _quantiles(row, count, settings["levels"] if count == last else 5)
        for count, row in enumerate(logs, start=1)
        if count == last or count % every == 1
    ]
    return pd.concat(tables, ignore_index=True)


def log_norms(
    rng: np.random.Generator, width: int, sigma: float, matrices: int, seeds: int
) -> np.ndarray:
    """ln of the Frobenius norm of the product of the first 1, 2, ... matrices.

    In float64, [matrices, seeds]. The product is divided by its norm after each matrix,
    so that nothing overflows.
    """
    product = np.broadcast_to(np.eye(width), (seeds, width, width))
    logs = np.zeros((matrices, seeds))
    for i in range(matrices):
        product = product @ (sigma * rng.standard_normal((seeds, width, width)))
        norms = np.linalg.norm(product, axis=(1, 2))
        product = product / norms[:, None, None]
        logs[i] = np.log(norms)
    return logs.cumsum(axis=0)


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
        rows = only(table, part="product", rule=rule)
        end = only(rows, matrices=last)
        plain = look(number) | {"marker": ""}
        sizes.plot(end["value"], end["quantile"], label=label, **plain)
        quartiles = rows.pivot_table("value", "matrices", "quantile")
        middle_and_edges = (quartiles[level] for level in (0.5, 0.25, 0.75))
        band = {"number": number, "label": label.split(",")[0], "markersize": 0}
        line_with_band(growth, quartiles.index, *middle_and_edges, **band)
        slope = _slope(rule, n)
        growth.plot([0, last], [0, slope * last], **CLOSED_FORM)
        sizes.axvline(slope * last, ymax=1 / 1.75, **CLOSED_FORM)
    sizes.axvline(np.nan, label="closed form, mean", **CLOSED_FORM)
    sizes.set(xlabel=f"log₁₀ Frobenius norm after {last} matrices")
    sizes.set(ylabel="share of seeds below", title=f"{settings['seeds']} seeds each")
    sizes.set(ylim=(0, 1.75), yticks=[0, 0.25, 0.5, 0.75, 1])
    growth.set(xlabel="matrices", ylabel="log₁₀ Frobenius norm")
    growth.set(title="Median and quartiles; dotted: closed form")
    for place in (sizes, growth):
        place.legend(loc="upper left", fontsize=9)

    rows = only(table, part="overflow")
    overflow.plot(rows["value"], rows["quantile"], color=look(0)["color"])
    overflow.axvline(_overflow_by_exponent(n), label="ln(max) / λ", **CLOSED_FORM)
    overflow.set(xlabel="matrices until a float32 entry overflows")
    overflow.set(ylabel="share of seeds")
    overflow.set(title=f"σ = 1, {settings['overflow_seeds']} seeds")
    overflow.legend()

    decay = _decay(table, settings)
    colors = [look(number)["color"] for number in (1, 2)]
    points = {"fmt": "o", "color": colors[0], "label": "measured"}
    gap.errorbar(decay.index, decay["measured"], 2 * decay["error"], **points)
    gap.plot(decay["closed_form"], label="closed form", **CLOSED_FORM)
    gap.plot(decay.index, 0.5 / decay.index, color=colors[1], ls="--", label="1 / (2n)")
    gap.set(xlabel="width n", ylabel="decay of ln length per matrix")
    gap.set(title=f"σ = 1/√n, {settings['vector_seeds']} seeds, ±2 standard errors")
    gap.set(xscale="log", yscale="log", xticks=decay.index, xticklabels=decay.index)
    gap.minorticks_off()
    gap.legend()
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The product explodes at a known rate, and a chosen scale cures it in part."""
    n, last = settings["width"], settings["matrices"]
    products = only(table, part="product")
    ends = {rule: only(products, rule=rule, matrices=last) for rule in RULES}
    values = {rule: rows["value"] for rule, rows in ends.items()}
    start = only(products, rule="standard", matrices=1)["mean"].iloc[0]
    rate = (ends["standard"]["mean"].iloc[0] - start) / (last - 1) * math.log(10)
    overflow = only(table, part="overflow")["value"]
    expected = _overflow_by_exponent(n)
    drifts = {rule: _slope(rule, n) * last for rule in RULES}
    decay = _decay(table, settings)
    off = (decay["measured"] - decay["closed_form"]).abs()
    first, widest = decay.iloc[0], decay.iloc[-1]
    narrow, wide = decay.index[0], decay.index[-1]
    logs = np.log(decay["measured"][1:])
    slope = np.polyfit(np.log(logs.index), logs, 1)[0]

    def described(rule: str) -> str:
        row, x = ends[rule].iloc[0], values[rule]
        return f"{row['mean']:.1f} ± {row['sd']:.2f} ({x.min():.1f} to {x.max():.1f})"

    return [
        judge(
            f"A product of {last} matrices of size {n}x{n} with standard Gaussian "
            "entries explodes.",
            f"log₁₀ of its Frobenius norm is {described('standard')} over "
            f"{settings['seeds']} seeds; closed form of the drift "
            f"{drifts['standard']:+.1f}.",
            values["standard"].min() > 10,
        ),
        judge(
            "The growth is no accident of one draw: each matrix adds the same amount "
            "to the logarithm, λ = (ln 2 + ψ(n/2)) / 2.",
            f"Between the first and the last matrix {rate:.4f} each; closed form "
            f"{log_growth(n):.4f}. For vectors of widths "
            f"{', '.join(map(str, decay.index))} the measured λ differs from the "
            f"closed form by at most {off.max():.2g}, "
            f"{(off / decay['error']).max():.2g} standard errors.",
            abs(rate / log_growth(n) - 1) < 0.02,
            (off < 4 * decay["error"]).all(),
        ),
        judge(
            f"Exploded is not yet overflowed: float32 still holds a product of {last}.",
            "float32 overflows after "
            f"{with_range(overflow.median(), overflow.min(), overflow.max(), '.0f')} "
            f"matrices over {settings['overflow_seeds']} seeds; ln(3.4e38) / λ = "
            f"{expected:.0f}.",
            overflow.min() > last,
            abs(overflow.median() / expected - 1) < 0.05,
        ),
        judge(
            "A variance that keeps the mean square (σ = 1/√n) cures it.",
            "It cures the explosion, but the typical product decays: log₁₀ of the "
            f"norm is {described('mean_square')}; closed form of the drift "
            f"{drifts['mean_square']:+.2f}. With σ = exp(−λ) = "
            f"{deviation('typical', n):.4f} it is {described('typical')}.",
            values["mean_square"].max() < 10,
            abs(values["mean_square"].median()) < 1,
        ),
        judge(
            "In wide layers the difference does not matter: it shrinks as 1/width.",
            f"With σ = 1/√n the length decays by a factor exp(−d) per matrix, d = "
            f"{first['measured']:.3g} at n = {narrow} and {widest['measured']:.3g} at "
            f"n = {wide}; 1/(2n) is {0.5 / narrow:.3g} and {0.5 / wide:.3g}. d is "
            f"about n to the power {slope:.2f}, without n = {narrow}.",
            abs(slope + 1) < 0.15,
            abs(widest["measured"] * 2 * wide - 1)
            < 4 * widest["error"] * 2 * wide + 1 / wide,
        ),
    ]


def _slope(rule: str, width: int) -> float:
    """The growth of log10 of a length with each matrix, in closed form."""
    return (log_growth(width) + math.log(deviation(rule, width))) / math.log(10)


def _overflow_by_exponent(width: int) -> float:
    return math.log(float(np.finfo(np.float32).max)) / log_growth(width)


def _decay(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """By the width, how fast ln of a vector's length shrinks where σ = 1/√n."""
    rows = only(table, part="vector").groupby("width").first()
    widths = rows.index
    to_nats = math.log(10) / settings["matrices"]
    return pd.DataFrame(
        {
            "measured": -rows["mean"] * to_nats,
            "error": rows["sd"] * to_nats / settings["vector_seeds"] ** 0.5,
            "closed_form": 0.5 * np.log(widths) - [log_growth(n) for n in widths],
        }
    )


TITLE = "A product of a hundred random matrices"
ABOUT = """The book multiplies a 4x4 Gaussian matrix by 100 more and prints one result.
Here is the distribution over 2,000 seeds, in float64 with the norm divided out after
each matrix, and the number of matrices at which a float32 product overflows over 300
seeds. Each matrix adds the
[Lyapunov exponent](https://doi.org/10.1007/BF01464284) to the logarithm of a length. A
scale that keeps the mean square still lets the typical product decay, by depth over
width: this is failure mode 2 of
[Hanin and Rolnick](https://arxiv.org/abs/1803.01719)."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
