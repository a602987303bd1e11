"""A convolution as a matrix product is the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import convolution
from experiments.networks.convolution import convolve, patches

# Images, kernel, strides, padding, groups
CASES = [
    ((2, 6, 5, 3), (3, 3, 3, 4), (1, 1), "SAME", 1),
    ((2, 7, 8, 2), (3, 3, 2, 4), (2, 2), "SAME", 1),
    ((1, 11, 11, 3), (5, 5, 3, 2), (4, 4), "VALID", 1),
    ((2, 6, 6, 4), (1, 1, 4, 3), (2, 2), [(0, 0), (0, 0)], 1),
    ((2, 6, 7, 2), (2, 3, 2, 3), (1, 2), [(0, 1), (2, 0)], 1),
    ((2, 5, 5, 4), (3, 3, 2, 6), (1, 1), [(1, 1), (1, 1)], 2),
    ((2, 9, 14, 3), (4, 3, 3, 5), (4, 3), "VALID", 1),
]
IDS = ["plain", "stride", "valid", "one pixel", "uneven", "groups", "tiles"]


def whole_numbers(*shapes):
    """Their products and sums are exact in float32, in any order."""
    rng = np.random.default_rng(0)
    return [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]


def by_definition(images, kernel, strides, padding, groups):
    """Σ x[b, s i + u, s j + v, c] K[u, v, c, o], in float64."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            images.shape[1:3], kernel.shape[:2], strides, padding
        )
    x = np.pad(images.astype(np.float64), ((0, 0), *padding, (0, 0)))
    height, width, inputs, outputs = kernel.shape
    rows = (x.shape[1] - height) // strides[0] + 1
    columns = (x.shape[2] - width) // strides[1] + 1
    y = np.zeros((len(x), rows, columns, outputs))
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        for i in range(rows):
            for j in range(columns):
                top, left = strides[0] * i, strides[1] * j
                part = x[:, top : top + height, left : left + width]
                part = part[..., first : first + inputs]
                y[:, i, j, o] = (part * kernel[..., o]).sum((1, 2, 3))
    return y


@pytest.mark.parametrize(("images", "kernel", *"spg"), CASES, ids=IDS)
def test_it_is_the_convolution_and_so_is_its_gradient(images, kernel, s, p, g):
    x, k = whole_numbers(images, kernel)

    def ours(x, k):
        return convolve(x, k, s, p, feature_group_count=g)

    def theirs(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            s,
            p,
            dimension_numbers=convolution.LAYOUT,
            feature_group_count=g,
        )

    y, pull = jax.vjp(jax.jit(ours), x, k)
    np.testing.assert_array_equal(y, by_definition(x, k, s, p, g))
    (cotangent,) = whole_numbers(y.shape)
    _, expected = jax.vjp(theirs, x, k)
    for ours_, theirs_ in zip(pull(cotangent), expected(cotangent), strict=True):
        np.testing.assert_array_equal(ours_, theirs_)


def test_patches_are_in_the_order_of_a_kernel():
    (x,) = whole_numbers((2, 4, 5, 3))
    found = patches(jnp.asarray(x), (3, 2), (1, 1), "VALID")
    np.testing.assert_array_equal(found[1, 1, 2], x[1, 1:4, 2:4].reshape(-1))


def lowered_for(platform):
    x, k = whole_numbers((2, 6, 6, 3), (3, 3, 3, 4))
    step = jax.jit(jax.grad(lambda k: convolve(x, k, (1, 1), "SAME").sum()))
    return step.trace(k).lower(lowering_platforms=(platform,)).as_text()


def test_a_cpu_multiplies_and_accelerators_convolve():
    assert "stablehlo.convolution" not in lowered_for("cpu")
    assert "stablehlo.dot_general" in lowered_for("cpu")
    for platform in ("cuda", "tpu"):
        assert "stablehlo.convolution" in lowered_for(platform)
        assert "stablehlo.dot_general" not in lowered_for(platform)


def test_patches_that_take_too_much_memory_are_not_made(monkeypatch):
    # 2 images of 36 pixels, each with 9 x 3 numbers of 4 bytes.
    monkeypatch.setattr(convolution, "MOST_PATCHES", 2 * 36 * 27 * 4)
    assert "stablehlo.convolution" not in lowered_for("cpu")
    monkeypatch.setattr(convolution, "MOST_PATCHES", 2 * 36 * 27 * 4 - 1)
    assert "stablehlo.convolution" in lowered_for("cpu")


def test_what_it_does_not_do_is_refused():
    x, k = whole_numbers((2, 6, 6, 3), (3, 3, 3, 4))
    with pytest.raises(ValueError, match=r"without dilation .* \(2, 1\)"):
        convolve(x, k, (1, 1), "SAME", rhs_dilation=(2, 1))
    layout = jax.lax.ConvDimensionNumbers((0, 1, 2, 3), (3, 2, 0, 1), (0, 3, 1, 2))
    with pytest.raises(ValueError, match="ConvDimensionNumbers"):
        convolve(x, k, (1, 1), "SAME", dimension_numbers=layout)
