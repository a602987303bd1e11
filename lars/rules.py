"""Rules that say which parameters are meant: by path, by rank, or by any test."""

import collections
import operator
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
import optax

Mask = Any
"""A tree of booleans like the parameters, a prefix of one, or a function of the
parameters that returns one (a `Selection` is one), as in `optax.masked`. None is True
everywhere."""


class Selection:
    """The parameters that a rule selects; made by :func:`select`.

    A function from the parameters to a tree of booleans, and therefore a mask wherever
    Optax takes one. Selections compose: ``~a``, ``a & b``, ``a | b``; not with ``not``,
    ``and`` and ``or``, which raise TypeError.
    """

    def __init__(self, mask: Callable[[Any], Any], description: str):
        self._mask = mask
        self._description = description

    def __call__(self, params: optax.Params) -> Any:
        """Returns a tree like the parameters, of booleans."""
        return self._mask(params)

    def __invert__(self) -> "Selection":
        return Selection(
            lambda params: jax.tree.map(operator.not_, self(params)), f"~{self!r}"
        )

    def __and__(self, other: "Selection") -> "Selection":
        return self._composed("&", operator.and_, other)

    def __or__(self, other: "Selection") -> "Selection":
        return self._composed("|", operator.or_, other)

    def _composed(self, sign: str, operation: Any, other: "Selection") -> "Selection":
        if not isinstance(other, Selection):
            raise TypeError(
                f"a selection composes with {sign} and another selection (see "
                f"lars.select), got {other!r}."
            )
        return Selection(
            lambda params: jax.tree.map(operation, self(params), other(params)),
            f"({self!r} {sign} {other!r})",
        )

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} is neither true nor false: compose selections with ~a, a & b "
            "and a | b, not with not, and, or; ask for None with `is None`."
        )

    def __repr__(self) -> str:
        return self._description


def select(
    path: str | None = None,
    rank: int | Collection[int] | None = None,
    test: Callable[[str, Any], bool] | None = None,
    *,
    required: bool = True,
) -> Selection:
    r"""Selects the parameters that fulfil all the given conditions.

    Args:
        path: regular expression, searched for in the parameter's path, whose keys are
            joined by slashes: ``"encoder/layer_0/kernel"``.
        rank: the number of axes, or a collection of such numbers.
        test: function of the path and the array that returns whether it is meant.
            Inside `jax.jit` it sees shapes and dtypes, but no values.
        required: whether it is an error that nothing is selected.

    Returns:
        A :class:`Selection`: a function from the parameters to a tree of booleans.

    Raises:
        ValueError: for no condition or an invalid expression; when called, if nothing
            is selected, with the paths that there are.
        TypeError: for a condition of the wrong kind.

    Example:
        Neither adapt nor decay biases and the parameters of normalization layers:

        >>> import jax.numpy as jnp
        >>> import lars
        >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> excluded = lars.select(path=r"(bias|scale)$")
        >>> excluded(params)
        {'dense': {'bias': True, 'kernel': False}}
        >>> optimizer = lars.lars(
        ...     1.0, 1e-4, weight_decay_mask=~excluded, trust_ratio_mask=~excluded
        ... )
    """
    conditions: list[Callable[[str, Any], bool]] = []
    words = []
    if path is not None:
        if not isinstance(path, str):
            raise TypeError(f"path must be a regular expression, got {path!r}.")
        try:
            expression = re.compile(path)
        except re.error as error:
            raise ValueError(
                f"path must be a regular expression, got {path!r}: {error}."
            ) from error
        conditions.append(lambda name, _: expression.search(name) is not None)
        words.append(f"path={path!r}")
    if rank is not None:
        ranks = set(rank if isinstance(rank, Collection) else [rank])
        if not ranks or not all(type(r) is int and r >= 0 for r in ranks):
            raise TypeError(f"rank must be a number of axes, or several, got {rank!r}.")
        conditions.append(lambda _, leaf: np.ndim(leaf) in ranks)
        words.append(f"rank={rank!r}")
    if test is not None:
        if not callable(test):
            raise TypeError(f"test must be a function, got {test!r}.")
        conditions.append(lambda name, leaf: bool(test(name, leaf)))
        words.append(f"test={getattr(test, '__name__', test)}")
    if not conditions:
        raise ValueError("select needs a path, a rank or a test.")
    description = f"lars.select({', '.join(words)})"

    def mask(params: optax.Params) -> Any:
        named, treedef = flatten_with_path(params)
        names = [path_string(key_path) for key_path, _ in named]
        chosen = [
            all(holds(name, leaf) for holds in conditions)
            for name, (_, leaf) in zip(names, named, strict=True)
        ]
        if required and names and not any(chosen):
            if named[0][0] == ():
                raise ValueError(
                    f"{description} does not select what it was given: a single array "
                    "without a path, not a tree of parameters. Inside "
                    "optax.inject_hyperparams, functions and rules must be among its "
                    "static_args; elsewhere mend the rule, or give required=False."
                )
            raise ValueError(
                f"{description} selects none of the {len(names)} parameters: "
                f"{listed(names)}. Mend the rule, or give required=False."
            )
        return treedef.unflatten(chosen)

    return Selection(mask, description)


def flatten_with_path(
    params: optax.Params,
) -> tuple[list[tuple[tuple[Any, ...], Any]], Any]:
    """As `jax.tree_util.tree_flatten_with_path`, with boxes left out of the paths.

    `flax.nnx` and partitioned Flax parameters keep each array in a box, as its only
    attribute ``value``. The same parameters come with and without their boxes.
    """
    named, treedef = jax.tree_util.tree_flatten_with_path(params)
    parents = collections.Counter(path[:-1] for path, _ in named)
    box = jax.tree_util.GetAttrKey("value")

    def outside(path: tuple[Any, ...]) -> tuple[Any, ...]:
        is_boxed = path and path[-1] == box and parents[path[:-1]] == 1
        return path[:-1] if is_boxed else path

    return [(outside(path), leaf) for path, leaf in named], treedef


def path_string(key_path: tuple[Any, ...]) -> str:
    """The path of a parameter as rules see it: its keys, joined by slashes."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def listed(names: Sequence[str]) -> str:
    """The first of the names, for messages."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def flat_mask(name: str, mask: Mask, tree: optax.Params) -> list[bool]:
    """The mask's value for every leaf of the tree.

    Raises:
        TypeError: if the mask holds something else than True and False.
        ValueError: if it does not match the tree.
    """
    # A tree of booleans may be callable itself: an Equinox module is.
    if callable(mask) and all(map(callable, jax.tree.leaves(mask))):
        mask = mask(tree)
    mask = True if mask is None else mask
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(
                f"{name}: a mask must hold True and False only, got {leaf!r}. "
                "lars.select makes masks of paths and ranks."
            )
    try:
        return list(map(bool, jax.tree.leaves(jax.tree.broadcast(mask, tree))))
    except ValueError as error:
        raise ValueError(
            f"{name} does not match the parameters: it is neither a tree like theirs "
            f"nor a prefix of one. {error}"
        ) from error
