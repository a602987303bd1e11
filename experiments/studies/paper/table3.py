"""Table 3: the same batches with LARS."""

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import grid

PRINTED = {
    "plain": ("AlexNet", "58.7, 58.5, 58.2, 55.0% at 512, 4K, 8K, 16K"),
    "batch_norm": ("AlexNet-BN", "60.2, 60.4, 60.1, 59.3%"),
}


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Accuracy against batch size, a panel a model."""
    title = "LARS and SGD: accuracy against batch size at equal epochs"
    return grid.accuracy_figure(table, settings, title)


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How far LARS keeps the accuracy, and how far SGD does."""
    sizes = sorted(settings["batch_sizes"])
    smallest, (large, largest) = sizes[0], sizes[-2:]
    best = grid.chosen(table).groupby(["model", "optimizer", "batch_size"])
    at = {key: rows["accuracy"] for key, rows in best}

    def kept(model: str) -> Claim:
        name, printed = PRINTED[model]
        lars = {size: at[model, "lars", size] for size in sizes}
        loss, most = (
            100 * (lars[smallest].mean() - lars[size].mean())
            for size in (large, largest)
        )
        row = ", ".join(f"{grid.percent(x)} at {size}" for size, x in lars.items())
        return Claim(
            f"{name} keeps its accuracy with LARS up to a batch of 8192, within 2 "
            f"points, and loses less than 5 at 16384 ({printed}).",
            f"Test accuracy in %: {row}. This is {loss:.3g} points less at {large} "
            f"than at {smallest}, and {most:.3g} less at {largest}.",
            judged([loss < 2, most < 5]),
        )

    def better(model: str) -> Claim:
        both = {
            size: (at[model, "lars", size], at[model, "sgd", size])
            for size in (largest, large)
        }
        return Claim(
            "At large batches LARS is better than SGD with linear scaling, "
            f"{grid.TITLES[model]}.",
            "Test accuracy in %: "
            + "; ".join(
                f"LARS {grid.percent(lars)} and SGD {grid.percent(sgd)} at batch {size}"
                for size, (lars, sgd) in both.items()
            )
            + ".",
            judged([lars.min() > sgd.max() for lars, sgd in both.values()]),
        )

    return [*map(kept, PRINTED), *map(better, settings["models"])]


ITEM = grid.item(
    title="Table 3: LARS at large batches",
    about=(
        "The paper trains AlexNet and AlexNet-BN with LARS at batches of 512 to 32K. "
        "The proxy is that of Table 1, with the same budget. The largest batch leaves "
        "it a few dozen steps, where the paper had thousands, so that it loses more "
        "accuracy. The proxy can only tell how LARS compares with SGD. The last two "
        "items also have rates of SGD that are tuned for each batch."
    ),
    cells=lambda settings: grid.cells_of(
        settings, settings["models"], ["sgd", "lars"], settings["batch_sizes"]
    ),
    draw=draw,
    claims=claims,
)
