"""Small arrays that are alike, stepped together as a stack.

To start a computation on a thousand numbers costs more than the computation, and XLA
compiles each that it is given. A stack is stepped as one parameter, whose first axis
indexes layers.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lars.layers import LayerMap
from lars.layerwise import computed_first
from lars.sharded import SMALL, may_be_divided

SMALL_KERNEL = 2**16
"""Kernels of at most so many elements are stacked before matrices are multiplied."""

MANY = 200
"""More than so many such kernels are always stacked: XLA would compile for a minute."""


class Stacks(NamedTuple):
    """Which arrays of a list are stacked, and which stay alone, behind the stacks."""

    layers: LayerMap  # of the stacks and of the arrays that stay alone
    stacked: list[list[int]]  # the numbers of the arrays in each stack
    alone: list[int]
    place: np.ndarray  # shape=(slices,): of each slice in the vectors of `layers`

    def together(
        self, count: jax.Array, *lists: Sequence[jax.Array]
    ) -> list[list[jax.Array]]:
        """For each list of arrays the stacks, and behind them what stays alone.

        Args:
            count: as for `computed_first`.
            lists: each of all arrays, or of none.
        """
        stacks = put_together(
            count, [[[x[i] for i in one] for one in self.stacked if x] for x in lists]
        )
        return [
            [*of_list, *(x[i] for i in self.alone if x)]
            for x, of_list in zip(lists, stacks, strict=True)
        ]

    def apart(
        self, count: jax.Array, *lists: Sequence[jax.Array]
    ) -> list[list[jax.Array]]:
        """The inverse of `together`."""
        of_stacks = take_apart(count, [x[: len(self.stacked)] for x in lists])
        found = []
        for x, of_list in zip(lists, of_stacks, strict=True):
            arrays = dict(zip(self.alone, x[len(self.stacked) :], strict=False))
            for numbers, members in zip(self.stacked, of_list, strict=False):
                arrays |= zip(numbers, members, strict=True)
            found.append([arrays[i] for i in sorted(arrays)])
        return found

    def in_order(self, vector: jax.Array) -> jax.Array:
        """A vector over the slices of `layers` in the order of the parameters."""
        # Without stacks all are alone, in order.
        return vector[self.place] if self.stacked else vector


def stacks_of(
    layers: LayerMap, multiplies: bool, *lists: Sequence[jax.Array]
) -> Stacks:
    """Which arrays are small and alike in all of the lists, and are to be stacked.

    Alike are also the ways in which they lie on devices.

    Args:
        layers: of the arrays.
        multiplies: whether the step multiplies matrices. Copies then cost little, and
            larger arrays are stacked.
        lists: each of all arrays, such as gradients and parameters, or of none.
    """
    alike: dict[Any, list[int]] = {}
    rules = zip(layers.axes, layers.is_adapted, layers.is_decayed, strict=True)
    for i, of_array in enumerate(rules):
        arrays = [x[i] for x in lists if x]
        kind = (*of_array, *map(jax.typeof, arrays)) if can_be_stacked(arrays) else i
        alike.setdefault(kind, []).append(i)

    def is_worth_it(numbers: Sequence[int]) -> bool:
        is_small = multiplies or lists[0][numbers[0]].size <= SMALL
        return len(numbers) > (1 if is_small else MANY)

    stacked = [numbers for numbers in alike.values() if is_worth_it(numbers)]
    alone = sorted({*range(len(layers.paths))} - {*itertools.chain(*stacked)})

    firsts = [numbers[0] for numbers in stacked]
    axes = [layers.axes[i].stacked() for i in firsts]
    shapes = [(len(numbers), *layers.shapes[numbers[0]]) for numbers in stacked]
    slices = np.split(np.arange(layers.total), np.cumsum(layers.sizes)[:-1])
    order = np.concatenate([slices[i] for i in itertools.chain(*stacked, alone)])
    place = np.argsort(order)
    chosen = [*firsts, *alone]
    of_stacks = layers._replace(
        paths=[layers.paths[i] for i in chosen],
        axes=axes + [layers.axes[i] for i in alone],
        shapes=shapes + [layers.shapes[i] for i in alone],
        is_adapted=[layers.is_adapted[i] for i in chosen],
        is_decayed=[layers.is_decayed[i] for i in chosen],
        members=np.append(place, layers.total)[layers.members],
        layer_of=layers.layer_of[order],
    )
    return Stacks(of_stacks, stacked, alone, place)


def put_together(count: jax.Array, lists: Any) -> Any:
    """Stacks of arrays, in place of each innermost list of arrays that are alike.

    XLA compiles equal computations once, and slowly where there are many operands. To
    stack is therefore done in two steps, of √n stacks of √n arrays.

    Args:
        count: as for `computed_first`.
        lists: a list of lists of lists of arrays.
    """
    pieces = [[_stacked(arrays) for arrays in x] for x in lists]
    pieces = _first(count, pieces)
    return [list(map(jnp.concatenate, x)) for x in pieces]


def take_apart(count: jax.Array, lists: Any) -> Any:
    """The inverse of `put_together`.

    To take an array out of a stack is another computation for each. In two steps, of √n
    pieces with √n arrays each, about √n of n computations differ.
    """
    pieces = _first(count, [[_cut(stack) for stack in x] for x in lists])
    return [
        [[y for piece in of_stack for y in _members(piece)] for of_stack in x]
        for x in pieces
    ]


def can_be_stacked(arrays: Sequence[jax.Array]) -> bool:
    """Whether arrays are small, and it is known how they lie on the devices."""
    return arrays[0].size <= SMALL_KERNEL and not any(map(may_be_divided, arrays))


def _first(count: jax.Array, pieces: Any) -> Any:
    """The pieces, computed before they are used; but what is alone stays as it is."""
    several = [[x for x in of_list if len(x) > 1] for of_list in pieces]
    if not any(several):
        return pieces
    computed = map(iter, computed_first(count, several))
    return [
        [next(of_list) if len(x) > 1 else x for x in old]
        for of_list, old in zip(computed, pieces, strict=True)
    ]


def _stacked(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """About √n stacks of √n arrays."""
    length = math.isqrt(len(arrays))
    starts = range(0, len(arrays), length)
    return [jnp.stack(arrays[i : i + length]) for i in starts]


def _cut(stack: jax.Array) -> list[jax.Array]:
    """About √n pieces of √n members, along the first axis."""
    length = math.isqrt(len(stack))
    return [stack[i : i + length] for i in range(0, len(stack), length)]


def _members(piece: jax.Array) -> list[jax.Array]:
    return [jax.lax.index_in_dim(piece, i, keepdims=False) for i in range(len(piece))]
