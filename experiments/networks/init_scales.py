"""Initial scales: how far each layer starts from the variance-preserving size.

A profile turns one number, the initial scale s, into a factor for every layer's kernel;
`scale_kernels` multiplies the kernels by the factors.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.checks import check_name
from lars.kernels import kernels_of

Profile = Callable[[float, int, int], np.ndarray]


def profile_scales(
    profile: str, init_scale: float, num_kernels: int, seed: int
) -> np.ndarray:
    """The factor of every kernel, in the order of `kernel_positions`.

    ==============  ==================================================================
    ``all``         every kernel × s
    ``first``       the first kernel × s, the others × 1
    ``middle``      the same for kernel number ``num_kernels // 2``, counted from 0
    ``last``        the same for the last kernel
    ``alternating``  s, 1/s, s, 1/s, ...
    ``log_uniform``  each independently, log-uniform in [1/s, s], drawn from the seed
    ==============  ==================================================================

    Args:
        profile: one of the names above.
        init_scale: s, positive and finite in float32 together with its inverse.
        num_kernels: how many kernels the network has.
        seed: of the draw in ``log_uniform``.

    Returns:
        float32 array of shape [num_kernels].
    """
    check_name("init_scale profile", profile, PROFILES)
    if not 1e-37 <= init_scale <= 1e37:
        raise ValueError(f"init_scale must be within 1e-37 to 1e37, got {init_scale}.")
    return PROFILES[profile](init_scale, num_kernels, seed).astype(np.float32)


def scale_kernels(params: Any, scales: jax.Array) -> Any:
    """Multiplies each layer's kernel by its factor, in the order of `kernel_positions`.

    Biases and normalization stay as they are.
    """
    leaves, treedef = jax.tree.flatten(params)
    kernels = kernel_positions(params)
    if scales.shape != (len(kernels),):
        raise ValueError(
            f"{len(kernels)} kernels need as many scales, got shape {scales.shape}."
        )
    for number, position in enumerate(kernels):
        leaf = leaves[position]
        leaves[position] = leaf * scales[number].astype(leaf.dtype)
    return treedef.unflatten(leaves)


def kernel_positions(params: Any) -> list[int]:
    """Which leaves are kernels, in the order of their paths.

    There numbers count as numbers: ``hidden_2`` comes before ``hidden_10``. In plain
    networks this is from the first layer to the last. In residual ones it is not: there
    the first kernels are those of attention, or of blocks.
    """
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)

    def natural_order(position: int) -> list[tuple[int, int, str]]:
        name = jax.tree_util.keystr(paths_and_leaves[position][0])
        parts = re.findall(r"\d+|\D+", name)
        return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]

    kernels = (kernel.leaf for kernel in kernels_of(params))
    return sorted(kernels, key=natural_order)


def _only(position: int, init_scale: float, num_kernels: int) -> np.ndarray:
    scales = np.ones(num_kernels)
    scales[position] = init_scale
    return scales


def _log_uniform(init_scale: float, num_kernels: int, seed: int) -> np.ndarray:
    bound = abs(np.log(init_scale))
    return np.exp(np.random.default_rng(seed).uniform(-bound, bound, num_kernels))


PROFILES: dict[str, Profile] = {
    "all": lambda s, n, seed: np.full(n, s),
    "first": lambda s, n, seed: _only(0, s, n),
    "middle": lambda s, n, seed: _only(n // 2, s, n),
    "last": lambda s, n, seed: _only(n - 1, s, n),
    "alternating": lambda s, n, seed: s ** np.where(np.arange(n) % 2 == 0, 1.0, -1.0),
    "log_uniform": _log_uniform,
}
