"""Repair of damaged networks: what is damaged, what counts, and what is back."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import publish
from experiments.figures import ITEMS, settings_of
from experiments.studies.rescue.repair import (
    DAMAGES,
    LEFT,
    NONE,
    at_best_rate,
    claims,
    damaged_runs,
    overview,
)
from tests.experiments.studies.quick import computed


def network(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        f"layer_{i}": {"kernel": jax.random.normal(key, (3, 3)), "bias": jnp.ones(3)}
        for i, key in enumerate(keys)
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_to_kernels_alone(damage):
    params, fresh, scales = network(0), network(1), jnp.array([2.0, 3.0, 5.0])
    broken = DAMAGES[damage](params, fresh, scales, "layer_1/kernel")
    kernels = [np.array(params[f"layer_{i}"]["kernel"]) for i in range(3)]
    right = {
        NONE: kernels,
        "all kernels scaled": [2 * kernels[0], 3 * kernels[1], 5 * kernels[2]],
        "one kernel is zero": [kernels[0], np.zeros((3, 3)), kernels[2]],
        "one kernel is fresh": [kernels[0], fresh["layer_1"]["kernel"], kernels[2]],
    }
    for i, kernel in enumerate(right[damage]):
        np.testing.assert_array_equal(broken[f"layer_{i}"]["kernel"], kernel)
        np.testing.assert_array_equal(broken[f"layer_{i}"]["bias"], np.ones(3))


def test_a_kernel_that_is_not_there_is_named():
    params = network(0)
    with pytest.raises(ValueError, match="'layer_7/kernel'"):
        DAMAGES["one kernel is zero"](params, params, jnp.ones(3), "layer_7/kernel")


def test_a_repair_goes_on_from_point_to_point_and_with_its_rate(digits):
    settings = settings_of("rescue_repair", quick=True)
    sgd = {**settings["optimizers"]["sgd"], "learning_rates": (0.0, 0.03)}
    table, _ = computed("rescue_repair", optimizers={"sgd": sgd})
    steps = np.tile([0, 10, 20, 30, 40], len(table) // 5)
    np.testing.assert_array_equal(table["step"], steps)
    assert (table["before"] > 0.85).all()

    still = table[table["learning_rate"] == 0]
    accuracies = still.groupby(["damage", "seed"])["test_accuracy"]
    assert (accuracies.nunique() == 1).all()
    whole = still[still["damage"] == NONE]
    np.testing.assert_array_equal(whole["test_accuracy"], whole["before"])
    zero = table[table["damage"] == "one kernel is zero"]
    lost = zero[zero["learning_rate"] == 0]
    assert (lost["test_accuracy"] < 0.5 * lost["before"]).all()

    moving = zero[zero["learning_rate"] != 0]
    by_step = moving.groupby("step")["test_accuracy"].mean()
    assert by_step[0] == lost["test_accuracy"].mean()
    assert by_step[0] < by_step[10] < by_step[40]  # which one leg alone does not reach
    assert by_step[40] > 0.8 * table["before"].mean()


def test_kernels_are_mended_after_the_damage(digits):
    settings = settings_of("rescue_repair", quick=True)
    sgd = settings["optimizers"]["sgd"]
    arm = {**sgd, "learning_rates": (0.0,), "initialization": "rescaled"}
    table, _ = computed("rescue_repair", optimizers={"sgd": arm})
    accuracy = table.pivot_table("test_accuracy", ["seed", "step"], "damage")
    scaled, none = accuracy["all kernels scaled"], accuracy[NONE]
    assert (scaled < 0.5 * none).xs(0, level="step").any()
    # The norms are then the same, and so are the networks up to rounding.
    np.testing.assert_allclose(
        scaled.drop(0, level=1), none.drop(0, level=1), atol=0.01
    )


def test_points_that_do_not_divide_the_steps_are_refused():
    settings = {**settings_of("rescue_repair", quick=True), "points": 7}
    cell = ITEMS["rescue_repair"].cells(settings)[0]
    with pytest.raises(ValueError, match=r"divide num_steps \(40\), got 7"):
        ITEMS["rescue_repair"].measure(cell, settings)


def runs(optimizer, network, damage, rate, validation, start, end):
    """Rows of three seeds: at the start, and after nine steps."""
    return pd.DataFrame(
        {
            "optimizer": optimizer,
            "network": network,
            "damage": damage,
            "learning_rate": rate,
            "seed": [0, 1, 2] * 2,
            "step": [0] * 3 + [9] * 3,
            "before": 0.8,
            # Of the last step alone a rate is chosen by.
            "validation_accuracy": [1 - validation] * 3 + [validation] * 3,
            "test_accuracy": [start] * 3 + end,
        }
    )


TABLE = pd.concat(
    [
        runs("ours", "net", "none", 0.1, 0.9, 0.8, [0.9, 0.9, 0.9]),
        runs("ours", "net", "zero", 0.1, 0.1, 0.2, [0.9, 0.9, 0.9]),
        runs("ours", "net", "none", 0.2, 0.6, 0.8, [0.7, 0.792, 0.8]),
        runs("ours", "net", "zero", 0.2, 0.8, 0.2, [0.2, 0.76, 0.8]),
        runs("ours", "wide", "none", 0.1, 0.7, 0.8, [0.8, 0.8, 0.8]),
        runs("ours", "wide", "zero", 0.1, 0.7, 0.2, [0.8, 0.8, 0.8]),
        runs("ours", "wide", "none", 0.2, 0.7, 0.8, [0.8, 0.8, 0.8]),
        runs("ours", "wide", "zero", 0.2, 0.8, 0.2, [0.8, 0.8, 0.8]),
        runs("theirs", "net", "none", 0.1, 0.5, 0.8, [0.4, 0.4, 0.4]),
        runs("theirs", "net", "zero", 0.1, 0.5, 0.2, [0.4, 0.4, 0.4]),
        runs("theirs", "wide", "none", 0.1, 0.5, 0.8, [0.8, 0.8, 0.8]),
        runs("theirs", "wide", "zero", 0.1, 0.5, 0.2, [0.8, 0.8, 0.8]),
    ]
)
SETTINGS = {
    "networks": {"net": {}, "wide": {}},
    "damages": ("none", "zero"),
    "optimizers": {"ours": {"label": "Ours"}, "theirs": {"label": "Theirs"}},
    "recommended": "ours",
    "num_steps": 9,
}


def test_rates_are_chosen_on_validation_data_for_everything_or_for_each():
    ours = TABLE[TABLE["optimizer"] == "ours"]
    # The means over all are 0.6 and 0.725.
    assert set(at_best_rate(ours, SETTINGS, ["optimizer"])["learning_rate"]) == {0.2}
    each = at_best_rate(ours, SETTINGS, ["network", "damage"])
    found = each.groupby(["network", "damage"])["learning_rate"].unique()
    assert found.map(list).to_dict() == {
        ("net", "none"): [0.1],
        ("net", "zero"): [0.2],
        ("wide", "none"): [0.1],  # of equal ones the smallest
        ("wide", "zero"): [0.2],
    }


def test_the_table_has_the_median_of_the_worst_network_and_the_lowest_run():
    assert overview(TABLE, SETTINGS).to_numpy().tolist() == [
        ["Ours", "0.2", "99.0% (87.5)", "95.0% (25.0)", "99.0% (87.5)"],
        ["", "the best of each", "100.0% (100.0)", "95.0% (25.0)", "100.0% (100.0)"],
        ["Theirs", "0.1", "50.0% (50.0)", "50.0% (50.0)", "50.0% (50.0)"],
        ["", "the best of each", "50.0% (50.0)", "50.0% (50.0)", "50.0% (50.0)"],
    ]
    none, zero = claims(TABLE, SETTINGS)
    assert (none.verdict, zero.verdict) == ("confirmed", "partly")
    assert "net: 95 (25 to 100)" in zero.found
    assert "Theirs, 50.0%" in zero.found


def test_runs_whose_damage_took_nothing_do_not_count():
    left = LEFT * 0.8
    kept = runs("ours", "net", "zero", 0.1, 0.5, left, [0.8, 0.8, 0.8])
    whole = runs("ours", "net", "zero", 0.1, 0.5, left + 0.01, [0.8, 0.8, 0.8])
    none = runs("ours", "net", "none", 0.1, 0.5, 0.8, [0.8, 0.8, 0.8])
    whole["seed"] += 3
    found = damaged_runs(pd.concat([none, whole, kept]))
    counts = found.groupby("damage")["seed"].unique().map(sorted)
    assert counts.to_dict() == {"none": [0, 1, 2], "zero": [0, 1, 2]}


def test_what_is_published_has_damaged_runs_of_every_kind():
    table, settings = publish.kept_figure("rescue", "rescue_repair")
    counted = damaged_runs(table).groupby(["network", "damage"])["seed"].nunique()
    assert len(counted) == len(settings["networks"]) * len(settings["damages"])
    assert (counted >= 3).all()
