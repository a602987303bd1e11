"""The verdicts: chosen on validation, reported on test, failures counted."""

import numpy as np
import pandas as pd
import pytest

from experiments.studies.rescue import plots, scales as rescue
from experiments.studies.rescue.sweep import COLUMNS

LABELS = {"sgd": "SGD", "ours": "Ours"}


def table(*rows):
    """Rows of optimizer, scale, rate, and the validation and test accuracy per seed.

    An accuracy of None stands for a run that diverged.
    """
    runs = []
    for optimizer, scale, rate, validation, test in rows:
        for seed, (v, t) in enumerate(zip(validation, test, strict=True)):
            failed = v is None
            runs.append(
                (optimizer, scale, "all", rate, seed)
                + ((0.9, 0.9, np.nan, True) if failed else (v, t, 0.1, False))
            )
    return pd.DataFrame(runs, columns=COLUMNS)


RESULTS = table(
    # Better than at scale 1, but the standard is set at scale 1.
    ("sgd", 10.0, 0.1, (0.99, 0.99, 0.99), (0.98, 0.98, 0.98)),
    ("sgd", 10.0, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # Validation prefers .1; the better test accuracy of 1 must not be looked at.
    ("sgd", 1.0, 0.1, (0.90, 0.96, 0.95), (0.80, 0.90, 1.00)),
    ("sgd", 1.0, 1.0, (0.94, 0.94, 0.94), (0.99, 0.99, 0.99)),
    ("sgd", 1e3, 0.1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # Two of three diverged: the median run failed, whatever accuracy is on record.
    ("sgd", 1e3, 1.0, (None, None, 0.9), (None, None, 0.9)),
    ("ours", 1.0, 2.0, (0.9, 0.9, 0.9), (0.855, 0.855, 0.855)),
    ("ours", 1.0, 4.0, (0.8, 0.8, 0.8), (0.95, 0.95, 0.95)),
    ("ours", 10.0, 2.0, (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)),
    ("ours", 10.0, 4.0, (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)),
    ("ours", 1e3, 2.0, (0.2, 0.2, 0.2), (0.3, 0.3, 0.3)),
    ("ours", 1e3, 4.0, (0.95, 0.92, 0.90), (0.99, 0.88, 0.70)),
)


def test_the_threshold_is_a_part_of_tuned_sgd_at_scale_one():
    assert rescue.threshold(RESULTS, "sgd") == pytest.approx(0.95 * 0.90)
    assert rescue.threshold(RESULTS, "sgd", "validation") == pytest.approx(0.95 * 0.95)
    with pytest.raises(ValueError, match="no results of the reference 'adam'"):
        rescue.threshold(RESULTS, "adam")


def test_the_best_rate_is_chosen_on_validation_for_each_scale():
    best = rescue.best_rate_per_scale(RESULTS, "sgd")
    assert list(best.optimizer) == ["sgd"] * 3 + ["ours"] * 3
    assert list(best.init_scale) == [1.0, 10.0, 1e3] * 2
    assert list(best.learning_rate) == [0.1, 0.1, 0.1, 2.0, 2.0, 4.0]
    np.testing.assert_allclose(best.test, [0.90, 0.98, 0.5, 0.855, 0.2, 0.88])
    np.testing.assert_allclose(best.lowest, [0.80, 0.98, 0.5, 0.855, 0.2, 0.70])
    np.testing.assert_allclose(best.highest, [1.00, 0.98, 0.5, 0.855, 0.2, 0.99])
    assert list(best.rescued) == [True, True, False, True, False, True]


def test_one_rate_is_the_one_that_rescues_most_on_validation():
    one = rescue.one_rate(RESULTS, "sgd")
    # Ours: 2 and 4 pass at no and at one scale on validation data, from .9025 on.
    assert list(one.learning_rate) == [0.1] * 3 + [4.0] * 3
    assert list(one.rescued) == [True, True, False, True, False, True]


def test_one_rate_is_not_chosen_on_test_data():
    results = table(
        ("sgd", 1.0, 1.0, (0.9,), (0.9,)),
        ("sgd", 1.0, 2.0, (0.1,), (0.95,)),
        ("sgd", 5.0, 1.0, (0.9,), (0.1,)),
        ("sgd", 5.0, 2.0, (0.1,), (0.95,)),
    )
    one = rescue.one_rate(results, "sgd")
    assert list(one.learning_rate) == [1.0, 1.0]
    assert list(one.rescued) == [True, False]


def test_the_summary_counts():
    counts = rescue.summary(RESULTS, "sgd")
    assert list(counts.index) == ["sgd", "ours"]
    assert list(counts.scales) == [3, 3]
    assert list(counts.rescued_best_rate) == [2, 2]
    assert list(counts.rescued_one_rate) == [2, 2]
    # SGD at scale 1 by seed: .80, .90, 1.00; ours at 1e3: .99, .88, .70; from .855 on.
    assert list(counts.rescued_best_rate_lowest) == [1, 1]
    assert list(counts.rescued_best_rate_highest) == [2, 2]
    assert list(counts.diverged_runs) == [2, 0]
    assert list(counts.runs) == [18, 18]


def test_equal_rates_are_decided_for_the_smaller_whatever_their_order():
    rows = [
        ("sgd", 1.0, 3.0, (0.9,), (0.5,)),
        ("sgd", 1.0, 1.0, (0.9,), (0.7,)),
    ]
    for order in (rows, rows[::-1]):
        results = table(*order)
        assert rescue.best_rate_per_scale(results, "sgd").learning_rate[0] == 1.0
        assert rescue.one_rate(results, "sgd").learning_rate[0] == 1.0


def test_the_most_useful_rates_cover_the_most_scales_on_validation():
    good, bad = (0.9,), (0.1,)
    results = table(
        ("sgd", 1.0, 1.0, good, good),
        ("sgd", 1.0, 2.0, good, good),
        ("sgd", 1.0, 3.0, bad, good),
        ("sgd", 5.0, 1.0, good, bad),
        ("sgd", 5.0, 2.0, good, good),
        ("sgd", 5.0, 3.0, bad, good),
        ("sgd", 9.0, 1.0, bad, good),
        ("sgd", 9.0, 2.0, bad, good),
        ("sgd", 9.0, 3.0, good, bad),
    )
    useful = rescue.most_useful_rates(results, "sgd", 2)
    assert useful.learning_rates["sgd"] == (1.0, 3.0)
    assert useful.rescued["sgd"] == 3
    assert useful.accuracy["sgd"] == pytest.approx(0.9)
    one = rescue.most_useful_rates(results, "sgd", 1)
    assert (one.learning_rates["sgd"], one.rescued["sgd"]) == ((1.0,), 2)
    with pytest.raises(ValueError, match=r"4 rates .* 'sgd', which has 3"):
        rescue.most_useful_rates(results, "sgd", 4)


def test_the_tables_say_what_the_summary_says():
    overview = rescue.overview_table(RESULTS, "sgd", LABELS)
    assert overview.to_numpy().tolist() == [
        ["SGD", "2 (1 to 2)", "2 (1 to 2)", "0.1", "2 of 18"],
        ["Ours", "2 (1 to 2)", "2 (1 to 2)", "4", "0 of 18"],
    ]
    accuracy = rescue.accuracy_table(RESULTS, "sgd", LABELS)
    assert accuracy.to_numpy().tolist() == [
        ["1", "0.900 (0.800 to 1.000)", "0.855 (0.855 to 0.855)"],
        ["10", "0.980 (0.980 to 0.980)", "0.200 (0.200 to 0.200) –"],
        ["1000", "0.500 (0.500 to 0.500) –", "0.880 (0.700 to 0.990)"],
    ]


def test_the_figure_draws_the_medians_and_the_spread():
    figure = plots.rescue_figure(RESULTS, "sgd", LABELS, "A setting.")
    panel = figure.axes[1]
    assert panel.get_title() == "Ours\nrescues 2 of 3, with one rate 2"
    drawn = {line.get_label(): line for line in panel.get_lines()}
    best = drawn["best learning rate for each scale"]
    np.testing.assert_allclose(best.get_xdata(), [1.0, 10.0, 1e3])
    np.testing.assert_allclose(best.get_ydata(), [0.855, 0.2, 0.88])
    band = panel.collections[-1].get_paths()[0].vertices
    assert {0.70, 0.99} <= set(band[:, 1].round(6))
    assert panel.get_xscale() == "log"
    assert "init_scale" in figure.axes[0].get_xlabel() + panel.get_xlabel()
    figure.draw_without_rendering()
