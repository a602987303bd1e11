"""Which arrays are kernels, whose biases are whose, and what constant inputs make."""

import jax
import numpy as np
import pytest

from lars.kernels import (
    biases_of,
    by_constant_input,
    can_tell_constant_input,
    kernels_of,
    preserving_norm,
)


def test_which_bias_belongs_to_which_kernel():
    params = {
        "a": {"bias": np.ones(3), "kernel": np.ones((2, 3)), "other": np.ones(2)},
        "b": {"scale": np.ones(3)},
        "d": {"kernel": np.ones((2, 3)), "other": np.ones(2)},
        "c": {"first": np.ones(4), "kernel": np.ones((3, 3, 2, 4)), "more": np.ones(4)},
    }
    # In the order of the tree: a/bias, a/kernel, a/other, b/scale, c/first, ...
    assert [kernel.leaf for kernel in kernels_of(params)] == [1, 5, 7]
    assert biases_of(params) == {1: 0, 5: 4}


def test_side_by_side_nothing_says_whose_bias_a_vector_is():
    shapes = {"b1": (4,), "b2": (4,), "w1": (4, 4), "w2": (4, 4)}
    assert biases_of({name: np.ones(shape) for name, shape in shapes.items()}) == {}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 2, 5)])
def test_a_gradient_of_constant_inputs_is_found_out(shape, scale):
    rng = np.random.default_rng(0)
    inputs = int(np.prod(shape[:-1]))
    errors = rng.normal(size=(20, shape[-1]))
    constant = np.outer(h := rng.normal(size=inputs), errors.sum(axis=0))

    def parts(h):
        gradient = (scale * h.T @ errors).astype(np.float32).reshape(shape)
        bias = (scale * errors.sum(axis=0)).astype(np.float32)
        return map(np.asarray, by_constant_input(gradient, bias))

    made, rest = parts(np.tile(h, (20, 1)))
    np.testing.assert_allclose(made, constant / np.linalg.norm(constant), atol=1e-6)
    np.testing.assert_allclose(rest, 0, atol=1e-6)

    # Of other inputs: the two are the gradient, and orthogonal to each other.
    varied = rng.normal(size=(20, inputs))
    made, rest = parts(varied)
    whole = varied.T @ errors
    np.testing.assert_allclose(made + rest, whole / np.linalg.norm(whole), atol=1e-6)
    np.testing.assert_allclose(rest @ errors.sum(axis=0), 0, atol=1e-5)
    assert np.linalg.norm(rest) > 0.3


@pytest.mark.parametrize(
    ("inputs", "classes", "shut", "can_tell"),
    [
        (6, 1, 0, False),
        (6, 2, 0, False),
        (6, 3, 0, True),
        (1, 5, 0, True),
        (6, 5, 2, True),
        (6, 5, 4, False),
    ],
)
def test_where_the_form_of_a_gradient_says_nothing(inputs, classes, shut, can_tell):
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(20, classes)).astype(np.float32)
    if classes > 1:
        errors -= errors.mean(axis=1, keepdims=True)  # as behind a softmax
    errors[:, :shut] = 0  # as of rectifiers that no image opens
    h = rng.normal(size=(20, inputs)).astype(np.float32)
    _, rest = by_constant_input(h.T @ errors, errors.sum(axis=0))
    assert (np.linalg.norm(rest) > 1e-6) == can_tell
    for scale in (1, 2.0**-140):
        b = (scale * errors.sum(axis=0)).astype(np.float32)
        assert can_tell_constant_input(b) == can_tell
    b[:shut] = 2.0**-149 if shut else b[:shut]  # nearly shut, as of saturated units
    b[shut:] *= 2.0**100
    assert can_tell_constant_input(b) == can_tell


@pytest.mark.parametrize(("fan_in", "width"), [(30, 1000), (800, 1000)])
def test_the_preserving_norm_keeps_the_mean_square_behind_a_rectifier(fan_in, width):
    keys = jax.random.split(jax.random.key(0), 2)
    w = jax.random.normal(keys[0], (fan_in, width))
    w = w * preserving_norm(w) / np.linalg.norm(w)
    x = np.maximum(jax.random.normal(keys[1], (200, fan_in)), 0)
    ratio = np.mean(np.maximum(x @ w, 0) ** 2) / np.mean(x**2)
    np.testing.assert_allclose(ratio, 1, atol=0.15)
