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

PANELS = {
    "loss": "training loss of a batch (nats),\nmedian of {smoothed} steps",
    "median_norm": "‖w‖ of the median kernel,\nrelative to the preserving norm",
    "turning_rank": "participation rank of the part\nacross the kernel (median kernel)",
    "radial_part": "|cosine| between update\nand kernel (median kernel)",
}

LOGARITHMIC = ("loss", "median_norm")

LOSSES = (1e-3, 1e2)
"""Drawn losses are clipped to these: exploding starts begin higher than all the rest,
and a network that has learnt its images loses nothing on most batches."""

SMOOTHED = 5
"""How many of the steps that are kept a drawn loss is the median of."""

RECOVERED = 0.5
"""A run has recovered once the loss of a batch is below this part of ln(classes), the
loss of a constant guess."""


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
    for column, (axes_of_start, start) in enumerate(
        zip(grid.T, settings["starts"], strict=True)
    ):
        of_start = table[table["start"] == start]
        for axes, (name, label) in zip(axes_of_start, PANELS.items(), strict=True):
            for number, (optimizer, arm) in enumerate(settings["optimizers"].items()):
                rows = of_start[of_start["optimizer"] == optimizer]
                # An infinite value has no place, nor has zero on a logarithmic axis.
                rows = rows[np.isfinite(rows[name])]
                if name == "loss":
                    rows = rows.assign(loss=_smoothed(rows).clip(*LOSSES))
                elif name in LOGARITHMIC:
                    rows = rows[rows[name] > 0]
                line = (rows, "step", name, number, arm["label"], "median")
                line_over_seeds(axes, *line, markevery=10)
            if name in LOGARITHMIC:
                axes.set_yscale("log")
            if column == 0:
                axes.set_ylabel(label.format(smoothed=SMOOTHED * settings["every"]))
        axes_of_start[0].set_ylim(*LOSSES)
        axes_of_start[0].set_title(start, fontsize=10)
        _mark_moves(axes_of_start[0], of_start, settings)
        axes_of_start[-1].set_xlabel("step")
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
    first = rows[rows["seed"] == rows["seed"].min()]
    for number, optimizer in enumerate(settings["optimizers"]):
        mine = first[first["optimizer"] == optimizer]
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
    """When waking ends, and in how many directions updates turn kernels."""
    steps, layerwise = settings["num_steps"], settings["layerwise"]
    label = settings["optimizers"][layerwise]["label"]
    made = []
    for start in settings["starts"]:
        of_start = table[table["start"] == start]
        runs, others = (
            of_start[of_start["optimizer"] == name]
            for name in (settings["recommended"], layerwise)
        )
        moves = runs.groupby("seed")["moves"].max()
        at_last = runs[runs["moves"] == runs["seed"].map(moves)]
        last = int(at_last.groupby("seed")["step"].min().max())
        made.append(
            Claim(
                f"{start}: a signal passes before a quarter of the run is over, and "
                "waking acts no more.",
                f"Waking moves the scale {median_and_spread(moves)} times, the last "
                f"time by step {last} of {steps}.",
                judged([last < steps // 4]) if moves.any() else "untested",
            )
        )
        ranks = [_rank_of_steps(rows) for rows in (runs, others)]
        mine, other = (
            median_and_spread(x) if len(x) else "0 steps turn it" for x in ranks
        )
        made.append(
            Claim(
                f"{start}: orthogonal steps turn kernels in more directions.",
                "Participation rank of the part of an update across the median kernel, "
                f"median over the steps: {mine}; with {label}: {other}.",
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
    """The first step whose batch has a loss that has recovered; NaN if none has."""
    arm = settings["optimizers"][cell["optimizer"]]
    setting = setting_of_arm(settings, settings["model"], arm)
    model, data = network_of(setting)
    seeds = settings["seeds"]
    runs = follow(setting, cell["learning_rate"], seeds, cell["init_scale"], "all")
    recovered = runs[runs["loss"] < RECOVERED * math.log(data.num_classes)]
    first = recovered.groupby("seed")["step"].min()
    kernels = num_kernels(model, data)
    bound = least_steps(arm, cell["learning_rate"], cell["init_scale"], kernels)
    steps = first.reindex(seeds).to_numpy()
    return pd.DataFrame({"seed": seeds, "steps": steps, "least_steps": bound})


def least_steps(
    arm: Mapping[str, Any], learning_rate: float, init_scale: float, kernels: int
) -> float:
    """The bound: in fewer steps a norm cannot grow from s times what is needed to that.

    That it is needed is an assumption: a kernel that has turned may do with less. The
    arm is of `lars.lars` or `lars.polar`, with the settings that the bound has.
    """
    settings = arm["settings"]
    if arm["name"] == "lars":
        across = 1 / (1 - settings["momentum"])
        growth = learning_rate * settings["trust_coefficient"] * across
        return -math.log(init_scale) / growth
    # ρ ← exp(γ' κ) ρ + γ' ρ̄ at most, from s ρ̄ to ρ̄
    step = learning_rate / kernels
    growth = step * settings["radial_rate"]
    added = step / math.expm1(growth)
    return math.log((1 + added) / (init_scale + added)) / growth


def draw_recovery(table: pd.DataFrame, settings: Settings) -> Figure:
    """Steps to recovery over the initial scale, with the bound of each rate."""
    arms = settings["optimizers"]
    figure, grid = panels(
        1,
        len(arms),
        "Steps until the loss of a batch is below half of ln 10, from small starts "
        "(ReLU, two layers,\nconstant rate). Dashed: in fewer steps a norm cannot grow "
        "from s times the usual one to that.",
        width=5,
    )
    for axes, (name, arm) in zip(grid.flat, arms.items(), strict=True):
        of_arm = table[table["optimizer"] == name]
        for number, (rate, rows) in enumerate(of_arm.groupby("learning_rate")):
            line = (rows.dropna(), "init_scale", "steps", number, f"γ = {rate:g}")
            line_over_seeds(axes, *line, "median", linestyle="-")
            bound = rows.groupby("init_scale")["least_steps"].first()
            color = COLORS[number % len(COLORS)]
            axes.plot(bound.index, bound, "--", color=color, linewidth=1)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="init_scale s (factor on kernels)",
            ylabel="steps to recovery",
        )
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
        near = (
            f", in {median_and_spread(ratios)} times its steps" if len(ratios) else ""
        )
        made.append(
            Claim(
                f"{arm['label']}: every run recovers, and none in fewer steps than the "
                "bound.",
                f"{len(finished)} of {len(rows)} runs recover{near}.",
                judged([len(finished) == len(rows), bool((ratios >= 1).all())]),
            )
        )
    return made


MECHANISM = Item(
    title="What happens, step by step",
    about="Single starts, each optimizer with the best of its rates there (on "
    "validation data). The picture has the loss, the norms of kernels relative to "
    "those that preserve variance, and two parts of each update. The part along a "
    "kernel only changes its size: the cosine is 1 where there is no other part. The "
    "part across it turns the kernel, and its participation rank (Σσ²)²/Σσ⁴ counts in "
    "how many directions.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
RECOVERY = Item(
    title="How long recovery takes",
    about="A layer that moves by a given part of its own norm can only grow "
    "exponentially. To grow from s times the norm that is needed, LARS with momentum m "
    "takes at least |ln s| (1 − m)/(γη) steps. A step of polar LARS multiplies a norm "
    "by exp(γκ/L) at most, and adds γ/L of the usual norm at most: so the bound hardly "
    "depends on s. The norm of the usual start is taken for the one that is needed. A "
    "kernel that has turned may need less, and recover earlier. Without waking.",
    cells=recovery_cells,
    measure=measure_recovery,
    draw=draw_recovery,
    claims=recovery_claims,
)
