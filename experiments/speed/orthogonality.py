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
MUON = "5 steps of Muon"


def measure(rows: int = 512, columns: int = 256) -> pd.DataFrame:
    """The singular values that float32 reaches, beside those of a decomposition.

    Of a matrix whose singular values lie evenly in their logarithm, over four decades.
    The float64 decomposition says which singular vectors they belong to.

    Returns:
        A row for each singular value and method: before (of the Frobenius
        norm) and after; and the largest element of U^T O V beside the diagonal.
    """
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, columns)))[0] for n in (rows, columns))
    values = np.geomspace(1, 1e-4, columns)
    values /= np.linalg.norm(values)
    x = (u * values @ v.T).astype(np.float32)
    tables = []
    for method, function in _methods().items():
        factor = np.asarray(jax.jit(function)(x), np.float64)
        inner = u.T @ factor @ v
        reached = np.diag(inner)
        beside = np.abs(inner - np.diag(reached)).max()
        tables.append(
            pd.DataFrame({"method": method, "before": values, "after": reached}).assign(
                beside=beside
            )
        )
    return pd.concat(tables, ignore_index=True)


def _methods() -> dict[str, Callable[[jax.Array], jax.Array]]:
    muon = scale_by_muon(beta=0.0, nesterov=False)  # its momentum is then the gradient
    ours = {_name(n): functools.partial(orthogonalize, steps=n) for n in STEPS}
    return {MUON: lambda x: muon.update(x, muon.init(x))[0], **ours}


def _name(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def overview_table(table: pd.DataFrame) -> pd.DataFrame:
    """For each number of steps what singular values from ℓ on become."""
    lowest = {_name(n): smallest_aim(n) for n in STEPS} | {MUON: smallest_aim(5)}
    rows = []
    for method, values in table.groupby("method", sort=False):
        aim = lowest[str(method)]
        reached = values.loc[values["before"] >= aim, "after"]
        interval = (f"{reached.min():.5f}", f"{reached.max():.5f}")
        rows.append((method, f"{aim:.2g}", *interval, f"{values['beside'].max():.0e}"))
    columns = ["", "from ℓ =", "smallest", "largest", "beside the diagonal"]
    return pd.DataFrame(rows, columns=columns)


def markdown(table: pd.DataFrame) -> str:
    """`overview_table` as Markdown."""
    return pages.markdown(overview_table(table))


def draw(table: pd.DataFrame) -> Figure:
    """What singular values become, a line for each number of steps."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    shades = mpl.colormaps["viridis"](np.linspace(0.9, 0.0, len(STEPS)))
    looks = {_name(n): {"color": shades[n - 1]} for n in STEPS}
    looks[MUON] = {"color": "#D55E00", "linestyle": "--"}
    for method, rows in table.groupby("method", sort=False):
        look = looks[str(method)]
        axes.semilogx(rows["before"], rows["after"], label=method, **look)
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
