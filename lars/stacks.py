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
from lars.sharded import SMALL


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
        pieces = [
            [_stacked([x[i] for i in numbers]) for numbers in self.stacked if x]
            for x in lists
        ]
        pieces = self._first(count, pieces)
        stacks = [list(map(jnp.concatenate, of_list)) for of_list in pieces]
        return [
            [*of_list, *(x[i] for i in self.alone if x)]
            for x, of_list in zip(lists, stacks, strict=True)
        ]

    def apart(
        self, count: jax.Array, *lists: Sequence[jax.Array]
    ) -> list[list[jax.Array]]:
        """The inverse of `together`.

        To take an array out of a stack is another computation for each. In two steps,
        of √n pieces with √n arrays each, about √n of n computations differ.
        """
        pieces = [[_cut(stack) for stack in x[: len(self.stacked)]] for x in lists]
        found = []
        for x, of_list in zip(lists, self._first(count, pieces), strict=True):
            arrays = dict(zip(self.alone, x[len(self.stacked) :], strict=False))
            for numbers, of_stack in zip(self.stacked, of_list, strict=False):
                members = [y for piece in of_stack for y in _members(piece)]
                arrays |= zip(numbers, members, strict=True)
            found.append([arrays[i] for i in sorted(arrays)])
        return found

    def in_order(self, vector: jax.Array) -> jax.Array:
        """A vector over the slices of `layers` in the order of the parameters."""
        return vector[self.place] if self.stacked else vector

    def _first(self, count: jax.Array, stacks: Any) -> Any:
        return computed_first(count, stacks) if self.stacked else stacks


def stacks_of(layers: LayerMap, *lists: Sequence[jax.Array]) -> Stacks:
    """Which arrays are small and alike in all of the lists, and are to be stacked.

    Alike are also the ways in which they lie on devices.

    Args:
        layers: of the arrays.
        lists: each of all arrays, such as gradients and parameters, or of none.
    """
    alike: dict[Any, list[int]] = {}
    rules = zip(layers.axes, layers.is_adapted, layers.is_decayed, strict=True)
    for i, of_array in enumerate(rules):
        arrays = [x[i] for x in lists if x]
        is_stacked = all(x.size <= SMALL and not _may_be_divided(x) for x in arrays)
        kind = (*of_array, *map(jax.typeof, arrays)) if is_stacked else i
        alike.setdefault(kind, []).append(i)
    stacked = [numbers for numbers in alike.values() if len(numbers) > 1]
    alone = [numbers[0] for numbers in alike.values() if len(numbers) == 1]

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


def _may_be_divided(x: jax.Array) -> bool:
    """Whether XLA alone knows how the array lies on the devices.

    Arrays of a stack would all come out as one of them lies.
    """
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.AxisType.Auto in mesh.axis_types


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
