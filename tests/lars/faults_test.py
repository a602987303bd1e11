"""A layer with infinities or NaN skips the step, and the others do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lars
from tests.lars.steps import first_step, run, scan, stacked, tree

FAMILIES = {
    "step": {},
    "direction": {"momentum_of": "direction", "nesterov": True},
    "update": {"momentum_of": "gradient", "denominator": "update"},
    "outside, excluded": {
        "weight_decay_kind": "outside",
        "trust_ratio_mask": ~lars.select(path="kernel"),
    },
    "spectral": {"geometry": lars.Spectral(steps=2)},
}
WRONG = [np.nan, np.inf, -np.inf]


def small(seed):
    return tree(seed)["first"]


def faulty(value, step=1):
    gradients = [small(i + 1) for i in range(3)]
    gradients[step]["kernel"][2, 3] = value
    return gradients


@functools.cache
def trajectories(name):
    """Steps and states with each fault in the second step; in the last row with none.

    Each by itself in one loop: arithmetic that is the same to the last bit.
    """
    optimizer = lars.lars(0.1, 1e-2, **FAMILIES[name])

    def read(state):
        return state.trace, lars.trust_ratios(state), lars.skipped_steps(state)

    def trajectory(gradients):
        weights, read_of_states = scan(optimizer, small(0), gradients, read)[0]
        return weights, *read_of_states

    cases = stacked([stacked(faulty(value)) for value in [*WRONG, 0.5]])
    result = jax.jit(lambda g: jax.lax.map(trajectory, g))(cases)
    return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_whose_gradient_is_not_finite_keeps_weights_and_momentum(name):
    weights, trace, ratios, skipped = trajectories(name)
    for of_kernel in (weights["kernel"], trace["kernel"]):
        np.testing.assert_array_equal(of_kernel[:3, 1], of_kernel[:3, 0])
        assert (of_kernel[3, 1] != of_kernel[3, 0]).any()
        # It goes on in the next step.
        assert np.isfinite(of_kernel).all()
        assert (of_kernel[:, 2] != of_kernel[:, 1]).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(ratios["kernel"][:3, 1], 0)
    assert (ratios["kernel"][:3, ::2] > 0).all()
    assert skipped["kernel"].tolist() == [[0, 1, 1]] * 3 + [[0, 0, 0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_layers_do_not_notice_to_the_last_bit(name):
    weights, trace, ratios, skipped = trajectories(name)
    for of_bias in (weights["bias"], trace["bias"], ratios["bias"]):
        np.testing.assert_array_equal(of_bias[:3], of_bias[[3, 3, 3]])
    assert not skipped["bias"].any()


def test_weights_that_are_not_finite_stop_their_layer_alone_adapted_or_not():
    broken, ones = np.array([np.inf, 1], np.float32), np.ones(2, np.float32)
    params = {"w": broken, "x": ones, "w_excluded": broken, "x_excluded": ones}
    g = dict.fromkeys(params, ones)
    optimizer = lars.lars(1.0, 0.1, trust_ratio_mask=~lars.select(path="excluded"))
    updates, state = first_step(optimizer, g, params)
    for name, skipped in lars.skipped_steps(state).items():
        assert int(skipped) == name.startswith("w")
        assert ((updates[name] == 0) if skipped else (updates[name] < 0)).all()


def test_layers_that_share_a_ratio_are_skipped_together_in_a_step_that_counts():
    optimizer = lars.lars(2.0, layer="module")
    _, state = run(optimizer, small(0), faulty(np.nan))
    assert lars.skipped_steps(state) == {"kernel": 1, "bias": 1}
    assert state.count == 3  # of the schedule


def test_slices_of_a_stack_are_skipped_apart():
    optimizer = lars.lars(2.0, stacked=[(lars.select(path="kernel"), 0)])
    weights, state = run(optimizer, small(0), faulty(np.nan))
    skipped = lars.skipped_steps(state)["kernel"]
    np.testing.assert_array_equal(skipped, [0, 0, 1, 0, 0])
    moved = weights[1]["kernel"] != weights[0]["kernel"]
    np.testing.assert_array_equal(moved.all(axis=1), [1, 1, 0, 1, 1])


def test_a_momentum_that_its_dtype_cannot_hold_stays_finite():
    # To 20000 / (1 - 0.9), where float16 ends at 65504; and back.
    optimizer = lars.lars(1e-9, momentum_of="gradient", denominator="update")
    gradients = np.full((9, 4), 2e4, np.float16)
    gradients[-1] = 0

    def steps(g):
        def step(state, g):
            updates, state = optimizer.update(g, state, jnp.ones(4, jnp.float16))
            return state, (updates, state.trace)

        state = optimizer.init(jnp.ones(4, jnp.float16))
        return jax.lax.scan(step, state, g)

    state, (updates, traces) = jax.jit(steps)(gradients)
    assert np.isfinite(updates).all()
    np.testing.assert_array_equal(traces[-2], np.float16(65504))
    np.testing.assert_allclose(traces[-1], 0.9 * 65504, rtol=1e-3)
    assert lars.skipped_steps(state) == 0


def test_an_infinite_momentum_in_the_dtype_of_the_steps_stays_visible():
    optimizer = lars.lars(1.0, momentum_of="gradient")
    gradients = np.full((4, 2), 3e38, np.float32)
    weights, state = jax.jit(lambda g: scan(optimizer, jnp.ones(2), g))(gradients)
    assert np.isfinite(weights[0]).all()
    assert not np.isfinite(weights[-1]).any()
    assert np.isinf(state.trace).all()


@pytest.mark.parametrize("value", [jnp.ones(2), jnp.ones(1), None])
def test_a_schedule_that_returns_no_number_is_refused(value):
    optimizer, params = lars.lars(lambda count: value), jnp.ones(2)
    with pytest.raises(ValueError, match="a schedule must return one number"):
        optimizer.update(params, optimizer.init(params), params)
