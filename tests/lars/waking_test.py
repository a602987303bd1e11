"""Silent networks are woken, and no others are touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lars
from lars.silence import REASONS, silence
from lars.waking import AWAKE
from tests.lars.steps import assert_same, assert_trees_close

WIDTH = 10  # of all layers, so that all kernels have one shape: that compiles faster
LAYERS = [f"hidden_{i}" for i in range(6)] + ["output"]
STILL = lars.wake_silent_layers(optax.set_to_zero())  # only waking does something
AT_ONCE = lars.wake_silent_layers(optax.set_to_zero(), patience=1)
look = jax.jit(silence)
SMALL = {"kernel": np.full((4, 3), 128, np.float32), "bias": np.ones(3, np.float32)}


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
        (100.0, "tanh", "lost in rounding"),  # chaotic: they explode on their way back
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
    assert_same(again, params)
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


def one_open_rectifier():
    """Behind it every gradient has the form of a constant input's."""
    bias = np.full(WIDTH, -1e3, np.float32)
    bias[-1] = 1.0
    params = changed(network(), "hidden_1", bias=bias)
    assert (gradient(params)["hidden_1"]["bias"] != 0).sum() == 1
    return gradient(params), params


def one_image(outputs):
    """The gradient of one image, whatever its loss."""
    rng = np.random.default_rng(0)

    def layer(name):
        errors = rng.normal(size=WIDTH).astype(np.float32)
        errors[outputs if name == "output" else WIDTH :] = 0
        inputs = rng.normal(size=WIDTH).astype(np.float32)
        return {"kernel": np.outer(inputs, errors), "bias": errors}

    return {name: layer(name) for name in LAYERS}, network()


def one_constant_input():
    """As behind a position, or a token that is the same in all examples."""
    grads = gradient(network())
    constant = np.outer(np.ones(WIDTH), grads["hidden_1"]["bias"])
    return changed(grads, "hidden_1", kernel=constant), network()


def zero_output(after_a_step=False):
    """A kernel of zero is left to the optimizer, also where others get no gradient."""
    params = network()
    params["output"] = jax.tree.map(np.zeros_like, params["output"])
    return gradient(network() if after_a_step else params), params


def shut_normalization():
    """Its scale is small, as after a first step from zero."""
    params = {**network(100.0), "norm": {"scale": np.full(WIDTH, 0.01, np.float32)}}
    return without(gradient(params), "hidden_0"), params


def one_parameter_not_finite():
    params = network()
    params["output"]["kernel"][0, 0] = np.nan
    return gradient(params), params


NOT_SILENT = {
    "one open rectifier": one_open_rectifier,
    "one image": lambda: one_image(WIDTH),
    "one image, one output": lambda: one_image(1),
    "one constant input": one_constant_input,
    "a kernel of zero": zero_output,
    "a kernel of zero beside gradients": lambda: zero_output(after_a_step=True),
    "a normalization that is shut": shut_normalization,
    "no gradient at all": lambda: (jax.tree.map(np.zeros_like, network()), network()),
    "parameters not finite": one_parameter_not_finite,
}


@pytest.mark.parametrize("name", NOT_SILENT)
def test_what_looks_like_silence_and_is_none(name):
    assert reason(*NOT_SILENT[name]()) == []


def test_a_network_of_usual_sizes_may_have_kernels_that_do_little_or_nothing():
    for scale in (1.0, 100.0):
        params = network(scale)
        frozen = without(gradient(params), "hidden_0", "hidden_1")
        assert reason(frozen, params) == (["no gradient"] if scale > 1 else [])
        small = {**gradient(params)}
        small["hidden_1"] = jax.tree.map(lambda x: 2.0**-20 * x, small["hidden_1"])
        assert reason(small, params) == (["lost in rounding"] if scale > 1 else [])


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


@pytest.mark.parametrize("inner", [optax.adam(1e-2), lars.polar(0.02, steps=1)])
def test_a_healthy_run_is_the_same_to_the_bit(inner):
    plain, _ = trained(inner, network(), gradient)
    woken, state = trained(lars.wake_silent_layers(inner), network(), gradient)
    assert not state.reasons.any()
    assert_same(woken, plain)


H, S, N = range(3)  # gradients of a healthy network, silent ones, and not finite ones


