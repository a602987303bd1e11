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
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from lars.kernels import (
    AxesRules,
    Kernel,
    can_tell_constant_input,
    check_axes,
    outputs_of,
    preserving_norm,
    roles_of,
    split_by_input,
)
from lars.layers import Rules, widen
from lars.norms import (
    Split as ArrayAxes,
    accumulation_dtype,
    l2_norm,
    of_all_layers,
    spread,
    unit,
)
from lars.optimizer import check_below_one, check_number
from lars.rules import flatten_with_path, path_string
from lars.scaled import Scaled, power_of_two, ratio, value
from lars.spectral import as_matrices, from_matrices, orthogonalize, root

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
    stacked, output_axes = (
        tuple(rules) if isinstance(rules, list) else rules
        for rules in (stacked, output_axes)
    )
    rules = Rules(
        layer="parameter",
        trust_ratio_mask=True,
        weight_decay_mask=True,
        learning_rates=(),
        stacked=stacked,
        partition_specs=partition_specs,
    )
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
        rules=rules,
        output_axes=output_axes,
    )
    o.check()

    def init_fn(params: optax.Params) -> PolarState:
        plan = _plan(o, params)
        return PolarState(
            count=jnp.zeros((), jnp.int32),
            trace=optax.tree.zeros_like(params),
            signs=jnp.zeros((plan.starts[-1], 2), plan.widest),
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
                "LARS needs the parameters: call update(gradients, state, params)."
            )
        plan = _plan(o, params)
        _check_gradients(updates, params, plan)
        _check_state(state, params, plan)
        if not plan.paths:
            return updates, state

        update: Any = functools.partial(_update, o, plan)
        shardings = _explicit_shardings(updates, state, params)
        if shardings is not None:  # then XLA is to divide the work as it likes
            update = jax.sharding.auto_axes(update, out_sharding=shardings)
        return update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Options(NamedTuple):
    """The arguments of `polar`, checked."""

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
    rules: Rules
    output_axes: AxesRules

    def check(self) -> None:
        """Refuses what no parameters could make right, as far as it is known."""
        numbers = self._asdict()
        numbers.pop("rules").check()
        check_axes("output_axes", numbers.pop("output_axes"))
        for name, number in numbers.items():
            is_rate = name in ("learning_rate", "weight_decay")
            check_number(name, number, schedule=is_rate)
        # An array that is known would be traced by a comparison under `jax.jit`.
        known = {
            name: np.asarray(number).item()
            for name, number in numbers.items()
            if not (callable(number) or isinstance(number, Tracer))
        }
        for name in {"momentum", "radial_momentum"} & {*known}:
            check_below_one(name, known[name])
        if known.get("yielding", 0) > 1:
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
    """What the rules say about every parameter, in the order of the leaves."""

    treedef: Any
    paths: list[str]
    kernels: list[Kernel]
    biases: dict[int, int]
    axes: list[ArrayAxes]
    wholes: list[jax.ShapeDtypeStruct]  # the parameters, on all devices
    starts: list[int]  # where each kernel begins among the signs, and the end
    widest: Any  # the dtype of the signs


def _plan(o: _Options, params: optax.Params) -> _Plan:
    """Applies the rules to parameters: arrays, or anything with shape and dtype."""
    plan = o.rules.plan(params)
    leaves, treedef = jax.tree.flatten(params)
    for path, x in zip(plan.paths, leaves, strict=True):
        _check_real(
            jnp.result_type(x),
            f"at {path!r}: leave it to another optimizer with optax.masked or "
            "optax.partition",
        )
    if leaves:
        _check_is_whole(o.rules.partition_specs)
    # On all devices: of local parts, a bias may not have its kernel's outputs.
    wholes = [
        jax.ShapeDtypeStruct(
            _chosen(split, range(np.ndim(x))).layer_shape(np.shape(x)),
            accumulation_dtype(jnp.result_type(x)),
        )
        for split, x in zip(plan.splits, leaves, strict=True)
    ]
    roles = roles_of(treedef.unflatten(wholes), o.rules.stacked, o.output_axes)
    axes = [
        ArrayAxes(layer_axes=of_layers, spec=split.spec)
        for of_layers, split in zip(roles.layer_axes, plan.splits, strict=True)
    ]
    layers = [
        math.prod(wholes[k.leaf].shape[axis] for axis in k.layer_axes)
        for k in roles.kernels
    ]
    return _Plan(
        treedef=treedef,
        paths=plan.paths,
        kernels=roles.kernels,
        biases=roles.biases,
        axes=axes,
        wholes=wholes,
        starts=[0, *np.cumsum(layers).tolist()],
        widest=max(
            (wholes[k.leaf].dtype for k in roles.kernels),
            key=lambda dtype: dtype.itemsize,
            default=jnp.dtype(jnp.float32),
        ),
    )


