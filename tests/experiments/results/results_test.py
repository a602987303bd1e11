"""Results on disk: whole files, one configuration a folder, provenance."""

import errno
import fcntl
import json
import os
import re
import socket

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import results

CONFIG = {"steps": 3, "rates": (0.1, 1.0), "model": {"name": "mlp", "width": 8}}


def test_a_folder_takes_one_configuration(tmp_path):
    folder = results.claim(tmp_path / "a" / "b", CONFIG)
    held = json.loads((folder / "config.json").read_text())
    assert held == {**CONFIG, "rates": [0.1, 1.0]}
    assert results.claim(folder, CONFIG) == folder
    changed = {**CONFIG, "model": {"name": "cnn", "width": 8, "depth": 2}}
    with pytest.raises(ValueError, match="another config") as error:
        results.claim(folder, changed)
    assert 'config.model.name: there "mlp", asked for "cnn"' in str(error.value)
    assert "config.model.depth: there nothing, asked for 2" in str(error.value)
    assert "width" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file/below' cannot be written"):
        results.claim(tmp_path / "file" / "below", CONFIG)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    results.write_whole(file, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write_whole(file, "new")
    assert file.read_text() == "old"


def test_a_table_comes_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "float64": rng.standard_normal(4),
            "special": [np.nan, np.inf, -np.inf, 0.0],
            "flag": [True, False, True, False],
        }
    )
    results.write_table(tmp_path / "t.csv", table)
    again = results.read_table(tmp_path / "t.csv")
    for column in table:
        np.testing.assert_array_equal(again[column], table[column])
    results.write_table(tmp_path / "again.csv", again)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "t.csv").read_text()


def test_provenance_has_a_record_for_each_session(tmp_path):
    first = results.Session(tmp_path, runs_before=0)
    first.record(loss=1.5)
    results.Session(tmp_path, runs_before=7)
    records = json.loads((tmp_path / "provenance.json").read_text())
    assert [r["runs_before"] for r in records] == [0, 7]
    assert records[0]["loss"] == 1.5
    assert 0 <= records[0]["seconds"] < 10
    assert records[1]["versions"]["jax"]
    assert records[1]["device"]["platform"] == "cpu"
    assert records[1]["device"]["count"] == len(jax.devices())


TABLE = "name,x,y\na,1.5,2\nb,2.5,3\nc,,4\n"


def test_a_table_that_is_not_what_was_written_is_refused(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(TABLE)
    assert results.read_table(file, names=["name", "x"]).shape == (3, 3)
    for text, problem in (
        (TABLE[:-1], "line 4, the last, does not end"),
        (TABLE[:-4], "line 4, the last, does not end"),
        (TABLE[:-3] + "\n", "line 4 has 2 fields, not 3"),
        (TABLE[:-2] + ",,\n", "line 4 has 5 fields, not 3"),
        (TABLE.replace("2.5", "2s5"), "column 'x' has '2s5'"),
        (TABLE.replace("a,1", 'a,"1'), "line 4, the last, .*|unexpected end of data"),
        (TABLE.replace("name,", "nama,"), "no column 'name'"),
        ("", "does not end|empty"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"results\.csv is damaged") as error:
            results.read_table(file, names=["name", "x"])
        assert re.search(f"{problem}.*; restore it from a copy", str(error.value)), text
    file.write_bytes(b"\xff" + TABLE.encode())
    with pytest.raises(ValueError, match=r"results\.csv is damaged"):
        results.read_table(file)


@pytest.mark.parametrize("text", ["", '[{"a": 1}', "{}", "[1]", "\x00"])
def test_damaged_provenance_is_named_before_anything_is_computed(tmp_path, text):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(ValueError, match=r"provenance\.json is damaged \(.*restore"):
        results.claim(tmp_path, CONFIG)
    assert (tmp_path / "provenance.json").read_text() == text


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    results.write_whole(file, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"table\.csv cannot be written \(No space left"):
        results.write_whole(file, "new")
    assert file.read_text() == "old"
    assert [x.name for x in tmp_path.iterdir()] == ["table.csv"]


def test_a_process_keeps_the_folder_that_it_has_claimed(tmp_path):
    results.claim(tmp_path, CONFIG)
    results.claim(tmp_path, CONFIG)  # its own
    # `flock` takes another opening of the file for another process.
    with (tmp_path / ".lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held = (tmp_path / ".lock").read_text()
    assert held == f"process {os.getpid()} on {socket.gethostname()}\n"
