r"""LARS in polar coordinates: the direction and the size of every kernel, apart.

For every kernel w with gradient g, with ρ = ‖w‖, u = w / ρ, L kernels in all, and
γ' = γ / Lᵖ the learning rate of each:

    ĝ ← g of norm 1, in which what a constant input makes is no larger than the rest
    v ← m v + (1 - m) ĝ
    o ← polar factor of v, of Frobenius norm 1, without its part along u
    s ← average of sign⟨g, u⟩, from -1 to 1
    w ← exp(-γ' (κ s + γ β)) w                  how large,
        - γ' √(1 - σ²) ρ ‖v‖ o                  and where to,

where σ, by how much directions wait, is s if that is positive and ρ larger than the
norm of a kernel that keeps the size of its inputs, else 0. But for that, and where a
kernel is zero, nothing depends on the sizes of gradients, losses or kernels, only on
their ratios.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from lars.kernels import (
    biases_of,
    by_constant_input,
    can_tell_constant_input,
    kernels_of,
    preserving_norm,
)
from lars.norms import l2_norm, unit, widen
from lars.options import at, check_below_one, check_number
from lars.scaled import Scaled
from lars.spectral import as_matrices, from_matrices, orthogonalize, root

_ROUNDING = 64
"""How many units in the last place what differs between images must be more than."""


class PolarState(NamedTuple):
    """State of `polar`."""

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # v, like the parameters; of biases, their last steps
    # like the parameters, each of shape=(2,): the weighted sums of signs, and of ones;
    # s is their ratio. Zero for all but kernels.
    signs: optax.Params


def polar(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 4.0,
    momentum: jax.typing.ArrayLike = 0.7,
    *,
    radial_rate: jax.typing.ArrayLike = 3.0,
    radial_momentum: jax.typing.ArrayLike = 0.9,
    depth_exponent: float = 1.0,
    bias_bound: jax.typing.ArrayLike = 0.1,
    bias_share: jax.typing.ArrayLike = 0.3,
    yielding: jax.typing.ArrayLike = 1.0,
    steps: int = 3,
) -> optax.GradientTransformationExtraArgs:
    r"""LARS with one rate for the direction of a kernel and one for its size.

    .. math::
        \begin{align*}
        v_{t+1} &= m\,v_t + (1 - m)\,\hat g_t / \|\hat g_t\|_F \\
        o_t &= \bar O_t - \langle \bar O_t, u_t\rangle u_t,
          \qquad \bar O_t = O_t / \|O_t\|_F,
          \qquad O_t = UV^\top \text{ of } v_{t+1} = U \Sigma V^\top,
          \quad u_t = w_t / \|w_t\|_F \\
        s_t &= \frac{\sum_{k \le t} n^{t-k}
          \operatorname{sign}\langle g_k, u_k\rangle}{\sum_{k \le t} n^{t-k}} \\
        w_{t+1} &= \exp\left(-\gamma'_t (\kappa\,s_t + \gamma_t \beta)\right) w_t
          - \gamma'_t \sqrt{1 - \sigma_t^2}\,\|w_t\|_F\,\|v_{t+1}\|_F\,o_t,
          \qquad \sigma_t = \begin{cases}
            s_t & s_t > 0,\ \|w_t\|_F > \bar\rho \\ 0 & \text{else}
          \end{cases}
        \end{align*}

    for every array of two axes or more, a kernel, taken as a matrix
    (:func:`lars.spectral.as_matrices`); :math:`\bar\rho = \sqrt{2 \cdot
    \text{outputs}}` is the norm of one that keeps the mean square of what rectifiers
    hand on (:func:`lars.kernels.preserving_norm`). As in LARS, a step is a given part
    of the layer's own norm. Seven things differ, each for a way in which LARS fails
    from a badly scaled start, or for what it costs elsewhere:

    * What is averaged are directions: gradients of norm one. Their sizes change by
      orders of magnitude while a network recovers, and an average of gradients would be
      that of the largest. The average is as long as gradients agree, 1 if all of a few
      steps are the same and about :math:`\sqrt{(1 - m) / (1 + m)}` if they are noise,
      and so is the step.
    * The direction is orthogonalised, by a few Newton-Schulz steps: O is what these
      make of v, the polar factor where they are many. In a network of many layers whose
      kernels are far too small, gradients are of rank one, nearly, and so are LARS'
      kernels after a while.
    * Before all that, :math:`\hat g` is the gradient with the part that a constant
      input makes (:func:`lars.kernels.by_constant_input`) reduced, if it is larger, to
      the norm of the rest. Behind many sigmoids inputs are almost constant, and what
      differs between images is else too small a part for Newton-Schulz steps to find.
      It is the gradient itself where a kernel has no bias beside it, or at most two
      outputs that get a gradient, and where the rest is rounding, as that of a batch of
      one image is.
    * A kernel's size has a step of its own, relative, along the sign of the loss'
      derivative by the logarithm of the size: it grows and shrinks exponentially, by
      any rate without a change of sign. Signs are averaged too, over the steps there
      have been, so that the step is short where they are noise; the first counts in
      full. Decay, likewise relative, draws a network whose signs are noise, because it
      is chaotic, to smaller sizes; it is of second order in the rate, and vanishes
      beside all else as the rate does.
    * Directions yield to sizes where a kernel is larger than :math:`\bar\rho` and signs
      agree that it should shrink: what its gradient says of directions is then how to
      make up for its size, and far too large a network of rectifiers would learn to be
      silent. The size gets the part s of a step and the direction
      :math:`\sqrt{1 - s^2}`. Smaller kernels wait for nothing: a network that tells no
      images apart is better off with smaller outputs, and would else shrink for ever.
      The usual initializations of rectifiers lie about :math:`\bar\rho`, on both sides;
      there little is to shrink, and signs soon disagree. An array whose last axis is
      not all outputs of one layer, that of attention heads, of layers that are
      stacked, or an embedding, may be taken for too large: ``yielding=0`` is for these.
    * A bias moves by the least of two lengths: ``bias_bound`` times the step of a row
      of its kernel, and the length at which it lowers the loss, to first order, by
      ``bias_share`` times what a step of the kernel along its gradient would. Where a
      layer's inputs are tiny, so is that. Else biases drown what small kernels say. Its
      steps yield as its kernel's do, and are then averaged; and it grows, shrinks and
      decays as its kernel does: what was small beside a kernel stays so, its last few
      steps apart.
    * A kernel of zero has no size for a step to be a part of. It moves as one of the
      norm :math:`\sqrt{\text{outputs}}` would.

    The network learns as layers in series do: the relative change of what it computes
    is about the sum of those of its layers, hence the part :math:`L^{-p}` of the rate
    for each of L kernels.

    Vectors that have no kernel beside them, as those of normalizations, step by
    :math:`\gamma'` times their norm, or times ``bias_bound`` times that of a vector of
    ones if that is more, and are not decayed.

    Args:
        learning_rate: :math:`\gamma`, a number or a schedule of the step.
        weight_decay: :math:`\beta`, a number or a schedule, relative to the square of
            the rate.
        momentum: :math:`m`, of the average of directions.
        radial_rate: :math:`\kappa`, of the size relative to that of the direction.
        radial_momentum: :math:`n`, of the average of signs. At 0 every sign stands for
            itself.
        depth_exponent: :math:`p`, from 0 (each layer gets the whole rate) to 1.
        bias_bound: the first bound of a bias' step.
        bias_share: the second.
        yielding: how far directions yield to sizes: c in
            :math:`\sqrt{1 - c\,\sigma^2}`, from 0 (not at all) to 1.
        steps: Newton-Schulz steps, see :func:`lars.spectral.orthogonalize`. They are
            compiled in: for :func:`optax.inject_hyperparams` a static argument.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``. Gradients that are not finite give updates that are not:
        :func:`lars.wake_silent_layers` sees to these.

    Raises:
        ValueError: for a number that cannot be a hyperparameter, and in ``update`` for
            a state of other parameters or of an earlier version.
        TypeError: for something else than a number, and in ``update`` for the state of
            another optimizer.

    Example:
        A network that starts a thousand times too small, layer by layer:

        >>> import jax, jax.numpy as jnp, optax
        >>> import lars
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = [
        ...     {"kernel": 1e-3 * jax.random.normal(key, shape) / shape[0] ** 0.5}
        ...     for key, shape in zip(keys, [(1, 32), (32, 32), (32, 32), (32, 1)])
        ... ]
        >>> def loss(params):
        ...     h = x
        ...     for layer in params[:-1]:
        ...         h = jnp.tanh(h @ layer["kernel"])
        ...     return jnp.mean((h @ params[-1]["kernel"] - jnp.sin(3 * x)) ** 2)
        >>> def trained(optimizer):
        ...     def step(carry, _):
        ...         params, state = carry
        ...         updates, state = optimizer.update(
        ...             jax.grad(loss)(params), state, params)
        ...         return (optax.apply_updates(params, updates), state), None
        ...     start = (params, optimizer.init(params))
        ...     return loss(jax.lax.scan(step, start, length=300)[0][0])
        >>> rate = optax.linear_schedule(0.2, 0, 300)
        >>> print(f"{loss(params):.2f} before, {trained(lars.polar(rate)):.2f} after, "
        ...       f"{trained(optax.sgd(0.1, 0.9)):.2f} with SGD")
        0.52 before, 0.00 after, 0.52 with SGD

    References:
        You, Gitman and Ginsburg, `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017 (relative steps)

        Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024 (orthogonalised directions)

        Bernstein et al., `On the Distance between two Neural Networks and the Stability
        of Learning <https://arxiv.org/abs/2002.03432>`_, 2020 (relative changes of
        layers in series)

        Salimans and Kingma, `Weight Normalization
        <https://arxiv.org/abs/1602.07868>`_, 2016 (size and direction apart)
    """
    check_number("learning_rate", learning_rate, schedule=True)
    check_number("weight_decay", weight_decay, schedule=True)
    numbers = {
        "momentum": momentum,
        "radial_rate": radial_rate,
        "radial_momentum": radial_momentum,
        "depth_exponent": depth_exponent,
        "bias_bound": bias_bound,
        "bias_share": bias_share,
        "yielding": yielding,
        "steps": steps,
    }
    for name, number in numbers.items():
        check_number(name, number)
    if not isinstance(steps, int):
        raise TypeError(
            f"steps must be an integer, got {steps!r}. To optax.inject_hyperparams it "
            'is a static argument: static_args=("steps",).'
        )
    check_below_one("momentum", momentum)
    check_below_one("radial_momentum", radial_momentum)
    _check_at_most_one("yielding", yielding)

    def init_fn(params: optax.Params) -> PolarState:
        return PolarState(
            count=jnp.zeros((), jnp.int32),
            trace=optax.tree.zeros_like(params),
            signs=jax.tree.map(lambda x: jnp.zeros(2, widen(x).dtype), params),
        )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PolarState]:
        del extra_args
        if params is None:
            raise ValueError(
                "polar needs the parameters: call update(gradients, state, params)."
            )
        _check_state(state, params)
        kernels = kernels_of(params)
        share = max(1, len(kernels)) ** -depth_exponent
        gamma = jnp.asarray(at(learning_rate, state.count))
        decay = gamma * jnp.asarray(at(weight_decay, state.count))
        w = [widen(x) for x in jax.tree.leaves(params)]
        g, v = (
            [widen(x).astype(y.dtype) for x, y in zip(leaves, w, strict=True)]
            for leaves in map(jax.tree.leaves, (updates, state.trace))
        )
        new_v, moves = list[Any](v), list[Any](w)
        signs = jax.tree.leaves(state.signs)
        biases = biases_of(params)
        owners = {bias: kernel for kernel, bias in biases.items()}
        growths, turns, sizes = {}, {}, {}
        for i in kernels:
            x, bias = g[i], biases.get(i)
            rate, beta = (share * gamma).astype(x.dtype), decay.astype(x.dtype)
            u, norm = unit(w[i])
            sign = jnp.sign(_inner(unit(x)[0], u))
            signs[i] = radial_momentum * signs[i] + jnp.stack(
                [sign, jnp.ones_like(sign)]
            )
            s = signs[i][0] / signs[i][1]
            growths[i] = jnp.expm1(-rate * (radial_rate * s + beta))
            sizes[i] = _size(norm, w[i])
            is_too_large = (s > 0) & (sizes[i] > preserving_norm(w[i]))
            sigma = jnp.where(is_too_large, s, 0)
            turns[i] = rate * root(1 - yielding * sigma**2)
            direction = _direction(x, None if bias is None else g[bias])
            new_v[i] = momentum * v[i] + (1 - momentum) * direction
            step = turns[i] * sizes[i] * _across(new_v[i], u, steps)
            moves[i] = growths[i] * w[i] - step
        for i, x in enumerate(g):
            if i in growths:
                continue
            kernel = owners.get(i)
            if kernel is None:
                length = jnp.maximum(l2_norm(w[i]), bias_bound * math.sqrt(x.size))
                length *= (share * gamma).astype(x.dtype)
                growth = 0.0
            else:
                part = _bias_part(x, g[kernel], bias_bound, bias_share)
                length = turns[kernel] * sizes[kernel] * part
                growth = growths[kernel]
            new_v[i] = momentum * v[i] + (1 - momentum) * length * unit(x)[0]
            moves[i] = growth * w[i] - new_v[i]

        treedef = jax.tree.structure(params)
        return (
            treedef.unflatten(_like(moves, jax.tree.leaves(params))),
            PolarState(
                count=optax.safe_increment(state.count),
                trace=treedef.unflatten(_like(new_v, jax.tree.leaves(state.trace))),
                signs=treedef.unflatten(_like(signs, jax.tree.leaves(state.signs))),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_at_most_one(name: str, number: Any) -> None:
    if not isinstance(number, Tracer) and number > 1:
        raise ValueError(f"{name} must be at most 1, got {number!r}.")


def _check_state(state: Any, params: optax.Params) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, PolarState):
        raise TypeError(
            f"the state is of another optimizer: got {type(state).__name__}, need "
            "PolarState. Make a new one with init(params)."
        )
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    traces, signs = (
        [jnp.shape(x) for x in jax.tree.leaves(tree)]
        for tree in (state.trace, state.signs)
    )
    if traces != shapes or signs != [(2,)] * len(shapes):
        raise ValueError(
            "the state is of other parameters, or of an earlier version: it has "
            f"averages of the shapes {traces} and sums of signs of {signs}, here they "
            f"are {shapes} and (2,) for each. Make a new one with init(params)."
        )


def _direction(g: jax.Array, bias_g: jax.Array | None) -> jax.Array:
    """The gradient that is averaged, of norm one."""
    direction = unit(g)[0]
    if bias_g is None:
        return direction
    balanced = from_matrices(_balanced(*by_constant_input(g, bias_g)), g.shape)
    return jnp.where(can_tell_constant_input(bias_g), balanced, direction)


def _balanced(constant: jax.Array, rest: jax.Array) -> jax.Array:
    """Their sum, with what a constant input makes reduced to the size of the rest.

    Args:
        constant: the part that a constant input makes,
        rest: and what is orthogonal to it, of an array of norm one or of zeros.
    """
    size_of_rest = _norm(rest)
    size = root(1 - size_of_rest**2)
    # Where there is nothing but a constant input, it is all there is to go by: else
    # rounding would become a direction.
    is_something = size_of_rest > _ROUNDING * jnp.finfo(rest.dtype).eps
    reduced = size_of_rest / jnp.where(size > 0, size, 1)
    part = jnp.where(is_something, jnp.minimum(1, reduced), 1)
    return (rest + part * constant) / jnp.hypot(size_of_rest, part * size)


def _size(norm: Scaled, w: jax.Array) -> jax.Array:
    """What a kernel's steps are parts of: its norm, if it has one."""
    size = norm.value
    return jnp.where(size > 0, size, math.sqrt(w.shape[-1]))


