"""Silent networks are woken, and no others are touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import lars
from lars.silence import REASONS, silence
from lars.waking import AWAKE

WIDTH = 10  # of all layers, so that all kernels have one shape: that compiles faster
LAYERS = [f"hidden_{i}" for i in range(6)] + ["output"]
STILL = lars.wake_silent_layers(optax.set_to_zero())  # only waking does something
AT_ONCE = lars.wake_silent_layers(optax.set_to_zero(), patience=1)
look = jax.jit(silence)


def network(scale=1.0):
    """A perceptron of seven kernels that are ``scale`` times those of He et al."""
    rng = np.random.default_rng(0)
    shape = (WIDTH, WIDTH)

    def layer():
        kernel = scale * np.sqrt(2 / WIDTH) * rng.normal(size=shape)
        return {
            "kernel": np.asarray(kernel, np.float32),
            "bias": np.zeros(WIDTH, np.float32),
        }

    return {name: layer() for name in LAYERS}


@functools.partial(jax.jit, static_argnames=("activation", "classes"))
def gradient(params, activation="relu", classes=WIDTH):
    """Of the mean loss over 32 images of so many classes, the first outputs."""
    images = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    labels = np.arange(32) % classes

    def loss(params):
        *hidden, output = (params[name] for name in LAYERS)

        def layer(h, x):
            return getattr(jax.nn, activation)(h @ x["kernel"] + x["bias"][None]), None

        layers = jax.tree.map(lambda *x: jnp.stack(x), *hidden)
        h, _ = jax.lax.scan(layer, jnp.asarray(images), layers)
        logits = (h @ output["kernel"] + output["bias"][None])[:, :classes]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(params)


@functools.cache
def jitted(optimizer):
    """A step, compiled once for all tests of an optimizer."""

    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def reason(gradients, params):
    """Why a network is silent; empty if it is not."""
    flags = look(gradients, params)
    return [name for name, flag in zip(REASONS, flags, strict=True) if flag]


def trained(optimizer, params, gradient_of, steps=30):
    """The parameters and the state after some steps."""
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        for _ in range(steps):
            params, state = jitted(optimizer)(gradient_of(params), state, params)
    return params, state


def after(optimizer, params, gradients):
    """The parameters after each of some gradients, and the last state."""
    state, every = optimizer.init(params), []
    for g in gradients:
        params, state = jitted(optimizer)(g, state, params)
        every.append(params)
    return every, state


def assert_equal(one, other, rtol=0.0):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=0), one, other
    )


def assert_left_alone(inner, params, gradient_of, steps=30):
    """A run with waking is the run of the inner optimizer, to the bit."""
    plain, _ = trained(inner, params, gradient_of, steps)
    woken, state = trained(lars.wake_silent_layers(inner), params, gradient_of, steps)
    assert not state.reasons.any()
    jax.tree.map(np.testing.assert_array_equal, plain, woken)
    return plain


def changed(tree, layer, **arrays):
    """The tree with other arrays in a layer."""
    return {**tree, layer: {**tree[layer], **arrays}}


def without(gradients, *layers):
    """Gradients in which those of some kernels are zero."""
    for layer in layers:
        zero = np.zeros_like(gradients[layer]["kernel"])
        gradients = changed(gradients, layer, kernel=zero)
    return gradients


def not_finite(gradients):
    return jax.tree.map(lambda x: np.full_like(x, np.nan), gradients)


def relative_norm(params, layer):
    """The norm of a kernel, relative to the one that keeps the size of its inputs."""
    return np.linalg.norm(params[layer]["kernel"]) / np.sqrt(2 * WIDTH)


# ------------------------------------------------------------- what is silent, and why


@pytest.mark.parametrize(
    ("scale", "activation", "expected"),
    [
        (1e8, "relu", "not finite"),
        (1e-8, "relu", "no gradient"),  # it underflows
        (1e8, "sigmoid", "no gradient"),  # saturated
        (1e-3, "sigmoid", "constant input"),
        (0.3, "sigmoid", "constant input"),  # of usual sizes
        (1e-4, "relu", "lost in rounding"),  # signals shrink
        (
            100.0,
            "tanh",
            "lost in rounding",
        ),  # chaotic: signals explode on their way back
    ],
)
def test_a_silent_network_is_moved_until_a_signal_passes(scale, activation, expected):
    params = network(scale)

    def gradient_of(params):
        return gradient(params, activation)

    assert reason(gradient_of(params), params) == [expected]
    params, state = trained(STILL, params, gradient_of, 40)
    assert reason(gradient_of(params), params) == []
    assert state.reasons[REASONS.index(expected)] > 0
    again, state = trained(STILL, params, gradient_of, 5)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not state.reasons.any()


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_a_network_with_a_signal_is_not_silent(activation):
    for scale in (0.3, 1.0, 10.0):
        params = network(scale)
        assert reason(gradient(params, activation), params) == []


def test_errors_of_two_classes_are_no_constant_input():
    # They are opposite numbers, so that the gradient of the output's kernel has the
    # form of one that a constant input makes, whatever the inputs are.
    for scale in (0.3, 1.0, 3.0):
        params = network(scale)
        assert reason(gradient(params, classes=2), params) == []
    # Where a network is silent all the same, it is woken.
    params = network(1e-3)

    def gradient_of(params):
        return gradient(params, "sigmoid", 2)

    assert reason(gradient_of(params), params)
    params, _ = trained(STILL, params, gradient_of, 40)
    assert not reason(gradient_of(params), params)


def test_a_layer_of_one_open_rectifier_is_no_constant_input():
    # Behind one that is open every gradient has the form of a constant input's.
    bias = np.full(WIDTH, -1e3, np.float32)
    bias[-1] = 1.0
    params = changed(network(), "hidden_1", bias=bias)
    assert (gradient(params)["hidden_1"]["bias"] != 0).sum() == 1
    assert reason(gradient(params), params) == []


@pytest.mark.parametrize("outputs", [1, WIDTH])
def test_the_gradient_of_one_image_is_no_constant_input(outputs):
    rng = np.random.default_rng(0)

    def layer(name):  # of one image, whatever its loss
        errors = rng.normal(size=WIDTH).astype(np.float32)
        errors[outputs if name == "output" else WIDTH :] = 0
        inputs = rng.normal(size=WIDTH).astype(np.float32)
        return {"kernel": np.outer(inputs, errors), "bias": errors}

    assert reason({name: layer(name) for name in LAYERS}, network()) == []


def test_one_constant_input_is_no_silence_of_the_network():
    # As behind a position, or a token that is the same in all examples.
    params = network()
    grads = gradient(params)
    constant = np.outer(np.ones(WIDTH), grads["hidden_1"]["bias"])
    assert reason(changed(grads, "hidden_1", kernel=constant), params) == []


def test_a_network_without_any_gradient_is_not_silent():
    params = network()
    assert reason(jax.tree.map(np.zeros_like, params), params) == []


def test_parameters_that_are_not_finite_are_not_moved():
    params = network()
    params["output"]["kernel"][0, 0] = np.nan
    assert reason(gradient(params), params) == []


def test_a_network_of_usual_sizes_may_have_kernels_that_do_little_or_nothing():
    for scale in (1.0, 100.0):
        params = network(scale)
        frozen = without(gradient(params), "hidden_0", "hidden_1")
        assert reason(frozen, params) == (["no gradient"] if scale > 1 else [])
        small = {**gradient(params)}
        small["hidden_1"] = jax.tree.map(lambda x: 2.0**-20 * x, small["hidden_1"])
        assert reason(small, params) == (["lost in rounding"] if scale > 1 else [])


def test_a_kernel_of_zero_is_left_to_the_optimizer():
    params = network()
    healthy = gradient(params)
    zeros = jax.tree.map(np.zeros_like, params["output"])
    params = {**params, "output": zeros}
    assert reason(gradient(params), params) == []
    # As after a first step, in which only the output had a gradient.
    assert reason(healthy, params) == []


def test_a_kernel_that_has_been_zero_was_started_so_on_purpose():
    # As of an adapter: for long it is small, and what is behind it hears little.
    params = network(100.0)
    zero = changed(params, "output", kernel=np.zeros((WIDTH, WIDTH), np.float32))
    silent = without(gradient(params), "hidden_0")
    _, state = jitted(AT_ONCE)(silent, AT_ONCE.init(zero), zero)
    for _ in range(3):
        _, state = jitted(AT_ONCE)(silent, state, params)
    assert not state.reasons.any()


# ------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    "inner", [optax.adam(1e-2), optax.sgd(0.1, 0.9), lars.polar(0.02, steps=1)]
)
def test_a_healthy_run_is_the_same_to_the_bit(inner):
    assert_left_alone(inner, network(), gradient)


def test_a_branch_whose_last_scale_starts_at_zero_is_no_silent_layer():
    images = np.random.default_rng(1).normal(size=(64, WIDTH)).astype(np.float32)
    labels = np.arange(64) % WIDTH

    @jax.jit
    @jax.grad
    def gradient_of(params):
        h = images @ params["input"]["kernel"]
        branch = jax.nn.relu(h @ params["branch"]["kernel"])
        h = h + params["norm"]["scale"][None] * branch
        logits = h @ params["output"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    start = network()
    params = {
        name: {"kernel": start[layer]["kernel"]}
        for name, layer in zip(("input", "branch", "output"), LAYERS, strict=False)
    }
    params["norm"] = {"scale": np.zeros(WIDTH, np.float32)}
    assert not gradient_of(params)["branch"]["kernel"].any()
    # The rate is one of a warm-up: the scale stays small.
    assert_left_alone(optax.adam(1e-5), params, gradient_of)


def test_silence_must_last_as_long_as_patience():
    params = network(100.0)
    healthy = gradient(params)
    silent = without(healthy, "output")
    for grads, moves in (
        ([silent, silent], 0),
        ([silent, silent, healthy, silent, silent], 0),
        ([silent, silent, silent], 1),
        ([silent] * 3 + [healthy] + [silent] * 2, 1),
    ):
        _, state = after(STILL, params, grads)
        assert state.reasons.sum() == moves


def test_an_awake_network_is_left_alone_for_good():
    # One that has learnt its images may look silent: few of them still make errors.
    params = network(100.0)
    healthy = gradient(params)
    silent, nan = without(healthy, "output"), not_finite(healthy)
    for grads, moves in (
        ([healthy] * (AWAKE - 1) + [silent], 1),
        ([healthy] * AWAKE + [silent] * 5 + [nan] * 5, 0),
        ([healthy] * 5 + [nan], 1),
        ([healthy] * 5 + [silent] + [healthy] * 5 + [silent], 2),  # not in a row
    ):
        _, state = after(AT_ONCE, params, grads)
        assert state.reasons.sum() == moves


def test_one_batch_that_is_not_finite_is_left_to_an_inner_optimizer_that_skips_it():
    params = {"kernel": np.ones((4, 3), np.float32), "bias": np.ones(3, np.float32)}
    grads = [params] * AWAKE + [not_finite(params), params]
    inner = lars.lars(1.0, momentum=0.0)
    plain, _ = after(inner, params, grads)
    woken, _ = after(lars.wake_silent_layers(inner), params, grads)
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


# ------------------------------------------------------------------------ what is done


def test_a_move_is_by_the_largest_factor_at_most_and_ends_at_the_aim():
    params = network(1e-8)
    every, _ = after(AT_ONCE, params, [gradient(params)] * 9)
    norms = np.asarray([relative_norm(x, "hidden_3") for x in every])
    np.testing.assert_allclose(norms[1:6] / norms[:5], 16, rtol=1e-5)
    # At the norm that keeps variance, then by half an octave a step.
    np.testing.assert_allclose(norms[6:], 2 ** np.array([0, 0.5, 1]), rtol=1e-5)


def test_what_is_not_finite_only_shrinks():
    params = network(1e8)
    small = 1e-16 * params["hidden_0"]["kernel"]
    params = changed(params, "hidden_0", kernel=small)
    (moved,), _ = after(STILL, params, [not_finite(params)])
    assert_equal(moved["hidden_0"]["kernel"], small)
    assert_equal(moved["hidden_1"]["kernel"], params["hidden_1"]["kernel"] / 16, 1e-6)


def test_momentum_is_forgotten_and_the_schedule_is_not():
    params = {"kernel": np.ones((4, 3), np.float32), "bias": np.ones(3, np.float32)}
    inner = optax.chain(
        optax.trace(0.9), optax.scale_by_schedule(optax.constant_schedule(-0.1))
    )
    grads = [params] * 4 + [not_finite(params)]
    _, state = after(lars.wake_silent_layers(inner), params, grads)
    trace, schedule = state.inner_state
    assert not optax.tree.norm(trace.trace)
    assert schedule.count == 4


def test_biases_of_a_silent_network_become_zero():
    dead = changed(network(), "hidden_0", bias=np.full(WIDTH, -1e6, np.float32))
    assert reason(gradient(dead), dead) == ["no gradient"]
    woken, _ = trained(STILL, dead, gradient, 4)
    np.testing.assert_array_equal(woken["hidden_0"]["bias"], 0)
    assert reason(gradient(woken), woken) == []


def test_what_stays_infinite_gets_its_sizes_back():
    params = changed(network(), "output", bias=np.arange(10, dtype=np.float32))
    every, state = after(STILL, params, [not_finite(params)] * 20)
    norms = [relative_norm(x, "hidden_1") for x in every]
    np.testing.assert_allclose(min(norms), 2.0**-4, rtol=1e-5)
    assert not every[0]["output"]["bias"].any()
    assert_equal(every[-1], params, rtol=1e-6)
    assert_equal(every[-1]["output"]["bias"], params["output"]["bias"])
    np.testing.assert_array_equal(state.given_up, [1, 0, 0, 0])


def test_what_no_scale_wakes_gets_its_sizes_back():
    # A kernel that the loss does not depend on, in a network of unusual sizes.
    params = changed(network(100.0), "output", bias=np.arange(10, dtype=np.float32))
    every, state = after(AT_ONCE, params, [without(gradient(params), "hidden_2")] * 25)
    norms = [relative_norm(x, "hidden_1") for x in every]
    np.testing.assert_allclose(max(norms[1:10]), 2.0**4, rtol=1e-5)
    assert_equal(every[-1], params, rtol=1e-5)
    assert_equal(every[-1]["output"]["bias"], params["output"]["bias"])
    assert state.given_up[REASONS.index("no gradient")]
    assert 8 < state.reasons[REASONS.index("no gradient")] < 20


@pytest.mark.parametrize("worse", [lambda g: without(g, "hidden_0"), not_finite])
def test_a_move_that_makes_it_worse_is_taken_back_for_good(worse):
    params = changed(network(10.0), "hidden_1", bias=np.arange(10, dtype=np.float32))
    silent = without(gradient(params), "output")
    every, state = after(AT_ONCE, params, [silent, worse(silent), *[silent] * 5])
    assert not every[0]["hidden_1"]["bias"].any()
    for later in every[1:]:
        assert_equal(later, params, rtol=1e-6)
        assert_equal(later["hidden_1"]["bias"], params["hidden_1"]["bias"])
    np.testing.assert_array_equal(state.reasons, [0, 1, 0, 0])
    assert state.given_up[1]


# ------------------------------------------------------------- types, states and meshes

SMALL = {"kernel": np.full((4, 3), 128, np.float32), "bias": np.ones(3, np.float32)}


def test_types_of_updates_are_those_of_the_inner_optimizer():
    inner = optax.sgd(0.1)
    optimizer = lars.wake_silent_layers(inner)
    dtypes = (jnp.float32, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        for params in (optax.tree.cast(SMALL, dtype) for dtype in dtypes):
            for grads in (optax.tree.cast(SMALL, dtype) for dtype in dtypes):
                updates, expected = (
                    jax.eval_shape(x.update, grads, x.init(params), params)[0]
                    for x in (optimizer, inner)
                )
                assert updates == expected
    (moved,), _ = after(STILL, params, [not_finite(params)])
    np.testing.assert_array_equal(moved["kernel"], params["kernel"] / 16)


def test_optax_can_tell_what_is_of_the_parameters():
    optimizer = lars.wake_silent_layers(optax.adam(0.1))
    state = optax.tree.map_params(
        optimizer, lambda x: x + 1, optimizer.init(SMALL)
    ).inner_state[0]
    assert (state.mu["kernel"] == 1).all()
    assert state.count == 0


def test_float64():
    with jax.enable_x64(True):
        params = {"kernel": jnp.full((4, 3), 1e-300), "bias": jnp.ones(3)}
        grads = {"kernel": jnp.zeros((4, 3)), "bias": jnp.ones(3)}
        (moved,), _ = after(AT_ONCE, params, [grads])
        np.testing.assert_allclose(moved["kernel"], 16e-300, rtol=1e-6)
        assert moved["bias"].dtype == jnp.float64


def test_two_networks_under_vmap_are_told_apart():
    grads = jax.tree.map(lambda x: np.stack([x, x]), SMALL)
    grads["kernel"][1] = 0
    both = jax.tree.map(lambda x: np.stack([x, 2 * x]), SMALL)
    state = jax.vmap(AT_ONCE.init)(both)
    updates, state = jax.jit(jax.vmap(AT_ONCE.update))(grads, state, both)
    np.testing.assert_array_equal(state.reasons.sum(1), [0, 1])
    assert not updates["kernel"][0].any()
    np.testing.assert_allclose(updates["kernel"][1], -15 / 16 * both["kernel"][1], 1e-5)


INNER = {
    "lars": lambda: lars.lars(1.0),
    "masked": lambda: optax.masked(
        optax.adam(1e-2), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    "partition": lambda: optax.partition(
        {"a": optax.sgd(0.1, 0.9), "b": optax.set_to_zero()},
        lambda params: jax.tree.map(lambda x: "a" if x.ndim > 1 else "b", params),
    ),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.adam(1e-2), 2
    ).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
}


@pytest.mark.parametrize("name", INNER)
def test_the_state_of_any_inner_optimizer_keeps_its_type(name):
    params = {"a": SMALL}
    optimizer = lars.wake_silent_layers(INNER[name]())
    start = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        grads = [params, not_finite(params), params]
        every, state = after(optimizer, params, grads)
    assert state.reasons.sum() == 1
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(every))
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert (x.shape, x.dtype) == (jnp.shape(y), jnp.result_type(y))
    if name == "lars":
        ratios = lars.trust_ratios(state)
        assert jax.tree.structure(ratios) == jax.tree.structure(params)


SPECS = {"kernel": P("d"), "bias": P()}
# Large, but less than 16 times: the norm of the whole says by how much it is moved.
PARTS = {"kernel": np.float32(0.3) * np.arange(32, dtype=np.float32).reshape(8, 4)}
PARTS["bias"] = np.ones(4, np.float32)


def step_of_parts(optimizer, grads, check_vma=False):
    """A step of a network whose kernel is divided over four devices."""
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("d",), (axis,), devices=jax.devices()[:4])

    def step(params, grads):
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return updates, state.reasons

    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(SPECS, SPECS),
            out_specs=(SPECS, P()),
            check_vma=check_vma,
        )
    )(PARTS, grads)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map_all_devices_do_what_one_would(check_vma):
    grads = jax.tree.map(np.ones_like, PARTS)
    grads["kernel"][0, 0] = np.nan  # on one of the devices
    make = lars.lars if check_vma else optax.sgd  # what types say of an update differs
    more = {"partition_specs": SPECS} if check_vma else {}
    optimizer = lars.wake_silent_layers(make(1.0, **more), partition_specs=SPECS)
    parts, reasons = step_of_parts(optimizer, grads, check_vma)
    np.testing.assert_array_equal(reasons, [1, 0, 0, 0])
    (whole,), _ = after(STILL, PARTS, [grads])
    assert_equal(jax.tree.map(np.add, PARTS, parts), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("partition_specs", "message"),
    [
        (None, r"give partition_specs, .*every device"),
        ({"kernel": P("d")}, "one PartitionSpec, or a tree of them"),
        (P(None, "d"), "has more axes than 'bias'"),
    ],
)
def test_in_shard_map_partition_specs_are_asked_for(partition_specs, message):
    optimizer = lars.wake_silent_layers(optax.sgd(1.0), partition_specs=partition_specs)
    with pytest.raises(ValueError, match=message):
        step_of_parts(optimizer, PARTS)


def test_on_a_mesh_of_explicit_axes_it_does_the_same():
    grads = without({"a": PARTS}, "a")["a"]
    (expected,), _ = after(AT_ONCE, PARTS, [grads])
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((4,), ("d",), axis_types=explicit, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        params, grads = (
            jax.tree.map(jax.device_put, tree, SPECS) for tree in (PARTS, grads)
        )
        (moved,), state = after(AT_ONCE, params, [grads])
    assert state.reasons.sum() == 1
    assert_equal(jax.device_get(moved), jax.device_get(expected), rtol=1e-6)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        lars.wake_silent_layers(optax.sgd(0.1), patience=0)
    with pytest.raises(ValueError, match=r"parameters with kernels.*\(3,\)"):
        lars.wake_silent_layers(optax.sgd(0.1)).init({"bias": jnp.zeros(3)})


def test_what_is_not_of_the_optimizer_is_refused():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    optimizer = lars.wake_silent_layers(optax.sgd(0.1))
    state = optimizer.init(params)
    with pytest.raises(TypeError, match="need WakingState"):
        optimizer.update(params, optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="not a tree like the parameters"):
        optimizer.update({"kernel": params["kernel"]}, state, params)
    with pytest.raises(ValueError, match=r"gradient of 'kernel' has shape \(3, 4\)"):
        optimizer.update({**params, "kernel": jnp.ones((3, 4))}, state, params)
    with pytest.raises(TypeError, match="int32 for the gradient of 'bias'"):
        optimizer.update({**params, "bias": jnp.zeros(3, jnp.int32)}, state, params)
    more = {"a": params, "b": params}
    with pytest.raises(ValueError, match="the state is of other parameters"):
        optimizer.update(more, state, more)
    with pytest.raises(ValueError, match="empty tree"):
        optimizer.init({})
    for dtype in (jnp.complex64, jnp.int32):
        with pytest.raises(TypeError, match=r"at 'kernel'.*optax\.masked"):
            optimizer.init({**params, "kernel": jnp.ones((4, 3), dtype)})


# ------------------------------------------------- what inner optimizers train alone


class _Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = x[:, 0]
        for _ in range(2):
            h = nn.relu(nn.Dense(8)(h))
        return nn.Dense(8)(h)


class _Convolutions(nn.Module):
    is_residual: bool

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(8, (3,))(x)
        if self.is_residual:
            branch = nn.relu(nn.Conv(8, (3,), use_bias=False)(h))
            h += nn.GroupNorm(2, scale_init=nn.initializers.zeros)(branch)
        else:
            h = nn.relu(nn.Conv(8, (3,))(h))
        return nn.Dense(8)(h[:, 0])


class _Transformer(nn.Module):
    normalizes: bool
    is_tied: bool = False

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(8, 8)
        tokens = x[:, :, 0].astype(jnp.int32) % 8
        h = embed(tokens) if self.is_tied else nn.Dense(8)(x)
        h += self.param("positions", nn.initializers.normal(0.02), (8, 8))[None]
        norm = nn.LayerNorm if self.normalizes else lambda: lambda x: x
        h += nn.MultiHeadDotProductAttention(2)(norm()(h))
        h += nn.Dense(8)(nn.gelu(nn.Dense(8)(norm()(h))))
        h = norm()(h).mean(1)
        return embed.attend(h) if self.is_tied else nn.Dense(8)(h)


class _Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(jnp.asarray(nn.RNN(nn.SimpleCell(8))(x))[:, -1])


class _Adapter(nn.Module):
    """Low-rank updates of kernels that are not trained, and a head that is."""

    @nn.compact
    def __call__(self, x):
        h = x[:, 0]
        for i in range(2):
            frozen = self.param(f"frozen{i}", nn.initializers.he_normal(), (8, 8))
            down = self.param(f"down{i}", nn.initializers.he_normal(), (8, 2))
            up = self.param(f"up{i}", nn.initializers.zeros, (2, 8))
            h = nn.relu(h @ jax.lax.stop_gradient(frozen) + h @ down @ up)
        return nn.Dense(8)(h)


class _Probe(nn.Module):
    """A head on a network that is not trained."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(8)(nn.relu(nn.Dense(8)(x[:, 0]))))
        return nn.Dense(8)(jax.lax.stop_gradient(h))


