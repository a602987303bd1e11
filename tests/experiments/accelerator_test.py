"""The command for accelerators: what it needs, what it writes, and when it stops."""

import csv
import json
import subprocess
import sys
import types

import numpy as np
import optax
import pytest

from experiments.accelerator import numbers
from experiments.accelerator.__main__ import PARTS, TITLES, run_part
from lars import presets

MISSING = (
    *("PIL", "grain", "matplotlib", "ml_collections", "pandas"),
    *("sklearn", "tabulate", "tensorboardX", "tensorflow_datasets", "tqdm"),
)
"""What a bare machine lacks."""

ON_A_BARE_MACHINE = f"""
import importlib, sys
import flax.linen, optax

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
for name in {tuple(PARTS)!r}:
    importlib.import_module("experiments.accelerator." + name)
from experiments.accelerator.rescue import digits_data
print(digits_data().test.images.shape)
"""


def run(*arguments, status=0):
    command = [sys.executable, "-m", "experiments.accelerator", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == status, made.stderr
    return made


def table(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_a_bare_machine_has_all_that_parts_need():
    command = [sys.executable, "-c", ON_A_BARE_MACHINE]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.stdout == "(360, 8, 8, 1)\n", made.stderr


def test_rows_stay_when_a_part_fails(tmp_path, monkeypatch):
    def rows(small, data):
        assert small  # on a CPU
        assert data is None
        yield {"b": 2.0, "a": "one"}
        yield {"a": "two"}
        raise RuntimeError("out of memory")

    fake = types.SimpleNamespace(COLUMNS=("a", "b"), rows=rows)
    monkeypatch.setitem(sys.modules, "experiments.accelerator.fake", fake)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_part("fake", tmp_path, False, None)
    assert table(tmp_path / "fake.csv") == [
        {"a": "one", "b": "2.0"},
        {"a": "two", "b": ""},
    ]
    about = json.loads((tmp_path / "fake.json").read_text())
    assert about["device"]["platform"] == "cpu"
    assert "seconds" not in about  # it did not come to its end


def test_a_part_is_stopped_in_time(tmp_path):
    made = run("--workdir", str(tmp_path), "--only=numbers", "--minutes=0.1")
    assert json.loads((tmp_path / "parts.json").read_text()) == {
        "numbers": "stopped after 6 s"
    }
    assert TITLES["numbers"] in made.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--workdir=FOLDER is missing"),
        (("--workdir={}", "--only=numbers,speed"), "got 'speed'"),
        (("--workdir={}", "--data={}/cifar10.npz"), "is no file"),
        (("--workdir={}", "small"), "'small' is no flag"),
        (("--workdir={}/file",), "cannot be written"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, arguments, problem):
    (tmp_path / "file").write_text("in the way")
    made = run(*(x.format(tmp_path) for x in arguments), status=1)
    assert problem in made.stderr
    assert len(made.stderr.splitlines()) == 1
    assert not (tmp_path / "numbers.json").exists()


def test_an_optimizer_that_leaves_the_range_of_float32_is_noticed():
    scales = numbers.SCALES[2]  # squares overflow
    arrays = numbers._arrays(*scales, "float32")
    compared = {"theirs": lambda: optax.lars(0.1), "ours": lambda: presets.optax(0.1)}
    errors = numbers._errors(numbers._last_updates(compared), *arrays)
    assert errors["ours"] < numbers._LIMITS["float32"]
    assert not errors["theirs"] < 0.1


def test_small_maps_and_resumed_runs_on_a_cpu(tmp_path):
    run("--workdir", str(tmp_path), "--only=rescue,resume", "--minutes=8")
    rescued = {
        row["optimizer"]: row["rescued"] for row in table(tmp_path / "rescue.csv")
    }
    assert rescued["SGD with momentum"] < rescued["polar LARS, waking"]
    digests = [row["digest"] for row in table(tmp_path / "resume.csv")]
    assert len(digests) == 3
    assert len(set(digests)) == 1


@pytest.mark.long
def test_all_parts_on_a_cpu(tmp_path):
    run("--workdir", str(tmp_path), "--minutes=15")
    states = json.loads((tmp_path / "parts.json").read_text())
    assert states == dict.fromkeys(PARTS, "complete")
    for name in PARTS:
        assert table(tmp_path / f"{name}.csv")
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["small"]
    assert {row["holds"] for row in table(tmp_path / "numbers.csv")} == {"True"}
    shares = [
        float(row["of_product"] or np.nan) for row in table(tmp_path / "resnet.csv")
    ]
    assert 0 < np.nanmax(shares) < 1
