"""Learning rates follow their formulas, with and without a warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.schedules import DECAYS, corner_values, learning_rate_schedule

FORMULAS = {
    "constant": lambda part: 1.0,
    "linear": lambda part: 1 - part,
    "quadratic": lambda part: (1 - part) ** 2,  # the paper: γ = γ0 (1 - t/T)²
    "cosine": lambda part: (1 + np.cos(np.pi * part)) / 2,
}


def schedule(num_steps=600, peak=8.0, **changes):
    settings = {
        "decay": "quadratic",
        "warmup_steps": 0,
        "warmup_start": 0.0,
        "restart_after_warmup": False,
    }
    return learning_rate_schedule(peak, num_steps, **{**settings, **changes})


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("warmup", [0, 1, 150])
def test_learning_rates_are_their_formulas(decay, restart, warmup):
    made = schedule(
        decay=decay,
        warmup_steps=warmup,
        warmup_start=2.0,
        restart_after_warmup=restart,
        peak=jnp.float32(8.0),
    )
    for step in (0, 1, 75, 149, 150, 151, 450, 599):
        if step < warmup:
            expected = 2.0 + (8.0 - 2.0) * step / warmup
        elif restart:
            expected = 8.0 * FORMULAS[decay]((step - warmup) / (600 - warmup))
        else:
            expected = 8.0 * FORMULAS[decay](step / 600)
        with jax.numpy_dtype_promotion("standard"):  # optax's cosine mixes dtypes
            np.testing.assert_allclose(made(jnp.int32(step)), expected, 2e-5, 1e-6)


def test_corner_values_are_those_of_the_schedule():
    values = corner_values(schedule(100, 1.0, warmup_steps=10), 100, 10)
    expected = {
        "first step (0)": 0.0,
        "last of the warm-up (9)": 0.9,
        "first after it (10)": 0.81,
        "halfway (50)": 0.25,
        "last step (99)": 0.0001,
    }
    assert values.keys() == expected.keys()
    np.testing.assert_allclose([*values.values()], [*expected.values()], rtol=1e-4)
    assert len(corner_values(schedule(100, 1.0), 100, 0)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "cosin"}, "decay must be one of constant, .* got 'cosin'"),
        ({"warmup_steps": 600}, r"below num_steps \(600\), got 600"),
        ({"warmup_steps": -1}, "got -1"),
        ({"warmup_steps": 1.5}, "got 1.5"),
        ({"warmup_steps": True}, "got True"),
        ({"warmup_start": -0.1}, "warmup_start .* got -0.1"),
        ({"warmup_start": np.nan}, "warmup_start .* got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)
