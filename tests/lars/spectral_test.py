"""Singular values, from products of matrices alone, are those of a decomposition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import lars
from lars import spectral
from lars.spectral import (
    Spectral,
    as_matrices,
    from_matrices,
    orthogonalize,
    scaled_spectral_norm,
    spectral_norm,
)
from tests.lars.steps import first_step, run


@functools.partial(jax.jit, static_argnames=("steps", "dtype"))
def polar(x, steps=8, dtype=jnp.float32):
    return orthogonalize(x, steps, dtype)


norm = jax.jit(spectral_norm)
scaled_norm = jax.jit(scaled_spectral_norm)

SHAPES = [(40, 8), (8, 40), (2, 2), (9, 1), (1, 1), (3, 5, 4)]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def elements(*shape):
    """Random matrices with elements from 1 to 2 in size, float32."""
    rng = np.random.default_rng(sum(shape))
    x = rng.uniform(1, 2, shape) * rng.choice([-1, 1], shape)
    return x.astype(np.float32)


def rotation(size):
    rng = np.random.default_rng(size)
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def with_singular_values(rows, values):
    columns = len(values)
    return rotation(rows)[:, :columns] * np.asarray(values) @ rotation(columns).T


def singular_values(x):
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def exact_polar(x):
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


def number(x):
    return np.ldexp(np.float64(x.fraction), x.exponent)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_gives_the_polar_factor_of_the_decomposition(shape):
    x = elements(*shape)
    assert polar(x).dtype == jnp.float32
    np.testing.assert_allclose(polar(x), exact_polar(x), atol=3e-6)


def test_more_steps_come_closer_to_the_polar_factor():
    with jax.enable_x64(True):
        x = with_singular_values(20, np.logspace(0, -4, 10))
        errors = [
            np.max(np.abs(polar(x, steps, jnp.float64) - exact_polar(x)))
            for steps in (2, 5, 8, 20)
        ]
        assert polar(x, 20, jnp.float64).dtype == jnp.float64
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


# From which singular value on the steps reach which interval.
REACHED = {
    1: (0.1, 0.546, 1.454),
    2: (0.0317, 0.625, 1.363),
    3: (0.01, 0.705, 1.270),
    4: (0.0032, 0.778, 1.184),
    5: (0.001, 0.839, 1.114),
    6: (0.001, 0.992, 1.001),
    7: (0.001, 1 - 1e-5, 1 + 1e-5),
    12: (0.001, 1 - 1e-5, 1 + 1e-5),
}


@pytest.mark.parametrize("steps", REACHED)
@pytest.mark.parametrize("rows", [20, 40])  # by the matrix, and by its Gram matrix
def test_the_steps_bring_singular_values_into_an_interval(steps, rows):
    lowest, *interval = REACHED[steps]
    x = with_singular_values(rows, np.geomspace(1, 2 * lowest, 20)).astype(np.float32)
    values = singular_values(x) / np.linalg.norm(x)
    values = values[values >= lowest]
    reached = singular_values(polar(x, steps))[: len(values)]
    assert interval[0] < reached.min() <= reached.max() < interval[1]


@pytest.mark.parametrize("steps", range(1, 10))
@pytest.mark.parametrize("shape", [(12, 9), (27, 9), (9, 40)])
def test_the_iteration_is_a_polynomial_of_the_singular_values(steps, shape):
    x = with_singular_values(max(shape), np.geomspace(1, 0.002, 9))
    x = (x.T if shape[0] < shape[1] else x).astype(np.float32)
    u, values, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    values /= np.linalg.norm(values)
    for a, b, c in spectral._quintics(steps, spectral.smallest_aim(steps)):
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose(polar(x, steps), u * values @ vt, atol=1e-4)


@given(st.floats(1e-3, 0.8), st.floats(1, 1.5), st.lists(FLOATS, min_size=3))
@settings(deadline=None, max_examples=50)
def test_no_other_quintic_is_closer_to_one(low, high, others):
    x = np.linspace(low, high, 2000)
    powers = np.stack([x, x**3, x**5])
    best, error = spectral._closest_to_one(low, high)
    np.testing.assert_allclose(np.max(np.abs(best @ powers - 1)), error, rtol=1e-4)
    change = np.float64(others[:3])
    change *= 1e-3 / max(1, np.abs(change).max())
    assert np.max(np.abs((best + change) @ powers - 1)) >= error * (1 - 1e-4)


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("lowest", [None, 0.001, 0.1])
def test_no_singular_value_changes_its_sign(steps, lowest):
    values = np.geomspace(1e-12, 1, 100_000)
    for a, b, c in spectral._quintics(steps, lowest or spectral.smallest_aim(steps)):
        values = a * values + b * values**3 + c * values**5
    assert 0 < values.min() <= values.max() < (1.46 if lowest is None else 2)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 6), (24, 6), (6, 15)]))
@settings(deadline=None, max_examples=30)
def test_the_step_is_one_of_descent(seed, shape):
    # Published coefficients exist that turn matrices of rank one, and orthogonal ones.
    rng = np.random.default_rng(seed)
    rank_one = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
    for x in (rank_one, exact_polar(rng.normal(size=shape)), rng.normal(size=shape)):
        for steps, dtype in ((3, jnp.float32), (5, jnp.float32), (5, jnp.bfloat16)):
            factor = np.float64(polar(x.astype(np.float32), steps, dtype))
            sizes = np.linalg.norm(factor) * np.linalg.norm(x)
            assert np.sum(factor * x) > 0.5 * sizes


@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (2, 5, 1)])
def test_a_vector_is_divided_by_its_norm_whatever_the_options(shape):
    x = elements(*shape)
    unit = x / np.linalg.norm(x.astype(np.float64), axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(polar(x, 1, jnp.bfloat16), unit, rtol=3e-7)


@pytest.mark.parametrize("shape", [(40, 8), (9, 1), (3, 5, 4)])
@pytest.mark.parametrize("exponent", [-126, -70, 10, 127])
def test_a_power_of_two_changes_no_bit(exponent, shape):
    x = elements(*shape)
    scaled = np.ldexp(x, exponent)
    np.testing.assert_array_equal(polar(scaled), polar(x))
    expected = np.ldexp(np.float64(norm(x)), exponent)
    np.testing.assert_array_equal(number(scaled_norm(scaled)), expected)


def test_subnormal_elements_count():
    x = np.float32([[1, 2], [3, -4], [5, 6]])
    tiny = np.ldexp(x, -149)
    np.testing.assert_allclose(polar(tiny), exact_polar(x), atol=3e-6)
    np.testing.assert_allclose(
        number(scaled_norm(tiny)), np.ldexp(singular_values(x)[0], -149), rtol=1e-6
    )


@given(st.lists(FLOATS, min_size=6, max_size=6))
@settings(deadline=None, max_examples=100)
def test_any_mixture_of_floats_is_orthogonalized(values):
    x = np.reshape(np.float32(values), (3, 2))
    largest = singular_values(x)[0]
    np.testing.assert_allclose(number(scaled_norm(x)), largest, rtol=1e-6)
    # No singular value beyond one, and none turned around.
    factor = np.float64(polar(x))
    assert np.linalg.norm(factor, 2) < 1 + 1e-5
    inner = np.sum(factor * x)
    np.testing.assert_allclose(
        inner, np.sum(singular_values(x)), rtol=2e-2, atol=2e-3 * largest
    )


def test_each_matrix_of_a_batch_has_its_own_scale():
    batch = np.stack([np.ldexp(elements(6, 4), k) for k in (-120, 0, 100, 126)])
    batch = batch[:, None] * np.float32([1, -1])[:, None, None]  # [4, 2, 6, 4]
    one_by_one = [[polar(x) for x in row] for row in batch]
    np.testing.assert_allclose(polar(batch), one_by_one, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(polar)(batch), one_by_one, atol=2e-6)
    norms = scaled_norm(batch)
    assert norms.fraction.shape == norms.exponent.shape == (4, 2)
    expected = singular_values(batch)[..., 0]
    np.testing.assert_allclose(number(norms), expected, rtol=1e-6)
    np.testing.assert_allclose(number(jax.vmap(scaled_norm)(batch)), expected, 1e-6)


def test_nan_stays_in_its_matrix():
    for shape in ((3, 6, 4), (3, 6, 1)):
        x = elements(*shape)
        broken = x.copy()
        broken[1, 2, 0] = np.nan
        factors = np.asarray(polar(broken))
        assert np.isnan(factors[1]).all()
        np.testing.assert_array_equal(factors[::2], polar(x)[::2])
        norms = number(scaled_norm(broken))
        assert np.isnan(norms[1])
        np.testing.assert_array_equal(norms[::2], number(scaled_norm(x))[::2])


@pytest.mark.parametrize("shape", [(6, 1), (0, 4), (2, 3, 3)])
def test_zero_stays_zero_and_has_a_derivative(shape):
    x = np.zeros(shape, np.float32)
    np.testing.assert_array_equal(polar(x), x)
    np.testing.assert_array_equal(number(scaled_norm(x)), np.zeros(shape[:-2]))
    assert np.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(polar(x))))(x)).all()
    slope = jax.jit(jax.grad(lambda x: jnp.sum(norm(x))))(x)
    np.testing.assert_array_equal(slope, x)


def test_directions_of_singular_value_zero_stay_so():
    x = np.outer(elements(30), elements(7))
    unit = x / np.linalg.norm(x)
    np.testing.assert_allclose(polar(x), unit, atol=1e-3)
    np.testing.assert_allclose(singular_values(polar(x))[1:], 0, atol=1e-3)


def products(function, *shape):
    """The lines of a program that multiply matrices."""
    lowered = jax.jit(function).lower(np.zeros(shape, np.float32)).as_text()
    return [line for line in lowered.split("\n") if "dot_general" in line]


@pytest.mark.parametrize("function", [orthogonalize, spectral_norm])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_products_are_small_and_ask_for_full_precision(shape, function):
    """The Gram matrix is the smaller one of the two."""
    lines = products(function, *shape)
    assert lines
    for line in lines:
        of_result = line.split("-> tensor<")[1].split("xf32")[0]
        assert np.prod([int(n) for n in of_result.split("x")]) <= 8 * 40
        assert "precision = [HIGHEST, HIGHEST]" in line


@pytest.mark.parametrize("shape", [(24, 8), (3, 3)])
def test_bfloat16_leaves_singular_values_near_one(shape):
    rng = np.random.default_rng(1)
    orthogonal = exact_polar(rng.normal(size=(200, *shape))).astype(np.float32)
    columns = rng.normal(size=(200, shape[0], 1)).astype(np.float32)
    rank_one = columns * rng.normal(size=shape[-1:]).astype(np.float32)
    for x, rank in ((orthogonal, min(shape)), (rank_one, 1)):
        result = polar(x, dtype=jnp.bfloat16)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(singular_values(result)[:, :rank], 1, atol=0.02)


def test_with_bfloat16_the_factors_are_bfloat16_and_the_sums_float32():
    lines = products(lambda x: orthogonalize(x, dtype=jnp.bfloat16), 6, 4)
    assert len(lines) == 3  # in one step
    for line in lines:
        factors, result = line.split(" : ")[1].split("->")
        assert factors.count("bf16") == 2
        assert "f32" in result


def test_the_derivative_of_the_polar_factor_is_exact():
    with jax.enable_x64(True):
        x, dx = (elements(6, 4).astype(np.float64) * [1, k, 1, -k] for k in (2, 3))
        _, tangent = jax.jit(
            lambda x, dx: jax.jvp(lambda x: polar(x, 12, jnp.float64), (x,), (dx,))
        )(x, dx)
        gradient = jax.jit(
            jax.grad(lambda x, dx: jnp.sum(polar(x, 12, jnp.float64) * dx))
        )(x, dx)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    inner = u.T @ dx @ vt.T
    rotating = u @ ((inner - inner.T) / (s[:, None] + s)) @ vt
    outside = (dx - u @ u.T @ dx) @ vt.T / s @ vt
    np.testing.assert_allclose(tangent, rotating + outside, atol=1e-10)
    # The derivative is symmetric: the polar factor is the gradient of the sum of the
    # singular values.
    np.testing.assert_allclose(gradient, tangent, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_is_the_largest_singular_value(shape):
    x = elements(*shape)
    assert norm(x).dtype == jnp.float32
    np.testing.assert_allclose(norm(x), singular_values(x)[..., 0], rtol=1e-6)


@pytest.mark.parametrize("gap", [0, 1e-5, 5e-4, 1e-2])
def test_the_norm_is_right_where_all_singular_values_are_close(gap):
    for values in (np.linspace(1, 1 - gap, 30), [1, *29 * [1 - gap]]):
        x = with_singular_values(50, values)
        np.testing.assert_allclose(norm(x.astype(np.float32)), 1, rtol=5e-6)


def test_the_norm_is_right_where_another_column_is_longer_at_first():
    # The largest singular vector has a little of every column, the next is a column.
    gap, size = 2e-3, 65
    spread = np.append(np.full(size - 1, (size - 1) ** -0.5), 0)
    x = np.outer(spread, spread)
    x[-1, -1] = 1 - gap
    x = x.astype(np.float32)
    np.testing.assert_allclose(norm(x), 1, rtol=1e-6)


SPECTRA = {
    "even": np.linspace(1, 0, 200),
    "of Chebyshev": np.sqrt((1 + np.cos(np.pi * np.arange(200) / 200)) / 2),
    "dense at the top": 1 - np.linspace(0, 1, 200) ** 3,
    "narrow": np.linspace(1, 0.999, 200),
    "one apart": np.append(1, np.full(199, 0.99)),
    "equal": np.ones(200),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_norm_of_a_large_matrix_is_right_within_a_thousandth(spectrum):
    x = with_singular_values(230, SPECTRA[spectrum]).astype(np.float32)
    assert 1 - 1e-3 < norm(x) < 1 + 1e-6
    assert scaled_norm(x * np.float32(1e37)).value == pytest.approx(1e37, rel=1e-3)


def test_the_norm_of_a_large_random_matrix_is_exact():
    x = np.random.default_rng(0).normal(size=(3, 90, 300)).astype(np.float32)
    np.testing.assert_allclose(norm(x), singular_values(x)[:, 0], rtol=1e-6)


def test_the_derivative_of_the_norm_is_exact():
    x = elements(6, 4)
    u, _, vt = np.linalg.svd(x)
    gradient = jax.jit(jax.grad(norm))(x)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-6)


def test_the_norm_keeps_the_precision_of_float64():
    with jax.enable_x64(True):
        x = elements(12, 5).astype(np.float64) + 1e-9 * elements(12, 5)[::-1]
        result = scaled_norm(x * 1e300)
        assert result.fraction.dtype == jnp.float64
        exact = singular_values(x)[0] * 1e300
        np.testing.assert_allclose(number(result), exact, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "layers", "outputs", "order", "matrices"),
    [
        # The last axis counts outputs, where nothing else is said.
        ((3, 2, 5, 4), (), None, (0, 1, 2, 3), (30, 4)),
        ((5, 4), (), None, (0, 1), (5, 4)),
        ((4,), (), None, (0,), (4, 1)),
        ((), (), None, (), (1, 1)),
        ((3, 2, 5, 4), (3, 0), None, (3, 0, 1, 2), (4, 3, 2, 5)),
        ((3, 2, 5, 4), (-1, 1, 0), None, (3, 1, 0, 2), (4, 2, 3, 5, 1)),
        ((5, 4), (0, 1), None, (0, 1), (5, 4, 1, 1)),
        ((3, 5, 4), (), (1, 2), (0, 1, 2), (3, 20)),
        ((3, 5, 4), (), (0,), (1, 2, 0), (20, 3)),
        ((3, 5, 4), (), (), (0, 1, 2), (60, 1)),
        ((3, 5, 4), (-1,), (1,), (2, 0, 1), (4, 3, 5)),
    ],
)
def test_kernels_become_matrices_of_inputs_and_outputs(
    shape, layers, outputs, order, matrices
):
    kernel = elements(*shape)
    expected = np.transpose(kernel, order).reshape(matrices)
    np.testing.assert_array_equal(as_matrices(kernel, layers, outputs), expected)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_matrices_become_kernels_again(data):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=5))
    axes = data.draw(st.permutations(range(len(shape))))
    first = data.draw(st.integers(0, len(shape)))
    second = data.draw(st.integers(first, len(shape)))
    axes, outputs = axes[:first], data.draw(st.sampled_from([None, axes[first:second]]))
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    matrices = as_matrices(x, axes, outputs)
    assert matrices.ndim == len(axes) + 2
    np.testing.assert_array_equal(from_matrices(matrices, shape, axes, outputs), x)


def test_where_only_the_decay_moves_a_layer_its_step_is_bounded():
    # d = βw = 10β I, whose orthogonal factor is I: λ = η‖w‖/(1 + ε) with ‖w‖ = 10.
    w = 10 * jnp.eye(2)
    optimizer = lars.lars(1.0, 0.1, eps=0.25, momentum=0.0, geometry="spectral")
    updates, _ = first_step(optimizer, jnp.zeros((2, 2)), w)
    np.testing.assert_allclose(updates, -0.008 * np.eye(2), rtol=1e-4, atol=1e-8)


def test_the_step_is_the_polar_factor_in_the_size_of_the_spectral_norm():
    w, g = elements(6, 4), 100 * elements(6, 4)[::-1]
    optimizer = lars.lars(0.5, momentum=0.0, geometry="spectral")
    updates, _ = first_step(optimizer, g, w)
    size = 0.5 * 1e-3 * np.linalg.norm(np.asarray(w, np.float64), 2)
    np.testing.assert_allclose(updates, -size * exact_polar(g), rtol=0.01, atol=1e-6)


def test_a_direction_of_zero_has_the_ratio_of_zero_norms():
    # Its orthogonal factor is zero, and so is the denominator.
    w = jnp.asarray(elements(6, 4))
    optimizer = lars.lars(1.0, geometry="spectral", zero_norm="one")
    updates, state = first_step(optimizer, jnp.zeros_like(w), w)
    np.testing.assert_array_equal(updates, 0)
    assert lars.trust_ratios(state) == 1


def test_a_ratio_that_arrays_share_is_divided_by_the_root_of_their_number():
    w = {"kernel": elements(6, 4), "bias": elements(4)}
    g = {"kernel": elements(6, 4)[::-1], "bias": elements(4)[::-1]}
    optimizer = lars.lars(1.0, momentum=0.0, geometry="spectral", layer="module")
    _, state = first_step(optimizer, g, w)
    norms = [np.linalg.norm(w["kernel"], 2), np.linalg.norm(w["bias"])]
    expected = 1e-3 * np.linalg.norm(norms) / 2**0.5
    for ratio in lars.trust_ratios(state).values():
        np.testing.assert_allclose(ratio, expected, rtol=1e-6)


def test_with_momentum_of_gradients_it_is_the_momentum_that_is_orthogonalized():
    w, gradients = elements(6, 4), [elements(6, 4)[::-1], -0.3 * elements(6, 4)]
    optimizer = lars.lars(
        0.5, momentum=0.9, momentum_of="gradient", geometry="spectral"
    )
    weights, _ = run(optimizer, w, gradients)
    v = 0.9 * np.float64(gradients[0]) + gradients[1]
    size = 0.5 * 1e-3 * np.linalg.norm(np.float64(weights[0]), 2)
    np.testing.assert_allclose(
        weights[1] - weights[0], -size * exact_polar(v), rtol=0.01, atol=1e-6
    )


def test_steps_and_dtype_of_the_orthogonalization_can_be_chosen():
    w, g = elements(6, 4), elements(6, 4)[::-1]
    size = 1e-3 * np.linalg.norm(np.float64(w), 2)
    coarse = Spectral(steps=2, dtype=jnp.bfloat16)
    updates, _ = first_step(lars.lars(1.0, momentum=0.0, geometry=coarse), g, w)
    expected = -size * np.asarray(polar(g, *coarse))
    np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-3 * size)
    for other in (Spectral(steps=2), Spectral(dtype=jnp.bfloat16)):
        assert np.abs(expected / size + np.asarray(polar(g, *other))).max() > 2e-3


def test_axes_that_count_outputs_can_be_named():
    # An attention kernel [embed, heads, head_dim] is a matrix of heads * head_dim
    # columns; here of three experts. A depthwise kernel is vectors.
    shapes = {"experts": (3, 5, 2, 2), "depthwise": (3, 2, 4)}
    w, g = ({name: elements(*s)[::i] for name, s in shapes.items()} for i in (1, -1))
    experts, depthwise = lars.select(path="experts"), lars.select(path="depthwise")
    optimizer = lars.lars(
        1.0,
        momentum=0.0,
        geometry=Spectral(steps=14),
        stacked=[(experts, 0), (depthwise, -1)],
        output_axes=[(experts, (-2, -1)), (depthwise, ())],
    )
    updates, state = first_step(optimizer, g, w)
    matrices, gradients = (x["experts"].reshape(3, 5, 4) for x in (w, g))
    ratios = 1e-3 * singular_values(matrices)[:, 0]
    np.testing.assert_allclose(lars.trust_ratios(state)["experts"], ratios, rtol=1e-6)
    expected = -ratios[:, None, None] * exact_polar(gradients)
    np.testing.assert_allclose(
        updates["experts"].reshape(3, 5, 4), expected, rtol=1e-4, atol=1e-6
    )
    norms, lengths = (np.linalg.norm(x["depthwise"], axis=(0, 1)) for x in (w, g))
    np.testing.assert_allclose(
        updates["depthwise"], -1e-3 * norms * g["depthwise"] / lengths, rtol=1e-5
    )
