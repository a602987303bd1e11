"""Beyond the paper: LARS and tuned peers, from small batches to large ones."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.paper import grid


def _item(model: str, optimizers: Sequence[str], title: str, about: str) -> Item:
    """The comparison of LARS with other optimizers on one of the models."""
    return grid.item(
        title=title,
        about=about,
        cells=lambda settings: grid.cells_of(
            settings, [model], optimizers, settings["batch_sizes"]
        ),
        draw=draw,
        claims=claims,
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against batch size."""
    title = "Accuracy against batch size at equal epochs, best rate of each"
    return grid.accuracy_figure(table, settings, title)


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether LARS is ahead of every other optimizer, beyond the spread of seeds."""
    best = grid.chosen(table)
    made = []
    for size, rows in best.groupby("batch_size"):
        tried = table[table["batch_size"] == size].groupby("optimizer")["learning_rate"]
        found = []
        means = rows.groupby("optimizer")["accuracy"].mean()
        for name in means.sort_values(ascending=False, kind="stable").index:
            mine = rows[rows["optimizer"] == name]
            rate = mine["learning_rate"].iloc[0]
            edges = {
                tried.min()[name]: ", its lowest",
                tried.max()[name]: ", its highest",
            }
            found.append(
                f"{settings['optimizers'][name]['label']} "
                f"{grid.percent(mine['accuracy'])} (rate {rate:g}{edges.get(rate, '')})"
            )
        of_lars = rows["optimizer"] == "lars"
        lowest = rows[of_lars]["accuracy"].min()
        highest = rows[~of_lars].groupby("optimizer")["accuracy"].max()
        made.append(
            Claim(
                f"At batch {size} LARS is better than the others, if each has the same "
                "number of learning rates to choose from.",
                f"Test accuracy in %: {'; '.join(found)}.",
                judged([lowest > x for x in highest]),
            )
        )
    return made


_ABOUT = (
    "The paper compares LARS with SGD whose rate grows with the batch. Nado et al. "
    "([2021](https://arxiv.org/abs/2102.06356)) found that a well-tuned baseline does "
    "as well. Here optimizers train a miniature of AlexNet on Fashion-MNIST for "
    "equally many epochs, each with four learning rates for every batch size, three "
    "seeds, and the same warm-up and decay; rates are chosen on validation images. The "
    "rates of SGD grow in proportion to the batch, those of the others do not. "
)

ITEM = _item(
    "batch_norm",
    ("sgd", "nesterov", "lars", "lamb"),
    "Beyond the paper: tuned peers, with batch normalization",
    _ABOUT + "This is the network with batch normalization.",
)

PLAIN = _item(
    "plain",
    ("sgd", "nesterov", "lars"),
    "Beyond the paper: tuned peers, without batch normalization",
    _ABOUT + "This is the network without batch normalization, and without LAMB.",
)
