"""Size and direction of a kernel move as the equations say, whatever its scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lars
from tests.lars.spectral_test import exact_polar
from tests.lars.steps import (
    assert_near,
    assert_same,
    assert_trees_close,
    drawn,
    first_step,
)

RATE, DECAY, MOMENTUM, RADIAL = 0.2, 4.0, 0.7, 3.0
EXACT = 40  # Newton-Schulz steps after which nothing but rounding is left
TURNS = (1, -1, -1, 1, -1, 1)  # what gradients are multiplied by, step by step


def network(dtype=np.float32):
    """Parameters, and gradients of them."""
    shapes = {
        "hidden": {"kernel": (6, 5), "bias": (5,)},
        "output": {"kernel": (5, 3), "bias": (3,)},
    }
    return [drawn(shapes, seed, dtype=dtype) for seed in (0, 1)]


def expected(params, grads):
    """The equations in NumPy, with a decomposition: kernels after some steps."""
    layers = len(params)
    gamma = RATE / layers
    w = jax.tree.map(np.array, params)
    v = jax.tree.map(np.zeros_like, params)
    signs, pulls = {name: [] for name in w}, dict.fromkeys(w, 0)
    for turn in TURNS:
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
            usual = np.sqrt(2 * kernel.shape[1])
            step = usual * np.linalg.norm(v[name]["kernel"]) * o
            e = np.sum(g * kernel)
            pulls[name] = max(0.9 * pulls[name], -e)
            signs[name].append(1 if e > 0 else -np.sqrt(-e / pulls[name]))
            s = np.average(
                signs[name], weights=0.9 ** np.arange(len(signs[name]))[::-1]
            )
            decay = RATE * DECAY if size > usual else 0
            size_change = np.exp(-gamma * (RADIAL * s + decay))
            length = 0.1 / np.sqrt(len(kernel)) * usual
            v[name]["bias"] = MOMENTUM * v[name]["bias"] + 0.3 * gamma * length * b
            layer["kernel"] = size_change * kernel - gamma * step
            layer["bias"] = size_change * bias - v[name]["bias"]
    return w


NUMBERS = {
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "momentum": MOMENTUM,
    "radial_rate": RADIAL,
    "radial_momentum": 0.9,
    "depth_exponent": 1.0,
}
TURNING = {"weight_decay": 0.0, "radial_rate": 0.0}
"""Numbers with which kernels change their direction alone."""


@functools.partial(jax.jit, static_argnames="steps")
def compiled_run(params, gradients, numbers, moves, steps):
    optimizer = lars.polar(**numbers, steps=steps)

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        moved = optax.apply_updates(params, updates)
        # Not a condition: one program for all runs of arrays of these shapes.
        params = jax.tree.map(lambda x, y: jnp.where(moves, x, y), moved, params)
        return (params, state), (moved, updates)

    start = jax.tree.map(jnp.asarray, (params, optimizer.init(params)))
    return jax.lax.scan(step, start, gradients)[1]


def run(params, grads, turns=TURNS, *, moves=True, steps=3, **numbers):
    """Parameters and updates of every step, with the gradients times the turns."""
    # Here, where a product that is subnormal is not taken for zero.
    gradients = jax.tree.map(
        lambda x: np.stack([(turn * x).astype(x.dtype) for turn in turns]), grads
    )
    return compiled_run(params, gradients, NUMBERS | numbers, moves, steps)


def at_step(trees, i):
    return jax.tree.map(lambda x: np.asarray(x[i]), trees)


def after(*arguments, **numbers):
    """The parameters after the last step."""
    return at_step(run(*arguments, **numbers)[0], -1)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_equals_the_equations_in_float64(size):
    with jax.enable_x64(True):
        params, grads = network(np.float64)
        params = jax.tree.map(lambda w: size * w, params)
        assert_trees_close(
            after(params, grads, steps=EXACT), expected(params, grads), 1e-7
        )


def test_directions_do_not_depend_on_the_size_of_a_kernel():
    """Its own steps and its bias' are those at the usual norm, whatever it has."""
    params, grads = network()
    _, right = run(params, grads, moves=False, **TURNING)
    for exponent in (-126, -40, 40, 120):
        other = jax.tree.map(lambda w: np.ldexp(w, exponent), params)  # noqa: B023
        _, updates = run(other, grads, moves=False, **TURNING)
        assert_trees_close(updates, right, 1e-5)