@pytest.mark.parametrize(
    ("optimizer", "kinds", "moves"),
    [
        # Silence must last as long as patience.
        (STILL, [S] * 2, 0),
        (STILL, [S, S, H, S, S], 0),
        (STILL, [S] * 3, 1),
        (STILL, [S, S, S, H, S, S], 1),
        # An awake network is left alone for good. One that has learnt its images may
        # look silent: few of them still make errors.
        (AT_ONCE, [H] * (AWAKE - 1) + [S], 1),
        (AT_ONCE, [H] * AWAKE + [S] * 5 + [N] * 5, 0),
        (AT_ONCE, [H] * 5 + [N], 1),
        (AT_ONCE, [H] * 5 + [S] + [H] * 5 + [S], 2),  # not in a row
    ],
)
def test_when_a_network_is_moved(optimizer, kinds, moves):
    params = network(100.0)
    healthy = gradient(params)
    grads = healthy, without(healthy, "output"), not_finite(healthy)
    _, state = after(optimizer, params, [grads[kind] for kind in kinds])
    assert state.reasons.sum() == moves


@pytest.mark.parametrize(("scale", "is_held"), [(0.3, False), (100.0, True)])
def test_steps_wait_while_a_network_of_unusual_sizes_is_silent(scale, is_held):
    """Where sizes are usual, as of sigmoids that see a constant input, they do not."""
    inner = optax.sgd(1e-9, momentum=0.9)
    optimizer = lars.wake_silent_layers(inner)
    params = network(scale)
    healthy = gradient(params)
    constant, dead = gradient(params, "sigmoid"), without(healthy, "output")
    silent = dead if is_held else constant
    assert reason(silent, params)
    grads = [healthy, silent, silent, healthy]
    every, state = after(optimizer, params, grads)
    made = [healthy, healthy] if is_held else grads
    plain, plain_state = after(inner, params, made)
    assert_trees_close(every[-1], plain[-1], 1e-6)
    assert_trees_close(state.inner_state, plain_state, 1e-6)  # momentum is kept
    if is_held:
        assert_same(every[2], every[0])
    assert not state.reasons.any()


def test_one_batch_that_is_not_finite_is_left_to_an_inner_optimizer_that_skips_it():
    grads = [SMALL] * AWAKE + [not_finite(SMALL), SMALL]
    inner = lars.lars(1.0, momentum=0.0)
    plain, _ = after(inner, SMALL, grads)
    woken, _ = after(lars.wake_silent_layers(inner), SMALL, grads)
    assert_same(woken, plain)


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
    assert_same(moved["hidden_0"]["kernel"], small)
    assert_trees_close(moved["hidden_1"]["kernel"], params["hidden_1"]["kernel"] / 16)


def test_momentum_is_forgotten_and_the_schedule_is_not():
    inner = optax.chain(
        optax.trace(0.9), optax.scale_by_schedule(optax.constant_schedule(-0.1))
    )
    grads = [SMALL] * 4 + [not_finite(SMALL)]
    _, state = after(lars.wake_silent_layers(inner), SMALL, grads)
    trace, schedule = state.inner_state
    assert not optax.tree.norm(trace.trace)
    assert schedule.count == 4


def test_biases_of_a_silent_network_become_zero():
    dead = changed(network(), "hidden_0", bias=np.full(WIDTH, -1e6, np.float32))
    assert reason(gradient(dead), dead) == ["no gradient"]
    woken, _ = trained(STILL, dead, gradient, 4)
    np.testing.assert_array_equal(woken["hidden_0"]["bias"], 0)
    assert reason(gradient(woken), woken) == []


@pytest.mark.parametrize(
    ("expected", "scale", "optimizer", "furthest"),
    [
        ("not finite", 1.0, STILL, np.min),
        # A kernel that the loss does not depend on, in a network of unusual sizes.
        ("no gradient", 100.0, AT_ONCE, np.max),
    ],
)
def test_what_no_scale_wakes_gets_its_sizes_back(expected, scale, optimizer, furthest):
    params = changed(network(scale), "output", bias=np.arange(10, dtype=np.float32))
    grads = gradient(params)
    is_infinite = expected == "not finite"
    grads = not_finite(grads) if is_infinite else without(grads, "hidden_2")
    every, state = after(optimizer, params, [grads] * 25)
    norms = [relative_norm(x, "hidden_1") for x in every[:10]]
    limit = 2.0**-4 if is_infinite else 2.0**4
    np.testing.assert_allclose(furthest(norms), limit, rtol=1e-5)
    assert not every[0]["output"]["bias"].any()
    assert_trees_close(every[-1], params, rtol=1e-5)
    assert_same(every[-1]["output"]["bias"], params["output"]["bias"])
    number = REASONS.index(expected)
    np.testing.assert_array_equal(np.flatnonzero(state.given_up), [number])
    assert 8 <= state.reasons[number] < 20