def _update(
    o: _Options,
    plan: _Plan,
    updates: optax.Updates,
    state: PolarState,
    params: optax.Params,
) -> tuple[optax.Updates, PolarState]:
    """One step: of the kernels, then of their biases and of what is by itself."""
    w = [widen(x) for x in jax.tree.leaves(params)]
    g, v = (
        [widen(x).astype(y.dtype) for x, y in zip(leaves, w, strict=True)]
        for leaves in map(jax.tree.leaves, (updates, state.trace))
    )
    gamma, beta = (
        jnp.asarray(rate(state.count) if callable(rate) else rate)
        for rate in (o.learning_rate, o.weight_decay)
    )
    decay = gamma * beta
    rate = float(max(1, plan.starts[-1])) ** -o.depth_exponent * gamma  # γ' = γ / Lᵖ

    numbers = [o.of_dtype(x.dtype) for x in w]
    kernels = {kernel.leaf: kernel for kernel in plan.kernels}
    vectors = {i: _vector(x, plan.axes[i]) for i, x in enumerate(g) if i not in kernels}
    moves, new_v, signs, bodies = list[Any](w), list[Any](v), [], {}
    for i, start, end in zip(kernels, plan.starts, plan.starts[1:], strict=False):
        layers = _Layers(kernels[i], plan.axes[i], plan.wholes[i])
        b = vectors.get(plan.biases.get(i, -1))
        moves[i], new_v[i], sums, bodies[i] = _kernel_step(
            numbers[i], layers, rate, decay, w[i], g[i], v[i], b, state.signs[start:end]
        )
        signs.append(sums.astype(state.signs.dtype))
    owners = {bias: kernel for kernel, bias in plan.biases.items()}
    for i, vector in vectors.items():
        body = bodies.get(owners.get(i, -1))
        moves[i], new_v[i] = _vector_step(numbers[i], vector, rate, w[i], v[i], body)

    return (
        plan.treedef.unflatten(_like(moves, jax.tree.leaves(params))),
        PolarState(
            count=optax.safe_increment(state.count),
            trace=jax.tree.structure(state.trace).unflatten(
                _like(new_v, jax.tree.leaves(state.trace))
            ),
            signs=jnp.concatenate(signs) if signs else state.signs,
        ),
    )


class _Body(NamedTuple):
    """What a kernel's bias goes by. Each is of all layers of the kernel."""

    growth: jax.Array  # what is added of an array for its size to change
    length: jax.Array  # of a step that changes nothing but the direction
    gradient_norm: Scaled
    rows: int


def _kernel_step(
    o: _Options,
    layers: "_Layers",
    rate: jax.Array,
    decay: jax.Array,
    w: jax.Array,
    g: jax.Array,
    v: jax.Array,
    b: "_Vector | None",
    sums: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, _Body]:
    """A kernel's update, its average and sums of signs, and what its bias goes by."""
    (u, direction), seen = layers.each(_polar, (w, g))
    norm, gradient_norm, sign = layers.of_all(seen)

    # s = Σ nᵗ⁻ᵏ sign⟨g, u⟩ / Σ nᵗ⁻ᵏ, and exp(-γ' (κ s + γ β)) - 1
    rate, decay = rate.astype(w.dtype), decay.astype(w.dtype)
    sums = sums.astype(w.dtype).reshape(*sign.shape, 2)
    sums = o.radial_momentum * sums + jnp.stack([sign, jnp.ones_like(sign)], -1)
    s = sums[..., 0] / sums[..., 1]
    growth = jnp.expm1(-rate * (o.radial_rate * s + decay))

    # γ' √(1 - c σ²) ‖w‖
    outputs = layers.kernel.output_axes
    size = _size(norm, outputs_of(layers.whole, outputs))
    is_too_large = (s > 0) & (size > preserving_norm(layers.whole, outputs))
    sigma = jnp.where(is_too_large, s, 0)
    length = rate * root(1 - o.yielding * sigma**2) * size

    # v ← m v + (1 - m) ĝ, and ‖v‖ o
    if b is not None:
        local = layers.local(b.of_layers(), w)
        (direction,), _ = layers.each(_balanced, (direction,), (local,))
    new_v = o.momentum * v + (1 - o.momentum) * direction
    (o_t,), _ = layers.each(functools.partial(_across, steps=o.steps), (new_v, u))
    growths, lengths = (spread(x, layers.axes, w.shape) for x in (growth, length))
    move = growths * w - lengths * o_t
    body = _Body(growth, length, gradient_norm, layers.rows)
    return move, new_v, sums.reshape(-1, 2), body


