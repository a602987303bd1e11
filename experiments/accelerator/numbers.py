"""The optimizers' numbers on this device beside float64 on a CPU."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.norms import l2_norm
from lars.optimizer import lars
from lars.polar_optimizer import polar
from lars.presets import VARIANTS
from lars.spectral import orthogonalize

COLUMNS = ("what", "dtype", "scale", "error", "limit", "holds")
"""``error``: of an update, the norm of its difference from that of float64, relative to
the norm of the latter, in the parameter where it is largest."""

STEPS = 3

SCALES = ((1.0, 1.0), (1e-15, 1e-25), (1e15, 1e25))
"""Of weights and of gradients; squares of the last four leave the range of float32."""

_LIMITS = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.003}
"""A few roundings of the parameter's own precision, and of the sums in float32."""

_ORTHOGONAL_LIMIT = 1e-4
"""Newton-Schulz steps multiply rounding. Matrix products of fewer bits than float32's,
which some devices take by default, would miss it by far."""


def rows(small: bool) -> Iterator[dict[str, Any]]:
    """A row for each kind of optimizer, scale and precision."""
    yield from _norms()
    yield _singular_values()
    one = (1.0, 1.0)
    for name, make in (
        ("lars, spectral", lambda: lars(0.1, geometry="spectral")),
        ("lars.polar", lambda: polar(0.1)),
    ):
        error = _error(_last_update(make), *_arrays(*one, "float32"))
        yield _row(name, "float32", "w 1, g 1", error, _ORTHOGONAL_LIMIT)
    kinds = [("float32", scales) for scales in SCALES]
    kinds += [("bfloat16", one), ("float16", one)]
    # Presets of a family share a rule: the last of each.
    of_family = {variant.family: name for name, variant in VARIANTS.items()}
    for family, name in list(of_family.items())[: 2 if small else None]:
        update = _last_update(functools.partial(VARIANTS[name].function, 0.1))
        for dtype, scales in kinds:
            error = _error(update, *_arrays(*scales, dtype))
            scale = "w {:g}, g {:g}".format(*scales)
            yield _row(f"{family}: {name}", dtype, scale, error, _LIMITS[dtype])


def _row(what: str, dtype: str, scale: str, error: float, limit: float) -> dict:
    numbers = {"error": error, "limit": limit, "holds": error <= limit}
    return {"what": what, "dtype": dtype, "scale": scale, **numbers}


def _arrays(weight_scale: float, gradient_scale: float, dtype: str) -> tuple[Any, Any]:
    """Parameters, and gradients [STEPS, ...] of as many steps."""
    random = np.random.default_rng(0)
    shapes = {"dense": (96, 64), "conv": (3, 3, 8, 16), "bias": (64,)}

    def draw(scale: float, *first: int) -> Any:
        return {
            name: (scale * random.standard_normal((*first, *shape))).astype(
                jnp.dtype(dtype)
            )
            for name, shape in shapes.items()
        }

    return draw(weight_scale), draw(gradient_scale, STEPS)


def _last_update(
    make: Callable[[], optax.GradientTransformation],
) -> Callable[[Any, Any], Any]:
    """The update of the last step, as a program."""

    @jax.jit
    def last_update(params: Any, grads: Any) -> Any:
        optimizer = make()
        state, updates = optimizer.init(params), params
        for i in range(STEPS):
            g = jax.tree.map(lambda x, i=i: x[i], grads)
            updates, state = optimizer.update(g, state, params)
        return updates

    return last_update


def _error(last_update: Callable[[Any, Any], Any], params: Any, grads: Any) -> float:
    """The largest error of a parameter; NaN if one of them is not finite."""
    made = jax.device_get(last_update(params, grads))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, grads))
        right = jax.device_get(last_update(*wide))
    # Python's maximum would pass over NaN.
    return float(np.max(jax.tree.leaves(jax.tree.map(_distance, made, right))))


def _distance(x: Any, right: np.ndarray) -> float:
    """Relative, of arrays whose squares may leave the range."""
    x, scale = np.asarray(x, np.float64), np.abs(right).max()
    return float(np.linalg.norm((x - right) / scale) / np.linalg.norm(right / scale))


def _singular_values() -> dict[str, Any]:
    """How far from one they are after eight Newton-Schulz steps."""
    x = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    factor = np.asarray(jax.jit(lambda x: orthogonalize(x, steps=8))(x), np.float64)
    error = np.abs(np.linalg.svd(factor, compute_uv=False) - 1).max()
    return _row(
        "orthogonalize, 8 steps", "float32", "1", float(error), _ORTHOGONAL_LIMIT
    )


def _norms() -> Iterator[dict[str, Any]]:
    """Norms over the range of float32; of subnormal numbers, if there are any here."""
    x = np.random.default_rng(0).standard_normal(1000)
    norm = jax.jit(l2_norm)
    for scale in (1e-37, 1e-20, 1.0, 1e20, 1e36):
        scaled = np.asarray(scale * x, np.float32)
        right = np.array([np.linalg.norm(scaled.astype(np.float64))])
        error = _distance([norm(scaled)], right)
        yield _row("l2_norm", "float32", f"{scale:g}", error, _LIMITS["float32"])
    tiny = np.full(4, 2.0**-140, np.float32)
    is_kept = bool((jax.device_get(jax.jit(lambda x: 2 * x)(tiny)) > 0).all())
    error = abs(float(norm(tiny)) - 2.0**-139) / 2.0**-139
    what = f"l2_norm, where subnormals are {'kept' if is_kept else 'flushed to zero'}"
    yield _row(what, "float32", "2^-140", error, _LIMITS["float32"])
