"""Every function of Optax that takes an optimizer takes these, and keeps their states.

A state is not only handed from step to step. It is mapped, saved and restored, sent to
other processes, spread over other devices, and its memory is given away. None of that
may change a run: after every step, in every wrapper, the state goes each of these ways,
and the next step uses the state that comes back.
"""

import copy
import functools
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from optax import contrib
from optax.experimental import aggregating

import lars
from tests.lars.steps import (
    OPTIONS,
    assert_near,
    assert_same,
    drawn,
    first_step,
    run,
)

STEPS = 5
FIRST, SECOND = "a", "b"  # two dense layers
NONE = types.MappingProxyType({})

# --------------------------------------------------------- the optimizers in wrappers


class Inner(NamedTuple):
    """An optimizer to be put into wrappers."""

    of: Callable[..., optax.GradientTransformation]  # a function of the learning rate
    learning_rate: float
    has_lars: bool
    options: tuple[tuple[str, float], ...] = ()
    static_args: tuple[str, ...] = ()  # for `optax.inject_hyperparams`

    def alone(self):
        """As it is, in no wrapper."""
        return self.of(self.learning_rate, **dict(self.options))

    def injected(self, inject):
        """With its numbers in the state, and the learning rate as a schedule."""
        schedule = optax.linear_schedule(self.learning_rate, 0.5, 8)
        return inject(self.of, self.static_args)(schedule, **dict(self.options))

    def __call__(self):
        """For wrappers: traced once in all of them."""
        return _traced_once(self)


@functools.cache
def _traced_once(inner):
    optimizer = optax.with_extra_args_support(inner.alone())
    return optimizer._replace(update=jax.jit(optimizer.update))


def waking(learning_rate):
    return lars.wake_silent_layers(lars.lars(learning_rate, 1e-3))


# The ways that Optax's own optimizer cannot go are asked of no other.
DECAY = (("weight_decay", 1e-3),)
CONTROL = Inner(optax.lars, 1.0, False, DECAY)
INNERS = {
    "lars": Inner(lars.lars, 1.0, True, DECAY),
    "polar": Inner(lars.polar, 0.1, False, static_args=("steps",)),
    "waking": Inner(waking, 1.0, True),
}


# ----------------------------------------------------------------------- the wrappers


ONE = {"value": jnp.float32(1)}  # a loss that does not decrease


def nothing(gradient):
    return {}


def same(tree):
    return tree


# Why Optax cannot do something with any optimizer, by a word of its message.
CANNOT_MAP_VECTORS = dict.fromkeys(
    ("mapped", "on other devices"), "Need at least one array"
)
CANNOT_MAP_BEFORE_A_STEP = dict.fromkeys(
    ("mapped", "on other devices"), "pytree structure"
)
CANNOT_SERIALIZE = {"serialized by Flax": "OrderedDict"}
CANNOT_GIVE_AWAY = {"given away": "donate the same buffer twice"}


class Wrapper(NamedTuple):
    """A way in which Optax takes an optimizer."""

    of: Callable[..., Any]  # the function of Optax
    around: Callable[[Inner], optax.GradientTransformation]
    owned: tuple[str, ...] = (FIRST, SECOND)  # the layers that the optimizer gets
    extra: Callable[[Any], dict[str, Any]] = nothing  # arguments of `update`
    start: Callable[[Any], Any] = same  # from the parameters to those it steps
    given: Callable[[Any], Any] = same  # from the gradients to those it gets
    is_flat: bool = False  # one vector of all parameters
    refuses: Mapping[str, str] = NONE  # optimizers that say why they can't be inside
    cannot: Mapping[str, str] = NONE  # ways that Optax's own optimizers can't go either
    meets_nan: bool = True  # whether lars.lars inside meets a NaN, which some keep


def with_adam(inner):
    labels = {FIRST: "inner", SECOND: "adam"}
    return optax.partition({"inner": inner(), "adam": optax.adam(0.1)}, labels)


