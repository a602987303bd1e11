"""Times steps of optimizers, beside the least that the memory allows.

A step of LARS reads the parameters and the gradients for the norms, reads parameters,
gradients and momentum for the step, and writes parameters and momentum: 7 passes over
arrays of the parameters' size. Those 7 passes, at the bandwidth that the same rounds
measure on arrays of the same size, are the floor.
"""

import dataclasses
import gc
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars.optimizer import lars
from lars.polar_optimizer import polar

PASSES = 7
"""How often a step of LARS goes through an array of the parameters' size."""

MIN_ROUNDS = 4
"""How often even the slowest optimizer is timed."""

Tree = dict[str, Any]
"""Nested dictionaries of `jax.ShapeDtypeStruct`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A tree of parameters, and the optimizers that are timed on it."""

    label: str
    tree: Tree
    arms: tuple[str, ...]  # names of `optimizers`
    copies: int | None = None  # stepped together under `jax.vmap`


HANDOVER = "arrays handed over"
"""No optimizer: the arrays go into a compiled program and come back as they are."""

EQUATIONS = "equations alone"
"""Those of LARS without safe norms, zero rules or telemetry, each array by itself."""

SGD, REFERENCE, MUON = "optax.sgd", "optax.lars", "optax.contrib.muon"
_SPECTRAL, _POLAR = "lars, spectral", "lars.polar"
ARMS = (SGD, "optax.adam", REFERENCE, EQUATIONS, "lars", _SPECTRAL, _POLAR)


def optimizers() -> dict[str, Callable[[], optax.GradientTransformation]]:
    """Each optimizer that is timed, by its name."""
    settings: dict[str, Any] = {"learning_rate": 0.1, "momentum": 0.9}
    decayed: dict[str, Any] = {**settings, "weight_decay": 1e-4}
    return {
        HANDOVER: lambda: optax.GradientTransformation(
            lambda params: optax.tree.zeros_like(params),  # as large as a momentum
            lambda updates, state, params=None: (updates, state),
        ),
        EQUATIONS: lambda: _equations(**decayed),
        SGD: lambda: optax.sgd(**settings),
        "optax.adam": lambda: optax.adam(learning_rate=1e-3),
        REFERENCE: lambda: optax.lars(**decayed),
        "lars": lambda: lars(**decayed),
        _SPECTRAL: lambda: lars(**decayed, geometry="spectral"),
        _POLAR: lambda: polar(learning_rate=0.1),
        MUON: lambda: optax.contrib.muon(learning_rate=1e-3, weight_decay=1e-4),
    }


