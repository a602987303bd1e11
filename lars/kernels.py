"""Kernels and their biases in a tree of parameters, and constant inputs of layers.

A kernel is an array of two axes or more. By default the last axis counts its outputs,
as in Flax and Haiku. In Equinox the first axis does: without ``output_axes``, inputs
and outputs are taken for each other there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.layers import AxesRules, selected_axes
from lars.norms import unit
from lars.rules import flatten_with_path
from lars.spectral import as_matrices


class Kernel(NamedTuple):
    """A leaf of a tree that is a kernel, or a stack of them, and its axes."""

    leaf: int  # its number among the leaves
    layer_axes: tuple[int, ...] = ()  # each index is a kernel of its own; ascending
    output_axes: tuple[int, ...] = (-1,)  # the rest counts inputs; ascending


class Roles(NamedTuple):
    """The kernels and the biases among the leaves of a tree."""

    kernels: list[Kernel]  # in the order of the tree
    biases: dict[int, int]  # the bias of each kernel that has one, both as leaves
    layer_axes: list[tuple[int, ...]]  # of every leaf; ascending


def roles_of(
    params: optax.Params, stacked: AxesRules = (), output_axes: AxesRules = ()
) -> Roles:
    """Which leaves of a tree are kernels, and which are their biases.

    A kernel has two axes or more beside those that index layers. Its bias is an array
    whose path differs in the last key only, with an element for each output in each
    layer; of several, the first. Kernels that lie side by side have no bias.

    The last axis counts outputs, unless ``output_axes`` names others or a bias shows
    them: one with the shape of the kernel's last few axes, as [heads, features] beside
    an attention kernel [inputs, heads, features], where no other kernel lies.

    Args:
        params: arrays, or anything with shapes.
        stacked: which axes index layers. A bias that is not selected has them where its
            shape says so.
        output_axes: which of the others count outputs; ``()`` is for a single output.

    Raises:
        ValueError: for axes that do not fit an array.
    """
    named, _ = flatten_with_path(params)
    axes = selected_axes(params, stacked, output_axes)
    arrays = [
        _Array(np.shape(x), tuple(sorted(layers)), outputs)
        for (_, x), (layers, outputs) in zip(named, axes, strict=True)
    ]
    modules: dict[Any, list[int]] = {}
    for i, (path, _) in enumerate(named):
        modules.setdefault(path[:-1], []).append(i)
    kernels, biases = [], {}
    for members in modules.values():
        large = [
            i for i in members if len(arrays[i].others) > 1 and 0 not in arrays[i].shape
        ]
        if not large:
            continue
        top = max(large, key=lambda i: len(arrays[i].shape))
        outputs, of_top = _with_biases(arrays, top, members)
        if set(large) <= {top, *of_top}:
            kernels.append(Kernel(top, arrays[top].layer_axes, outputs))
            biases |= {top: min(of_top)} if of_top else {}
            for i, bias in of_top.items():
                arrays[i] = bias
        else:
            kernels += [
                Kernel(i, arrays[i].layer_axes, arrays[i].usual_outputs) for i in large
            ]
    layer_axes = [x.layer_axes for x in arrays]
    return Roles(sorted(kernels), dict(sorted(biases.items())), layer_axes)


def kernels_of(
    params: optax.Params, stacked: AxesRules = (), output_axes: AxesRules = ()
) -> list[Kernel]:
    """Which leaves of a tree are kernels, see `roles_of`."""
    return roles_of(params, stacked, output_axes).kernels


def biases_of(
    params: optax.Params, stacked: AxesRules = (), output_axes: AxesRules = ()
) -> dict[int, int]:
    """The bias of each kernel that has one, both as leaves, see `roles_of`."""
    return roles_of(params, stacked, output_axes).biases


class _Array(NamedTuple):
    shape: tuple[int, ...]
    layer_axes: tuple[int, ...]
    output_axes: tuple[int, ...] | None  # None where nothing is said

    @property
    def others(self) -> tuple[int, ...]:
        """The axes that do not index layers."""
        return tuple(i for i in range(len(self.shape)) if i not in self.layer_axes)

    @property
    def usual_outputs(self) -> tuple[int, ...]:
        named = self.output_axes
        return self.others[-1:] if named is None else tuple(sorted(named))

    def as_bias(self, kernel: "_Array", outputs: tuple[int, ...]) -> "_Array | None":
        """With its layer axes, if it is the bias of a kernel with these output axes."""
        kept = sorted(kernel.layer_axes + outputs)
        layers = self.layer_axes or tuple(map(kept.index, kernel.layer_axes))
        bias = self._replace(layer_axes=layers)
        if len(layers) != len(kernel.layer_axes) or len(self.shape) != len(kept):
            return None
        shape = [self.shape[axis] for axis in layers + bias.others]
        needed = [kernel.shape[axis] for axis in kernel.layer_axes + outputs]
        return bias if shape == needed else None


def _with_biases(
    arrays: Sequence[_Array], kernel: int, members: Sequence[int]
) -> tuple[tuple[int, ...], dict[int, _Array]]:
    """A kernel's output axes, and all members of its module that could be its bias."""
    x = arrays[kernel]
    choices = [x.usual_outputs]
    if x.output_axes is None:
        choices += [x.others[-n:] for n in range(2, len(x.others))]
    for outputs in choices:
        beside = {i: arrays[i].as_bias(x, outputs) for i in members if i != kernel}
        found = {i: bias for i, bias in beside.items() if bias is not None}
        if found and len(outputs) < len(x.others):
            return outputs, found
    return x.usual_outputs, {}


