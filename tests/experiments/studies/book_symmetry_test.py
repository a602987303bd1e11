"""The book's items about symmetry, convexity, conditioning and the sigmoid."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.publish import kept_figure
from experiments.studies.book import (
    dropout,
    exercise1,
    exercise2,
    sigmoid_or_relu,
    symmetry,
)
from experiments.studies.tables import only
from tests.experiments.studies.quick import computed, verdicts


@pytest.fixture(scope="module")
def symmetry_table():
    """Of the parts that the tests need: compiling all would take half a minute."""
    constant, mixed, random = symmetry.STARTS

    def keep(cell):
        arms = symmetry.ARMS[1:] if cell["start"] == constant else symmetry.ARMS[1:2]
        return cell["start"] != random and cell["arm"] in arms

    table, settings = computed("book_symmetry", keep, seeds=1)
    like_random = table[table["start"] == mixed].assign(start=random)
    return pd.concat([table, like_random], ignore_index=True), settings


def test_equal_units_stay_equal_but_for_dropout_and_random_outgoing_weights(
    symmetry_table,
):
    table, settings = symmetry_table
    assert len(table) == 6 * settings["seeds"] * (settings["points"] + 1)
    has_dropout = table["arm"].str.contains("dropout")
    is_kept = (table["start"] == symmetry.STARTS[0]) & ~has_dropout
    kept, broken = table[is_kept], table[~is_kept & (table["step"] > 0)]
    assert (kept["spread_over_units"] == 0).all()
    assert (kept["rank"] == 1).all()
    assert kept["test_accuracy"].max() < 0.6
    assert broken["spread_over_units"].min() > 0.01
    assert broken["rank"].min() > 1
    # The gradient of one image is the outer product of it and what the units get back.
    later = kept[kept["step"] > 0]
    assert later["gradient_off_product"].max() < 1e-6
    assert later["gradient_over_inputs"].min() > 0.1
    found = verdicts("book_symmetry", table, settings)
    assert found == ["confirmed"] * 4 + ["partly"]
    spoiled = table.assign(spread_over_units=0.1, gradient_over_inputs=0.0)
    found = verdicts("book_symmetry", spoiled, settings)
    assert [found[i] for i in (0, 2, 4)] == ["partly", "partly", "confirmed"]


def test_spread_and_rank():
    assert symmetry.spread_over_units(np.float32([[1, 1], [-4, -4]])) == 0
    assert symmetry.spread_over_units(np.float32([[1, 2], [-4, -4]])) == 0.25
    assert symmetry.spread_over_units(np.zeros((3, 2))) == 0
    column = np.linspace(0.1, 1, 64, dtype=np.float32)
    assert symmetry.rank(np.outer(column, np.ones(5, np.float32))) == 1
    assert symmetry.rank(np.float32([[1, 0], [0, 1e-3]])) == 2


def test_dropout_spreads_gradients_over_units_as_the_closed_form():
    table, settings = computed("book_dropout")
    assert (only(table, dropout_rate=0)[["spread", "expected"]] == 0).all(axis=None)
    dropped = table[table["dropout_rate"] > 0]
    odds = dropped["dropout_rate"] / (1 - dropped["dropout_rate"])
    is_single = dropped["batch_size"] == 1
    single = dropped[is_single]
    np.testing.assert_allclose(single["spread"], single["of_the_masks"], rtol=1e-4)
    # Of one image B times the gradient's own norm cancels, and 1/√B is left.
    is_one_image = is_single | (dropped["batch"] == dropout.REPEATED)
    scaled = dropped["expected"] * np.sqrt(dropped["batch_size"] / odds)
    np.testing.assert_allclose(scaled[is_one_image], 1, rtol=1e-3)
    medians = dropped.groupby(["batch", "dropout_rate", "batch_size"]).median()
    np.testing.assert_allclose(medians["spread"], medians["expected"], rtol=0.25)
    assert verdicts("book_dropout", table, settings)[0] == "confirmed"


def test_relative_spread_and_its_expectation_by_simulation():
    random = np.random.default_rng(0)
    per_image = random.standard_normal((6, 4))
    masks = (random.random((6, 20000)) >= 0.3) / 0.7
    gradient = per_image.T @ masks
    np.testing.assert_allclose(
        dropout.relative_spread(gradient),
        dropout.expected_spread(0.3, per_image),
        rtol=0.03,
    )
    assert dropout.relative_spread(np.ones((3, 5)) * [[1.1], [0.3], [-7]]) == 0


@pytest.mark.parametrize("name", exercise1.SYMMETRIES)
def test_transformed_weights_are_the_same_function(name):
    symmetry = exercise1.SYMMETRIES[name]
    images = np.random.default_rng(1).standard_normal((20, 8, 8, 1))
    with jax.enable_x64(True):
        plain, other = (
            np.asarray(symmetry.apply(jax.tree.map(jnp.asarray, params), images))
            for params in exercise1.initial(symmetry, seed=3)
        )
    assert plain.dtype == np.float64
    assert plain.std() > 0.01
    difference = np.abs(plain - other).max() / np.abs(plain).max()
    assert difference < 1e-13 if symmetry.is_one else difference > 0.01


def test_the_convolution_of_exercise_1_is_that_of_jax():
    params, _ = exercise1.initial(exercise1.SYMMETRIES["permuted channels"], seed=0)
    params = {name: np.float32(x) for name, x in params.items()}
    x = images = np.random.default_rng(1).standard_normal((5, 8, 8, 1), np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(
            x, params[name], (1, 1), "SAME", dimension_numbers=layout
        )
        x = np.maximum(x, 0)
    expected = x.mean((1, 2)) @ params["output"]
    np.testing.assert_allclose(
        exercise1.cnn(params, jnp.asarray(images)), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "dtype", "respecting", "others"),
    [
        ("permuted units", "float64", ("Adam", "LARS"), ()),
        ("Q and K rotated", "float64", ("SGD", "LARS"), ("Adam",)),
        ("ReLU: layers times c, 1/c", "float32", ("LARS",), ("SGD", "LARS, decay")),
    ],
)
def test_which_optimizers_respect_which_symmetry(
    name, dtype, respecting, others, monkeypatch
):
    monkeypatch.setattr(exercise1, "OPTIMIZERS", (*respecting, *others))
    table, _ = computed(
        "book_exercise1",
        lambda cell: (cell["symmetry"], cell["dtype"]) == (name, dtype),
        num_steps=5,
    )
    difference = table.set_index("optimizer")["difference"]
    for optimizer in respecting:
        # In float32, powers of two, which round nothing.
        assert difference[optimizer] <= (0 if dtype == "float32" else 1e-9)
    for optimizer in others:
        assert difference[optimizer] > 1e-5


def test_claims_of_exercise_1_follow_from_the_table():
    table, settings = kept_figure("book", "book_exercise1")
    assert verdicts("book_exercise1", table, settings) == ["confirmed"] * 5
    # One seed in which nothing differs is enough.
    spoiled = table.assign(difference=table["difference"].where(table["seed"] > 0, 0))
    found = verdicts("book_exercise1", spoiled, settings)
    assert found == ["partly", "confirmed", "partly", "partly", "not confirmed"]


def test_regressions_end_at_one_optimum_from_all_starts():
    table, settings = computed("book_exercise2")
    end = table[table["step"] == table.groupby("model")["step"].transform("max")]
    for model in exercise2.MODELS[:2]:
        rows = only(end, model=model)
        np.testing.assert_allclose(rows["loss"], rows["loss"].iloc[0], rtol=1e-9)
        assert rows["distance"].max() < 1e-3
    ranks = only(table, model=exercise2.HIDDEN).groupby("start")["rank"]
    for start, rank in (("constant", 1), ("zero", 0), ("random", 16)):
        assert set(ranks.get_group(start)) == {rank}
    assert verdicts("book_exercise2", table, settings)[0] == "confirmed"
    # Linear regression against the normal equations: the loss of their solution.
    x, y = exercise2.problem(exercise2.LINEAR)
    ridge = settings["ridges"][exercise2.LINEAR]
    gram = x.T @ x / len(x) + ridge * np.eye(x.shape[1])
    solution = np.linalg.solve(gram, x.T @ y / len(x))
    best = np.square(x @ solution - y).mean() / 2 + ridge * (solution**2).sum() / 2
    losses = only(end, model=exercise2.LINEAR)["loss"]
    np.testing.assert_allclose(losses, best, rtol=1e-9)


def test_bounds_on_products_hold_but_for_the_spectral_radius():
    table, settings = computed("book_exercise3")
    found = verdicts("book_exercise3", table, settings)
    assert found == ["confirmed", "partly", *["confirmed"] * 3]
    nilpotent = only(table, matrices="nilpotent").iloc[0]
    assert (nilpotent["radius_bound"], nilpotent["radius"]) == (0, 1)
    many = only(table, product="of many").set_index("matrices")
    known = many.dropna(subset="log10_condition")
    assert (known["log10_ratio"] <= known["log10_condition"] + 1e-9).all()
    orthogonal = many.loc["orthogonal"].filter(like="log10_")
    assert orthogonal.abs().max(axis=None) < 1e-11
    # Of the same matrices, scaled: σ is smaller by √n in every step.
    plain, scaled = (many.loc[x] for x in ("Gaussian", "Gaussian over √n"))
    shift = plain["log10_largest"].to_numpy() - scaled["log10_largest"].to_numpy()
    np.testing.assert_allclose(shift, plain["depth"] * np.log10(16) / 2, rtol=1e-9)
    spoiled = table.assign(largest_bound=table["largest"] / 2)
    assert verdicts("book_exercise3", spoiled, settings)[0] == "partly"


def test_gates_keep_or_lose_the_range_of_their_inputs():
    random = np.random.default_rng(0)
    a, inputs = random.standard_normal(300) * 3, random.uniform(-1, 1, 300)
    # In float64, by the formula itself.
    h, expected = 0.0, []
    for gate, x in zip(1 / (1 + np.exp(-a)), inputs, strict=True):
        h = gate * h + (1 - gate) * x
        expected.append(h)

    def gated(function, a, inputs):
        sequences = (jnp.asarray(x, jnp.float32) for x in (a, inputs))
        return np.asarray(sigmoid_or_relu.gated(function, *sequences))

    states = gated("sigmoid", a, inputs)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    assert np.abs(states).max() <= 1
    for gate in (1.5, 2.0, 3.0):
        states = gated("relu", np.full(300, gate), np.ones(300))
        last = sigmoid_or_relu.overflow_step(gate)
        assert np.isfinite(states[: last - 1]).all()
        assert not np.isfinite(states[last - 1 :]).any()
        np.testing.assert_allclose(states[:20], 1 - gate ** np.arange(1, 21), rtol=1e-5)


def test_calibration_error():
    labels = np.array([0, 0, 0, 1])
    error = sigmoid_or_relu.calibration_error
    assert error(np.full(4, 0.25), labels, 10) == 0
    assert error(np.full(4, 0.75), labels, 10) == 0.5
    assert error(np.array([0.1, 0.4]), np.array([1, 0]), 10) == pytest.approx(0.65)
    np.testing.assert_allclose(error(np.array([0, 0, 1, 1]), labels, 10), 0.25)


@pytest.mark.long
def test_the_sigmoid_is_better_as_gate_and_output_and_worse_in_hidden_layers():
    table, settings = computed(
        "book_sigmoid_or_relu", depths=(2, 6), hidden_rates=(3e-3,), num_steps=80
    )
    assert verdicts("book_sigmoid_or_relu", table, settings) == ["confirmed"] * 5
    spoiled = table.assign(largest_state=2.0, calibration_error=0.5)
    result = verdicts("book_sigmoid_or_relu", spoiled, settings)
    assert result[0] == result[3] == "not confirmed"
