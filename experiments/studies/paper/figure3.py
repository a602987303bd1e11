"""Figure 3: accuracy over the epochs at a large batch, without and with LARS."""

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import curves, grid


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left without LARS, right with it; the small batch is SGD's in both."""
    title = "Batch normalization: test accuracy over the epochs"
    figure, axes = grid.figure_of(2, title, settings)
    runs = {name: curves.by_size(table, name) for name in ("sgd", "lars")}
    labels = {name: settings["optimizers"][name]["label"] for name in runs}
    small, large = runs["sgd"]
    for panel, optimizer in zip(axes[0], runs, strict=True):
        for number, (name, size) in enumerate([("sgd", small), (optimizer, large)]):
            line = ("test_accuracy", number, f"batch {size}, {labels[name]}")
            curves.draw_over_epochs(panel, runs[name][size], *line)
        panel.set(ylabel="test accuracy", title=labels[optimizer], ylim=(0, 1))
        panel.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The accuracy of the large batch without and with LARS."""
    del settings
    of_sgd = curves.by_size(table, "sgd")
    small, large = of_sgd
    base, sgd, lars = (
        curves.at_end(rows, "test_accuracy")
        for rows in (*of_sgd.values(), curves.by_size(table, "lars")[large])
    )
    found = (
        f"At the end, in %: {grid.percent(base)} at batch {small}; at {large} "
        f"{grid.percent(sgd)} with SGD and {grid.percent(lars)} with LARS."
    )
    return [
        Claim(
            "Without LARS, batch 8192 stays below the small batch.",
            found,
            judged([sgd.mean() < base.min()]),
        ),
        Claim(
            "With LARS it ends where the small batch does, or above.",
            found,
            judged([lars.mean() >= base.min()]),
        ),
        Claim(
            "With LARS it ends above where it ends without.",
            found,
            judged([lars.mean() > sgd.mean(), lars.min() > sgd.max()]),
        ),
    ]


ITEM = curves.item(
    title="Figure 3: a large batch without and with LARS",
    about=(
        "The paper draws the test accuracy of AlexNet-BN at batch 8192, without and "
        "with LARS, beside that of batch 512. The proxy is that of Table 1 with batch "
        "normalization, with the best rate of each, chosen on validation images."
    ),
    cells=lambda settings: curves.cells_of(settings, ["sgd", "lars"]),
    draw=draw,
    claims=claims,
)