def preserving_norm(kernel: Any, output_axes: Sequence[int] = (-1,)) -> float:
    r"""The norm of a kernel that keeps the mean square of what rectifiers hand on.

    It is :math:`\sqrt{2 \cdot \text{outputs}}`, the norm of normal elements with the
    standard deviation :math:`\sqrt{2 / \text{inputs}}`.

    Args:
        kernel: an array, or anything with its shape.
        output_axes: those that count outputs.

    References:
        He, Zhang, Ren and Sun, `Delving Deep into Rectifiers
        <https://arxiv.org/abs/1502.01852>`_, 2015
    """
    return math.sqrt(2.0 * math.prod(kernel.shape[axis] for axis in output_axes))


def can_tell_constant_input(bias_gradient: jax.Array) -> jax.Array:
    """Whether a kernel's gradient can show that its inputs are constant, shape [].

    With one output it cannot, nor with two whose gradients are opposite numbers, as
    behind a softmax: a constant input makes all such gradients. Outputs without a
    gradient, as those of rectifiers that are shut, do not count.
    """
    parts = jnp.abs(unit(bias_gradient)[0])  # of any scale, also of subnormal numbers
    return (parts > jnp.finfo(parts.dtype).eps).sum() > 2


def by_constant_input(
    gradient: jax.Array,
    bias_gradient: jax.Array,
    output_axes: Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""A kernel's gradient as the part that a constant input makes, and the rest.

    .. math::
        G = \sum_i h_i \delta_i^\top = G\,\frac{b b^\top}{\|b\|^2} + \text{rest},
        \qquad b = \sum_i \delta_i

    is the gradient of a kernel, and b that of its bias, from the inputs :math:`h_i` and
    the output gradients :math:`\delta_i` of a batch. Of constant inputs the rest is 0.

    Args:
        gradient: of a kernel, of any shape and scale.
        bias_gradient: of its bias, of the same batch.
        output_axes: of the kernel; None is the last.

    Returns:
        The two parts of ``gradient / ‖gradient‖``, each a matrix [inputs, outputs].
    """
    matrix = as_matrices(unit(gradient)[0], (), output_axes)
    return split_by_input(matrix, unit(bias_gradient)[0].ravel())


def split_by_input(matrix: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`by_constant_input` of a gradient [inputs, outputs] and a bias', of norm one."""
    # In full precision also where the hardware offers less: the rest may be small.
    across = jnp.matmul(matrix, b, precision=jax.lax.Precision.HIGHEST)
    constant = jnp.outer(across, b)
    return constant, matrix - constant
