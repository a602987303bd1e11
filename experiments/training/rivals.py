"""Rivals of `lars.polar` that optax does not have.

Most prescribe or bound norms. Then it hardly matters with which one a kernel starts.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon as muon_of_matrices

from lars.kernels import Kernel, kernels_of, preserving_norm
from lars.norms import l2_norm, unit
from lars.options import at
from lars.spectral import as_matrices, from_matrices, orthogonalize

Radius = Literal["initial", "preserving"]


@functools.wraps(muon_of_matrices)
def muon(
    learning_rate: optax.ScalarOrSchedule, **settings: Any
) -> optax.GradientTransformation:
    """`optax.contrib.muon` for all kernels, also of attention and convolutions.

    Left alone it would leave all but matrices to Adam.
    """

    def of(params: optax.Params | None) -> optax.GradientTransformation:
        # Of whole parameters: beside its bias a kernel shows which axes are outputs.
        leaves, treedef = jax.tree.flatten(params)
        numbers: list[MuonDimensionNumbers | None] = [None] * len(leaves)
        for kernel in kernels_of(params):
            axes = range(np.ndim(leaves[kernel.leaf]))
            outputs = tuple(axes[axis] for axis in kernel.output_axes)
            inputs = tuple(axis for axis in axes if axis not in outputs)
            numbers[kernel.leaf] = MuonDimensionNumbers(inputs, outputs)
        return muon_of_matrices(
            learning_rate,
            muon_weight_dimension_numbers=treedef.unflatten(numbers),
            **settings,
        )

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        return of(params).update(updates, state, params)

    return optax.GradientTransformation(lambda x: of(x).init(x), update_fn)


def norms_reset(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    r"""An optimizer after each of whose steps kernels get their preserving norm.

    .. math::
        w_{t+1} = \bar\rho\,\frac{w_t + \Delta_t}{\|w_t + \Delta_t\|_F}

    All else steps as the inner optimizer has it. From a much larger norm it takes a few
    steps.

    References:
        Jordan, `94% on CIFAR-10 in 3.29 Seconds on a Single GPU
        <https://arxiv.org/abs/2404.00498>`_, 2024, whose later versions with Muon reset
        the norms of filters at every step
    """

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(updates, state, params)

        def reset(kernel: Kernel, w: jax.Array, step: jax.Array) -> jax.Array:
            size = preserving_norm(w, kernel.output_axes)
            return _towards(size, w) * unit(w + step)[0] - w

        return _of_kernels(reset, params, updates), state

    return optax.GradientTransformation(inner.init, update_fn)


class HyperballState(NamedTuple):
    """State of `hyperball`."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: optax.OptState
    radii: list[jax.Array]  # of every kernel, shape=()


def hyperball(
    learning_rate: optax.ScalarOrSchedule,
    directions: Callable[..., optax.GradientTransformation] = optax.adam,
    radius: Radius = "initial",
) -> optax.GradientTransformation:
    r"""Steps of a given length along directions, on a sphere of a fixed radius.

    .. math::
        w_{t+1} = R\,\frac{x}{\|x\|_F}, \qquad
          x = \frac{w_t}{\|w_t\|_F} + \gamma_t\,\frac{d_t}{\|d_t\|_F}

    d is the step of another optimizer, and R the norm that the kernel started with, as
    in the paper, or the preserving one. All else makes the other optimizer's steps.

    References:
        Hyperball optimization, `arXiv:2606.16899
        <https://arxiv.org/abs/2606.16899>`_, 2026
    """
    inner = directions(learning_rate)

    def init_fn(params: optax.Params) -> HyperballState:
        w = jax.tree.leaves(params)
        radii = [
            l2_norm(w[kernel.leaf])
            if radius == "initial"
            else jnp.float32(preserving_norm(w[kernel.leaf], kernel.output_axes))
            for kernel in kernels_of(params)
        ]
        return HyperballState(jnp.zeros((), jnp.int32), inner.init(params), radii)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, HyperballState]:
        updates, inner_state = inner.update(updates, state.inner_state, params)
        rate = at(learning_rate, state.count)
        radii = iter(state.radii)

        def on_sphere(_: Kernel, w: jax.Array, step: jax.Array) -> jax.Array:
            moved = unit(w)[0] + rate * unit(step)[0]
            return _towards(next(radii), w) * unit(moved)[0] - w

        updates = _of_kernels(on_sphere, params, updates)
        count = optax.safe_increment(state.count)
        return updates, HyperballState(count, inner_state, state.radii)

    return optax.GradientTransformation(init_fn, update_fn)


