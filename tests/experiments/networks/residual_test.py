"""Residual networks are what their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from experiments.networks import MODELS
from experiments.networks.residual import patches_of
from lars.kernels import roles_of

SETTINGS = {
    "depth": 2,
    "width": 6,
    "activation": "tanh",
    "normalization": "layer",
    "compute_dtype": "float32",
}
OF_KIND = {
    "residual_mlp": {},
    "residual_cnn": {},
    "transformer": {"patch": 2, "heads": 2},
    "decoder": {"heads": 2},
}
IMAGES = np.random.default_rng(0).standard_normal((5, 4, 4, 1)).astype(np.float32)
TEXTS = np.random.default_rng(0).integers(0, 10, (5, 6, 1, 1)).astype(np.float32)


def build(kind, **changes):
    """A model, and parameters that are all random, by their paths."""
    model = MODELS[kind](10, **{**SETTINGS, **OF_KIND[kind], **changes})
    inputs = TEXTS if kind == "decoder" else IMAGES
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs[:1])["params"]
    random = np.random.default_rng(1)
    named = traverse_util.flatten_dict(shapes, sep="/")
    params = {k: random.normal(0.0, 0.5, x.shape) for k, x in named.items()}
    return model, {k: np.float32(x) for k, x in params.items()}


def logits(model, params, images=IMAGES):
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    return np.asarray(jax.jit(model.apply)(variables, images, None)[0])


def oracle(params, images, normalization, depth=2):
    """Any of the networks but the convolutional one, in float64."""
    p = {name: np.float64(x) for name, x in params.items()}

    def dense(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def norm(name, x):
        if normalization == "none":
            return x
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attention(name, x):
        q, k, v = (
            np.einsum("bti,ihf->bhtf", x, p[f"{name}/{part}/kernel"])
            + p[f"{name}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("bhtf,bhsf->bhts", q, k) / np.sqrt(q.shape[-1]))
        if is_decoder:
            weights = np.tril(weights)
        mixed = np.einsum("bhts,bhsf->bthf", weights / weights.sum(-1)[..., None], v)
        out = np.einsum("bthf,hfo->bto", mixed, p[f"{name}/out/kernel"])
        return out + p[f"{name}/out/bias"]

    is_decoder = "first/embedding" in p
    is_transformer = "position/embedding" in p
    if is_decoder:
        x = p["first/embedding"][images[:, :, 0, 0].astype(int)]
    else:
        x = patches_of(images, 2) if is_transformer else images.reshape(len(images), -1)
        x = dense("first", np.float64(x))
    if is_transformer:
        x = x + p["position/embedding"]
    for i in range(depth):
        if is_transformer:
            x = x + attention(f"attention_{i}", norm(f"attention_norm_{i}", x))
        y = np.tanh(dense(f"block_{i}_in", norm(f"norm_{i}", x)))
        x = x + dense(f"block_{i}_out", y)
    has_mean = is_transformer and not is_decoder
    return dense("output", norm("norm", x.mean(1) if has_mean else x))


@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("kind", ["residual_mlp", "transformer", "decoder"])
def test_logits_are_those_of_the_formulas(kind, normalization):
    model, params = build(kind, normalization=normalization)
    inputs = TEXTS if kind == "decoder" else IMAGES
    expected = oracle(params, inputs, normalization)
    found = logits(model, params, inputs)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_a_decoder_does_not_see_what_comes_later():
    model, params = build("decoder")
    changed = TEXTS.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % 10
    before, after = logits(model, params, TEXTS), logits(model, params, changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before - after)[:, 3:].max(axis=-1) > 1e-3).all()


def test_convolutional_blocks_without_their_last_layer_are_nothing():
    model, params = build("residual_cnn", normalization="none")
    with_blocks = logits(model, params)
    silent = {name: 0 * x if "_out" in name else x for name, x in params.items()}
    one_block, params_of_one = build("residual_cnn", normalization="none", depth=1)
    alike = {name: silent[name] for name in params_of_one}
    np.testing.assert_array_equal(logits(one_block, alike), logits(model, silent))
    assert np.abs(with_blocks - logits(model, silent)).max() > 0.1


def test_a_transformer_tells_patches_apart_by_their_positions_alone():
    images = np.concatenate([IMAGES[:, 2:], IMAGES[:, :2]], axis=1)
    model, params = build("transformer")
    assert np.abs(logits(model, params) - logits(model, params, images)).max() > 0.01
    nowhere = params | {"position/embedding": 0 * params["position/embedding"]}
    np.testing.assert_allclose(
        logits(model, nowhere), logits(model, nowhere, images), rtol=1e-4, atol=1e-5
    )


def test_patches_are_squares_of_the_image():
    images = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(
        patches[1, 4].reshape(2, 2, 3),
        images[1, 2:4, 2:4],  # of 2 rows of 3, the fifth
    )


def test_every_layer_of_a_transformer_is_a_kernel_with_its_bias():
    _, params = build("transformer")
    roles = roles_of(params := traverse_util.unflatten_dict(params, sep="/"))
    leaves = jax.tree.leaves(params)
    outputs = {leaves[i].shape: leaves[j].shape for i, j in roles.biases.items()}
    assert outputs[6, 2, 3] == (2, 3)  # of a query: heads and their numbers
    assert outputs[2, 3, 6] == (6,)
    assert len(roles.kernels) == len(roles.biases) + 1  # the positions have none


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("residual_mlp", {"depth": 0}, "of at least 1, got 0"),
        ("residual_cnn", {"normalization": "batch"}, "'batch'"),
        ("transformer", {"heads": 4}, "divide model.width, got 4 and 6"),
        ("transformer", {"patch": 3}, "got 3 for 4 by 4 pixels"),
        ("decoder", {"heads": 4}, "divide model.width, got 4 and 6"),
    ],
)
def test_bad_settings_are_named(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        build(kind, **changes)


def test_a_decoder_refuses_images():
    model, params = build("decoder")
    with pytest.raises(ValueError, match=r"got the shape \(5, 4, 4, 1\)"):
        logits(model, params, IMAGES)