def three_of_them(inner):
    """Each for a layer of its own, and one that owns nothing."""
    labels = {FIRST: "some", SECOND: "others"}
    of = {name: inner() for name in ("some", "others", "none")}
    return optax.multi_transform(of, labels)


def stateful(inner):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return inner.injected(optax.inject_stateful_hyperparams)


def second_step(step, **extra_args):
    return step % 2 == 1


def accumulated(inner):
    multi = optax.MultiSteps(inner(), 2, should_skip_update_fn=optax.skip_not_finite)
    return multi.gradient_transformation()


def processed(inner):
    return aggregating.process(
        optax.clip(1.0), aggregating.accumulate_avg_updates(2), inner()
    )


def monitored(inner):
    measured = {"steps": inner(), "norm": optax.measure_with_ema(optax.tree.norm, 0.9)}
    return optax.chain(optax.monitor(measured), optax.sgd(0.1))


def with_other_states(inner):
    return optax.chain(
        inner(),
        optax.apply_every(2),
        optax.ema(0.9),
        optax.freeze(SECOND_ONLY),
        contrib.reduce_on_plateau(0.5, 2),
        optax.snapshot("norm", optax.tree.norm),
    )


def around(of, *arguments, **fields):
    """A wrapper whose first argument is the optimizer."""
    return Wrapper(of, lambda inner: of(inner(), *arguments), **fields)


FIRST_ONLY = {FIRST: True, SECOND: False}
SECOND_ONLY = {FIRST: False, SECOND: True}

WRAPPERS = {
    "chain": Wrapper(
        optax.chain, lambda i: optax.chain(optax.clip_by_global_norm(1.0), i())
    ),
    "chain with other states": Wrapper(
        optax.chain, with_other_states, extra=lambda gradient: ONE
    ),
    "named_chain": Wrapper(
        optax.named_chain,
        lambda i: optax.named_chain(("clip", optax.clip(1.0)), ("inner", i())),
        cannot=CANNOT_SERIALIZE,
    ),
    "with_extra_args_support": around(optax.with_extra_args_support),
    "masked": around(optax.masked, FIRST_ONLY, owned=(FIRST,)),
    "partition with adam": Wrapper(optax.partition, with_adam, owned=(FIRST,)),
    "partition of three": Wrapper(optax.partition, three_of_them),
    "selective_transform": Wrapper(
        optax.selective_transform,
        lambda i: optax.selective_transform(i(), freeze_mask=SECOND_ONLY),
        owned=(FIRST,),
    ),
    "MultiSteps": Wrapper(optax.MultiSteps, accumulated),
    "apply_if_finite": around(optax.apply_if_finite, 3),
    "conditionally_mask": around(optax.conditionally_mask, second_step),
    "conditionally_transform": around(optax.conditionally_transform, second_step),
    "inject_hyperparams": Wrapper(
        optax.inject_hyperparams, lambda i: i.injected(optax.inject_hyperparams)
    ),
    "inject_stateful_hyperparams": Wrapper(optax.inject_stateful_hyperparams, stateful),
    "flatten": around(
        optax.flatten,
        is_flat=True,
        refuses={"waking": "needs parameters with kernels"},
        cannot=CANNOT_MAP_VECTORS,
    ),
    "lookahead": Wrapper(
        optax.lookahead,
        lambda i: optax.lookahead(i(), 2, 0.5, reset_state=True),
        start=optax.LookaheadParams.init_synced,
    ),
    "monitor": Wrapper(
        optax.monitor, monitored, cannot=CANNOT_MAP_BEFORE_A_STEP, meets_nan=False
    ),
    "lbfgs, for its line search": Wrapper(
        optax.lbfgs,
        lambda i: optax.lbfgs(0.1, memory_size=4, linesearch=i()),
        cannot=CANNOT_GIVE_AWAY,
        meets_nan=False,
    ),
    "sophia, for its Hessian": Wrapper(
        contrib.sophia,
        lambda i: contrib.sophia(0.1, update_interval=2, hessian_diagonal_fn=i()),
        meets_nan=False,
    ),
    "mechanize": around(contrib.mechanize, cannot=CANNOT_GIVE_AWAY, meets_nan=False),
    "sam": around(
        contrib.sam, optax.sgd(0.01), cannot=CANNOT_GIVE_AWAY, meets_nan=False
    ),
    "sam, as the adversary": Wrapper(
        contrib.sam,
        lambda i: contrib.sam(optax.sgd(0.1), i(), 3),
        cannot=CANNOT_GIVE_AWAY,
        meets_nan=False,
    ),
    "sam, opaque": Wrapper(
        contrib.sam,
        lambda i: contrib.sam(i(), optax.sgd(0.01), opaque_mode=True),
        # A loss whose gradient is the same everywhere.
        extra=lambda gradient: {"grad_fn": lambda params, i: gradient},
    ),
    "schedule_free": Wrapper(
        contrib.schedule_free, lambda i: contrib.schedule_free(i(), i.learning_rate)
    ),
    "split_real_and_imaginary": around(contrib.split_real_and_imaginary),
    # They hand on gradients of lower rank, without parameters.
    "galore": Wrapper(
        contrib.galore,
        lambda i: contrib.galore(0.1, 2, base_optimizer=i()),
        refuses=dict.fromkeys(INNERS, "needs the parameters"),
    ),
    "scale_by_galore": Wrapper(
        contrib.scale_by_galore,
        lambda i: contrib.scale_by_galore(2, base_optimizer=i()),
        refuses={"lars": "needs the parameters"},
    ),
    "process": Wrapper(aggregating.process, processed),
    "add_mean_variance_to_opt": around(
        aggregating.add_mean_variance_to_opt,
        given=lambda g: jax.tree.map(lambda x: jnp.stack([0.5 * x, 1.5 * x]), g),
    ),
}


