"""What training with each optimizer costs: the same steps, timed in turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
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
    rows = []
    for number in range(settings["rounds"]):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            per_step = 1000 * seconds / settings["num_steps"]
            rows.append({"optimizer": name, "round": number, "milliseconds": per_step})
    return pd.DataFrame(rows)


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
    compute = sweep_over(first_steps, devices, 1)
    pairs = [(min(arm["learning_rates"]), seed) for seed in range(len(devices))]
    runs = stacked_runs(network, data, pairs, 1.0, "all")

    def call() -> Any:
        return shared_among(devices, compute, runs, data)

    call()
    return call


def relative(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Times in those of the reference, in the same round.

    Returns:
        A column an optimizer, indexed by ``depth`` and ``round``.
    """
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
    arms = settings["optimizers"]
    reference = arms[settings["reference"]]["label"]
    figure, grid = panels(
        1,
        1,
        "What a training step costs beside one of "
        f"{reference}: medians of {settings['rounds']} rounds,\nbars from the lowest "
        "to the highest. Perceptrons on a CPU, batches of "
        f"{settings['batch_size']}.",
        height=0.32 * len(arms) + 1.2,
        width=8.5,
    )
    axes = grid[0, 0]
    ratios = relative(table, settings)
    middles = [len(arms) - 1 - i for i in range(len(arms))]
    for number, depth in enumerate(settings["depths"]):
        spread = ratios.loc[depth][list(arms)].agg(["median", "min", "max"]).T
        offset = 0.2 * ((len(settings["depths"]) - 1) / 2 - number)
        axes.errorbar(
            spread["median"],
            [y + offset for y in middles],
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
    """What orthogonal steps and waking cost."""
    ratios = relative(table, settings)
    arms, depths = settings["optimizers"], settings["depths"]

    def of(name: str, depth: int) -> pd.Series:
        return ratios.loc[depth][name]

    mine, other = settings["recommended"], settings["orthogonal"]
    without, waking = settings["with_and_without_waking"]
    extra = {depth: of(waking, depth) - of(without, depth) for depth in depths}
    return [
        Claim(
            f"A step of {arms[mine]['label']} costs less than one of "
            f"{arms[other]['label']}, in every round.",
            "; ".join(
                f"{depth} layers: {median_and_spread(of(mine, depth), 2)} beside "
                f"{median_and_spread(of(other, depth), 2)} steps of the reference"
                for depth in depths
            )
            + ".",
            judged([bool((of(mine, d) < of(other, d)).all()) for d in depths]),
        ),
        Claim(
            "Waking costs less than the step of the reference.",
            "; ".join(
                f"{depth} layers: {median_and_spread(extra[depth], 2)} of one"
                for depth in depths
            )
            + ".",
            judged([extra[depth].median() < 1 for depth in depths]),
        ),
    ]


COST = Item(
    title="What a step costs",
    about="Training steps of each optimizer in turns, one run on each device, so that "
    "what else the machine does falls on all of them. Compilation is not counted.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
)