def test_a_step_is_as_long_as_gradients_agree():
    """As the average: 1 - mⁿ after n equal gradients, and less if they turn."""
    params, grads = network()
    n = np.arange(1, 7)
    less = (1 - MOMENTUM) / (1 + MOMENTUM)
    for turn, average in ((1, 1 - MOMENTUM**n), (-1, less * (1 - (-MOMENTUM) ** n))):
        turns = np.power(float(turn), n)
        _, updates = run(params, grads, turns, moves=False, **TURNING)
        lengths = np.linalg.norm(updates["hidden"]["kernel"], axis=(1, 2))
        np.testing.assert_allclose(
            lengths / lengths[0], average / average[0], rtol=1e-5
        )


def test_what_is_averaged_are_directions():
    params, grads = network()
    exponents = np.array([0, 120, -120, 60, -60, 0])
    turned, right = (
        run(params, grads, turns, **TURNING)
        for turns in (np.ldexp(TURNS, exponents), TURNS)
    )
    assert_same(turned, right)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("rate", [RATE, 1.0])
def test_a_kernel_grows_or_shrinks_exponentially_and_never_turns_around(sign, rate):
    w = {"kernel": np.eye(3, dtype=np.float32)}
    # All of the gradient is along the kernel: nothing is left across it.
    moved, _ = run(w, w, sign * np.ones(3), learning_rate=rate, weight_decay=0.0)
    for n, kernel in enumerate(moved["kernel"], start=1):
        size = np.exp(-sign * n * rate * RADIAL)
        np.testing.assert_allclose(
            kernel, size * np.eye(3), rtol=1e-4, atol=1e-6 * max(1, size)
        )


def test_without_memory_every_sign_stands_for_itself():
    w = {"kernel": np.eye(3, dtype=np.float32)}
    numbers = {"weight_decay": 0.0, "radial_momentum": 0.0}
    moved = after(w, w, (1, -1, -1), **numbers)  # along the kernel alone
    np.testing.assert_allclose(
        moved["kernel"], np.exp(RATE * RADIAL) * w["kernel"], rtol=1e-5, atol=1e-6
    )


def test_decay_acts_above_the_usual_norm_alone():
    usual = np.sqrt(2 * 3) * np.eye(3, dtype=np.float32) / np.sqrt(3)
    grads = {"kernel": np.zeros((3, 3), np.float32)}
    for factor, change in ((0.99, 1.0), (1.01, np.exp(-RATE * RATE * DECAY))):
        w = {"kernel": np.float32(factor) * usual}
        moved = after(w, grads, (1,))["kernel"]
        np.testing.assert_allclose(moved, change * w["kernel"], rtol=1e-6)


