"""The rescue maps: which starts float32 represents, which are rescued, and rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import lars
from configs.optimizers import ARMS
from experiments import data as datasets, publish
from experiments.figures import ITEMS, settings_of
from experiments.studies.item import datasets_of
from experiments.studies.rescue import cost, coverage
from experiments.studies.rescue.drawing import lines_by_network, lines_over_scales
from experiments.studies.rescue.follow import follow, observed, participation_rank
from experiments.studies.rescue.grid import START, cells, measure, runs_of
from experiments.studies.rescue.items import SEARCHED
from experiments.studies.rescue.mechanism import least_steps
from experiments.studies.rescue.settings import RATES, SIZES, with_rates
from experiments.studies.rescue.starts import starts_of
from experiments.studies.runs import results_of, setting_of_arm

FULL = SIZES["rescue_map"]
OPTIMIZERS = FULL["optimizers"]
MLP = {**FULL["variants"]["relu"]["model"], "width": 32}
SETTING = setting_of_arm(
    {**FULL, "num_steps": 200, "batch_size": 32}, {**MLP, "depth": 4}, ARMS["sgd"]
)


def table(*rows):
    """Rows of optimizer, variant, depth, scale, rate, validation and test accuracies.

    An accuracy of None stands for a run that diverged.
    """
    names = ["optimizer", *coverage.CELL, "learning_rate"]
    accuracies = ["validation_accuracy", "test_accuracy"]
    runs = pd.DataFrame(rows, columns=names + accuracies).explode(accuracies)
    runs["seed"] = runs.groupby(names, sort=False).cumcount()
    runs["diverged"] = runs["test_accuracy"].isna()
    return runs.fillna(0.99).astype(dict.fromkeys(accuracies, float))


def starts(*rows):
    """Rows of variant, depth, scale and the three flags, of one seed."""
    names = [*coverage.CELL, *coverage.FLAGS]
    return pd.DataFrame(rows, columns=names).assign(seed=0)


RUNS = table(
    # At scale 1, sgd sets the standard of each variant in its shallowest network.
    ("sgd", "relu", 2, 1.0, 0.1, [1.0] * 3, [0.9, 1.0, 1.0]),
    ("sgd", "relu", 8, 1.0, 0.1, [0.2] * 3, [0.2] * 3),
    ("sgd", "relu", 8, 1e4, 0.1, [None] * 3, [None] * 3),
    ("sgd", "tanh", 2, 1.0, 0.1, [0.8] * 3, [0.8] * 3),
    # The best on validation data is not the best on test data.
    ("ours", "relu", 2, 1.0, 0.1, [0.97] * 3, [0.96] * 3),
    ("ours", "relu", 2, 1.0, 0.2, [0.96] * 3, [0.99] * 3),
    ("ours", "relu", 8, 1.0, 0.1, [0.96] * 3, [0.96, 0.96, 0.2]),
    ("ours", "relu", 8, 1.0, 0.2, [0.1] * 3, [0.1] * 3),
    ("ours", "relu", 8, 1e4, 0.1, [0.2] * 3, [0.2] * 3),
    ("ours", "relu", 8, 1e4, 0.2, [0.96] * 3, [0.96] * 3),
    ("ours", "tanh", 2, 1.0, 0.1, [0.77] * 3, [0.77] * 3),
    ("ours", "tanh", 2, 1.0, 0.2, [0.1] * 3, [0.1] * 3),
)
STARTS = starts(
    ("relu", 2, 1.0, 1, 1, 1),
    ("relu", 8, 1.0, 1, 1, 1),
    ("relu", 8, 1e4, 0, 1, 1),
    ("tanh", 2, 1.0, 1, 1, 1),
)


def test_each_variant_has_the_standard_of_its_shallowest_network():
    assert coverage.standards(RUNS, "sgd") == {"relu": 0.95, "tanh": 0.95 * 0.8}
    with pytest.raises(ValueError, match="'adam'"):
        coverage.standards(RUNS, "adam")


def test_the_best_optimizer_on_validation_data_may_set_the_standard():
    found = coverage.standards(RUNS, coverage.BEST)
    # SGD in the first, and in the second too: 0.80 against 0.77, both at scale 1.
    assert found == pytest.approx({"relu": 0.95, "tanh": 0.95 * 0.8})
    without = RUNS[(RUNS["optimizer"] != "sgd") | (RUNS["variant"] != "tanh")]
    found = coverage.standards(without, coverage.BEST)
    assert found["tanh"] == pytest.approx(0.95 * 0.77)


def test_each_cell_has_its_rate_and_the_map_has_one():
    chosen = coverage.best_rate_per_cell(RUNS, "sgd").set_index(
        ["optimizer", *coverage.CELL]
    )
    assert chosen.loc[("ours", "relu", 8, 1e4), "learning_rate"] == 0.2
    assert chosen.loc[("ours", "tanh", 2, 1.0), "rescued"]  # of 0.8, not of 1
    assert not chosen.loc[("sgd", "relu", 8, 1e4), "rescued"]
    fixed = coverage.one_rate(RUNS, "sgd")
    assert set(fixed[fixed["optimizer"] == "ours"]["learning_rate"]) == {0.1}


def test_rates_are_chosen_on_validation_data_and_rescues_counted_on_test_data():
    runs = table(
        ("sgd", "relu", 2, 1.0, 0.1, [1.0] * 3, [1.0] * 3),
        ("ours", "relu", 2, 1.0, 0.1, [0.97] * 3, [0.5] * 3),
        ("ours", "relu", 2, 1.0, 0.2, [0.5] * 3, [0.97] * 3),
    )
    for chosen in (coverage.best_rate_per_cell, coverage.one_rate):
        found = chosen(runs, "sgd").set_index("optimizer").loc["ours"]
        assert found["learning_rate"] == 0.1
        assert not found["rescued"]


def test_the_part_of_the_map_that_is_rescued():
    counts = coverage.summary(RUNS, STARTS, "sgd")
    labels = {"ours": "Ours", "sgd": "SGD"}
    table = coverage.coverage_table(counts, labels, coverage.represented(STARTS))
    ours, sgd = table.to_numpy().tolist()
    assert ours == [
        "Ours",
        "100.0% (66.7 to 100.0)",
        "100.0% (66.7 to 100.0)",
        "100.0% (75.0 to 100.0)",
        "75.0% (50.0 to 75.0)",
        *("0.1", "0 of 24"),
    ]
    # A seed of 0.9 misses 0.95 of the median.
    assert sgd[:2] == ["SGD", "66.7% (33.3 to 66.7)"]
    assert sgd[3] == "50.0% (25.0 to 50.0)"
    assert sgd[-1] == "3 of 12"


def test_costs_are_relative_to_the_reference_in_the_same_round():
    # The machine is ten times slower in the second round: the ratio is the same.
    times = pd.DataFrame(
        {"depth": depth, "round": i, "optimizer": name, "milliseconds": slower * x}
        for depth, name, x in (
            *((2, "sgd", 2.0), (2, "ours", 6.0)),
            *((8, "sgd", 4.0), (8, "ours", 2.0)),
        )
        for i, slower in enumerate((1, 10))
    )
    settings = {
        "optimizers": {"sgd": {"label": "SGD"}, "ours": {"label": "Ours"}},
        "reference": "sgd",
        "depths": [2, 8],
    }
    assert (cost.relative(times, settings).loc[2]["ours"] == 3).all()
    rows = cost.cost_table(times, settings).to_numpy().tolist()
    assert rows == [
        ["SGD", "1 (1 to 1)", "1 (1 to 1)"],
        ["Ours", "3 (3 to 3)", "0.5 (0.5 to 0.5)"],
    ]


def test_more_work_costs_more():
    settings = {
        **settings_of("rescue_cost", quick=True),
        "num_steps": 20,
        "depths": (4,),
        "model": {**MLP, "width": 128},
        "optimizers": {name: OPTIMIZERS[name] for name in ("sgd", "polar_waking")},
    }
    (cell,) = cost.cells(settings)
    table = cost.measure(cell, settings).assign(**cell)
    assert len(table) == 2 * settings["rounds"]
    assert (cost.relative(table, settings)["polar_waking"] > 1).all()


@pytest.mark.parametrize("flag", coverage.FLAGS)
def test_a_start_is_represented_if_nothing_is_missing(flag):
    whole = STARTS.assign(is_finite=1)
    assert coverage.represented(whole)["represented"].all()
    assert not coverage.represented(whole.assign(**{flag: 0}))["represented"].any()


def test_the_most_useful_rates():
    # 0.1 and 0.3 together would train four cells of five, as 0.1 and 0.2 do; of all
    # rates 0.2 trains the most alone.
    trained = {0.1: "ab", 0.2: "bcd", 0.3: "cd"}
    runs = table(
        *(
            ("ours", "relu", 2, scale, rate, *(2 * [3 * [0.9 if cell in can else 0.1]]))
            for rate, can in trained.items()
            for cell, scale in zip("abcde", (1.0, 10.0, 1e2, 1e3, 1e4), strict=True)
        )
    )
    assert coverage.most_useful_rates(runs, "ours", 1)["ours"] == (0.2,)
    assert coverage.most_useful_rates(runs, "ours", 2)["ours"] == (0.1, 0.2)


@pytest.mark.parametrize(
    ("activation", "profile", "depth", "scale", "flags"),
    [
        ("relu", "all", 2, 1e-8, (1, 1, 1)),
        ("relu", "all", 2, 1e8, (1, 1, 1)),
        ("relu", "all", 8, 1e8, (0, 0, 0)),  # 1e64
        ("relu", "all", 2, 1e19, (0, 1, 1)),  # the sum of the losses alone
        ("relu", "all", 8, 1e-8, (1, 0, 0)),  # 1e-64
        ("relu", "first", 8, 1e-8, (1, 1, 1)),
        ("tanh", "all", 4, 1e6, (1, 0, 1)),  # saturated: its slope is zero
        ("sigmoid", "all", 8, 1e-2, (1, 1, 0)),  # 1/2, and less than rounding
        ("sigmoid", "all", 20, 1.0, (1, 1, 0)),  # rounding, and nothing else
        ("sigmoid", "all", 8, 1.0, (1, 1, 1)),
    ],
)
def test_what_float32_represents(activation, profile, depth, scale, flags):
    model = {**MLP, "activation": activation, "depth": depth}
    found = starts_of("digits", model, 32, [0, 1, 2], scale, profile)
    # Where something overflows, the other flags mean nothing.
    compared = coverage.FLAGS if flags[0] else coverage.FLAGS[:1]
    assert tuple(found[compared].median()) == flags[: len(compared)]


def test_the_cells_of_an_optimizer_that_no_scale_matters_to():
    arm = {"initialization": "scaled"}
    settings = {
        "variants": {"relu": {}},
        "depths": (2,),
        "init_scales": (1e-4, 0.1, 1.0, 10.0),
        "optimizers": {"sgd": arm, "lsuv": {"initialization": "lsuv"}},
    }
    scales = pd.DataFrame(cells(settings)).groupby("optimizer")["init_scale"].agg(list)
    assert scales[START] == scales["sgd"] == [1e-4, 0.1, 1.0, 10.0]
    assert scales["lsuv"] == [1e-4, 1.0, 10.0]


@pytest.mark.parametrize(
    ("values", "rank"),
    [([3.0], 1), ([2.0, 2.0, 2.0], 3), ([3.0, 1.0], 100 / 82), ([0.0, 0.0], 0)],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_participation_rank(values, rank, scale):
    rotations = [
        np.linalg.qr(np.random.default_rng(n).normal(size=(5, 5)))[0] for n in (0, 1)
    ]
    singular = np.zeros((5, 5))
    np.fill_diagonal(singular, np.pad(values, (0, 5 - len(values))))
    matrix = scale * rotations[0] @ singular @ rotations[1]
    wide = np.concatenate([matrix, np.zeros((5, 3))], axis=1)
    for x in (matrix, wide, wide.T):
        found = participation_rank(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, rank, rtol=1e-5)


def test_who_is_observed_does_the_same():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    grads = {"kernel": jnp.asarray([[3.0, 0], [0, 1], [0, 0]]), "bias": jnp.ones(2)}
    inner = optax.sgd(0.5)
    updates, state = observed(inner).update(grads, observed(inner).init(params), params)
    expected, _ = inner.update(grads, inner.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    # Along the kernel, 4 of 6 ones each: what is left across has its rank counted.
    across = np.asarray(grads["kernel"]) - 2 / 3
    singular = np.linalg.svd(across, compute_uv=False)
    rank = (singular**2).sum() ** 2 / (singular**4).sum()
    np.testing.assert_allclose(state.turning_rank, [rank], rtol=1e-5)
    np.testing.assert_allclose(state.radial_part, [4 / np.sqrt(60)], rtol=1e-6)
    growing = jax.tree.map(lambda w: 0.3 * w, params)
    _, state = observed(inner).update(growing, observed(inner).init(params), params)
    np.testing.assert_allclose(state.radial_part, [1], rtol=1e-6)
    assert state.turning_rank == 0  # and not the rank of what rounding leaves
    assert state.moves == 0
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    waking = observed(lars.wake_silent_layers(inner))
    assert waking.update(nan, waking.init(params), params)[1].moves == 1


def test_the_least_steps_of_recovery():
    arm = {"name": "lars", "settings": {"momentum": 0.9, "trust_coefficient": 0.001}}
    # A step of momentum's sum changes a norm by γη/(1 - m) = 0.2 of it.
    assert least_steps(arm, 20.0, np.exp(-3), 3) == pytest.approx(15)
    # Three kernels share the rate; what turns one adds to its norm, at most.
    arm = {"name": "polar", "settings": {"radial_rate": 2.5}}
    for scale in (1e-8, 1e-3, 0.5):
        steps, norm = least_steps(arm, 0.3, scale, 3), scale
        for _ in range(int(steps)):
            norm = np.exp(0.25) * norm + 0.1
        assert norm <= 1 < np.exp(0.25) * norm + 0.1


def test_rates_are_those_that_the_search_found():
    table, settings = publish.kept_figure("rescue", "rescue_search")
    useful = coverage.most_useful_rates(
        runs_of(table, settings), settings["reference"], SEARCHED
    )
    rates = {name: arm["learning_rates"] for name, arm in OPTIMIZERS.items()}
    # The search of polar LARS was made again after the map. The page says so.
    assert useful.pop("polar_waking") == (0.6, 0.8, 1.2)
    assert rates.pop("polar_waking") == (0.5, 0.6, 0.8)
    assert rates == useful


def test_rates_of_the_confirmation_are_those_that_residual_networks_found():
    table, settings = publish.kept_figure("rescue", "rescue_networks")
    useful = coverage.most_useful_rates(
        runs_of(table, settings), settings["reference"], SEARCHED
    )
    arms = SIZES["rescue_confirmation"]["optimizers"]
    assert arms.keys() >= {"polar_waking", "scion", "muon", "adam", "sgd"}
    # The runs of two optimizers there were made again after the confirmation. The page
    # says so.
    assert useful.pop("lars_waking") == (0.5, 5.0, 20.0)
    assert arms["lars_waking"]["learning_rates"] == (2.0, 5.0, 20.0)
    assert useful.pop("polar_waking") == (0.4, 0.6, 0.8)
    assert arms["polar_waking"]["learning_rates"] == (0.3, 0.4, 0.8)
    for name in arms.keys() & useful.keys():
        assert arms[name]["learning_rates"] == useful[name]


def test_what_older_runs_of_an_optimizer_lack_is_not_compared():
    held = RUNS.assign(test_loss=0.1)
    both = {"optimizers": {"ours": {}, "sgd": {}}}
    assert "test_loss" in runs_of(held, both)
    lacking = held.assign(test_loss=held["test_loss"].mask(held["optimizer"] == "sgd"))
    assert "test_loss" not in runs_of(lacking, both)
    assert "test_loss" in runs_of(lacking, {"optimizers": {"ours": {}}})
    # A run that diverged has no loss; others of its optimizer have one.
    diverged = held.assign(test_loss=held["test_loss"].mask(held["diverged"]))
    assert "test_loss" in runs_of(diverged, both)


def test_variants_have_the_depths_of_the_map_or_their_own():
    settings = {
        **FULL,
        "variants": {"a": {}, "b": {"depths": (3,)}},
        "depths": (2, 4),
        "init_scales": (1.0,),
        "optimizers": {},
    }
    found = [(cell["variant"], cell["depth"]) for cell in cells(settings)]
    assert found == [("a", 2), ("b", 3), ("a", 4)]


def test_a_variant_may_have_a_data_set_of_its_own():
    settings = {
        **FULL,
        "variants": {
            "decoder": SIZES["rescue_confirmation"]["variants"]["decoder"],
            "relu": FULL["variants"]["relu"],
        },
        "batch_size": 4,
        "seeds": (0,),
    }
    cell = {"optimizer": START, "variant": "decoder", "depth": 1, "init_scale": 1.0}
    # Images are refused by a decoder.
    assert measure(cell, settings)["has_signal"].tolist() == [1.0]
    assert datasets_of(settings) == ["digits", "python_reference"]


@pytest.mark.parametrize(
    ("arms", "rates", "where"),
    [
        ({**ARMS, "mine": ARMS["sgd"]}, RATES, "'mine' in RATES of .*settings.py"),
        (ARMS, {**RATES, "sdg": RATES["sgd"]}, "'sdg' in ARMS of configs/optimizers"),
    ],
)
def test_an_optimizer_without_rates_is_named_and_rates_without_one(arms, rates, where):
    with pytest.raises(ValueError, match=f"need an entry {where}"):
        with_rates(arms, rates)


def test_the_rate_of_a_single_run_is_the_best_from_a_good_start():
    table, settings = publish.kept_figure("rescue", "rescue_start_digits")
    best = coverage.best_rate_per_cell(runs_of(table, settings), "sgd")
    found = best[best["variant"] == "relu"].set_index("optimizer")["learning_rate"]
    # The recommended setting is for bad starts: its rate is the one for the large map.
    table, settings = publish.kept_figure("rescue", "rescue_map")
    whole = coverage.one_rate(runs_of(table, settings), settings["reference"])
    found["polar_waking"] = (
        whole.set_index("optimizer")["learning_rate"].loc["polar_waking"].iloc[0]
    )
    assert found.to_dict() == {name: arm["learning_rate"] for name, arm in ARMS.items()}


def test_the_small_map_shows_the_rates_and_the_rescued_part():
    sgd = {"label": "SGD", "initialization": "scaled"}
    settings = {**SIZES["rescue"], "optimizers": {"sgd": sgd}}
    table = RUNS[(RUNS["optimizer"] == "sgd") & (RUNS["variant"] == "relu")]
    flags = STARTS[STARTS["variant"] == "relu"].assign(optimizer=START)
    figure = lines_over_scales(pd.concat([table, flags]), settings)
    panel = figure.axes[0]
    assert panel.get_xscale() == "log"
    assert "init_scale" in panel.get_xlabel()
    assert panel.get_title().startswith("SGD\nrescues 33%")
    figure.draw_without_rendering()


def test_networks_are_shown_beside_the_best_rivals_with_one_rate():
    arms = {
        name: {"label": name, "name": name, "initialization": "scaled"}
        for name in "abcdef"
    }
    kinds = {"relu": "mlp", "blocks": "transformer"}
    settings = {
        **SIZES["rescue_networks"],
        "variants": {x: {"model": {"name": kind}} for x, kind in kinds.items()},
        "depths": (2,),
        "init_scales": (1e-4, 1.0, 1e4),
        "optimizers": arms,
        "recommended": "f",
        "reference": "a",
    }
    # With the rate 0.1, "a" and "b" rescue all, "c" and "d" less and less, "e" and "f"
    # nothing. "b" is more accurate than "a".
    lowest = {"a": 1e-4, "b": 1e-4, "c": 1.0, "d": 1e4, "e": np.inf, "f": np.inf}
    rows = [
        (name, variant, 2, scale, rate, [good] * 3, [good] * 3)
        for name, first in lowest.items()
        for variant in kinds
        for scale in settings["init_scales"]
        for rate in (0.1, 0.2)
        for good in [
            (0.85 if name == "a" else 0.9) if scale >= first and rate == 0.1 else 0.2
        ]
    ]
    flags = starts(
        *((x, 2, s, int(s != 1e4), 1, 1) for x in kinds for s in (1e-4, 1.0, 1e4))
    )
    whole = pd.concat([table(*rows), flags.assign(optimizer=START)])
    figure = lines_by_network(whole, settings, "A map")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [x.get_title() for x in panels] == ["relu, 2 layers", "blocks, 2 blocks"]
    for panel in panels:  # the ground of the start that is not represented
        (ground,) = panel.patches
        low, high = (
            ground.get_extents().transformed(panel.transData.inverted()).intervalx
        )
        assert low < 1e4 < high < 1e6
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == [f"{name}, rate 0.1" for name in ("f", "b", "a", "c")]
    figure.draw_without_rendering()


def test_each_heat_map_has_a_title_of_its_own():
    for name in ("rescue_profiles", "rescue_normalized"):
        figure = ITEMS[name].draw(*publish.kept_figure("rescue", name))
        assert figure.get_suptitle().startswith(f"{ITEMS[name].title}: ")


@pytest.mark.parametrize("has_loss", [True, False])
def test_a_good_start_shows_the_test_loss_where_it_is_known(has_loss):
    runs = table(
        ("sgd", "relu", 4, 1.0, 0.1, [0.9] * 3, [0.9, 0.9, 0.9]),
        ("ours", "relu", 4, 1.0, 0.1, [0.9, 0.9, None], [0.8, 0.9, None]),
    )
    if has_loss:  # that of a run that has failed is infinite, wherever it stopped
        runs["test_loss"] = [0.2, 0.3, 0.4, 0.1, 0.3, 7.0]
    settings = {
        **{**SIZES["rescue_start_digits"], "recommended": "ours"},
        "optimizers": {"sgd": {"label": "SGD"}, "ours": {"label": "Ours"}},
    }
    item = ITEMS["rescue_start_digits"]
    (claim,) = item.claims(runs, settings)
    row = item.overview(runs, settings).set_index("optimizer").loc["Ours"]
    panels = item.draw(runs, settings).axes
    labels = ["test accuracy", "test loss (nats)"] if has_loss else ["test accuracy"]
    assert [axes.get_xlabel() for axes in panels] == labels
    assert row["test accuracy"] == "80.00% (0.00 to 90.00)"
    loss = "test loss 0.3 (0.1 to inf)"
    assert (f"80.00% (0.00 to 90.00), {loss}" in claim.found) == has_loss
    assert (row.get("test loss") == loss.removeprefix("test loss ")) == has_loss
    assert list(panels[0].lines[2].get_xdata()) == [0.0, 0.9]  # the spread of ours
    assert [line.get_xdata()[0] for line in panels[-1].lines[1::2]] == (
        [0.3, 0.3] if has_loss else [0.9, 0.8]
    )


def test_the_test_loss_is_that_of_rescued_starts():
    losses = RUNS.assign(test_loss=np.where(RUNS["depth"] == 2, 0.5, 7.0))
    counts = coverage.summary(losses, STARTS, "sgd")
    assert counts["loss"]["sgd"] == 0.5  # deeper networks are not rescued
    assert "loss" not in coverage.summary(RUNS, STARTS, "sgd")


def test_what_is_followed_is_the_run(digits, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: digits)
    setting = SETTING._replace(num_steps=5)
    followed = follow(setting, 0.1, [3, 4], 2.0, "all")
    assert followed["step"].tolist() == [0, 1, 2, 3, 4] * 2
    again = follow(setting, 0.1, [4], 2.0, "all")
    np.testing.assert_allclose(followed["loss"][5:], again["loss"], rtol=1e-5)
    # Kernels have the norm of He's start, times the scale.
    first = followed[followed["step"] == 0]
    assert (first["median_norm"].between(1, 4)).all()


RESCUED = 0.85
# Representable or not: too small for float32, too small, too large for a rate of SGD.
HARD = [
    ("relu", 4, 1e-4),
    pytest.param(("relu", 8, 1e-8), marks=pytest.mark.long),
    pytest.param(("tanh", 4, 1e4), marks=pytest.mark.long),
    pytest.param(("sigmoid", 6, 1e-2), marks=pytest.mark.long),
]


def accuracy(name, activation, depth, scale):
    arm = OPTIMIZERS[name]
    model = {**MLP, "activation": activation, "depth": depth}
    optimizer = {key: arm[key] for key in ("name", "settings")}
    setting = SETTING._replace(model=model, optimizer=optimizer)
    runs = results_of(setting, arm["learning_rates"], [0], scale)
    chosen = runs["validation_accuracy"].mask(runs["diverged"], 0).idxmax()
    return 0.0 if runs["diverged"][chosen] else runs["test_accuracy"][chosen]


@pytest.mark.parametrize("cell", HARD)
def test_a_hard_start_is_rescued_by_the_recommended_setting_alone(cell):
    assert accuracy("polar_waking", *cell) >= RESCUED
    assert accuracy("sgd", *cell) < RESCUED
    assert accuracy("optax_lars", *cell) < RESCUED


def test_a_usual_start_does_not_shrink_to_nothing():
    """One of five seeds does, if directions wait for sizes that are not too large.

    Outputs that tell no images apart are too large in every batch.
    """
    model = {**FULL["variants"]["relu"]["model"], "depth": 4}
    setting = setting_of_arm(FULL, model, OPTIMIZERS["polar_waking"])
    runs = results_of(setting, [0.5], [0], 1.0)
    assert (runs["test_accuracy"] > 0.95).all()
