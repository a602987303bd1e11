"""Repair in flight: how much of a network's accuracy comes back after damage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.data import Data
from experiments.networks.init_scales import kernel_positions, scale_kernels
from experiments.studies.item import Claim, Item, Settings, judged
from experiments.studies.runs import (
    Setting,
    network_of,
    setting_of_arm,
    shared_among,
    stacked_runs,
    training_of,
)
from experiments.studies.style import legend_below, line_over_seeds, panels
from experiments.studies.tables import combinations, only
from experiments.training.optimizers import optimizer_maker
from experiments.training.training import Run, State, sweep_over

BACK = 0.99
"""The part of a network's test accuracy from which on it counts as repaired."""

AT = ["network", "damage", "optimizer"]

Damage = Callable[[optax.Params, optax.Params, jax.Array], optax.Params]
"""From parameters, fresh ones, and a factor for each kernel."""


def _middle(number: float, fresh: float = 0.0) -> Damage:
    """The kernel in the middle times a number, plus a fresh one times another."""

    def damaged(params: optax.Params, new: optax.Params, _: jax.Array) -> optax.Params:
        leaves, treedef = jax.tree.flatten(params)
        kernels = kernel_positions(params)
        i = kernels[len(kernels) // 2]
        leaves[i] = number * leaves[i] + fresh * jax.tree.leaves(new)[i]
        return treedef.unflatten(leaves)

    return damaged


DAMAGES: dict[str, Damage] = {
    "none": lambda params, fresh, scales: params,
    "all kernels scaled": lambda params, fresh, scales: scale_kernels(params, scales),
    "one kernel is zero": _middle(0.0),
    "one kernel is fresh": _middle(0.0, fresh=1.0),
}
"""By the names that settings have for them."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every optimizer in every network."""
    return combinations(network=settings["networks"], optimizer=settings["optimizers"])


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains, damages and repairs, with every rate of one optimizer.

    A row a seed, damage, rate and ``step`` of the repair: ``validation_accuracy`` and
    ``test_accuracy`` there, and ``before``, the test accuracy of the whole network.
    """
    model_settings = settings["networks"][cell["network"]]
    arm = settings["optimizers"][cell["optimizer"]]
    repairing = setting_of_arm(settings, model_settings, arm)
    first = settings["trained_with"]
    training = setting_of_arm({**settings, **first}, model_settings, first)
    damages, rates = settings["damages"], arm["learning_rates"]
    points = settings["points"]
    model, data = network_of(repairing)
    pairs = [(first["learning_rate"], seed) for seed in settings["seeds"]]
    runs = stacked_runs(model, data, pairs, settings["damage_scale"], "log_uniform")
    devices = jax.devices()[: len(pairs)]
    one = _repairs(training, repairing, damages, rates, points)
    before, *accuracies = shared_among(devices, sweep_over(one, devices, 1), runs, data)
    # [seeds, damages, rates, points]
    validation, test = (np.asarray(x) for x in accuracies)
    steps = np.linspace(0, repairing.num_steps, points + 1).astype(int)
    index = pd.MultiIndex.from_product(
        [settings["seeds"], damages, rates, steps],
        names=["seed", "damage", "learning_rate", "step"],
    )
    return pd.DataFrame(
        {
            "before": np.repeat(before, validation[0].size),
            "validation_accuracy": validation.ravel(),
            "test_accuracy": test.ravel(),
        },
        index,
    ).reset_index()


def _repairs(
    training: Setting,
    repairing: Setting,
    damages: Sequence[str],
    rates: Sequence[float],
    points: int,
) -> Callable[[Run, Data], tuple[jax.Array, ...]]:
    """The function of a run that is trained, damaged and repaired.

    Its kernel scales are those of the damage.
    """
    model, _ = network_of(repairing)
    whole, repair = training_of(training, model), training_of(repairing, model)
    make_optimizer = optimizer_maker(
        repairing.optimizer["name"],
        repairing.optimizer["settings"],
        repairing.schedule,
        repairing.num_steps,
    )

    def one(run: Run, data: Data) -> tuple[jax.Array, ...]:
        healthy = run._replace(kernel_scales=jnp.ones_like(run.kernel_scales))
        state, _ = whole.advance(
            whole.init(healthy, data), healthy, data, training.num_steps
        )
        params = state.variables["params"]
        # Of another network, which no run of an item is of.
        fresh = whole.init(healthy._replace(seed=run.seed + 1_000_000), data)
        new = fresh.variables["params"]
        broken = [DAMAGES[name](params, new, run.kernel_scales) for name in damages]

        def at_point(state: State) -> tuple[jax.Array, jax.Array]:
            return (
                repair.evaluate(state, data, data.validation).accuracy,
                repair.evaluate(state, data, data.test).accuracy,
            )

        def repaired(params: optax.Params, rate: jax.Array) -> Any:
            mine = healthy._replace(learning_rate=rate)
            start = State(
                jnp.int32(0),
                {**state.variables, "params": params},
                make_optimizer(rate).init(params),
            )

            def to_next(state: State, _: None) -> tuple[State, Any]:
                between = repairing.num_steps // points
                state = repair.advance(state, mine, data, between)[0]
                return state, at_point(state)

            _, after = jax.lax.scan(to_next, start, length=points)
            return jax.tree.map(
                lambda x, y: jnp.concatenate([x[None], y]), at_point(start), after
            )

        every_rate = jnp.asarray(rates, jnp.float32)

        def with_every_rate(params: optax.Params) -> Any:
            return jax.lax.map(lambda rate: repaired(params, rate), every_rate)

        stacked = jax.tree.map(lambda *x: jnp.stack(x), *broken)
        test = whole.evaluate(state, data, data.test)
        return test.accuracy, *jax.lax.map(with_every_rate, stacked)

    return one


def at_one_rate(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The runs at one rate for each optimizer, with the part that is ``back``.

    For all networks and damages it is the rate of the highest mean validation accuracy
    at the end; of equal ones the smallest.
    """
    last = only(table, step=settings["num_steps"])
    means = last.groupby(["optimizer", "learning_rate"])["validation_accuracy"].mean()
    best = pd.MultiIndex.from_tuples(
        means.groupby("optimizer").idxmax(), names=means.index.names
    )
    chosen = table.set_index(means.index.names)
    chosen = chosen[chosen.index.isin(best)].reset_index()
    return chosen.assign(back=chosen["test_accuracy"] / chosen["before"])


def _at_end(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    return only(at_one_rate(table, settings), step=settings["num_steps"])


def overview(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Which part of the accuracy is back at the end, a row an optimizer.

    That of the network where it is least, the median over seeds; in brackets the least
    of all runs.
    """
    last = _at_end(table, settings)
    lines = []
    for name, arm in settings["optimizers"].items():
        mine = only(last, optimizer=name)
        rate = mine["learning_rate"].iloc[0]
        line = {"optimizer": arm["label"], "rate": f"{rate:g}"}
        for damage in settings["damages"]:
            back = 100 * only(mine, damage=damage).set_index("network")["back"]
            least = back.groupby("network").median().min()
            line[f"damage: {damage}"] = f"{least:.1f}% ({back.min():.1f})"
        lines.append(line)
    return pd.DataFrame(lines)


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A row a network, a column a damage: the part that is back, over the steps."""
    chosen = at_one_rate(table, settings)
    figure, grid = panels(
        len(settings["networks"]),
        len(settings["damages"]),
        "How much of the test accuracy comes back after damage?  "
        f"{settings['dataset']}, batches of {settings['batch_size']}.\n"
        f"Lines: median of {len(settings['seeds'])} seeds, one rate for each "
        "optimizer; bands: lowest to highest. "
        f"Dotted: {BACK:.0%} of the accuracy before the damage.",
        height=2.5,
        width=3.5,
    )
    for row, network in zip(grid, settings["networks"], strict=True):
        for axes, damage in zip(row, settings["damages"], strict=True):
            rows = only(chosen, network=network, damage=damage)
            axes.axhline(BACK, color="black", linestyle=":", linewidth=0.9)
            for number, (name, arm) in enumerate(settings["optimizers"].items()):
                mine = only(rows, optimizer=name)
                line = (mine, "step", "back", number, arm["label"], "median")
                line_over_seeds(axes, *line)
            axes.set_ylim(-0.03, 1.06)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_title(f"{network}\ndamage: {damage}", fontsize=10)
        row[0].set_ylabel("test accuracy, relative\nto that before damage")
    for axes in grid[-1]:
        axes.set_xlabel("step of the repair")
    legend_below(grid[0, 0], 4)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether the recommended setting repairs each damage, and the best of others."""
    last, steps = _at_end(table, settings), settings["num_steps"]
    made = []
    for damage in settings["damages"]:
        rows = only(last, damage=damage)
        parts = rows.groupby(["optimizer", "network"])["back"].median().unstack()
        mine = parts.loc[settings["recommended"]]
        worst = parts.drop(index=settings["recommended"]).min(axis=1)
        best = settings["optimizers"][str(worst.idxmax())]["label"]
        found = ", ".join(f"{x}: {100 * mine[x]:.1f}%" for x in settings["networks"])
        made.append(
            Claim(
                f"Damage: {damage}. After {steps} steps of the recommended setting, at "
                f"least {BACK:.0%} of each network's accuracy is there.",
                f"{found}; of the others {best} is best in the network that is worst "
                f"for it, {100 * worst.max():.1f}%.",
                judged([mine[x] >= BACK for x in settings["networks"]]),
            )
        )
    return made


REPAIR = Item(
    title="Repair in flight",
    about="Networks that are trained, then damaged, then trained on by a new optimizer "
    "for a few steps: all kernels times factors drawn log-uniformly between 1/s and s; "
    "or the kernel in the middle set to zero, or drawn anew. Without damage, the "
    "repair should leave the accuracy where it was. Every optimizer has the same rates "
    "as for residual networks, and one for all networks and damages.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
    overview=overview,
)