NETWORKS = {
    "perceptron": _Perceptron(),
    "convolutions": _Convolutions(is_residual=False),
    "residual convolutions": _Convolutions(is_residual=True),
    "transformer": _Transformer(normalizes=False),
    "transformer with LayerNorm": _Transformer(normalizes=True),
    "tied embeddings": _Transformer(normalizes=True, is_tied=True),
    "recurrent network": _Recurrent(),
    "adapter beside frozen kernels": _Adapter(),
    "head on a frozen network": _Probe(),
}
TRAINERS = {
    "sgd": optax.sgd(0.05, 0.9),
    "adam": optax.adam(3e-3),
    "muon": optax.contrib.muon(0.01, ns_steps=1),
    "polar": lars.polar(0.25, steps=1),
}


def one_of(optimizers):
    """An optimizer that does what the one of a given number would do."""

    def init(params):
        return tuple(x.init(params) for x in optimizers)

    def branch(i):
        def update(updates, state, params):
            new, own = optimizers[i].update(updates, state[i], params)
            return new, (*state[:i], own, *state[i + 1 :])

        return update

    def update(updates, state, params, *, number):
        branches = [branch(i) for i in range(len(optimizers))]
        return jax.lax.switch(number, branches, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_its_inner_optimizer_trains_is_left_alone(name):
    model = NETWORKS[name]
    optimizer = lars.wake_silent_layers(one_of(list(TRAINERS.values())))
    rng = np.random.default_rng(1)
    labels = np.arange(64) % 8
    noise = rng.normal(size=(64, 8, 8)).astype(np.float32)
    images = jnp.asarray(noise + np.eye(8, dtype=np.float32)[labels][:, None])
    batches = jnp.asarray(rng.integers(0, 64, (60, 16)))

    @jax.jit
    def run(number):
        def loss(params, batch):
            logits = model.apply({"params": params}, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.asarray(labels)[batch]
            ).mean()

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(grads, state, params, number=number)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(jax.random.key(0), images[:1])["params"]
        state = jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][1]
        return state.reasons, state.signal_steps

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, trainer in enumerate(TRAINERS):
            reasons, signal_steps = run(number)
            assert not reasons.any(), trainer
            assert signal_steps == AWAKE, trainer  # nor will it ever be moved
