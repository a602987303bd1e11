"""Models have the layers that their arguments say, and preserve the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import MODELS, alexnet, resnet
from experiments.networks.alexnet import local_response_norm
from experiments.networks.init_scales import kernel_positions, scale_kernels
from experiments.networks.model import as_model, max_pool
from experiments.networks.resnet import _Block
from experiments.training.sharding import device_mesh, put, replicated, split
from tests.experiments.small import small_cnn, small_mlp

PLAIN = (small_mlp, small_cnn)
KEY = jax.random.key(7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes(model, size, channels=3):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


IMAGES = normal(20, 8, 8, 1)


def build(make, **changes):
    model = make(**changes)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES[:1])


def small_alexnet(num_classes=10, **changes):
    settings = {"batch_norm": True, "dropout_rate": 0.5, "compute_dtype": "float32"}
    return alexnet(num_classes, **{**settings, **changes})


def residual(num_classes=10, **changes):
    settings = {"zero_init_last_scale": True, "compute_dtype": "float32"}
    return resnet(num_classes, **{**settings, **changes})


def test_the_number_of_parameters():
    perceptron = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert count(shapes(small_mlp(), 8, channels=1)) == perceptron
    convolutional = 9 * 16 + 16 + 9 * 16 * 16 + 16 + 16 * 10 + 10
    assert count(shapes(small_cnn(), 8, channels=1)) == convolutional


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize("depth", [1, 2, 12])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_depth_bias_and_normalization(make, depth, use_bias, normalization):
    model = make(depth=depth, use_bias=use_bias, normalization=normalization)
    variables = shapes(model, 8, channels=1)
    params = variables["params"]
    assert len(kernel_positions(params)) == depth
    assert ("bias" in params["output"]) == use_bias
    norms = [layer for layer in params if layer.startswith("norm")]
    assert len(norms) == (0 if normalization == "none" else depth - 1)
    assert ("batch_stats" in variables) == (normalization == "batch" and depth > 1)


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("tanh", np.tanh),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("gelu", lambda x: x * (1 + np.tanh(0.79788456 * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_a_network_of_one_unit_is_its_formula(make, activation, function):
    model = make(depth=2, width=1, activation=activation)
    pixel = np.full((1, 1, 1, 1), 0.7, np.float32)
    variables = shapes(model, 1, channels=1)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), variables)
    logits, _ = model.apply(params, pixel, KEY)
    # In a 3x3 convolution the other eight pixels are padding.
    np.testing.assert_allclose(
        logits, np.full((1, 10), 0.5 * function(0.5 * 0.7 + 0.5) + 0.5), rtol=1e-5
    )


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0)])
def test_kernels_are_drawn_with_the_variance_that_their_fan_in_asks_for(
    activation, gain
):
    _, variables = build(small_mlp, width=512, activation=activation)
    kernel = variables["params"]["hidden_1"]["kernel"]
    np.testing.assert_allclose(np.var(kernel), gain / 512, rtol=0.02)
    assert not variables["params"]["hidden_1"]["bias"].any()


@pytest.mark.parametrize("make", PLAIN)
def test_a_relu_network_is_homogeneous_in_every_kernel(make):
    model, variables = build(make, depth=4, use_bias=False)
    params = variables["params"]
    scales = jnp.array([2.0, 0.25, 8.0, 0.5])
    apply = jax.jit(model.apply)
    logits, _ = apply(variables, IMAGES, None)
    scaled, _ = apply({"params": scale_kernels(params, scales)}, IMAGES, None)
    np.testing.assert_array_equal(scaled, 2.0 * logits)


@pytest.mark.parametrize("make", PLAIN)
def test_batch_statistics_move_in_training_only(make):
    model, variables = build(make, normalization="batch")
    trained, after = model.apply(variables, IMAGES, KEY)
    evaluated, unchanged = model.apply(variables, IMAGES, None)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).all()),
        after["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(moved))
    assert not np.allclose(trained, evaluated)


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "model.depth must be a whole number of at least 1, got 0"),
        ({"width": -3}, "model.width must be a whole number of at least 1, got -3"),
        ({"activation": "swish"}, "relu, tanh, sigmoid, gelu, got 'swish'"),
        ({"normalization": "group"}, "none, batch, layer, got 'group'"),
        ({"compute_dtype": "float16"}, "float32, bfloat16, got 'float16'"),
    ],
)
def test_bad_settings_are_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_pools_and_widths_of_a_convolutional_network():
    model = small_cnn(convolutions_per_pool=1, widening=2, depth=6)
    params = shapes(model, 8)["params"]
    kernels = [params[f"hidden_{i}"]["kernel"].shape[2:] for i in range(5)]
    # 8, 4, 2 and 1 pixels: after that there is nothing to take the maximum of.
    assert kernels == [(3, 16), (16, 32), (32, 64), (64, 128), (128, 128)]
    for name in ("convolutions_per_pool", "widening"):
        with pytest.raises(ValueError, match=rf"model.{name} .* at least 1, got 0"):
            small_cnn(**{name: 0})


@pytest.mark.parametrize("size", [6, 7, 13])
@pytest.mark.parametrize("window_stride_ceil", [(2, 2, False), (3, 2, True)])
def test_maxima_are_those_of_their_windows(size, window_stride_ceil):
    window, stride, ceil = window_stride_ceil
    images = normal(2, size, size, 3)
    steps = (size - window) / stride
    count = int(np.ceil(steps) if ceil else np.floor(steps)) + 1
    expected = np.empty((2, count, count, 3), np.float32)
    for i, j in np.ndindex(count, count):
        rows, columns = (slice(x * stride, x * stride + window) for x in (i, j))
        expected[:, i, j] = images[:, rows, columns].max(axis=(1, 2))
    actual = max_pool(jnp.asarray(images), window, stride, ceil=ceil)
    np.testing.assert_array_equal(actual, expected)


def test_a_bias_before_batch_normalization_has_no_gradient():
    # Whatever follows: here a maximum, whose gradient must go with its own statistics.
    # A maximum over reshaped axes fails with this width and these images.
    model = small_cnn(normalization="batch", depth=4, width=8)
    images = normal(6, 8, 8, 1)
    variables = jax.jit(model.init)(jax.random.key(3), images)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, KEY)
            return jnp.square(logits).sum()

        return jax.grad(loss)(params)

    gradients = gradient(variables["params"])
    for i in range(3):
        layer = gradients[f"hidden_{i}"]
        largest = float(jnp.abs(layer["kernel"]).max())
        assert largest > 1e-3
        np.testing.assert_allclose(layer["bias"], 0, atol=1e-4 * largest)


# The paper's Table 2, whose labels .w and .b are swapped: these are the weights.
WEIGHT_NORMS = {
    "conv1": (1.86, 0.098),
    "conv2": (5.546, 0.16),
    "conv3": (9.40, 0.196),
    "conv4": (8.15, 0.196),
    "conv5": (6.65, 0.16),
    "fc6": (30.7, 6.4),
    "fc7": (20.5, 6.4),
    "fc8": (20.2, 0.316),
}


@pytest.mark.long
def test_alexnet_starts_with_the_norms_of_the_papers_table():
    model = small_alexnet(1000)
    params = jax.jit(model.init)(KEY, jnp.zeros((1, 227, 227, 3)))["params"]
    assert count(params) == 60_965_224  # Krizhevsky et al.: 60 million
    for name, (weight, bias) in WEIGHT_NORMS.items():
        norms = [
            float(jnp.linalg.norm(params[name][k].ravel())) for k in ("kernel", "bias")
        ]
        np.testing.assert_allclose(norms, [weight, bias], rtol=0.007)


def test_alexnet_without_normalization_has_the_biases_of_its_model():
    model = small_alexnet(batch_norm=False)
    variables = jax.jit(model.init)(KEY, jnp.zeros((1, 32, 32, 3)))
    biases = {k: float(v["bias"][0]) for k, v in variables["params"].items()}
    np.testing.assert_allclose(
        [biases[name] for name in WEIGHT_NORMS], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]
    )
    assert "batch_stats" not in variables
    # Local response normalization, after the first two convolutions.
    images = jnp.zeros((1, 32, 32, 3))
    traced = jax.make_jaxpr(lambda x: model.apply(variables, x, None)[0])(images)
    assert str(traced).count("reduce_window_sum") == 2


@pytest.mark.parametrize("size", [28, 32])
def test_the_small_alexnet_has_the_same_layers(size):
    model = small_alexnet()
    norms = shapes(model, size)["batch_stats"].keys()
    assert norms == {"norm1", "norm2", "norm3", "norm4"}
    small, large = (shapes(model, x)["params"] for x in (size, 227))
    assert small.keys() == large.keys()
    # Two groups: half of the inputs a kernel, in the second, fourth and fifth layer.
    kernels = [small[f"conv{i}"]["kernel"].shape[2:] for i in range(1, 6)]
    assert kernels == [(3, 24), (12, 64), (64, 96), (48, 96), (48, 64)]
    assert small["conv2"]["kernel"].shape == (5, 5, 12, 64)
    assert large["conv2"]["kernel"].shape == (5, 5, 48, 256)
    assert large["fc6"]["kernel"].shape == (9216, 4096)
    for other in (64, 224):
        with pytest.raises(ValueError, match=f"got {other}x{other}"):
            shapes(model, other)


def test_dropout_leaves_out_half_and_keeps_the_mean():
    model = small_alexnet(batch_norm=False)
    images = normal(8, 28, 28, 1)
    variables = jax.jit(model.init)(KEY, images)
    # Only the last layer's bias, and what dropout leaves of constant units.
    variables = jax.tree.map(jnp.zeros_like, variables)
    params = variables["params"]
    params["fc7"]["bias"] += 1.0
    params["fc8"]["kernel"] += jnp.eye(512, 10)
    apply = jax.jit(model.apply)
    kept = np.stack([apply(variables, images, jax.random.key(i))[0] for i in range(40)])
    assert set(np.unique(kept)) == {0.0, 2.0}
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.07)
    np.testing.assert_array_equal(apply(variables, images, None)[0], 1.0)
    same = [apply(variables, images, KEY)[0] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    with pytest.raises(ValueError, match=r"dropout_rate .* got 1.0"):
        small_alexnet(dropout_rate=1.0)


def test_local_response_norm_is_its_formula():
    x = 30 * normal(2, 3, 3, 7).astype(np.float64)
    expected = np.empty_like(x)
    for c in range(7):
        nearby = x[..., max(0, c - 2) : c + 3]
        total = 1 + 1e-4 / 5 * np.square(nearby).sum(axis=-1)
        expected[..., c] = x[..., c] / total**0.75
    actual = local_response_norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_residual_networks_have_the_parameters_of_their_kind(depth, parameters):
    variables = shapes(residual(1000, depth=depth), 224)
    assert count(variables["params"]) == parameters  # as torchvision has them
    with pytest.raises(ValueError, match=r"model.depth must be one of 18, 50, got 34"):
        residual(depth=34)


@pytest.mark.parametrize("is_zero", [True, False])
@pytest.mark.parametrize("is_bottleneck", [True, False])
def test_with_a_last_scale_of_zero_a_block_is_its_shortcut(is_zero, is_bottleneck):
    x = normal(2, 5, 5, 16 if is_bottleneck else 4)
    norms = ["norm1", "norm2", "norm3"][: 2 + is_bottleneck]
    for stride in (1, 2):
        settings = {"stride": stride, "is_bottleneck": is_bottleneck}
        block = as_model(_Block(is_zero, "float32", channels=4, **settings))
        variables = jax.jit(block.init)(KEY, x)
        y, outputs = (
            jax.jit(f)(variables, x, None) for f in (block.apply, block.outputs)
        )
        assert ("shortcut_norm" in outputs) == (stride == 2)
        shortcut = outputs.get("shortcut_norm", x)
        assert np.array_equal(y[0], np.maximum(shortcut, 0)) == is_zero
        scales = [float(variables["params"][name]["scale"][0]) for name in norms]
        assert scales == [*[1] * (len(norms) - 1), 0 if is_zero else 1]


def test_a_residual_network_tells_every_block_that_its_last_scale_is_zero():
    params = jax.jit(residual(depth=18).init)(KEY, normal(1, 8, 8, 3))["params"]
    blocks = [layer for name, layer in params.items() if "block" in name]
    assert len(blocks) == 8
    assert not any(block["norm2"]["scale"].any() for block in blocks)


def test_in_version_1_5_the_middle_convolution_has_the_stride():
    model = residual(1000, depth=50)
    variables = shapes(model, 224)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    outputs = jax.eval_shape(model.outputs, variables, image, None)
    pixels = {name: x.shape[1] for name, x in outputs.items() if x.ndim == 4}
    assert (pixels["stem/conv"], pixels["stem"]) == (112, 56)
    for stage, before in ((2, 56), (3, 28), (4, 14)):
        block = f"stage{stage}_block1"
        convolutions = [pixels[f"{block}/conv{i}"] for i in (1, 2, 3)]
        assert convolutions == [before, before // 2, before // 2]
    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    outputs = jax.eval_shape(model.outputs, shapes(model, 32), small, None)
    assert (outputs["stem"].shape[1], outputs["stage4_block3"].shape[1]) == (32, 4)


def test_outputs_are_in_the_order_of_the_computation():
    model, variables = build(small_cnn, depth=4, normalization="batch")
    names = []

    @jax.jit
    def outputs(variables, images):
        held = model.outputs(variables, images, None)
        names.extend(held)
        return held

    last = outputs(variables, IMAGES)["output"]
    expected = [f"{kind}_{i}" for i in range(3) for kind in ("hidden", "norm")]
    assert names == [*expected, "output"]
    np.testing.assert_allclose(last, model.apply(variables, IMAGES, None)[0], rtol=1e-5)


BFLOAT16 = {"compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    "model",
    [
        small_mlp(**BFLOAT16),
        small_cnn(normalization="batch", **BFLOAT16),
        small_cnn(normalization="layer", **BFLOAT16),
        small_alexnet(batch_norm=False, **BFLOAT16),
        small_alexnet(batch_norm=True, **BFLOAT16),
        residual(depth=18, zero_init_last_scale=False, **BFLOAT16),
    ],
    ids=["mlp", "cnn-batch", "cnn-layer", "alexnet", "alexnet-bn", "resnet"],
)
def test_in_bfloat16_parameters_gradients_and_logits_stay_float32(model):
    images = normal(2, 28, 28, 1)

    @jax.jit
    def step(variables, images):
        def loss(params):
            logits, after = model.apply({**variables, "params": params}, images, KEY)
            return logits.sum(), (logits, after)

        return jax.grad(loss, has_aux=True)(variables["params"])

    variables = jax.jit(model.init)(KEY, images)
    gradients, (logits, after) = step(variables, images)
    inner = jax.eval_shape(model.outputs, variables, images, None)
    for leaf in jax.tree.leaves((variables, gradients, logits, after)):
        assert leaf.dtype == jnp.float32
    for name, output in inner.items():  # normalizations are rounded after them
        is_norm = "norm" in name.split("/")[-1]
        assert output.dtype == (jnp.float32 if is_norm else jnp.bfloat16)


def test_bfloat16_is_close_to_float32():
    images = normal(16, 8, 8, 1)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        model, variables = build(small_cnn, normalization="batch", compute_dtype=dtype)
        logits[dtype] = model.apply(variables, images, KEY)[0]
    difference = jnp.abs(logits["bfloat16"] - logits["float32"]).max()
    assert 0 < difference < 0.05 * jnp.abs(logits["float32"]).max()


def test_batch_statistics_are_those_of_all_devices_together():
    model, variables = build(small_cnn, normalization="batch", depth=4)
    images = (
        normal(32, 8, 8, 1) * np.arange(1, 33, dtype=np.float32)[:, None, None, None]
    )
    apply = jax.jit(model.apply)
    alone = apply(variables, images, KEY)
    mesh = device_mesh()
    assert mesh.size == 8
    together = apply(put(variables, replicated(mesh)), put(images, split(mesh)), KEY)
    assert len(together[0].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max())
        ),
        together,
        alone,
    )


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_miniature_has_the_layers_of_alexnet_in_its_manner(batch_norm):
    model = MODELS["miniature_alexnet"](
        10, patch_size=4, width=8, batch_norm=batch_norm
    )
    variables = jax.jit(model.init)(KEY, normal(1, 32, 32, 1))
    params = variables["params"]
    # 32 pixels are 8 patches; maxima leave 4 and then 2 a side, with 32 channels.
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (4, 4, 1, 8),
        "conv2": (3, 3, 8, 16),
        "conv3": (3, 3, 16, 32),
        "fc4": (2 * 2 * 32, 64),
        "fc5": (64, 10),
    }
    for layer in params.values():
        assert (layer["bias"] == np.float32(0.01)).all()
        fan_in = float(np.prod(layer["kernel"].shape[:-1]))
        np.testing.assert_allclose(layer["kernel"].var() * fan_in, 2, rtol=0.25)
    # Normalization has statistics and, as in AlexNet-BN, no parameters.
    assert ("batch_stats" in variables) == batch_norm
    images = normal(64, 32, 32, 1, seed=1)
    logits, updated = jax.jit(model.apply)(variables, images, KEY)
    assert logits.shape == (64, 10)
    if batch_norm:
        # Behind it every channel has mean 0 and variance 1 over batch and pixels.
        out = model.outputs(variables, images, KEY)["norm2"]
        np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(out.var((0, 1, 2)), 1, rtol=1e-2)
        before, after = (
            v["batch_stats"]["norm1"]["mean"] for v in (variables, updated)
        )
        assert not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"patch_size": 0},
            "model.patch_size must be .* at least 1, got 0",
        ),
        ({"width": 2.5}, "model.width must be a whole number of at least 1, got 2.5"),
        ({"patch_size": 9}, "at least 9x9 pixels, its patch_size, got 8x8"),
    ],
)
def test_bad_settings_of_the_miniature_are_named(changes, message):
    settings = {"patch_size": 2, "width": 4, "batch_norm": False, **changes}
    with pytest.raises(ValueError, match=message):
        shapes(MODELS["miniature_alexnet"](10, **settings), 8, channels=1)
