"""`lars.polar` and `lars.wake_silent_layers` with what else a program is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

import lars

RATE = 0.2
# Whether directions yield depends on rounding where a kernel was just moved to the size
# from which on they do.
POLAR = lars.polar(RATE, yielding=0.0, steps=1)


def compiled(optimizer):
    """The optimizer with an update that is compiled once, whatever is around it."""
    return optax.GradientTransformationExtraArgs(
        optimizer.init, jax.jit(optax.with_extra_args_support(optimizer).update)
    )


WAKING = compiled(lars.wake_silent_layers(POLAR, patience=1))
POLAR = compiled(POLAR)


def tree(seed, scale=1.0):
    """Like the parameters of a convolution, its normalization, and two layers."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 8), "bias": (8,)},
        "norm": {"scale": (8,), "bias": (8,)},
        "hidden": {"kernel": (8, 8), "bias": (8,)},
        "output": {"kernel": (8, 8), "bias": (8,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: type(x) is tuple,
    )


def gradients():
    """Of five steps; in one a kernel has none, and in the next not all is finite."""
    every = [tree(i + 1) for i in range(5)]
    every[1]["hidden"]["kernel"] *= 0
    every[2]["output"]["bias"] *= jnp.nan
    return every


def run(optimizer, params, grads):
    state, every = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):  # wrappers mix floats and integers
        for g in grads:
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
            every.append(updates)
    return every, state


@functools.cache
def alone():
    """What waking does without anything around it."""
    # Of sizes that may be to blame: usual ones are left alone.
    return run(WAKING, tree(0, 1e3), gradients())


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        actual,
        expected,
    )


WRAPPED = {
    "chain": lambda: optax.chain(optax.identity(), WAKING),
    "masked": lambda: optax.masked(WAKING, True),
    "partition": lambda: optax.partition({"all": WAKING}, "all"),
    "inject_hyperparams": lambda: compiled(
        lars.wake_silent_layers(
            optax.inject_hyperparams(lars.polar, static_args=("steps",))(
                RATE, yielding=0.0, steps=1
            ),
            patience=1,
        )
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_in_the_wrappers_of_optax_it_does_the_same(name):
    expected, state = alone()
    # Not finite right after a move: that is taken back.
    np.testing.assert_array_equal(state.reasons, [0, 1, 0, 0])
    actual, _ = run(WRAPPED[name](), tree(0, 1e3), gradients())
    assert_close(actual, expected)


def test_around_multi_steps_it_forgets_what_is_not_finite():
    # MultiSteps alone adds to a mean that stays what it is: not finite.
    multi = optax.MultiSteps(optax.sgd(RATE), 2).gradient_transformation()
    good = gradients()
    grads = [good[0], good[2], good[3], good[4], good[3], good[4]]
    broken, _ = run(compiled(multi), tree(0), grads)
    assert not np.isfinite(broken[-1]["output"]["bias"]).any()
    mended, state = run(compiled(lars.wake_silent_layers(multi)), tree(0), grads)
    np.testing.assert_array_equal(state.reasons, [1, 0, 0, 0])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(mended))
    # It goes on: one of two calls makes a step.
    assert any(x.any() for x in jax.tree.leaves(mended[-2:]))


def test_steps_that_are_no_integer_point_to_static_arguments():
    injected = optax.inject_hyperparams(lars.polar)(RATE, steps=3)
    with pytest.raises(TypeError, match=r'static_args=\("steps",\)'):
        injected.init(tree(0))


def test_what_is_kept_out_is_not_looked_at():
    # A kernel that is not trained, and gets no gradient: it would look silent.
    frozen = {"kernel": jnp.ones((5, 4))}
    params = {"old": frozen, "new": tree(0, 1e3)}
    grads = [{"old": {"kernel": jnp.zeros((5, 4))}, "new": g} for g in gradients()]
    mask = {"old": False, "new": True}
    actual, state = run(optax.masked(WAKING, mask), params, grads)
    expected, plain = alone()
    assert_close([step["new"] for step in actual], expected)
    np.testing.assert_array_equal(state.inner_state.reasons, plain.reasons)


def test_in_an_nnx_optimizer():
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, WAKING, wrt=nnx.Param)
    state = nnx.state(model, nnx.Param)
    optimizer.update(model, jax.tree.map(lambda x: x * jnp.nan, state))
    moved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = jax.tree.map(lambda x: x * jnp.nan, before)
    (expected,), _ = run(WAKING, before, [grads])
    assert_close(moved, optax.apply_updates(before, expected))
    assert np.isfinite(moved["kernel"]).all()


def test_sharded_under_jit_it_does_what_it_does_on_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(x):  # along the first axis that divides
        axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), x.ndim)
        spec = P(*(None,) * axis, *("data",) * (axis < x.ndim))
        return jax.device_put(x, NamedSharding(mesh, spec))

    args = jax.tree.map(put, (tree(0, 1e3), gradients()))
    actual, there = run(WAKING, *args)
    assert len(actual[0]["hidden"]["kernel"].sharding.device_set) == 8
    expected, state = alone()
    # An update that gives scales back is the small difference of two large ones.
    assert_close(jax.device_get(actual), jax.device_get(expected), atol=1e-2)
    np.testing.assert_array_equal(there.reasons, state.reasons)


def test_the_kernel_of_a_convolution_is_the_matrix_of_its_inputs_and_outputs():
    def flat(tree):
        kernel = tree["conv"]["kernel"].reshape(18, 8)
        return {**tree, "conv": {**tree["conv"], "kernel": kernel}}

    params, grads = tree(0), gradients()
    updates, _ = run(POLAR, params, grads)
    expected, _ = run(POLAR, flat(params), [flat(g) for g in grads])
    for actual, other in zip(updates, expected, strict=True):
        np.testing.assert_allclose(
            flat(actual)["conv"]["kernel"], other["conv"]["kernel"], rtol=1e-4
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_in_half_precision_steps_are_those_of_single_precision(dtype, scale):
    params, grads = tree(0, scale), gradients()[:1]
    half = optax.tree.cast(params, dtype)
    same = optax.tree.cast(half, jnp.float32)
    half_grads = [optax.tree.cast(g, dtype) for g in grads]
    same_grads = [optax.tree.cast(g, jnp.float32) for g in half_grads]
    (actual,), _ = run(POLAR, half, half_grads)
    (expected,), _ = run(POLAR, same, same_grads)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == dtype
        error = lars.l2_norm(a.astype(jnp.float32) - b) / lars.l2_norm(b)
        assert error < float(jnp.finfo(dtype).eps)
