"""Exercise 3: bounds on the product of two matrices, and of ten thousand."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.book.shared import log_growth
from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import line_over_seeds, look, panels
from experiments.studies.tables import Cell, combinations, mean_and_spread, only

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


def cells(settings: Settings) -> list[Cell]:
    """The counterexample, pairs of every kind, and long products of every kind."""
    return [
        *combinations(product=["of two"], matrices=["nilpotent", *PAIRS]),
        *combinations(product=["of many"], matrices=DEPTHS),
    ]


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """Sizes of products, in float64."""
    kind = cell["matrices"]
    if cell["product"] == "of many":
        seeds = range(settings["seeds"])
        tables = [_along_depth(kind, seed, settings) for seed in seeds]
        return pd.concat(tables, ignore_index=True)
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
    """Sizes of the product, and the products of those of the factors."""
    matrices = (a @ b, a, b)
    values = np.linalg.svd(matrices, compute_uv=False)
    eigenvalues = np.abs(np.linalg.eigvals(matrices))
    row = {}
    for name, (product, *factors) in {
        "largest": values[:, 0],
        "least": values[:, -1],
        "determinant": np.abs(np.linalg.det(matrices)),
        "radius": eigenvalues.max(axis=1),
    }.items():
        row |= {name: product, f"{name}_bound": factors[0] * factors[1]}
    row["least_eigenvalue"] = eigenvalues[0].min()
    if values.min() > 0:
        row["condition"] = row["largest"] / row["least"]
        row["condition_bound"] = row["largest_bound"] / row["least_bound"]
    return row


def _along_depth(kind: str, seed: int, settings: Settings) -> pd.DataFrame:
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
            condition = np.log10(values[0] / values[-1]) if is_known else np.nan
            rows.append((seed, depth, condition, np.ptp(logs), logs.max(), logs.min()))
    names = ("condition", "ratio", "largest", "least")
    return pd.DataFrame(rows, columns=["seed", "depth", *(f"log10_{x}" for x in names)])


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A bound of pairs that holds, one that does not, and conditioning over depth."""
    title = (
        f"Products of matrices: of two ({settings['pairs']} pairs of each kind of size "
        f"{settings['pair_size']}), and of many of size {settings['size']}\n"
        f"(right: line and band, median and lowest to highest of {settings['seeds']} "
        "seeds)"
    )
    figure, axes = panels(1, 3, title, width=3.9, height=3.8)
    left, middle, right = axes[0]
    for panel, name, title, ratio in (
        (left, "condition", "condition number", "cond(AB) / (cond A · cond B)"),
        (middle, "radius", "spectral radius", "ρ(AB) / (ρ(A) ρ(B))"),
    ):
        for number, kind in enumerate(PAIRS):
            rows = only(table, product="of two", matrices=kind)
            values = np.sort(rows[name] / rows[f"{name}_bound"])
            parts = (np.arange(len(values)) + 1) / len(values)
            panel.plot(values, parts, label=kind, **look(number) | {"marker": ""})
        panel.axvline(1, color="gray", linewidth=1.2, label="bound")
        panel.set(xscale="log", xlabel=ratio, ylabel="part of the pairs up to this")
        panel.set_title(title)
    for number, kind in enumerate(DEPTHS):
        rows = only(table, product="of many", matrices=kind)
        marks = {"markersize": 9 - 3 * number, "linestyle": "none"}
        columns = ("depth", "log10_ratio")
        line_over_seeds(right, rows, *columns, number, kind, "median", **marks)
    depths = np.array(settings["depths"], float)
    expected = depths * condition_growth(settings["size"])
    right.plot(depths, expected, "k", linewidth=1, label="Newman's exponents")
    right.axhline(-math.log10(np.finfo(np.float32).eps), color="gray", linestyle=":")
    right.text(
        depths[-1], 4, "1/ε of float32", ha="right", va="top", color="gray", fontsize=8
    )
    right.set_yscale("symlog", linthresh=1)
    right.set(xscale="log", xlabel="depth (matrices)")
    right.set(ylabel="log₁₀ cond, lower bound by QR", ylim=(-0.2, 1e5))
    right.set(title="conditioning over depth")
    right.minorticks_off()
    for panel in (left, right):
        panel.legend(fontsize=8, loc="upper left")
    return figure


