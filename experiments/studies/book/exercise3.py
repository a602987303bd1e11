"""Exercise 3: what bounds the product of two matrices, and of ten thousand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import digamma

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.style import COLORS, LINES, line_with_band, panels

PAIRS = ("Gaussian", "of positive elements", "symmetric", "positive definite")
DEPTHS = ("Gaussian", "Gaussian over √n", "orthogonal")


def drawn(kind: str, size: int, random: np.random.Generator) -> np.ndarray:
    """A random matrix [size, size] of a kind."""
    matrix = random.standard_normal((size, size))
    if kind == "Gaussian over √n":
        return matrix / np.sqrt(size)
    if kind == "of positive elements":
        return random.uniform(size=(size, size))
    if kind == "symmetric":
        return matrix + matrix.T
    if kind == "positive definite":
        return matrix @ matrix.T
    if kind == "orthogonal":
        # With signs that make it uniform (Haar) over all orthogonal matrices.
        q, r = np.linalg.qr(matrix)
        return q * np.sign(np.diag(r))
    return matrix


def log_growth(size: int, position: int) -> float:
    """The Lyapunov exponent of products of Gaussian matrices.

    Newman 1986, https://doi.org/10.1007/BF01464284: (ln 2 + ψ((n - i + 1)/2)) / 2 for
    the i-th of n, where elements have the variance 1.

    Args:
        size: n.
        position: i, from 1 for the largest singular value to n for the smallest.
    """
    return 0.5 * (math.log(2) + float(digamma((size - position + 1) / 2)))


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The counterexample, pairs of every kind, and long products of every kind."""
    del settings
    return [
        {"product": "of two", "matrices": "nilpotent"},
        *({"product": "of two", "matrices": kind} for kind in PAIRS),
        *({"product": "of many", "matrices": kind} for kind in DEPTHS),
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Sizes of products, in float64."""
    kind = cell["matrices"]
    if cell["product"] == "of many":
        rows = [
            row
            for seed in range(settings["seeds"])
            for row in _along_depth(kind, seed, settings)
        ]
        return pd.DataFrame(rows)
    if kind == "nilpotent":
        a = np.array([[0.0, 1.0], [0.0, 0.0]])
        return pd.DataFrame([_sizes_of_pair(a, a.T)])
    random = np.random.default_rng(PAIRS.index(kind))
    size = settings["pair_size"]
    return pd.DataFrame(
        _sizes_of_pair(drawn(kind, size, random), drawn(kind, size, random))
        for _ in range(settings["pairs"])
    )


def _sizes_of_pair(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """What the product has, and what the factors would have it have."""
    largest, least = zip(
        *(np.linalg.svd(x, compute_uv=False)[[0, -1]] for x in (a @ b, a, b)),
        strict=True,
    )
    values = [np.abs(np.linalg.eigvals(x)) for x in (a @ b, a, b)]
    determinants = [abs(np.linalg.det(x)) for x in (a @ b, a, b)]
    row = {}
    for name, (product, *factors) in {
        "largest": largest,
        "least": least,
        "determinant": determinants,
        "radius": [x.max() for x in values],
    }.items():
        row |= {name: product, f"{name}_bound": factors[0] * factors[1]}
    row["least_eigenvalue"] = values[0].min()
    if min(least) > 0:
        row["condition"] = row["largest"] / row["least"]
        row["condition_bound"] = row["largest_bound"] / row["least_bound"]
    return {name: float(value) for name, value in row.items()}


def _along_depth(kind: str, seed: int, settings: Settings) -> list[dict[str, float]]:
    """Singular values of products, by depth.

    With A Q = Q' R in each step, the product is Q' times a triangular matrix, whose
    diagonal is kept as logarithms. The largest over the smallest element of it is at
    most the condition number, and it has no limit of precision. The product itself, of
    norm one, gives the condition number as long as float64 has it.
    """
    # One seed draws the same matrices, scaled or not.
    random = np.random.default_rng([seed, kind == "orthogonal"])
    size = settings["size"]
    q, product, logs = np.eye(size), np.eye(size), np.zeros(size)
    rows = []
    for depth in range(1, max(settings["depths"]) + 1):
        matrix = drawn(kind, size, random)
        q, r = np.linalg.qr(matrix @ q)
        logs += np.log10(np.abs(np.diag(r)))
        product = matrix @ product
        product /= np.linalg.norm(product)
        if depth in settings["depths"]:
            values = np.linalg.svd(product, compute_uv=False)
            is_known = values[-1] > 1e-12 * values[0]
            rows.append(
                {
                    "seed": seed,
                    "depth": depth,
                    "log10_condition": float(np.log10(values[0] / values[-1]))
                    if is_known
                    else np.nan,
                    "log10_ratio": float(np.ptp(logs)),
                    "log10_largest": float(logs.max()),
                    "log10_least": float(logs.min()),
                }
            )
    return rows


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A bound of pairs that holds, one that does not, and conditioning over depth."""
    figure, axes = panels(
        1,
        3,
        f"Products of matrices: of two ({settings['pairs']} pairs of each kind of size "
        f"{settings['pair_size']}), and of many of size {settings['size']}\n"
        f"(right: line and band, median and lowest to highest of {settings['seeds']} "
        "seeds)",
        width=3.9,
        height=3.8,
    )
    pairs = table[(table["product"] == "of two") & (table["matrices"] != "nilpotent")]
    for place, name, text in (
        (axes[0, 0], "condition", "cond(AB) / (cond A · cond B)"),
        (axes[0, 1], "radius", "ρ(AB) / (ρ(A) ρ(B))"),
    ):
        for number, (kind, rows) in enumerate(pairs.groupby("matrices", sort=False)):
            ratio = np.sort(rows[name] / rows[f"{name}_bound"])
            place.plot(
                ratio,
                (np.arange(len(ratio)) + 1) / len(ratio),
                label=kind,
                color=COLORS[number],
                linestyle=LINES[number],
            )
        place.axvline(1, color="gray", linewidth=1.2, label="bound")
        place.set(xscale="log", xlabel=text, ylabel="part of the pairs up to this")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    axes[0, 0].set_title("condition number")
    axes[0, 1].set_title("spectral radius")
    right = axes[0, 2]
    many = table[table["product"] == "of many"]
    for number, (kind, rows) in enumerate(many.groupby("matrices", sort=False)):
        by_depth = rows.groupby("depth")["log10_ratio"]
        line_with_band(
            right,
            list(by_depth.groups),
            by_depth.median(),
            by_depth.min(),
            by_depth.max(),
            number,
            kind,
            markersize=9 - 3 * number,
            linestyle="none",
        )
    depths = np.array(settings["depths"], float)
    right.plot(
        depths,
        depths * condition_growth(settings["size"]),
        color="black",
        linewidth=1,
        label="Newman's exponents",
    )
    right.axhline(-math.log10(np.finfo(np.float32).eps), color="gray", linestyle=":")
    right.text(
        depths[-1], 4, "1/ε of float32", ha="right", va="top", color="gray", fontsize=8
    )
    right.set(
        xscale="log",
        xlabel="depth (matrices)",
        ylabel="log₁₀ cond, lower bound by QR",
        title="conditioning over depth",
    )
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(-0.2, 1e5)
    right.minorticks_off()
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def condition_growth(size: int) -> float:
    """log10 of the condition number per Gaussian matrix of a size, in the long run."""
    return (log_growth(size, 1) - log_growth(size, size)) / math.log(10)


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Bounds that hold for all pairs, one that does not, and what depth makes of it."""
    pairs, slack = table[table["product"] == "of two"], 1 + settings["slack"]
    nilpotent = pairs[pairs["matrices"] == "nilpotent"].iloc[0]
    known = pairs.dropna(subset="condition")
    rounding = settings["slack"] * pairs["largest_bound"]
    broken = {
        "σmax(AB) ≤ σmax(A) σmax(B)": pairs["largest"] > slack * pairs["largest_bound"],
        "σmin(AB) ≥ σmin(A) σmin(B)": pairs["least"] < pairs["least_bound"] - rounding,
        "every eigenvalue of AB between the two": (
            pairs["radius"] > slack * pairs["largest_bound"]
        )
        | (pairs["least_eigenvalue"] < pairs["least_bound"] - rounding),
        "cond(AB) ≤ cond(A) cond(B)": known["condition"]
        > slack * known["condition_bound"],
        "|det AB| = |det A| |det B|": (
            pairs["determinant"] - pairs["determinant_bound"]
        ).abs()
        > settings["slack"] * pairs["largest_bound"] ** settings["pair_size"],
    }
    is_larger = pairs["radius"] > slack * pairs["radius_bound"]
    by_kind = is_larger.groupby(pairs["matrices"], sort=False).sum()
    many = table[table["product"] == "of many"]
    last = many[many["depth"] == many["depth"].max()].set_index("matrices")
    gaussian, scaled, orthogonal = (
        last.loc[[kind]].reset_index(drop=True) for kind in DEPTHS
    )
    depth = int(many["depth"].max())
    size = settings["size"]
    expected = depth * condition_growth(size)
    known_many = many[many["matrices"] != "orthogonal"].dropna(subset="log10_condition")
    # At depth one nothing has been multiplied: its condition is that of a matrix.
    alone = known_many[known_many["depth"] == 1]["log10_condition"]
    growth = depth * log_growth(size, 1) / math.log(10)
    difference = float((scaled["log10_ratio"] - gaussian["log10_ratio"]).abs().max())
    shift = depth * math.log10(size) / 2
    return [
        Claim(
            "The singular values of a product are bounded by those of its factors, and "
            "with them all eigenvalues, the condition number and the determinant.",
            f"Of {len(pairs)} pairs break it: "
            + "; ".join(f"{name}: {int(rows.sum())}" for name, rows in broken.items())
            + ".",
            judged([not rows.any() for rows in broken.values()]),
        ),
        Claim(
            "The spectral radius of a product is at most the product of the factors'.",
            f"Of [[0, 1], [0, 0]] and its transpose that product is "
            f"{nilpotent['radius_bound']:.3g}, and the radius of AB is "
            f"{nilpotent['radius']:.3g}. Of {settings['pairs']} pairs of a kind the "
            "radius is larger for "
            + ", ".join(
                f"{by_kind[kind]} ({by_kind[kind] / settings['pairs']:.0%}) {kind}"
                for kind in PAIRS
            )
            + ". Where the spectral radius is the largest singular value, as for "
            "symmetric matrices, the bound holds.",
            judged([by_kind[kind] == 0 for kind in ("nilpotent", *PAIRS)]),
        ),
        Claim(
            "Condition numbers of layers multiply up, so that products of Gaussian "
            "matrices are soon singular for every practical purpose.",
            f"log₁₀ of the condition number of one is {mean_and_spread(alone)}, of "
            f"{depth:,} at least {mean_and_spread(gaussian['log10_ratio'], 5)}; "
            f"Newman's exponents give {expected:.5g}. The largest is known in float64 "
            f"up to a depth of {int(known_many['depth'].max())}.",
            judged(
                [
                    bool((gaussian["log10_ratio"] > 16).all()),
                    bool((gaussian["log10_ratio"] / expected - 1).abs().max() < 0.05),
                ]
            ),
        ),
        Claim(
            "A smaller scale makes the product smaller, and no better conditioned.",
            f"Divided by √{size}, log₁₀ of the largest element of the diagonal is "
            f"{mean_and_spread(scaled['log10_largest'], 4)} instead of "
            f"{mean_and_spread(gaussian['log10_largest'], 4)} (closed forms "
            f"{growth - shift:.4g} and {growth:.4g}); that of the condition differs by "
            f"{difference:.1g}.",
            judged(
                [
                    bool((scaled["log10_largest"] < gaussian["log10_largest"]).all()),
                    difference < 1e-9 * depth,
                ]
            ),
        ),
        Claim(
            "Orthogonal layers keep all singular values at one, at any depth.",
            f"After {depth:,} of them the condition number is 1 + "
            f"{(10 ** orthogonal['log10_condition'] - 1).max():.1g} at most, and log₁₀ "
            f"of the elements of the diagonal is within "
            f"{orthogonal[['log10_largest', 'log10_least']].abs().to_numpy().max():.1g}"
            " of zero.",
            judged([bool((10 ** orthogonal["log10_condition"] - 1 < 1e-9).all())]),
        ),
    ]


ITEM = Item(
    title="Exercise 3: the product of two matrices, and of many",
    about=(
        "The exercise asks for bounds on the eigenvalues of a product, and what they "
        "have to do with conditioning. Here the bounds are tried in float64 on random "
        "pairs of four kinds, and followed through products of up to 10,000 matrices "
        "(five seeds). For Gaussian ones [Newman 1986]"
        "(https://doi.org/10.1007/BF01464284) has the exponents in closed form; "
        "orthogonal ones are what let [Xiao et al. 2018]"
        "(https://arxiv.org/abs/1806.05393) train networks of 10,000 layers."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