class ScionState(NamedTuple):
    """State of `scion`."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: optax.Params  # the averages of gradients, like the parameters


def scion(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, radius: float
) -> optax.GradientTransformation:
    r"""Steps towards the corner of a ball that the gradient points to.

    .. math::
        w_{t+1} = (1 - \gamma_t)\,w_t - \gamma_t\,\rho
          \sqrt{\frac{\text{outputs}}{\text{inputs}}}\,UV^\top
          \text{ of the average } v = U \Sigma V^\top

    So the spectral norm is at most the radius, once the start has decayed. Vectors have
    balls in the norm of the root of the mean square.

    References:
        Pethick et al., `Training Deep Learning Models with Norm-Constrained LMOs
        <https://arxiv.org/abs/2502.07529>`_, 2025
    """

    def init_fn(params: optax.Params) -> ScionState:
        return ScionState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScionState]:
        trace = optax.tree.update_moment(updates, state.trace, momentum, 1)
        rate = at(learning_rate, state.count)

        def towards(w: jax.Array, corner: jax.Array) -> jax.Array:
            return -rate * (w + radius * corner)

        def of_kernel(kernel: Kernel, w: jax.Array, v: jax.Array) -> jax.Array:
            matrix = as_matrices(unit(v)[0], (), kernel.output_axes)
            inputs, outputs = matrix.shape
            corner = (outputs / inputs) ** 0.5 * orthogonalize(matrix)
            return towards(w, from_matrices(corner, w.shape, (), kernel.output_axes))

        vectors = jax.tree.map(
            lambda w, v: towards(w, v.size**0.5 * unit(v)[0]), params, trace
        )
        updates = _of_kernels(of_kernel, params, vectors, trace)
        return updates, ScionState(optax.safe_increment(state.count), trace)

    return optax.GradientTransformation(init_fn, update_fn)


class AngularMuownState(NamedTuple):
    """State of `angular_muown`."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: optax.OptState  # Adam's, of all else
    sizes: list[jax.Array]  # of every kernel's columns, shape=(1, outputs)
    sizes_state: optax.OptState  # Adam's, of the sizes
    traces: list[jax.Array]  # sums of directions' gradients, shape=(inputs, outputs)


