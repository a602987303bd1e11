"""A table of what rules do to parameters, to be read before a run."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.layers import AxesRules, Layer, LayerRules
from lars.norms import l2_norm
from lars.rules import Mask


class ParameterDescription(NamedTuple):
    """What `lars` does to one parameter; a row of a `Description`."""

    parameter: str  # its path
    shape: tuple[int, ...]
    dtype: str
    shares: str  # the parameters that it has one ratio with
    ratios: int  # how many of its own it has: 1, or the number of its slices
    adapted: bool
    decayed: bool
    norm: float | None  # of the whole parameter; None where there are no values


class Description(tuple[ParameterDescription, ...]):
    """A row for every parameter. Prints as a table."""

    def __str__(self) -> str:
        rows = [ParameterDescription._fields, *(map(_word, row) for row in self)]
        columns = []
        for name, *cells in zip(*rows, strict=True):
            width = max(map(len, (name, *cells)))
            columns.append([x.ljust(width) for x in (name, "-" * width, *cells)])
        lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
        elements = sum(math.prod(row.shape) for row in self)
        adapted = sum(row.adapted for row in self)
        decayed = sum(row.decayed for row in self)
        lines.append(
            f"{len(self)} parameters, {elements:,} elements: {adapted} adapted, "
            f"{decayed} decayed."
        )
        return "\n".join(lines)


def describe(
    params: optax.Params,
    *,
    layer: Layer = "parameter",
    trust_ratio_mask: Mask = True,
    weight_decay_mask: Mask = True,
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
) -> Description:
    """Describes what :func:`lars.lars` would do to parameters under the same rules.

    Args:
        params: the parameters, or a tree of :class:`jax.ShapeDtypeStruct`.
        layer, ..., output_axes: as for :func:`lars.lars`.

    Returns:
        A tuple of :class:`lars.ParameterDescription`, one for each parameter, that
        prints as a table.

    Raises:
        ValueError, TypeError: as ``init`` of :func:`lars.lars`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lars
        >>> params = {"d": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}
        >>> kernels = lars.select(rank=2)
        >>> print(lars.describe(params, layer="module", weight_decay_mask=kernels))
        parameter  shape  dtype    shares    ratios  adapted  decayed  norm
        ---------  -----  -------  --------  ------  -------  -------  ----
        d/bias     4      float32  d/kernel  1       yes      no       0
        d/kernel   3 × 4  float32  d/bias    1       yes      yes      3.46
        2 parameters, 16 elements: 2 adapted, 1 decayed.
    """
    rules = LayerRules(
        layer, trust_ratio_mask, weight_decay_mask, stacked, output_axes
    ).check()
    layers = rules.layer_map(params)
    parameter_of = layers.repeat(range(len(layers.paths)))
    rows, start = [], 0
    for i, leaf in enumerate(jax.tree.leaves(params)):
        size = layers.sizes[i]
        sharing = layers.members[layers.layer_of[start]] if size else []
        others = {int(parameter_of[k]) for k in sharing if k < layers.total} - {i}
        start += size
        has_values = not isinstance(leaf, jax.ShapeDtypeStruct)
        rows.append(
            ParameterDescription(
                parameter=layers.paths[i],
                shape=np.shape(leaf),
                dtype=str(jnp.result_type(leaf)),
                shares=", ".join(layers.paths[k] for k in sorted(others)) or "none",
                ratios=size,
                adapted=layers.is_adapted[i],
                decayed=layers.is_decayed[i],
                norm=float(l2_norm(leaf)) if has_values else None,
            )
        )
    return Description(rows)


def _word(cell: Any) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, tuple):
        return " × ".join(map(str, cell)) or "scalar"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return "-" if cell is None else str(cell)
