"""Silent networks are woken, and no others are touched."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars
from lars.models import mlp
from lars.waking import AWAKE, REASONS, silence

STEPS = 30


def network(scale, activation="relu", depth=3, width=16, images=32, classes=10):
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
    params = model.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda w: scale * w if w.ndim > 1 else w, params)

    def gradient(params):
        def loss(params):
            logits, _ = model.apply({"params": params}, x, None)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.grad(loss)(params)

    return params, jax.jit(gradient)


def reason(params, gradient):
    flags = jax.jit(silence)(gradient(params), params)
    return [name for name, flag in zip(REASONS, flags, strict=True) if flag]


def trained(optimizer, params, gradient, steps=STEPS):
    update, apply = jax.jit(optimizer.update), jax.jit(optax.apply_updates)

    def step(params, state):
        updates, state = update(gradient(params), state, params)
        return apply(params, updates), state

    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        for _ in range(steps):
            params, state = step(params, state)
    return params, state


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
    # An optimizer that does nothing: what happens is the waking alone.
    optimizer = lars.wake_silent_layers(optax.set_to_zero())
    params, state = trained(optimizer, params, gradient, 60)
    assert reason(params, gradient) == []
    assert state.reasons[REASONS.index(expected)] > 0
    again, _ = trained(optimizer, params, gradient, 5)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_chaotic_network_is_calmed():
    params, gradient = network(10.0, "tanh", 24, width=64)
    assert reason(params, gradient) == ["lost in rounding"]
    optimizer = lars.wake_silent_layers(optax.set_to_zero())
    params, state = trained(optimizer, params, gradient, 6)
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
    params, gradient = network(1e-3, "sigmoid", 6, classes=classes)
    assert reason(params, gradient) == ["constant input"]
    optimizer = lars.wake_silent_layers(optax.set_to_zero())
    params, _ = trained(optimizer, params, gradient, 40)
    assert reason(params, gradient) == []


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
@pytest.mark.parametrize("inner", [optax.sgd(0.1), lars.polar(0.1)])
def test_types_of_updates_are_those_of_the_inner_optimizer(
    inner, of_params, of_gradients
):
    params, gradient = network(1.0)
    params, healthy = (
        optax.tree.cast(tree, dtype)
        for tree, dtype in ((params, of_params), (gradient(params), of_gradients))
    )
    silent = {**healthy, "output": jax.tree.map(jnp.zeros_like, healthy["output"])}
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), healthy)
    optimizer = lars.wake_silent_layers(inner, patience=1)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = inner.update(healthy, inner.init(params), params)
        for grads in (healthy, silent, nan):
            updates, state = optimizer.update(grads, optimizer.init(params), params)
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
    assert not silence(zeros, params).any()


def test_patience():
    params, gradient = network(1.0)
    healthy = gradient(params)
    silent = {**healthy, "output": jax.tree.map(jnp.zeros_like, healthy["output"])}
    optimizer = lars.wake_silent_layers(optax.sgd(0.1), patience=3)
    update = jax.jit(optimizer.update)
    for grads, moves in (
        ([silent, silent], 0),
        ([silent, silent, healthy, silent, silent], 0),
        ([silent, silent, silent], 1),
        ([silent] * 5, 3),
        ([silent] * 3 + [healthy] + [silent] * 2, 1),
    ):
        state = optimizer.init(params)
        for g in grads:
            _, state = update(g, state, params)
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


def test_an_awake_network_is_seen_to_where_it_is_not_finite():
    params, gradient = network(1.0)
    healthy = gradient(params)
    silent = {**healthy, "output": jax.tree.map(jnp.zeros_like, healthy["output"])}
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    optimizer = lars.wake_silent_layers(optax.sgd(0.1), patience=1)
    update = jax.jit(optimizer.update)
    for grads, moves in (
        ([healthy] * (AWAKE - 1) + [silent], 1),
        ([healthy] * AWAKE + [silent] * 20, 0),
        ([healthy] * 5 + [silent] + [healthy] * 5 + [silent], 2),  # not in a row
        ([healthy] * AWAKE + [silent, nan], 1),
        ([healthy] * AWAKE + [nan, silent], 2),  # and may fall asleep again
        ([healthy] * AWAKE + [nan] + [healthy] * AWAKE + [silent], 1),
    ):
        state = optimizer.init(params)
        for g in grads:
            _, state = update(g, state, params)
        assert state.reasons.sum() == moves


def test_a_move_is_by_the_largest_factor_at_most_and_ends_at_the_aim():
    params, gradient = network(1e-8, depth=8)
    silent = gradient(params)
    optimizer = lars.wake_silent_layers(optax.sgd(0.1), patience=1)
    update = jax.jit(optimizer.update)
    state, norms = optimizer.init(params), []
    for _ in range(9):
        updates, state = update(silent, state, params)
        params = optax.apply_updates(params, updates)
        norms.append(lars.l2_norm(params["hidden_3"]["kernel"]) / np.sqrt(2 * 16))
    ratios = [b / a for a, b in itertools.pairwise(norms)]
    np.testing.assert_allclose(ratios[:5], 16, rtol=1e-5)
    # At the norm that keeps variance, then by half an octave a step.
    np.testing.assert_allclose(norms[6:], 2 ** np.array([0, 0.5, 1]), rtol=1e-5)


def test_what_is_not_finite_only_shrinks():
    params, gradient = network(1e8, depth=8)
    params["hidden_0"]["kernel"] *= 1e-16
    grads = gradient(params)
    assert reason(params, lambda _: grads) == ["not finite"]
    optimizer = lars.wake_silent_layers(optax.sgd(0.1))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["hidden_0"]["kernel"], 0)
    np.testing.assert_allclose(
        updates["hidden_1"]["kernel"],
        (1 / 16 - 1) * params["hidden_1"]["kernel"],
        rtol=1e-6,
    )


def test_momentum_is_forgotten_and_the_schedule_is_not():
    params, gradient = network(1.0)
    inner = optax.chain(
        optax.trace(0.9), optax.scale_by_schedule(optax.constant_schedule(-0.1))
    )
    optimizer = lars.wake_silent_layers(inner)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(4):
        _, state = update(gradient(params), state, params)
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    _, state = update(nan, state, params)
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
    optimizer = lars.wake_silent_layers(optax.set_to_zero())
    woken, _ = trained(optimizer, dead, gradient, 4)
    np.testing.assert_array_equal(woken["hidden_0"]["bias"], 0)
    assert reason(woken, gradient) == []


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        lars.wake_silent_layers(optax.sgd(0.1), patience=0)
    with pytest.raises(ValueError, match=r"parameters with kernels.*\(3,\)"):
        lars.wake_silent_layers(optax.sgd(0.1)).init({"bias": jnp.zeros(3)})


def test_the_aim_moves_no_further_than_it_may():
    params, _ = network(1.0)
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    optimizer = lars.wake_silent_layers(optax.sgd(0.1))
    params, _ = trained(optimizer, params, lambda _: nan, 20)
    norm = lars.l2_norm(params["hidden_1"]["kernel"]) / np.sqrt(2 * 16)
    np.testing.assert_allclose(norm, 2.0**-4, rtol=1e-5)


def test_what_no_scale_wakes_is_given_up():
    params, gradient = network(1.0)
    params["unused"] = {"kernel": jnp.ones((4, 3))}

    def with_unused(params):
        return {**gradient(params), "unused": {"kernel": jnp.zeros((4, 3))}}

    still = lars.wake_silent_layers(optax.set_to_zero(), patience=1)
    state, update = still.init(params), jax.jit(still.update)
    moved, norms = params, []
    for _ in range(25):
        updates, state = update(with_unused(moved), state, moved)
        moved = optax.apply_updates(moved, updates)
        norms.append(lars.l2_norm(moved["hidden_1"]["kernel"]) / np.sqrt(2 * 16))
    np.testing.assert_allclose(max(norms), 2.0**4, rtol=1e-5)
    # Nothing is left of it.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), moved, params
    )

    optimizer = lars.wake_silent_layers(optax.sgd(0.01), patience=1)
    woken, state = trained(optimizer, params, with_unused, 25)
    assert 8 < state.reasons[REASONS.index("no gradient")] < 20
    # From then on it is the inner optimizer alone.
    params, gradient_there = woken, with_unused(woken)
    updates, state = jax.jit(optimizer.update)(gradient_there, state, params)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.01 * g, rtol=1e-6),
        updates,
        gradient_there,
    )


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


def test_a_state_of_another_optimizer_is_refused():
    params, gradient = network(1.0)
    optimizer = lars.wake_silent_layers(optax.sgd(0.1))
    with pytest.raises(TypeError, match="need WakingState"):
        optimizer.update(gradient(params), optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(gradient(params), optimizer.init(params))
