"""Signals and gradients through many layers: the book's items against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.networks import mlp
from experiments.networks.init_scales import scale_kernels
from experiments.studies.book import (
    gradient_norms,
    he_or_xavier,
    keep_variance,
    matrices,
    shared,
    underflow,
    variance,
)
from experiments.studies.runs import at_best_rate
from experiments.studies.tables import only
from tests.experiments.studies.quick import computed, verdicts


def test_lyapunov_exponents_are_the_closed_form_and_those_of_a_simulation():
    # ψ(2) = 1 - γ, ψ(1) = -γ; and for n = 1 E ln|x| = -(ln 2 + γ) / 2.
    euler, ln2 = np.euler_gamma, math.log(2)
    assert shared.log_growth(4) == pytest.approx((ln2 + 1 - euler) / 2)
    assert shared.log_growth(2) == pytest.approx((ln2 - euler) / 2)
    assert shared.log_growth(1) == pytest.approx(-(ln2 + euler) / 2)
    # At a large width σ = 1/√n is neutral up to exp(-1/(2n)).
    gap = matrices.deviation("typical", 500) / matrices.deviation("mean_square", 500)
    assert math.log(gap) == pytest.approx(1 / 1000, rel=1e-2)
    random = np.random.default_rng(0)
    for size, position in ((5, 1), (5, 4), (8, 8)):
        vectors = random.standard_normal((100_000, size - position + 1))
        logs = np.log(np.linalg.norm(vectors, axis=1))
        expected = pytest.approx(logs.mean(), abs=0.01)
        assert shared.log_growth(size, position) == expected


def test_renormalised_products_are_those_that_numpy_multiplies():
    logs = matrices.log_norms(np.random.default_rng(3), 4, 0.7, 6, 5)
    rng, product = np.random.default_rng(3), np.eye(4)
    for row in logs:
        product = product @ (0.7 * rng.standard_normal((5, 4, 4)))
        norms = np.linalg.norm(product, axis=(1, 2))
        np.testing.assert_allclose(row, np.log(norms), rtol=1e-9)
    # The gain of a vector, of one matrix, is that of the same draw.
    gains = matrices.log_vector_gains(np.random.default_rng(4), 3, 2.0, 1, 1)
    matrix = np.random.default_rng(4).standard_normal((3, 3))
    expected = np.linalg.norm(2 * matrix @ np.full(3, 3**-0.5))
    assert gains[0] == pytest.approx(math.log(expected))


def test_products_of_matrices_explode_or_decay_by_their_scale():
    table, settings = computed("book_matrices")
    last = only(table, part="product", matrices=101)
    mean = last.groupby("rule")["mean"].first().to_dict()
    expected = {"standard": 25.0, "mean_square": -5.5, "typical": 0.5}
    assert mean == pytest.approx(expected, abs=0.3)
    found = verdicts("book_matrices", table, settings)
    assert found == ["confirmed"] * 3 + ["partly", "confirmed"]


@pytest.mark.parametrize("activation", ["ReLU", "tanh"])
@pytest.mark.parametrize("rule", ["Xavier", "He", "sd 0.3"])
def test_a_rule_decides_the_deviation_of_every_kernel(activation, rule):
    shapes = shared.layer_shapes(64, 200, 3, 100)
    assert shapes == [(64, 200), (200, 200), (200, 100)]
    expected = {
        "Xavier": [math.sqrt(2 / (a + b)) for a, b in shapes],
        "He": [math.sqrt(2 / a) for a, _ in shapes],
        "sd 0.3": [0.3] * 3,
    }[rule]
    drawn = shared.draw_kernels(rule, shapes, 0)
    np.testing.assert_allclose([k.std() for k in drawn], expected, rtol=0.03)
    model = mlp(
        **{"num_classes": 100, "depth": 3, "width": 200, "use_bias": False},
        **{"normalization": "none", "compute_dtype": "float32"},
        activation=activation.lower(),
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    scales = shared.kernel_scales(rule, shapes, activation)
    scaled = scale_kernels(params, jnp.asarray(scales, jnp.float32))
    layers = ("hidden_0", "hidden_1", "output")
    found = [np.std(scaled[layer]["kernel"]) for layer in layers]
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_the_best_rate_is_chosen_on_validation_data_and_per_setting():
    rows = [
        # depth, rate, seed, validation, test
        (2, 0.1, 0, 0.8, 0.1),
        (2, 0.1, 1, 0.6, 0.1),
        (2, 1.0, 0, 0.9, 0.0),
        (2, 1.0, 1, 0.4, 1.0),
        (4, 0.1, 0, 0.2, 0.9),
        (4, 1.0, 0, 0.3, 0.2),
    ]
    columns = ["depth", "learning_rate", "seed", "validation_accuracy", "test_accuracy"]
    best = at_best_rate(pd.DataFrame(rows, columns=columns), ["depth"])
    assert best["learning_rate"].tolist() == [0.1, 0.1, 1.0]


def test_gradient_norms_are_those_of_backpropagation_in_float64(digits):
    images, labels = digits.train.images[:8].reshape(8, 64), digits.train.labels[:8]
    kernels = shared.draw_kernels("Xavier", shared.layer_shapes(64, 16, 4, 10), 1)
    found = gradient_norms.gradient_norms(kernels, images, labels, "tanh")
    outputs = [np.asarray(images, np.float64)]
    for kernel in kernels[:-1]:
        outputs.append(np.tanh(outputs[-1] @ kernel))
    logits = outputs[-1] @ kernels[-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    back = (p - np.eye(10)[np.asarray(labels)]) / 8
    signal, weight = [], []
    for layer in (3, 2, 1, 0):
        signal.append(np.linalg.norm(back))
        weight.append(np.linalg.norm(outputs[layer].T @ back))
        back = back @ kernels[layer].T * (1 - outputs[layer] ** 2)
    np.testing.assert_allclose(found, [signal[::-1], weight[::-1]], rtol=1e-4)


def test_gradients_vanish_explode_or_stay_as_the_closed_form_says():
    closed_form = gradient_norms.closed_form
    assert closed_form("ReLU", "He", 77) == pytest.approx(1)
    assert closed_form("ReLU", "Xavier", 77) == pytest.approx(1 / 2)
    assert closed_form("sigmoid", "Xavier", 77) == pytest.approx(1 / 16)
    table, settings = computed("book_gradient_norms", depths=(30, 50), images=4)
    verdicts("book_gradient_norms", table, settings)
    first = only(table, layer=1)
    first = first.set_index(["activation", "initialization", "depth"])
    for rule in ("Xavier", "He", "sd 0.01", "sd 1"):
        factor = first.loc[("ReLU", rule, 30), "factor"]
        assert factor == pytest.approx(closed_form("ReLU", rule, 128), rel=0.1)
    he = first.loc[("ReLU", "He", 30)]
    assert he["factor_lowest"] < he["factor"] < he["factor_highest"]
    for depth in (30, 50):
        assert first.loc[("sigmoid", "Xavier", depth), "factor"] < 1 / 16
    assert (first.loc[("ReLU", "sd 0.01", 50)][["weight", "signal"]] == 0).all()
    assert first.loc[("ReLU", "sd 0.01", 50), "zero"] == 2
    assert first.loc[("ReLU", "sd 1", 50), "not_finite"] == 2
    assert first.loc[("ReLU", "He", 50), "not_finite"] == 0
    # A homogeneous network has gradients of one size in all layers.
    kind = {"activation": "ReLU", "depth": 30, "initialization": "Xavier"}
    rows = only(table, **kind).iloc[1:-1]
    assert rows["weight"].max() < 3 * rows["weight"].min()
    assert rows["signal"].max() > 1e3 * rows["signal"].min()


def test_the_gains_of_a_layer_are_the_closed_forms():
    assert variance.closed_form("forward", "Xavier", 256, 512) == pytest.approx(2 / 3)
    assert variance.closed_form("backward", "Xavier", 256, 512) == pytest.approx(4 / 3)
    for way in ("forward", "backward"):
        assert variance.closed_form(way, "Xavier", 9, 9) == 1
        assert variance.closed_form(way, way, 3, 7) == pytest.approx(1)
    bound = math.sqrt(6 / (30 + 70))
    rng, sigma = np.random.default_rng(0), math.sqrt(2 / 100)
    weights = variance.draw_weights(rng, "uniform", sigma, 30, 70)
    assert weights.shape == (70, 30)
    assert 0.99 * bound < np.abs(weights).max() < bound
    assert np.mean(weights**2) == pytest.approx(bound**2 / 3, rel=0.05)
    table, settings = computed("book_variance", shapes=((64, 64), (64, 128)))
    assert verdicts("book_variance", table, settings) == ["confirmed"] * 5
    assert (table["standard_error"] < 0.05 * table["mean"]).all()


def test_a_factor_per_layer_adds_up_in_the_logarithm():
    factors = jnp.array([0.25, 1.0, 4.0])
    signals_and_gradients = keep_variance.log_mean_squares(
        jax.random.key(0), factors, depth=140, width=32, count=4
    )
    expected = np.arange(1, 101) * math.log10(4)
    for logs in map(np.asarray, signals_and_gradients):
        small, one, large = logs[:100].T
        # Deviations are halved and doubled: no number is rounded otherwise.
        np.testing.assert_allclose(small - one, -expected, rtol=1e-4)
        np.testing.assert_allclose(large - one, expected, rtol=1e-4)
        assert np.isfinite(logs[-1]).tolist() == [False, True, False]
    assert keep_variance.layers_in_range(0.25) == pytest.approx(126, abs=0.1)
    assert keep_variance.layers_in_range(4.0) == pytest.approx(128, abs=0.1)


SHORT = {"depths": (2,), "width": 16, "num_steps": 60}


def test_keeping_the_variance_is_judged_from_the_table():
    table, settings = computed("book_keep_variance", **SHORT, learning_rates=(0.05,))
    found = verdicts("book_keep_variance", table, settings)
    assert found[:2] == ["confirmed"] * 2
    runs = table[table["part"] == "training"]
    assert runs[(runs["factor"] == 1)]["test_accuracy"].mean() > 0.5
    assert len(runs) == 5


def test_kernels_are_scaled_by_the_root_of_a_factor(monkeypatch):
    def scaled(runs, depth, activation, settings, scales):
        return runs.assign(scale=scales[:, 0])

    monkeypatch.setattr(shared, "trained", scaled)
    table, _ = computed("book_keep_variance", lambda cell: cell["part"] == "training")
    np.testing.assert_allclose(table["scale"] ** 2, table["factor"])


def test_relu_halves_what_xavier_keeps():
    shapes = shared.layer_shapes(128, 128, 12, 128)
    inputs = np.random.default_rng(5).standard_normal((200, 128))
    drawn = (shared.draw_kernels(rule, shapes, 3) for rule in ("He", "Xavier"))
    he, xavier = (
        np.array(he_or_xavier.mean_squares(kernels, inputs, "ReLU"))
        for kernels in drawn
    )
    # The same draws but for their scale: the ratio is that of the closed forms.
    expected = he_or_xavier.closed_form("Xavier", np.arange(1, 13))
    np.testing.assert_array_equal(expected, 0.5 ** np.arange(1, 13))
    np.testing.assert_allclose(xavier / he, expected, rtol=1e-4)
    # 5/n is the variance of a layer's factor.
    assert np.abs(np.log(he)).max() < 3 * math.sqrt(12 * 5 / 128)
    found = computed("book_he_or_xavier", **SHORT, learning_rates=(0.05,))
    assert verdicts("book_he_or_xavier", *found)[0] == "confirmed"


def test_relu_layers_turn_cosines_as_the_arc_cosine_kernel():
    found = underflow.next_cosine([1.0, 0.0, -1.0])
    np.testing.assert_allclose(found, [1, 1 / math.pi, 0], atol=1e-12)
    rng = np.random.default_rng(0)
    pair = np.array([[1.0, 0.0], [0.3, math.sqrt(1 - 0.09)]])
    assert underflow.cosines(pair)[0] == pytest.approx(0.3)
    wide = np.maximum(pair @ rng.standard_normal((2, 400_000)), 0)
    expected = pytest.approx(underflow.next_cosine(0.3), abs=5e-3)
    assert underflow.cosines(wide)[0] == expected


def test_a_step_below_half_a_spacing_is_lost():
    found = underflow.lost_share(2.0 ** np.array([-26, -25, -24.5, -24, -3]), 24)
    np.testing.assert_allclose(found, [1, 1, 0.5, 0, 0])


def test_each_danger_is_seen_and_judged():
    table, settings = computed("book_underflow")
    found = verdicts("book_underflow", table, settings)
    assert found == ["confirmed"] * 5 + ["not confirmed"]
    assert underflow.layers_until_lost(0.1) == pytest.approx(37.93, abs=0.01)
    assert underflow.layers_until_lost(10.0) == pytest.approx(38.53, abs=0.01)
    step = only(table, part="step")
    np.testing.assert_allclose(step["share"], step["closed_form"], atol=1e-3)
    # P(|z| > 1) and P(z > 1).
    for name, expected in (("tanh", 0.3173), ("sigmoid", 0.1587)):
        found = underflow.saturated_share(name, 9.0, 9.0)[0]
        assert found == pytest.approx(expected, 1e-3)