def _vector_step(
    o: _Options,
    vector: "_Vector",
    rate: jax.Array,
    w: jax.Array,
    v: jax.Array,
    body: _Body | None,
) -> tuple[jax.Array, jax.Array]:
    """The update and the average of a bias, or of a vector that has no kernel."""
    if body is None:
        length, growth = rate.astype(w.dtype) * vector.size(w, o.bias_bound), 0.0
    else:
        length = body.length * _bias_part(vector.norm, body, o.bias_bound, o.bias_share)
        growth = spread(body.growth, vector.axes, w.shape)
    lengths = spread((1 - o.momentum) * length, vector.axes, w.shape)
    step = lengths * _chosen(vector.axes, range(w.ndim)).local(vector.unit, w.shape)
    new_v = o.momentum * v + step
    return growth * w - new_v, new_v


def _polar(w: jax.Array, g: jax.Array, at: "_Part") -> Any:
    """Of a layer and its gradient: the directions; the norms and sign⟨g, u⟩."""
    (u, norm), (direction, gradient_norm) = _unit(w, at), _unit(g, at)
    sign = jnp.sign(at.sum(_inner(direction, u)))
    return (u, direction), (norm, gradient_norm, sign)


def _balanced(direction: jax.Array, b: jax.Array, at: "_Part") -> Any:
    """With what a constant input makes reduced to the size of the rest.

    Args:
        direction: the gradient of a layer, divided by its norm.
        b: that of its bias, of all outputs.
        at: the part of the layer that these are of.
    """
    unit_b = unit(b)[0]
    constant, rest = split_by_input(
        at.matrix(direction), at.columns(unit_b, direction), at.sum_over_outputs
    )
    size_of_rest = root(at.sum(_inner(rest, rest)))
    size = root(1 - size_of_rest**2)
    # Where there is nothing but a constant input, it is all there is to go by: else
    # rounding would become a direction.
    is_something = size_of_rest > _ROUNDING * jnp.finfo(rest.dtype).eps
    reduced = size_of_rest / jnp.where(size > 0, size, 1)
    part = jnp.where(is_something, jnp.minimum(1, reduced), 1)
    balanced = (rest + part * constant) / jnp.hypot(size_of_rest, part * size)
    balanced = from_matrices(balanced, direction.shape, (), at.output_axes)
    return (jnp.where(can_tell_constant_input(b), balanced, direction),), ()


def _across(v: jax.Array, u: jax.Array, at: "_Part", steps: int) -> Any:
    """The orthogonal step of the length of v, without what changes the size along u."""
    whole = at.axes.whole(v)
    matrix = at.matrix(whole)
    # An average of arrays of norm one: no norm here leaves the range of float32.
    o = orthogonalize(matrix, steps, matrix.dtype)
    norm, length = root(_inner(o, o)), root(_inner(matrix, matrix))
    o = length / jnp.where(norm > 0, norm, 1) * o
    o = at.axes.part(from_matrices(o, whole.shape, (), at.output_axes), v)
    # Not made longer again: of a gradient along the kernel only rounding is left.
    return (o - at.sum(_inner(o, u)) * u,), ()


def _size(norm: Scaled, outputs: int) -> jax.Array:
    """What a kernel's steps are parts of: its norm, if it has one."""
    size = value(norm)
    return jnp.where(size > 0, size, math.sqrt(outputs))


def _bias_part(norm: Scaled, body: _Body, bound: Any, share: Any) -> jax.Array:
    """How far a bias goes, beside a step of its kernel by the kernel's whole norm."""
    norm = norm._replace(fraction=jnp.where(norm.fraction > 0, norm.fraction, 1))
    of_loss = share * value(ratio(body.gradient_norm, norm))
    return jnp.minimum(bound / math.sqrt(max(1, body.rows)), of_loss)


