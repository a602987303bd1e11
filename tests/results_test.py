"""Results on disk: whole files, one configuration a folder, provenance."""

import json

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import results

CONFIG = {"steps": 3, "rates": (0.1, 1.0), "model": {"name": "mlp", "width": 8}}


def test_a_folder_takes_one_configuration(tmp_path):
    folder = results.claim(tmp_path / "a" / "b", CONFIG)
    assert json.loads((folder / "config.json").read_text()) == {
        **CONFIG,
        "rates": [0.1, 1.0],
    }
    assert results.claim(folder, CONFIG) == folder
    changed = {**CONFIG, "model": {"name": "cnn", "width": 8, "depth": 2}}
    with pytest.raises(ValueError, match="another config") as error:
        results.claim(folder, changed)
    assert 'config.model.name: there "mlp", asked for "cnn"' in str(error.value)
    assert "config.model.depth: there nothing, asked for 2" in str(error.value)
    assert "width" not in str(error.value)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 3, "ra')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        results.claim(tmp_path, CONFIG)


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
            "float32": rng.standard_normal(4).astype(np.float32) * np.float32(1e-30),
            "float64": rng.standard_normal(4),
            "special": [np.nan, np.inf, -np.inf, 0.0],
            "flag": [True, False, True, False],
        }
    )
    results.write_table(tmp_path / "t.csv", table)
    again = results.read_table(tmp_path / "t.csv", {"float32": "float32"})
    for column in table:
        np.testing.assert_array_equal(again[column], table[column])
    results.write_table(tmp_path / "again.csv", again)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "t.csv").read_text()


def test_provenance_has_a_record_for_each_session(tmp_path):
    first = results.Session(tmp_path, runs_before=0)
    first.record(seconds=1.5)
    results.Session(tmp_path, runs_before=7)
    records = json.loads((tmp_path / "provenance.json").read_text())
    assert [r["runs_before"] for r in records] == [0, 7]
    assert records[0]["seconds"] == 1.5
    assert records[1]["versions"]["jax"]
    assert records[1]["device"]["platform"] == "cpu"
    assert records[1]["device"]["count"] == len(jax.devices())
