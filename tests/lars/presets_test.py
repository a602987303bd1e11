"""Every preset is its source: the same steps, defaults, exclusions and zero rules."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import lars
from lars import presets
from tests.lars import reference
from tests.lars.steps import drawn, first_step, run, scan

RATES = [3.0, 10.0, 7.0, 0.5, 4.0, 2.0]
"""Learning rates above and below 1, where LARC's clipping differs."""

REFERENCES = {
    "paper": reference.PaperLars,
    "optax": reference.Optax,
    "simclr": reference.SimClr,
    "simclr_popular": reference.SimClrPopular,
    "barlow_twins": reference.BarlowTwins,
    "moco_v3": reference.MocoV3,
    "timm": reference.Timm,
    "timm_larc": reference.TimmLarc,
    "apex_larc": reference.ApexLarc,
    "torchlars": reference.TorchLars,
    "mlperf_tf": reference.MlperfTf,
    "colossalai": reference.ColossalAi,
    "oneflow": reference.OneFlow,
    "caffe": reference.Caffe,
}
NESTEROV = ["paper", "timm", "simclr_popular"]
"""One of each kind of ``momentum_of``."""

BETAS = [0.3, 3e-4, 0.0]
CASES = (
    *("ordinary", "small gradient", "large gradient", "zero weights"),
    *("zero gradient at times", "all zero"),
)


def example():
    """The weights of each case, and six gradients of each."""
    rng = np.random.default_rng(0)
    w = {case: rng.standard_normal((2, 3)) for case in CASES}
    gradients = {case: rng.standard_normal((len(RATES), 2, 3)) for case in CASES}
    gradients["small gradient"][-1] *= 1e-6
    gradients["large gradient"] *= 30
    w["zero weights"] *= 0
    w["all zero"] *= 0
    gradients["zero gradient at times"][::3] *= 0
    gradients["all zero"] *= 0
    return w, gradients


def schedule(count):
    return jnp.asarray(RATES)[count]


def trajectories(make_optimizer, betas):
    """Weights after each step, and ratios, for each pair of a decay and a case."""
    w, gradients = example()
    pairs = list(itertools.product(betas, CASES))

    def trajectory(beta, w, gradients):
        return scan(make_optimizer(beta), w, gradients, lars.trust_ratios)[0]

    with jax.enable_x64(True):
        result = jax.jit(jax.vmap(trajectory))(
            jnp.array([beta for beta, _ in pairs]),
            jnp.stack([w[case] for _, case in pairs]),
            jnp.stack([gradients[case] for _, case in pairs]),
        )
    return zip(pairs, *map(np.asarray, result), strict=True)


def assert_steps_as(layer_class, actual, **arguments):
    w, gradients = example()
    for (beta, case), weights, ratios in actual:
        layer = layer_class(w[case], beta=beta, **arguments)
        for t, (g, gamma) in enumerate(zip(gradients[case], RATES, strict=True)):
            np.testing.assert_allclose(
                weights[t],
                layer.step(g, gamma),
                rtol=1e-11,
                atol=1e-13,
                err_msg=f"{case}, decay {beta}, step {t}",
            )
            if "zero" not in case:
                np.testing.assert_allclose(ratios[t], layer.ratio, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [(name, False) for name in REFERENCES] + [(name, True) for name in NESTEROV],
)
def test_a_preset_steps_as_its_source(name, nesterov):
    arguments = {"momentum": 0.8, "nesterov": nesterov}

    def preset(beta):
        function = getattr(presets, name)
        return function(schedule, beta, trust_coefficient=0.02, **arguments)

    # An array that is zero is not the number 0, at which timm adapts nothing.
    betas = BETAS[:2] if name.startswith("timm") else BETAS
    actual = trajectories(preset, betas)
    assert_steps_as(REFERENCES[name], actual, eta=0.02, **arguments)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_preset_has_the_defaults_of_its_source(name):
    source = REFERENCES[name]
    signature = inspect.signature(getattr(presets, name))
    assert signature.return_annotation is optax.GradientTransformationExtraArgs
    assert {key: p.default for key, p in signature.parameters.items()} == {
        "learning_rate": inspect.Parameter.empty,
        "weight_decay": source.beta,
        "trust_coefficient": source.eta,
        "momentum": source.momentum,
        "nesterov": False,
        "partition_specs": None,
    }


def test_timm_is_sgd_without_decay(arguments_of):
    actual = trajectories(lambda _: presets.timm_larc(schedule), [0.0])
    assert_steps_as(reference.TimmLarc, actual)
    with_clipping, without = arguments_of("timm_larc"), arguments_of("timm")
    assert with_clipping == {**without, "clip": True}


@pytest.mark.parametrize(
    "name", ["paper", "optax", "timm_larc", "simclr_popular", "oneflow"]
)
def test_complex_parameters_step_as_pairs_of_real_ones(name):
    # The norm of |x| is that of all real and imaginary parts: one ratio for both.
    w, *gradients = np.random.default_rng(0).standard_normal((4, 2, 3, 2))
    optimizer = getattr(presets, name)(schedule, 0.3, momentum=0.8)
    z, *dz = (x.view(complex)[..., 0] for x in (w, *gradients))
    with jax.enable_x64(True):
        trajectory, state = run(optimizer, z, dz)
    assert state.trace.dtype == np.complex128
    layer = REFERENCES[name](w, beta=0.3, momentum=0.8)
    for actual, g, gamma in zip(trajectory, gradients, RATES, strict=False):
        expected = layer.step(g, gamma).view(complex)[..., 0]
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(lars.trust_ratios(state), layer.ratio, rtol=1e-6)


