"""Models have the layers that their arguments say, and preserve the signal."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lars.init_scales import count_kernels, scale_kernels
from lars.models import MODELS

SETTINGS = {
    "depth": 3,
    "width": 16,
    "activation": "relu",
    "use_bias": True,
    "normalization": "none",
}
IMAGES = np.random.default_rng(0).standard_normal((20, 8, 8, 1)).astype(np.float32)


def build(name, **changes):
    model = MODELS[name](10, **{**SETTINGS, **changes})
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES[:1])
    return model, variables


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp", 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10),
        ("cnn", 9 * 16 + 16 + 9 * 16 * 16 + 16 + 16 * 10 + 10),
    ],
)
def test_the_number_of_parameters(name, parameters):
    _, variables = build(name)
    assert sum(x.size for x in jax.tree.leaves(variables)) == parameters


@pytest.mark.parametrize(
    ("name", "depth", "use_bias", "normalization"),
    list(
        itertools.product(
            ["mlp", "cnn"], [1, 2, 12], [True, False], ["none", "batch", "layer"]
        )
    ),
)
def test_depth_bias_and_normalization(name, depth, use_bias, normalization):
    _, variables = build(
        name, depth=depth, use_bias=use_bias, normalization=normalization
    )
    params = variables["params"]
    assert count_kernels(params) == depth
    assert ("bias" in params["output"]) == use_bias
    norms = [layer for layer in params if layer.startswith("norm")]
    assert len(norms) == (0 if normalization == "none" else depth - 1)
    assert ("batch_stats" in variables) == (normalization == "batch" and depth > 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("tanh", np.tanh),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_a_network_of_one_unit_is_its_formula(name, activation, function):
    model, variables = build(name, depth=2, width=1, activation=activation)
    pixel = np.full((1, 1, 1, 1), 0.7, np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), pixel)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), variables)
    logits, _ = model.apply(params, pixel, True)
    # In a 3x3 convolution the other eight pixels are padding.
    np.testing.assert_allclose(
        logits, np.full((1, 10), 0.5 * function(0.5 * 0.7 + 0.5) + 0.5), rtol=1e-5
    )


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0)])
def test_kernels_are_drawn_with_the_variance_that_their_fan_in_asks_for(
    activation, gain
):
    _, variables = build("mlp", width=512, activation=activation)
    kernel = variables["params"]["hidden_1"]["kernel"]
    np.testing.assert_allclose(np.var(kernel), gain / 512, rtol=0.02)
    assert not variables["params"]["hidden_1"]["bias"].any()


@pytest.mark.parametrize("name", MODELS)
def test_a_relu_network_is_homogeneous_in_every_kernel(name):
    model, variables = build(name, depth=4, use_bias=False)
    params = variables["params"]
    scales = jnp.array([2.0, 0.25, 8.0, 0.5])
    logits, _ = model.apply(variables, IMAGES, False)
    scaled, _ = model.apply({"params": scale_kernels(params, scales)}, IMAGES, False)
    np.testing.assert_array_equal(scaled, 2.0 * logits)


@pytest.mark.parametrize("name", MODELS)
def test_batch_statistics_move_in_training_only(name):
    model, variables = build(name, normalization="batch")
    trained, after = model.apply(variables, IMAGES, True)
    evaluated, unchanged = model.apply(variables, IMAGES, False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).all()),
        after["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(moved))
    assert not np.allclose(trained, evaluated)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "model.depth must be at least 1, got 0"),
        ({"width": -3}, "model.width must be at least 1, got -3"),
        ({"activation": "swish"}, "relu, tanh, sigmoid, gelu, got 'swish'"),
        ({"normalization": "group"}, "none, batch, layer, got 'group'"),
    ],
)
def test_bad_settings_are_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](10, **{**SETTINGS, **changes})
