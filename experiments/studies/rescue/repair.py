"""Repair of damaged networks: how much of their accuracy comes back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.checks import check_name
from experiments.data import Data, standardise
from experiments.networks.init_scales import scale_kernels
from experiments.networks.initialization import initialization_named
from experiments.studies.item import Claim, Item, Settings, judged, median_and_spread
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
from experiments.training.training import Run, State, batch_positions, sweep_over
from lars.rules import flatten_with_path, path_string

BACK = 0.99
"""The part of a network's test accuracy from which on it counts as repaired."""

LEFT = 0.9
"""A damage that leaves more than this part of the accuracy is none: the run does not
count. Rectifiers, for one, hand on the scales of kernels, and only biases notice."""

OTHERS_SHOWN = 5
"""How many others the picture shows."""

Damage = Callable[[optax.Params, optax.Params, jax.Array, str], optax.Params]
"""From parameters, fresh ones, a factor for each kernel, and the path of a kernel."""


def _replaced(by: Callable[[jax.Array], jax.Array]) -> Damage:
    """The kernel of the path is replaced by a function of the fresh one."""

    def damaged(
        params: optax.Params, fresh: optax.Params, _: jax.Array, path: str
    ) -> optax.Params:
        named, treedef = flatten_with_path(params)
        paths = [path_string(place) for place, _ in named]
        check_name("the damaged kernel", path, paths)
        leaves = [leaf for _, leaf in named]
        number = paths.index(path)
        leaves[number] = by(jax.tree.leaves(fresh)[number])
        return treedef.unflatten(leaves)

    return damaged


NONE = "none"
DAMAGES: dict[str, Damage] = {
    NONE: lambda params, fresh, scales, path: params,
    "all kernels scaled": lambda params, fresh, scales, path: scale_kernels(
        params, scales
    ),
    "one kernel is zero": _replaced(jnp.zeros_like),
    "one kernel is fresh": _replaced(lambda fresh: fresh),
}
"""By the names that settings have for them."""


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Every optimizer in every network."""
    return combinations(network=settings["networks"], optimizer=settings["optimizers"])


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains, damages and repairs, with every rate of one optimizer.

    Returns:
        A row a seed, damage, rate and ``step`` of the repair: ``validation_accuracy``
        and ``test_accuracy`` there, and ``before``, the test accuracy of the network
        before the damage. Step 0 is the damaged network, before kernels are mended.

    Raises:
        ValueError: if the points do not divide the steps.
    """
    broken = settings["networks"][cell["network"]]
    model_settings, path = broken["model"], broken["kernel"]
    arm = settings["optimizers"][cell["optimizer"]]
    repairing = setting_of_arm(settings, model_settings, arm)
    repairing = repairing._replace(initialization=arm["initialization"])
    first = settings["trained_with"]
    training = setting_of_arm({**settings, **first}, model_settings, first)
    damages, rates = settings["damages"], arm["learning_rates"]
    points, num_steps = settings["points"], settings["num_steps"]
    if num_steps % points:
        raise ValueError(
            f"points must divide num_steps ({num_steps}), got {points}: the repair "
            "ends with the last of them."
        )
    model, data = network_of(repairing)
    pairs = [(first["learning_rate"], seed) for seed in settings["seeds"]]
    runs = stacked_runs(model, data, pairs, settings["damage_scale"], "log_uniform")
    devices = jax.devices()[: len(pairs)]
    one = _repairs(training, repairing, damages, path, rates, points)
    before, *accuracies = shared_among(devices, sweep_over(one, devices, 1), runs, data)
    # [seeds, damages, rates, points]
    validation, test = (np.asarray(x) for x in accuracies)
    steps = num_steps // points * np.arange(points + 1)
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
    path: str,
    rates: Sequence[float],
    points: int,
) -> Callable[[Run, Data], tuple[jax.Array, ...]]:
    """The function of a run that is trained, damaged and repaired.

    Its kernel scales are those of the damage.
    """
    model, _ = network_of(repairing)
    whole, repair = training_of(training, model), training_of(repairing, model)
    mend = initialization_named(repairing.initialization)
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
        broken = [
            DAMAGES[name](params, new, run.kernel_scales, path) for name in damages
        ]

        def with_params(params: optax.Params, rate: jax.Array) -> State:
            variables = {**state.variables, "params": params}
            return State(jnp.int32(0), variables, make_optimizer(rate).init(params))

        def at_point(state: State) -> tuple[jax.Array, jax.Array]:
            return (
                repair.evaluate(state, data, data.validation).accuracy,
                repair.evaluate(state, data, data.test).accuracy,
            )

        def mended(params: optax.Params) -> optax.Params:
            if mend is None:
                return params
            count, size = len(data.train.labels), repairing.batch_size
            first = batch_positions(run.seed, jnp.int32(0), 1, count, size)[0]
            batch = standardise(data.train.images[first], data.mean, data.deviation)
            return mend(model, {**state.variables, "params": params}, batch)

        def with_every_rate(params: optax.Params) -> Any:
            damaged = at_point(with_params(params, jnp.float32(rates[0])))
            start = mended(params)

            def repaired(rate: jax.Array) -> Any:
                mine = healthy._replace(learning_rate=rate)

                def to_next(state: State, _: None) -> tuple[State, Any]:
                    between = repairing.num_steps // points
                    state = repair.advance(state, mine, data, between)[0]
                    return state, at_point(state)

                begun = with_params(start, rate)
                _, after = jax.lax.scan(to_next, begun, length=points)
                return jax.tree.map(
                    lambda x, y: jnp.concatenate([x[None], y]), damaged, after
                )

            return jax.lax.map(repaired, jnp.asarray(rates, jnp.float32))

        stacked = jax.tree.map(lambda *x: jnp.stack(x), *broken)
        test = whole.evaluate(state, data, data.test)
        return test.accuracy, *jax.lax.map(with_every_rate, stacked)

    return one