class _Part(NamedTuple):
    """One layer of a kernel, as it lies on the devices."""

    axes: ArrayAxes
    output_axes: tuple[int, ...]

    def sum(self, x: jax.Array) -> jax.Array:
        """Over the devices that have other parts of the layer."""
        names = self.axes.all_mesh_axes()
        return jax.lax.psum(x, names) if names else x

    def sum_over_outputs(self, x: jax.Array) -> jax.Array:
        """Over those that have other outputs."""
        names = _chosen(self.axes, self.output_axes).all_mesh_axes()
        return jax.lax.psum(x, names) if names else x

    def matrix(self, x: jax.Array) -> jax.Array:
        return as_matrices(x, (), self.output_axes)

    def columns(self, b: jax.Array, like: jax.Array) -> jax.Array:
        """Of an element for each output, those of this part."""
        lengths = [like.shape[axis] for axis in self.output_axes]
        return _chosen(self.axes, self.output_axes).local(b, lengths).ravel()


def _unit(x: jax.Array, at: _Part) -> tuple[jax.Array, Scaled]:
    """``x / ‖x‖``, and zero at zero; and the norm, both of all parts together."""
    u, norm = unit(x)
    names = at.axes.all_mesh_axes()
    if not names:
        return u, norm
    lowest = jnp.int32(-(2**20))
    exponent = jnp.where(norm.fraction == 0, lowest, norm.exponent)
    largest = jax.lax.pmax(exponent, names)
    of_part = norm.fraction * power_of_two(exponent - largest, x.dtype)
    fraction = root(at.sum(of_part**2))
    u = of_part / jnp.where(fraction == 0, 1, fraction) * u
    return u, Scaled(fraction, jnp.where(largest == lowest, 0, largest))


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    # As a product of vectors, which a CPU adds up several times as fast as a sum.
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


class _Layers(NamedTuple):
    """The layers of a kernel, one or many, as they lie on the devices."""

    kernel: Kernel
    axes: ArrayAxes
    whole: jax.ShapeDtypeStruct

    @property
    def rows(self) -> int:
        """The number of inputs."""
        shape, (_, layer_axes, output_axes) = self.whole.shape, self.kernel
        inputs = {*range(len(shape))} - {*layer_axes, *output_axes}
        return math.prod(shape[axis] for axis in inputs)

    def each(
        self, function: Any, arrays: tuple[Any, ...], values: tuple[Any, ...] = ()
    ) -> tuple[Any, Any]:
        """`_each_layer` of a function that is told, as ``at``, what part it is of."""
        _, layer_axes, output_axes = self.kernel
        others = [i for i in range(len(self.whole.shape)) if i not in layer_axes]
        at = _Part(
            ArrayAxes(spec=_chosen(self.axes, others).spec),
            tuple(others.index(axis) for axis in output_axes),
        )
        function = functools.partial(function, at=at)
        return _each_layer(function, layer_axes, arrays, values)

    def of_all(self, values: Any) -> Any:
        """From values of the local layers, those of all layers."""
        axes = _chosen(self.axes, self.kernel.layer_axes)
        return jax.tree.map(
            lambda x: of_all_layers(x, axes, x.shape, jax.lax.psum), values
        )

    def local(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """Of values of all layers, those of the local ones."""
        lengths = [like.shape[axis] for axis in self.kernel.layer_axes]
        return _chosen(self.axes, self.kernel.layer_axes).local(x, lengths)


class _Vector(NamedTuple):
    """The gradient of what is no kernel, as a whole on every device."""

    axes: ArrayAxes
    gradient: jax.Array
    unit: jax.Array
    norm: Scaled  # of each layer

    def of_layers(self) -> jax.Array:
        """The gradient, with the axes that index layers in front."""
        layer_axes = self.axes.layer_axes
        return jnp.moveaxis(self.gradient, layer_axes, range(len(layer_axes)))

    def size(self, w: jax.Array, bound: Any) -> jax.Array:
        """What its steps are parts of: its norm, or as many ones' times the bound."""

        def one(x: jax.Array) -> tuple[tuple[()], jax.Array]:
            return (), jnp.maximum(l2_norm(x), bound * math.sqrt(x.size))

        whole = _everywhere(w, self.axes)
        return _each_layer(one, self.axes.layer_axes, (whole,))[1]


def _vector(g: jax.Array, axes: ArrayAxes) -> _Vector:
    g = _everywhere(g, axes)
    return _Vector(axes, g, *_each_layer(unit, axes.layer_axes, (g,)))


def _each_layer(
    function: Any,
    layer_axes: Sequence[int],
    arrays: tuple[Any, ...],
    values: tuple[Any, ...] = (),
) -> tuple[Any, Any]:
    """A function of the layers that arrays are made of.

    Args:
        function: of the parts of arrays that are one layer, and its values. Returns
            some of either kind.
        layer_axes: of the arrays, ascending.
        arrays: all with the same axes.
        values: with an axis for each that indexes layers, in front.
    """
    for position, axis in enumerate(layer_axes):
        ins = (axis,) * len(arrays) + (position,) * len(values)
        function = jax.vmap(function, ins, (axis, position))
    return function(*arrays, *values)


def _chosen(axes: ArrayAxes, chosen: Sequence[int]) -> ArrayAxes:
    """Some of the axes of an array, as if each indexed layers."""
    spec = PartitionSpec(*(axes.mesh_axes(axis) or None for axis in chosen))
    return ArrayAxes(layer_axes=tuple(range(len(chosen))), spec=spec)


def _everywhere(x: jax.Array, axes: ArrayAxes) -> jax.Array:
    """From the local part of an array the whole, on every device."""
    return of_all_layers(x, _chosen(axes, range(x.ndim)), x.shape, jax.lax.psum)


def _like(x: Sequence[jax.Array], other: Sequence[jax.Array]) -> list[jax.Array]:
    return [a.astype(jnp.result_type(b)) for a, b in zip(x, other, strict=True)]


def _explicit_shardings(
    updates: optax.Updates, state: PolarState, params: optax.Params
) -> Any:
    """Those of the results, where shardings are part of types; None where not."""
    meshes = [
        sharding.mesh
        for x in jax.tree.leaves((updates, state, params))
        for sharding in [jax.typeof(x).sharding]
        if any(axis is not None for axis in sharding.spec)
    ]
    if not meshes:
        return None
    return jax.tree.map(
        lambda x: NamedSharding(meshes[0], jax.typeof(x).sharding.spec),
        (params, state),
    )


def _check_is_whole(partition_specs: Any) -> None:
    """Refuses local parts of which nobody says how they lie."""
    names = jax.sharding.get_abstract_mesh().manual_axes
    if partition_specs is None and names:
        raise ValueError(
            "inside jax.shard_map arrays are local parts, whose norms are not those of "
            "the parameters: give partition_specs, the specs of the parameters in "
            "shard_map, or jax.sharding.PartitionSpec() if every device has all of "
            f"them. The mesh axes here are {', '.join(map(repr, names))}."
        )


def _check_real(dtype: Any, where: str) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "LARS needs real floating-point gradients and parameters, got "
            f"{dtype} {where}."
        )


