"""Sharded over devices, the optimizer does what it does on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lars
from lars.norms import scaled_l2_norms
from lars.sharded import ArrayAxes
from tests.lars.steps import assert_near, drawn, scan, stacked

SHAPES = {
    "blocks": {"kernel": (4, 4, 8), "bias": (4, 8)},  # four layers, stacked
    "experts": (2, 2, 4, 6),  # two by two of them
    "bias": (8,),
}
LAYOUTS = {
    "fully sharded": {
        "blocks": {"kernel": P(None, "data", "model"), "bias": P(None, "data")},
        "experts": P(None, None, ("data", "model")),
        "bias": P(("data", "model")),
    },
    "layers and experts apart": {
        "blocks": {"kernel": P("data", None, "model"), "bias": P("data")},
        "experts": P("data", "model"),
        "bias": P(),
    },
}
OPTIONS = {
    "spectral": {"geometry": lars.Spectral(steps=2)},
    "shared": {
        "layer": lambda path: str(path[0].key),
        "trust_ratio_mask": lars.select(path="kernel|experts"),
        "weight_decay_mask": lars.select(path="kernel"),
        "weight_decay_kind": "outside",
    },
}
STACKED = ((lars.select(path="blocks"), 0), (lars.select(path="experts"), (0, 1)))


def data():
    """Parameters, and the gradients of three steps."""
    params, *grads = (drawn(SHAPES, seed) for seed in range(4))
    params["bias"] *= 0
    # Norms that need the second pass, of different parts in different steps.
    grads[1]["blocks"]["kernel"][3] *= 1e30
    grads[1]["experts"] *= 1e-30
    grads[2]["experts"][1, 1] *= 1e25
    grads[2]["bias"][5] = np.nan
    return params, stacked(grads)


def optimizer(name, **more):
    return lars.lars(4.0, 1e-2, stacked=STACKED, **OPTIONS[name], **more)


@functools.cache
def on_one_device(name):
    return jax.jit(functools.partial(scan, optimizer(name)))(*data())


def assert_alike(actual, expected, name):
    """Sums over devices are rounded in another order. Orthogonalizing makes more of
    that, by the ratio of the largest singular value to the smallest.
    """
    tolerance = 1e-3 if name == "spectral" else 1e-5
    (weights, state), (expected_weights, expected_state) = actual, expected
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights))
    assert_near(weights, expected_weights, tolerance)
    assert_near(state, expected_state, tolerance)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(kind, kind), devices=jax.devices()[:4]
    )


def is_spec(x):
    return isinstance(x, P)


def later(specs):
    """Of gradients, whose first axis counts steps."""
    return jax.tree.map(lambda spec: P(None, *spec), specs, is_leaf=is_spec)


def state_specs(opt, params, specs):
    """The buffer lies as the parameters do, the vectors are everywhere."""
    state = jax.eval_shape(opt.init, params)
    return jax.tree.map(lambda _: P(), state)._replace(trace=specs)


@pytest.mark.parametrize(
    ("kind", "layout", "name"),
    [
        (AxisType.Auto, "fully sharded", "shared"),
        (AxisType.Explicit, "layers and experts apart", "spectral"),
    ],
)
def test_global_arrays_under_jit_need_no_specs(kind, layout, name):
    opt, specs, devices = optimizer(name), LAYOUTS[layout], mesh(kind)

    def place(tree, specs):
        return jax.tree.map(
            lambda spec, x: jax.device_put(x, NamedSharding(devices, spec)),
            specs,
            tree,
            is_leaf=is_spec,
        )

    params, grads = data()
    with jax.set_mesh(devices):
        params, grads = place(params, specs), place(grads, later(specs))
        assert len(params["blocks"]["kernel"].sharding.device_set) == 4
        actual = jax.jit(functools.partial(scan, opt))(params, grads)
    assert_alike(actual, on_one_device(name), name)
    _, state = actual
    for x, like in zip(
        jax.tree.leaves(state.trace), jax.tree.leaves(params), strict=True
    ):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    assert state.trust_ratio.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("layout", "name"),
    [("fully sharded", "shared"), ("layers and experts apart", "spectral")],
)
def test_local_parts_under_shard_map_need_their_specs(layout, name):
    params, grads = data()
    specs = LAYOUTS[layout]
    opt = optimizer(name, partition_specs=specs)
    steps = jax.shard_map(
        functools.partial(scan, opt),
        mesh=mesh(),
        in_specs=(specs, later(specs)),
        out_specs=(later(specs), state_specs(opt, params, specs)),
    )
    assert_alike(jax.jit(steps)(params, grads), on_one_device(name), name)


OPTIMIZERS = {
    "lars": functools.partial(lars.lars, 1.0),
    "polar": functools.partial(lars.polar, 1.0),
    "waking": functools.partial(lars.wake_silent_layers, optax.sgd(1.0)),
}
PARAMS = {"a": jnp.ones((8, 2)), "b": jnp.ones(4)}


def first_updates(specs, of, check_vma, name="lars"):
    """A first step inside of `jax.shard_map` on four devices."""
    opt = OPTIMIZERS[name](partition_specs=specs)
    return jax.shard_map(
        lambda p, g: opt.update(g, opt.init(p), p)[0],
        mesh=jax.make_mesh(
            (4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
        ),
        in_specs=(of, of),
        out_specs=of,
        check_vma=check_vma,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("specs", "of", "check_vma"),
    [
        # Without a check it is not known which arrays are alike everywhere.
        *((None, P(), True), (P(), P(), False)),
        *((P("d"), P("d"), True), (P("d"), P("d"), False)),
    ],
)
def test_inside_shard_map_specs_are_enough(name, specs, of, check_vma):
    update = first_updates(specs, of, check_vma, name)
    assert jax.eval_shape(update, PARAMS, PARAMS) == jax.eval_shape(dict, PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("of", "check_vma"), [(P("d"), True), (P("d"), False), (P(), False)]
)
def test_local_parts_without_their_specs_are_refused(name, of, check_vma):
    # Every device would take the norm of its own part.
    update = first_updates(None, of, check_vma, name)
    message = r"'a' may be the local part.* give partition_specs, .*every device"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(update, PARAMS, PARAMS)


@pytest.mark.parametrize(
    ("specs", "check_vma"), [(None, True), (P(), False), (P("d"), False)]
)
def test_parameters_step_as_on_one_device(specs, check_vma):
    """One spec is that of all parameters."""
    update = first_updates(specs, specs or P(), check_vma)
    params = {"a": jnp.arange(8.0), "b": jnp.ones((4, 2))}
    g = {"a": jnp.ones(8), "b": jnp.ones((4, 2))}
    updates = jax.jit(update)(params, g)
    ratio = 1e-3 * np.linalg.norm(np.arange(8)) / 8**0.5
    np.testing.assert_allclose(updates["a"], -ratio, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"w": P("data")}, "partition_specs must be one PartitionSpec, or a tree"),
        ({"bias": 3}, "partition_specs must be one PartitionSpec, or a tree"),
        (P("data", None, None, None, None), "has more axes than 'bias'"),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_specs_that_do_not_fit_are_refused(name, specs, message):
    optimizer, params = OPTIMIZERS[name](partition_specs=specs), drawn(SHAPES, 0)
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_power_of_two_changes_no_bit_of_the_norms_of_divided_arrays(check_vma):
    specs = [P("data", "model"), P("data", None, "model"), P(("data", "model"))]
    shapes, layers = [(8, 6), (4, 5, 6), (16, 3)], [(), (0,), (1,)]
    axes = [ArrayAxes(a, spec=spec) for a, spec in zip(layers, specs, strict=True)]

    def parts(arrays):
        norm = scaled_l2_norms(arrays, axes)
        return norm.fraction, norm.exponent

    norms = jax.jit(
        jax.shard_map(
            parts,
            mesh=mesh(AxisType.Auto),
            in_specs=(specs,),
            out_specs=(P(), P()),
            check_vma=check_vma,
        )
    )
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def times_power(k):
        fraction, exponent = norms([np.ldexp(x, k) for x in arrays])
        return np.ldexp(np.float64(fraction), exponent)

    expected = times_power(0)
    np.testing.assert_allclose(
        expected[1:5], np.linalg.norm(arrays[1], axis=(1, 2)), rtol=1e-6
    )
    for k in range(-100, 101, 10):
        np.testing.assert_array_equal(times_power(k), np.ldexp(expected, k))


@pytest.mark.parametrize(
    "optimizer",
    [lars.lars(1.0), lars.lars(1.0, 0.1, geometry="spectral"), lars.polar(1.0)],
)
def test_small_arrays_that_are_alike_stay_where_they_lie(optimizer):
    # As one stack, all of them would come out as one of them lies.
    devices = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    specs = P("x"), P(None, "x"), P(), P("x"), P(), P(None, "x")
    params = {
        f"w{i}": {
            "kernel": jax.device_put(jnp.ones((8, 12)), NamedSharding(devices, spec)),
            "bias": jax.device_put(
                jnp.ones(12), NamedSharding(devices, P("x") if i % 2 else P())
            ),
        }
        for i, spec in enumerate(specs)
    }
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    for of_step in (updates, state.trace):
        for x, like in zip(*map(jax.tree.leaves, (of_step, params)), strict=True):
            assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
