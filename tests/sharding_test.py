"""Sharded over eight devices, the optimizer does what it does on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lars
from lars.norms import scaled_l2_norms
from lars.sharded import ArrayAxes

SHAPES = {
    "embedding": (16, 8),
    "blocks": {"kernel": (8, 8, 16), "bias": (8, 16)},  # eight layers, stacked
    "experts": (4, 2, 8, 4),  # four by two of them
    "head": {"kernel": (8, 24), "bias": (24,)},
}
LAYOUTS = {
    "replicated": jax.tree.map(
        lambda _: P(), SHAPES, is_leaf=lambda x: type(x) is tuple
    ),
    "fully sharded": {
        "embedding": P(("data", "model")),
        "blocks": {"kernel": P(None, "data", "model"), "bias": P(None, "data")},
        "experts": P(None, None, ("data", "model")),
        "head": {"kernel": P("model", "data"), "bias": P(("data", "model"))},
    },
    "tensor parallel": {
        "embedding": P(None, "model"),
        "blocks": {"kernel": P(None, None, "model"), "bias": P(None, "model")},
        "experts": P(None, None, None, "model"),
        "head": {"kernel": P(None, "model"), "bias": P("model")},
    },
    "layers and experts apart": {
        "embedding": P("data"),
        "blocks": {"kernel": P("data", None, "model"), "bias": P("data")},
        "experts": P("data", "model"),
        "head": {"kernel": P(), "bias": P("model")},
    },
}
OPTIONS = {
    "paper": {},
    "shared": {"layer": lambda path: str(path[0].key)},
    "decayed norm": {"denominator": "decayed", "eps": 0.1},
    "update norm": {"denominator": "update", "momentum_of": "gradient"},
    "spectral": {"geometry": "spectral"},
    "excluding": {
        "trust_ratio_mask": lars.select(path="kernel|embedding"),
        "weight_decay_mask": lars.select(path="kernel"),
        "weight_decay_kind": "outside",
    },
}
STACKED = ((lars.select(path="blocks"), 0), (lars.select(path="experts"), (0, 1)))


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: type(x) is tuple,
    )


def data():
    params, grads = tree(0), [tree(i + 1) for i in range(3)]
    params["head"]["bias"] *= 0
    # Norms that need the second pass, of different parts in different steps.
    grads[1]["blocks"]["kernel"][3] *= 1e30
    grads[1]["head"]["kernel"] *= 1e-30
    grads[2]["experts"][2, 1] *= 1e25
    grads[2]["embedding"][5, 5] = np.nan
    return params, grads


def optimizer(name, **more):
    return lars.lars(4.0, 1e-2, stacked=STACKED, **OPTIONS[name], **more)


def steps(update, params, state, grads):
    every = []
    for g in grads:
        updates, state = update(g, state, params)
        every.append(updates)
        params = jax.tree.map(jnp.add, params, updates)
    return every, params, state


@functools.cache
def on_one_device(name):
    params, grads = data()
    opt = optimizer(name)
    return steps(jax.jit(opt.update), params, opt.init(params), grads)


def assert_same(actual, expected):
    def compare(a, e):
        a, e = np.asarray(a), np.asarray(e)
        np.testing.assert_allclose(
            a, e, rtol=1e-6, atol=1e-6 * np.abs(e).max(initial=0)
        )

    jax.tree.map(compare, actual, expected)


def mesh(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def state_specs(opt, params, specs):
    """The buffer lies as the parameters do, the vectors are everywhere."""
    state = jax.eval_shape(opt.init, params)
    return jax.tree.map(lambda _: P(), state)._replace(trace=specs)


COMBINATIONS = [(layout, "paper") for layout in LAYOUTS] + [
    ("layers and experts apart", name) for name in OPTIONS if name != "paper"
]


@pytest.mark.parametrize(("layout", "name"), COMBINATIONS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_global_arrays_under_jit(kind, layout, name):
    params, grads = data()
    opt = optimizer(name)
    devices = mesh(kind)
    place = functools.partial(
        jax.tree.map,
        lambda spec, x: jax.device_put(x, NamedSharding(devices, spec)),
        LAYOUTS[layout],
        is_leaf=lambda x: isinstance(x, P),
    )
    with jax.set_mesh(devices):
        params, grads = place(params), [place(g) for g in grads]
        actual = steps(jax.jit(opt.update), params, opt.init(params), grads)
    assert_same(actual, on_one_device(name))


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("fully sharded", AxisType.Auto),
        ("tensor parallel", AxisType.Auto),
        # Here XLA would be free to divide what is not divided yet.
        ("layers and experts apart", AxisType.Explicit),
    ],
)
def test_the_state_lies_as_the_parameters_do(layout, kind):
    params, grads = data()
    opt = optimizer("paper")
    devices = mesh(kind)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(devices, spec),
        LAYOUTS[layout],
        is_leaf=lambda x: isinstance(x, P),
    )
    with jax.set_mesh(devices):
        params = jax.tree.map(jax.device_put, params, shardings)
        gradient = jax.tree.map(jax.device_put, grads[0], shardings)
        state = opt.init(params)
        updates, state = jax.jit(opt.update)(gradient, state, params)

    def assert_alike(x, sharding):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)

    jax.tree.map(assert_alike, updates, shardings)
    jax.tree.map(assert_alike, state.trace, shardings)
    assert state.telemetry.trust_ratio.is_fully_replicated


@pytest.mark.parametrize(("layout", "name"), COMBINATIONS)
def test_local_parts_under_shard_map(layout, name):
    params, grads = data()
    specs = LAYOUTS[layout]
    opt = optimizer(name, partition_specs=specs)
    state = opt.init(params)
    states = state_specs(opt, params, specs)
    update = jax.shard_map(
        opt.update,
        mesh=mesh(AxisType.Auto),
        in_specs=(specs, states, specs),
        out_specs=(specs, states),
    )
    assert_same(steps(jax.jit(update), params, state, grads), on_one_device(name))


def test_without_the_specs_local_norms_are_an_error_or_wrong():
    # What the specs are for: without them every device has a ratio of its own.
    params, grads = data()
    specs = LAYOUTS["fully sharded"]
    opt = optimizer("paper")
    run = jax.shard_map(
        lambda p, g: opt.update(g, opt.init(p), p)[0],
        mesh=mesh(AxisType.Auto),
        in_specs=(specs, specs),
        out_specs=specs,
        check_vma=False,
    )
    kernel = jax.jit(run)(params, grads[0])["head"]["kernel"]
    right = on_one_device("paper")[0][0]["head"]["kernel"]
    assert np.abs(kernel / right - 1).max() > 0.1


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"w": P("data")}, "partition_specs must be one PartitionSpec, or a tree"),
        ({"embedding": 3}, "partition_specs must be one PartitionSpec, or a tree"),
        (P("data", None, None, None, None), "has more axes than 'blocks/bias'"),
    ],
)
def test_specs_that_do_not_fit_are_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        lars.lars(1.0, partition_specs=specs).init(tree(0))


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_power_of_two_changes_no_bit_of_the_norms_of_divided_arrays(check_vma):
    specs = [P("data", "model"), P("data", None, "model"), P(("data", "model"))]
    shapes, layers = [(8, 6), (4, 5, 6), (16, 3)], [(), (0,), (1,)]
    axes = [ArrayAxes(a, spec=spec) for a, spec in zip(layers, specs, strict=True)]
    norms = jax.jit(
        jax.shard_map(
            lambda arrays: tuple(scaled_l2_norms(arrays, axes)),
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
