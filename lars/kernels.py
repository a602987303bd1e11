"""Kernels and their biases in a tree of parameters, and what the one says of the other.

A kernel is an array of two axes or more. Where nothing else is said, the last of them
counts outputs, as in Flax and Haiku. Where weights are stored the other way round, as
in Equinox, what is said here of inputs is said of outputs.
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
    """A leaf of a tree that is a kernel, or many of them, and what its axes count."""

    leaf: int  # its number among the leaves
    layer_axes: tuple[int, ...] = ()  # each index is a kernel of its own; ascending
    output_axes: tuple[int, ...] = (-1,)  # the rest counts inputs; ascending


class Roles(NamedTuple):
    """What the leaves of a tree are."""

    kernels: list[Kernel]  # in the order of the tree
    biases: dict[int, int]  # the bias of each kernel that has one, both as leaves
    layer_axes: list[tuple[int, ...]]  # of every leaf; ascending


def roles_of(
    params: optax.Params, stacked: AxesRules = (), output_axes: AxesRules = ()
) -> Roles:
    """Which leaves of a tree are kernels, and which are whose bias.

    A kernel has two axes or more beside those that index layers. A bias is an array
    whose path differs from that of the kernel in the last key only, with an element for
    each of the kernel's outputs, in each of its layers; of several, the first. Where
    several kernels lie side by side nothing says whose bias an array is, and none is.

    The outputs of a kernel are its last axis, unless ``output_axes`` says otherwise, or
    a bias does: where all that lies beside it and could be a kernel is smaller, and of
    the shape of its last few axes, these are its outputs and that is its bias, as
    the bias [heads, features] of an attention kernel [inputs, heads, features].

    Args:
        params: arrays, or anything with shapes.
        stacked: which axes index layers. A bias that is not selected has them where its
            shape says so.
        output_axes: which of the other axes count outputs; an empty tuple is for one
            output.

    Raises:
        ValueError: for axes that an array does not have, that are named twice or that
            index layers as well.
    """
    named, _ = flatten_with_path(params)
    shapes = [np.shape(x) for _, x in named]
    axes = selected_axes(params, stacked, output_axes)
    layers = [tuple(sorted(of_layers)) for of_layers, _ in axes]
    outputs = [None if out is None else tuple(sorted(out)) for _, out in axes]
    modules: dict[Any, list[int]] = {}
    for i, (path, _) in enumerate(named):
        modules.setdefault(path[:-1], []).append(i)
    arrays = [_Array(*x) for x in zip(shapes, layers, outputs, strict=True)]
    kernels, biases = [], {}
    for members in modules.values():
        large = [
            i
            for i in members
            if len(arrays[i].others) >= 2 and math.prod(shapes[i]) > 0
        ]
        if not large:
            continue
        top = max(large, key=lambda i: len(shapes[i]))
        choice, of_top = _with_bias(arrays, top, members)
        if all(i == top or i in of_top for i in large):
            kernels.append(Kernel(top, layers[top], choice))
            for bias, axes in reversed(of_top.items()):
                biases[top], layers[bias] = bias, axes
        else:
            kernels += [Kernel(i, layers[i], arrays[i].usual_outputs) for i in large]
    return Roles(sorted(kernels), dict(sorted(biases.items())), layers)


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
        return self.others[-1:] if self.output_axes is None else self.output_axes

    def lengths(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)

    def layer_axes_beside(
        self, kernel: "_Array", outputs: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """The axes that index layers if this is the kernel's bias; None if it is not.

        Args:
            kernel: that lies beside it.
            outputs: the kernel's axes that count outputs, if they are these.
        """
        kept = sorted(kernel.layer_axes + outputs)
        if kernel.layer_axes and not self.layer_axes:
            if self.shape != kernel.lengths(kept):
                return None
            return tuple(kept.index(axis) for axis in kernel.layer_axes)
        is_bias = self.lengths(self.others) == kernel.lengths(outputs) and self.lengths(
            self.layer_axes
        ) == kernel.lengths(kernel.layer_axes)
        return self.layer_axes if is_bias else None


def _with_bias(
    arrays: Sequence[_Array], kernel: int, members: Sequence[int]
) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
    """A kernel's output axes, and what lies beside it and has an element for each."""
    x = arrays[kernel]
    choices = [x.usual_outputs]
    if x.output_axes is None:
        choices += [x.others[-n:] for n in range(2, len(x.others))]
    for outputs in choices:
        beside = {
            i: arrays[i].layer_axes_beside(x, outputs) for i in members if i != kernel
        }
        found = {i: axes for i, axes in beside.items() if axes is not None}
        if found and len(outputs) < len(x.others):
            return outputs, found
    return x.usual_outputs, {}


def outputs_of(kernel: Any, output_axes: Sequence[int] = (-1,)) -> int:
    """The number of outputs of a kernel, of which only the shape is looked at."""
    return math.prod(kernel.shape[axis] for axis in output_axes)


def preserving_norm(kernel: Any, output_axes: Sequence[int] = (-1,)) -> float:
    r"""The norm of a kernel whose layer keeps the mean square of its inputs.

    Elements of the size :math:`\sqrt{2 / \text{fan-in}}`, as of normal ones for a
    rectifier: :math:`\sqrt{2 \cdot \text{outputs}}`.

    Args:
        kernel: an array, or anything with its shape.
        output_axes: those that count outputs.

    References:
        He, Zhang, Ren and Sun, `Delving Deep into Rectifiers
        <https://arxiv.org/abs/1502.01852>`_, 2015
    """
    return math.sqrt(2.0 * outputs_of(kernel, output_axes))


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
    gradient: jax.Array,
    bias_gradient: jax.Array,
    output_axes: Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""A kernel's gradient as the part that a constant input makes, and the rest.

    From inputs h and output gradients δ of the images i of a batch, the gradient of a
    kernel is :math:`G = \sum_i h_i \delta_i^\top`, that of its bias
    :math:`b = \sum_i \delta_i`. Constant inputs make :math:`G = h\,b^\top`; the part of
    G of this form is :math:`G\,b b^\top / \|b\|^2`.

    Args:
        gradient: of a kernel, of any shape and scale.
        bias_gradient: of its bias, of the same images.
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
