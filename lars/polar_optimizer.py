"""The optimizer that moves the direction and the size of every kernel apart."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.kernels import (
    can_tell_constant_input,
    preserving_norm,
    roles_of,
    split_by_input,
)
from lars.layers import AxesRules, LayerRules, check_alike
from lars.norms import accumulation_dtype, l2_norm, unit, widen
from lars.options import at, check_below_one, check_number
from lars.scaled import Scaled
from lars.sharded import ArrayAxes, as_varying_as
from lars.spectral import as_matrices, from_matrices, orthogonalize, root
from lars.stacks import can_be_stacked, put_together, take_apart
from lars.state import check_same_shapes

_ROUNDING = 64
"""Units in the last place up to which a part of a gradient counts as rounding."""

STEPS = 3
"""Newton-Schulz steps by default."""


class PolarState(NamedTuple):
    """State of `polar`."""

    # shape=(), dtype=int32: updates made so far
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # v, like the parameters; of biases, their last steps
    # shape=(kernels, 2), in the order of the tree and of the layers: the weighted sums
    # of a, and of ones; s is their ratio
    signs: jax.Array
    pulls: jax.Array  # shape=(kernels,), likewise: log2 of q, -inf where it is 0


def polar(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1.0,
    momentum: jax.typing.ArrayLike = 0.7,
    *,
    radial_rate: jax.typing.ArrayLike = 3.0,
    radial_momentum: jax.typing.ArrayLike = 0.9,
    depth_exponent: float = 1.0,
    bias_bound: jax.typing.ArrayLike = 0.1,
    steps: int | None = None,
    stacked: AxesRules = (),
    output_axes: AxesRules = (),
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LARS with one step for the direction of a kernel and one for its size.

    .. math::
        \begin{align*}
        v_{t+1} &= m\,v_t + (1 - m)\,\hat g_t / \|\hat g_t\|_F \\
        o_t &= \bar O_t - \langle \bar O_t, u_t\rangle u_t,
          \quad \bar O_t = O_t / \|O_t\|_F,
          \quad O_t = UV^\top \text{ of } v_{t+1} = U \Sigma V^\top,
          \quad u_t = w_t / \|w_t\|_F \\
        q_t &= \max(n\,q_{t-1}, -e_t), \quad e_t = \langle g_t, w_t\rangle \\
        s_t &= \frac{\sum_{k \le t} n^{t-k} a_k}{\sum_{k \le t} n^{t-k}},
          \quad a_t = \begin{cases}
            \operatorname{sign} e_t & e_t \ge 0 \\ -\sqrt{-e_t / q_t} & e_t < 0
          \end{cases} \\
        w_{t+1} &= \exp\left(-\gamma'_t (\kappa\,s_t
          + \gamma_t \beta\,[\|w_t\|_F > \bar\rho])\right) w_t
          - \gamma'_t\,\bar\rho\,\|v_{t+1}\|_F\,o_t
        \end{align*}

    w is a kernel, an array of two axes or more as a matrix [inputs, outputs], and g its
    gradient. For L kernels :math:`\gamma' = \gamma / L^p`, because the relative changes
    of layers in series add up. :math:`\bar\rho = \sqrt{2 \cdot \text{outputs}}` is
    the norm that keeps the mean square of what rectifiers hand on
    (:func:`lars.kernels.preserving_norm`), about that of usual initializations. There,
    steps are relative to norms, as in LARS. These are the differences:

    * *Averages* are of gradients of norm one, because the sizes of gradients change by
      orders of magnitude while a network recovers. The norm of v is 1 if gradients
      agree, and about :math:`\sqrt{(1 - m) / (1 + m)}` if they are noise.
    * *Directions* are orthogonalized by a few Newton-Schulz steps. In a deep network of
      kernels that are far too small, gradients have nearly rank one. Their steps have
      the length that suits a kernel of the usual norm: one that is too small is soon of
      that size, and one that is too large hardly turns until it has shrunk.
    * *Constant inputs* would hide how images differ, behind many sigmoids. In
      :math:`\hat g` the part of g that a constant input makes
      (:func:`lars.kernels.by_constant_input`) is reduced to at most the norm of the
      rest. It stays if the kernel has no bias, if at most two outputs have a gradient,
      or if the rest is rounding.
    * *Sizes* change exponentially, along the average sign of the loss' derivative by
      the logarithm of the size, e. No rate turns a kernel around. The sign of growth is
      weighed by its pull, relative to the strongest of late. The loss of images that
      are learnt always falls a little where outputs grow: without the weight sizes grow
      on, and the test loss with them. Signs that are noise therefore shrink a kernel.
    * *Decay* is of second order in the rate, and acts above the usual norm alone. It is
      for kernels whose signs are noise: those of chaotic networks, and those before a
      normalization, whose size the loss does not depend on.
    * *Biases* must not hide what small kernels say. They step by ``bias_bound`` times
      the step of a row of the kernel, and grow, shrink and decay with their kernels.
    * *Other vectors*, as those of normalizations, step by :math:`\gamma'` times their
      norm, or ``bias_bound`` times that of ones if that is larger. They do not decay.

    Of an embedding each row is an output: tell it with ``output_axes``.

    Args:
        learning_rate: :math:`\gamma`, a number or a schedule of the step.
        weight_decay: :math:`\beta`, a number or a schedule.
        momentum: :math:`m`, of the average of directions.
        radial_rate: :math:`\kappa`, of the size relative to that of the direction.
        radial_momentum: :math:`n`, of the average of signs, and of the strongest pull.
        depth_exponent: :math:`p`, from 0 to 1.
        bias_bound: the step of a bias relative to that of a row of its kernel.
        steps: Newton-Schulz steps, see :func:`lars.spectral.orthogonalize`; None is 3.
            For :func:`optax.inject_hyperparams` it is a static argument.
        stacked: pairs of a selection (:func:`lars.select`) and the axis, or axes, that
            index layers, each of which is a kernel. The first that selects holds.
        output_axes: likewise, the axes of a kernel that count outputs, see
            :func:`lars.kernels.roles_of`; ``()`` is for a single output.
        partition_specs: inside :func:`jax.shard_map`, a
            :class:`jax.sharding.PartitionSpec` for all parameters, or a tree of them.
            Steps are then those of whole arrays. :func:`jax.jit` needs none.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`, whose ``update`` needs
        ``params``. Gradients that are not finite give updates that are not, see
        :func:`lars.wake_silent_layers`.

    Raises:
        ValueError: for a number that cannot be a hyperparameter; in ``init`` and
            ``update``, for rules or specs that do not fit the parameters; in
            ``update``, for gradients or a state of others, and without ``params``.
        TypeError: for arguments of the wrong kind, arrays that are not real floating
            point, and the state of another optimizer.

    Example:
        Four layers that start a thousand times too small:

        >>> import jax, jax.numpy as jnp, optax
        >>> import lars
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = [1e-3 * jax.random.normal(key, (8, 8)) for key in keys]
        >>> def loss(params):
        ...     return jnp.mean((jnp.linalg.multi_dot(params)[0] - 1) ** 2)
        >>> def trained(optimizer):
        ...     def step(_, carry):
        ...         params, state = carry
        ...         g = jax.grad(loss)(params)
        ...         updates, state = optimizer.update(g, state, params)
        ...         return optax.apply_updates(params, updates), state
        ...     start = (params, optimizer.init(params))
        ...     return loss(jax.lax.fori_loop(0, 300, step, start)[0])
        >>> rate = optax.linear_schedule(0.2, 0, 300)
        >>> print(f"{loss(params):.2f} before, {trained(lars.polar(rate)):.2f} after, "
        ...       f"{trained(optax.sgd(0.1, 0.9)):.2f} with SGD")
        1.00 before, 0.00 after, 1.00 with SGD

    References:
        Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024 (orthogonal directions)

        Bernstein et al., `On the Distance between two Neural Networks and the Stability
        of Learning <https://arxiv.org/abs/2002.03432>`_, 2020 (layers in series)

        Salimans and Kingma, `Weight Normalization
        <https://arxiv.org/abs/1602.07868>`_, 2016 (size and direction apart)
    """
    o = _Options(
        learning_rate,
        weight_decay,
        momentum,
        radial_rate,
        radial_momentum,
        depth_exponent,
        bias_bound,
        STEPS if steps is None else steps,
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
        if not plan.leaves:
            return updates, state
        return _update(o, plan, updates, state, params)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Options(NamedTuple):
    """The arguments of `polar` that are numbers."""

    learning_rate: Any  # γ, or γ' of a step
    weight_decay: Any  # β, or γ β of a step
    momentum: Any
    radial_rate: Any
    radial_momentum: Any
    depth_exponent: Any
    bias_bound: Any
    steps: int

    def check(self) -> None:
        """Refuses what no parameters could make right, as far as it is known."""
        for name, number in self._asdict().items():
            is_rate = name in ("learning_rate", "weight_decay")
            check_number(name, number, schedule=is_rate)
            if name in ("momentum", "radial_momentum"):
                check_below_one(name, number)
        if not isinstance(self.steps, (int, np.integer)):
            raise TypeError(
                f"steps must be an integer, got {self.steps!r}. To "
                "optax.inject_hyperparams it is a static argument: "
                'static_args=("steps",).'
            )

    def at_step(self, count: jax.typing.ArrayLike, kernels: int) -> "_Options":
        """With γ' = γ / Lᵖ and γ β in place of γ and β."""
        gamma = jnp.asarray(at(self.learning_rate, count))
        beta = jnp.asarray(at(self.weight_decay, count))
        rate = float(max(1, kernels)) ** -self.depth_exponent * gamma
        return self._replace(learning_rate=rate, weight_decay=gamma * beta)

    def of_dtype(self, dtype: Any) -> "_Options":
        """With all arrays in a parameter's dtype."""
        kinds = (jax.Array, np.ndarray)
        return self._make(x.astype(dtype) if isinstance(x, kinds) else x for x in self)


class _Leaf(NamedTuple):
    """A parameter: one kernel or vector, or a stack of them."""

    axes: ArrayAxes  # how it is divided over devices
    whole: jax.ShapeDtypeStruct
    layer_axes: tuple[int, ...]
    columns: tuple[int, ...]  # axes that count outputs; of a vector all others
    is_kernel: bool

    @property
    def layers(self) -> int:
        """Of how many layers it is."""
        return math.prod(self.whole.shape[axis] for axis in self.layer_axes)

    def stack(self, x: Any) -> jax.Array:
        """Kernels [layers, inputs, outputs] or vectors [layers, elements], whole."""
        x = self.axes.whole(widen(x).astype(self.whole.dtype))
        x = as_matrices(x, self.layer_axes, self.columns)
        x = x.reshape(self.layers, *x.shape[-2:])
        return x if self.is_kernel else x.squeeze(-2)

    def local(self, stack: jax.Array, like: Any) -> jax.Array:
        """The inverse of `stack`: an array like the given one."""
        x = from_matrices(stack, self.whole.shape, self.layer_axes, self.columns)
        x = as_varying_as(self.axes.part(x, jnp.asarray(like)), like)
        return x.astype(jnp.result_type(like))


class _Plan(NamedTuple):
    """The leaves of the parameters, and which are kernels and biases."""

    leaves: list[_Leaf]
    kernels: list[int]
    biases: dict[int, int]  # of kernels

    @property
    def layers(self) -> int:
        """Of how many layers all kernels are."""
        return sum(self.leaves[i].layers for i in self.kernels)

    @property
    def rows(self) -> dict[int, range]:
        """Where the layers of each kernel are among the signs."""
        counts = [self.leaves[i].layers for i in self.kernels]
        ends = np.cumsum(counts, dtype=int).tolist()
        return dict(zip(self.kernels, map(range, [0, *ends], ends), strict=False))

    def groups(self, *lists: Sequence[jax.Array]) -> list["_Group"]:
        """What is stepped as one stack: small leaves that are alike in all lists."""
        kinds: dict[Any, list[int]] = {}
        for i in sorted({*range(len(self.leaves))} - {*self.biases.values()}):
            with_bias = [i, self.biases[i]] if i in self.biases else [i]
            leaves = [self.leaves[j] for j in with_bias]
            arrays = [x[j] for j in with_bias for x in lists]
            is_stacked = can_be_stacked(arrays)
            kind = (*leaves, *map(jax.typeof, arrays)) if is_stacked else i
            kinds.setdefault(kind, []).append(i)
        return [
            _Group(numbers, [self.biases[i] for i in numbers if i in self.biases])
            for numbers in kinds.values()
        ]


class _Group(NamedTuple):
    """Leaves that are alike."""

    leaves: list[int]  # kernels, or vectors without a kernel
    biases: list[int]  # of kernels, if they have any


def _plan(rules: LayerRules, params: optax.Params) -> _Plan:
    """Applies the rules to parameters: arrays, or anything with shape and dtype."""
    layers = rules.layer_map(params)
    axes = [ArrayAxes(spec=x.spec) for x in layers.axes]
    wholes = []
    for path, of_x, x in zip(layers.paths, axes, jax.tree.leaves(params), strict=True):
        dtype = jnp.result_type(x)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"lars.polar needs real parameters, got {dtype} at {path!r}: leave it "
                "to another optimizer with optax.masked or optax.partition."
            )
        shape = of_x.whole_shape(np.shape(x))
        wholes.append(jax.ShapeDtypeStruct(shape, accumulation_dtype(dtype)))
    whole_params = layers.treedef.unflatten(wholes)
    roles = roles_of(whole_params, rules.stacked, rules.output_axes)
    outputs = {kernel.leaf: kernel.output_axes for kernel in roles.kernels}
    leaves = []
    for i, axes_of_layers in enumerate(roles.layer_axes):
        others = sorted({*range(len(wholes[i].shape))} - {*axes_of_layers})
        columns = outputs.get(i, tuple(others))
        leaves.append(_Leaf(axes[i], wholes[i], axes_of_layers, columns, i in outputs))
    return _Plan(leaves, list(outputs), roles.biases)


