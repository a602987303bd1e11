"""How close orthogonalized steps bring singular values to one, step by step."""

import functools
from collections.abc import Callable

import jax
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from optax.contrib import scale_by_muon

from experiments.results import pages
from lars.spectral import orthogonalize, smallest_aim

STEPS = range(1, 9)
MUON = "5 of Muon"


def measure(rows: int = 512, columns: int = 256) -> pd.DataFrame:
    """The singular values that float32 reaches, beside those of a decomposition.

    Of a matrix whose singular values lie evenly in their logarithm, from 1e-4 to 0.9 of
    its norm. The float64 decomposition says which singular vectors they belong to.

    Returns:
        A row for each singular value of each number of steps: before (of the Frobenius
        norm) and after; and the largest element of U^T O V beside the diagonal.
    """
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, columns)))[0] for n in (rows, columns))
    values = np.geomspace(1, 1e-4, columns)
    values[1:] *= 0.45 / np.linalg.norm(values[1:])
    values /= np.linalg.norm(values)
    x = (u * values @ v.T).astype(np.float32)
    tables = []
    for method, function in _methods().items():
        factor = np.asarray(jax.jit(function)(x), np.float64)
        inner = u.T @ factor @ v
        reached = np.diag(inner)
        beside = np.abs(inner - np.diag(reached)).max()
        tables.append(
            pd.DataFrame({"steps": method, "before": values, "after": reached}).assign(
                beside=beside
            )
        )
    return pd.concat(tables, ignore_index=True)


def _methods() -> dict[str, Callable[[jax.Array], jax.Array]]:
    muon = scale_by_muon(beta=0.0, nesterov=False)  # its momentum is then the gradient
    ours = {str(n): functools.partial(orthogonalize, steps=n) for n in STEPS}
    return {MUON: lambda x: muon.update(x, muon.init(x))[0], **ours}


def overview_table(table: pd.DataFrame) -> pd.DataFrame:
    """For each number of steps what singular values from ℓ on become."""
    rows = []
    for steps, of_steps in table.groupby("steps", sort=False):
        number = 5 if steps == MUON else int(str(steps))
        lowest = smallest_aim(number)
        reached = of_steps.loc[of_steps["before"] >= lowest, "after"]
        rows.append(
            (
                *(
                    steps,
                    f"{lowest:.2g}",
                    f"{reached.min():.5f}",
                    f"{reached.max():.5f}",
                ),
                f"{of_steps['beside'].iloc[0]:.0e}",
            )
        )
    columns = ["steps", "from ℓ =", "smallest", "largest", "beside the diagonal"]
    return pd.DataFrame(rows, columns=columns)


def markdown(table: pd.DataFrame) -> str:
    """`overview_table` as Markdown."""
    return pages.markdown(overview_table(table))


def draw(table: pd.DataFrame) -> Figure:
    """What singular values become, a line for each number of steps."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    shades = mpl.colormaps["viridis"](np.linspace(0.9, 0.0, len(STEPS)))
    for steps, rows in table.groupby("steps", sort=False):
        if steps == MUON:
            look = {"color": "#D55E00", "linestyle": "--", "label": "5 steps of Muon"}
        else:
            look = {"color": shades[int(str(steps)) - 1], "label": f"{steps} steps"}
        axes.semilogx(rows["before"], rows["after"], **look)
    axes.axhline(1, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("singular value before, of the Frobenius norm")
    axes.set_ylabel("singular value after")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False)
    axes.set_title(
        "Singular values of an orthogonalized step. Dotted: one, the aim.",
        fontsize=10.5,
    )
    return figure
