"""Kernels and their biases in a tree of parameters, and what the one says of the other.

A kernel is an array of two axes or more, the last of which counts outputs, as in Flax
and Haiku. Where weights are stored the other way round, as in Equinox, what is said
here of inputs is said of outputs.
"""

import collections
import math

import jax
import jax.numpy as jnp
import optax

from lars.norms import unit
from lars.rules import flatten_with_path
from lars.spectral import as_matrices


def kernels_of(params: optax.Params) -> list[int]:
    """Which leaves of a tree are kernels, in the order of the tree."""
    return [i for i, x in enumerate(jax.tree.leaves(params)) if jnp.ndim(x) >= 2]


def biases_of(params: optax.Params) -> dict[int, int]:
    """The bias of each kernel that has one, both by their numbers among the leaves.

    A bias is a vector whose path differs from that of the kernel in the last key only,
    with an element for each of the kernel's outputs; of several, the first. Where
    several kernels lie side by side nothing says whose bias a vector is, and none is.
    """
    named, _ = flatten_with_path(params)
    places = collections.Counter(named[i][0][:-1] for i in kernels_of(params))
    kernels = {
        named[i][0][:-1]: i for i in kernels_of(params) if places[named[i][0][:-1]] == 1
    }
    biases: dict[int, int] = {}
    for i, (path, x) in enumerate(named):
        kernel = kernels.get(path[:-1])
        if kernel is None or jnp.shape(x) != jnp.shape(named[kernel][1])[-1:]:
            continue
        biases.setdefault(kernel, i)
    return biases


def preserving_norm(kernel: jax.Array) -> float:
    r"""The norm of a kernel whose layer keeps the mean square of its inputs.

    Elements of the size :math:`\sqrt{2 / \text{fan-in}}`, as of normal ones for a
    rectifier.

    References:
        He, Zhang, Ren and Sun, `Delving Deep into Rectifiers
        <https://arxiv.org/abs/1502.01852>`_, 2015
    """
    return math.sqrt(2.0 * kernel.shape[-1])


def can_tell_constant_input(bias_gradient: jax.Array) -> jax.Array:
    """Whether the gradient of a kernel can say that its inputs are constant.

    With one output every gradient has the form of one that a constant input makes, and
    with two whose gradients are opposite numbers, as those of a softmax are. Outputs
    that get no gradient beside the others, as those of units that are shut, do not
    count.

    Args:
        bias_gradient: of the kernel's bias, one for each output.

    Returns:
        A boolean of shape [].
    """
    parts = jnp.abs(unit(bias_gradient)[0])  # of any scale, also of subnormal numbers
    return (parts > jnp.finfo(parts.dtype).eps).sum() > 2


def by_constant_input(
    gradient: jax.Array, bias_gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""A kernel's gradient as the part that a constant input makes, and the rest.

    From inputs h and output gradients δ of the images i of a batch, the gradient of a
    kernel is :math:`G = \sum_i h_i \delta_i^\top`, that of its bias
    :math:`b = \sum_i \delta_i`. Constant inputs make :math:`G = h\,b^\top`; the part of
    G of this form is :math:`G\,b b^\top / \|b\|^2`.

    Args:
        gradient: of a kernel, of any shape and scale.
        bias_gradient: of its bias, of the same images.

    Returns:
        The two parts of ``gradient / ‖gradient‖``, each a matrix [inputs, outputs].
    """
    matrix, b = as_matrices(unit(gradient)[0]), unit(bias_gradient)[0]
    # In full precision also where the hardware offers less: the rest may be small.
    across = jnp.matmul(matrix, b, precision=jax.lax.Precision.HIGHEST)
    constant = jnp.outer(across, b)
    return constant, matrix - constant
