"""Repair in flight: what is damaged, and what counts as back."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.figures import settings_of
from experiments.studies.rescue.repair import DAMAGES, at_one_rate, claims, overview
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
    broken = DAMAGES[damage](params, fresh, scales)
    kernels = [np.array(params[f"layer_{i}"]["kernel"]) for i in range(3)]
    right = {
        "none": kernels,
        "all kernels scaled": [2 * kernels[0], 3 * kernels[1], 5 * kernels[2]],
        "one kernel is zero": [kernels[0], np.zeros((3, 3)), kernels[2]],
        "one kernel is fresh": [kernels[0], fresh["layer_1"]["kernel"], kernels[2]],
    }
    for i, kernel in enumerate(right[damage]):
        np.testing.assert_array_equal(broken[f"layer_{i}"]["kernel"], kernel)
        np.testing.assert_array_equal(broken[f"layer_{i}"]["bias"], np.ones(3))


def test_a_repair_starts_from_the_damage_and_a_step_of_zero_changes_nothing(digits):
    sgd = settings_of("rescue_repair", quick=True)["optimizers"]["sgd"]
    still = {"sgd": {**sgd, "learning_rates": (0.0,)}}
    table, _ = computed("rescue_repair", optimizers=still)
    accuracies = table.groupby(["damage", "seed"])["test_accuracy"]
    assert (accuracies.nunique() == 1).all()
    whole = table[table["damage"] == "none"]
    np.testing.assert_array_equal(whole["test_accuracy"], whole["before"])
    lost = table[table["damage"] == "one kernel is zero"]
    assert (lost["test_accuracy"] < 0.5 * lost["before"]).all()


def test_the_rate_is_one_for_all_damages_and_chosen_on_validation_data():
    rows = [
        # Of the last step alone, and of both damages: 0.2.
        ("none", 0.1, 0, 1.0, 0.9),
        ("none", 0.1, 9, 0.9, 0.9),
        ("zero", 0.1, 9, 0.1, 0.9),
        ("none", 0.2, 9, 0.8, 0.7),
        ("zero", 0.2, 9, 0.8, 0.8),
        ("none", 0.2, 0, 0.0, 0.4),
        ("zero", 0.2, 0, 0.0, 0.2),
    ]
    names = ["damage", "learning_rate", "step", "validation_accuracy", "test_accuracy"]
    table = pd.DataFrame(rows, columns=names)
    table = table.assign(network="net", optimizer="ours", seed=0, before=0.8)
    table = pd.concat([table, table.assign(network="wide", test_accuracy=0.8)])
    other = table.assign(optimizer="theirs", test_accuracy=0.4)
    settings = {
        "networks": {"net": {}, "wide": {}},
        "damages": ("none", "zero"),
        "optimizers": {"ours": {"label": "Ours"}, "theirs": {"label": "Theirs"}},
        "recommended": "ours",
        "num_steps": 9,
    }
    table = pd.concat([table, other])
    chosen = at_one_rate(table, settings)
    assert set(chosen["learning_rate"]) == {0.2}
    assert overview(table, settings).to_numpy().tolist() == [
        ["Ours", "0.2", "87.5% (87.5)", "100.0% (100.0)"],
        ["Theirs", "0.2", "50.0% (50.0)", "50.0% (50.0)"],
    ]
    assert [claim.verdict for claim in claims(table, settings)] == [
        "partly",
        "confirmed",
    ]
    assert "50.0%" in claims(table, settings)[0].found
