"""Proxies: rates chosen on validation data, verdicts that follow from the numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import paper_resnet50
from configs.optimizers import going_on
from experiments import publish
from experiments.studies.paper import (
    curves,
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,
    grid,
    large_batch,
    table1,
    table3,
    table4,
    table5,
)
from experiments.studies.paper.settings import SIZES
from experiments.training.schedules import learning_rate_schedule

FULL, OF_CURVES = SIZES["large_batch"], SIZES["curves"]
CONFIRMED, NOT = "confirmed", "not confirmed"


def runs(accuracies, model="batch_norm", optimizer="lars", batch_size=128, epochs=8):
    """A table of one setting: for each rate, the test accuracy of each seed."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "optimizer": optimizer,
                "batch_size": batch_size,
                "epochs": epochs,
                "learning_rate": rate,
                "seed": seed,
                "validation_accuracy": accuracy,
                "test_accuracy": accuracy,
                "diverged": False,
            }
            for rate, values in accuracies.items()
            for seed, accuracy in enumerate(values)
        ]
    )


def test_a_rate_is_chosen_on_validation_and_reported_on_test():
    table = runs({1.0: [0.5, 0.5, 0.5], 2.0: [0.6, 0.6, 0.6]})
    table["validation_accuracy"] = 1 - table["test_accuracy"]
    best = grid.chosen(table)
    assert set(best["learning_rate"]) == {1.0}
    assert list(best["accuracy"]) == [0.5, 0.5, 0.5]


def test_a_diverged_run_counts_as_nothing_in_choice_and_report():
    table = runs({1.0: [0.5, 0.5, 0.5], 2.0: [0.6, 0.6, 0.9]})
    table.loc[(table.learning_rate == 2.0) & (table.seed == 2), "diverged"] = True
    best = grid.chosen(table)
    assert set(best["learning_rate"]) == {1.0}
    alone = grid.chosen(table[table.learning_rate == 2.0])
    assert sorted(alone["accuracy"]) == [0.0, 0.6, 0.6]


def test_of_equal_rates_the_smallest_is_chosen():
    table = runs({3.0: [0.5], 1.0: [0.5], 2.0: [0.5]})
    assert grid.chosen(table)["learning_rate"].item() == 1.0


def test_every_optimizer_has_as_many_rates_and_only_those_of_sgd_grow():
    def rates(name, size):
        cell = {"optimizer": name, "batch_size": size, "rates": "all"}
        return grid.learning_rates(FULL, cell)

    assert len(FULL["seeds"]) >= 3
    for name, size in itertools.product(FULL["optimizers"], FULL["batch_sizes"]):
        factor = size / 128 if name == "sgd" else 1
        expected = np.multiply(rates(name, 128), factor)
        assert len(expected) == 4
        np.testing.assert_allclose(rates(name, size), expected, rtol=1e-3)


def test_all_make_whole_epochs_of_the_same_length_and_warm_up(monkeypatch):
    monkeypatch.setattr(grid, "images_in", lambda name: 54_000)
    for name, size in itertools.product(FULL["optimizers"], FULL["batch_sizes"]):
        cell = {"model": "plain", "optimizer": name, "batch_size": size, "epochs": 8}
        setting = grid.setting_of(cell, FULL)
        assert setting.num_steps == 8 * (54_000 // size)
        assert setting.schedule["warmup_steps"] == 54_000 // size
        assert setting.schedule["decay"] == "quadratic"
        assert not setting.schedule["restart_after_warmup"]


def verdicts(item, *tables, settings=FULL):
    return [c.verdict for c in item.ITEM.claims(pd.concat(tables), settings)]


def lines_of(rates_to_accuracy):
    flat = {rate: [a - 0.001, a, a + 0.001] for rate, a in rates_to_accuracy.items()}
    return [runs(flat, batch_size=size) for size in (8192, 16384)]


def test_a_plateau_and_a_cliff_are_seen_and_their_absence_too():
    both = {5: 0.8, 15: 0.89, 40: 0.9, 120: 0.895, 240: 0.5}
    assert verdicts(figure4, *lines_of(both)) == [CONFIRMED, CONFIRMED]
    peak = {5: 0.7, 15: 0.8, 40: 0.9, 70: 0.87, 240: 0.5}
    assert verdicts(figure4, *lines_of(peak)) == [NOT, NOT]
    # Two peaks with a valley between them are no plateau.
    apart = pd.Series({5: 0.9, 15: 0.6, 40: 0.6, 120: 0.91, 240: 0.9})
    assert list(figure4.plateau_of(apart)) == [120, 240]


@pytest.mark.parametrize(
    ("plain", "normalized", "verdict"),
    [
        (
            ({0.1: 0.9, 0.3: 0.1}, {0.2: 0.5, 1.0: 0.1}),
            ({0.1: 0.9, 0.3: 0.8}, {0.2: 0.7, 1.0: 0.8}),
            CONFIRMED,
        ),
        # A network that learns nothing has no highest rate, however high its rates are.
        (
            ({0.1: 0.9}, {0.2: 0.1, 9.0: 0.1}),
            ({0.1: 0.9, 0.3: 0.8}, {0.2: 0.8}),
            CONFIRMED,
        ),
        (({0.1: 0.9}, {12.8: 0.9}), ({0.1: 0.9}, {12.8: 0.8}), NOT),
    ],
)
def test_the_loss_of_sgd_is_judged_against_the_spread(plain, normalized, verdict):
    settings = {**FULL, "batch_sizes": [128, 16384]}
    tables = [
        runs(
            {rate: [a, a + 0.01, a + 0.02] for rate, a in row.items()}, model, "sgd", x
        )
        for model, sizes in (("plain", plain), ("batch_norm", normalized))
        for x, row in zip((128, 16384), sizes, strict=True)
    ]
    assert verdicts(table1, *tables, settings=settings) == [verdict] * 4


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.7, 0.72, 0.74, 0.78, 0.85], [CONFIRMED, CONFIRMED]),
        ([0.7, 0.74, 0.72, 0.74, 0.75], ["partly", NOT]),
        ([0.7, 0.6, 0.6, 0.6, 0.6], [NOT, NOT]),
    ],
)
def test_longer_training_is_judged_by_all_lengths(accuracies, expected):
    lengths = [
        runs({15.0: [a, a, a]}, batch_size=16384, epochs=length)
        for length, a in zip(FULL["longer_epochs"], accuracies, strict=True)
    ]
    assert verdicts(table5, *lengths, runs({15.0: [0.9, 0.9, 0.9]})) == expected


