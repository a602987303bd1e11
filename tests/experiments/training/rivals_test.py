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


def stepped(optimizer, w, g):
    """The kernels after two steps along the same gradient."""
    params, grads, kernels = {"kernel": w}, {"kernel": g}, []
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            kernels.append(np.asarray(params["kernel"]))
    return kernels


def test_angular_muown_makes_steps_of_adam_with_sizes_along_directions():
    w = np.float32([[3, 0], [4, 2], [0, 0]])
    u = w / np.linalg.norm(w, axis=0)
    first, second = stepped(angular_muown(0.1), w, u * np.float32([1e-3, -7]))
    np.testing.assert_allclose(first, u * [5 - 0.1, 2 + 0.1], rtol=1e-4)
    np.testing.assert_allclose(second, u * [5 - 0.2, 2 + 0.2], rtol=1e-4)


def test_angular_muown_turns_columns_alike_and_keeps_their_sizes():
    w, g = np.float32([[2, 0], [0, 3]]), np.float32([[0, 1e-3], [-1e-3, 0]])
    first, second = stepped(angular_muown(0.1, angular_decay=1.0), w, g)
    turned = np.float32([[1, -0.1], [0.1, 1]]) / np.sqrt(1 + 0.1**2)
    np.testing.assert_allclose(first, turned * [2, 3], rtol=0.01, atol=1e-3)
    # The second step turns half as far.
    angles = [np.arctan2(x[1, 0], x[0, 0]) for x in (first, second)]
    assert angles[1] - angles[0] == pytest.approx(0.05, rel=0.03)


def test_angular_muown_grows_columns_that_are_almost_zero():
    with jax.numpy_dtype_promotion("standard"):
        params = after(angular_muown(0.0), 1e-20)
    for layer in params.values():
        outputs = layer["kernel"].shape[1:]
        columns = np.linalg.norm(layer["kernel"], axis=0)
        assert columns.shape == outputs
        assert np.isfinite(columns).all()


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