# -------------------------------------------------------------------------------- runs


SHAPES = {
    FIRST: {"kernel": (8, 4), "bias": (4,)},
    SECOND: {"kernel": (4, 2), "bias": (2,)},
}


def tree(seed):
    """Two dense layers."""
    return jax.tree.map(jnp.asarray, drawn(SHAPES, seed))


def gradients(with_nan):
    """Of every step; in the second, one that is not finite."""
    found = [tree(1 + i) for i in range(STEPS)]
    if with_nan:
        found[1][FIRST]["bias"] = found[1][FIRST]["bias"].at[0].set(jnp.nan)
    return found


class Run:
    """Runs of one optimizer in one wrapper, by steps that use up their arguments."""

    def __init__(self, wrapper, inner):
        self.wrapper, self.inner = wrapper, inner
        self.optimizer = wrapper.around(inner)
        self.params = wrapper.start(tree(0))
        self.fresh = self.optimizer.init(self.params)
        self.gradients = gradients(inner.has_lars and wrapper.meets_nan)
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, params, state, gradient):
        updates, state = self.optimizer.update(
            self.wrapper.given(gradient), state, params, **self.wrapper.extra(gradient)
        )
        return optax.apply_updates(params, updates), state

    def told(self, state):
        """The trust ratios and skipped steps that a state holds."""
        if not self.inner.has_lars:
            return ()
        return lars.trust_ratios(state), lars.skipped_steps(state)

    def handled(self, way=None, folder=None, devices=1):
        """The last parameters and state, and the ratios that every state holds.

        Each state goes the way. The last steps are made on so many devices.
        """
        params, told = copied(self.params), []
        is_given = way == "given away"
        state = self.optimizer.init(params) if is_given else copied(self.fresh)
        for i, gradient in enumerate(self.gradients):
            params, state = self.step(params, state, gradient)
            if way and (i == 1 or way not in ONCE):
                state = WAYS[way](self, state, folder)
            if i == 1 and devices > 1:
                of_params = self.wrapper.start(shardings(devices)[0])
                of_state = shardings_of_state(self, state, devices)
                params, state = jax.device_put((params, state), (of_params, of_state))
            told.append(self.told(state))
        assert len(jax.tree.leaves(params)[0].sharding.device_set) == devices
        return params, state, told