def damaged_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that count, with the part of the accuracy that is ``back``.

    Those without damage, and those that it leaves at most the part `LEFT` of.
    """
    table = table.assign(back=table["test_accuracy"] / table["before"])
    run = ["network", "damage", "optimizer", "seed", "learning_rate"]
    start = only(table, step=0).set_index(run)["back"]
    left = start.reindex(pd.MultiIndex.from_frame(table[run])).to_numpy()
    return table[(table["damage"] == NONE) | (left <= LEFT)]


def at_best_rate(
    table: pd.DataFrame, settings: Settings, keys: Sequence[str]
) -> pd.DataFrame:
    """The runs that count, at one rate for each combination of the keys.

    It is the rate of the highest mean validation accuracy at the end, over seeds and
    over what is not a key; of equal ones the smallest.
    """
    table = damaged_runs(table)
    last = only(table, step=settings["num_steps"])
    means = last.groupby([*keys, "learning_rate"])["validation_accuracy"].mean()
    best = pd.MultiIndex.from_tuples(
        means.groupby(level=list(keys)).idxmax(), names=means.index.names
    )
    return table[pd.MultiIndex.from_frame(table[best.names]).isin(best)]


def overview(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Which part of the accuracy is back at the end, two rows an optimizer.

    That of the network where it is least, the median over seeds; in brackets the least
    of all runs. With one rate for all networks and damages, then with one for each.
    """
    lines = []
    for name, arm in settings["optimizers"].items():
        of_optimizer = only(table, optimizer=name)
        for keys in (["optimizer"], ["optimizer", "network", "damage"]):
            chosen = at_best_rate(of_optimizer, settings, keys)
            last = only(chosen, step=settings["num_steps"])
            rates = last["learning_rate"].unique()
            is_one = len(keys) == 1
            line = {
                "optimizer": arm["label"] if is_one else "",
                "rate": f"{rates[0]:g}" if is_one else "the best of each",
            }
            for damage in settings["damages"]:
                back = only(last, damage=damage).set_index("network")["back"]
                line[f"damage: {damage}"] = _least(back)
            runs = only(chosen, damage=NONE).groupby(["network", "seed"])["back"]
            lowest = runs.min().reset_index("seed", drop=True)
            line["lowest on the way, no damage"] = _least(lowest)
            lines.append(line)
    return pd.DataFrame(lines)


