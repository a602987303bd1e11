"""The book's one figure: the sigmoid and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judge
from experiments.studies.style import line_with_band, look, panels
from experiments.studies.tables import Cell, combinations


def cells(settings: Settings) -> list[Cell]:
    """Every x, in one part."""
    return combinations(function=["sigmoid"])


def measure(cell: Cell, settings: Settings) -> pd.DataFrame:
    """The sigmoid and its derivative by automatic differentiation, in float32."""
    x = jnp.linspace(-settings["x_max"], settings["x_max"], settings["points"])
    gradient = jax.vmap(jax.grad(jax.nn.sigmoid))(x)
    return pd.DataFrame({"x": x, "sigmoid": jax.nn.sigmoid(x), "gradient": gradient})


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the book's figure; right the most that a product of gradients can be."""
    figure, axes = panels(1, 2, "The sigmoid and its gradient")
    left, right = axes[0]
    for number, name in enumerate(("sigmoid", "gradient")):
        left.plot(table["x"], table[name], label=name, **look(number) | {"marker": ""})
    left.set(xlabel="x", ylabel="value")
    left.legend()
    depths = np.arange(1, settings["max_layers"] + 1)
    bound = table["gradient"].max() ** depths
    line_with_band(right, depths, bound, bound, bound, 0, "product of maxima")
    right.set(xlabel="sigmoid layers", ylabel="largest factor of the gradient")
    right.set_yscale("log")
    right.legend()
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The gradient vanishes at both ends, and many layers make it smaller still."""
    peak = table.loc[table["gradient"].idxmax()]
    end = table.iloc[-1]
    layers = settings["max_layers"]
    return [
        judge(
            "The gradient vanishes for inputs that are large and for those that are "
            "small.",
            f"It is {peak.gradient:.4f} at x = {abs(peak.x):.2f} and "
            f"{end.gradient:.4g} at x = ±{end.x:.4g}.",
            end.gradient < peak.gradient / 100,
            abs(peak.x) < 0.01,
        ),
        judge(
            "Through many layers the gradient may vanish, unless the inputs of the "
            "sigmoids are near zero.",
            f"{layers} layers multiply it by {end.gradient**layers:.3g} where the "
            f"inputs are ±{end.x:g}, and by {peak.gradient**layers:.3g} where they are "
            "0: near zero it vanishes too, unless the weights make up for a factor of "
            f"{peak.gradient:.4f} a layer.",
            end.gradient**layers < 1e-3,
            peak.gradient**layers > 1e-3,
        ),
    ]


TITLE = "The sigmoid and its gradient"
ABOUT = """The book draws the sigmoid and its derivative from −8 to 8. Here the same is
computed by automatic differentiation in float32. Beside it is the largest factor that
several layers multiply a gradient by: the derivative is at most 1/4."""
ITEM = Item(TITLE, ABOUT, cells, measure, draw, claims)