def curve(optimizer, batch_size, accuracy, train=0.2, test=0.5):
    return pd.DataFrame(
        {
            "optimizer": optimizer,
            "batch_size": batch_size,
            "seed": np.repeat([0, 1, 2], 2),
            "epoch": np.tile([4.0, 8.0], 3),
            "train_loss": train,
            "test_loss": test,
            "test_accuracy": np.tile([accuracy / 2, accuracy], 3),
        }
    )


def falling(batch_size, losses, gaps):
    """A curve whose training loss and gap change from the first point to the last."""
    train = np.tile(losses, 3)
    return curve("sgd", batch_size, 0.9, train, train + np.tile(gaps, 3))


def test_the_gap_is_compared_at_the_same_training_loss():
    # At a loss of 0.4, halfway, the small batch has a gap of 0.2.
    small = falling(128, losses=[0.6, 0.2], gaps=[0.1, 0.3])
    gaps = figure1._with_gap(small[small.seed == 0])
    assert figure1.gap_at(gaps, 0.4) == pytest.approx(0.2)

    def beside(losses, gaps):
        return verdicts(figure1, small, falling(8192, losses, gaps), settings=OF_CURVES)

    assert beside([0.9, 0.4], [0.0, 0.19]) == [CONFIRMED] * 3
    assert beside([0.9, 0.4], [0.0, 0.21]) == [CONFIRMED, NOT, CONFIRMED]
    assert beside([0.9, 0.4], [0.0, 0.31])[0] == NOT
    # A large batch that has learnt less than the small one at its first point.
    assert beside([2.3, 2.3], [0.0, 0.0])[1] == "untested"
    assert beside([0.9, 0.1], [0.0, 0.5])[2] == NOT


def rates_over_epochs(batch_size, **rates):
    """Norms that give the local rates of the two kernels, at four points."""
    columns = {}
    for name, kind in itertools.product(rates, ("kernel", "bias")):
        columns[f"weight_norm/{name}/{kind}"] = np.asarray(rates[name])
        columns[f"gradient_norm/{name}/{kind}"] = OF_CURVES["trust_coefficient"]
    rows = {"optimizer": "lars", "batch_size": batch_size, **columns}
    frame = pd.DataFrame({**rows, "epoch": [2.0, 4.0, 6.0, 8.0]})
    return pd.concat(frame.assign(seed=seed) for seed in range(3))


def test_local_rates_are_judged_by_when_they_peak_and_where_they_end():
    def of(*curves_of_sizes):
        tables = [
            rates_over_epochs(size, conv1=conv1, conv3=conv3)
            for size, (conv1, conv3) in zip(
                (128, 1024, 8192), curves_of_sizes, strict=True
            )
        ]
        return verdicts(figure2, *tables, settings=OF_CURVES)

    of_paper = [
        ([9, 3, 1, 0.9], [30, 90, 40, 20]),
        ([9, 3, 1, 0.5], [30, 90, 40, 15]),
        ([9, 3, 1, 0.3], [30, 90, 40, 10]),
    ]
    assert of(*of_paper) == [CONFIRMED] * 5
    late = ([1, 2, 9, 8], [1, 1.1, 1.2, 1.3])
    later = ([1, 2, 9, 8.5], [1, 1.1, 1.2, 1.4])
    assert of(late, late, later) == ["partly", "partly", NOT, NOT, NOT]