def _equations(
    learning_rate: float, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    def step(w: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
        w_norm, g_norm = jnp.linalg.norm(w), jnp.linalg.norm(g)
        ratio = 0.001 * w_norm / (g_norm + weight_decay * w_norm)
        return momentum * v + learning_rate * ratio * (g + weight_decay * w)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        trace = jax.tree.map(step, params, updates, state)
        return optax.tree.scale(-1, trace), trace

    return optax.GradientTransformation(optax.tree.zeros_like, update)


def cases(quick: bool = False) -> dict[str, Case]:
    """The trees by their names; ``quick``: small ones of the same kinds."""
    width, layers, features, leaves = (8, 2, 32, 5) if quick else (64, 12, 768, 5000)
    narrow = width // 4
    return {
        "resnet50": Case(f"ResNet-50{_of(quick, width)}", resnet50(width), ARMS),
        "transformer": Case(
            f"transformer of {layers} layers{_of(quick, features)}",
            transformer(layers, features),
            # Muon takes matrices: the kernels of this tree, but not convolutions.
            (*ARMS, MUON),
        ),
        "leaves": Case(
            f"{leaves:,} arrays of 1,000",
            {f"leaf_{i:04d}": _array(1000) for i in range(leaves)},
            # A vector has one singular value: there is nothing to orthogonalize. XLA
            # compiles the reference for minutes.
            (HANDOVER, SGD, "lars"),
        ),
        "vmap": Case(
            f"ResNet-50 of width {narrow}, 4 under vmap",
            resnet50(narrow),
            (REFERENCE, "lars"),
            copies=4,
        ),
    }


def _of(quick: bool, width: int) -> str:
    return f" of width {width}" if quick else ""


def resnet50(width: int = 64) -> Tree:
    """The parameters of ResNet-50: 161 arrays, at width 64 of 25,557,032 numbers."""
    tree: Tree = {
        "stem": {"conv": _array(7, 7, 3, width), "norm": _norm(width)},
        "head": {"kernel": _array(32 * width, 1000), "bias": _array(1000)},
    }
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        outputs = 4 * inner
        for i in range(blocks):
            block = {
                "conv_0": _array(1, 1, inputs, inner),
                "conv_1": _array(3, 3, inner, inner),
                "conv_2": _array(1, 1, inner, outputs),
                "norm_0": _norm(inner),
                "norm_1": _norm(inner),
                "norm_2": _norm(outputs),
            }
            if i == 0:
                block["shortcut"] = _array(1, 1, inputs, outputs)
                block["shortcut_norm"] = _norm(outputs)
            tree[f"stage_{stage}_block_{i}"] = block
            inputs = outputs
    return tree


def transformer(layers: int = 12, features: int = 768) -> Tree:
    """The layers of a transformer, as GPT-2's: at its sizes 85,054,464 numbers."""

    def dense(inputs: int, outputs: int) -> Tree:
        return {"kernel": _array(inputs, outputs), "bias": _array(outputs)}

    return {
        f"layer_{i:02d}": {
            "attention_norm": _norm(features),
            "qkv": dense(features, 3 * features),
            "projection": dense(features, features),
            "mlp_norm": _norm(features),
            "mlp_in": dense(features, 4 * features),
            "mlp_out": dense(4 * features, features),
        }
        for i in range(layers)
    }


def _norm(features: int) -> Tree:
    return {"scale": _array(features), "bias": _array(features)}


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def num_parameters(case: Case) -> int:
    """How many numbers the parameters of a case are, all copies together."""
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(case.tree))
    return (case.copies or 1) * size


class Stepper:
    """An optimizer's compiled step with the arrays that it steps."""

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        params: optax.Params,
        grads: optax.Updates,
        vmapped: bool = False,
        at_once: int = 1,
    ) -> None:
        """Compiles so many steps at once. ``params`` is copied, ``grads`` is not."""

        # The outputs are in the order of the donated inputs: in another, JAX writes the
        # new momentum into the buffer of the parameters, XLA makes copies to allow it,
        # and a step of SGD takes three times as long.
        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            if updates is grads:
                return params, state
            return optax.apply_updates(params, updates), state

        self._params = jax.tree.map(jnp.copy, params)
        self._grads = grads
        self._state = (jax.vmap if vmapped else lambda f: f)(optimizer.init)(params)
        step = _repeated(jax.vmap(step) if vmapped else step, at_once)
        self._step = jax.jit(step, donate_argnums=(0, 1))
        started = time.perf_counter()
        compiled = self._step.lower(self._params, self._state, grads).compile()
        self.compile_seconds = time.perf_counter() - started
        memory = compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else math.nan

    def __call__(self) -> None:
        """Makes the steps. They may be still under way: see `wait`."""
        self._params, self._state = self._step(self._params, self._state, self._grads)

    def wait(self) -> None:
        """Waits for the steps made."""
        jax.block_until_ready((self._params, self._state))

    def check(self, initial: optax.Params) -> None:
        """Raises RuntimeError if an array did not change, or is not finite."""
        for (path, old), new in zip(
            jax.tree.leaves_with_path(initial),
            jax.tree.leaves(self._params),
            strict=True,
        ):
            old, new = np.asarray(old), np.asarray(new)
            if not np.isfinite(new).all() or np.array_equal(old, new):
                raise RuntimeError(
                    f"the steps left {jax.tree_util.keystr(path)} as it was, or not "
                    "finite."
                )


