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

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.kernels import (
    Roles,
    can_tell_constant_input,
    preserving_norm,
    roles_of,
    split_by_input,
)
from lars.layers import AxesRules, LayerRules, check_alike
from lars.norms import accumulation_dtype, l2_norm, unit, widen
from lars.options import at, check_below_one, check_number, known
from lars.scaled import Scaled
from lars.sharded import ArrayAxes, as_varying_as
from lars.spectral import as_matrices, from_matrices, orthogonalize, root
from lars.state import check_same_shapes

_ROUNDING = 64
"""How many units in the last place what differs between images must be more than."""

STEPS = 3
"""Newton-Schulz steps, where nothing else is said."""


class PolarState(NamedTuple):
    """State of `polar`."""

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # v, like the parameters; of biases, their last steps
    # shape=(kernels, 2), in the order of the tree and of the layers: the weighted sums
    # of signs, and of ones; s is their ratio
    signs: jax.Array


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
    steps: int | None = None,
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
    partition_specs: Any = None,
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

    for every array of two axes or more, a kernel, taken as a matrix of inputs and
    outputs (:func:`lars.kernels.roles_of`); :math:`\bar\rho = \sqrt{2 \cdot
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
      there little is to shrink, and signs soon disagree. An array whose outputs are
      not those of one layer, such as an embedding, may be taken for too large:
      ``stacked`` and ``output_axes`` say what is meant, and ``yielding=0`` is for the
      rest.
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
    for each of L kernels, of which a stack has as many as layers.

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
            compiled in: for :func:`optax.inject_hyperparams` a static argument. None is
            3.
        stacked: pairs of a selection (:func:`lars.select`) and the axis, or axes, that
            index layers, as `flax.linen.scan`, stacks of experts and depthwise
            convolutions have them. Each slice is a kernel of its own. Of several pairs
            the first that selects a parameter holds.
        output_axes: likewise, which of the other axes of a kernel count its outputs;
            ``()`` is for a single output, as each channel of a depthwise kernel has.
            Else it is the last, or where a bias says so the last few: those of Flax'
            attention kernels [inputs, heads, features] are told by their biases.
        partition_specs: inside :func:`jax.shard_map`, where arrays are local parts: a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them
            like the parameters. Norms, signs and directions are then those of the
            whole. Under :func:`jax.jit` global arrays need nothing.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` needs
        ``params``. Gradients that are not finite give updates that are not:
        :func:`lars.wake_silent_layers` sees to these.

    Raises:
        ValueError: for a number that cannot be a hyperparameter; in ``init`` and
            ``update``, for an empty tree, a rule that selects nothing, axes or specs
            that do not fit the parameters, and inside :func:`jax.shard_map` if there
            are no specs; in ``update``, for gradients that are not like the parameters,
            a state of other parameters, of other stacking or of an earlier version, and
            if ``params`` is missing.
        TypeError: for something else than a number, or than rules; in ``init`` and
            ``update``, for gradients or parameters that are not real floating point; in
            ``update``, for the state of another optimizer.

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
    o = _Options(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        radial_rate=radial_rate,
        radial_momentum=radial_momentum,
        depth_exponent=depth_exponent,
        bias_bound=bias_bound,
        bias_share=bias_share,
        yielding=yielding,
        steps=STEPS if steps is None else steps,
    )
    o.check()
    rules = LayerRules(
        stacked=stacked, output_axes=output_axes, partition_specs=partition_specs
    ).check()

    def init_fn(params: optax.Params) -> PolarState:
        return _initial_state(_plan(rules, params), params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PolarState]:
        del extra_args
        if params is None:
            raise ValueError(
                "LARS needs the parameters: call update(gradients, state, params)."
            )
        plan = _plan(rules, params)
        check_alike(updates, params)
        _check_state(plan, state, params)
        return (
            _update(o, plan, updates, state, params) if plan.axes else (updates, state)
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Options(NamedTuple):
    """The arguments of `polar` that are numbers."""

    learning_rate: optax.ScalarOrSchedule
    weight_decay: optax.ScalarOrSchedule
    momentum: Any
    radial_rate: Any
    radial_momentum: Any
    depth_exponent: Any
    bias_bound: Any
    bias_share: Any
    yielding: Any
    steps: int

    def check(self) -> None:
        """Refuses what no parameters could make right, as far as it is known."""
        for name, number in self._asdict().items():
            is_rate = name in ("learning_rate", "weight_decay")
            check_number(name, number, schedule=is_rate)
        for name in ("momentum", "radial_momentum"):
            check_below_one(name, getattr(self, name))
        yielding = known(self.yielding)
        if yielding is not None and yielding > 1:
            raise ValueError(f"yielding must be at most 1, got {self.yielding!r}.")
        if not isinstance(self.steps, (int, np.integer)):
            raise TypeError(
                f"steps must be an integer, got {self.steps!r}. To "
                "optax.inject_hyperparams it is a static argument: "
                'static_args=("steps",).'
            )

    def of_dtype(self, dtype: Any) -> "_Options":
        """With what `optax.inject_hyperparams` makes arrays in a parameter's dtype."""
        return self._replace(
            **{
                name: x.astype(dtype)
                for name, x in self._asdict().items()
                if isinstance(x, (jax.Array, np.ndarray))
            }
        )


class _Plan(NamedTuple):
    """What the rules say of the parameters, whole on every device."""

    axes: list[ArrayAxes]  # how every parameter is divided over devices
    wholes: list[jax.ShapeDtypeStruct]
    roles: Roles

    def layers(self, i: int) -> int:
        """How many layers a parameter holds."""
        shape = self.wholes[i].shape
        return math.prod(shape[axis] for axis in self.roles.layer_axes[i])

    @property
    def starts(self) -> list[int]:
        """Where each kernel begins among the signs, and the end."""
        counts = [self.layers(kernel.leaf) for kernel in self.roles.kernels]
        return [0, *np.cumsum(counts, dtype=int).tolist()]


def _plan(rules: LayerRules, params: optax.Params) -> _Plan:
    """Applies the rules to parameters: arrays, or anything with shape and dtype."""
    layers = rules.layer_map(params)
    leaves, treedef = jax.tree.flatten(params)
    for path, leaf in zip(layers.paths, leaves, strict=True):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"lars.polar needs real parameters, got {jnp.result_type(leaf)} at "
                f"{path!r}: leave it to another optimizer with optax.masked or "
                "optax.partition."
            )
    axes = [ArrayAxes(spec=x.spec) for x in layers.axes]
    wholes = [
        jax.ShapeDtypeStruct(
            x.whole_shape(np.shape(leaf)), accumulation_dtype(jnp.result_type(leaf))
        )
        for x, leaf in zip(axes, leaves, strict=True)
    ]
    roles = roles_of(treedef.unflatten(wholes), rules.stacked, rules.output_axes)
    return _Plan(axes, wholes, roles)