def copied(tree):
    return jax.tree.map(jnp.array, tree)


# ------------------------------------------------------------------ the ways of states


def through_flax(run, state, _):
    return serialization.from_bytes(template(run, state), serialization.to_bytes(state))


def through_orbax(run, state, folder):
    """Into an abstract state, as a process restores that has made none."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        template(run, state),
    )
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "state", args=ocp.args.StandardSave(state))
        restored = checkpointer.restore(
            folder / "state", args=ocp.args.StandardRestore(like)
        )
    return free(restored)


def on_other_devices(run, state, _):
    """On two devices, on four, and back."""
    for number in (2, 4):
        state = jax.device_put(state, shardings_of_state(run, state, number))
    return free(state)


WAYS = {
    "mapped": lambda run, state, _: optax.tree.map_params(run.optimizer, same, state),
    "serialized by Flax": through_flax,
    "pickled": lambda run, state, _: pickle.loads(pickle.dumps(state)),
    "copied": lambda run, state, _: copy.deepcopy(state),
    "on other devices": on_other_devices,
    "given away": lambda run, state, _: state,  # from the first on; others get a copy
    "restored by Orbax": through_orbax,
}
ONCE = ("restored by Orbax",)  # slow


def template(run, state):
    if run.wrapper.of is optax.monitor:
        return jax.tree.map(jnp.zeros_like, state)  # a fresh one measured nothing
    return run.fresh


def free(state):
    """On no device in particular, for which a step would be compiled anew."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)


@functools.cache
def shardings(number):
    """Of the parameters: kernels by rows, and a bias if its length allows it."""
    mesh = jax.make_mesh(
        (number,), ("d",), devices=jax.devices()[:number], axis_types=(AxisType.Auto,)
    )
    of_rows, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    return {
        FIRST: {"kernel": of_rows, "bias": of_rows},
        SECOND: {"kernel": of_rows, "bias": everywhere},
    }, everywhere


