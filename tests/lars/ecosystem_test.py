"""The optimizer is at home in what people build with: frameworks, files, wrappers."""

import copy
import functools
import pickle
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

STEPS = 10
NAMES = ("first", "second")


def assert_trees_close(actual, expected, rtol=1e-6, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def weights():
    """Of two dense layers, 5 to 8 to 3."""
    rng = np.random.default_rng(0)
    return {
        name: {
            "kernel": (rng.standard_normal(shape) / 3).astype(np.float32),
            "bias": (rng.standard_normal(shape[1]) / 10).astype(np.float32),
        }
        for name, shape in zip(NAMES, [(5, 8), (8, 3)], strict=True)
    }


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
    drawn = jax.eval_shape(model.init, jax.random.key(0), data()[0])["params"]
    params = jax.tree.map(jnp.asarray, weights())
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
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
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss, gradient = eqx.filter_value_and_grad(
            lambda model: error(jax.vmap(model)(jnp.asarray(data()[0])))
        )(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(gradient, state, params)
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(STEPS):
        model, state, loss = step(model, state)
        losses.append(loss)

    def plain(tree):
        layers = zip(NAMES, tree.layers, strict=True)
        return {name: {"kernel": x.weight.T, "bias": x.bias} for name, x in layers}

    return plain(model), plain(lars.trust_ratios(state)), losses


def haiku_network(x):
    x = jnp.tanh(hk.Linear(8, name="first")(x))
    return hk.Linear(3, name="second")(x)


def in_haiku(optimizer):
    network = hk.without_apply_rng(hk.transform(haiku_network))
    drawn = jax.eval_shape(network.init, jax.random.key(0), data()[0])
    params = {
        name: {"w": jnp.asarray(x["kernel"]), "b": jnp.asarray(x["bias"])}
        for name, x in weights().items()
    }
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    params, state, losses = train(
        lambda params: error(network.apply(params, data()[0])), params, optimizer
    )

    def plain(tree):
        return {name: {"kernel": x["w"], "bias": x["b"]} for name, x in tree.items()}

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


@functools.cache
def case(name):
    """An optimizer, parameters, a state in which nothing is as in the beginning, and
    what two more steps make of a state."""
    params = trees_of_parameters()[name.split(":")[0]]
    optimizer = {
        "linen: rules": lambda: lars.lars(
            1.0,
            1e-3,
            stacked=[(lars.select(rank=2), (1, 0))],
            momentum_of="direction",
        ),
        "linen: chain": lambda: optax.chain(
            optax.clip_by_global_norm(1.0),
            lars.lars(1.0, momentum=0.0, layer="module"),
        ),
    }.get(name, lambda: lars.lars(1.0, 1e-3))()
    gradient = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def steps(state, gradients):
        return jax.lax.scan(
            lambda state, g: optimizer.update(g, state, params)[::-1], state, gradients
        )

    gradients = jax.tree.map(lambda x: jnp.stack([jnp.nan * x, x]), gradient)
    state, _ = steps(optimizer.init(params), gradients)
    return optimizer, params, state, lambda state: steps(state, gradients)


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


def with_pickle(state, *_):
    return pickle.loads(pickle.dumps(state))


def with_deepcopy(state, *_):
    return copy.deepcopy(state)


def with_tree_map(state, *_):
    return jax.tree.map(jnp.array, state)


WAYS = [
    *(with_flax, with_orbax, with_orbax_pytree, with_equinox),
    *(with_pickle, with_deepcopy, with_tree_map),
]


def cases():
    for name in ("linen: rules", "linen: chain", "nnx", "equinox"):
        for way in WAYS:
            # That does not concern LARS: Flax serializes neither Equinox's nor its own
            # NNX's trees, and `copy.deepcopy` takes an nnx.State out of its boxes.
            if name in ("nnx", "equinox") and way is with_flax:
                continue
            if name == "nnx" and way is with_deepcopy:
                continue
            if way is with_orbax_pytree and name != "linen: rules":
                continue  # slow, and much like the other
            yield name, way


@pytest.mark.parametrize(("name", "way"), list(cases()))
def test_a_state_that_is_restored_works_as_before(name, way, tmp_path):
    optimizer, params, state, steps = case(name)
    restored = way(state, optimizer.init(params), tmp_path)
    # It is the same, tells the same, and keeps its form in a loop.
    assert_same(restored, state)
    assert_same(lars.trust_ratios(restored), lars.trust_ratios(state))
    assert_same(lars.skipped_steps(restored), lars.skipped_steps(state))
    assert_same(steps(restored), steps(state))


def test_flax_restores_a_whole_train_state():
    params = trees_of_parameters()["linen"]
    empty = TrainState.create(apply_fn=None, params=params, tx=lars.lars(1.0))
    state = jax.tree.map(jnp.ones_like, empty)
    restored = serialization.from_bytes(empty, serialization.to_bytes(state))
    assert_same(restored, state)


def hyper_weights():
    """Two stacked dense layers, and one that nothing depends on."""
    rng = np.random.default_rng(2)
    return {
        "blocks": {
            "kernel": rng.standard_normal((2, 3, 3)) / 2,
            "bias": rng.standard_normal((2, 3)) / 4,
        },
        "unused": {"kernel": rng.standard_normal((2, 2))},
    }


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
    if zero == "biases":
        params["blocks"]["bias"][:] = 0
    if zero == "a slice":
        params["blocks"]["bias"][1] = 0
    if zero == "all of a layer":
        params["unused"]["kernel"][:] = 0
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


def block_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {
        "blocks": {"kernel": (3, 4, 4), "bias": (3, 4)},
        "head": {"kernel": (4, 2), "bias": (2,)},
        "other": {"kernel": (2, 5)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


BIASES = lars.select(path="bias$")
RULES = {
    "weight_decay": 0.1,
    "weight_decay_mask": ~BIASES,
    "trust_coefficient": 0.02,
    "trust_ratio_mask": ~(BIASES & lars.select(path="^head/")),
    "momentum": 0.8,
    "layer": "module",
    "stacked": ((lars.select(path="^blocks/"), 0),),
}


@functools.cache
def inner():
    return lars.lars(2.0, **RULES)


@functools.cache
def masked_inner():
    return optax.masked(inner(), {"blocks": True, "head": True, "other": False})


@functools.cache
def jitted(optimizer):
    def step(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return jax.jit(step)


def run(optimizer, gradients, params=None):
    """The updates of every step, and the last state."""
    params = block_tree(0) if params is None else params
    state, every_update = optimizer.init(params), []
    # MultiSteps and others divide floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            updates, state, params = jitted(optimizer)(gradient, state, params)
            every_update.append(updates)
    return every_update, state


def some_gradients(number=3):
    return [block_tree(1 + i) for i in range(number)]


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


def test_masked_lars_equals_lars_without_the_masked_parameters():
    gradients = some_gradients()
    actual, state = run(masked_inner(), gradients)
    expected, expected_state = run(
        inner(),
        [without(g, "other") for g in gradients],
        without(block_tree(0), "other"),
    )
    assert_trees_close([without(u, "other") for u in actual], expected)
    assert_same([u["other"] for u in actual], [g["other"] for g in gradients])
    ratios = lars.trust_ratios(state)
    assert ratios.pop("other") == optax.MaskedNode()
    assert_same(ratios, lars.trust_ratios(expected_state))


def test_a_rule_for_masked_parameters_alone_must_be_optional():
    mask = {"blocks": False, "head": True, "other": True}
    with pytest.raises(ValueError, match="selects none of the 3 parameters"):
        optax.masked(inner(), mask).init(block_tree(0))
    optional = ((lars.select(path="^blocks/", required=False), 0),)
    optimizer = optax.masked(lars.lars(2.0, **{**RULES, "stacked": optional}), mask)
    ratios = lars.trust_ratios(optimizer.init(block_tree(0)))
    assert ratios["blocks"] == optax.MaskedNode()
    assert ratios["head"]["kernel"].shape == ()


def test_partitions_have_their_own_optimizers_and_integers_have_none():
    optimizers = {"lars": inner(), "sgd": optax.sgd(0.1), "none": optax.set_to_zero()}
    labels = {"blocks": "lars", "head": "lars", "other": "sgd", "table": "none"}
    gradients = [{**g, "table": jnp.zeros(4, jnp.int32)} for g in some_gradients()]
    optimizer = optax.partition(optimizers, labels)
    actual, state = run(optimizer, gradients, {**block_tree(0), "table": jnp.arange(4)})
    expected, expected_state = run(inner(), some_gradients())
    for updates, by_lars, g in zip(actual, expected, gradients, strict=True):
        by_sgd = jax.tree.map(lambda x: -0.1 * x, g["other"])
        assert_trees_close(
            updates, {**by_lars, "other": by_sgd, "table": jnp.zeros(4, jnp.int32)}
        )
    ratios = lars.trust_ratios(state)
    assert ratios.pop("other") == ratios.pop("table") == optax.MaskedNode()
    assert_same(ratios, without(lars.trust_ratios(expected_state), "other"))


def test_multi_steps_makes_one_step_of_the_mean_gradient():
    gradients = some_gradients(4)
    multi = optax.MultiSteps(inner(), 2).gradient_transformation()
    actual, state = run(multi, gradients)
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *gradients[i : i + 2]) for i in (0, 2)
    ]
    expected, expected_state = run(inner(), means)
    assert_trees_close(actual[1::2], expected, rtol=1e-5)
    assert not any(np.any(x) for x in jax.tree.leaves(actual[::2]))
    assert_trees_close(
        lars.trust_ratios(state), lars.trust_ratios(expected_state), rtol=1e-5
    )


def test_apply_if_finite_leaves_out_the_whole_step():
    first, second, third = some_gradients()
    broken = {**second, "head": jax.tree.map(lambda x: x * jnp.inf, second["head"])}
    optimizer = optax.apply_if_finite(inner(), 5)
    actual, state = run(optimizer, [first, broken, third])
    expected, expected_state = run(inner(), [first, third])
    assert_trees_close([actual[0], actual[2]], expected)
    assert not any(np.any(x) for x in jax.tree.leaves(actual[1]))
    assert_same(state.inner_state, expected_state)
    assert state.total_notfinite == 1
    # Not even counted: the broken step never was.
    assert not any(np.any(x) for x in jax.tree.leaves(lars.skipped_steps(state)))


def test_injected_hyperparameters_are_those_of_lars():
    static = ("weight_decay_mask", "trust_ratio_mask", "layer")
    inject = optax.inject_hyperparams(lars.lars, static_args=(*static, "stacked"))
    actual, state = run(inject(2.0, **RULES), some_gradients())
    expected, expected_state = run(inner(), some_gradients())
    assert_trees_close(actual, expected)
    assert_trees_close(lars.trust_ratios(state), lars.trust_ratios(expected_state))
    numbers = {"learning_rate": 2.0, "momentum": 0.8, "weight_decay": 0.1}
    for name, number in numbers.items():
        np.testing.assert_allclose(state.hyperparams[name], number, rtol=1e-6)
