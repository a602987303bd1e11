"""Figure 3: accuracy over the epochs at a large batch, without and with LARS."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import curves
from experiments.studies.style import panels


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """SGD and LARS at all batch sizes that there are curves of."""
    return curves.cells_of(settings, ["sgd", "lars"])


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left without LARS, right with it; the small batch is SGD's in both."""
    figure, axes = panels(
        1,
        2,
        "Batch normalization: test accuracy over the epochs\n"
        f"Lines: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
    )
    small, large = curves.sizes_of(settings, "sgd")
    for panel, optimizer in zip(axes[0], ("sgd", "lars"), strict=True):
        label = settings["optimizers"][optimizer]["label"]
        for number, (name, size) in enumerate([("sgd", small), (optimizer, large)]):
            curves.draw_over_epochs(
                panel,
                curves.rows_of(table, name, size),
                "test_accuracy",
                number,
                f"batch {size}, {settings['optimizers'][name]['label']}",
            )
        panel.set(xlabel="epochs", ylabel="test accuracy", title=label, ylim=(0, 1))
        panel.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What the large batch reaches without and with LARS."""
    small, large = curves.sizes_of(settings, "sgd")
    base, sgd, lars = (
        100 * curves.at_end(curves.rows_of(table, name, size), "test_accuracy")
        for name, size in (("sgd", small), ("sgd", large), ("lars", large))
    )
    found = (
        f"At the end, in %: {mean_and_spread(base)} at batch {small}; at {large} "
        f"{mean_and_spread(sgd)} with SGD and {mean_and_spread(lars)} with LARS."
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


ITEM = Item(
    title="Figure 3: a large batch without and with LARS",
    about=(
        "The paper draws the test accuracy of AlexNet-BN at batch 8192, without and "
        "with LARS, beside that of batch 512. The proxy is that of Table 1 with batch "
        "normalization, with the best rate of each, chosen on validation images."
    ),
    cells=cells,
    measure=curves.measure,
    draw=draw,
    claims=claims,
    kept_in=curves.KEPT_IN,
)
