"""Proxies: rates chosen on validation data, verdicts that follow from the numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import paper_resnet50
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

FULL = SIZES["large_batch"]


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
    peak = {5: 0.7, 15: 0.8, 40: 0.9, 70: 0.87, 240: 0.5}
    assert verdicts(figure4, lines_of(peak)) == ["not confirmed", "not confirmed"]
    # Two peaks with a valley between them are no plateau.
    apart = pd.Series({5: 0.9, 15: 0.6, 40: 0.6, 120: 0.91, 240: 0.9})
    assert list(figure4.plateau_of(apart)) == [120, 240]


def test_what_sgd_loses_is_judged_against_the_spread():
    settings = {**FULL, "batch_sizes": [128, 16384]}

    def table(plain, normalized):
        return pd.concat(
            runs(
                {rate: [a, a + 0.01, a + 0.02] for rate, a in row.items()},
                model,
                "sgd",
                size,
            )
            for model, sizes in (("plain", plain), ("batch_norm", normalized))
            for size, row in zip((128, 16384), sizes, strict=True)
        )

    paper = table(
        ({0.1: 0.9, 0.3: 0.1}, {0.2: 0.5, 1.0: 0.1}),
        ({0.1: 0.9, 0.3: 0.8}, {0.2: 0.7, 1.0: 0.8}),
    )
    assert verdicts(table1, paper, settings) == ["confirmed"] * 4
    # A network that learns nothing has no highest rate, however high its rates are.
    nothing = table(
        ({0.1: 0.9}, {0.2: 0.1, 9.0: 0.1}), ({0.1: 0.9, 0.3: 0.8}, {0.2: 0.8})
    )
    assert verdicts(table1, nothing, settings) == ["confirmed"] * 4
    other = table(({0.1: 0.9}, {12.8: 0.9}), ({0.1: 0.9}, {12.8: 0.8}))
    assert verdicts(table1, other, settings) == ["not confirmed"] * 4


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


def falling(batch_size, losses, gaps):
    """A curve whose training loss and gap change from the first point to the last."""
    train = np.tile(losses, 3)
    return curve("sgd", batch_size, train, train + np.tile(gaps, 3), accuracy=0.9)


def test_the_gap_is_compared_at_the_same_training_loss():
    settings = SIZES["curves"]
    # At a loss of 0.4, halfway, the small batch has a gap of 0.2.
    small = falling(128, losses=[0.6, 0.2], gaps=[0.1, 0.3])
    narrow, wide = (falling(8192, [0.9, 0.4], [0.0, gap]) for gap in (0.19, 0.21))
    assert figure1.gap_at(figure1._with_gap(small[small.seed == 0]), 0.4) == (
        pytest.approx(0.2)
    )
    assert verdicts(figure1, pd.concat([small, narrow]), settings) == ["confirmed"] * 3
    assert verdicts(figure1, pd.concat([small, wide]), settings) == [
        "confirmed",
        "not confirmed",
        "confirmed",
    ]
    widest = falling(8192, [0.9, 0.4], [0.0, 0.31])
    assert verdicts(figure1, pd.concat([small, widest]), settings)[0] == "not confirmed"
    # A large batch that has learnt less than the small one at its first point.
    nothing = falling(8192, [2.3, 2.3], [0.0, 0.0])
    assert verdicts(figure1, pd.concat([small, nothing]), settings)[1] == "untested"
    better = falling(8192, [0.9, 0.1], [0.0, 0.5])
    assert verdicts(figure1, pd.concat([small, better]), settings)[2] == (
        "not confirmed"
    )


def rates_over_epochs(batch_size, conv1, conv3):
    """Norms that give the local rates of the two kernels, at four points."""
    points, settings = 4, SIZES["curves"]
    frames = []
    for seed in range(3):
        columns = {}
        for name, rates in (("conv1", conv1), ("conv3", conv3)):
            for kind in ("kernel", "bias"):
                columns[f"weight_norm/{name}/{kind}"] = np.asarray(rates)
                columns[f"gradient_norm/{name}/{kind}"] = np.full(
                    points, settings["trust_coefficient"]
                )
        frame = {"optimizer": "lars", "batch_size": batch_size, "seed": seed}
        frames.append(pd.DataFrame({**frame, "epoch": [2.0, 4.0, 6.0, 8.0], **columns}))
    return pd.concat(frames)


def test_local_rates_are_judged_by_when_they_peak_and_where_they_end():
    settings = SIZES["curves"]

    def of(*curves_of_sizes):
        return pd.concat(
            rates_over_epochs(size, *rates)
            for size, rates in zip((128, 1024, 8192), curves_of_sizes, strict=True)
        )

    paper = of(
        ([9, 3, 1, 0.9], [30, 90, 40, 20]),
        ([9, 3, 1, 0.5], [30, 90, 40, 15]),
        ([9, 3, 1, 0.3], [30, 90, 40, 10]),
    )
    assert verdicts(figure2, paper, settings) == ["confirmed"] * 5
    late = ([1, 2, 9, 8], [1, 1.1, 1.2, 1.3])
    other = of(late, late, ([1, 2, 9, 8.5], [1, 1.1, 1.2, 1.4]))
    assert verdicts(figure2, other, settings) == [
        "partly",
        "partly",
        "not confirmed",
        "not confirmed",
        "not confirmed",
    ]


def test_what_lars_keeps_is_judged_size_by_size():
    def table(lars, sgd):
        return pd.concat(
            runs({1.0: [a, a + 0.001, a + 0.002]}, model, name, size)
            for model in FULL["models"]
            for name, row in (("lars", lars), ("sgd", sgd))
            for size, a in zip(FULL["batch_sizes"], row, strict=True)
        )

    paper = table(lars=[0.587, 0.585, 0.582, 0.55], sgd=[0.588, 0.53, 0.448, 0.4])
    assert verdicts(table3, paper) == ["confirmed"] * 4
    worse = table(lars=[0.9, 0.89, 0.8, 0.7], sgd=[0.9, 0.89, 0.81, 0.6])
    assert verdicts(table3, worse) == ["not confirmed"] * 2 + ["partly"] * 2


def test_what_a_large_batch_reaches_is_taken_from_the_last_point():
    settings = SIZES["curves"]
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
    for optimizer, of_sizes in SIZES["curves"]["rates_of_curves"].items():
        for size, rate in of_sizes.items():
            assert rates[optimizer, int(size)] == rate, (optimizer, size)
    largest = max(settings["batch_sizes"])
    assert rates["lars", largest] in settings["rates_of_longer_training"]


@pytest.mark.parametrize("name", publish.SOURCES["paper"])
def test_a_figure_takes_less_than_an_hour(name):
    table, settings = publish.kept_figure("paper", name)
    assert publish.figures.seconds_of(name, table, settings) < 3600


def test_a_misprint_is_what_other_sources_contradict(monkeypatch):
    accuracies = {2.5: [0.4] * 3, 25.0: [0.7] * 3, 70.0: [0.5] * 3}
    table = pd.concat(runs(accuracies, batch_size=size) for size in (8192, 16384))
    assert verdicts(table4, table) == ["misprint", "misprint", "untested"]
    # Would torchlars not reach the paper's accuracies, it would be no evidence.
    monkeypatch.setitem(table4.OF_TORCHLARS, 16384, 60.0)
    assert verdicts(table4, table) == ["misprint", "untested", "untested"]


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
    settings = SIZES["curves"]
    small = curve("sgd", 128, 0.2, 0.5, accuracy=0.9)
    good, bad = (
        curve("lars", size, 0.2, 0.5, accuracy=accuracy)
        for size, accuracy in ((1024, 0.895), (8192, 0.85))
    )
    table = pd.concat([small, good, bad])
    assert verdicts(figure5, table, settings) == ["partly", "confirmed"]


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
    schedule = learning_rate_schedule(
        2.5,
        steps,
        decay="quadratic",
        warmup_steps=0,
        warmup_start=0.0,
        restart_after_warmup=False,
    )
    total = 0.001 * jax.vmap(schedule)(jnp.arange(steps)).sum()
    # Σ (1 - t/T)² is T/3 + 1/2 + 1/(6T).
    length = table4.path_length(2.5, 16384, 90)
    np.testing.assert_allclose(length * (1 + 1.5 / steps), total, rtol=1e-4)
