"""Rivals keep the norms that they prescribe, whatever kernels start with."""

import jax
import numpy as np
import optax
import pytest
from optax.contrib import muon as muon_of_matrices

from experiments.training.rivals import (
    angular_muown,
    hyperball,
    muon,
    norms_reset,
    scion,
)
from lars.kernels import preserving_norm
from tests.lars.steps import assert_trees_close, drawn

SHAPES = {
    "attention": {"kernel": (6, 2, 4), "bias": (2, 4)},  # two heads
    "output": {"kernel": (8, 3), "bias": (3,)},
}
NORMS = {"attention": np.sqrt(2 * 8), "output": np.sqrt(2 * 3)}


def after(optimizer, scale=1.0, steps=3):
    """Parameters after some steps of as many gradients, from scaled kernels."""
    params = drawn(SHAPES, 0)
    for layer in params.values():
        layer["kernel"] = np.float32(scale) * layer["kernel"]
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for seed in range(1, steps + 1):
        updates, state = update(drawn(SHAPES, seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


def norms(params):
    return {name: np.linalg.norm(x["kernel"]) for name, x in params.items()}


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_norms_are_reset_at_every_step(scale):
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        params = after(norms_reset(optax.adam(0.1)), scale)
        free = after(optax.adam(0.1), scale)
    assert norms(params) == pytest.approx(NORMS, rel=1e-5)
    for name in params:  # all else is the inner optimizer's
        np.testing.assert_array_equal(params[name]["bias"], free[name]["bias"])


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e20])
def test_of_kernels_that_are_far_too_large_the_direction_is_kept(scale):
    """Of too large a step float32 would leave zero."""
    w = drawn(SHAPES, 0)["output"]
    params, nothing = {"w": np.float32(scale) * w["kernel"]}, {"w": 0 * w["kernel"]}
    right = w["kernel"] / np.linalg.norm(w["kernel"]) * NORMS["output"]
    for optimizer in (
        norms_reset(optax.sgd(0.1)),
        hyperball(0.1, optax.sgd, "preserving"),
    ):
        moved, state = params, optimizer.init(params)
        for _ in range(6):
            updates, state = optimizer.update(nothing, state, moved)
            moved = optax.apply_updates(moved, updates)
        np.testing.assert_allclose(moved["w"], right, rtol=0.02, atol=0.01)


def test_a_reset_step_is_the_inner_one_at_another_norm():
    moved, free = (after(x, steps=1) for x in (norms_reset(optax.sgd(1)), optax.sgd(1)))
    w = free["output"]["kernel"]
    expected = w * preserving_norm(w) / np.linalg.norm(w)
    np.testing.assert_allclose(moved["output"]["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_hyperball_keeps_its_radius(scale):
    with jax.numpy_dtype_promotion("standard"):
        fixed = after(hyperball(0.1, optax.adam, "preserving"), scale)
        initial = after(hyperball(0.1, optax.adam, "initial"), scale)
    assert norms(fixed) == pytest.approx(NORMS, rel=1e-5)
    started = norms(after(optax.set_to_zero(), scale))
    assert norms(initial) == pytest.approx(started, rel=1e-5)


def test_a_step_of_hyperball_has_the_angle_of_its_rate():
    """Of a step across a kernel; that of SGD along the gradient, whatever its size."""
    w = {"kernel": np.float32([[3, 0], [0, 0]])}
    g = {"kernel": np.float32([[0, 0], [1e-20, 0]])}
    optimizer = hyperball(0.5, optax.sgd)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    moved = np.float64(w["kernel"] + updates["kernel"])
    np.testing.assert_allclose(moved[1, 0] / moved[0, 0], -0.5, rtol=1e-6)


def test_scion_goes_to_the_corner_of_its_ball():
    """With a rate of 1 and no momentum it is there at once, in all directions."""
    params = after(scion(1.0, momentum=0.0, radius=5.0), 1e6, steps=1)
    kernel = np.asarray(params["attention"]["kernel"]).reshape(6, 8)
    values = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(values, 5 * np.sqrt(8 / 6), rtol=0.05)
    bias = params["output"]["bias"]
    np.testing.assert_allclose(np.sqrt(np.mean(bias**2)), 5, rtol=1e-5)


def angular_oracle(w, gradients, rate, decay):
    """The kernels after each step of AngularMuown, in float64."""
    outputs_over_inputs = w.shape[1] / w.shape[0]
    size = np.linalg.norm(w, axis=0)
    size = np.where(size <= 1e-7, np.sqrt(0.33), size)
    trace, mean, square = 0 * w, 0 * size, 0 * size
    for t, g in enumerate(gradients):
        u = w / size
        of_size = (g * u).sum(axis=0)
        of_u = size * (g - u * of_size)
        trace = 0.95 * trace + of_u
        left, _, right = np.linalg.svd(of_u + 0.95 * trace, full_matrices=False)
        length = rate / (1 + decay * t) * np.sqrt(max(1, outputs_over_inputs))
        x = u - length * left @ right
        mean = 0.9 * mean + 0.1 * of_size
        square = 0.95 * square + 0.05 * of_size**2
        root = np.sqrt(square / (1 - 0.95 ** (t + 1))) + 1e-8
        size = size - rate * mean / (1 - 0.9 ** (t + 1)) / root
        size = np.copysign(np.maximum(abs(size), 1e-7), size)
        w = size * x / np.linalg.norm(x, axis=0)
        yield w


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_angular_muown_is_that_of_its_paper(shape, decay):
    random = np.random.default_rng(0)
    w = random.normal(size=shape)
    w[:, 0] *= 1e-9  # almost zero
    w[:, 1] *= 0.15 / np.linalg.norm(w[:, 1])  # goes through zero
    gradients = [random.normal(size=shape) + 2 * np.sign(w) for _ in range(5)]
    optimizer = angular_muown(0.1, angular_decay=decay)
    params = {"kernel": np.float32(w)}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for g, right in zip(
            gradients, angular_oracle(w, gradients, 0.1, decay), strict=True
        ):
            updates, state = optimizer.update({"kernel": np.float32(g)}, state, params)
            params = optax.apply_updates(params, updates)
            # The polar factor has singular values within 0.7% of one.
            np.testing.assert_allclose(params["kernel"], right, rtol=0.02, atol=0.01)


def test_muon_takes_the_kernels_of_attention_as_matrices():
    """As it takes matrices: the same step, once arrays have the same shape."""

    def step(optimizer, shape):
        """A kernel's, where it and its bias have this shape."""
        shapes = {"kernel": shape, "bias": shape[1:]}
        sizes = {"kernel": (6, 8), "bias": (8,)}
        w, g = (
            {name: x.reshape(shapes[name]) for name, x in drawn(sizes, seed).items()}
            for seed in (0, 1)
        )
        updates, _ = optimizer.update(g, optimizer.init(w), w)
        return np.asarray(updates["kernel"]).reshape(6, 8)

    with jax.numpy_dtype_promotion("standard"):
        ours = step(muon(0.1), (6, 2, 4))
        matrix = step(muon_of_matrices(0.1), (6, 8))
        left_to_adam = step(muon_of_matrices(0.1), (6, 2, 4))
    assert_trees_close(ours, matrix, 1e-5)
    assert np.abs(ours - left_to_adam).max() > 0.01