def _across(v: jax.Array, u: jax.Array, steps: int) -> jax.Array:
    """The orthogonal step of the length of v, without what changes the size along u."""
    matrix, u = as_matrices(v), as_matrices(u)
    # An average of arrays of norm one: no norm here leaves the range of float32.
    o = orthogonalize(matrix, steps, matrix.dtype)
    norm = _norm(o)
    o = _norm(matrix) / jnp.where(norm > 0, norm, 1) * o
    # Not made longer again: of a gradient along the kernel only rounding is left.
    return from_matrices(o - _inner(o, u) * u, v.shape)


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    # As a product of vectors, which a CPU adds up several times as fast as a sum.
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


def _norm(x: jax.Array) -> jax.Array:
    return root(_inner(x, x))


def _bias_part(g: jax.Array, kernel_g: jax.Array, bound: Any, share: Any) -> jax.Array:
    """How far a bias goes, beside a step of its kernel by the kernel's whole norm."""
    norm = unit(g)[1]
    of_loss = share * (unit(kernel_g)[1] / norm).value
    rows = kernel_g.size // kernel_g.shape[-1]
    return jnp.minimum(bound / math.sqrt(rows), of_loss)


def _like(x: Sequence[jax.Array], other: Sequence[jax.Array]) -> list[jax.Array]:
    return [a.astype(jnp.result_type(b)) for a, b in zip(x, other, strict=True)]
