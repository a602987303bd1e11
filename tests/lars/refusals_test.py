"""Trees and states that make no sense are refused by all optimizers, and named."""

import numpy as np
import optax
import pytest

import lars

OPTIMIZERS = {
    "lars": lars.lars(1.0),
    "polar": lars.polar(0.1),
    "waking": lars.wake_silent_layers(optax.sgd(0.1)),
}
KERNEL, BIAS = np.ones((4, 3), np.float32), np.ones(3, np.float32)


def tree(kernel=KERNEL, bias=BIAS):
    return {"a": {"kernel": kernel, "bias": bias}}


PARAMS = tree()
TWICE = {**PARAMS, "b": PARAMS["a"]}

REFUSED = [
    # Parameters of `init`
    *(({"init": empty}, ValueError, "params is an empty tree") for empty in ({}, [])),
    *(({"init": x}, ValueError, "an empty tree") for x in ({"a": {}}, ((), {}))),
    *(
        ({"init": tree(x)}, TypeError, r"(int32|bool) at 'a/kernel': .*optax\.masked")
        for x in (np.ones((4, 3), np.int32), np.ones((4, 3), np.bool_))
    ),
    # Gradients
    ({"grads": {"a": 1.0}}, ValueError, "gradients are not a tree like the parameters"),
    ({"grads": tree(KERNEL.T)}, ValueError, r"of 'a/kernel' has shape \(3, 4\)"),
    (
        {"grads": tree(bias=np.ones(3, np.int32))},
        TypeError,
        "int32 for the .* 'a/bias'",
    ),
    ({"grads": tree(1j * KERNEL)}, TypeError, "gradient of 'a/kernel' is complex, com"),
    # Parameters of `update`
    ({"params": None}, ValueError, r"needs the parameters: call update\(gradients, st"),
    ({"params": TWICE, "grads": TWICE}, ValueError, "the state is of other parameters"),
    # States
    *(
        ({"state": state}, TypeError, rf"got {name}, need \w+State\. .* init\(params\)")
        for state, name in (
            (optax.EmptyState(), "EmptyState"),
            (optax.lars(1.0).init(PARAMS), "tuple"),
            (optax.chain(lars.lars(1.0)).init(PARAMS), "tuple"),
        )
    ),
]


def step(optimizer, init=PARAMS, grads=PARAMS, params=PARAMS, state=None):
    right = optimizer.init(init)
    optimizer.update(grads, right if state is None else state, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(name, wrong, error, message):
    with pytest.raises(error, match=message):
        step(OPTIMIZERS[name], **wrong)


@pytest.mark.parametrize(
    "optimizer",
    [
        OPTIMIZERS["polar"],
        OPTIMIZERS["waking"],
        lars.presets.colossalai(1.0),
        lars.lars(1.0, geometry="spectral"),
    ],
)
def test_complex_parameters_are_refused_where_there_is_no_rule_for_them(optimizer):
    message = "needs? real parameters, got complex64 at 'a/kernel'"
    with pytest.raises(TypeError, match=message):
        optimizer.init(tree(np.complex64(KERNEL)))


def test_waking_needs_kernels_and_patience():
    with pytest.raises(ValueError, match=r"needs parameters with kernels.*\(3,\)"):
        OPTIMIZERS["waking"].init({"bias": BIAS})
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        lars.wake_silent_layers(optax.sgd(0.1), patience=0)


NO_BOOLEANS = "True and False only, got 'kernel'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": list}, "label of 'a/bias' must be hashable"),
        ({"weight_decay_mask": "kernel"}, NO_BOOLEANS),
        ({"trust_ratio_mask": "kernel"}, NO_BOOLEANS),
    ],
)
def test_rules_that_say_nothing_of_parameters_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        lars.lars(1.0, 0.1, **options).init(PARAMS)


WITHOUT = {"momentum": 0.0}
STACK = {"stacked": [(lars.select(path="kernel"), 0)]}


@pytest.mark.parametrize(
    ("make", "options", "others", "params", "message"),
    [
        (lars.lars, {}, WITHOUT, PARAMS, "its trace lacks 'a/bias'"),
        (lars.lars, WITHOUT, {}, PARAMS, "its trace has in addition 'a/bias'"),
        (lars.lars, WITHOUT, {**WITHOUT, **STACK}, PARAMS, r"has the shape \(4,\) of"),
        (
            lars.lars,
            {},
            {},
            tree(KERNEL[:2]),
            r"shape \(2, 3\) of 'a/kernel', where \(4",
        ),
        (lars.lars, {}, {}, {"A": PARAMS["a"]}, "(lacks|in addition) 'A/bias'"),
        (lars.lars, {}, {}, {"a": [BIAS, KERNEL]}, "has in addition 'a/0'"),
        (lars.polar, {}, {}, tree(KERNEL[:2]), r"trace has the shape \(2, 3\) of 'a/k"),
        (lars.polar, {}, {}, TWICE, "has in addition 'b/"),
    ],
)
def test_a_state_of_something_else_is_refused(make, options, others, params, message):
    state = make(0.1, **others).init(params)
    with pytest.raises(ValueError, match=f"state is of other .*{message}"):
        make(0.1, **options).update(PARAMS, state, PARAMS)


def test_a_state_of_polar_of_other_stacking_is_refused():
    state = lars.polar(0.1, **STACK).init(TWICE)
    with pytest.raises(ValueError, match=r"signs has the shape .*, where \(2, 2\) is"):
        lars.polar(0.1).update(TWICE, state, TWICE)


def test_a_state_of_another_container_is_refused():
    optimizer = lars.lars(1.0)
    with pytest.raises(ValueError, match="its parameters is PyTreeDef"):
        optimizer.update((BIAS,), optimizer.init([BIAS]), (BIAS,))