@pytest.mark.parametrize("worse", [lambda g: without(g, "hidden_0"), not_finite])
def test_a_move_that_makes_it_worse_is_taken_back_for_good(worse):
    params = changed(network(10.0), "hidden_1", bias=np.arange(10, dtype=np.float32))
    silent = without(gradient(params), "output")
    every, state = after(AT_ONCE, params, [silent, worse(silent), *[silent] * 5])
    assert not every[0]["hidden_1"]["bias"].any()
    for later in every[1:]:
        assert_trees_close(later, params)
        assert_same(later["hidden_1"]["bias"], params["hidden_1"]["bias"])
    np.testing.assert_array_equal(state.reasons, [0, 1, 0, 0])
    assert state.given_up[1]


# ------------------------------------------------------------- types, states and meshes


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


SPECS = {"kernel": P("d"), "bias": P()}
# Large, but less than 16 times: the norm of the whole says by how much it is moved.
PARTS = {"kernel": np.float32(0.3) * np.arange(32, dtype=np.float32).reshape(8, 4)}
PARTS["bias"] = np.ones(4, np.float32)


def step_of_parts(optimizer, grads, check_vma=False):
    """A step of a network whose kernel is divided over four devices."""
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])

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
    assert_trees_close(jax.tree.map(np.add, PARTS, parts), whole, rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_of_global_arrays_it_moves_what_it_moves_on_one_device(kind):
    grads = without({"a": PARTS}, "a")["a"]
    (expected,), _ = after(AT_ONCE, PARTS, [grads])
    mesh = jax.make_mesh((4,), ("d",), (kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
        params, grads = jax.device_put((PARTS, grads), (places, places))
        (moved,), state = after(AT_ONCE, params, [grads])
    assert state.reasons.sum() == 1
    assert_trees_close(jax.device_get(moved), jax.device_get(expected))


def test_what_is_masked_is_not_looked_at():
    # A kernel that is not trained, and gets no gradient: it would look silent.
    params = {"old": SMALL, "new": network(100.0)}
    grads = {"old": not_finite(SMALL), "new": gradient(params["new"])}
    optimizer = optax.masked(AT_ONCE, {"old": False, "new": True})
    _, state = after(optimizer, params, [grads] * 2)
    assert not state.inner_state.reasons.any()


# ------------------------------------------------- what inner optimizers train alone


class _Residual(nn.Module):
    """Its branch is shut at first."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(8, (3,))(x)
        branch = nn.relu(nn.Conv(8, (3,), use_bias=False)(h))
        h += nn.GroupNorm(2, scale_init=nn.initializers.zeros)(branch)
        return nn.Dense(8)(h[:, 0])


class _Transformer(nn.Module):
    """With LayerNorm and one table of embeddings, or without either."""

    is_tied: bool

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(8, 8)
        tokens = x[:, :, 0].astype(jnp.int32) % 8
        h = embed(tokens) if self.is_tied else nn.Dense(8)(x)
        h += self.param("positions", nn.initializers.normal(0.02), (8, 8))[None]
        norm = nn.LayerNorm if self.is_tied else lambda: lambda x: x
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
    "residual convolutions": _Residual(),
    "transformer": _Transformer(is_tied=False),
    "tied embeddings": _Transformer(is_tied=True),
    "recurrent network": _Recurrent(),
    "adapter beside frozen kernels": _Adapter(),
    "head on a frozen network": _Probe(),
}
ADAM = optax.adam(3e-3)
TRAINED = [
    *((name, ADAM) for name in NETWORKS),
    ("residual convolutions", optax.sgd(0.05, 0.9)),
    ("transformer", optax.contrib.muon(0.01, ns_steps=1)),
    ("tied embeddings", lars.polar(0.25, steps=1)),
]


@pytest.mark.parametrize(("name", "trainer"), TRAINED)
def test_a_network_that_its_inner_optimizer_trains_is_left_alone(name, trainer):
    model = NETWORKS[name]
    rng = np.random.default_rng(1)
    labels = np.arange(64) % 8
    noise = rng.normal(size=(64, 8, 8)).astype(np.float32)
    images = noise + np.eye(8, dtype=np.float32)[labels][:, None]
    batches = rng.integers(0, 64, (60, 16))

    def gradient_of(params, images, labels):
        def loss(params):
            logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        return jax.grad(loss)(params)

    optimizer = lars.wake_silent_layers(trainer)

    @jax.jit
    def run(images, labels):
        def step(carry, batch):
            grads = gradient_of(carry[0], *batch)
            updates, state = optimizer.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        params = model.init(jax.random.key(0), images[0])["params"]
        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, (images, labels))[0][1]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = run(images[batches], labels[batches])
    assert not state.reasons.any()
    assert state.signal_steps == AWAKE  # nor will it ever be moved
