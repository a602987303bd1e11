r"""Whether a signal passes through a network, by the gradients of one step.

Where an activation, a gradient or the loss leaves the range of float32, or what it says
is lost among the digits, no optimizer can learn: a gradient of zero has no direction,
and one of NaN or of rounding errors has none that means anything.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.bits import magnitude, rescaled, scale_exponent
from lars.kernels import Kernel, can_tell_constant_input, roles_of, split_by_input
from lars.layers import array_axes
from lars.norms import widen
from lars.rules import flatten_with_path, path_string
from lars.scaled import Scaled
from lars.sharded import ArrayAxes, groups_of, in_order, over_devices
from lars.spectral import as_matrices
from lars.stacks import SMALL_KERNEL

REASONS = ("not finite", "no gradient", "constant input", "lost in rounding")
"""Why a network may be silent, in the order in which the reasons are tried."""

HALF_THE_DIGITS = 2.0**-12
"""Of float32. A part of a gradient, or an effect on the loss, that is smaller than this
beside the rest counts as lost."""

HARDLY = 2.0**-8
"""A network sees a constant input if other inputs make at most this part of the effect
that its gradients have on the loss."""

SHUT = 2.0**-6
"""A normalization is shut if all elements of its scale are smaller. One that starts at
zero is larger after a few steps."""

UNUSUAL = 2.0
"""Octaves by which the sizes of most kernels must be off before sizes are to blame."""

ABSURD = 12.0
"""Octaves by which the size of one kernel must be off to be to blame for all others."""


class Network(NamedTuple):
    """What the shapes and names of parameters say of a network."""

    axes: list[ArrayAxes]  # of every parameter
    shapes: list[tuple[int, ...]]  # of every parameter, as a whole
    kernels: list[Kernel]
    biases: dict[int, int]  # of the kernels that have one; both as leaves
    scales: list[int]  # of normalizations, as leaves


class Seen(NamedTuple):
    """What the gradients of one step say of a network."""

    reasons: jax.Array  # shape=(4,), bool: the first of `REASONS` that holds, if any
    given_up: jax.Array  # shape=(4,), bool: reasons that do not count any more
    is_unusual: jax.Array  # shape=(), bool: the sizes of kernels are
    # shape=(), int32: kernels without a gradient; more than there are if not finite
    silent_kernels: jax.Array
    norms: Scaled  # shape=(kernels,)


def network_of(params: optax.Params, partition_specs: Any = None) -> Network:
    """What the shapes and names of parameters say of a network.

    Args:
        params: arrays, or anything with shapes.
        partition_specs: as for :func:`lars.wake_silent_layers`.
    """
    axes = array_axes(params, partition_specs=partition_specs)
    named, _ = flatten_with_path(params)
    roles = roles_of(params)
    return Network(
        axes,
        [x.whole_shape(jnp.shape(w)) for x, (_, w) in zip(axes, named, strict=True)],
        roles.kernels,
        roles.biases,
        [
            i
            for i, (path, w) in enumerate(named)
            if jnp.ndim(w) < 2 and path_string(path[-1:]) == "scale"
        ],
    )


def silence(gradients: optax.Updates, params: optax.Params) -> jax.Array:
    r"""Whether a network is silent, and why.

    Let kernels w have gradients g, and effects :math:`e = \|g\|\,\|w\|` on the loss.
    The parameters are finite. A network is silent if

    1. a gradient is *not finite*; or
    2. a kernel has *no gradient*, exactly zero, while another parameter has one, and
       sizes are unusual; or
    3. it sees a *constant input*. Let h be the part of a kernel's gradient that a
       constant input does not make (:func:`lars.kernels.by_constant_input`), for
       kernels with a bias more than two of whose elements have a gradient. Then
       :math:`h \le 2^{-12}` for one of them and not for another, and
       :math:`\max h e \le 2^{-8} \max e` over all of them; or
    4. a kernel is *lost in rounding*, and sizes are unusual. Either its effect is less
       than :math:`2^{-12}`, half of the digits of float32, of another's: signals vanish
       on their way back or, in a chaotic network, explode. Or its gradient is less than
       :math:`2^{-24}` of its bias': the inputs of the layer vanish beside the 1 that
       the bias multiplies.

    Gradients alone cannot tell a saturated kernel from a frozen one, nor a drowned one
    from a query or a key, which do little to the loss by design. But only unusual
    sizes, or a constant input, reach the ends of float32. With n the smallest axis, a
    size is *usual* if :math:`\sqrt{2n} \le \|w\| \le \sqrt{2\,\mathrm{size}/n}`, and if
    the mean square of the bias is at most 1. Initializations give such sizes, whichever
    axes count the inputs. *Unusual* are more than half of the kernels off by a factor
    of 4; and, where no kernel has a gradient and where inputs vanish, also one kernel
    off by :math:`2^{12}`.

    Where a kernel is zero, or an array with the name ``scale`` is below :math:`2^{-6}`
    throughout, only the first reason counts: the layer was started so on purpose.

    Args:
        gradients: of one step.
        params: what they are of.

    Returns:
        Booleans of shape [4], at most one of them true: the first of `REASONS` that
        holds.
    """
    none = jnp.zeros(len(REASONS), jnp.bool)
    return look(gradients, params, network_of(params), none, none).reasons


def look(
    gradients: optax.Updates,
    params: optax.Params,
    network: Network,
    given_up: jax.Array,
    moving_for: jax.Array,
) -> Seen:
    """What the gradients of one step say of a network.

    Args:
        gradients: of the step.
        params: what they are of.
        network: what these are.
        given_up: reasons that do not count any more.
        moving_for: the reason for which kernels are being moved, if they are. For a
            network that is, other reasons need no unusual sizes: these are on their way
            to usual ones.
    """
    g, w = (list(map(widen, jax.tree.leaves(tree))) for tree in (gradients, params))
    units, norms = _units_and_norms([*g, *w], [*network.axes, *network.axes])
    exponents = norms.exponent.astype(jnp.float32)
    logs = jnp.log2(norms.fraction).astype(jnp.float32) + exponents
    log_g, log_w = jnp.split(logs, 2)
    kernels = np.asarray([kernel.leaf for kernel in network.kernels])
    # A kernel without a bias stands for its bias.
    biases = np.asarray([network.biases.get(i, i) for i in kernels.tolist()])
    own = Scaled(norms.fraction[kernels + len(g)], norms.exponent[kernels + len(g)])

    is_zero, is_finite = norms.is_zero, jnp.isfinite(norms.fraction)
    has_none = is_zero[kernels]
    effects = (log_g + log_w)[kernels]
    digits = np.asarray([jnp.finfo(g[i].dtype).nmant + 1 for i in kernels], np.float32)
    inputs_vanish = ~has_none & (log_g[kernels] < log_g[biases] - digits)
    # One that is shrunk until it is finite has not been silent yet.
    was_silent = moving_for[1:].any()
    off = _octaves_off(log_w[kernels], log_w[biases], network)
    are_off = was_silent | (2 * (off >= UNUSUAL).sum() > len(kernels))
    is_one_off = off.max() >= ABSURD
    reasons = [
        ~is_finite[: len(g)].all(),
        has_none.any()
        & ~is_zero[: len(g)].all()
        & (are_off | (is_one_off & has_none.all())),
        _sees_constant_input(units, effects, ~has_none, was_silent, network),
        (_is_drowned(effects) & are_off)
        | (inputs_vanish.any() & (are_off | is_one_off)),
    ]
    flags, is_unusual, is_shut, silent, own = _everywhere(
        (
            # No factor mends parameters that are not finite themselves.
            jnp.stack(reasons) & is_finite[len(g) :].all(),
            are_off | is_one_off,
            own.is_zero.any() | _is_shut(w, network),
            jnp.where(reasons[0], len(kernels) + 1, has_none.sum()).astype(jnp.int32),
            own,
        ),
        network.axes,
    )
    given_up |= is_shut & (np.arange(len(REASONS)) > 0)
    flags &= ~given_up
    reasons = flags & (jnp.cumsum(flags) == 1)
    return Seen(reasons, given_up, is_unusual, silent, own)


def _units_and_norms(
    arrays: list[jax.Array], axes: list[ArrayAxes]
) -> tuple[list[jax.Array], Scaled]:
    """`lars.norms.unit` of many arrays, also of local parts."""
    groups = groups_of(arrays, axes)
    stacks = [jnp.stack([arrays[i] for i in group.members]) for group in groups]

    def reduced(operation: Any, collective: Any, values: Any) -> list[jax.Array]:
        local = map(lambda group, x: group.reduce(operation, x), groups, values)
        return over_devices(collective, list(local), groups)

    def expanded(values: list[jax.Array]) -> list[jax.Array]:
        return [
            jnp.expand_dims(value, range(1, x.ndim))
            for value, x in zip(values, stacks, strict=True)
        ]

    largest = functools.partial(jnp.max, initial=0)
    magnitudes = reduced(largest, jax.lax.pmax, map(magnitude, stacks))
    dtypes = [x.dtype for x in stacks]
    exponents = list(map(scale_exponent, magnitudes, dtypes))
    stacks = list(map(rescaled, stacks, expanded(exponents)))
    squares = reduced(jnp.sum, jax.lax.psum, [x * x for x in stacks])
    norms = list(map(jnp.sqrt, squares))
    divisors = expanded([jnp.where(norm == 0, 1, norm) for norm in norms])
    units = {}
    for group, x, divisor in zip(groups, stacks, divisors, strict=True):
        units |= zip(group.members, x / divisor, strict=True)
    scaled = Scaled(in_order(norms, groups), in_order(exponents, groups))
    return [units[i] for i in range(len(arrays))], scaled


def _octaves_off(
    log_kernels: jax.Array, log_biases: jax.Array, network: Network
) -> jax.Array:
    """How far the size of each kernel, or of its bias, is from usual ones."""
    least, most, most_of_bias = [], [], []
    for kernel in network.kernels:
        shape = network.shapes[kernel.leaf]
        size, smallest = math.prod(shape), min(shape)
        least.append(math.log2(2 * smallest) / 2)
        most.append(math.log2(2 * size / smallest) / 2)
        bias = network.biases.get(kernel.leaf)
        elements = math.inf if bias is None else math.prod(network.shapes[bias])
        most_of_bias.append(math.log2(elements) / 2)
    off = [
        np.asarray(least, np.float32) - log_kernels,
        log_kernels - np.asarray(most, np.float32),
        log_biases - np.asarray(most_of_bias, np.float32),
    ]
    return jnp.maximum(jnp.stack(off).max(0), 0)


def _sees_constant_input(
    units: list[jax.Array],
    effects: jax.Array,
    has_gradient: jax.Array,
    was_silent: jax.Array,
    network: Network,
) -> jax.Array:
    """Whether a kernel sees a constant input, and the network little else.

    Starting computations costs more than stacking small kernels of one shape.
    """
    groups: dict[Any, list[Any]] = {}
    for number, (i, _, outputs) in enumerate(network.kernels):
        if i in network.biases:
            j = network.biases[i]
            matrix = as_matrices(network.axes[i].whole(units[i]), (), outputs)
            bias = network.axes[j].whole(units[j]).ravel()
            is_small = matrix.size <= SMALL_KERNEL
            alike = (matrix.shape, matrix.dtype, bias.dtype) if is_small else number
            groups.setdefault(alike, []).append((number, matrix, bias))
    if not groups:
        return jnp.bool(False)
    order, of_groups = [], []
    for members in groups.values():
        numbers, matrices, biases = zip(*members, strict=True)
        order += numbers
        of_groups.append(jax.vmap(_rest)(jnp.stack(matrices), jnp.stack(biases)))
    rests, can_tell = map(jnp.concatenate, zip(*of_groups, strict=True))
    can_tell &= has_gradient[np.asarray(order)]
    is_constant = can_tell & (rests <= HALF_THE_DIGITS)
    told = jnp.where(can_tell, effects[np.asarray(order)], -jnp.inf)
    is_little = (told + jnp.log2(rests)).max() <= told.max() + math.log2(HARDLY)
    is_one, is_another = is_constant.any(), (can_tell & ~is_constant).any()
    return is_one & is_another & (was_silent | is_little)


def _rest(matrix: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The part of a gradient that no constant input makes, and whether it is known."""
    _, rest = split_by_input(matrix, bias)
    return jnp.linalg.norm(rest).astype(jnp.float32), can_tell_constant_input(bias)


def _is_drowned(effects: jax.Array) -> jax.Array:
    """Whether half of the digits of one effect are more than all of another.

    Of kernels that have a gradient: for one without, that is the reason.
    """
    least = jnp.where(jnp.isfinite(effects), effects, jnp.inf).min()
    return least < effects.max() + math.log2(HALF_THE_DIGITS)


def _is_shut(w: list[jax.Array], network: Network) -> jax.Array:
    """Whether a normalization is shut, until an optimizer opens it."""
    whole = [network.axes[i].whole(w[i]) for i in network.scales]
    flags = [(jnp.abs(x) < SHUT).all() for x in whole]
    return jnp.stack([jnp.bool(False), *flags]).any()


def _everywhere(tree: Any, axes: list[ArrayAxes]) -> Any:
    """The same on all devices that have parts of parameters."""
    names = tuple({name: None for x in axes for name in x.all_mesh_axes()})

    def largest(x: jax.Array) -> jax.Array:
        number = x.astype(jnp.int32) if x.dtype == jnp.bool else x
        return jax.lax.pmax(number, names).astype(x.dtype)

    return jax.tree.map(largest, tree) if names else tree