def _check_gradients(updates: optax.Updates, params: optax.Params, plan: _Plan) -> None:
    """Refuses gradients that are not those of the parameters."""
    if jax.tree.structure(updates) != plan.treedef:
        raise ValueError(
            "the gradients are not a tree like the parameters: "
            f"{jax.tree.structure(updates)} and {plan.treedef}."
        )
    for path, gradient, param in zip(
        plan.paths, jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        if np.shape(gradient) != np.shape(param):
            raise ValueError(
                f"the gradient of {path!r} has shape {np.shape(gradient)}, the "
                f"parameter {np.shape(param)}."
            )
        _check_real(jnp.result_type(gradient), f"for the gradient of {path!r}")


def _check_state(state: Any, params: optax.Params, plan: _Plan) -> None:
    """Refuses a state of another optimizer, or of other parameters: a checkpoint's."""
    if not isinstance(state, PolarState):
        raise TypeError(
            "the state is of another optimizer, such as optax.lars, or of a chain "
            f"around this one: got {type(state).__name__}, need PolarState. Make a new "
            "one with init(params)."
        )
    # By paths: what else a tree knows of itself may have changed in a checkpoint.
    averages, needed = (
        {path_string(path): np.shape(x) for path, x in flatten_with_path(tree)[0]}
        for tree in (state.trace, params)
    )
    if averages != needed:
        other = {path for path, _ in {*averages.items()} ^ {*needed.items()}}
        has, needs = (
            {k: x[k] for k in sorted(other & {*x})} for x in (averages, needed)
        )
        raise ValueError(
            f"the state is of other parameters: it has averages of the shapes {has}, "
            f"here they are {needs}. Make a new one with init(params)."
        )
    signs = [np.shape(x) for x in jax.tree.leaves(state.signs)]
    if signs != [(plan.starts[-1], 2)]:
        raise ValueError(
            "the state is of other stacking or output axes, or of an earlier version: "
            f"it has sums of signs of the shapes {signs}, here it is "
            f"{(plan.starts[-1], 2)}, with a row for each kernel and each layer of a "
            "stack. Make a new one with init(params)."
        )
