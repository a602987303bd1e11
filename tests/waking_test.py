"""Silent networks are woken, and no others are touched."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import lars
from experiments.networks import mlp
from lars.waking import AWAKE, REASONS, silence

STEPS = 30
STILL = lars.wake_silent_layers(optax.set_to_zero())  # nothing happens but the waking
AT_ONCE = lars.wake_silent_layers(optax.set_to_zero(), patience=1)
look = jax.jit(silence)
apply = jax.jit(optax.apply_updates)


def network(scale, activation="relu", depth=3, width=16, images=32, classes=10):
    params, gradient = _network(activation, depth, width, images, classes)
    return jax.tree.map(lambda w: scale * w if w.ndim > 1 else w, params), gradient


@functools.cache
def _network(activation, depth, width, images, classes):
    model = mlp(
        classes,
        depth=depth,
        width=width,
        activation=activation,
        use_bias=True,
        normalization="none",
        compute_dtype="float32",
    )
    x = jax.random.normal(jax.random.key(1), (images, 8))
    y = jnp.arange(images) % classes

    def gradient(params):
        def loss(params):
            logits, _ = model.apply({"params": params}, x, None)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.grad(loss)(params)

    return model.init(jax.random.key(0), x)["params"], jax.jit(gradient)


def reason(params, gradient):
    return reasons_in(look(gradient(params), params))


def reasons_in(flags):
    return [name for name, flag in zip(REASONS, flags, strict=True) if flag]


def trained(optimizer, params, gradient, steps=STEPS):
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        for _ in range(steps):
            updates, state = update(gradient(params), state, params)
            params = apply(params, updates)
    return params, state


def after(optimizer, params, gradients):
    """The parameters after each of some gradients, and the last state."""
    update, state, every = jax.jit(optimizer.update), optimizer.init(params), []
    for g in gradients:
        updates, state = update(g, state, params)
        params = apply(params, updates)
        every.append(params)
    return every, state


def assert_equal(one, other, rtol=0.0):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=0), one, other
    )


def without(gradients, *names):
    """Gradients in which those of some kernels are zero."""
    zeros = {
        name: {**gradients[name], "kernel": 0 * gradients[name]["kernel"]}
        for name in names
    }
    return {**gradients, **zeros}


def not_finite(gradients):
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), gradients)


@pytest.mark.parametrize(
    "inner", [optax.adam(1e-2), optax.sgd(0.1, 0.9), lars.lars(1.0), lars.polar(0.02)]
)
def test_a_healthy_run_is_the_same_to_the_bit(inner):
    params, gradient = network(1.0)
    plain, _ = trained(inner, params, gradient)
    woken, state = trained(lars.wake_silent_layers(inner), params, gradient)
    assert not state.reasons.any()
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


@pytest.mark.parametrize(
    ("scale", "activation", "depth", "expected"),
    [
        (1e8, "relu", 8, "not finite"),
        (1e-8, "relu", 8, "no gradient"),
        (1e8, "sigmoid", 3, "no gradient"),  # saturated
        (1e-3, "sigmoid", 6, "constant input"),
        (1.0, "sigmoid", 20, "constant input"),
        (1e-4, "relu", 4, "lost in rounding"),  # signals shrink
    ],
)
def test_a_silent_network_is_heard_again(scale, activation, depth, expected):
    params, gradient = network(scale, activation, depth)
    assert reason(params, gradient) == [expected]
    params, state = trained(STILL, params, gradient, 60)
    assert reason(params, gradient) == []
    assert state.reasons[REASONS.index(expected)] > 0
    again, _ = trained(STILL, params, gradient, 5)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_chaotic_network_is_calmed():
    params, gradient = network(10.0, "tanh", 24, width=64)
    assert reason(params, gradient) == ["lost in rounding"]
    params, state = trained(STILL, params, gradient, 6)
    assert reason(params, gradient) == []
    np.testing.assert_array_equal(state.reasons, [0, 0, 0, 1])
    norm = lars.l2_norm(params["hidden_3"]["kernel"])
    np.testing.assert_allclose(norm, np.sqrt(2 * 64), rtol=1e-5)


def test_a_kernel_of_zero_is_left_to_the_optimizer():
    params, gradient = network(1.0)
    healthy = gradient(params)
    params = {**params, "output": jax.tree.map(jnp.zeros_like, params["output"])}
    assert reason(params, gradient) == []
    # As after a first step, in which only the output had a gradient.
    assert reason(params, lambda _: healthy) == []
    moved, state = trained(lars.wake_silent_layers(lars.polar(0.2)), params, gradient)
    assert not state.reasons.any()
    assert lars.l2_norm(moved["output"]["kernel"]) > 0.1


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_a_network_with_a_signal_is_not_silent(scale, activation):
    assert reason(*network(scale, activation)) == []


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_errors_of_two_classes_are_no_constant_input(scale):
    # They are opposite numbers, so that the gradient of the output's kernel has the
    # form of one that a constant input makes, whatever the inputs are.
    params, gradient = network(scale, classes=2)
    assert reason(params, gradient) == []
    inner = optax.adam(1e-2)
    plain, _ = trained(inner, params, gradient)
    woken, state = trained(lars.wake_silent_layers(inner), params, gradient)
    assert not state.reasons.any()
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


def test_a_layer_of_one_open_rectifier_is_no_constant_input():
    # Behind one that is open every gradient has the form of a constant input's.
    params, gradient = network(1.0)
    bias = params["hidden_1"]["bias"].at[:-1].set(-1e3)
    bias = bias.at[-1].set(1.0)
    params["hidden_1"]["bias"] = bias
    assert (gradient(params)["hidden_1"]["bias"] != 0).sum() == 1
    assert reason(params, gradient) == []


@pytest.mark.parametrize("classes", [2, 10])
def test_a_silent_network_of_two_classes_is_heard_as_one_of_ten(classes):
    # What is said of it first is a question of the last bits: that it is silent is not.
    params, gradient = network(1e-3, "sigmoid", 6, classes=classes)
    assert reason(params, gradient)
    params, _ = trained(STILL, params, gradient, 40)
    assert not reason(params, gradient)


def test_a_branch_whose_last_scale_starts_at_zero_is_no_silent_layer():
    x = jax.random.normal(jax.random.key(1), (64, 8))
    y = jnp.arange(64) % 10

    def gradient(params):
        def loss(params):
            h = x @ params["input"]["kernel"]
            branch = jax.nn.relu(h @ params["branch"]["kernel"])
            h = h + params["norm"]["scale"][None] * branch
            logits = h @ params["output"]["kernel"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.grad(loss)(params)

    shapes = {"input": (8, 16), "branch": (16, 16), "output": (16, 10)}
    params = {
        name: {"kernel": jax.random.normal(jax.random.key(i), shape) / 4}
        for i, (name, shape) in enumerate(shapes.items())
    }
    params["norm"] = {"scale": jnp.zeros(16)}
    assert not gradient(params)["branch"]["kernel"].any()
    inner = optax.adam(1e-5)  # as while a rate warms up: the scale stays small
    gradient = jax.jit(gradient)
    plain, _ = trained(inner, params, gradient)
    woken, state = trained(lars.wake_silent_layers(inner), params, gradient)
    assert not state.reasons.any()
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


@pytest.mark.parametrize("of_params", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("of_gradients", [jnp.float32, jnp.bfloat16])
def test_types_of_updates_are_those_of_the_inner_optimizer(of_params, of_gradients):
    params, gradient = network(1.0)
    params, healthy = (
        optax.tree.cast(tree, dtype)
        for tree, dtype in ((params, of_params), (gradient(params), of_gradients))
    )
    inner = optax.sgd(0.1)
    update = jax.jit(lars.wake_silent_layers(inner).update)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = inner.update(healthy, inner.init(params), params)
        for grads in (healthy, not_finite(healthy)):
            state = lars.wake_silent_layers(inner).init(params)
            updates, state = update(grads, state, params)
            assert state.reasons.sum() == (grads is not healthy)
            jax.tree.map(
                lambda x, y: np.testing.assert_equal(x.dtype, y.dtype),
                updates,
                expected,
            )


@pytest.mark.parametrize("classes", [1, 10])
def test_the_gradient_of_one_image_is_no_constant_input(classes):
    params, _ = network(1.0, images=1, classes=classes)
    rng = np.random.default_rng(0)

    def layer(x):  # of one image, whatever its loss
        errors = rng.normal(size=x["bias"].shape).astype(np.float32)
        inputs = rng.normal(size=x["kernel"].shape[:1]).astype(np.float32)
        return {"kernel": np.outer(inputs, errors), "bias": errors}

    gradients = {name: layer(x) for name, x in params.items()}
    assert reason(params, lambda _: gradients) == []


def test_all_zero_gradients_are_left_alone():
    params, _ = network(1.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert not look(zeros, params).any()


def test_silence_must_last_as_long_as_patience():
    params, gradient = network(100.0)
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


def test_a_network_that_has_learnt_its_images_is_left_alone():
    # What is left of its gradients looks like silence: it is that of few images.
    params, gradient = network(1.0)
    inner = optax.sgd(0.5, 0.9)
    plain, _ = trained(inner, params, gradient, 100)
    assert reason(plain, gradient)
    woken, state = trained(lars.wake_silent_layers(inner), params, gradient, 100)
    assert not state.reasons.any()
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


def test_an_awake_network_is_left_alone_for_good():
    params, gradient = network(100.0)
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
    params, gradient = network(1.0)
    healthy = gradient(params)
    grads = [healthy] * AWAKE + [not_finite(healthy), healthy]
    inner = lars.lars(1.0, momentum=0.0)
    plain, _ = after(inner, params, grads)
    woken, _ = after(lars.wake_silent_layers(inner), params, grads)
    jax.tree.map(np.testing.assert_array_equal, plain, woken)


def test_a_move_is_by_the_largest_factor_at_most_and_ends_at_the_aim():
    params, gradient = network(1e-8, depth=8)
    silent = gradient(params)
    every, _ = after(AT_ONCE, params, [silent] * 9)
    norms = [lars.l2_norm(x["hidden_3"]["kernel"]) / np.sqrt(2 * 16) for x in every]
    ratios = [b / a for a, b in itertools.pairwise(norms)]
    np.testing.assert_allclose(ratios[:5], 16, rtol=1e-5)
    # At the norm that keeps variance, then by half an octave a step.
    np.testing.assert_allclose(norms[6:], 2 ** np.array([0, 0.5, 1]), rtol=1e-5)


def test_what_is_not_finite_only_shrinks():
    params, gradient = network(1e8, depth=8)
    params["hidden_0"]["kernel"] *= 1e-16
    grads = gradient(params)
    assert reason(params, lambda _: grads) == ["not finite"]
    (moved,), _ = after(STILL, params, [grads])
    assert_equal(moved["hidden_0"]["kernel"], params["hidden_0"]["kernel"])
    assert_equal(moved["hidden_1"]["kernel"], params["hidden_1"]["kernel"] / 16, 1e-6)


def test_parameters_that_are_not_finite_are_not_moved():
    params, gradient = network(1.0)
    params["output"]["kernel"] = params["output"]["kernel"].at[0, 0].set(jnp.nan)
    assert reason(params, gradient) == []


def test_momentum_is_forgotten_and_the_schedule_is_not():
    params, gradient = network(1.0)
    inner = optax.chain(
        optax.trace(0.9), optax.scale_by_schedule(optax.constant_schedule(-0.1))
    )
    optimizer = lars.wake_silent_layers(inner)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(4):
        _, state = update(gradient(params), state, params)
    _, state = update(not_finite(params), state, params)
    trace, schedule = state.inner_state
    assert not optax.tree.norm(trace.trace)
    assert schedule.count == 4


def test_biases_of_a_silent_network_become_zero():
    params, gradient = network(1.0)
    dead = {
        **params,
        "hidden_0": {**params["hidden_0"], "bias": jnp.full(16, -1e6)},
    }
    assert reason(dead, gradient) == ["no gradient"]
    woken, _ = trained(STILL, dead, gradient, 4)
    np.testing.assert_array_equal(woken["hidden_0"]["bias"], 0)
    assert reason(woken, gradient) == []


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        lars.wake_silent_layers(optax.sgd(0.1), patience=0)
    with pytest.raises(ValueError, match=r"parameters with kernels.*\(3,\)"):
        lars.wake_silent_layers(optax.sgd(0.1)).init({"bias": jnp.zeros(3)})


def test_what_stays_infinite_gets_its_sizes_back():
    params, gradient = network(1.0)
    params["output"]["bias"] = jnp.arange(10.0)
    every, state = after(STILL, params, [not_finite(gradient(params))] * 20)
    norms = [lars.l2_norm(x["hidden_1"]["kernel"]) / np.sqrt(2 * 16) for x in every]
    np.testing.assert_allclose(min(norms), 2.0**-4, rtol=1e-5)
    assert not every[0]["output"]["bias"].any()
    assert_equal(every[-1], params, rtol=1e-6)
    assert_equal(every[-1]["output"]["bias"], params["output"]["bias"])
    np.testing.assert_array_equal(state.given_up, [1, 0, 0, 0])


def test_what_no_scale_wakes_gets_its_sizes_back():
    # A kernel that nothing depends on, in a network of unusual sizes.
    params, gradient = network(100.0)
    params["unused"] = {"kernel": jnp.ones((4, 3))}
    params["output"]["bias"] = jnp.arange(10.0)

    def with_unused(params):
        return {**gradient(params), "unused": {"kernel": jnp.zeros((4, 3))}}

    state, update = AT_ONCE.init(params), jax.jit(AT_ONCE.update)
    moved, norms = params, []
    for _ in range(25):
        updates, state = update(with_unused(moved), state, moved)
        moved = apply(moved, updates)
        norms.append(lars.l2_norm(moved["hidden_1"]["kernel"]) / np.sqrt(2 * 16))
    np.testing.assert_allclose(max(norms[2:10]), 2.0**4, rtol=1e-5)
    assert_equal(moved, params, rtol=1e-5)
    assert_equal(moved["output"]["bias"], params["output"]["bias"])
    assert state.given_up[REASONS.index("no gradient")]
    assert 8 < state.reasons[REASONS.index("no gradient")] < 20


@pytest.mark.parametrize("worse", [lambda g: without(g, "hidden_0"), not_finite])
def test_a_move_that_makes_it_worse_is_taken_back_for_good(worse):
    params, gradient = network(10.0)
    params["hidden_1"]["bias"] = jnp.arange(16.0)
    silent = without(gradient(params), "output")
    every, state = after(AT_ONCE, params, [silent, worse(silent), *[silent] * 5])
    assert not every[0]["hidden_1"]["bias"].any()
    for later in every[1:]:
        assert_equal(later, params, rtol=1e-6)
        assert_equal(later["hidden_1"]["bias"], params["hidden_1"]["bias"])
    np.testing.assert_array_equal(state.reasons, [0, 1, 0, 0])
    assert state.given_up[1]


def test_a_network_of_usual_sizes_may_have_kernels_that_do_little_or_nothing():
    for scale, expected in ((1.0, []), (100.0, ["no gradient"])):
        params, gradient = network(scale)
        frozen = without(gradient(params), "hidden_0", "hidden_1")
        assert reasons_in(look(frozen, params)) == expected
    for scale, expected in ((1.0, []), (100.0, ["lost in rounding"])):
        params, gradient = network(scale)
        small = gradient(params)
        small["hidden_1"] = jax.tree.map(lambda x: 2.0**-20 * x, small["hidden_1"])
        assert reasons_in(look(small, params)) == expected


def test_one_constant_input_is_no_silence_of_the_network():
    # As behind a position, or a token that is the same in all examples.
    params, gradient = network(1.0)
    grads = gradient(params)
    constant = jnp.outer(jnp.ones(16), grads["hidden_1"]["bias"])
    grads["hidden_1"] = {**grads["hidden_1"], "kernel": constant}
    assert reasons_in(look(grads, params)) == []


def test_a_kernel_that_has_been_zero_was_started_so_on_purpose():
    # As of an adapter: for long it is small, and what is behind it hears little.
    params, gradient = network(100.0)
    zero = {**params, "output": jax.tree.map(jnp.zeros_like, params["output"])}
    silent = without(gradient(params), "hidden_0")
    state, update = AT_ONCE.init(zero), jax.jit(AT_ONCE.update)
    _, state = update(silent, state, zero)
    for _ in range(3):
        _, state = update(silent, state, params)
    assert not state.reasons.any()


def test_optax_can_tell_what_is_of_the_parameters():
    params, _ = network(1.0)
    optimizer = lars.wake_silent_layers(optax.adam(0.1))
    state = optax.tree.map_params(
        optimizer, lambda x: x + 1, optimizer.init(params)
    ).inner_state[0]
    assert (state.mu["output"]["kernel"] == 1).all()
    assert state.count == 0


def test_float64():
    with jax.enable_x64(True):
        params = {"kernel": jnp.full((4, 3), 1e-300), "bias": jnp.ones(3)}
        grads = {"kernel": jnp.zeros((4, 3)), "bias": jnp.ones(3)}
        optimizer = lars.wake_silent_layers(optax.sgd(0.1), patience=1)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], 15e-300, rtol=1e-6)
        assert updates["bias"].dtype == jnp.float64


def test_two_networks_under_vmap_are_told_apart():
    params, gradient = network(1.0)
    both = jax.tree.map(lambda x: jnp.stack([x, 1e-20 * x]), params)
    grads = jax.jit(jax.vmap(gradient))(both)
    state = jax.jit(jax.vmap(AT_ONCE.init))(both)
    updates, state = jax.jit(jax.vmap(AT_ONCE.update))(grads, state, both)
    np.testing.assert_array_equal(state.reasons.sum(1), [0, 1])
    kernels = updates["hidden_1"]["kernel"]
    assert not kernels[0].any()
    np.testing.assert_allclose(kernels[1], 15 * both["hidden_1"]["kernel"][1], 1e-5)


INNER = {
    "lars": lambda: lars.lars(1.0),
    "adam": lambda: optax.adam(1e-2),
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
    "chain": lambda: optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.1)),
}


@pytest.mark.parametrize("name", INNER)
def test_the_state_of_any_inner_optimizer_keeps_its_type(name):
    params = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = lars.wake_silent_layers(INNER[name]())
    start = state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for g in (grads, not_finite(grads), grads):
            updates, state = optimizer.update(g, state, params)  # eagerly
        assert state.reasons.sum() == 1
        _, state = jax.jit(optimizer.update)(grads, state, params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(updates))
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert (x.shape, x.dtype) == (jnp.shape(y), jnp.result_type(y))
    if name == "lars":
        ratios = lars.trust_ratios(state)
        assert jax.tree.structure(ratios) == jax.tree.structure(params)


MESH = jax.make_mesh(
    (4,), ("d",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
)


def of_one_device_and_of_four(partition_specs, check_vma=False):
    """A step of a network one of whose devices has a gradient that is not finite."""
    params = {"kernel": 100.0 * jnp.arange(32.0).reshape(8, 4), "bias": jnp.ones(4)}
    grads = jax.tree.map(jnp.ones_like, params)
    grads["kernel"] = grads["kernel"].at[0, 0].set(jnp.nan)

    def step(params, grads):
        inner = lars.lars(1.0, partition_specs=partition_specs)
        optimizer = lars.wake_silent_layers(inner, partition_specs=partition_specs)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return updates, state.reasons

    specs = {"kernel": P("d"), "bias": P()}
    parts = jax.shard_map(
        step,
        mesh=MESH,
        in_specs=(specs, specs),
        out_specs=(specs, P()),
        check_vma=check_vma,
    )
    optimizer = lars.wake_silent_layers(lars.lars(1.0))
    whole, state = optimizer.update(grads, optimizer.init(params), params)
    return (whole, state.reasons), jax.jit(parts)(params, grads)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map_all_devices_do_what_one_would(check_vma):
    specs = {"kernel": P("d"), "bias": P()}
    (whole, reasons), (parts, there) = of_one_device_and_of_four(specs, check_vma)
    np.testing.assert_array_equal(reasons, [1, 0, 0, 0])
    np.testing.assert_array_equal(there, reasons)
    assert_equal(parts, whole, rtol=1e-5)


def test_in_shard_map_partition_specs_are_asked_for():
    with pytest.raises(ValueError, match=r"give partition_specs, .*every device"):
        of_one_device_and_of_four(None)
    with pytest.raises(ValueError, match="one PartitionSpec, or a tree of them"):
        of_one_device_and_of_four({"kernel": P("d")})
    with pytest.raises(ValueError, match="has more axes than 'bias'"):
        of_one_device_and_of_four(P(None, "d"))


def test_on_a_mesh_of_explicit_axes_it_does_the_same():
    params, gradient = network(1e-8, depth=8)
    grads = gradient(params)
    (expected,), _ = after(AT_ONCE, params, [grads])
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((4,), ("d",), axis_types=explicit, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):

        def put(x):
            return jax.device_put(x, P("d", None) if x.ndim == 2 else P())

        (moved,), state = after(
            AT_ONCE, jax.tree.map(put, params), [jax.tree.map(put, grads)]
        )
        assert state.reasons.sum() == 1
    assert_equal(jax.device_get(moved), jax.device_get(expected), rtol=1e-6)


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


class _Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = x.reshape(len(x), -1)
        for _ in range(2):
            h = nn.relu(nn.Dense(16)(h))
        return nn.Dense(10)(h)


class _Convolutions(nn.Module):
    is_residual: bool

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(8, (3, 3))(x[..., None])
        if self.is_residual:
            branch = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(h))
            h += nn.GroupNorm(2, scale_init=nn.initializers.zeros)(branch)
        else:
            h = nn.relu(nn.Conv(8, (3, 3))(h))
        return nn.Dense(10)(h.mean((1, 2)))


class _Transformer(nn.Module):
    normalizes: bool
    is_tied: bool = False

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(32, 16)
        tokens = x[:, :, 0].astype(jnp.int32) % 32
        h = embed(tokens) if self.is_tied else nn.Dense(16)(x)
        h += self.param("positions", nn.initializers.normal(0.02), (8, 16))[None]
        norm = nn.LayerNorm if self.normalizes else lambda: lambda x: x
        h += nn.MultiHeadDotProductAttention(4)(norm()(h))
        h += nn.Dense(16)(nn.gelu(nn.Dense(32)(norm()(h))))
        h = norm()(h).mean(1)
        return embed.attend(h)[:, :10] if self.is_tied else nn.Dense(10)(h)


class _Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(jnp.asarray(nn.RNN(nn.SimpleCell(16))(x))[:, -1])


class _Adapter(nn.Module):
    """Low-rank updates of kernels that are not trained, and a head that is."""

    @nn.compact
    def __call__(self, x):
        h = x.reshape(len(x), -1)
        for i in range(2):
            shape = h.shape[-1], 16
            frozen = self.param(f"frozen{i}", nn.initializers.he_normal(), shape)
            down = self.param(f"down{i}", nn.initializers.he_normal(), (shape[0], 2))
            up = self.param(f"up{i}", nn.initializers.zeros, (2, shape[1]))
            h = nn.relu(h @ jax.lax.stop_gradient(frozen) + h @ down @ up)
        return nn.Dense(10)(h)


class _Probe(nn.Module):
    """A head on a network that is not trained."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(16)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))))
        return nn.Dense(10)(jax.lax.stop_gradient(h))


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
    labels = jnp.arange(64) % 10
    noise = jax.random.normal(jax.random.key(1), (64, 8, 8))
    images = noise + jnp.eye(8)[labels % 8][:, None]

    def loss(params, batch):
        logits = model.apply({"params": params}, images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, labels[batch]
        ).mean()

    def run(number):
        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(grads, state, params, number=number)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(jax.random.key(0), images[:1])["params"]
        batches = jnp.asarray(np.random.default_rng(1).integers(0, 64, (40, 16)))
        state = jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][1]
        return state.reasons, state.signal_steps

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run = jax.jit(run)
        for number, trainer in enumerate(TRAINERS):
            reasons, signal_steps = run(number)
            assert not reasons.any(), trainer
            assert signal_steps == AWAKE, trainer  # nor will it ever be moved
