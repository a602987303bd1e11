"""What mends the initialization gives the same network, whatever it was scaled by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from experiments.networks.init_scales import scale_kernels
from experiments.networks.initialization import (
    gradient_quotient,
    initialization_named,
    lsuv,
    metainit,
    rescaled,
)
from experiments.networks.residual import transformer
from tests.experiments.small import small_cnn, small_mlp

DEPTH = 4


def networks(activation="tanh"):
    settings = {"depth": DEPTH, "activation": activation}
    return {
        "mlp": small_mlp(width=80, **settings),
        "cnn": small_cnn(width=8, widening=2, **settings),
    }


def start(model, scale):
    images = jax.random.normal(jax.random.key(1), (64, 8, 8, 1))
    variables = model.init(jax.random.key(0), images)
    scales = np.full(DEPTH, scale, np.float32)
    return {"params": scale_kernels(variables["params"], scales)}, images


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("mend", [rescaled, lsuv])
@pytest.mark.parametrize("exponent", [-27, 27])
def test_the_scale_before_changes_no_bit(mend, exponent, name):
    model = networks()[name]
    one, other = (mend(model, *start(model, s)) for s in (1.0, 2.0**exponent))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_rescaled_kernels_have_elements_of_he():
    model = networks()["cnn"]
    for layer in rescaled(model, *start(model, 1e3)).values():
        kernel = np.asarray(layer["kernel"], np.float64)
        fan_in = kernel.size // kernel.shape[-1]
        np.testing.assert_allclose(np.mean(kernel**2), 2 / fan_in, rtol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_lsuv_layers_put_out_a_deviation_of_one(activation, name):
    model = networks(activation)[name]
    variables, images = start(model, 1e6)
    # As of a trained network: biases may be larger than what kernels put out.
    for layer in variables["params"].values():
        size = layer["bias"].shape
        layer["bias"] = 3 * jax.random.normal(jax.random.key(2), size)
    params = lsuv(model, variables, images)
    outputs = model.outputs({"params": params}, images, None)
    for layer, values in params.items():
        linear = np.asarray(outputs[layer]) - np.asarray(values["bias"])
        np.testing.assert_allclose(np.std(linear), 1, rtol=1e-3)
        kernel = np.asarray(values["kernel"]).reshape(-1, values["kernel"].shape[-1])
        size = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(size, size[0], rtol=1e-4)  # orthogonal, times one


def test_lsuv_takes_the_kernels_of_attention_as_matrices():
    settings = {"depth": 1, "width": 8, "activation": "gelu", "normalization": "none"}
    model = transformer(10, patch=2, heads=2, compute_dtype="float32", **settings)
    images = jax.random.normal(jax.random.key(1), (64, 4, 4, 1))
    variables = model.init(jax.random.key(0), images)
    params = lsuv(model, variables, images)
    outputs = model.outputs({"params": params}, images, None)
    for name, shape in (("query", (8, -1)), ("value", (8, -1)), ("out", (-1, 8))):
        kernel = np.asarray(params["attention_0"][name]["kernel"]).reshape(shape)
        size = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(size, size[0], rtol=1e-4)
        np.testing.assert_allclose(np.std(outputs[f"attention_0/{name}"]), 1, rtol=1e-3)


def test_lsuv_keeps_an_orthogonal_kernel_but_for_its_scale():
    model = networks()["mlp"]
    variables, images = start(model, 1.0)
    for layer in variables["params"].values():
        shape = layer["kernel"].shape
        u, _, vt = np.linalg.svd(
            np.random.default_rng(0).normal(size=shape), full_matrices=False
        )
        layer["kernel"] = (u @ vt).astype(np.float32)
    for name, layer in lsuv(model, variables, images).items():
        before, after = variables["params"][name]["kernel"], layer["kernel"]
        size = np.linalg.norm(after) / np.linalg.norm(before)
        np.testing.assert_allclose(after, size * before, atol=1e-5 * size)


def quotient_of(model, params, images, labels):
    return jax.jit(gradient_quotient, static_argnums=0)(
        model, {"params": params}, images, labels
    )


def test_the_gradient_quotient_is_that_of_the_whole_hessian():
    model = small_mlp(width=3, depth=2, activation="tanh")
    images = jax.random.normal(jax.random.key(1), (5, 2, 2, 1))
    labels = jnp.arange(5)
    params = model.init(jax.random.key(0), images)["params"]
    flat, whole = ravel_pytree(params)

    def loss(flat):
        logits, _ = model.apply({"params": whole(flat)}, images, None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    g, hessian = (np.float64(f(loss)(flat)) for f in (jax.grad, jax.hessian))
    quotients = (g - hessian @ g) / (g + np.where(g >= 0, 1e-5, -1e-5)) - 1
    found = quotient_of(model, params, images, labels)
    np.testing.assert_allclose(found, np.abs(quotients).mean(), rtol=1e-3)


def test_metainit_changes_norms_alone_and_the_quotient_falls():
    model = small_mlp(width=8, activation="tanh")
    images = jax.random.normal(jax.random.key(1), (32, 3, 3, 1))
    variables = model.init(jax.random.key(0), images)
    before = scale_kernels(variables["params"], np.full(3, 0.05, np.float32))
    after = jax.jit(lambda x: metainit(model, {"params": x}, images))(before)
    for name, layer in after.items():
        w, old = (np.ravel(x[name]["kernel"]) for x in (after, before))
        sizes = np.linalg.norm(w), np.linalg.norm(old)
        assert abs(w @ old) == pytest.approx(np.prod(sizes), rel=1e-4)
        assert sizes[0] > 1.1 * sizes[1]
        np.testing.assert_array_equal(layer["bias"], before[name]["bias"])
    first, second = (
        jax.jit(lambda x, steps=steps: metainit(model, {"params": x}, images, steps))(
            before
        )
        for steps in (1, 2)
    )
    for name in before:
        old, one, two = (
            np.linalg.norm(x[name]["kernel"]) for x in (before, first, second)
        )
        # The first step goes 0.1; the second goes on by 0.09, plus or minus 0.1.
        assert abs(one - old) == pytest.approx(0.1, rel=1e-3)
        assert min(abs(abs(two - one) - x) for x in (0.19, 0.01)) < 1e-3 * 0.19
    labels = jnp.arange(32) % 10
    new, old = (quotient_of(model, x, images, labels) for x in (after, before))
    assert new < old


def test_metainit_leaves_norms_that_have_no_derivative():
    model = small_mlp(width=8)
    images = jax.random.normal(jax.random.key(1), (32, 3, 3, 1))
    variables = model.init(jax.random.key(0), images)
    params = scale_kernels(variables["params"], np.full(3, 1e20, np.float32))
    after = jax.jit(lambda x: metainit(model, {"params": x}, images, 3))(params)
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_a_name_that_there_is_not():
    assert initialization_named("scaled") is None
    with pytest.raises(ValueError, match=r"initialization must be one of .*'nice'"):
        initialization_named("nice")