def _initial_state(plan: _Plan, params: optax.Params) -> PolarState:
    dtypes = [plan.wholes[kernel.leaf].dtype for kernel in plan.roles.kernels]
    widest = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)
    return PolarState(
        count=jnp.zeros((), jnp.int32),
        trace=optax.tree.zeros_like(params),
        # Orbax saves no empty arrays.
        signs=jnp.zeros((max(1, plan.starts[-1]), 2), widest),
    )


def _check_state(plan: _Plan, state: Any, params: optax.Params) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, PolarState):
        raise TypeError(
            "the state is of another optimizer, or of a chain around this one: got "
            f"{type(state).__name__}, need PolarState. Make a new one with "
            "init(params)."
        )
    new = jax.eval_shape(lambda: _initial_state(plan, params))
    check_same_shapes(state, new, ("trace", "signs"))


def _update(
    o: _Options,
    plan: _Plan,
    updates: optax.Updates,
    state: PolarState,
    params: optax.Params,
) -> tuple[optax.Updates, PolarState]:
    """One step: of the kernels, then of their biases and of what is by itself.

    Directions need whole matrices. Every device therefore gathers what it has a part
    of, and takes the same step.
    """
    old, traces = jax.tree.leaves(params), jax.tree.leaves(state.trace)
    w, g, v = (
        [
            axes.whole(widen(x).astype(whole.dtype))
            for axes, whole, x in zip(plan.axes, plan.wholes, leaves, strict=True)
        ]
        for leaves in (old, jax.tree.leaves(updates), traces)
    )
    gamma, decay = (
        jnp.asarray(at(x, state.count)) for x in (o.learning_rate, o.weight_decay)
    )
    decay = gamma * decay
    rate = float(max(1, plan.starts[-1])) ** -o.depth_exponent * gamma  # γ' = γ / Lᵖ

    moves, new_v, signs, bodies = list[Any](w), list[Any](v), [], {}
    owners = {bias: kernel for kernel, bias in plan.roles.biases.items()}
    kernels = {kernel.leaf: kernel for kernel in plan.roles.kernels}
    for start, (i, kernel) in zip(plan.starts, kernels.items(), strict=False):
        matrices = [
            as_matrices(x[i], kernel.layer_axes, kernel.output_axes) for x in (w, g, v)
        ]
        sums = state.signs[start : start + plan.layers(i)].astype(w[i].dtype)
        sums = sums.reshape(*matrices[0].shape[:-2], 2)
        bias = plan.roles.biases.get(i)
        b = None if bias is None else _layers_first(g[bias], plan, bias)
        step = functools.partial(
            _kernel_step,
            o.of_dtype(w[i].dtype),
            rate.astype(w[i].dtype),
            decay.astype(w[i].dtype),
        )
        move, average, sums, body = _each_layer(step, kernel.layer_axes)(
            *matrices, b, sums
        )
        bodies[i] = body, max(1, matrices[0].shape[-2])
        moves[i], new_v[i] = (
            from_matrices(x, w[i].shape, kernel.layer_axes, kernel.output_axes)
            for x in (move, average)
        )
        signs.append(sums.reshape(-1, 2).astype(state.signs.dtype))
    for i in [i for i in range(len(w)) if i not in kernels]:
        arrays = [_layers_first(x[i], plan, i) for x in (w, g, v)]
        body, inputs = bodies.get(owners.get(i, -1), (None, 1))
        step = functools.partial(
            _vector_step, o.of_dtype(w[i].dtype), rate.astype(w[i].dtype), inputs
        )
        found = _each_layer(step, plan.roles.layer_axes[i])(*arrays, body)
        moves[i], new_v[i] = (_layers_back(x, plan, i) for x in found)

    def like(arrays: Sequence[jax.Array], others: Sequence[Any]) -> list[jax.Array]:
        return [
            as_varying_as(axes.part(x, jnp.asarray(y)), y).astype(jnp.result_type(y))
            for axes, x, y in zip(plan.axes, arrays, others, strict=True)
        ]

    return jax.tree.structure(params).unflatten(like(moves, old)), PolarState(
        count=optax.safe_increment(state.count),
        trace=jax.tree.structure(state.trace).unflatten(like(new_v, traces)),
        signs=as_varying_as(jnp.concatenate(signs), state.signs)
        if signs
        else state.signs,
    )


