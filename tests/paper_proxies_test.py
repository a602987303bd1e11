"""Proxies: rates chosen on validation data, verdicts that follow from the numbers."""

import itertools

import numpy as np
import pandas as pd
import pytest

from configs import paper_resnet50
from configs.figures import settings as sizes
from experiments import publish
from lars.figures.paper import (
    curves,
    figure1,
    figure3,
    figure4,
    figure5,
    grid,
    table1,
    table4,
    table5,
)
from lars.schedules import learning_rate_schedule

FULL = sizes("large_batch")


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
    cells = {
        (name, size): {
            "model": "batch_norm",
            "optimizer": name,
            "batch_size": size,
            "epochs": 8,
            "rates": "all",
        }
        for name, size in itertools.product(FULL["optimizers"], FULL["batch_sizes"])
    }
    rates = {key: grid.learning_rates(FULL, cell) for key, cell in cells.items()}
    assert {len(values) for values in rates.values()} == {4}
    assert len(FULL["seeds"]) >= 3
    for name in FULL["optimizers"]:
        small, large = rates[name, 128], rates[name, 8192]
        factor = 64 if name == "sgd" else 1
        np.testing.assert_allclose(large, np.multiply(small, factor), rtol=1e-3)


def test_all_make_whole_epochs_of_the_same_length_and_warm_up(digits, monkeypatch):
    monkeypatch.setattr(grid, "images_in", lambda name: 54_000)
    for name, size in itertools.product(FULL["optimizers"], FULL["batch_sizes"]):
        cell = {"model": "plain", "optimizer": name, "batch_size": size, "epochs": 8}
        setting = grid.setting_of(cell, FULL)
        assert setting.num_steps == 8 * (54_000 // size)
        assert setting.schedule["warmup_steps"] == 54_000 // size
        assert setting.schedule["decay"] == "quadratic"
        assert not setting.schedule["restart_after_warmup"]


def verdicts(item, table, settings=FULL):
    return [claim.verdict for claim in item.ITEM.claims(table, settings)]


def lines_of(rates_to_accuracy):
    flat = {rate: [a - 0.001, a, a + 0.001] for rate, a in rates_to_accuracy.items()}
    return pd.concat(runs(flat, batch_size=size) for size in (8192, 16384))


def test_a_plateau_and_a_cliff_are_seen_and_their_absence_too():
    both = {5: 0.8, 15: 0.89, 40: 0.9, 120: 0.895, 240: 0.5}
    assert verdicts(figure4, lines_of(both)) == ["confirmed", "confirmed"]
    peak = {5: 0.7, 15: 0.8, 40: 0.9, 120: 0.87, 240: 0.86}
    assert verdicts(figure4, lines_of(peak)) == ["not confirmed", "not confirmed"]


def test_what_sgd_loses_is_judged_against_the_spread():
    def table(plain, normalized):
        return pd.concat(
            runs({rate: [a, a + 0.01, a + 0.02]}, model, "sgd", size)
            for model, row in (("plain", plain), ("batch_norm", normalized))
            for size, (rate, a) in row.items()
        )

    paper = table(
        {128: (0.1, 0.9), 16384: (0.2, 0.5)}, {128: (0.1, 0.9), 16384: (1.0, 0.8)}
    )
    assert verdicts(table1, paper) == ["confirmed"] * 4
    other = table(
        {128: (0.1, 0.9), 16384: (12.8, 0.9)}, {128: (0.1, 0.9), 16384: (12.8, 0.8)}
    )
    assert verdicts(table1, other) == ["not confirmed"] * 4


def test_longer_training_is_judged_by_all_lengths():
    def table(accuracies):
        lengths = [
            runs({15.0: [a, a, a]}, batch_size=16384, epochs=length)
            for length, a in zip(FULL["longer_epochs"], accuracies, strict=True)
        ]
        return pd.concat([*lengths, runs({15.0: [0.9, 0.9, 0.9]})])

    assert verdicts(table5, table([0.7, 0.72, 0.74, 0.78, 0.85])) == ["confirmed"] * 2
    assert verdicts(table5, table([0.7, 0.74, 0.72, 0.74, 0.75])) == [
        "partly",
        "not confirmed",
    ]
    assert verdicts(table5, table([0.7, 0.6, 0.6, 0.6, 0.6])) == ["not confirmed"] * 2


def curve(optimizer, batch_size, train, test, accuracy):
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


def test_the_gap_is_judged_apart_from_the_training_loss():
    settings = sizes("curves")
    small = curve("sgd", 128, train=0.2, test=0.5, accuracy=0.9)
    worse = curve("sgd", 8192, train=0.4, test=0.6, accuracy=0.8)
    assert verdicts(figure1, pd.concat([small, worse]), settings) == ["confirmed"] * 2
    wider = curve("sgd", 8192, train=0.4, test=0.9, accuracy=0.8)
    assert verdicts(figure1, pd.concat([small, wider]), settings) == [
        "not confirmed",
        "partly",
    ]


def test_what_a_large_batch_reaches_is_taken_from_the_last_point():
    settings = sizes("curves")
    small = curve("sgd", 128, 0.2, 0.5, accuracy=0.9)
    sgd = curve("sgd", 8192, 0.2, 0.5, accuracy=0.8)
    best = curve("lars", 8192, 0.2, 0.5, accuracy=0.91)
    assert verdicts(figure3, pd.concat([small, sgd, best]), settings) == (
        ["confirmed"] * 3
    )
    worst = curve("lars", 8192, 0.2, 0.5, accuracy=0.7)
    assert verdicts(figure3, pd.concat([small, sgd, worst]), settings) == [
        "confirmed",
        "not confirmed",
        "not confirmed",
    ]


def test_curves_have_the_rates_that_are_best_on_validation_data():
    table, settings = publish.kept_figure("paper", "large_batch")
    best = grid.chosen(table)
    best = best[best["model"] == curves.MODEL].groupby(["optimizer", "batch_size"])
    rates = best["learning_rate"].first()
    for optimizer, of_sizes in sizes("curves")["rates_of_curves"].items():
        for size, rate in of_sizes.items():
            assert rates[optimizer, int(size)] == rate, (optimizer, size)
    largest = max(settings["batch_sizes"])
    assert rates["lars", largest] in settings["rates_of_longer_training"]


@pytest.mark.parametrize("name", publish.SOURCES["paper"])
def test_a_figure_takes_less_than_an_hour(name):
    table, settings = publish.kept_figure("paper", name)
    assert publish.figures.seconds_of(name, table, settings) < 3600


def test_a_rate_that_trains_worse_than_ten_times_it_is_a_misprint():
    def table(low, high):
        accuracies = {2.5: [low] * 3, 25.0: [high] * 3, 70.0: [0.5] * 3}
        return pd.concat(runs(accuracies, batch_size=size) for size in (8192, 16384))

    assert verdicts(table4, table(0.4, 0.7))[:2] == ["misprint", "misprint"]
    assert verdicts(table4, table(0.7, 0.7))[:2] == ["misprint", "not confirmed"]


def test_the_bound_on_growth_is_the_sum_over_the_schedule():
    steps = 1000
    schedule = learning_rate_schedule(
        2.5,
        steps,
        decay="quadratic",
        warmup_steps=0,
        warmup_start=0.0,
        restart_after_warmup=False,
    )
    total = sum(float(schedule(step)) for step in range(steps))
    # Σ (1 - t/T)² is T/3 + 1/2 + 1/(6T).
    expected = 0.001 * total * (1 - 1.5 / steps)
    np.testing.assert_allclose(table4._exponent(2.5, steps), expected, rtol=1e-4)


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


def test_figure_5_is_judged_at_every_batch_size():
    settings = sizes("curves")
    small = curve("sgd", 128, 0.2, 0.5, accuracy=0.9)
    good, bad = (
        curve("lars", size, 0.2, 0.5, accuracy=accuracy)
        for size, accuracy in ((1024, 0.895), (8192, 0.85))
    )
    table = pd.concat([small, good, bad])
    assert verdicts(figure5, table, settings) == ["partly", "misprint"]
