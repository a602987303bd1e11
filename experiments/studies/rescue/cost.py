"""What training with each optimizer costs: the same steps, timed in turns."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.data import Data
from experiments.studies.item import Claim, Item, Settings, judged, median_and_spread
from experiments.studies.runs import (
    network_of,
    setting_of_arm,
    shared_among,
    stacked_runs,
    training_of,
)
from experiments.studies.style import COLORS, MARKERS, panels
from experiments.training.training import Run, sweep_over


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """A part a depth: what is compared is timed in the same minutes."""
    return [{"depth": depth} for depth in settings["depths"]]


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains with every optimizer in turn, as often as there are rounds.

    Returns:
        A row an ``optimizer`` and ``round``: ``milliseconds`` a step, of one run on
        each device.
    """
    model = {**settings["model"], "depth": cell["depth"]}
    calls = {
        name: _prepared(settings, model, arm)
        for name, arm in settings["optimizers"].items()
    }

    def milliseconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start) / settings["num_steps"]

    return pd.DataFrame(
        {"optimizer": name, "round": number, "milliseconds": milliseconds(call)}
        for number in range(settings["rounds"])
        for name, call in calls.items()
    )


def _prepared(
    settings: Settings, model: Mapping[str, Any], arm: Mapping[str, Any]
) -> Callable[[], Any]:
    """The first steps from scale 1 with the smallest rate, compiled."""
    setting = setting_of_arm(settings, model, arm)
    network, data = network_of(setting)
    training = training_of(setting, network)

    def first_steps(run: Run, data: Data) -> tuple[jax.Array]:
        # Unlike `train`, makes all of them whatever becomes of the weights.
        start = training.init(run, data)
        return (training.advance(start, run, data, setting.num_steps)[1],)

    devices = jax.devices()
    pairs = [(min(arm["learning_rates"]), seed) for seed in range(len(devices))]
    runs = stacked_runs(network, data, pairs, 1.0, "all")
    compute = sweep_over(first_steps, devices, 1)
    call = functools.partial(shared_among, devices, compute, runs, data)
    call()
    return call


def relative(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Times in those of the reference in the same round: a column an optimizer."""
    times = table.pivot(
        index=["depth", "round"], columns="optimizer", values="milliseconds"
    )
    return times.div(times[settings["reference"]], axis=0)


def cost_table(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """For people: an optimizer a row, a depth a column, in brackets the extremes."""
    ratios = relative(table, settings)
    return pd.DataFrame(
        {
            "optimizer": [arm["label"] for arm in settings["optimizers"].values()],
            **{
                f"{depth} layers": [
                    median_and_spread(ratios.loc[depth][name], 2)
                    for name in settings["optimizers"]
                ]
                for depth in settings["depths"]
            },
        }
    )


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Optimizers in rows, depths in colours."""
    arms, depths = settings["optimizers"], settings["depths"]
    reference = arms[settings["reference"]]["label"]
    figure, grid = panels(
        1,
        1,
        f"Time of a training step relative to one of {reference}: medians of "
        f"{settings['rounds']} rounds,\nbars from the lowest to the highest. "
        f"Perceptrons on a CPU, batches of {settings['batch_size']}.",
        height=0.32 * len(arms) + 1.2,
        width=8.5,
    )
    axes = grid[0, 0]
    ratios = relative(table, settings)
    middles = np.arange(len(arms))[::-1]
    for number, depth in enumerate(depths):
        spread = ratios.loc[depth][list(arms)].agg(["median", "min", "max"]).T
        axes.errorbar(
            spread["median"],
            middles + 0.2 * ((len(depths) - 1) / 2 - number),
            xerr=[spread["median"] - spread["min"], spread["max"] - spread["median"]],
            color=COLORS[number],
            marker=MARKERS[number],
            linestyle="none",
            markersize=5,
            label=f"{depth} layers",
        )
    axes.set_yticks(middles, [arm["label"] for arm in arms.values()])
    axes.set_xscale("log")
    ticks = [x for x in (0.5, 1, 2, 5, 10, 20, 50) if x <= 2 * ratios.max(axis=None)]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"time of a step / time of a step of {reference}")
    axes.legend(fontsize=9)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The cost of orthogonal steps and of waking."""
    ratios = relative(table, settings)
    labels = {name: arm["label"] for name, arm in settings["optimizers"].items()}
    reference = labels[settings["reference"]]
    mine, other = settings["recommended"], settings["orthogonal"]
    without, waking = settings["with_and_without_waking"]
    by_depth = {depth: ratios.loc[depth] for depth in settings["depths"]}
    extra = {depth: x[waking] - x[without] for depth, x in by_depth.items()}
    return [
        Claim(
            f"A step of {labels[mine]} costs less than one of {labels[other]}, in "
            "every round.",
            f"In steps of {reference}: "
            + "; ".join(
                f"{median_and_spread(x[mine], 2)} and {median_and_spread(x[other], 2)} "
                f"with {depth} layers"
                for depth, x in by_depth.items()
            )
            + ".",
            judged([bool((x[mine] < x[other]).all()) for x in by_depth.values()]),
        ),
        Claim(
            f"Waking costs less than a step of {reference}.",
            f"In steps of {reference}: "
            + "; ".join(
                f"{median_and_spread(x, 2)} with {depth} layers"
                for depth, x in extra.items()
            )
            + ".",
            judged([x.median() < 1 for x in extra.values()]),
        ),
    ]


COST = Item(
    title="What a step costs",
    about="Training steps of each optimizer, timed in turns, with one run on each "
    "device. So other work of the machine slows all of them alike. Compilation is not "
    "counted.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
