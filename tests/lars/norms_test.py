"""The norm is right over the whole range of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from lars import l2_norm
from lars.norms import scaled_l2_norms, unit
from lars.sharded import ArrayAxes

norm = jax.jit(l2_norm)
gradient = jax.jit(jax.grad(l2_norm))
jitted_unit = jax.jit(unit)

SCALES = [1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1.0, 1e10, 1e19, 1e25, 1e36]


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
    ("x", "message"),
    [
        *(
            (x, f"one array, got {type(x).__name__}: .*optax.tree.norm")
            for x in ({"w": np.ones(2)}, {}, None, (np.ones(2), np.ones(3)), "array")
        ),
        *((np.ones(3, dtype), dtype) for dtype in ("int32", "bool")),
    ],
)
def test_only_arrays_of_floats_have_a_norm(x, message):
    with pytest.raises(TypeError, match=message):
        l2_norm(x)


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
            np.testing.assert_allclose(norm(x), exact, rtol=1e-15)
            assert norm(x).dtype == jnp.float64
        # Elements about the root of the smallest number: some squares are flushed.
        x = jnp.asarray(elements(1e-154, 10_000, np.float64))
        exact = np.linalg.norm(np.asarray(x) * 1e154) * 1e-154
        np.testing.assert_allclose(norm(x), exact, rtol=1e-14)


def test_zeros_empty_scalars_and_what_is_not_finite():
    assert norm(np.zeros((0, 2), np.float32)) == 0
    assert norm(np.float32(-3.0)) == 3
    assert norm(np.zeros(2, np.float32)) == 0
    assert norm(np.full(2, 3e38, np.float32)) == np.inf
    assert norm(np.float32([np.inf, 1e38])) == np.inf
    assert np.isnan(norm(np.float32([np.nan, 1.0])))
    assert np.isnan(norm(np.float32([np.nan, 1e38])))


@pytest.mark.parametrize("scale", SCALES)
def test_the_gradient_is_the_unit_vector_and_zero_at_zero(scale):
    x = elements(scale, 50)
    unit = x.astype(np.float64) / float64_norm(x)
    np.testing.assert_allclose(gradient(x), unit, rtol=1e-5)
    np.testing.assert_array_equal(gradient(0 * x), 0 * x)


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


def random_powers(seed, shape, num, dtype=np.float32, spread=0):
    """Random arrays, random powers of two, and the products: no subnormal elements.

    Of a spread of 40 the elements are of any size between 1 and 2**-40.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(1, 2, (num, *shape)) * rng.choice([-1, 1], (num, *shape))
    x = np.ldexp(x.astype(dtype), rng.integers(-spread, 1, x.shape, np.int32))
    bound = np.finfo(dtype).maxexp - 8
    k = rng.integers(spread - bound, bound + 1, num, np.int32)
    return x, k, np.ldexp(x, k.reshape(-1, *(1 for _ in shape)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (37, 5), (40, 300)])
def test_a_power_of_two_changes_no_bit_of_the_norm(shape, dtype):
    num = 2000 if np.prod(shape) < 1000 else 200
    with jax.enable_x64(True):
        for many in (jax.vmap(l2_norm), lambda x: jax.lax.map(l2_norm, x)):
            norms = jax.jit(many)
            for spread in (0, 40):
                x, k, scaled = random_powers(0, shape, num, dtype, spread)
                np.testing.assert_array_equal(np.ldexp(norms(x), k), norms(scaled))


def test_a_power_of_two_changes_no_bit_of_any_of_many_norms():
    shapes = [(37, 5), (5,), (64, 70), (6, 37, 5), (3, 3, 4, 8), (37, 5)]
    layers = [(), (), (), (0,), (), ()]

    @jax.jit
    def norms(arrays):
        return scaled_l2_norms(arrays, [ArrayAxes(axes) for axes in layers])

    sizes = [6 if axes else 1 for axes in layers]
    for seed in range(30):
        x, k, scaled = zip(
            *(random_powers((seed, i), s, 1) for i, s in enumerate(shapes)), strict=True
        )
        norm, of_scaled = (
            np.ldexp(np.float64(n.fraction), n.exponent)
            for n in (norms([a[0] for a in x]), norms([a[0] for a in scaled]))
        )
        k = np.repeat(np.concatenate(k), sizes)
        np.testing.assert_array_equal(np.ldexp(norm, k), of_scaled)