class _Body(NamedTuple):
    """What a kernel's bias goes by."""

    growth: jax.Array  # what is added of an array for its size to change
    length: jax.Array  # of a step that changes nothing but the direction
    gradient_norm: Scaled


def _kernel_step(
    o: _Options,
    rate: jax.Array,
    decay: jax.Array,
    w: jax.Array,
    g: jax.Array,
    v: jax.Array,
    b: jax.Array | None,
    sums: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, _Body]:
    """A kernel's update, its average and sums of signs, and what its bias goes by.

    Args:
        o: numbers.
        rate: γ'.
        decay: γ β.
        w: the kernel, as a matrix [inputs, outputs].
        g: its gradient.
        v: the average of directions.
        b: the gradient of its bias, shape [outputs], if it has one.
        sums: of signs, and of ones.
    """
    (u, norm), (direction, gradient_norm) = unit(w), unit(g)

    # s = Σ nᵗ⁻ᵏ sign⟨g, u⟩ / Σ nᵗ⁻ᵏ, and exp(-γ' (κ s + γ β)) - 1
    sign = jnp.sign(_inner(direction, u))
    sums = o.radial_momentum * sums + jnp.stack([sign, jnp.ones_like(sign)])
    s = sums[0] / sums[1]
    growth = jnp.expm1(-rate * (o.radial_rate * s + decay))

    # γ' √(1 - c σ²) ‖w‖, where a kernel of zero counts as one of the norm √outputs
    size = jnp.where(norm.value > 0, norm.value, math.sqrt(w.shape[1]))
    is_too_large = (s > 0) & (size > preserving_norm(w))
    sigma = jnp.where(is_too_large, s, 0)
    length = rate * root(1 - o.yielding * sigma**2) * size

    # v ← m v + (1 - m) ĝ, and ‖v‖ o
    if b is not None:
        balanced = _balanced(*split_by_input(direction, unit(b)[0]))
        direction = jnp.where(can_tell_constant_input(b), balanced, direction)
    new_v = o.momentum * v + (1 - o.momentum) * direction
    move = growth * w - length * _across(new_v, u, o.steps)
    return move, new_v, sums, _Body(growth, length, gradient_norm)


