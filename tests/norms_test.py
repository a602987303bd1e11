"""The norm is right over the whole range of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lars import l2_norm

norm = jax.jit(l2_norm)
gradient = jax.jit(jax.grad(l2_norm))

SCALES = [1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e19, 1e25, 1e36]


def elements(scale, size, dtype=np.float32):
    rng = np.random.default_rng(size)
    return (scale * rng.uniform(0.5, 2, size) * rng.choice([-1, 1], size)).astype(dtype)


def float64_norm(x):
    return np.sqrt(np.sum(np.asarray(x).astype(np.float64) ** 2))


def assert_close(actual, expected, rtol=1e-6):
    # One unit of the smallest number is all the precision that a subnormal has.
    np.testing.assert_allclose(np.float64(actual), expected, rtol=rtol, atol=1.4e-45)


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("scale", SCALES)
def test_equals_float64_at_every_scale(scale, size):
    x = elements(scale, size)
    assert_close(norm(x), float64_norm(x))


@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_the_limits_that_are_promised(scale):
    x = np.full(7, scale, np.float32)
    assert_close(norm(x), float64_norm(x))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9))
@settings(deadline=None, max_examples=200)
def test_equals_float64_on_any_mixture_of_floats(values):
    x = np.zeros(9, np.float32)
    x[: len(values)] = values
    expected = float64_norm(x)
    if expected <= np.finfo(np.float32).max:
        assert_close(norm(x), expected)
    else:
        assert np.isinf(norm(x))


@pytest.mark.parametrize(
    "tree", [{"w": np.ones(2)}, {}, None, (np.ones(2), np.ones(3)), "array"]
)
def test_a_tree_is_not_an_array(tree):
    name = type(tree).__name__
    with pytest.raises(TypeError, match=f"one array, got {name}: .*optax.tree.norm"):
        l2_norm(tree)


def test_large_arrays_keep_their_precision():
    x = np.full(2**24 + 3, 0.1, np.float32)
    assert_close(norm(x), float64_norm(x))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 300.0, 6e4])
def test_low_precision_is_widened_first(scale, dtype):
    x = jnp.asarray(elements(1.0, 100) * scale / 2, dtype)
    assert norm(x).dtype == jnp.float32
    assert_close(norm(x), float64_norm(x))


def test_float64_keeps_its_precision():
    with jax.enable_x64(True):
        for scale in (1e-300, 1.0, 1e300):
            x = jnp.asarray(elements(scale, 9, np.float64))
            exact = np.linalg.norm(np.asarray(x) / scale) * scale
            np.testing.assert_allclose(jax.jit(l2_norm)(x), exact, rtol=1e-15)
            assert l2_norm(x).dtype == jnp.float64
        # Elements about the root of the smallest number: some squares are flushed.
        x = jnp.asarray(elements(1e-154, 10_000, np.float64))
        exact = np.linalg.norm(np.asarray(x) * 1e154) * 1e-154
        np.testing.assert_allclose(jax.jit(l2_norm)(x), exact, rtol=1e-14)


def test_zeros_empty_scalars_and_what_is_not_finite():
    assert norm(np.zeros((3, 2), np.float32)) == 0
    assert norm(np.zeros((0, 2), np.float32)) == 0
    assert norm(np.float32(-3.0)) == 3
    assert norm(np.full(4, 3e38, np.float32)) == np.inf
    assert norm(np.float32([np.inf, 1e38])) == np.inf
    assert np.isnan(norm(np.float32([np.nan, 1.0])))
    assert np.isnan(norm(np.float32([np.nan, 1e38])))


@pytest.mark.parametrize("scale", SCALES)
def test_the_gradient_is_the_unit_vector(scale):
    x = elements(scale, 50)
    unit = x.astype(np.float64) / float64_norm(x)
    np.testing.assert_allclose(gradient(x), unit, rtol=1e-5)


def test_the_gradient_at_zero_is_zero():
    np.testing.assert_array_equal(gradient(np.zeros(3, np.float32)), np.zeros(3))


def test_the_second_derivative_is_the_projection():
    x = elements(1.0, 4)
    r = float64_norm(x)
    unit = x / r
    np.testing.assert_allclose(
        jax.jit(jax.hessian(l2_norm))(x),
        (np.eye(4) - np.outer(unit, unit)) / r,
        rtol=1e-4,
        atol=1e-6,
    )


def test_vmap_and_scan_give_each_row_its_own_norm():
    rows = np.stack([elements(scale, 20) for scale in SCALES])
    expected = [float64_norm(row) for row in rows]
    assert_close(jax.jit(jax.vmap(l2_norm))(rows), expected)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, l2_norm(row)), 0, rows)
    assert_close(scanned, expected)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=dtype):
        l2_norm(np.ones(3, dtype))