@pytest.mark.parametrize(
    ("lars", "sgd", "expected"),
    [
        ([0.587, 0.585, 0.582, 0.55], [0.588, 0.53, 0.448, 0.4], [CONFIRMED] * 4),
        ([0.9, 0.89, 0.8, 0.7], [0.9, 0.89, 0.81, 0.6], [NOT, NOT, "partly", "partly"]),
    ],
)
def test_lars_is_judged_size_by_size(lars, sgd, expected):
    tables = [
        runs({1.0: [a, a + 0.001, a + 0.002]}, model, name, size)
        for model in FULL["models"]
        for name, row in (("lars", lars), ("sgd", sgd))
        for size, a in zip(FULL["batch_sizes"], row, strict=True)
    ]
    assert verdicts(table3, *tables) == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.91, [CONFIRMED] * 3), (0.7, [CONFIRMED, NOT, NOT])]
)
def test_a_large_batch_is_judged_at_the_last_point(accuracy, expected):
    of_sgd = curve("sgd", 128, 0.9), curve("sgd", 8192, 0.8)
    lars = curve("lars", 8192, accuracy)
    assert verdicts(figure3, *of_sgd, lars, settings=OF_CURVES) == expected


def test_figure_5_is_judged_at_every_batch_size():
    small, good = curve("sgd", 128, 0.9), curve("lars", 1024, 0.895)
    bad = curve("lars", 8192, 0.85)
    found = verdicts(figure5, small, good, bad, settings=OF_CURVES)
    assert found == ["partly", CONFIRMED]


def test_curves_have_the_rates_that_are_best_on_validation_data():
    table, settings = publish.kept_figure("paper", "large_batch")
    best = grid.chosen(table)
    best = best[best["model"] == curves.MODEL].groupby(["optimizer", "batch_size"])
    rates = best["learning_rate"].first()
    for optimizer, of_sizes in OF_CURVES["rates_of_curves"].items():
        for size, rate in of_sizes.items():
            assert rates[optimizer, int(size)] == rate, (optimizer, size)
    largest = max(settings["batch_sizes"])
    assert rates["lars", largest] in settings["rates_of_longer_training"]


@pytest.mark.parametrize("name", publish.SOURCES["paper"])
def test_a_figure_takes_less_than_an_hour(name):
    table, settings = publish.kept_figure("paper", name)
    assert publish.figures.seconds_of(name, table, settings) < 3600


def test_a_misprint_is_contradicted_by_other_sources(monkeypatch):
    tables = lines_of({2.5: 0.4, 25.0: 0.7, 70.0: 0.5})
    assert verdicts(table4, *tables) == ["misprint", "misprint", "untested"]
    # If torchlars did not reach the paper's accuracies, it would be no evidence.
    monkeypatch.setitem(table4.OF_TORCHLARS, 16384, 60.0)
    assert verdicts(table4, *tables) == ["misprint", "untested", "untested"]


@pytest.mark.parametrize("batch_size", figure5.LEGEND)
def test_figure_5_has_the_schedules_of_the_configurations(batch_size):
    config = paper_resnet50.get_config(f"{batch_size},figure5")
    rate, is_lars = figure5.LEGEND[batch_size]
    assert config.optimizer.learning_rate == rate
    assert config.optimizer["name"] == ("lars" if is_lars else "sgd")
    ours = learning_rate_schedule(rate, config.num_steps, **config.schedule)
    for part in (0.02, 0.1, 0.5, 0.9):  # of the run, whose images differ a little
        np.testing.assert_allclose(
            figure5.schedule_of(batch_size)(
                int(part * 90 * figure5.IMAGES / batch_size)
            ),
            ours(int(part * config.num_steps)),
            rtol=1e-2,
        )


@pytest.mark.parametrize(
    ("item", "peers"), [(large_batch.ITEM, 3), (large_batch.PLAIN, 2)]
)
def test_lars_is_best_only_beyond_the_spread_of_all_its_peers(item, peers):
    names = {cell["optimizer"] for cell in item.cells(FULL)}
    assert len(names) == peers + 1

    def verdict(of_lars):
        table = pd.concat(
            runs({1.0: of_lars if name == "lars" else [0.7, 0.8, 0.9]}, optimizer=name)
            for name in names
        )
        settings = {**FULL, "batch_sizes": [128]}
        (claim,) = item.claims(table, settings)
        return claim.verdict

    assert verdict([0.91, 0.92, 0.93]) == "confirmed"
    assert verdict([0.89, 0.92, 0.93]) == "not confirmed"


def test_the_path_of_a_run_is_the_sum_over_its_schedule():
    steps = 90 * table4.IMAGES // 16384
    schedule = learning_rate_schedule(2.5, steps, **going_on(0, 0.0))
    total = 0.001 * jax.vmap(schedule)(jnp.arange(steps)).sum()
    # Σ (1 - t/T)² is T/3 + 1/2 + 1/(6T).
    length = table4.path_length(2.5, 16384, 90)
    np.testing.assert_allclose(length * (1 + 1.5 / steps), total, rtol=1e-4)
