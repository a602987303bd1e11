"""Names lead to the optimizers they mean, and descriptions of rules to rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from experiments.training.optimizers import (
    ADAPTIVE,
    describe_parameters,
    optimizer_maker,
)

CONSTANT = {
    "decay": "constant",
    "warmup_steps": 0,
    "warmup_start": 0.0,
    "restart_after_warmup": False,
}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sgd", {"momentum": 0.5}, lambda rate: optax.sgd(rate, 0.5)),
        (
            "sgd",
            {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
            lambda rate: optax.chain(
                optax.add_decayed_weights(0.1), optax.sgd(rate, 0.5, nesterov=True)
            ),
        ),
        ("adam", {"b1": 0.8}, lambda rate: optax.adam(rate, 0.8)),
        ("lamb", {}, optax.lamb),
        ("optax_lars", {"weight_decay": 0.1}, lambda rate: optax.lars(rate, 0.1)),
        ("lars", {"weight_decay": 0.1}, lambda rate: lars.lars(rate, 0.1)),
        ("muon", {"adam_b1": 0.5}, lambda rate: optax.contrib.muon(rate, adam_b1=0.5)),
    ],
)
def test_names_lead_to_their_optimizers(name, settings, expected):
    params, gradients = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.7])
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        made = optimizer_maker(name, settings, CONSTANT, 10)(jnp.float32(0.1))
        actual, plain = (
            optimizer.update(gradients, optimizer.init(params), params)[0]
            for optimizer in (made, expected(0.1))
        )
    np.testing.assert_allclose(actual, plain, rtol=1e-6)


PARAMS = {"layer": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize("rule", [{"rank": (2,)}, {"path": "kernel$"}])
@pytest.mark.parametrize("name", ["sgd", "optax_lars", "lars"])
def test_a_rule_in_the_settings_says_what_is_decayed(name, rule):
    settings = {"weight_decay": 0.5, "weight_decay_mask": rule, "momentum": 0.0}
    optimizer = optimizer_maker(name, settings, CONSTANT, 10)(jnp.float32(0.1))
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(nothing, optimizer.init(PARAMS), PARAMS)
    assert np.all(updates["layer"]["kernel"] < 0)
    assert np.all(updates["layer"]["bias"] == 0)
    table = {row.parameter: row for row in describe_parameters(name, settings, PARAMS)}
    assert table["layer/kernel"].decayed
    assert not table["layer/bias"].decayed
    assert table["layer/bias"].adapted == (name in ADAPTIVE)
    undecayed = describe_parameters(name, {"momentum": 0.0}, PARAMS)
    assert not any(row.decayed for row in undecayed)


@pytest.mark.parametrize("name", ["polar", "polar_waking"])
@pytest.mark.parametrize(("settings", "decayed"), [({}, 2), ({"weight_decay": 0.0}, 0)])
def test_the_description_of_polar_lars_is_what_it_decays(name, settings, decayed):
    params = {**PARAMS, "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    params = jax.tree.map(lambda x: 2 * x, params)  # above the norm that decay ends at
    described = describe_parameters(name, settings, params)
    assert sum(row.decayed for row in described) == decayed
    assert all(row.adapted for row in described)
    optimizer = optimizer_maker(name, settings, CONSTANT, 10)(jnp.float32(0.1))
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(nothing, optimizer.init(params), params)
    moved = [bool(np.any(x < 0)) for x in jax.tree.leaves(updates)]
    assert moved == [row.decayed for row in described]


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"pth": "x"}, TypeError, "pth"),
        ({"path": "("}, ValueError, "regular expression"),
        ({}, ValueError, "needs a path"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule, error, message):
    with pytest.raises(error, match=message):
        optimizer_maker("lars", {"weight_decay_mask": rule}, CONSTANT, 10)