def test_growth_fades_with_its_pull():
    """It is that of the root of -⟨g, w⟩, beside the strongest pull of late."""
    w = {"kernel": np.eye(3, dtype=np.float32)}
    numbers = {"weight_decay": 0.0, "radial_momentum": 0.5}
    pulls = np.array([1e10, 1e10, 1e10, 1.0])
    moved, _ = run(w, w, -pulls, moves=False, **numbers)
    strongest = [1e10, 1e10, 1e10, 0.5e10]
    signs = np.sqrt(pulls / strongest)
    weights = 0.5 ** np.arange(4)[::-1]
    growth = np.exp(RATE * RADIAL * np.sum(weights * signs) / weights.sum())
    np.testing.assert_allclose(
        at_step(moved, -1)["kernel"], growth * np.eye(3), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("sizes", [(-60, -60), (60, 60), (-120, -120), (120, 100)])
def test_pulls_may_leave_the_range_of_float32(sizes):
    """Of kernels and gradients of any size only the ratios of pulls count."""
    params, grads = network()
    optimizer = lars.polar(RATE)
    update = jax.jit(optimizer.update)

    def averages(sizes):
        trees = zip(sizes, (params, grads), strict=True)
        w, g = (jax.tree.map(lambda x, e=e: np.ldexp(x, e), x) for e, x in trees)
        state = optimizer.init(w)
        for turn in (-1, 0.25, -0.5, 1):
            turned = jax.tree.map(lambda x, t=turn: np.float32(t) * x, g)
            _, state = update(turned, state, w)
        return state.signs[:, 0] / state.signs[:, 1]

    right = averages((0, 0))
    np.testing.assert_allclose(averages(sizes), right, rtol=1e-4)
    assert (np.abs(right) < 0.9).all()  # not signs alone


def direction(inputs, errors, has_bias=True, dtype=np.float64):
    """Of the first step of a kernel, from what makes its gradient; of norm one."""
    w = {"kernel": np.random.default_rng(9).normal(size=(6, 5)), "bias": np.zeros(5)}
    g = {"kernel": inputs.T @ errors, "bias": errors.sum(axis=0)}
    names = ["kernel", "bias"] if has_bias else ["kernel"]
    with jax.enable_x64(True):
        w, g = ({name: tree[name].astype(dtype) for name in names} for tree in (w, g))
        step = np.float64(run(w, g, (1,), **TURNING)[1]["kernel"]).ravel()
    return step / np.linalg.norm(step)


def test_a_constant_input_does_not_hide_what_differs():
    """The direction of a signal 1e6 times smaller than what a constant input makes."""
    rng = np.random.default_rng(3)
    signal, errors = rng.normal(size=(20, 6)), rng.normal(size=(20, 5))
    signal -= signal.mean(axis=0)
    big, small = (direction(0.5 + size * signal, errors) for size in (1e-1, 1e-6))
    assert big @ small > 0.98


@pytest.mark.parametrize(("images", "shut"), [(1, 0), (20, 3)])
def test_one_image_and_shut_rectifiers_make_no_input_constant(images, shut):
    """The direction is the gradient's, as without a bias."""
    rng = np.random.default_rng(4)
    inputs, errors = 1 + rng.normal(size=(images, 6)), rng.normal(size=(images, 5))
    errors[:, 5 - shut :] = 0
    np.testing.assert_allclose(
        direction(inputs, errors), direction(inputs, errors, False), atol=1e-9
    )


def test_behind_saturated_units_the_scale_of_the_loss_counts_no_more():
    # Gradients of subnormal numbers, which most arithmetic takes for zero.
    rng = np.random.default_rng(5)
    inputs, errors = 1 + 1e-2 * rng.normal(size=(20, 6)), rng.normal(size=(20, 5))
    tiny = np.ldexp(errors, -132)
    largest = max(np.abs(inputs.T @ tiny).max(), np.abs(tiny.sum(axis=0)).max())
    assert largest < np.finfo(np.float32).tiny
    step, same = (direction(inputs, x, dtype=np.float32) for x in (errors, tiny))
    assert step @ same > 0.999


def test_its_steps_have_derivatives():
    """By its numbers and through gradients, also where a root is of zero.

    In the first step s is 1 and directions wait. The gradient of a single output is all
    a constant input's.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 3)), 0.1 * rng.normal(size=(16, 1))
    params = {
        "hidden": {"kernel": rng.normal(size=(3, 4)), "bias": np.zeros(4)},
        "last": {"kernel": 2 * rng.normal(size=(4, 1)), "bias": np.zeros(1)},
    }

    def loss(params):
        h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        out = h @ params["last"]["kernel"] + params["last"]["bias"][None]
        return jnp.mean((out - y) ** 2)

    def loss_after(factor, **numbers):
        """After three steps from where the hidden kernel is this much larger."""
        optimizer = lars.polar(**numbers)
        at = {**params, "hidden": {**params["hidden"]}}
        at["hidden"]["kernel"] = factor * params["hidden"]["kernel"]

        def step(carry, turn):
            at, state = carry
            g = jax.tree.map(lambda x: turn * x, jax.grad(loss)(at))
            updates, state = optimizer.update(g, state, at)
            return (optax.apply_updates(at, updates), state), state.signs

        start = (at, optimizer.init(at))
        (at, _), signs = jax.lax.scan(step, start, jnp.array([1.0, -1.0, 1.0]))
        return loss(at), signs

    at = {"factor": 2.0, "learning_rate": 0.1, "radial_momentum": 0.5}
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        both = jax.jit(
            jax.value_and_grad(lambda numbers: loss_after(**numbers), has_aux=True)
        )
        # At zero a network says nothing of its inputs.
        _, derivatives = both({**at, "factor": 0.0})
        assert all(np.isfinite(x) for x in derivatives.values())
        (_, signs), derivatives = both(at)
        np.testing.assert_array_equal(signs[0], 1)  # the kernels should shrink
        for name, derivative in derivatives.items():
            near = [both({**at, name: at[name] + h})[0][0] for h in (-1e-5, 1e-5)]
            np.testing.assert_allclose(derivative, (near[1] - near[0]) / 2e-5, 1e-4)


def test_normalizations_step_by_their_own_norm():
    params = {
        "norm": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    }
    grads = jax.tree.map(lambda x: 1e20 * np.ones_like(x), params)
    moved = after(params, grads, (1,))
    step = (1 - MOMENTUM) * RATE
    np.testing.assert_allclose(moved["norm"]["scale"], 1 - step, rtol=1e-6)
    np.testing.assert_allclose(moved["norm"]["bias"], -0.1 * step, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 2.5}, TypeError, r"steps must be an integer, got 2\.5"),
        ({"momentum": 1.0}, ValueError, r"momentum must be below 1, got 1\.0"),
        ({"radial_momentum": jnp.float32(1)}, ValueError, "must be below 1, got .*1"),
        ({"radial_rate": -1.0}, ValueError, r"radial_rate must be .*-1\.0"),
        ({"weight_decay": np.nan}, ValueError, "weight_decay must be .*nan"),
        ({"depth_exponent": "p"}, TypeError, "depth_exponent must be a number, got"),
        ({"stacked": lars.select(rank=3)}, TypeError, "stacked must be a sequence"),
        ({"output_axes": [(lars.select(rank=3), None)]}, TypeError, "output_axes: .*a"),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(arguments, error, message):
    with pytest.raises(error, match=message):
        lars.polar(RATE, **arguments)


def output_layer():
    return jax.tree.map(jnp.asarray, [tree["output"] for tree in network()])


def test_a_state_that_was_cast_is_of_use():
    params, grads = output_layer()
    optimizer = lars.polar(RATE)
    update = jax.jit(optimizer.update)
    _, state = update(grads, optimizer.init(params), params)
    cast = optax.tree.map_params(optimizer, lambda x: x.astype(jnp.bfloat16), state)
    assert_near(update(grads, cast, params), update(grads, state, params), 1e-2)


def test_numbers_may_be_injected_known_or_traced():
    params, grads = output_layer()
    right, _ = first_step(lars.polar(RATE), grads, params)
    injected = optax.inject_hyperparams(lars.polar)(learning_rate=RATE)
    state = injected.init(params)
    closed = jax.jit(lambda g: injected.update(g, state, params))(grads)
    given = jax.jit(injected.update)(grads, state, params)
    for updates, _ in (closed, given):
        assert_near(updates, right, 1e-5)
    # Optax makes them of the parameters' dtype, and steps are computed in a wider one.
    half = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    jax.eval_shape(injected.update, half, injected.init(half), half)
    with pytest.raises(TypeError, match=r'static argument.*static_args=\("steps",\)'):
        optax.inject_hyperparams(lars.polar)(RATE, steps=3).init(params)
    # Arrays that are known, where everything that is computed is traced.
    known = {name: jnp.float32(0.5) for name in ("momentum", "radial_rate")}
    jax.jit(lambda: lars.polar(RATE, **known).init(params))()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision_steps_are_those_of_single_precision(dtype):
    optimizer = lars.polar(RATE, steps=1)
    for scale in (1e-3, 1.0):
        w, g = (optax.tree.cast(x, dtype) for x in output_layer())
        w = jax.tree.map(
            lambda x, c=scale: (c * x.astype(jnp.float32)).astype(dtype), w
        )
        actual, _ = first_step(optimizer, g, w)
        same = (optax.tree.cast(x, jnp.float32) for x in (g, w))
        expected, _ = first_step(optimizer, *same)
        for name, x in actual.items():
            assert x.dtype == dtype
            error = np.linalg.norm(np.float32(x) - expected[name])
            assert error < jnp.finfo(dtype).eps * np.linalg.norm(expected[name])


KERNEL = lars.select(path="a/kernel")
PARTS = {
    "layers that are scanned": (
        {"bias": (3, 5), "kernel": (3, 6, 5), "scale": (3, 5)},
        {"stacked": [(lars.select(path="a/"), 0)]},
        lambda x: list(x),
    ),
    "experts of two groups, whose biases are not told": (
        {"bias": (2, 3, 5), "kernel": (2, 6, 3, 5)},
        {"stacked": [(KERNEL, (2, 0))]},
        lambda x: [x[i, ..., j, :] for i in range(2) for j in range(3)],
    ),
    "heads, of a bias": (
        {"bias": (2, 4), "kernel": (6, 2, 4)},
        {},
        lambda x: [x.reshape(*x.shape[:-2], 8)],
    ),
    "inputs last": (
        {"bias": (5,), "kernel": (5, 3, 3, 6)},
        {"output_axes": [(KERNEL, 0)]},
        lambda x: [x.reshape(5, -1).T if x.ndim > 1 else x],
    ),
    "channels": (
        {"bias": (4,), "kernel": (3, 3, 1, 4)},
        {"stacked": [(KERNEL, 3)], "output_axes": [(KERNEL, ())]},
        lambda x: [x[..., i].reshape((9, 1) if x.ndim > 1 else 1) for i in range(4)],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_axes_that_are_told_make_kernels_of_their_own(name):
    shapes, rules, parts = PARTS[name]
    rng = np.random.default_rng(0)

    def draw():
        a = {k: 2 * rng.normal(size=shape) for k, shape in shapes.items()}
        if a["kernel"].shape[1:] == a["bias"].shape:  # as of almost constant inputs
            a["kernel"] += 3 * a["bias"]
        return jax.tree.map(np.float32, {"a": a})

    def apart(tree):
        of_arrays = {k: parts(np.asarray(x)) for k, x in tree["a"].items()}
        count = len(of_arrays["kernel"])
        return [{k: x[i] for k, x in of_arrays.items()} for i in range(count)]

    params, grads = draw(), draw()
    optimizer = lars.polar(RATE, DECAY, MOMENTUM, **rules)
    update, state, moved = jax.jit(optimizer.update), optimizer.init(params), params
    for turn in TURNS[:3]:
        g = jax.tree.map(lambda x: np.float32(turn) * x, grads)  # noqa: B023
        updates, state = update(g, state, moved)
        moved = optax.apply_updates(moved, updates)
    for part, w, g in zip(apart(moved), apart(params), apart(grads), strict=True):
        # Of L kernels, each has the rate γ/L; and decay is relative to γ, not to that.
        count = len(apart(params))
        numbers = {"learning_rate": RATE / count, "weight_decay": count * DECAY}
        assert_near(part, after(w, g, TURNS[:3], **numbers), 1e-4)


def test_a_kernel_of_zero_moves():
    params, grads = network()
    params["output"] = jax.tree.map(np.zeros_like, params["output"])
    moved = at_step(run(params, grads)[0], 0)["output"]
    # Two kernels; the first of an average; and three outputs.
    length = RATE / 2 * (1 - MOMENTUM) * np.sqrt(2 * 3)
    np.testing.assert_allclose(np.linalg.norm(moved["kernel"]), length, rtol=1e-5)
    assert np.linalg.norm(moved["bias"]) > 0


def sharded_data():
    shapes = {
        "blocks": {"kernel": (4, 8, 4, 8), "bias": (4, 4, 8)},  # four of attention
        "norm": {"scale": (8,)},
    }
    params, *grads = (drawn(shapes, seed) for seed in range(3))
    for g in grads:  # as of inputs that are almost constant
        g["blocks"]["kernel"] += 3 * g["blocks"]["bias"][:, None]
    # Parts whose norms are far apart, and on some devices nothing.
    grads[1]["blocks"]["kernel"][1:3] *= 2.0**70
    grads[1]["blocks"]["kernel"][3, :4] *= 2.0**-70
    grads[0]["blocks"]["kernel"][:, :, 1] = 0
    grads[0]["blocks"]["bias"][:, 1] = 0
    return params, grads


STACKED = {"stacked": [(lars.select(path="blocks"), 0)]}
LAYOUTS = {
    "outputs, and biases otherwise": {
        "blocks": {"kernel": P(None, None, "e", "d"), "bias": P(None, "d")},
        "norm": {"scale": P()},
    },
    "all axes": {
        "blocks": {"kernel": P("e", "d"), "bias": P("d", "e")},
        "norm": {"scale": P(("d", "e"))},
    },
}


def steps(update, params, state, grads):
    every = []
    for g in grads:
        updates, state = update(g, state, params)
        every.append(updates)
        params = jax.tree.map(jnp.add, params, updates)
    return every, state


@functools.cache
def on_one_device():
    params, grads = sharded_data()
    optimizer = lars.polar(RATE, **STACKED)
    return steps(jax.jit(optimizer.update), params, optimizer.init(params), grads)


def assert_lies(x, sharding):
    assert x.sharding.is_equivalent_to(sharding, x.ndim)


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("d", "e"), axis_types=(kind, kind))


@pytest.mark.parametrize(
    ("layout", "check_vma"), list(zip(LAYOUTS, (True, False), strict=True))
)
def test_local_parts_move_as_the_whole(layout, check_vma):
    params, grads = sharded_data()
    specs = LAYOUTS[layout]
    optimizer = lars.polar(RATE, partition_specs=specs, **STACKED)
    states = lars.PolarState(P(), specs, P(), P())
    update = jax.shard_map(
        optimizer.update,
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs, states, specs),
        out_specs=(specs, states),
        check_vma=check_vma,
    )
    state = optimizer.init(params)
    assert_near(steps(jax.jit(update), params, state, grads), on_one_device(), 1e-5)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_global_arrays_move_as_on_one_device(kind):
    params, grads = sharded_data()
    mesh = mesh_of(kind)
    optimizer = lars.polar(RATE, **STACKED)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), LAYOUTS["all axes"]
    )
    with jax.set_mesh(mesh):
        params, *grads = (
            jax.tree.map(jax.device_put, x, shardings) for x in (params, *grads)
        )
        state = optimizer.init(params)
        every, state = steps(jax.jit(optimizer.update), params, state, grads)
    assert_near((every, state), on_one_device(), 1e-5)
    if kind == AxisType.Explicit:  # else XLA may divide what is not divided yet
        for tree in (state.trace, *every):
            jax.tree.map(assert_lies, tree, shardings)