def test_complex_and_real_parameters_can_share_a_ratio():
    params = {"real": np.float32([3.0]), "complex": np.complex64([4j, 12])}
    _, state = first_step(lars.lars(1.0, layer="module"), params, params)
    for ratio in lars.trust_ratios(state).values():
        np.testing.assert_allclose(ratio, 1e-3, rtol=1e-6)
    g = {"real": np.float32([0.0]), "complex": np.complex64([26j, 0])}
    _, state = first_step(lars.lars(1.0, layer="module"), g, params)
    for ratio in lars.trust_ratios(state).values():
        np.testing.assert_allclose(ratio, 1e-3 * 13 / 26, rtol=1e-6)


@pytest.fixture
def arguments_of(monkeypatch):
    """A function that returns what a preset hands to `lars.lars`."""

    def function(name, **given):
        with monkeypatch.context() as patch:
            patch.setattr(presets, "lars", inspect.signature(lars.lars).bind)
            bound = getattr(presets, name)(2.0, **given)
        bound.apply_defaults()
        return bound.arguments

    return function


@pytest.mark.parametrize("name", REFERENCES)
def test_a_preset_passes_its_arguments_on(name, arguments_of):
    given = {"weight_decay": 0.2, "momentum": 0.7, "nesterov": True}
    arguments = arguments_of(name, partition_specs="specs", **given)
    assert {**arguments, **given, "partition_specs": "specs"} == arguments


NAMED = {"Dense_0/bias", "BatchNorm_0/scale", "block/batch_norm/scale", "bn1/scale"}
RANKED = {"wide/bias": 2, "head_supervised/kernel": 2, "gain": 0, "unbiased/kernel": 2}
OTHERS = {"Dense_0/kernel": 2, "subnet/kernel": 3, **RANKED}
BY_SIMCLR = {*NAMED, "wide/bias", "unbiased/kernel", "head_supervised/kernel"}
BY_TIMM = {*NAMED, "gain", "wide/bias"}
EXCLUDED = {
    **{"simclr": BY_SIMCLR, "simclr_popular": BY_SIMCLR},
    **{"timm": BY_TIMM, "timm_larc": BY_TIMM},
    "barlow_twins": NAMED,
    "moco_v3": {*NAMED, "gain"},
    "mlperf_tf": {*NAMED, "wide/bias", "unbiased/kernel", "subnet/kernel"},
}
"""What sources exclude of the parameters below; the other sources exclude nothing."""


def parameters():
    """By path: one key for a path, in which a rule sees the same string."""
    ranks = dict.fromkeys(NAMED, 1) | OTHERS
    return {path: np.full((2,) * rank, 3.0, np.float32) for path, rank in ranks.items()}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("mask", ["weight_decay_mask", "trust_ratio_mask"])
def test_a_preset_excludes_what_its_source_excludes(name, mask, arguments_of):
    rule = arguments_of(name, weight_decay=0.1)[mask]
    excluded = EXCLUDED.get(name, set())
    if not excluded:
        assert rule is True
        return
    chosen = {path for path, is_chosen in rule(parameters()).items() if is_chosen}
    assert chosen == parameters().keys() - excluded
    assert rule({"kernel": np.ones((2, 2))}) == {"kernel": True}


@functools.cache
def pair(beta, nesterov, is_scheduled):
    """The optimizer optax.lars, and the preset of its name."""
    learning_rate = optax.linear_schedule(3.0, 0.5, 4) if is_scheduled else 2.0
    arguments = {"weight_decay": beta, "nesterov": nesterov, "trust_coefficient": 0.02}
    return (
        optax.lars(learning_rate, **arguments),
        presets.optax(learning_rate, **arguments),
    )


@given(
    seed=st.integers(0, 999),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 1e4]), min_size=6, max_size=6),
    setting=st.sampled_from([(0.0, False, False), (0.1, True, True)]),
)
@settings(deadline=None, max_examples=30)
def test_the_preset_of_optax_equals_optax(seed, scales, setting):
    trees = []
    for i in range(3):  # the parameters, and two gradients
        x = drawn({"kernel": (3, 2), "bias": (2,)}, seed + i)
        of_kernel, of_bias = np.float32(scales[i]), np.float32(scales[3 + i])
        trees.append({"kernel": of_kernel * x["kernel"], "bias": of_bias * x["bias"]})
    (*_, theirs), (*_, ours) = (run(o, trees[0], trees[1:])[0] for o in pair(*setting))
    for name, expected in theirs.items():
        # Terms of either sign may cancel: to the rounding of the largest of them.
        largest = 30 * max(np.abs(tree[name]).max() for tree in trees)
        np.testing.assert_allclose(ours[name], expected, rtol=3e-6, atol=1e-7 * largest)


def test_the_table_has_all_presets():
    assert set(presets.VARIANTS) == set(REFERENCES)
    for name, variant in presets.VARIANTS.items():
        assert variant.function is getattr(presets, name)
        doc = inspect.getdoc(variant.function)
        assert doc.startswith(f"{variant.equation}.\n\nSource: "), name
        assert f"<{variant.url}>" in doc
        row = next(x for x in presets.__doc__.splitlines() if f"`{name}`" in x)
        assert row.startswith((f"{variant.family} ", " "))
