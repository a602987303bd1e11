"""Size and direction of a kernel move as the equations say, whatever its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from tests.spectral_test import exact_polar

RATE, DECAY, MOMENTUM, RADIAL = 0.2, 4.0, 0.7, 3.0
EXACT = 40  # Newton-Schulz steps after which nothing but rounding is left
TURNS = (1, -1, -1, 1, -1, 1)  # what gradients are multiplied by, step by step


def network(dtype=np.float64, bias=True):
    rng = np.random.default_rng(0)
    shapes = {"hidden": (6, 5), "output": (5, 3)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(dtype)}
        | ({"bias": rng.normal(size=shape[1]).astype(dtype)} if bias else {})
        for name, shape in shapes.items()
    }
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), params)
    return params, grads


def expected(params, grads, count=1):
    """The equations in NumPy, with a decomposition: kernels after some steps."""
    layers = len(params)
    gamma = RATE / layers
    w = jax.tree.map(np.array, params)
    v = jax.tree.map(np.zeros_like, params)
    signs = {name: [] for name in w}
    for turn in TURNS[:count]:
        for name, layer in w.items():
            kernel, g = layer["kernel"], turn * grads[name]["kernel"]
            bias, g_bias = layer["bias"], turn * grads[name]["bias"]
            size = np.linalg.norm(kernel)
            u, b = kernel / size, g_bias / np.linalg.norm(g_bias)
            constant = np.outer(g @ b, b)
            rest = g - constant
            least = min(1, np.linalg.norm(rest) / np.linalg.norm(constant))
            direction = rest + least * constant
            direction /= np.linalg.norm(direction)
            v[name]["kernel"] = MOMENTUM * v[name]["kernel"] + 0.3 * direction
            o = exact_polar(v[name]["kernel"])
            o /= np.linalg.norm(o)
            o -= np.sum(o * u) * u
            step = size * np.linalg.norm(v[name]["kernel"]) * o
            signs[name].append(np.sign(np.sum(g * u)))
            s = np.average(
                signs[name], weights=0.9 ** np.arange(len(signs[name]))[::-1]
            )
            waits = s > 0 and size > np.sqrt(2 * kernel.shape[1])
            across = gamma * (np.sqrt(1 - s**2) if waits else 1)
            size_change = np.exp(-gamma * (RADIAL * s + RATE * DECAY))
            length = size * min(
                0.1 / np.sqrt(len(kernel)),
                0.3 * np.linalg.norm(g) / np.linalg.norm(g_bias),
            )
            v[name]["bias"] = MOMENTUM * v[name]["bias"] + 0.3 * across * length * b
            layer["kernel"] = size_change * kernel - across * step
            layer["bias"] = size_change * bias - v[name]["bias"]
    return w


def after(optimizer, params, grads, count=1, turns=(1,) * 60):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for turn in turns[:count]:
        g = jax.tree.map(lambda x: (turn * x).astype(x.dtype), grads)  # noqa: B023
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def close(x, y, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), x, y)


@pytest.mark.parametrize("size", [0.1, 1.0])
@pytest.mark.parametrize("count", [1, 6])
def test_equals_the_equations_in_float64(count, size):
    with jax.enable_x64(True):
        params, grads = network()
        params = jax.tree.map(lambda w: size * w, params)
        optimizer = lars.polar(RATE, DECAY, MOMENTUM, radial_rate=RADIAL, steps=EXACT)
        moved = after(optimizer, params, grads, count, TURNS)
        close(moved, expected(params, grads, count), 1e-7)


@pytest.mark.parametrize("exponent", [-120, -60, 60, 120])
def test_the_scale_of_the_loss_changes_no_bit(exponent):
    params, grads = network(np.float32)
    optimizer = lars.polar(RATE)
    other = jax.tree.map(lambda g: np.ldexp(g, exponent), grads)
    jax.tree.map(
        np.testing.assert_array_equal,
        after(optimizer, params, grads, 3, TURNS),
        after(optimizer, params, other, 3, TURNS),
    )


@pytest.mark.parametrize("exponent", [-40, 40])
def test_steps_are_relative_to_the_kernel(exponent):
    params, grads = network(np.float32, bias=False)
    optimizer = lars.polar(RATE, yielding=0.0)
    larger = jax.tree.map(lambda w: np.ldexp(w, exponent), params)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.ldexp(x, exponent), y),
        after(optimizer, params, grads, 3, TURNS),
        after(optimizer, larger, grads, 3, TURNS),
    )


def test_size_and_direction_move_apart():
    with jax.enable_x64(True):
        params, grads = network(bias=False)
        still = lars.polar(
            RATE, 0.0, MOMENTUM, radial_rate=0.0, yielding=0.0, steps=EXACT
        )
        moved = after(still, params, grads)
        for name in params:
            w, new = params[name]["kernel"], moved[name]["kernel"]
            # Two kernels; and of the average of directions, the first.
            step = RATE / 2 * (1 - MOMENTUM) * np.linalg.norm(w)
            np.testing.assert_allclose(np.sum((new - w) * w), 0, atol=1e-12)
            o = exact_polar(grads[name]["kernel"])
            cosine = np.sum(o * w) / np.linalg.norm(o) / np.linalg.norm(w)
            np.testing.assert_allclose(
                np.linalg.norm(new - w), step * np.sqrt(1 - cosine**2), rtol=1e-9
            )


def test_a_step_is_as_long_as_gradients_agree():
    params, grads = network(np.float32, bias=False)
    optimizer = lars.polar(RATE, 0.0, MOMENTUM, radial_rate=0.0, yielding=0.0)
    update = jax.jit(optimizer.update)

    def length(signs):
        state = optimizer.init(params)
        for sign in signs:
            g = jax.tree.map(lambda x: np.float32(sign) * x, grads)  # noqa: B023
            updates, state = update(g, state, params)
        return np.linalg.norm(updates["hidden"]["kernel"])

    # The norm of the average: 1 - mⁿ of n equal ones, and (1 - m)/(1 + m) if they turn.
    whole = length([1] * 60)
    np.testing.assert_allclose(length([1]) / whole, 1 - MOMENTUM, rtol=1e-3)
    turning = (1 - MOMENTUM) / (1 + MOMENTUM)
    np.testing.assert_allclose(length([1, -1] * 30) / whole, turning, rtol=1e-3)


def test_what_is_averaged_are_directions():
    params, grads = network(np.float32)
    optimizer = lars.polar(RATE)
    state, other = optimizer.init(params), optimizer.init(params)
    update = jax.jit(optimizer.update)
    for turn, exponent in zip(TURNS, (0, 40, -40), strict=False):
        same = jax.tree.map(lambda x: np.float32(turn) * x, grads)  # noqa: B023
        g = jax.tree.map(lambda x: np.ldexp(x, exponent), same)  # noqa: B023
        updates, state = update(g, state, params)
        expected_updates, other = update(same, other, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected_updates)


def test_a_kernel_grows_along_a_slope_that_says_so():
    params = {"kernel": np.eye(3, dtype=np.float32)}
    for sign in (-1, 1):
        grads = {"kernel": sign * np.eye(3, dtype=np.float32)}
        moved = after(lars.polar(RATE, 0.0, radial_rate=RADIAL), params, grads)
        # All of the gradient is along the kernel: nothing is left across it.
        np.testing.assert_allclose(
            moved["kernel"], np.exp(-sign * RATE * RADIAL) * np.eye(3), rtol=1e-6
        )


def too_large(dtype=np.float32):
    """A network whose gradients say that all its kernels should shrink."""
    params, grads = network(dtype)
    for name, layer in grads.items():
        layer["kernel"] *= np.sign(np.sum(layer["kernel"] * params[name]["kernel"]))
    return jax.tree.map(lambda w: 100 * w, params), grads


def test_directions_wait_while_all_signs_agree_that_a_kernel_is_too_large():
    params, grads = too_large()
    optimizer = lars.polar(RATE, 0.0, MOMENTUM, radial_rate=RADIAL)
    moved = after(optimizer, params, grads, 4)
    size = np.exp(-4 * RATE / 2 * RADIAL)  # two kernels
    # The bias stays what it was beside its kernel.
    close(moved, jax.tree.map(lambda w: size * w, params), 1e-5)


@pytest.mark.parametrize(("scale", "turn"), [(1e-2, 1), (1, -1), (1e-2, -1)])
def test_they_wait_for_nothing_else(scale, turn):
    """Neither where a kernel is small, nor where it should grow."""
    params, grads = too_large()
    params = jax.tree.map(lambda w: np.float32(scale / 10) * w, params)
    with_and_without = (
        after(lars.polar(RATE, yielding=c), params, grads, 4, (turn,) * 4)
        for c in (0.0, 1.0)
    )
    jax.tree.map(np.testing.assert_array_equal, *with_and_without)


@pytest.mark.parametrize("turns", [(1, -1), (-1, 1), (1, 1, 1, -1), (-1, 1) * 10])
def test_a_direction_gets_what_the_size_leaves_of_a_step(turns):
    params, grads = too_large()

    def lengths(yielding):
        optimizer = lars.polar(RATE, 0.0, radial_rate=0.0, yielding=yielding)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for turn in turns:  # where the kernels are, so that no sign but these counts
            g = jax.tree.map(lambda x: np.float32(turn) * x, grads)  # noqa: B023
            updates, state = update(g, state, params)
        return np.linalg.norm(updates["hidden"]["kernel"])

    s = np.average(turns, weights=0.9 ** np.arange(len(turns))[::-1])
    for yielding in (0.5, 1.0):
        part = np.sqrt(1 - yielding * max(s, 0) ** 2)
        np.testing.assert_allclose(lengths(yielding), part * lengths(0.0), rtol=1e-5)


def test_a_bias_is_bounded_by_what_its_kernel_does_to_the_loss():
    # Inputs of 1e-6: the kernel's gradient is that much smaller than the bias'.
    with jax.enable_x64(True):
        params, grads = network()
        h = 1e-6 * np.random.default_rng(1).normal(size=6)
        b = grads["hidden"]["bias"]
        grads["hidden"]["kernel"] = np.outer(h, b)
        params["hidden"]["bias"] = np.zeros(5)
        moved = after(lars.polar(RATE, 0.0, MOMENTUM, yielding=0.0), params, grads)
        step = np.linalg.norm(moved["hidden"]["bias"])
        kernel = np.linalg.norm(params["hidden"]["kernel"])
        expected_step = (1 - MOMENTUM) * 0.3 * RATE / 2 * kernel * np.linalg.norm(h)
        np.testing.assert_allclose(step, expected_step, rtol=1e-6)


def test_a_constant_input_does_not_hide_what_differs():
    """The direction of a signal 1e6 times smaller than what a constant input makes."""
    rng = np.random.default_rng(3)
    b = rng.normal(size=5)
    signal = rng.normal(size=(6, 5))
    signal -= np.outer(signal @ b, b) / (b @ b)  # as of images whose errors cancel
    constant = np.outer(np.full(6, 0.5), b)
    w = rng.normal(size=(6, 5))

    def step(size):
        with jax.enable_x64(True):
            params = {"kernel": jnp.asarray(w), "bias": jnp.zeros(5)}
            grads = {"kernel": size * signal + constant, "bias": b}
            turning = lars.polar(RATE, 0.0, radial_rate=0.0, yielding=0.0)
            moved = after(turning, params, grads)
            return np.ravel(moved["kernel"] - w)

    big, small = step(1e-1), step(1e-6)
    cosine = big @ small / np.linalg.norm(big) / np.linalg.norm(small)
    assert cosine > 0.98


def test_rectifiers_that_are_shut_do_not_make_an_input_constant():
    """With two of five open: the direction is the gradient's, as without a bias."""
    rng = np.random.default_rng(4)
    errors = rng.normal(size=(20, 5))
    errors[:, 2:] = 0
    inputs = 1 + rng.normal(size=(20, 6))
    g = {"kernel": inputs.T @ errors, "bias": errors.sum(axis=0)}
    w = {"kernel": rng.normal(size=(6, 5)), "bias": np.zeros(5)}

    def moved(names):
        optimizer = lars.polar(RATE, 0.0, radial_rate=0.0, yielding=0.0)
        params, grads = ({name: tree[name] for name in names} for tree in (w, g))
        return after(optimizer, params, grads)["kernel"]

    with jax.enable_x64(True):
        np.testing.assert_allclose(
            moved(["kernel", "bias"]), moved(["kernel"]), rtol=1e-9
        )


