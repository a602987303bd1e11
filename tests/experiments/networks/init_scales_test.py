"""Profiles give the factors that their names say, and only kernels are scaled."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks.init_scales import (
    PROFILES,
    kernel_positions,
    profile_scales,
    scale_kernels,
)

PARAMS = {
    "hidden_10": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "hidden_2": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "hidden_0": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "norm_0": {"scale": jnp.ones(2)},
    "output": {"kernel": jnp.ones((2, 5), jnp.bfloat16), "bias": jnp.ones(5)},
}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("all", [100, 100, 100, 100]),
        ("first", [100, 1, 1, 1]),
        ("middle", [1, 1, 100, 1]),
        ("last", [1, 1, 1, 100]),
        ("alternating", [100, 0.01, 100, 0.01]),
    ],
)
def test_profiles_give_the_factors_of_their_names(profile, expected):
    scales = profile_scales(profile, 100.0, 4, seed=0)
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert scales.dtype == np.float32


def test_log_uniform_fills_its_range_evenly_and_follows_its_seed():
    logs = np.log10(profile_scales("log_uniform", 1e-8, 20_000, seed=3))
    # A uniform distribution on [-8, 8] has mean 0 and deviation 16 / √12.
    assert -8 <= logs.min() < -7.99
    assert 7.99 < logs.max() <= 8
    assert abs(logs.mean()) < 4 * 16 / 12**0.5 / 20_000**0.5
    np.testing.assert_allclose(logs.std(), 16 / 12**0.5, rtol=0.02)
    same = profile_scales("log_uniform", 1e8, 5, seed=1)
    np.testing.assert_array_equal(same, profile_scales("log_uniform", 1e8, 5, seed=1))
    assert (same != profile_scales("log_uniform", 1e8, 5, seed=2)).all()


@pytest.mark.parametrize("profile", PROFILES)
def test_scale_one_changes_nothing(profile):
    np.testing.assert_array_equal(profile_scales(profile, 1.0, 7, seed=0), np.ones(7))


def test_kernels_are_scaled_in_the_order_of_the_layers():
    scaled = scale_kernels(PARAMS, jnp.array([2.0, 4.0, 8.0, 16.0]))
    factors = {"hidden_0": 2, "hidden_2": 4, "hidden_10": 8, "output": 16}
    for name, factor in factors.items():
        np.testing.assert_array_equal(
            scaled[name]["kernel"], factor * PARAMS[name]["kernel"]
        )
        np.testing.assert_array_equal(scaled[name]["bias"], PARAMS[name]["bias"])
    np.testing.assert_array_equal(scaled["norm_0"]["scale"], jnp.ones(2))
    assert scaled["output"]["kernel"].dtype == jnp.bfloat16
    assert len(kernel_positions(PARAMS)) == 4
    with pytest.raises(ValueError, match=r"4 kernels .* \(3,\)"):
        scale_kernels(PARAMS, jnp.ones(3))


def test_unknown_profiles_and_scales_that_float32_cannot_hold_are_refused():
    for scale in (0.0, -1.0, np.nan, np.inf, 1e39):
        message = "init_scale must be .* got " + re.escape(str(scale))
        with pytest.raises(ValueError, match=message):
            profile_scales("all", scale, 3, seed=0)
    with pytest.raises(ValueError, match=r"all, first, .* got 'every'"):
        profile_scales("every", 1.0, 3, seed=0)