def _vector_step(
    o: _Options,
    rate: jax.Array,
    inputs: int,
    w: jax.Array,
    g: jax.Array,
    v: jax.Array,
    body: _Body | None,
) -> tuple[jax.Array, jax.Array]:
    """The update and the average of a bias, or of a vector that has no kernel.

    Args:
        o: numbers.
        rate: γ'.
        inputs: of the bias' kernel.
        w: the vector.
        g: its gradient.
        v: the average of its steps.
        body: what a bias goes by; None for a vector that has no kernel.
    """
    direction, norm = unit(g)
    if body is None:
        growth = 0.0
        length = rate * jnp.maximum(l2_norm(w), o.bias_bound * math.sqrt(w.size))
    else:
        # How far a bias goes, beside a step of its kernel by the kernel's whole norm.
        of_loss = o.bias_share * (body.gradient_norm / norm).value
        growth = body.growth
        length = body.length * jnp.minimum(o.bias_bound / math.sqrt(inputs), of_loss)
    new_v = o.momentum * v + (1 - o.momentum) * length * direction
    return growth * w - new_v, new_v


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


def _across(v: jax.Array, u: jax.Array, steps: int) -> jax.Array:
    """The orthogonal step of the length of v, without what changes the size along u."""
    # An average of arrays of norm one: no norm here leaves the range of float32.
    o = orthogonalize(v, steps, v.dtype)
    norm = _norm(o)
    o = _norm(v) / jnp.where(norm > 0, norm, 1) * o
    # Not made longer again: of a gradient along the kernel only rounding is left.
    return o - _inner(o, u) * u


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    # As a product of vectors, which a CPU adds up several times as fast as a sum.
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


def _norm(x: jax.Array) -> jax.Array:
    return root(_inner(x, x))


def _each_layer(function: Any, layer_axes: Sequence[int]) -> Any:
    """The function, of arrays with these axes in front."""
    for _ in layer_axes:
        function = jax.vmap(function)
    return function


def _layers_first(x: jax.Array, plan: _Plan, i: int) -> jax.Array:
    """A vector, or anything that is no kernel, as vectors behind its layer axes."""
    axes = plan.roles.layer_axes[i]
    x = jnp.moveaxis(x, axes, range(len(axes)))
    return x.reshape(*x.shape[: len(axes)], -1)


def _layers_back(x: jax.Array, plan: _Plan, i: int) -> jax.Array:
    """The inverse of `_layers_first`."""
    axes, shape = plan.roles.layer_axes[i], plan.wholes[i].shape
    others = [n for axis, n in enumerate(shape) if axis not in axes]
    return jnp.moveaxis(x.reshape(*x.shape[:-1], *others), range(len(axes)), axes)
