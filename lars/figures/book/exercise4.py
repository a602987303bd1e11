"""The book's last exercise: if some terms diverge, can this be fixed after the fact?"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lars import plots, rescue
from lars.figures.item import Claim, Item, Settings, judged
from lars.figures.runs import Setting, results_of

LARS = "recommended"


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
    setting = Setting(
        dataset=settings["dataset"],
        model=settings["model"],
        optimizer={name: arm[name] for name in ("name", "settings")},
        schedule=settings["schedule"],
        num_steps=settings["num_steps"],
        batch_size=settings["batch_size"],
    )
    return results_of(
        setting, arm["learning_rates"], settings["seeds"], cell["init_scale"]
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
    """How many scales each optimizer rescues."""
    counts = rescue.summary(table, settings["reference"])
    labels = _labels(settings)
    lars = counts.loc[LARS]
    others = counts.drop(index=LARS)
    scales = int(lars.scales)

    def all_of(column: str) -> str:
        return "; ".join(
            f"{labels[str(name)]} {row[column]:.0f} ({row[f'{column}_lowest']:.0f} to "
            f"{row[f'{column}_highest']:.0f})"
            for name, row in counts.iterrows()
        )

    return [
        Claim(
            "Layerwise adaptive rates fix an initialization that makes terms vanish or "
            "explode, if the learning rate is chosen for it.",
            f"Of {scales} scales from {min(settings['init_scales']):g} to "
            f"{max(settings['init_scales']):g}, rescued with the best rate for each: "
            f"{all_of('rescued_best_rate')}.",
            judged(
                [
                    lars.rescued_best_rate == scales,
                    lars.rescued_best_rate > others.rescued_best_rate.max(),
                ]
            ),
        ),
        Claim(
            "They fix it without knowing how bad the initialization is: with one rate "
            "for all scales.",
            f"Rescued with one rate: {all_of('rescued_one_rate')}.",
            judged(
                [
                    lars.rescued_one_rate == scales,
                    lars.rescued_one_rate > others.rescued_one_rate.max(),
                ]
            ),
        ),
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
        "brackets are the counts if one seed alone were judged. "
        "[The rescue map](rescue.md) tells more."
    ),
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