def angular_muown(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    angular_decay: float = 0.001,
) -> optax.GradientTransformation:
    r"""Adam on the sizes of a kernel's columns, and Muon on their directions.

    .. math::
        \begin{align*}
        w &= u \operatorname{diag}(s), \qquad \|u_i\| = 1 \\
        s' &= \langle g_i, u_i\rangle, \qquad u' = (g - u \operatorname{diag}(s'))
          \operatorname{diag}(s) \\
        v_{t+1} &= m\,v_t + u'_t, \qquad
          x = u_t - \frac{\gamma_t}{1 + c t} \sqrt{\max(1,
          \tfrac{\text{outputs}}{\text{inputs}})}\,UV^\top
          \text{ of } u'_t + m\,v_{t+1} = U \Sigma V^\top \\
        u_{t+1} &= x \operatorname{diag}(\|x_i\|)^{-1}, \qquad
          s_{t+1} = s_t + \text{Adam's step along } s'
        \end{align*}

    i is an output, and c the decay of angles. Biases and normalizations make Adam's
    steps, and so would embeddings and output layers in the authors' code. Here all
    kernels are treated alike, as by the other optimizers. As in that code, columns of
    norms of at most 10⁻⁷ start with the size √0.33.

    References:
        Hübler et al., Muown Implicitly Performs Angular Step-size Decay,
        `arXiv:2606.23637 <https://arxiv.org/abs/2606.23637>`_, 2026, and its code
    """
    inner = optax.adam(learning_rate)
    of_sizes = optax.adam(learning_rate, b2=0.95)

    def init_fn(params: optax.Params) -> AngularMuownState:
        w = jax.tree.leaves(params)
        kernels = [
            as_matrices(w[kernel.leaf], (), kernel.output_axes)
            for kernel in kernels_of(params)
        ]
        norms = [jnp.linalg.norm(w, axis=0, keepdims=True) for w in kernels]
        sizes = [jnp.where(x <= _LEAST_SIZE, 0.33**0.5, x) for x in norms]
        return AngularMuownState(
            jnp.zeros((), jnp.int32),
            inner.init(params),
            sizes,
            of_sizes.init(sizes),
            optax.tree.zeros_like(kernels),
        )

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AngularMuownState]:
        rate = at(learning_rate, state.count)
        angle = rate / (1 + angular_decay * jnp.float32(state.count))
        grads = jax.tree.leaves(updates)
        updates, inner_state = inner.update(updates, state.inner_state, params)
        kernels = list(kernels_of(params))
        w = [
            as_matrices(jax.tree.leaves(params)[x.leaf], (), x.output_axes)
            for x in kernels
        ]
        g = [as_matrices(grads[x.leaf], (), x.output_axes) for x in kernels]
        u = [x / size for x, size in zip(w, state.sizes, strict=True)]
        of_size = [
            (x * y).sum(axis=0, keepdims=True) for x, y in zip(g, u, strict=True)
        ]
        of_u = jax.tree.map(
            lambda g, u, s, size: size * (g - u * s), g, u, of_size, state.sizes
        )
        traces = jax.tree.map(lambda v, x: momentum * v + x, state.traces, of_u)
        steps, sizes_state = of_sizes.update(of_size, state.sizes_state)
        sizes = [_kept_from_zero(x) for x in optax.apply_updates(state.sizes, steps)]

        def turned(u: jax.Array, of_u: jax.Array, v: jax.Array) -> jax.Array:
            inputs, outputs = u.shape
            length = angle * max(1, outputs / inputs) ** 0.5
            x = u - length * orthogonalize(unit(of_u + momentum * v)[0])
            return x / jnp.maximum(
                jnp.linalg.norm(x, axis=0, keepdims=True), _LEAST_SIZE
            )

        directions = jax.tree.map(turned, u, of_u, traces)
        new = iter(jax.tree.map(jnp.multiply, directions, sizes))
        updates = _of_kernels(
            lambda kernel, w, _: (
                from_matrices(next(new), w.shape, (), kernel.output_axes) - w
            ),
            params,
            updates,
        )
        count = optax.safe_increment(state.count)
        return updates, AngularMuownState(
            count, inner_state, sizes, sizes_state, traces
        )

    return optax.GradientTransformation(init_fn, update_fn)


_LEAST_SIZE = 1e-7


def _kept_from_zero(x: jax.Array) -> jax.Array:
    return jnp.copysign(jnp.maximum(jnp.abs(x), _LEAST_SIZE), x)


def _towards(size: jax.typing.ArrayLike, w: jax.Array) -> jax.Array:
    """The norm that a step gives a kernel: a difference of float32 keeps its digits."""
    return jnp.maximum(size, 2.0**-15 * l2_norm(w))


def _of_kernels(
    function: Callable[[Kernel, jax.Array, jax.Array], jax.Array],
    params: optax.Params | None,
    updates: optax.Updates,
    inputs: optax.Params | None = None,
) -> optax.Updates:
    """The updates, with a function of kernels and of inputs in the place of theirs."""
    w, (new, treedef) = jax.tree.leaves(params), jax.tree.flatten(updates)
    x = new if inputs is None else jax.tree.leaves(inputs)
    x = list(x)
    for kernel in kernels_of(params):
        new[kernel.leaf] = function(kernel, w[kernel.leaf], x[kernel.leaf])
    return treedef.unflatten(new)


def with_norms_reset(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """The optimizer within `norms_reset`."""

    @functools.wraps(factory)
    def reset(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        return norms_reset(factory(*args, **kwargs))

    return reset