def condition_growth(size: int) -> float:
    """log10 of the condition number per Gaussian matrix of a size, in the long run."""
    return (log_growth(size) - log_growth(size, size)) / math.log(10)


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Bounds that hold for all pairs, one that does not, and conditioning by depth."""
    pairs, slack = only(table, product="of two"), 1 + settings["slack"]
    count = settings["pairs"]
    largest = pairs["largest_bound"]
    least = pairs["least_bound"] - settings["slack"] * largest
    determinants = (pairs["determinant"] - pairs["determinant_bound"]).abs()
    broken = {
        "σmax(AB) ≤ σmax(A) σmax(B)": pairs["largest"] > slack * largest,
        "σmin(AB) ≥ σmin(A) σmin(B)": pairs["least"] < least,
        "every eigenvalue of AB between the two": (pairs["radius"] > slack * largest)
        | (pairs["least_eigenvalue"] < least),
        "cond(AB) ≤ cond(A) cond(B)": pairs["condition"]
        > slack * pairs["condition_bound"],
        "|det AB| = |det A| |det B|": determinants
        > settings["slack"] * largest ** settings["pair_size"],
    }
    nilpotent = only(pairs, matrices="nilpotent").iloc[0]
    is_larger = pairs["radius"] > slack * pairs["radius_bound"]
    by_kind = is_larger.groupby(pairs["matrices"], sort=False).sum()
    many = only(table, product="of many")
    size, depth = settings["size"], int(many["depth"].max())
    gaussian, scaled, orthogonal = (
        only(many, matrices=kind, depth=depth).reset_index() for kind in DEPTHS
    )
    expected = depth * condition_growth(size)
    known = many[many["matrices"] != "orthogonal"].dropna(subset="log10_condition")
    # At depth one nothing has been multiplied: its condition is that of a matrix.
    alone = only(known, depth=1)["log10_condition"]
    growth = depth * log_growth(size) / math.log(10)
    shift = depth * math.log10(size) / 2
    difference = (scaled["log10_ratio"] - gaussian["log10_ratio"]).abs().max()
    above_one = (10 ** orthogonal["log10_condition"] - 1).max()
    diagonal = orthogonal[["log10_largest", "log10_least"]].abs().to_numpy().max()
    return [
        judge(
            "The singular values of a product are bounded by those of its factors, and "
            "with them all eigenvalues, the condition number and the determinant.",
            f"Of {len(pairs)} pairs break it: "
            + "; ".join(f"{name}: {int(rows.sum())}" for name, rows in broken.items())
            + ".",
            *(not rows.any() for rows in broken.values()),
        ),
        judge(
            "The spectral radius of a product is at most the product of the factors'.",
            f"Of [[0, 1], [0, 0]] and its transpose that product is "
            f"{nilpotent['radius_bound']:.3g}, and the radius of AB is "
            f"{nilpotent['radius']:.3g}. Of {count} pairs of a kind the radius is "
            "larger for "
            + ", ".join(f"{by_kind[x]} ({by_kind[x] / count:.0%}) {x}" for x in PAIRS)
            + ". Where the spectral radius is the largest singular value, as for "
            "symmetric matrices, the bound holds.",
            *(by_kind[kind] == 0 for kind in ("nilpotent", *PAIRS)),
        ),
        judge(
            "Condition numbers of layers multiply up, so that products of Gaussian "
            "matrices are soon singular for every practical purpose.",
            f"log₁₀ of the condition number of one is {mean_and_spread(alone)}, of "
            f"{depth:,} at least {mean_and_spread(gaussian['log10_ratio'], 5)}; "
            f"Newman's exponents give {expected:.5g}. The largest is known in float64 "
            f"up to a depth of {int(known['depth'].max())}.",
            gaussian["log10_ratio"].min() > 16,
            (gaussian["log10_ratio"] / expected - 1).abs().max() < 0.05,
        ),
        judge(
            "A smaller scale makes the product smaller, and no better conditioned.",
            f"Divided by √{size}, log₁₀ of the largest element of the diagonal is "
            f"{mean_and_spread(scaled['log10_largest'], 4)} instead of "
            f"{mean_and_spread(gaussian['log10_largest'], 4)} (closed forms "
            f"{growth - shift:.4g} and {growth:.4g}); that of the condition differs by "
            f"{difference:.1g}.",
            (scaled["log10_largest"] < gaussian["log10_largest"]).all(),
            difference < 1e-9 * depth,
        ),
        judge(
            "Orthogonal layers keep all singular values at one, at any depth.",
            f"After {depth:,} of them the condition number is 1 + {above_one:.1g} at "
            f"most, and log₁₀ of the elements of the diagonal is within {diagonal:.1g} "
            "of zero.",
            above_one < 1e-9,
        ),
    ]


TITLE = "Exercise 3: the product of two matrices, and of many"
ABOUT = """The exercise asks for bounds on the eigenvalues of a product, and how they
depend on conditioning. Here the bounds are tried in float64 on random pairs of four
kinds, and followed through products of up to 10,000 matrices (five seeds). For Gaussian
ones [Newman 1986](https://doi.org/10.1007/BF01464284) has the exponents in closed form.
With orthogonal ones [Xiao et al. 2018](https://arxiv.org/abs/1806.05393) train networks
of 10,000 layers."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
