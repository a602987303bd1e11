"""Every figure has sizes, a quick version that runs, and goes on where it stopped."""

import contextlib
import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver
from matplotlib.image import imread

from experiments import data as datasets, figures, results
from experiments.cli import command
from experiments.studies import (
    Claim,
    Item,
    Verdict,
    judged,
    mean_and_spread,
    page,
    style,
)

NAMES = list(figures.ITEMS)


@pytest.fixture(autouse=True)
def as_the_command_has_it(digits, monkeypatch):
    """One device for each core is set by the test session; digits are prepared here."""
    load = datasets.load
    monkeypatch.setattr(figures, "use_every_core", lambda: None)
    monkeypatch.setattr(
        datasets, "load", lambda name: digits if name == "digits" else load(name)
    )


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls the command in this process; the folder of its results is ``tmp_path``."""
    monkeypatch.setattr(command, "interrupt_on_signals", lambda: lambda: None)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def call(*names, **changes):
        with flagsaver.flagsaver(figure=list(names), **changes):
            figures.main(str(tmp_path))

    return call


@pytest.fixture
def counting(monkeypatch):
    """The four parts of the item "counting" that were measured, in their order."""
    measured = []
    monkeypatch.setitem(figures.ITEMS, "counting", counting_item(measured))
    for sizes in (figures.SIZES, figures.QUICK_SIZES):
        monkeypatch.setitem(sizes, "counting", ROWS)
    return measured


ROWS = {"rows": 3}


def counting_item(measured, numbers=range(4), stop_at=None):
    def measure(cell, settings):
        if cell["number"] == stop_at:
            raise KeyboardInterrupt
        measured.append(cell["number"])
        value = np.float32(0.1) * np.arange(settings["rows"], dtype=np.float32)
        return pd.DataFrame({"value": value + np.float32(cell["number"])})

    return Item(
        title="Counting",
        about="Counts.",
        cells=lambda settings: [{"kind": "a", "number": number} for number in numbers],
        measure=measure,
        draw=lambda table, settings: style.panels(1, 1, "counted")[0],
        claims=lambda table, settings: [Claim("It counts.", "4", judged([True]))],
    )


def computed(folder):
    """The table of counting, without the times of its parts."""
    folder.mkdir(exist_ok=True)
    table = figures.computed("counting", folder, ROWS)
    return table.drop(columns="part_seconds")


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_named_and_all_different(name):
    for quick in (False, True):
        cells = figures.ITEMS[name].cells(figures.settings_of(name, quick))
        assert len({tuple(cell.values()) for cell in cells}) == len(cells) > 0
        assert len({tuple(cell) for cell in cells}) == 1
        # They are read back from a file, where nothing is a tuple or None.
        kinds = (str, int, float)
        assert all(isinstance(x, kinds) for cell in cells for x in cell.values())


def test_sizes_are_those_of_the_items_and_quick_ones_change_what_there_is():
    kept = {figures.ITEMS[name].kept_in or name for name in NAMES}
    assert kept == figures.SIZES.keys() == figures.QUICK_SIZES.keys()
    for name, changes in figures.QUICK_SIZES.items():
        assert changes.keys() <= figures.SIZES[name].keys()


def test_parts_that_docs_has_are_not_computed_again(tmp_path, monkeypatch, counting):
    item = figures.ITEMS["counting"]
    monkeypatch.setattr(figures, "SOURCES", {"book": {"counting": item}})
    monkeypatch.setattr(figures, "DOCS", tmp_path / "docs")
    docs = tmp_path / "docs" / "book" / "counting"
    results.claim(docs, ROWS)
    whole = figures.make("counting", docs.parent, ROWS)
    for published, settings, missing in (
        (4, ROWS, []),
        (2, ROWS, [2, 3]),
        (4, {"rows": 2}, [0, 1, 2, 3]),
    ):
        results.write_table(docs / "counting.csv", whole[whole["number"] < published])
        folder = tmp_path / f"{published} {settings}" / "counting"
        results.claim(folder, settings)
        figures.take_published("counting", folder, settings)
        counting.clear()
        table = figures.make("counting", folder.parent, settings)
        assert counting == missing
        if settings == ROWS:
            kept = list(whole.columns.drop("part_seconds"))
            pd.testing.assert_frame_equal(table[kept], whole[kept], check_exact=True)
        if not missing:
            for file in ("provenance.json", "counting.csv"):
                assert (folder / file).read_text() == (docs / file).read_text()


def test_what_is_published_is_drawn_where_its_data_set_is_not(
    call, tmp_path, monkeypatch
):
    def load(name):
        raise FileNotFoundError(f"data set {name!r} is not prepared")

    monkeypatch.setattr(datasets, "load", load)
    names = ("figure4", "rescue_start_fashion")
    for name in names:
        assert figures.settings_of(name, quick=False)["dataset"] == "fashion_mnist"
    call(*names)
    for name in names:
        assert imread(tmp_path / name / f"{name}.png").std() > 0.01


def refused(call, capsys, pattern, *names, **changes):
    """Refuses with one line and status 2, and neither computes nor draws."""
    capsys.readouterr()  # that of earlier calls
    with pytest.raises(SystemExit) as end:
        call(*names, **changes)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert re.search(pattern, err), err
    assert "Picture" not in out


def test_a_damaged_table_is_refused_and_not_drawn(call, tmp_path, capsys, counting):
    def again():
        call("counting", recompute=True)

    def is_refused(pattern):
        refused(call, capsys, pattern, "counting", recompute=True)

    again()
    folder = tmp_path / "counting"
    file = folder / "results.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    is_refused(r"results\.csv is damaged \(line \d+.*delete it")
    assert file.read_bytes() == whole[:-3]
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))  # at the end of a line
    is_refused(r"results\.csv is damaged \(part a, 3 has 2 rows, and had 3\)")
    file.write_bytes(b"".join(lines[:-3]))  # a whole part is computed again
    again()
    # Earlier tables do not say how many rows there were.
    table = pd.read_csv(file).drop(columns="part_rows")
    results.write_table(file, table.iloc[:-1])
    again()
    assert counting == [0, 1, 2, 3, 3]
    (folder / "counting.csv").unlink()
    (folder / "counting.csv").mkdir()
    (folder / "counting.png").unlink()
    is_refused(r"counting\.csv is a folder")
    assert not (folder / "counting.png").exists()


def test_a_full_disk_leaves_the_earlier_picture(call, tmp_path, monkeypatch, counting):
    call("counting", recompute=True)
    picture = tmp_path / "counting" / "counting.png"
    held, write = picture.read_bytes(), Path.write_bytes

    def full(file, content):
        if ".png" in file.name:
            write(file, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"counting\.png cannot be written \(No space"):
        call("counting", recompute=True)
    assert picture.read_bytes() == held


IN_SECONDS = (
    *("book_sigmoid", "book_variance", "book_matrices", "book_exercise3"),
    *("rescue", "rescue_map"),
)
"""Quick versions that are made in a few seconds each; the others are left to
`make test-long`."""


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in IN_SECONDS))
        for name in sorted(figures.QUICK_SIZES)
    ],
)
def test_the_quick_version_draws_and_judges(kept, tmp_path):
    for name in NAMES:  # those that share a table share its runs here as well
        if (figures.ITEMS[name].kept_in or name) == kept:
            draws_and_judges(name, tmp_path)


def draws_and_judges(name, workdir):
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        settings = figures.settings_of(name, quick=True)
        for folder in {figures.place(workdir, name), figures.kept_place(workdir, name)}:
            results.claim(folder, settings)
        table = figures.make(name, workdir, settings)
    file = figures.place(workdir, name) / name
    picture = imread(file.with_suffix(".png"))
    assert picture.shape[0] > 200
    assert picture.std() > 0.01
    # From the file alone the same is said: pages are made from it.
    held = json.loads((file.parent / "config.json").read_text())
    again = figures.table_in(file.with_suffix(".csv"), name, held)
    item = figures.ITEMS[name]
    assert item.claims(again, held) == item.claims(table, settings)
    for claim in item.claims(again, held):
        assert claim.verdict in get_args(Verdict)
        assert any(c.isdigit() for c in claim.found), "a finding has numbers"
    assert figures.seconds_of(name, again, settings) > 0


def test_a_stopped_item_goes_on_and_ends_the_same(
    tmp_path, monkeypatch, capsys, counting
):
    whole = computed(tmp_path / "whole")
    stopped = counting_item(measured := [], stop_at=2)
    with monkeypatch.context() as patched:
        patched.setitem(figures.ITEMS, "counting", stopped)
        with pytest.raises(KeyboardInterrupt):
            computed(tmp_path / "stopped")
    assert "2 of 4 parts are in" in capsys.readouterr().err
    counting.clear()
    for _ in range(2):  # the second time all from the file
        table = computed(tmp_path / "stopped")
        assert measured + counting == [0, 1, 2, 3]  # nothing twice
        pd.testing.assert_frame_equal(table, whole, check_exact=True)


def test_of_a_shared_table_an_item_has_its_own_rows_and_columns(
    tmp_path, monkeypatch, counting
):
    everything = computed(tmp_path)
    # Another item of the same table, with the last two parts and one of its own.
    part = counting_item(counting, numbers=(3, 2, 9))
    monkeypatch.setitem(figures.ITEMS, "counting", part)
    table = computed(tmp_path)
    assert counting == [0, 1, 2, 3, 9]
    assert table["number"].tolist() == [3] * 3 + [2] * 3 + [9] * 3
    pd.testing.assert_frame_equal(
        table.iloc[:3], everything.iloc[9:].reset_index(drop=True), check_exact=True
    )


def test_numbers_of_a_table_are_the_same_in_its_file(tmp_path):
    values = np.float32([0.1, 1 / 3, 1e-38, 3e38])
    table = figures._in_float64(pd.DataFrame({"x": values, "y": np.arange(4)}))
    results.write_table(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(
        results.read_table(tmp_path / "t.csv"), table, check_exact=True
    )
    assert (table["x"].to_numpy().astype(np.float32) == values).all()
    assert table["x"][0] == 0.1  # and not the float64 nearest to the float32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["figur1"], "one of paper, book, .*, got 'figur1'; did you mean figure1"),
        ([""], "--figure must be one of paper, .*, got ''"),
        (None, "--figure=NAME is missing; NAME is one or more of paper, book, maps"),
    ],
)
def test_an_unknown_figure_is_named_with_those_that_there_are(names, message):
    with pytest.raises(ValueError, match=message):
        figures.chosen(names)


def test_groups_of_figures():
    assert figures.chosen(["all"]) == NAMES
    assert figures.chosen(["book_sigmoid", "book"])[0] == "book_sigmoid"
    assert len(figures.chosen(["paper", "book", "maps", "table1"])) == len(NAMES)


def test_verdicts_and_spreads():
    assert judged([True, True]) == "confirmed"
    assert judged([True, False]) == "partly"
    assert judged([False]) == "not confirmed"
    assert mean_and_spread([1.0, 2.0, 6.0]) == "3 (1 to 6)"


def test_a_section_shows_picture_claims_and_command():
    item = counting_item([])
    claims = [Claim("|w| grows.", "by 3", "partly"), Claim("b", "c", "misprint")]
    entry = page.Entry("counting", item, claims, "made by a command")
    section = page.section_of(entry, "folder")
    assert "![Counting](folder/counting/counting.png)" in section
    assert "| \\|w\\| grows. | by 3 | **partly** |" in section
    assert section.endswith("made by a command")
    overview = page.overview([entry])
    assert "[Counting](#counting)" in overview
    assert "| 0" not in overview  # left empty
    assert page.anchor_of("Exercise 4: can we, LARS?") == "exercise-4-can-we-lars"


def rescue_table(accuracies):
    """The small map: the accuracy of each optimizer at each scale, and all starts."""
    place, scales = {"variant": "relu", "depth": 3}, (1e-4, 1.0, 1e4)
    flags = {"is_finite": 1.0, "has_gradient": 1.0, "has_signal": 1.0}
    starts = [
        {**place, "optimizer": "start", "init_scale": scale, "seed": 0, **flags}
        for scale in scales
    ]
    runs = [
        {
            **place,
            **{"optimizer": name, "init_scale": scale, "seed": seed},
            **{"validation_accuracy": accuracy, "test_accuracy": accuracy},
            **{"learning_rate": 1.0, "train_loss": 0.1, "diverged": False},
        }
        for name, row in accuracies.items()
        for scale, accuracy in zip(scales, row, strict=True)
        for seed in range(3)
    ]
    return pd.DataFrame(starts + runs)


def test_each_lars_is_judged_against_what_has_one_rate_for_all_layers():
    settings = figures.settings_of("book_exercise4", quick=False)
    table = rescue_table(
        {
            "sgd": (0.1, 0.95, 0.1),
            "adam": (0.95, 0.95, 0.1),
            "lamb": (0.95, 0.95, 0.95),  # layerwise: no peer of this claim
            "paper": (0.1, 0.95, 0.95),
            "module": (0.95, 0.95, 0.95),
        }
    )
    found = figures.ITEMS["book_exercise4"].claims(table, settings)
    verdicts = [claim.verdict for claim in found]
    assert verdicts == ["not confirmed", "confirmed"] * 2  # the paper's, and ours
    assert "the paper" in found[0].says
    assert "a ratio a module" in found[1].says


@pytest.mark.parametrize(
    ("peak", "end", "verdicts"),
    [
        (0.25, 3e-4, ["confirmed", "partly"]),
        (1.0, 3e-4, ["confirmed", "confirmed"]),
        (1.0, 1.0, [None, "partly"]),
    ],
)
def test_the_sigmoid_is_judged_by_its_gradients(peak, end, verdicts):
    settings = figures.settings_of("book_sigmoid", quick=False)
    table = pd.DataFrame({"x": [-8.0, 0.0, 8.0], "gradient": [end, peak, end]})
    found = figures.ITEMS["book_sigmoid"].claims(table, settings)
    for claim, verdict in zip(found, verdicts, strict=True):
        assert verdict in (None, claim.verdict)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_is_dropped_is_raised_again(number):
    held = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        check = command.interrupt_on_signals()
        check()
        with contextlib.suppress(KeyboardInterrupt):  # as Python does in destructors
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            check()
    finally:
        for n, handler in held.items():
            signal.signal(n, handler)