def _initial_state(plan: _Plan, params: optax.Params) -> PolarState:
    dtypes = [plan.leaves[i].whole.dtype for i in plan.kernels]
    widest = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)
    return PolarState(
        count=jnp.zeros((), jnp.int32),
        trace=optax.tree.zeros_like(params),
        # Orbax saves no empty arrays.
        signs=jnp.zeros((max(1, plan.layers), 2), widest),
        pulls=jnp.full(max(1, plan.layers), -jnp.inf, widest),
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
    check_same_shapes(state, new, ("trace", "signs", "pulls"))


def _update(
    o: _Options,
    plan: _Plan,
    updates: optax.Updates,
    state: PolarState,
    params: optax.Params,
) -> tuple[optax.Updates, PolarState]:
    """One step: of the kernels, then of their biases and of all other vectors.

    Directions need whole matrices. Every device therefore gathers what it has a part
    of, and takes the same step.
    """
    trees = (params, updates, state.trace)
    lists = [list(map(jnp.asarray, jax.tree.leaves(tree))) for tree in trees]
    groups = plan.groups(*lists)
    stacked = [numbers for group in groups for numbers in group if numbers]
    count = jnp.asarray(state.count)
    stacks = put_together(
        count,
        [[[plan.leaves[i].stack(x[i]) for i in one] for one in stacked] for x in lists],
    )
    stacks = zip(*stacks, strict=True)
    o = o.at_step(count, plan.layers)
    steps, signs, pulls, rows = [], [], [], []
    for group in groups:
        leaf = plan.leaves[group.leaves[0]]
        of_leaf = o.of_dtype(leaf.whole.dtype)
        kernel_step = _each_layer(functools.partial(_kernel_step, of_leaf))
        vector_step = _each_layer(functools.partial(_vector_step, of_leaf))
        w, g, v = next(stacks)
        if not leaf.is_kernel:
            steps.append(vector_step(w, g, v, None))
            continue
        of_bias = next(stacks) if group.biases else None
        of_group = [row for i in group.leaves for row in plan.rows[i]]
        sums, pull = (
            x[np.asarray(of_group)].astype(w.dtype).reshape(*w.shape[:2], *x.shape[1:])
            for x in (state.signs, state.pulls)
        )
        bias_gradient = of_bias[1] if of_bias else None
        *step, sums, pull, body = kernel_step(w, g, v, bias_gradient, sums, pull)
        steps.append(tuple(step))
        signs.append(sums.reshape(-1, 2).astype(state.signs.dtype))
        pulls.append(pull.ravel().astype(state.pulls.dtype))
        rows += of_group
        if of_bias:
            steps.append(vector_step(*of_bias, body))

    def like(tree: Any, matrices: Any) -> Any:
        members = map(itertools.chain.from_iterable, (stacked, matrices))
        found = dict(zip(*members, strict=True))
        leaves, treedef = jax.tree.flatten(tree)
        return treedef.unflatten(
            leaf.local(found[i], x)
            for i, (leaf, x) in enumerate(zip(plan.leaves, leaves, strict=True))
        )

    moves, averages = take_apart(count, list(zip(*steps, strict=True)))

    def in_order(parts: list[jax.Array], old: jax.Array) -> jax.Array:
        new = jnp.concatenate(parts)[np.argsort(rows)] if parts else old
        return as_varying_as(new, old)

    return like(params, moves), PolarState(
        count=optax.safe_increment(state.count),
        trace=like(state.trace, averages),
        signs=in_order(signs, state.signs),
        pulls=in_order(pulls, state.pulls),
    )


def _each_layer(step: Any) -> Any:
    """A step of one layer, for stacks of leaves with several each."""

    def of_all(*arguments: Any) -> Any:
        shape = arguments[0].shape[:2]
        if math.prod(shape) != 1:
            return jax.vmap(jax.vmap(step))(*arguments)
        # XLA multiplies a stack of one matrix more slowly, and with more memory.
        first = jax.tree.map(lambda x: x[0, 0], arguments)
        return jax.tree.map(lambda x: x[None, None], step(*first))

    return of_all


class _Body(NamedTuple):
    """What the step of a bias takes from its kernel."""

    growth: jax.Array  # the part of an array that is added to change its size
    length: jax.Array  # of the bias' step


def _kernel_step(
    o: _Options,
    w: jax.Array,
    g: jax.Array,
    v: jax.Array,
    b: jax.Array | None,
    sums: jax.Array,
    pull: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, _Body]:
    """A kernel's update, its average, sums of signs and pull, and what its bias needs.

    Of a kernel w [inputs, outputs] with gradient g and average v; b is the gradient of
    its bias [outputs], if it has one, ``sums`` are those of signs and of ones, and
    ``pull`` is log2 of the strongest.
    """
    (u, norm), (direction, gradient_norm) = unit(w), unit(g)
    usual_norm = preserving_norm(w)

    # s = Σ nᵗ⁻ᵏ a / Σ nᵗ⁻ᵏ, and exp(-γ' (κ s + γ β [‖w‖ > ρ̄])) - 1
    cosine = _inner(direction, u)
    sign, pull = _weighed_sign(o, cosine, (norm, gradient_norm), pull)
    sums = o.radial_momentum * sums + jnp.stack([sign, jnp.ones_like(sign)])
    s = sums[0] / sums[1]
    decay = jnp.where(norm.value > usual_norm, o.weight_decay, 0)
    growth = jnp.expm1(-o.learning_rate * (o.radial_rate * s + decay))

    # γ' ρ̄
    inputs, _ = w.shape
    length = jnp.asarray(o.learning_rate * usual_norm, w.dtype)

    # v ← m v + (1 - m) ĝ, and ‖v‖ o
    if b is not None:
        balanced = _balanced(*split_by_input(direction, unit(b)[0]))
        direction = jnp.where(can_tell_constant_input(b), balanced, direction)
    v = o.momentum * v + (1 - o.momentum) * direction
    move = growth * w - length * _across(v, u, o.steps)
    of_bias = jnp.asarray(o.bias_bound / math.sqrt(max(1, inputs)) * length, w.dtype)
    return move, v, sums, pull, _Body(growth, of_bias)


def _weighed_sign(
    o: _Options, cosine: jax.Array, norms: tuple[Scaled, Scaled], pull: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """a, and log2 of q: as logarithms, because e may leave the range of float32.

    With e = ⟨g, w⟩ and q = max(n q, -e), a is the sign of e, and -√(-e / q) if e < 0.
    """
    is_pull = cosine < 0
    size = jnp.log2(jnp.where(is_pull, -cosine, 1))
    for norm in norms:
        size += jnp.log2(jnp.where(is_pull, norm.fraction, 1))
        size += norm.exponent.astype(size.dtype)
    pull += jnp.log2(o.radial_momentum)
    pull = jnp.where(is_pull, jnp.maximum(pull, size), pull)
    weight = jnp.exp2(jnp.where(is_pull, size - pull, 0) / 2)
    return jnp.sign(cosine) * weight, pull


def _vector_step(
    o: _Options, w: jax.Array, g: jax.Array, v: jax.Array, body: _Body | None
) -> tuple[jax.Array, jax.Array]:
    """The update and the average of a bias, or of a vector w without a kernel."""
    if body is None:
        least = o.bias_bound * math.sqrt(w.size)
        length = o.learning_rate * jnp.maximum(l2_norm(w), least)
        body = _Body(jnp.zeros_like(length), length)
    direction, _ = unit(g)
    v = o.momentum * v + (1 - o.momentum) * body.length * direction
    return body.growth * w - v, v


def _balanced(constant: jax.Array, rest: jax.Array) -> jax.Array:
    """The sum, of norm one, with the first part reduced to the norm of the other."""
    size_of_rest = _norm(rest)
    size = root(1 - size_of_rest**2)
    # Where there is nothing but a constant input, rounding would become a direction.
    is_something = size_of_rest > _ROUNDING * jnp.finfo(rest.dtype).eps
    reduced = size_of_rest / jnp.where(size > 0, size, 1)
    part = jnp.where(is_something, jnp.minimum(1, reduced), 1)
    return (rest + part * constant) / jnp.hypot(size_of_rest, part * size)


def _across(v: jax.Array, u: jax.Array, steps: int) -> jax.Array:
    """‖v‖ o: the orthogonal step of the length of v, without its part along u."""
    # An average of arrays of norm one: no norm here leaves the range of float32.
    # Steeper at zero than the best polynomial of so few steps. With that one, fewer
    # seeds of 32 layers of sigmoids trained at the recommended rate.
    o = orthogonalize(v, steps, v.dtype, lowest=0.001)
    norm = _norm(o)
    o = _norm(v) / jnp.where(norm > 0, norm, 1) * o
    # Not made longer again: of a gradient along the kernel only rounding is left.
    return o - _inner(o, u) * u


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    # As a product of vectors, which a CPU adds up several times as fast as a sum.
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


def _norm(x: jax.Array) -> jax.Array:
    return root(_inner(x, x))
