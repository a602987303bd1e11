"""Polar LARS without a part is polar LARS where the part does nothing."""

import jax
import numpy as np

from experiments.training.parts import (
    polar_fixed_bias,
    polar_own_norm,
    polar_unbalanced,
    polar_unfading,
)
from lars.polar_optimizer import polar
from tests.lars.steps import assert_near, drawn

SHAPES = {"layer": {"kernel": (6, 5), "bias": (5,)}}


def steps(factory, turns=(1.0, 1.0, -0.25), bias=True, size=1.0):
    """The updates of some steps, from parameters that do not move."""
    params, grads = (drawn(SHAPES, seed) for seed in (0, 1))
    params["layer"]["kernel"] *= np.float32(size)
    grads["layer"]["kernel"] += 3 * grads["layer"]["bias"]  # as of constant inputs
    if not bias:
        params, grads = (
            {"layer": {"kernel": x["layer"]["kernel"]}} for x in (params, grads)
        )
    e = np.vdot(params["layer"]["kernel"], grads["layer"]["kernel"])
    optimizer = factory(0.2)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    every = []
    for turn in turns:
        g = jax.tree.map(lambda x, t=turn: np.float32(t * np.sign(e)) * x, grads)
        updates, state = update(g, state, params)
        every.append(updates["layer"])
    return params["layer"], every


def test_biases_that_do_not_grow_differ_by_their_growth():
    params, fixed = steps(polar_fixed_bias)
    _, free = steps(polar)
    for one, other in zip(fixed, free, strict=True):
        np.testing.assert_array_equal(one["kernel"], other["kernel"])
        growth = (other["bias"] - one["bias"]) / params["bias"]
        np.testing.assert_allclose(growth, growth[0], rtol=1e-3)
        assert abs(growth[0]) > 0.01


def test_without_weights_signs_count_alone():
    """All is the same while kernels shrink; then growth has its whole sign."""
    _, unfading = steps(polar_unfading)
    _, fading = steps(polar)
    assert_near(unfading[:2], fading[:2], 1e-6)
    _, unfading = steps(polar_unfading, (-1.0, -0.01))
    _, fading = steps(polar, (-1.0, -0.01))
    assert_near(unfading[0], fading[0], 1e-6)
    assert not np.allclose(unfading[1]["kernel"], fading[1]["kernel"], rtol=1e-2)
    _, whole = steps(polar_unfading, (-1.0, -1.0))
    assert_near(unfading[1]["kernel"], whole[1]["kernel"], 1e-5)


def test_relative_to_their_own_norm_kernels_of_all_sizes_step_alike():
    _, right = steps(polar_own_norm)
    for size in (2.0**-20, 2.0**20):
        _, own = steps(polar_own_norm, size=size)
        _, usual = steps(polar, size=size)
        for one, other, wrong in zip(own, right, usual, strict=True):
            assert_near(one["kernel"] / size, other["kernel"], 1e-5)
            assert not np.allclose(wrong["kernel"] / size, other["kernel"], rtol=1e-2)


def test_without_the_balance_a_bias_changes_no_direction():
    _, unbalanced = steps(polar_unbalanced)
    _, balanced = steps(polar)
    _, without_bias = steps(polar, bias=False)
    for one, other, right in zip(unbalanced, balanced, without_bias, strict=True):
        assert_near(one["kernel"], right["kernel"], 1e-5)
        assert not np.allclose(other["kernel"], right["kernel"], rtol=1e-2)