def _repeated(step: Callable[..., Any], times: int) -> Callable[..., Any]:
    """A step of parameters and state, several times in one program."""
    if times == 1:
        return step

    def steps(params: Any, state: Any, grads: Any) -> Any:
        def one(_: jax.Array, carry: Any) -> Any:
            params, state = carry
            # Else XLA computes once what depends on gradients alone.
            params, fresh = jax.lax.optimization_barrier((params, grads))
            return step(params, state, fresh)

        return jax.lax.fori_loop(0, times, one, (params, state))

    return steps


class _Addition:
    """Adds one array to another of the same size, in place: 3 passes of memory."""

    def __init__(self, size: int, at_once: int = 1) -> None:
        def add(x: jax.Array, unused: Any, y: jax.Array) -> tuple[jax.Array, Any]:
            return x + y, unused

        self._add = jax.jit(_repeated(add, at_once), donate_argnums=0)
        self._x, self._y = jnp.zeros(size), jnp.ones(size)

    def __call__(self) -> None:
        self._x, _ = self._add(self._x, (), self._y)

    def wait(self) -> None:
        jax.block_until_ready(self._x)


def num_parts(case: Case, rounds: int) -> int:
    """How many parts `time_steps` has, for a progress bar."""
    return 2 * len(case.arms) + 1 + rounds


class Timing(NamedTuple):
    """How long the steps of a case took."""

    seconds: dict[str, np.ndarray]  # of each optimizer [rounds]; NaN: not timed then
    additions: np.ndarray  # [rounds], seconds of an addition of arrays of this size
    runs: dict[str, "Stepper"]


def time_steps(
    name: str,
    case: Case,
    rounds: int,
    seconds: float,
    begin: Callable[[str], None] = lambda part: None,
) -> Timing:
    """Times the optimizers of a case, one step of each a round, in random order.

    What else the machine does then slows all of them alike, and a ratio is the median
    of the ratios in the same round.

    Args:
        name: of the case, for `begin`.
        case: one of `cases`.
        rounds: how often each optimizer is timed.
        seconds: about how long the timing of one optimizer may take; a slower one is
            timed in fewer of the rounds, but in `MIN_ROUNDS`.
        begin: called before each of the `num_parts` parts, with what that is.

    Raises:
        RuntimeError: if a step leaves an array as it was, or not finite.
    """
    random = np.random.default_rng(0)
    params, grads = (_normal(random, case) for _ in range(2))
    vmapped = case.copies is not None
    runs: dict[str, Any] = {}
    available = optimizers()
    # To call a program with hundreds of arrays takes longer than an accelerator's step.
    steps = 1 if jax.default_backend() == "cpu" else 10
    for arm in case.arms:
        begin(f"{name}: compiling {arm}")
        runs[arm] = Stepper(available[arm](), params, grads, vmapped, steps)
    addition = _Addition(num_parameters(case), steps)

    timed_in = {}
    for arm, run in {**runs, "": addition}.items():
        begin(f"{name}: first steps of {arm or 'the floor'}")
        spent = _time(run)
        if MIN_ROUNDS * spent < seconds:  # else it is too slow to be run once more
            spent = _time(run)
        count = min(rounds, max(MIN_ROUNDS, int(seconds / spent)))
        timed_in[arm] = set(np.linspace(0, rounds - 1, count).round())
    times = {arm: np.full(rounds, np.nan) for arm in (*case.arms, "")}
    # Collecting the garbage of thousands of small arrays would be timed as well.
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            begin(f"{name}: timing")
            for arm in random.permutation(list(times)):
                if i in timed_in[arm] or arm == "":
                    times[arm][i] = _time(runs[arm] if arm else addition) / steps
    finally:
        gc.enable()
    for arm, run in runs.items():
        if arm != HANDOVER:
            run.check(params)
    additions = times.pop("")
    return Timing(times, additions, runs)


def _normal(random: np.random.Generator, case: Case) -> optax.Params:
    copies = () if case.copies is None else (case.copies,)
    return jax.tree.map(
        lambda leaf: jnp.array(
            0.02 * random.standard_normal((*copies, *leaf.shape), np.float32)
        ),
        case.tree,
    )


def _time(run: Stepper | _Addition) -> float:
    """The seconds of a call."""
    started = time.perf_counter()
    run()
    run.wait()
    return time.perf_counter() - started
