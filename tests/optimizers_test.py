"""Schedules follow their formulas, and names lead to the optimizers they mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from lars.optimizers import OPTIMIZERS, SCHEDULES, optimizer_maker


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda part: 1.0),
        ("linear", lambda part: 1 - part),
        # The paper: γ = γ0 (1 - t/T)²
        ("quadratic", lambda part: (1 - part) ** 2),
    ],
)
def test_schedules_are_their_formulas(name, formula):
    schedule = SCHEDULES[name](jnp.float32(8.0), 600)
    for step in (0, 1, 150, 450, 599):
        rate = schedule(jnp.int32(step)) if callable(schedule) else schedule
        np.testing.assert_allclose(rate, 8.0 * formula(step / 600), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sgd", {"momentum": 0.5}, lambda rate: optax.sgd(rate, 0.5)),
        ("adam", {"b1": 0.8}, lambda rate: optax.adam(rate, 0.8)),
        ("lamb", {}, optax.lamb),
        ("optax_lars", {"weight_decay": 0.1}, lambda rate: optax.lars(rate, 0.1)),
        ("lars", {"weight_decay": 0.1}, lambda rate: lars.lars(rate, 0.1)),
    ],
)
def test_names_lead_to_their_optimizers(name, settings, expected):
    params, gradients = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.7])
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        made = optimizer_maker(name, settings, "constant", 10)(jnp.float32(0.1))
        plain = expected(0.1)
        for optimizer in (made, plain):
            state = optimizer.init(params)
            updates, _ = optimizer.update(gradients, state, params)
            if optimizer is made:
                actual = updates
    np.testing.assert_allclose(actual, updates, rtol=1e-6)
    assert name in OPTIMIZERS
