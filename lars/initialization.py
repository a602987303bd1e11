"""Mending the initialization, before the first step: what optimizers compete with.

Each takes scaled kernels and gives others; biases and all else stay as they are.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lars.init_scales import kernel_positions
from lars.models.model import Model, Variables
from lars.norms import l2_norm
from lars.rules import flatten_with_path, path_string
from lars.spectral import as_matrices, from_matrices

Initialization = Literal["scaled", "rescaled", "lsuv"]

Mend = Callable[[Model, Variables, jax.Array], Any]
"""From a model, its variables and images [B, H, W, C] to parameters."""


def rescaled(model: Model, variables: Variables, images: jax.Array) -> Any:
    r"""Every kernel times what gives it the norm of an initialization that preserves
    variance: :math:`\sqrt{2 / \text{fan-in}}` an element.

    References:
        He, Zhang, Ren and Sun, `Delving Deep into Rectifiers
        <https://arxiv.org/abs/1502.01852>`_, 2015
    """
    del model, images

    def mend(x: jax.Array) -> jax.Array:
        return _unit(x) * math.sqrt(2.0 * x.shape[-1]) if x.ndim >= 2 else x

    return jax.tree.map(mend, variables["params"])


def lsuv(model: Model, variables: Variables, images: jax.Array) -> Any:
    """Layer-sequential unit variance: orthogonal kernels, and outputs of deviation one.

    From the first layer to the last, a kernel is divided by the standard deviation of
    what the layer puts out for the images.

    References:
        Mishkin and Matas, `All you need is a good init
        <https://arxiv.org/abs/1511.06422>`_, 2016
    """
    params = variables["params"]
    named, treedef = flatten_with_path(params)
    kernels = kernel_positions(params)
    leaves = [_orthogonal(x) if i in kernels else x for i, (_, x) in enumerate(named)]
    layers = [path_string(named[i][0]).rpartition("/")[0] for i in kernels]

    def normalize(number: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        seen = {**variables, "params": treedef.unflatten(leaves)}
        outputs = model.outputs(seen, images, None)
        deviations = jnp.stack([jnp.std(outputs[layer]) for layer in layers])
        by = jnp.where(jnp.arange(len(kernels)) == number, deviations, 1)
        by = jnp.where(by > 0, by, 1)
        return [
            x / by[kernels.index(i)] if i in kernels else x
            for i, x in enumerate(leaves)
        ]

    # A layer's outputs are linear in its kernel: dividing once is enough.
    return treedef.unflatten(jax.lax.fori_loop(0, len(kernels), normalize, leaves))


def initialization_named(name: str) -> Mend | None:
    """The function of a name of `Initialization`; None for kernels as they are.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in get_args(Initialization):
        raise ValueError(
            f"initialization must be one of {', '.join(get_args(Initialization))}, "
            f"got {name!r}."
        )
    return {"scaled": None, "rescaled": rescaled, "lsuv": lsuv}[name]


def _unit(x: jax.Array) -> jax.Array:
    size = l2_norm(x)
    return x / jnp.where(size == 0, 1, size)


def _orthogonal(x: jax.Array) -> jax.Array:
    """The orthogonal factor of a kernel, whatever its scale."""
    matrix = as_matrices(_unit(x))
    is_wide = matrix.shape[0] < matrix.shape[1]
    q, r = jnp.linalg.qr(matrix.T if is_wide else matrix)
    # Signs that make the factor that of a matrix with a positive diagonal: as random as
    # the kernel was.
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
    return from_matrices(q.T if is_wide else q, x.shape)
