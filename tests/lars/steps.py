"""Parameters, learning rates, runs and comparisons that tests of optimizers share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lars

RATES = [3.0, 10.0, 7.0, 0.5, 4.0]
"""A learning rate that changes, which shows whether the buffer holds it."""


NO = lars.select(path="no", required=False)
OPTIONS = {
    "defaults": {},
    "coupled": {
        **{"eps": 0.5, "layer": "module", "denominator": "decayed", "clip": True},
        **{"nesterov": True, "trust_ratio_bounds": (2.0, 3.0), "direction_bound": 1e9},
    },
    "outside": {
        **{"weight_decay_kind": "outside", "momentum_of": "direction"},
        **{"denominator": "gradient", "zero_norm": "plain", "zero_gradient": "plain"},
        **{"layer": [NO], "stacked": [(NO, 0)]},
    },
    "of the update": {
        **{"denominator": "update", "momentum_of": "gradient"},
        "partition_specs": jax.sharding.PartitionSpec(),
        "accumulator_dtype": jnp.float32,
    },
    "no momentum": {"momentum": 0.0, "layer": lambda path: path[0]},
    "spectral": {"geometry": "spectral", "output_axes": [(NO, 0)]},
}
"""Together all options; each set is of a kind of its own."""


def schedule(count):
    """The rate of each step."""
    return jnp.asarray(RATES)[count]


def normal(seed, *shape):
    """An array of normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(shapes, seed, scale=1.0, dtype=np.float32):
    """A tree with normal numbers in the place of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (scale * rng.standard_normal(shape)).astype(dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def tree(seed, scale=1.0, dtype=np.float32):
    """Parameters of three layers and two biases; no two trees are parallel."""
    shapes = {
        "first": {"kernel": (5, 4), "bias": (4,)},
        "second": {"kernel": (3, 4, 2)},
        "third": {"kernel": (2, 3), "bias": (3,)},
    }
    return drawn(shapes, seed, scale, dtype)


def stacked(trees):
    """One tree of trees that are alike, along a new first axis."""
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def joint(*arrays):
    """The norm of all elements of all arrays."""
    return np.sqrt(sum(np.sum(np.asarray(a, np.float64) ** 2) for a in arrays))


def scan(optimizer, params, gradients, read=None):
    """The parameters after each step, stacked, and the last state; to be compiled.

    With `read`, pairs of the parameters and of what it returns for each state.
    """

    def step(carry, g):
        updates, state = optimizer.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), (params, read(state)) if read else params

    (_, state), trajectory = jax.lax.scan(
        step, (params, optimizer.init(params)), gradients
    )
    return trajectory, state


@functools.cache
def compiled_scan(optimizer):
    """Compiled once for all runs of an optimizer."""
    return jax.jit(functools.partial(scan, optimizer))


def run(optimizer, params, gradients):
    """The parameters after each step, in a list, and the last state."""
    trajectory, state = compiled_scan(optimizer)(params, stacked(gradients))
    trajectory = jax.tree.map(np.asarray, trajectory)
    return [
        jax.tree.map(lambda x, i=i: x[i], trajectory) for i in range(len(gradients))
    ], state


@functools.cache
def compiled_first_step(optimizer):
    """Compiled once for all first steps of an optimizer."""
    return jax.jit(lambda g, w: optimizer.update(g, optimizer.init(w), w))


def first_step(optimizer, gradients, params):
    """The updates and the state of the first step."""
    return compiled_first_step(optimizer)(gradients, params)


def assert_trees_close(actual, expected, rtol=1e-6, atol=0.0):
    """All numbers of two trees, compared in float64."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(e, np.float64), rtol, atol
        ),
        actual,
        expected,
    )


def assert_near(actual, expected, relative):
    """All numbers of two trees, within a part of the largest one of their array."""

    def compare(a, e):
        a, e = np.float64(a), np.float64(e)
        largest = np.nanmax(np.abs(e), initial=0)
        np.testing.assert_allclose(a, e, relative, relative * largest)

    jax.tree.map(compare, actual, expected)


def assert_same(actual, expected):
    """To the bit, in the same dtypes and the same structure."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(e)
        np.testing.assert_array_equal(a, e)