@pytest.mark.parametrize(
    ("name", "at"), [("learning_rate", RATE), ("radial_momentum", 0.9)]
)
def test_its_steps_have_derivatives(name, at):
    """Also the first, in which s is ±1, where the root's derivative is infinite."""
    params, grads = too_large()

    def size_after(value):
        optimizer = lars.polar(**{"learning_rate": RATE, name: value})
        state, x = optimizer.init(params), params
        for turn in TURNS:
            g = jax.tree.map(lambda x: np.float32(turn) * x, grads)  # noqa: B023
            updates, state = optimizer.update(g, state, x)
            x = optax.apply_updates(x, updates)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))

    size, derivative = jax.jit(size_after), jax.jit(jax.grad(size_after))(at)
    near = [size(at + h) for h in (-1e-2, 1e-2)]
    np.testing.assert_allclose(derivative, (near[1] - near[0]) / 2e-2, rtol=2e-2)


def test_derivatives_pass_through_gradients():
    """Also those of a single output, which are a constant input's, and of zeros."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 1))
    params = {
        "hidden": {"kernel": rng.normal(size=(3, 4)), "bias": np.zeros(4)},
        "last": {"kernel": rng.normal(size=(4, 1)), "bias": np.zeros(1)},
    }

    def loss(params):
        h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        out = h @ params["last"]["kernel"] + params["last"]["bias"][None]
        return jnp.mean((out - y) ** 2)

    def loss_after(factor):
        """After two steps from where the hidden kernel is this many times larger."""
        optimizer = lars.polar(RATE)
        at = {**params, "hidden": {**params["hidden"]}}
        at["hidden"]["kernel"] = factor * params["hidden"]["kernel"]
        state = optimizer.init(at)
        for _ in range(2):
            updates, state = optimizer.update(jax.grad(loss)(at), state, at)
            at = optax.apply_updates(at, updates)
        return loss(at)

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        x, y = jnp.asarray(x), jnp.asarray(y)
        size, derivative = jax.jit(loss_after), jax.jit(jax.grad(loss_after))
        for factor in (0.7, 0.0):  # at zero a network says nothing of its inputs
            assert np.isfinite(derivative(factor))
        near = [size(0.7 + h) for h in (-1e-5, 1e-5)]
        np.testing.assert_allclose(
            derivative(0.7), (near[1] - near[0]) / 2e-5, rtol=1e-4
        )


def test_normalizations_step_by_their_own_norm():
    params = {
        "norm": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    }
    grads = jax.tree.map(lambda x: 1e20 * np.ones_like(x), params)
    moved = after(lars.polar(RATE, momentum=MOMENTUM), params, grads)
    step = (1 - MOMENTUM) * RATE
    np.testing.assert_allclose(moved["norm"]["scale"], 1 - step, rtol=1e-6)
    np.testing.assert_allclose(moved["norm"]["bias"], -0.1 * step, rtol=1e-6)


def test_wrong_numbers_are_refused_with_their_value():
    with pytest.raises(TypeError, match=r"steps must be an integer, got 2\.5"):
        lars.polar(RATE, steps=2.5)  # pyright: ignore[reportArgumentType]
    for name, value in {
        "momentum": 1.0,
        "radial_rate": -1.0,
        "weight_decay": float("nan"),
        "depth_exponent": -2.0,
        "yielding": 1.5,
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            lars.polar(RATE, **{name: value})
    optimizer = lars.polar(RATE)
    params, grads = network(np.float32)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(grads, state)
    with pytest.raises(TypeError, match="got EmptyState, need PolarState"):
        optimizer.update(grads, optax.EmptyState(), params)
    earlier = state._replace(signs=jax.tree.map(lambda x: x[0], state.signs))
    others = optimizer.init(params["hidden"])
    for wrong in (earlier, others):
        with pytest.raises(ValueError, match=r"shapes .* and sums of signs of \["):
            optimizer.update(grads, wrong, params)


def test_without_memory_every_sign_stands_for_itself():
    w = {"kernel": np.eye(3, dtype=np.float32)}
    optimizer = lars.polar(RATE, 0.0, radial_momentum=0.0, radial_rate=RADIAL)
    moved = after(optimizer, w, w, 3, TURNS)  # along the kernel alone
    np.testing.assert_allclose(
        moved["kernel"], np.exp(RATE * RADIAL) * w["kernel"], rtol=1e-5
    )


def test_behind_saturated_units_the_scale_of_the_loss_counts_no_more():
    # Gradients of subnormal numbers, which most arithmetic takes for zero.
    rng = np.random.default_rng(5)
    inputs, errors = 1 + 1e-2 * rng.normal(size=(20, 6)), rng.normal(size=(20, 5))
    g = {"kernel": inputs.T @ errors, "bias": errors.sum(axis=0)}
    w = {"kernel": rng.normal(size=(6, 5)), "bias": np.zeros(5)}
    w, g = jax.tree.map(np.float32, (w, g))
    turning = lars.polar(RATE, 0.0, radial_rate=0.0, yielding=0.0)
    tiny = jax.tree.map(lambda x: np.ldexp(x, -132), g)
    assert max(np.abs(x).max() for x in tiny.values()) < np.finfo(np.float32).tiny
    step, same = (
        np.ravel(after(turning, w, grads)["kernel"] - w["kernel"])
        for grads in (g, tiny)
    )
    cosine = step @ same / np.linalg.norm(step) / np.linalg.norm(same)
    assert cosine > 0.999


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_rate_turns_a_kernel_around(sign):
    w = {"kernel": np.eye(3, dtype=np.float32)}
    gradient = jax.tree.map(lambda x: sign * x, w)  # along the kernel alone
    moved = after(lars.polar(1.0), w, gradient, 3)["kernel"]
    assert (np.diag(moved) > 0).all()


def test_a_batch_of_one_image_is_no_constant_input():
    rng = np.random.default_rng(0)
    inputs, errors = rng.normal(size=30), rng.normal(size=20)
    whole = np.outer(inputs, errors)
    with_bias, without = (
        after(
            lars.polar(RATE, 0.0, radial_rate=0.0, yielding=0.0),
            {"a": {"kernel": np.ones((30, 20), np.float32), **bias}},
            {"a": {"kernel": whole.astype(np.float32), **bias_gradient}},
        )["a"]["kernel"]
        for bias, bias_gradient in (
            (
                {"bias": np.zeros(20, np.float32)},
                {"bias": errors.astype(np.float32)},
            ),
            ({}, {}),
        )
    )
    np.testing.assert_allclose(with_bias, without, rtol=1e-5)


def test_a_kernel_of_zero_moves():
    params, grads = network(np.float32)
    params["output"] = jax.tree.map(np.zeros_like, params["output"])
    moved = after(lars.polar(RATE, steps=EXACT), params, grads)["output"]
    # Two kernels; the first of an average; and three outputs.
    length = RATE / 2 * (1 - MOMENTUM) * np.sqrt(3)
    np.testing.assert_allclose(np.linalg.norm(moved["kernel"]), length, rtol=1e-5)
    assert np.linalg.norm(moved["bias"]) > 0
