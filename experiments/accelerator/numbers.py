"""The optimizers' numbers on this device beside float64 on a CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
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


def rows(small: bool, data: Path | None) -> Iterator[dict[str, Any]]:
    """A row for each kind of optimizer, scale and precision."""
    del data
    # Presets of a family share a rule. One of each takes less to compile.
    of_family = {variant.family: name for name, variant in VARIANTS.items()}
    families = _last_updates(
        {
            name: lambda variant=variant: variant.function(0.1)
            for name, variant in VARIANTS.items()
            if not small or name in of_family.values()
        }
    )
    kinds = [("float32", scales) for scales in SCALES]
    kinds += [(kind, (1.0, 1.0)) for kind in ("bfloat16", "float16")]
    for dtype, scales in kinds:
        scale = "w {:g}, g {:g}".format(*scales)
        for name, error in _errors(families, *_arrays(*scales, dtype)).items():
            yield _row(name, dtype, scale, error, _LIMITS[dtype])
    orthogonal = _last_updates(
        {
            "lars, spectral": lambda: lars(0.1, geometry="spectral"),
            "lars.polar": lambda: polar(0.1),
        }
    )
    for name, error in _errors(orthogonal, *_arrays(1.0, 1.0, "float32")).items():
        yield _row(name, "float32", "w 1, g 1", error, _ORTHOGONAL_LIMIT)
    yield _singular_values()
    yield from _norms()


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


def _last_updates(
    optimizers: dict[str, Callable[[], optax.GradientTransformation]],
) -> Callable[[Any, Any], Any]:
    """The updates of the last step with each, all in one program."""

    @jax.jit
    def last_updates(params: Any, grads: Any) -> Any:
        found = {}
        for name, make in optimizers.items():
            optimizer = make()
            state, updates = optimizer.init(params), params
            for i in range(STEPS):
                g = jax.tree.map(lambda x, i=i: x[i], grads)
                updates, state = optimizer.update(g, state, params)
            found[name] = updates
        return found

    return last_updates


def _errors(
    last_updates: Callable[[Any, Any], Any], params: Any, grads: Any
) -> dict[str, float]:
    """The error of each optimizer."""
    made = jax.device_get(last_updates(params, grads))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, grads))
        right = jax.device_get(last_updates(*wide))
    return {
        name: max(map(_distance, *map(jax.tree.leaves, (made[name], right[name]))))
        for name in made
    }


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
    is_kept = bool((jax.jit(lambda x: 2 * x)(tiny) > 0).all())
    # Where the device takes them for zeros, so may the norm.
    found, right = float(norm(tiny)), 2.0**-139
    error = abs(found - right) / right if is_kept or found else 0.0
    what = f"l2_norm, subnormals {'kept' if is_kept else 'flushed to zero'}"
    yield _row(what, "float32", "2^-140", error, _LIMITS["float32"])
