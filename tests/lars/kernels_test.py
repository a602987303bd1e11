"""Which arrays are kernels, whose biases are whose, and what constant inputs make."""

import jax
import numpy as np
import pytest

import lars
from lars.kernels import (
    by_constant_input,
    can_tell_constant_input,
    preserving_norm,
    roles_of,
)

split = jax.jit(by_constant_input, static_argnums=2)
can_tell = jax.jit(can_tell_constant_input)


def roles(shapes, **rules):
    """Kernels by name, with their layer and output axes and the name of their bias."""
    names = sorted(shapes)  # the order of the tree
    of = roles_of({"a": {name: np.ones(shapes[name]) for name in names}}, **rules)
    kernels = {
        names[i]: (layers, outputs, names[of.biases[i]] if i in of.biases else None)
        for i, layers, outputs in of.kernels
    }
    return kernels, dict(zip(names, of.layer_axes, strict=True))


LAST = ((1,), None)  # outputs, and no bias
W, B = lars.select(path="/w$"), lars.select(path="/b$")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"b": (3,), "w": (2, 3), "c": (2,)}, {"w": ((1,), "b")}),
        ({"a": (4,), "b": (4,), "w": (3, 3, 2, 4)}, {"w": ((3,), "a")}),
        ({"b": (3,)}, {}),
        # Side by side nothing says whose bias a vector is.
        ({"b": (4,), "w1": (4, 4), "w2": (4, 4)}, {"w1": LAST, "w2": LAST}),
        # Attention: heads and features are outputs where there is a bias of both.
        ({"b": (4, 5), "w": (6, 4, 5)}, {"w": ((1, 2), "b")}),
        ({"w": (6, 4, 5)}, {"w": ((2,), None)}),
        ({"b": (6,), "w": (4, 5, 6)}, {"w": ((2,), "b")}),
        ({"b": (4, 5), "c": (5,), "w": (6, 4, 5)}, {"b": LAST, "w": ((2,), None)}),
        ({"v": (4, 5), "w": (6, 7, 5)}, {"v": LAST, "w": ((2,), None)}),
        (
            {"b": (4, 5), "v": (2, 3), "w": (6, 4, 5)},
            {"b": LAST, "v": LAST, "w": ((2,), None)},
        ),
    ],
)
def test_which_bias_belongs_to_which_kernel(shapes, expected):
    kernels, _ = roles(shapes)
    assert {k: (outputs, bias) for k, (_, outputs, bias) in kernels.items()} == expected


BOTH = {"stacked": [(W | B, 0)]}
GROUPS = {"stacked": [(W, (1, 0))]}
CHANNELS = {"stacked": [(W, 3)], "output_axes": [(W, ())]}
FIRST_OF_RULES = {"output_axes": [(W, (2, 1)), (W, 0)]}


@pytest.mark.parametrize(
    ("b", "w", "rules", "kernel", "layers_of_bias"),
    [
        # Told or not that it is stacked, a bias has its kernel's layers.
        ((3, 5), (3, 4, 5), BOTH, ((0,), (2,), "b"), (0,)),
        ((3, 5), (3, 4, 5), {"stacked": [(W, 0)]}, ((0,), (2,), "b"), (0,)),
        ((3, 5), (4, 3, 5), {"stacked": [(W, 1)]}, ((1,), (2,), "b"), (0,)),
        ((5, 3), (4, 3, 5), {"stacked": [(W | B, 1)]}, ((1,), (2,), "b"), (1,)),
        ((3, 6), (3, 4, 5), BOTH, ((0,), (2,), None), (0,)),
        # Layers of attention, and experts of several groups.
        ((3, 4, 5), (3, 6, 4, 5), BOTH, ((0,), (2, 3), "b"), (0,)),
        ((3, 4, 5), (3, 6, 4, 5), {"stacked": [(W, -4)]}, ((0,), (2, 3), "b"), (0,)),
        ((2, 3, 5), (2, 3, 4, 5), GROUPS, ((0, 1), (3,), "b"), (0, 1)),
        # What is told holds, the first of several; and a channel is a kernel.
        ((4, 5), (6, 4, 5), FIRST_OF_RULES, ((), (1, 2), "b"), ()),
        ((6,), (6, 4, 5), {"output_axes": [(W, 0)]}, ((), (0,), "b"), ()),
        ((6,), (3, 3, 1, 6), CHANNELS, ((3,), (), "b"), (0,)),
    ],
)
def test_rules_say_which_axes_are_what(b, w, rules, kernel, layers_of_bias):
    kernels, layers = roles({"b": b, "w": w}, **rules)
    assert kernels == {"w": kernel}
    assert layers == {"w": kernel[0], "b": layers_of_bias}


def test_what_is_as_large_as_a_kernel_is_no_bias():
    kernels, _ = roles({"w": (4, 5), "x": (4, 5)}, output_axes=[(W, (0, 1))])
    assert kernels == {"w": ((), (0, 1), None), "x": ((), (1,), None)}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    ("shape", "outputs"), [((6, 5), (1,)), ((3, 3, 2, 5), (3,)), ((4, 2, 3), (1, 2))]
)
def test_a_gradient_of_constant_inputs_is_found_out(shape, outputs, scale):
    rng = np.random.default_rng(0)
    inputs = int(np.prod(shape[: outputs[0]]))
    errors = rng.normal(size=(20, np.prod(shape[outputs[0] :])))
    constant = np.outer(h := rng.normal(size=inputs), errors.sum(axis=0))

    def parts(h):
        gradient = (scale * h.T @ errors).astype(np.float32).reshape(shape)
        bias = (scale * errors.sum(axis=0)).astype(np.float32)
        bias = bias.reshape(shape[outputs[0] :])
        return map(np.asarray, split(gradient, bias, outputs))

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
    ("inputs", "classes", "shut", "expected"),
    [
        (6, 1, 0, False),
        (6, 2, 0, False),
        (1, 5, 0, True),
        (6, 5, 2, True),
        (6, 5, 4, False),
    ],
)
def test_where_the_form_of_a_gradient_says_nothing(inputs, classes, shut, expected):
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(20, classes)).astype(np.float32)
    if classes > 1:
        errors -= errors.mean(axis=1, keepdims=True)  # as behind a softmax
    errors[:, :shut] = 0  # as of rectifiers that no image opens
    h = rng.normal(size=(20, inputs)).astype(np.float32)
    _, rest = split(h.T @ errors, errors.sum(axis=0), None)
    assert (np.linalg.norm(rest) > 1e-6) == expected
    for scale in (1, 2.0**-140):
        b = (scale * errors.sum(axis=0)).astype(np.float32)
        assert can_tell(b) == expected
    b[:shut] = 2.0**-149 if shut else b[:shut]  # nearly shut, as of saturated units
    b[shut:] *= 2.0**100
    assert can_tell(b) == expected


@pytest.mark.parametrize(("fan_in", "shape"), [(30, (1000,)), (800, (100, 10))])
def test_the_preserving_norm_keeps_the_mean_square_behind_a_rectifier(fan_in, shape):
    keys = jax.random.split(jax.random.key(0), 2)
    w = jax.random.normal(keys[0], (fan_in, *shape))
    outputs = range(1, w.ndim)
    w = (w * preserving_norm(w, outputs) / np.linalg.norm(w)).reshape(fan_in, -1)
    x = np.maximum(jax.random.normal(keys[1], (200, fan_in)), 0)
    ratio = np.mean(np.maximum(x @ w, 0) ** 2) / np.mean(x**2)
    np.testing.assert_allclose(ratio, 1, atol=0.15)
