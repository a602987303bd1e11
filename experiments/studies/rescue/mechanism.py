"""Why it works: runs step by step, and how long recovery takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, median_and_spread
from experiments.studies.rescue.follow import follow
from experiments.studies.runs import (
    at_best_rate,
    network_of,
    results_of,
    setting_of_arm,
)
from experiments.studies.style import COLORS, line_over_seeds, panels
from experiments.training.training import num_kernels

PANELS = (
    ("loss", "training loss of a batch (nats),\nmedian of {smoothed} steps"),
    ("median_norm", "‖w‖ of the median kernel,\nrelative to the preserving norm"),
    ("turning_rank", "participation rank of what the\nupdate turns (median kernel)"),
    ("radial_part", "|cosine| between update\nand kernel (median kernel)"),
)

LOGARITHMIC = ("loss", "median_norm")

LOSSES = (1e-3, 1e2)
"""What is drawn of losses: exploding starts begin higher than all the rest, and a
network that has learnt its images loses nothing on most batches."""

SMOOTHED = 5
"""How many of the steps that are kept a drawn loss is the median of."""

RECOVERED = 0.5
"""A run has recovered once the loss of a batch is below this part of ln(classes), the
loss of a network that says nothing."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every start with every optimizer."""
    return [
        {"start": start, "optimizer": name}
        for start in settings["starts"]
        for name in settings["optimizers"]
    ]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Follows the runs at the rate that is best on validation data."""
    start = settings["starts"][cell["start"]]
    arm = settings["optimizers"][cell["optimizer"]]
    setting = setting_of_arm(settings, start["model"], arm)
    at = (settings["seeds"], start["init_scale"], start["profile"])
    runs = results_of(setting, arm["learning_rates"], *at)
    runs["validation_accuracy"] = runs["validation_accuracy"].mask(runs["diverged"], 0)
    best = at_best_rate(runs.assign(**cell), list(cell))
    rate = best["learning_rate"].iloc[0]
    followed = follow(setting, rate, *at)
    kept = followed["step"] % settings["every"] == 0
    return followed[kept].assign(learning_rate=rate)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A column a start; loss, norms and rank over the steps."""
    figure, grid = panels(
        len(PANELS),
        len(settings["starts"]),
        "What optimizers make of starts without a signal, step by step: medians of "
        f"{len(settings['seeds'])} seeds, bands from the lowest to the highest.\n"
        "Ticks at the top: steps at which waking moved the scale (first seed).",
        height=2.7,
        width=4.2,
    )
    for column, start in enumerate(settings["starts"]):
        of_start = table[table["start"] == start]
        for row, (name, label) in enumerate(PANELS):
            axes = grid[row, column]
            for number, optimizer in enumerate(settings["optimizers"]):
                rows = of_start[of_start["optimizer"] == optimizer]
                # What is not finite or, on a logarithmic axis, zero has no place.
                rows = rows[np.isfinite(rows[name])]
                if name == "loss":
                    rows = rows.assign(loss=_smoothed(rows).clip(*LOSSES))
                elif name in LOGARITHMIC:
                    rows = rows[rows[name] > 0]
                line_over_seeds(
                    axes,
                    rows,
                    "step",
                    name,
                    number,
                    settings["optimizers"][optimizer]["label"],
                    "median",
                    markevery=10,
                )
            if name in LOGARITHMIC:
                axes.set_yscale("log")
            if name == "loss":
                axes.set_ylim(*LOSSES)
                axes.set_title(start, fontsize=10)
                _mark_moves(axes, of_start, settings)
            if column == 0:
                axes.set_ylabel(label.format(smoothed=SMOOTHED * settings["every"]))
            if row == len(PANELS) - 1:
                axes.set_xlabel("step")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=9,
    )
    return figure


def _smoothed(rows: pd.DataFrame) -> pd.Series:
    """The loss of each run, a running median: single batches differ by a lot."""
    return rows.groupby("seed")["loss"].transform(
        lambda loss: loss.rolling(SMOOTHED, center=True, min_periods=1).median()
    )


def _mark_moves(axes: Any, rows: pd.DataFrame, settings: Settings) -> None:
    for number, optimizer in enumerate(settings["optimizers"]):
        mine = rows[rows["optimizer"] == optimizer]
        mine = mine[mine["seed"] == mine["seed"].min()]
        moved = mine["step"][mine["moves"].diff().fillna(mine["moves"]) > 0]
        axes.plot(
            moved,
            np.full(len(moved), 0.97),
            "|",
            transform=axes.get_xaxis_transform(),
            color=COLORS[number % len(COLORS)],
            markersize=9,
        )


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What waking did, and what the updates were like."""
    mine = table[table["optimizer"] == settings["recommended"]]
    other = table[table["optimizer"] == settings["layerwise"]]
    made = []
    for start in settings["starts"]:
        runs = mine[mine["start"] == start]
        moves = runs.groupby("seed")["moves"].max()
        last = [
            int(rows["step"][rows["moves"] == rows["moves"].max()].min())
            for _, rows in runs.groupby("seed")
        ]
        made.append(
            Claim(
                f"{start}: a signal passes, and waking acts no more, in the first "
                "quarter of the run.",
                f"{median_and_spread(moves)} moves; the last by step {max(last)} of "
                f"{settings['num_steps']}.",
                judged([max(last) < settings["num_steps"] // 4])
                if moves.any()
                else "untested",
            )
        )
        ranks = [_rank_of_steps(rows[rows["start"] == start]) for rows in (mine, other)]
        label = settings["optimizers"][settings["layerwise"]]["label"]
        made.append(
            Claim(
                f"{start}: orthogonal steps turn kernels in more directions.",
                "Participation rank of what the update of the median kernel turns, "
                "median over its steps: "
                + f", beside that of {label}: ".join(
                    median_and_spread(x) if len(x) else "0 steps are made"
                    for x in ranks
                )
                + ".",
                judged([ranks[0].median() > ranks[1].median()])
                if all(map(len, ranks))
                else "untested",
            )
        )
    return made


def _rank_of_steps(rows: pd.DataFrame) -> pd.Series:
    """The median over the steps that turn kernels at all, of each seed."""
    return rows[rows["turning_rank"] > 0].groupby("seed")["turning_rank"].median()


def recovery_cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every rate of every optimizer from every scale."""
    return [
        {"optimizer": name, "learning_rate": rate, "init_scale": scale}
        for name, arm in settings["optimizers"].items()
        for rate in arm["learning_rates"]
        for scale in settings["init_scales"]
    ]


