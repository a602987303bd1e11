"""The optimizer is at home in what people build with: frameworks, files, wrappers."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import lars
from lars.kernels import roles_of
from tests.lars.steps import assert_same, assert_trees_close, drawn

STEPS = 10
NAMES = ("first", "second")


def weights():
    """Of two dense layers, 5 to 8 to 3."""
    shapes = {
        "first": {"kernel": (5, 8), "bias": (8,)},
        "second": {"kernel": (8, 3), "bias": (3,)},
    }
    return drawn(shapes, 0, 0.3)


def data(dtype=np.float32):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16, 5))
    return x.astype(dtype), np.sin(x @ rng.standard_normal((5, 3))).astype(dtype)


def error(predicted):
    return jnp.mean(jnp.square(predicted - data(predicted.dtype)[1]))


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def plain_loss(params):
    hidden = jnp.tanh(dense(params["first"], jnp.asarray(data()[0])))
    return error(dense(params["second"], hidden))


@functools.cache
def network_optimizer():
    """The last bias is adapted and decayed in no framework, whatever it is called."""
    last_bias = lars.select(path="^(layers/1|second)/b(ias)?$")
    return lars.lars(
        0.1,
        1e-3,
        weight_decay_mask=~last_bias,
        trust_coefficient=0.2,
        trust_ratio_mask=~last_bias,
        layer="module",
    )


def train(loss, params, optimizer):
    """The loop that one writes oneself."""

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        losses.append(value)
    return params, state, losses


def in_plain_jax(optimizer):
    params, state, losses = train(
        plain_loss, jax.tree.map(jnp.asarray, weights()), optimizer
    )
    return params, lars.trust_ratios(state), losses


class LinenNetwork(nn.Module):  # noqa: D101
    @nn.compact
    def __call__(self, x):  # noqa: D102
        x = jnp.tanh(nn.Dense(8, name="first")(x))
        return nn.Dense(3, name="second")(x)


def in_linen(optimizer):
    model = LinenNetwork()
    params = jax.tree.map(jnp.asarray, weights())
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    @jax.jit
    def step(state):
        loss, gradient = jax.value_and_grad(
            lambda params: error(state.apply_fn({"params": params}, data()[0]))
        )(state.params)
        return state.apply_gradients(grads=gradient), loss

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)
    return state.params, lars.trust_ratios(state.opt_state), losses


class NnxNetwork(nnx.Module):  # noqa: D101
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)
        for name, layer in weights().items():
            for part, array in layer.items():
                getattr(getattr(self, name), part).set_value(jnp.asarray(array))

    def __call__(self, x):  # noqa: D102
        return self.second(jnp.tanh(self.first(x)))


def in_nnx(optimizer):
    model = NnxNetwork()
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda model: error(model(data()[0])))(
            model
        )
        optimizer.update(model, gradient)
        return loss

    losses = [step(model, optimizer) for _ in range(STEPS)]

    def plain(tree):
        return nnx.to_pure_dict(tree)

    ratios = plain(lars.trust_ratios(optimizer.opt_state))
    return plain(nnx.state(model, nnx.Param)), ratios, losses


class EquinoxNetwork(eqx.Module):  # noqa: D101
    layers: list[eqx.nn.Linear]
    activation: Any  # no array: None among the parameters

    def __call__(self, x):  # noqa: D102
        first, second = self.layers
        return second(self.activation(first(x)))


def equinox_network():
    layers = []
    for layer in weights().values():
        inputs, outputs = layer["kernel"].shape
        drawn = eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))
        layers.append(
            eqx.tree_at(
                lambda x: (x.weight, x.bias),
                drawn,
                (jnp.asarray(layer["kernel"].T), jnp.asarray(layer["bias"])),
            )
        )
    return EquinoxNetwork(layers, jnp.tanh)


def in_equinox(optimizer):
    model = equinox_network()
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params):
        return error(jax.vmap(eqx.combine(params, rest))(jnp.asarray(data()[0])))

    params, state, losses = train(loss, params, optimizer)

    def plain(tree):
        layers = zip(NAMES, tree.layers, strict=True)
        return {name: {"kernel": x.weight.T, "bias": x.bias} for name, x in layers}

    return plain(params), plain(lars.trust_ratios(state)), losses


def in_haiku(optimizer):
    def network(x):
        x = jnp.tanh(hk.Linear(8, name="first")(x))
        return hk.Linear(3, name="second")(x)

    network = hk.without_apply_rng(hk.transform(network))
    names = {"w": "kernel", "b": "bias"}
    params = {
        layer: {w: jnp.asarray(x[name]) for w, name in names.items()}
        for layer, x in weights().items()
    }
    params, state, losses = train(
        lambda params: error(network.apply(params, data()[0])), params, optimizer
    )

    def plain(tree):
        return {
            layer: {names[w]: array for w, array in x.items()}
            for layer, x in tree.items()
        }

    return plain(params), plain(lars.trust_ratios(state)), losses


FRAMEWORKS = {
    "linen": in_linen,
    "nnx": in_nnx,
    "equinox": in_equinox,
    "haiku": in_haiku,
}
in_plain_jax = functools.cache(in_plain_jax)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_network_trains_to_the_same_weights_in_every_framework(name):
    expected, expected_ratios, expected_losses = in_plain_jax(network_optimizer())
    params, ratios, losses = FRAMEWORKS[name](network_optimizer())
    assert_trees_close(params, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(ratios, expected_ratios, rtol=1e-4)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert ratios["second"]["bias"] == 1
    assert ratios["first"]["kernel"] == ratios["first"]["bias"]


def trees_of_parameters():
    """What each framework hands to the optimizer."""
    plain = jax.tree.map(jnp.asarray, weights())
    return {
        "linen": plain,
        "linen, partitioned": jax.tree.map(
            lambda x: nn.Partitioned(x, (None,) * x.ndim), plain
        ),
        "nnx": nnx.state(NnxNetwork(), nnx.Param),
        "equinox": eqx.filter(equinox_network(), eqx.is_inexact_array),
        "haiku": {
            f"net/~/{name}": {"w": x["kernel"], "b": x["bias"]}
            for name, x in plain.items()
        },
    }


def names_of_parameters():
    plain = {"first/bias", "first/kernel", "second/bias", "second/kernel"}
    return {
        "linen": plain,
        "linen, partitioned": plain,
        "nnx": plain,
        "equinox": {f"layers/{i}/{x}" for i in range(2) for x in ("weight", "bias")},
        "haiku": {f"net/~/{name}/{x}" for name in NAMES for x in "wb"},
    }


@pytest.mark.parametrize("name", names_of_parameters())
def test_parameters_are_called_what_their_framework_calls_them(name):
    biases = lars.select(path=r"/b(ias)?$")
    params = jax.eval_shape(lambda: trees_of_parameters()[name])
    rows = lars.describe(params, layer="module", weight_decay_mask=~biases)
    assert {row.parameter for row in rows} == names_of_parameters()[name]
    for row in rows:
        module, _, part = row.parameter.rpartition("/")
        assert row.shares.rpartition("/")[0] == module
        assert row.decayed == (part in ("kernel", "weight", "w"))
    outputs_first = [(lars.select(path="weight"), 0)] if name == "equinox" else []
    assert len(roles_of(params, output_axes=outputs_first).biases) == 2


@functools.cache
def case(name):
    """An empty state, one in which nothing is as in the beginning, and what two more
    steps make of a state."""
    params, optimizer = trees_of_parameters()[name], lars.lars(1.0, 1e-3)

    @jax.jit
    def steps(state):
        gradients = jax.tree.map(lambda x: jnp.stack([x * jnp.nan, x]), params)
        return jax.lax.scan(
            lambda state, g: optimizer.update(g, state, params)[::-1], state, gradients
        )

    state, _ = steps(optimizer.init(params))
    return optimizer.init(params), state, steps


def with_flax(state, empty, _):
    return serialization.from_bytes(empty, serialization.to_bytes(state))


def with_orbax(state, empty, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", empty)


def with_orbax_pytree(state, empty, path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        arguments = ocp.checkpoint_utils.construct_restore_args(empty)
        return checkpointer.restore(path / "state", item=empty, restore_args=arguments)


def with_equinox(state, empty, path):
    eqx.tree_serialise_leaves(path / "state.eqx", state)
    return eqx.tree_deserialise_leaves(path / "state.eqx", empty)


WAYS = [
    *((name, way) for name in ("nnx", "equinox") for way in (with_orbax, with_equinox)),
    # Flax serializes neither Equinox's trees nor those of its own NNX.
    *(("linen", way) for way in (with_flax, with_orbax_pytree)),
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_state_that_is_restored_works_as_before(name, way, tmp_path):
    empty, state, steps = case(name)
    restored = way(state, empty, tmp_path)
    # It is the same, tells the same, and keeps its form in a loop.
    assert_same(restored, state)
    assert_same(lars.trust_ratios(restored), lars.trust_ratios(state))
    assert_same(lars.skipped_steps(restored), lars.skipped_steps(state))
    assert_same(steps(restored), steps(state))


def hyper_weights():
    """Two stacked dense layers, and one that nothing depends on."""
    shapes = {
        "blocks": {"kernel": (2, 3, 3), "bias": (2, 3)},
        "unused": {"kernel": (2, 2)},
    }
    return drawn(shapes, 2, 0.5, np.float64)


def hyper_loss(params):
    x = data(np.float64)[1]
    for i in range(2):
        x = jnp.tanh(dense(jax.tree.map(lambda p, i=i: p[i], params["blocks"]), x))
    return error(x)


def after_two_steps(hyperparameters, params, **options):
    """A number that depends on all parameters, also those of no influence so far."""
    optimizer = lars.lars(
        hyperparameters["learning_rate"],
        trust_coefficient=hyperparameters["trust_coefficient"],
        momentum=0.8,
        **options,
    )

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(hyper_loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, length=2)
    return hyper_loss(params) + sum(jnp.sum(x**4) for x in jax.tree.leaves(params))


HYPERPARAMETERS = {"learning_rate": 2.0, "trust_coefficient": 0.05}
SETTINGS = {
    "shared and stacked": {
        "weight_decay": 0.1,
        "layer": "module",
        "stacked": [(lars.select(path="^blocks/"), 0)],
    },
    "without decay, of the update": {
        "denominator": "update",
        "momentum_of": "gradient",
        "nesterov": True,
    },
}


@functools.cache
def derivatives(setting):
    """Compiled: the value with its gradient, and its change with a change."""

    def outcome(hyperparameters, params):
        return after_two_steps(hyperparameters, params, **SETTINGS[setting])

    def forward(hyperparameters, change, params):
        return jax.jvp(lambda x: outcome(x, params), (hyperparameters,), (change,))[1]

    return jax.jit(jax.value_and_grad(outcome)), jax.jit(forward)


@pytest.mark.parametrize("zero", ["nothing", "biases", "a slice", "all of a layer"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_derivatives_by_hyperparameters_equal_central_differences(setting, zero):
    params = hyper_weights()  # the gradient of "unused" is zero in any case
    bias, unused = params["blocks"]["bias"], params["unused"]["kernel"]
    zeros = {"biases": bias, "a slice": bias[1], "all of a layer": unused}
    zeros.get(zero, np.ones(1))[:] = 0
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        at = jax.tree.map(jnp.float64, HYPERPARAMETERS)
        nowhere = jax.tree.map(jnp.zeros_like, at)
        reverse, forward = derivatives(setting)
        _, gradient = reverse(at, params)
        for name, number in at.items():
            h = 1e-5 * number
            high, low = (
                reverse({**at, name: x}, params)[0] for x in (number + h, number - h)
            )
            assert gradient[name] != 0
            np.testing.assert_allclose(gradient[name], (high - low) / (2 * h), 1e-5)
            if setting == "without decay, of the update":
                change = forward(at, {**nowhere, name: jnp.ones_like(number)}, params)
                np.testing.assert_allclose(change, gradient[name], rtol=1e-9)