def shardings_of_state(run, state, number):
    """As everybody makes them: those of parameters, and the rest on every device."""
    of_params, everywhere = shardings(number)
    return optax.tree.map_params(
        run.optimizer,
        lambda x, sharding: x if isinstance(x, optax.MaskedNode) else sharding,
        state,
        of_params,
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


# ------------------------------------------------------------- the functions of Optax

NAMES = (  # of arguments that are optimizers, whatever their type is called
    *("inner", "inner_factory", "opt", "optimizer", "base_optimizer", "fast_optimizer"),
    *("adv_optimizer", "tx", "transform", "transforms", "initable"),
)
NO_WRAPPERS = {
    optax.tree.map_params: "it reads a state: here it is one of the ways",
}


def public_modules():
    yield optax
    for module in pkgutil.iter_modules(optax.__path__, "optax."):
        if module.ispkg and not module.name.startswith("optax._"):
            package = importlib.import_module(module.name)
            yield package
            for name, member in vars(package).items():
                if isinstance(member, types.ModuleType) and name[0] != "_":
                    yield member


def takes_an_optimizer(function):
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False  # no function: a type of functions
    return any(
        "GradientTransformation" in str(x.annotation) or x.name in NAMES
        for x in arguments
    )


def offered():
    """All that is public in Optax and has an optimizer among its arguments."""
    return {
        function
        for module in public_modules()
        if module.__name__.startswith("optax")
        for name, function in vars(module).items()
        if name[0] != "_" and callable(function) and takes_an_optimizer(function)
    }


def test_all_of_optax_that_takes_an_optimizer_is_tried_here():
    tried = {x.of for x in WRAPPERS.values()}
    assert not tried & set(NO_WRAPPERS)
    assert offered() == tried | set(NO_WRAPPERS)


# ------------------------------------------------------------------------- the truths


@pytest.fixture(autouse=True)
def _promotion_as_usual():
    """MultiSteps and others divide floats by integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# Others than lars.lars are tried in wrappers that treat states in different ways.
CASES = [
    *((name, "lars") for name in WRAPPERS if "lars" not in WRAPPERS[name].refuses),
    *((name, "polar") for name in ("chain", "MultiSteps", "inject_hyperparams")),
    *((name, "waking") for name in ("chain", "masked", "inject_hyperparams")),
]


@pytest.mark.parametrize(("name", "inner"), CASES)
def test_a_run_is_the_same_whatever_is_done_to_its_state(name, inner, tmp_path):
    run = Run(WRAPPERS[name], INNERS[inner])
    expected = run.handled()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected[0]))
    if run.inner.has_lars:
        check_what_is_told(run, expected[-1])
    failed = []
    for way in WAYS:
        if way not in run.wrapper.cannot:
            try:
                assert_same(run.handled(way, tmp_path), expected)
            except Exception as error:
                failed.append(f"{way}: {type(error).__name__}: {error}")
    assert not failed, "\n".join([f"{inner} in {name} is another run if", *failed])
    if name == "chain":  # the step is compiled again for other devices
        params, _, told = run.handled(devices=4)
        assert_near((params, told), (expected[0], expected[2]), 1e-6)


def check_what_is_told(run, told):
    """Ratios and counts for what LARS owns, in their types, and some of them not 0."""
    for tree_of, dtype in zip(told[-1], (jnp.float32, jnp.int32), strict=True):
        assert all(x.dtype == dtype for x in jax.tree.leaves(tree_of))
        if run.wrapper.is_flat:
            assert jax.tree.structure(tree_of) == jax.tree.structure(0)
            continue
        for layer, parts in SHAPES.items():
            found = list(tree_of[layer]) if jax.tree.leaves(tree_of[layer]) else []
            assert set(found) == (set(parts) if layer in run.wrapper.owned else set())
    assert any(all((x > 0).all() for x in jax.tree.leaves(x)) for x, _ in told)


@pytest.mark.parametrize("name", [name for name, x in WRAPPERS.items() if x.refuses])
def test_what_cannot_be_inside_says_why(name):
    wrapper = WRAPPERS[name]
    for inner, message in wrapper.refuses.items():
        with pytest.raises(ValueError, match=message):
            first_step(wrapper.around(INNERS[inner]), tree(1), tree(0))


@pytest.mark.parametrize("name", [name for name, x in WRAPPERS.items() if x.cannot])
def test_what_is_not_asked_of_a_wrapper_it_does_with_no_optimizer(name, tmp_path):
    run = Run(WRAPPERS[name], CONTROL)
    for way, message in run.wrapper.cannot.items():
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            run.handled(way, tmp_path)


@pytest.mark.parametrize("inner", INNERS)
def test_a_state_alone_is_on_the_devices_where_its_parameters_are(inner):
    run = Run(Wrapper(None, lambda i: i.alone()), INNERS[inner])
    for number in (2, 4):
        placed = jax.device_put(run.fresh, shardings_of_state(run, run.fresh, number))
        trace = optax.tree.get(placed, "trace")
        assert jax.tree.map(lambda x: x.sharding, trace) == shardings(number)[0]
        assert_same(placed, run.fresh)


# --------------------------------------------------------------- nothing for an option


def rules(required):
    """Options with rules for biases, of which the masks leave the others alone."""
    bias = lars.select(path="bias", required=required)
    return {
        "weight_decay_mask": ~bias,
        "trust_ratio_mask": ~bias,
        "layer": [bias],
        "stacked": [(bias, 0)],
        "output_axes": [(bias, 0)],
    }


def kernels_only(tree):
    return {name: {"kernel": layer["kernel"]} for name, layer in tree.items()}


def test_rules_that_need_not_find_anything_change_nothing():
    params, gradient = kernels_only(tree(0)), kernels_only(tree(1))

    def step(**options):
        updates, state = first_step(lars.lars(1.0, 1e-3, **options), gradient, params)
        return updates, lars.trust_ratios(state), lars.skipped_steps(state)

    assert_same(step(**rules(required=False)), step())


@pytest.mark.parametrize("option", rules(required=True))
def test_a_rule_that_finds_nothing_is_an_error(option):
    optimizer = lars.lars(1.0, 1e-3, **{option: rules(required=True)[option]})
    with pytest.raises(ValueError, match="selects none of"):
        optimizer.init(kernels_only(tree(0)))


def owning_nothing(optimizer):
    """Wrappers in which it gets no parameter at all."""
    return {
        "masked": optax.masked(optimizer, {FIRST: False, SECOND: False}),
        "partition": optax.partition(
            {"some": optax.sgd(0.1), "none": optimizer}, {FIRST: "some", SECOND: "some"}
        ),
    }


OWNING_NOTHING = {
    "polar": lars.polar(0.1),
    "waking": waking(1.0),
    "rules": lars.lars(1.0, 1e-3, **rules(required=False)),
    **{name: lars.lars(1.0, 1e-3, **options) for name, options in OPTIONS.items()},
}


@pytest.mark.parametrize("name", OWNING_NOTHING)
@pytest.mark.parametrize("around", ["masked", "partition"])
def test_what_owns_nothing_does_nothing(around, name):
    """Whatever its options: there is nothing that they could be for."""
    optimizer = owning_nothing(OWNING_NOTHING[name])[around]
    expected = owning_nothing(optax.identity())[around]
    params, gradient = tree(0), tree(1)
    right, _ = expected.update(gradient, expected.init(params), params)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, params)
        assert_same(updates, right)
        state = optax.tree.map_params(optimizer, same, state)
        if name != "polar":
            for told in (lars.trust_ratios(state), lars.skipped_steps(state)):
                assert not jax.tree.leaves(told)
                assert set(told) == {FIRST, SECOND}


@pytest.mark.parametrize("inner", INNERS)
def test_an_empty_module_beside_others_is_no_parameter(inner):
    optimizer = INNERS[inner].alone()
    params, gradient = tree(0) | {"dropout": {}}, tree(1) | {"dropout": {}}
    state = optimizer.init(params)
    _, after = jax.eval_shape(optimizer.update, gradient, state, params)
    # A loop takes it: nothing is another after a step.
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    if INNERS[inner].has_lars:
        assert set(lars.trust_ratios(state)) == set(params)
        assert set(lars.skipped_steps(state)) == set(params)


# ----------------------------------------------------- what wrappers are said to do

BIASES = lars.select(path="bias")
RULES = {
    "weight_decay": 0.1,
    "weight_decay_mask": ~BIASES,
    "trust_coefficient": 0.02,
    "trust_ratio_mask": ~BIASES,
    "momentum": 0.8,
    "layer": "module",
}
RULED = lars.lars(2.0, **RULES)


def test_partitions_have_their_own_optimizers_and_integers_have_none():
    optimizers = {"lars": RULED, "sgd": optax.sgd(0.1), "none": optax.set_to_zero()}
    optimizer = optax.partition(
        optimizers, {FIRST: "lars", SECOND: "sgd", "table": "none"}
    )
    table, every = jnp.arange(4), gradients(with_nan=False)
    weights, state = run(
        optimizer,
        tree(0) | {"table": table},
        [g | {"table": jnp.zeros_like(table)} for g in every],
    )
    expected, alone = run(
        RULED, {FIRST: tree(0)[FIRST]}, [{FIRST: g[FIRST]} for g in every]
    )
    assert_near([{FIRST: w[FIRST]} for w in weights], expected, 1e-6)
    by_sgd = optax.tree.add(tree(0)[SECOND], optax.tree.scale(-0.1, every[0][SECOND]))
    assert_near(weights[0][SECOND], by_sgd, 1e-6)
    np.testing.assert_array_equal(weights[-1]["table"], table)
    ratios = lars.trust_ratios(state)
    assert ratios.pop(SECOND) == ratios.pop("table") == optax.MaskedNode()
    assert_near(ratios, lars.trust_ratios(alone), 1e-6)


def test_multi_steps_makes_one_step_of_the_mean_gradient():
    every = gradients(with_nan=False)[:4]
    means = [optax.tree.scale(0.5, optax.tree.add(*every[i : i + 2])) for i in (0, 2)]
    multi = optax.MultiSteps(RULED, 2).gradient_transformation()
    weights, state = run(multi, tree(0), every)
    expected, alone = run(RULED, tree(0), means)
    assert_near(weights, [tree(0), expected[0], *expected], 1e-5)
    assert_near(lars.trust_ratios(state), lars.trust_ratios(alone), 1e-5)


def test_apply_if_finite_leaves_out_the_whole_step():
    first, broken, third, *_ = gradients(with_nan=True)
    weights, state = run(
        optax.apply_if_finite(RULED, 5), tree(0), [first, broken, third]
    )
    expected, alone = run(RULED, tree(0), [first, third])
    assert_near(weights, [expected[0], *expected], 1e-6)
    assert_near(state.inner_state, alone, 1e-6)
    assert state.total_notfinite == 1
    # Not even counted: the broken step never was.
    assert not any(np.any(x) for x in jax.tree.leaves(lars.skipped_steps(state)))


def test_injected_hyperparameters_are_those_of_lars():
    static = ("weight_decay_mask", "trust_ratio_mask", "layer")
    optimizer = optax.inject_hyperparams(lars.lars, static_args=static)(2.0, **RULES)
    weights, state = run(optimizer, tree(0), gradients(with_nan=False))
    expected, alone = run(RULED, tree(0), gradients(with_nan=False))
    assert_near(weights, expected, 1e-5)
    assert_near(lars.trust_ratios(state), lars.trust_ratios(alone), 1e-5)
    numbers = {"learning_rate": 2.0, "momentum": 0.8, "weight_decay": 0.1}
    for name, number in numbers.items():
        np.testing.assert_allclose(state.hyperparams[name], number, rtol=1e-6)


# ----------------------------------------------------------- saved by another program


def test_a_state_is_serialized_whatever_was_imported_first(tmp_path):
    """In a process of its own, that imports Flax after the state is there."""
    optimizer = INNERS["lars"].alone()
    state = optimizer.init(tree(0))
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    program = f"""
        import pickle, sys
        with open({str(tmp_path / "state")!r}, "rb") as file:
            unpickled = pickle.load(file)
        import jax, jax.numpy as jnp
        import lars
        params = {{"a": {{"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}},
                  "b": {{"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}}}
        made = lars.lars(1.0, 1e-3).init(params)
        assert "flax" not in sys.modules
        from flax import serialization
        for state in (unpickled, made):
            saved = serialization.to_bytes(state)
            restored = serialization.from_bytes(unpickled, saved)
            assert jax.tree.structure(restored) == jax.tree.structure(state)
            print(lars.trust_ratios(restored)["b"]["bias"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.0", "0.0"]


def test_a_checkpoint_of_optax_goes_on_with_the_sign_of_its_momentum_changed():
    """The buffer of `optax.lars` holds updates, that of LARS holds their negatives."""
    rate = optax.linear_schedule(1.0, 0.1, 5)
    theirs, ours = optax.lars(rate, 1e-3), lars.presets.optax(rate, 1e-3)
    every = gradients(with_nan=False)
    *_, last = run(theirs, tree(0), every)[0]
    (_, middle), saved = run(theirs, tree(0), every[:2])
    trace, count = (optax.tree.get(saved, name) for name in ("trace", "count"))

    def way_on(trace):
        """How far the steps from the third on lead."""
        params, update = middle, jax.jit(ours.update)
        state = ours.init(params)._replace(count=count, trace=trace)
        for gradient in every[2:]:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return optax.tree.sub(params, middle)

    expected = optax.tree.sub(last, middle)
    # Rounding of parameters is a larger part of their steps, which are small.
    assert_near(way_on(jax.tree.map(jnp.negative, trace)), expected, 1e-4)
    wrong = way_on(trace)
    for a, b in zip(jax.tree.leaves(wrong), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) > 0.5 * np.max(np.abs(b))
