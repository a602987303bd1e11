"""The command for accelerators: what it needs, what it writes, and when it stops."""

import csv
import json
import re
import subprocess
import sys
import time
import types

import numpy as np
import optax
import pytest

from experiments.accelerator import numbers
from experiments.accelerator.parts import PARTS, run_part
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
# Those that `resume` imports in its run.
from experiments.accelerator.rescue import digits_data
from experiments.training import checkpoints, setup, training
print(digits_data().test.images.shape)
"""


ON_TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
from experiments.accelerator import resnet

placed = []
def put(tree, sharding, put=resnet.put):
    made = put(tree, sharding)
    if isinstance(made, dict):
        placed.append(made["images"])
    return made

resnet.put = put
row = resnet._resnet(resnet.device_mesh(), 18, 32, 2, 1, 1)
(images,) = placed
shard = images.addressable_shards[0].data
print(images.shape, "on", len(images.sharding.device_set), end=" devices, ")
print(shard.shape, "on each")
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


ABOUT = {"small": True, "device": {"platform": "cpu"}}


def test_rows_stay_when_a_part_fails(tmp_path, monkeypatch):
    def rows(small):
        assert small
        yield {"b": 2.0, "a": "one"}
        yield {"a": "two"}
        raise RuntimeError("out of memory")

    fake = types.SimpleNamespace(COLUMNS=("a", "b"), rows=rows)
    monkeypatch.setitem(sys.modules, "experiments.accelerator.fake", fake)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_part("fake", tmp_path, ABOUT)
    found = [{"a": "one", "b": "2.0"}, {"a": "two", "b": ""}]
    assert table(tmp_path / "fake.csv") == found
    assert not (tmp_path / "fake.json").exists()  # it did not come to its end


def test_parts_are_stopped_in_time_and_leave_no_process(tmp_path):
    (tmp_path / "numbers.csv").write_text("of another device\n")
    (tmp_path / "parts.json").write_text('{"steps": "complete"}')
    started = time.monotonic()
    # As users write it: with a space.
    run("--workdir", str(tmp_path), "--only", "resume,numbers", "--minutes=0.5")
    assert time.monotonic() - started < 40
    states = json.loads((tmp_path / "parts.json").read_text())
    assert states.pop("steps") == "complete"
    assert states.keys() == {"resume", "numbers"}
    assert re.match("stopped|not begun", states["resume"]), states
    if not states["numbers"].startswith("not begun"):
        assert "of another device" not in (tmp_path / "numbers.csv").read_text()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True)
    assert str(tmp_path) not in listed.stdout
    assert "experiments.accelerator.resume" not in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--workdir=FOLDER is missing"),
        (("--workdir={}", "--only=numbers,speed"), "got 'speed'"),
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
    arrays = numbers._arrays(*numbers.SCALES[2], "float32")  # squares overflow

    def error(make):
        return numbers._error(numbers._last_update(make), *arrays)

    assert error(lambda: presets.optax(0.1)) < numbers._LIMITS["float32"]
    assert not error(lambda: optax.lars(0.1)) < 0.1


def test_one_array_that_is_not_finite_is_noticed():
    def update(updates, state, params=None):
        return {**updates, "dense": np.nan * updates["dense"]}, state

    broken = optax.GradientTransformation(lambda params: (), update)
    arrays = numbers._arrays(1.0, 1.0, "float32")
    error = numbers._error(numbers._last_update(lambda: broken), *arrays)
    assert np.isnan(error)
    assert not numbers._row("broken", "float32", "", error, 1.0)["holds"]


def test_a_batch_of_images_is_divided_among_devices():
    made = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.stdout == "(4, 32, 32, 3) on 2 devices, (2, 32, 32, 3) on each\n", (
        made.stderr
    )


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