@pytest.mark.parametrize(
    "make",
    [
        lambda g, w: g + np.float32(0.37) * w,
        lambda g, w: g.astype(jnp.bfloat16).astype(np.float32),
        lambda g, w: g.T * 3,
    ],
)
def test_a_power_of_two_changes_no_bit_where_the_array_is_computed_on_the_way(make):
    norm = jax.jit(lambda g, w: l2_norm(make(g, w)))
    rng = np.random.default_rng(0)
    for k in range(-90, 91, 4):
        g, w = rng.standard_normal((2, 37, 5)).astype(np.float32)
        assert np.ldexp(norm(g, w), k) == norm(np.ldexp(g, k), np.ldexp(w, k))


def test_without_biases_powers_of_two_change_no_bit_of_the_loss():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(64, 20)), rng.integers(0, 10, 64)
    shapes = [(20, 37), (37, 5), (5, 10)]
    kernels = [np.float32(rng.normal(size=s) * np.sqrt(2 / s[0])) for s in shapes]
    optimizer = lars.lars(1.0, weight_decay=0.0)

    @jax.jit
    def losses(start, undo):
        def loss(kernels):
            x = jnp.float32(images)
            for kernel in kernels[:-1]:
                x = jax.nn.relu(x @ kernel)
            logits = x @ kernels[-1] * undo
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        def step(carry, _):
            kernels, state = carry
            value, grads = jax.value_and_grad(loss)(kernels)
            updates, state = optimizer.update(grads, state, kernels)
            return (optax.apply_updates(kernels, updates), state), value

        return jax.lax.scan(step, (start, optimizer.init(start)), length=60)[1]

    expected = losses(kernels, np.float32(1))
    assert expected[-1] < expected[0]
    for exponents in ([20, -15, -12], [-60, 30, -50]):
        scaled = [np.ldexp(k, e) for k, e in zip(kernels, exponents, strict=True)]
        undo = np.ldexp(np.float32(1), -sum(exponents))
        np.testing.assert_array_equal(losses(scaled, undo), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_the_norm_of_complex_numbers(scale):
    z = elements(scale, 50) + 1j * elements(scale, 50)[::-1]
    assert z.dtype == np.complex64
    exact = np.sqrt(np.sum(np.abs(z.astype(np.complex128)) ** 2))
    assert norm(z).dtype == jnp.float32
    assert_close(norm(z), exact)
    parts, scaled = jitted_unit(z)
    assert_close(np.ldexp(np.float64(scaled.fraction), scaled.exponent), exact)
    np.testing.assert_allclose(parts, z.astype(np.complex128) / exact, rtol=1e-5)
    # JAX's gradient of a real function is the conjugate of the steepest ascent.
    np.testing.assert_allclose(
        gradient(z), np.conj(z).astype(np.complex128) / exact, rtol=1e-5
    )


def test_norms_of_complex_layers_and_of_double_precision():
    rng = np.random.default_rng(0)
    z = (rng.standard_normal((4, 3, 2)) + 1j * rng.standard_normal((4, 3, 2))) * 1e-30
    norms = jax.jit(lambda z: scaled_l2_norms([z], [ArrayAxes((1,))]))(np.complex64(z))
    actual = np.ldexp(np.float64(norms.fraction), norms.exponent)
    np.testing.assert_allclose(actual, np.linalg.norm(z, axis=(0, 2)), rtol=1e-6)
    with jax.enable_x64(True):
        derivative = jax.jit(lambda z, dz: jax.jvp(l2_norm, (z,), (dz,)))
        whole, of_size = derivative(z, z)
        assert whole.dtype == jnp.float64
        np.testing.assert_allclose(whole, np.linalg.norm(z), rtol=1e-14)
        np.testing.assert_allclose(derivative(z, 1j * z)[1], 0, atol=1e-40)
        np.testing.assert_allclose(of_size, np.linalg.norm(z), rtol=1e-12)