def _least(back: pd.Series) -> str:
    """The least median of a network, and in brackets the least of all."""
    least = back.groupby("network").median().min()
    return f"{100 * least:.1f}% ({100 * back.min():.1f})"


def _least_back(chosen: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The part that is back at the end, by optimizer and damage.

    The median over seeds, of the network where it is least.
    """
    last = only(chosen, step=settings["num_steps"])
    medians = last.groupby(["optimizer", "damage", "network"])["back"].median()
    return medians.groupby(["optimizer", "damage"]).min().unstack()


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """A row a network, a column a damage: the part that is back, over the steps.

    Of the recommended setting, and of the others of which the most is back where it is
    least, in the mean over damages.
    """
    chosen = at_best_rate(table, settings, ["optimizer"])
    others = _least_back(chosen, settings).mean(axis=1).drop(settings["recommended"])
    best = others.sort_values(ascending=False).index[:OTHERS_SHOWN]
    arms = settings["optimizers"]
    shown = [settings["recommended"], *best]
    figure, grid = panels(
        len(settings["networks"]),
        len(settings["damages"]),
        "How much of the test accuracy comes back after damage?  "
        f"{settings['dataset']}, batches of {settings['batch_size']}.\n"
        f"Lines: median of the damaged ones of {len(settings['seeds'])} seeds, one "
        "rate for each optimizer; bands: lowest to highest. "
        f"Dotted: {BACK:.0%} of the accuracy before the damage.\n"
        f"Beside the recommended setting: the {len(best)} of {len(others)} others that "
        "repair the most.",
        height=2.5,
        width=3.5,
    )
    for row, network in zip(grid, settings["networks"], strict=True):
        for axes, damage in zip(row, settings["damages"], strict=True):
            rows = only(chosen, network=network, damage=damage)
            axes.axhline(BACK, color="black", linestyle=":", linewidth=0.9)
            for number, name in enumerate(shown):
                mine, label = only(rows, optimizer=name), arms[name]["label"]
                line_over_seeds(axes, mine, "step", "back", number, label, "median")
            axes.set_ylim(-0.03, 1.06)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_title(f"{network}\ndamage: {damage}", fontsize=10)
        row[0].set_ylabel("test accuracy, relative\nto that before damage")
    for axes in grid[-1]:
        axes.set_xlabel("step of the repair")
    legend_below(grid[0, 0], 3)
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether the recommended setting repairs each damage, and the best of others."""
    chosen = at_best_rate(table, settings, ["optimizer"])
    last, mine = only(chosen, step=settings["num_steps"]), settings["recommended"]
    made = []
    for damage in settings["damages"]:
        rows = only(last, damage=damage)
        others = _least_back(chosen, settings)[damage].drop(mine)
        best = settings["optimizers"][str(others.idxmax())]["label"]
        runs = only(rows, optimizer=mine).groupby("network")["back"]
        found = ", ".join(
            f"{network}: {median_and_spread(100 * runs.get_group(network))}"
            for network in settings["networks"]
        )
        made.append(
            Claim(
                f"Damage: {damage}. After {settings['num_steps']} steps of the "
                f"recommended setting, at least {BACK:.0%} of each network's accuracy "
                "is back, in the median over seeds.",
                f"{found} (%, {len(only(rows, optimizer=mine))} runs count). Best of "
                f"the others in the network that is worst for it: {best}, "
                f"{100 * others.max():.1f}%.",
                judged([runs.median()[x] >= BACK for x in settings["networks"]]),
            )
        )
    return made


REPAIR = Item(
    title="Repair of damaged networks",
    about="Networks are trained by Adam, damaged, and trained on by a new optimizer, "
    "whose rate falls to zero in 100 steps. Damages: all kernels get factors drawn "
    "log-uniformly between 10⁻⁴ and 10⁴; or one kernel is set to zero or drawn anew, "
    "which is the patch embedding of the transformer and a hidden layer of the others. "
    "Biases and normalizations stay. A run whose damage leaves more than "
    f"{LEFT:.0%} of the accuracy does not count.",
    cells=cells,
    measure=measure,
    draw=draw,
    claims=claims,
    overview=overview,
)
