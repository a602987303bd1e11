"""The book's last exercise: if some terms diverge, can this be fixed after the fact?"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.rescue import plots, scales as rescue
from experiments.studies.runs import results_of, setting_of_arm

LARS = ("paper", "recommended")
"""The settings that are judged: the paper's own, and those that a search has found."""

NOT_LAYERWISE = ("sgd", "adam")
"""What they have to be ahead of, beyond the spread of seeds."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every initial scale of every optimizer."""
    return [
        {"optimizer": name, "init_scale": scale}
        for name in settings["optimizers"]
        for scale in settings["init_scales"]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains with every rate and seed from kernels times the scale."""
    arm = settings["optimizers"][cell["optimizer"]]
    return results_of(
        setting_of_arm(settings, settings["model"], arm),
        arm["learning_rates"],
        settings["seeds"],
        cell["init_scale"],
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """The rescue map: accuracy against the initial scale, a panel an optimizer."""
    model = settings["model"]
    return plots.rescue_figure(
        table,
        settings["reference"],
        _labels(settings),
        f"{model['name'].upper()} of {model['depth']} layers ({model['activation']}) "
        f"on {settings['dataset']}, {settings['num_steps']} steps of "
        f"{settings['batch_size']}.",
    )


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """How many scales each LARS rescues, beside what has one rate for all layers."""
    counts = rescue.summary(table, settings["reference"])
    labels = _labels(settings)
    peers = [name for name in counts.index if name in NOT_LAYERWISE]
    scales = int(counts["scales"].iloc[0])
    extent = f"{min(settings['init_scales']):g} to {max(settings['init_scales']):g}"

    def row_of(name: str, column: str) -> str:
        row = counts.loc[name]
        return (
            f"{labels[name]} {row[column]:.0f} ({row[f'{column}_lowest']:.0f} to "
            f"{row[f'{column}_highest']:.0f})"
        )

    def claim(lars: str, says: str, column: str) -> Claim:
        row = counts.loc[lars]
        ahead = max(counts.loc[name, f"{column}_highest"] for name in peers)
        others = [name for name in counts.index if name != lars]
        return Claim(
            f"{says}: {labels[lars]}.",
            f"Of {scales} scales from {extent}, rescued: {row_of(lars, column)}; "
            + "; ".join(row_of(str(name), column) for name in others)
            + ".",
            judged([row[column] == scales, row[f"{column}_lowest"] > ahead]),
        )

    return [
        claim(lars, says, column)
        for says, column in (
            (
                "Layerwise rates fix what diverges after the fact, with a learning "
                "rate for each start",
                "rescued_best_rate",
            ),
            ("They do with one learning rate for all starts", "rescued_one_rate"),
        )
        for lars in LARS
        if lars in counts.index
    ]


def _labels(settings: Settings) -> dict[str, str]:
    return {name: arm["label"] for name, arm in settings["optimizers"].items()}


ITEM = Item(
    title="Exercise 4: can we fix this after the fact?",
    about=(
        "If we know that some terms diverge, can we fix this after the fact? The book "
        "points to LARS. A three-layer ReLU network on real digits starts from He's "
        "kernels times a scale from 10⁻⁸ to 10⁸; six optimizers have the same steps, "
        "batches, number of learning rates and three seeds. A scale is rescued where "
        "the median test accuracy is at least 0.95 of what SGD reaches at scale 1; in "
        "brackets are the counts if one seed alone were judged. The recommended "
        "setting is the best of several on validation data, as are those of all but "
        "the paper. [The rescue map](rescue.md) tells more."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