def measure_recovery(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """The first step whose batch has a loss that says something; NaN if none has."""
    arm = settings["optimizers"][cell["optimizer"]]
    setting = setting_of_arm(settings, settings["model"], arm)
    model, data = network_of(setting)
    seeds = settings["seeds"]
    runs = follow(setting, cell["learning_rate"], seeds, cell["init_scale"], "all")
    recovered = runs[runs["loss"] < RECOVERED * math.log(data.num_classes)]
    first = recovered.groupby("seed")["step"].min()
    return pd.DataFrame(
        {
            "seed": seeds,
            "steps": first.reindex(seeds).to_numpy(),
            "least_steps": least_steps(
                arm,
                cell["learning_rate"],
                cell["init_scale"],
                num_kernels(model, data),
            ),
        }
    )


def least_steps(
    arm: Mapping[str, Any], learning_rate: float, init_scale: float, kernels: int
) -> float:
    """The bound: |ln s| over what the logarithm of a norm can change by in a step.

    That s⁻¹ is how much a kernel must grow is an assumption: one that has turned may
    need less.

    Args:
        arm: of `lars.lars` or `lars.polar`, with what the bound depends on.
        learning_rate: γ, constant.
        init_scale: s.
        kernels: how many the network has.
    """
    settings = arm["settings"]
    if arm["name"] == "lars":
        across = 1 / (1 - settings["momentum"])
        growth = learning_rate * settings["trust_coefficient"] * across
    else:
        growth = learning_rate / kernels * settings["radial_rate"]
    return abs(math.log(init_scale)) / growth


def draw_recovery(table: pd.DataFrame, settings: Settings) -> Figure:
    """Steps to recovery over the initial scale, with the bound of each rate."""
    figure, grid = panels(
        1,
        len(settings["optimizers"]),
        "Steps until the loss of a batch is below half of ln 10, from small starts "
        "(ReLU, two layers,\nconstant rate). Dashed: the bound |ln s| over the largest "
        "change of ln ‖w‖ in a step.",
        width=5,
    )
    for axes, (name, arm) in zip(
        grid.flat, settings["optimizers"].items(), strict=True
    ):
        for number, rate in enumerate(arm["learning_rates"]):
            rows = table[
                (table["optimizer"] == name) & (table["learning_rate"] == rate)
            ]
            line_over_seeds(
                axes,
                rows.dropna(),
                "init_scale",
                "steps",
                number,
                f"γ = {rate:g}",
                "median",
                linestyle="-",
            )
            bound = rows.groupby("init_scale")["least_steps"].first()
            axes.plot(
                bound.index,
                bound,
                "--",
                color=COLORS[number % len(COLORS)],
                linewidth=1,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("init_scale s (factor on kernels)")
        axes.set_ylabel("steps to recovery")
        axes.set_title(arm["label"], fontsize=10)
        axes.legend(fontsize=9)
    return figure


def recovery_claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether the bound holds, and how near to it recovery is."""
    made = []
    for name, arm in settings["optimizers"].items():
        rows = table[table["optimizer"] == name]
        finished = rows.dropna()
        ratios = finished["steps"] / finished["least_steps"]
        made.append(
            Claim(
                f"{arm['label']} recovers from every scale, and no faster than the "
                "bound.",
                f"{len(finished)} of {len(rows)} runs recover"
                + (
                    f", after {median_and_spread(ratios)} times the bound."
                    if len(finished)
                    else "."
                ),
                judged([len(finished) == len(rows), bool((ratios >= 1).all())]),
            )
        )
    return made


MECHANISM = Item(
    title="What happens, step by step",
    about="Single starts, each optimizer with the best of its rates there (on "
    "validation data): the loss, the kernels' norms relative to those that preserve "
    "variance, and updates in two parts. That along a kernel only changes its size: "
    "the cosine is 1 where there is nothing else. Of the rest, the participation rank "
    "(Σσ²)²/Σσ⁴ counts the directions that it turns the kernel in.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
RECOVERY = Item(
    title="How long recovery takes",
    about="The norm of a layer that moves by a given part of itself can only grow "
    "exponentially: from s times the norm that is needed, in |ln s| (1 − m)/(γη) steps "
    "of LARS with momentum m, at least. A step of polar LARS adds γκ/L at most to "
    "the logarithm of a norm, nearly: what turns is at right angles. What is needed is "
    "taken to be the norm of the usual start: a kernel that has turned may need less, "
    "and is then there before. Without waking.",
    cells=recovery_cells,
    measure=measure_recovery,
    draw=draw_recovery,
    claims=recovery_claims,
)
