"""The real commands, small: what they write, and what they say of bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import digits_mlp
from experiments import figures
from experiments.cli import command as commands_share
from lars.silence import REASONS
from tests.experiments.commands import call_all, ended, start, wait_for

ROOT = Path(__file__).parents[3]
TRAIN = ("experiments.train", "--config=configs/digits_mlp.py")
SHORT = (*TRAIN, "--config.num_steps=100")
FIGURES = "experiments.figures"
QUICK = (FIGURES, "--figure=book_underflow", "--quick", "--recompute")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds"))}
    # The commands choose for themselves how many devices a CPU has.
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return environment


def assert_one_line(end, message, code=2):
    """It ended with one line, which says what a pattern does, and no traceback."""
    lines = [line for line in end.err.splitlines() if not re.search(r"\d+%\|", line)]
    lines = [line for line in lines if line.strip()]
    assert end.code == code, end.err
    assert len(lines) == 1, end.err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory):
    """A finished run, what its command said, and where this prepared the digits."""
    folder, place = (tmp_path_factory.mktemp(name) for name in ("trained", "place"))
    environment = {**environment, "TFDS_DATA_DIR": str(place)}
    flags = ("--config.num_steps=120", f"--workdir={folder}")
    return folder, *ended(start(environment, *TRAIN, *flags)), place


def test_a_training_run_writes_metrics_and_prints_the_test_accuracy(
    environment, trained
):
    folder, out, err, _ = trained
    # Nothing comes before the bar but a line on the data, which was not there yet.
    assert err.startswith("Preparing the digits (once) ...\n")
    assert "Generating" not in err
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 120, 120]
    assert 0 < lines[0]["trust_ratio/hidden_0/kernel"] < 1
    assert lines[1]["train/batch_loss"] < lines[0]["train/batch_loss"]
    assert f"test accuracy {lines[-1]['test/accuracy']:.4f}" in out
    assert lines[-1]["test/accuracy"] > 0.8
    # The same command again reports and does not train; another config is refused.
    again = (*TRAIN, "--config.num_steps=120", f"--workdir={folder}")
    same, other = call_all(environment, [again, (*again, "--config.seed=1")])
    assert (same.code, same.out) == (0, out)
    assert_one_line(other, "config.seed: there 0, asked for 1")


def test_a_command_starts_anew_with_memory_in_large_pages(environment, tmp_path):
    # A module that every process imports when it starts.
    note = "import os; print(os.environ.get('GLIBC_TUNABLES'), flush=True)"
    (tmp_path / "sitecustomize.py").write_text(note)
    environment = {**environment, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    environment.pop("GLIBC_TUNABLES", None)
    out, _ = ended(start(environment, "experiments.cli.command"))
    large = "glibc.malloc.hugetlb=1" if sys.platform == "linux" else None
    assert out.split() == (["None", large] if large else ["None"])
    # What the user has chosen stays, and importing starts nothing.
    environment["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=7"
    out, _ = ended(start(environment, "experiments.cli.command"))
    assert out.split() == ["glibc.malloc.tcache_count=7"]
    del environment["GLIBC_TUNABLES"]
    out = subprocess.run(
        [sys.executable, "-c", "import experiments"],
        **{"env": environment, "capture_output": True, "text": True},
    )
    assert out.stdout.split() == ["None"]


@pytest.mark.long
def test_the_result_that_the_configuration_states(environment, tmp_path):
    stated = re.search(r"test accuracy (0\.\d+)", digits_mlp.__doc__)[1]
    environment = {**environment}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS")  # as users run it
    out, _ = ended(start(environment, *TRAIN, f"--workdir={tmp_path}/run"))
    reached = re.search(r"test accuracy (0\.\d+)", out)[1]
    # Other processors round otherwise, which in 600 steps moves some of 360 images.
    assert float(reached) == pytest.approx(float(stated), abs=0.015)


def test_a_run_that_wakes_logs_why_its_network_was_moved(environment, tmp_path):
    wakes = (TRAIN[0], "--config=configs/digits_mlp.py:polar_waking")
    flags = ("--config.num_steps=100", "--config.model.width=8")
    flags = (*flags, "--config.init_scale=1e30", f"--workdir={tmp_path}/run")
    (end,) = call_all(environment, [(*wakes, *flags)])
    assert end.code == 0, end.err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    moves = {k: v for k, v in line.items() if k.startswith("waking/")}
    assert list(moves) == [f"waking/{reason}" for reason in REASONS]
    assert moves.pop("waking/not finite") > 10  # each divides by 16, from 1e30
    assert line["weight_norm/hidden_0/kernel"] < 1e10


def test_one_process_at_a_time_has_a_workdir(environment, tmp_path):
    command = (*TRAIN, f"--workdir={tmp_path}/run", "--config.num_steps=2000000")
    first = start(environment, *command)
    wait_for(first, (tmp_path / "run" / "metrics.jsonl").exists)
    (second,) = call_all(environment, [command])
    assert_one_line(second, rf"is being written by process {first.pid} on \S+; wait")
    first.kill()  # as it is, it gives nothing back itself
    first.communicate()
    changed = (*command, "--config.seed=1")
    (third,) = call_all(environment, [changed])
    assert_one_line(third, "config.seed: there 0, asked for 1")  # and not the lock


# Of `experiments.train` on the digits.
BAD_SETTINGS = [
    ("num_step=3", 'Did you mean "num_steps"'),
    ("optimizer.settings.momentun=3", "momentun"),
    ("num_steps=many", "--config.num_steps=many"),
    ("num_steps=1.5", "--config.num_steps=1.5"),
    ("num_steps=0", "num_steps .* at least 1, got 0"),
    ("num_steps=3000000000", r"below 2\*\*31 .* got 3000000000"),
    ("log_every=3000000000", r"below 2\*\*31 .* got 3000000000"),
    ("log_every=-1", "log_every .* got -1"),
    ("checkpoint_every=0", "checkpoint_every .* at least 1, got 0"),
    ("evaluate_every=150", r"multiple of log_every \(100\), got 150"),
    ("steps_per_call=40", r"log_every .* multiple of steps_per_call \(40\), got 100"),
    ("image_size=16", r"must be 1 where images are streamed \(image_size 16\)"),
    ("batch_size=0", "batch_size .* at least 1, got 0"),
    ("batch_size=2000", "1077 training images, got 2000"),
    ("batch_size=33", r"batch_size must be a multiple of 8 .* got 33"),
    ("microbatches=3", r"multiple of 24 \(3 microbatches on 8 dev"),
    ("data_workers=-1", "data_workers .* at least 0, got -1"),
    ("placement=zero", "replicated, fsdp, got 'zero'"),
    ("seed=-1", "seed .* got -1"),
    ("optimizer.learning_rate=-1", "learning_rate .* got -1"),
    ("optimizer.learning_rate=nan", "learning_rate .* got nan"),
    ("optimizer.name=sdg", "got 'sdg'; did you mean sgd"),
    (
        "optimizer.name=polar_waking",
        "no setting 'layer', which belongs to lars, .*; it has learning_rate, .*"
        "--config=configs/digits_mlp.py:polar_waking, chooses",
    ),
    ("optimizer.settings.layer=net", "layer .* got 'net'"),
    ("schedule.decay=cosin", "schedule.decay .* got 'cosin'"),
    ("label_smoothing=1.5", "label_smoothing .* got 1.5"),
    ("augmentation.crop_padding=-1", "crop_padding .* got -1"),
    ("augmentation.flip=sometimes", "none, random, alternating, got 'sometimes'"),
    ("dataset=digit", "no data set 'digit' .* you mean digits"),
    ("dataset=fashion_mnits", "did you mean fashion_mnist"),
    # TFDS alone would try for 205 seconds to find it.
    ("dataset=cifar10", "not prepared .*download_and_prepare"),
    ("model.name=cnnn", "mlp, cnn, .* got 'cnnn'; .* mean cnn"),
    ("model.depth=0", "depth .* got 0"),
    ("profile=some", "profile .* got 'some'"),
    ("init_scale=0", "init_scale .* got 0"),
]
BENCHMARK, THROUGHPUT = ("experiments.benchmark",), ("experiments.throughput",)
BAD_INPUT = [
    *((TRAIN, [f"--config.{given}"], message) for given, message in BAD_SETTINGS),
    (TRAIN[:1], ["--config=configs/digits_mlp.py:sdg"], "got 'sdg'; did you mean sgd"),
    (TRAIN[:1], ["--config=configs/digits_mpl.py"], "no such file; .*digits_mlp.py"),
    (TRAIN, ["--config=configs/models.py"], "--config is given more than once"),
    (TRAIN[:1], ["--config=configs/models.py"], "models.py: it has no get_config"),
    (TRAIN[:1], ["--config=README.md"], "cannot be read .*SyntaxError"),
    (TRAIN, ["--num_processes=2"], "--coordinator_address and --process_id is missing"),
    (TRAIN, ["--workdir=/proc/run"], "'/proc/run' cannot be written"),
    (TRAIN, ["--workdir="], "--workdir is missing"),
    (TRAIN, ["--wrkdir=x"], "Did you mean: workdir"),
    (TRAIN, ["extra"], "unexpected argument 'extra'"),
    ((FIGURES,), ["--figure=figur1"], "got 'figur1'; did you mean figure1"),
    ((FIGURES,), [], "--figure=NAME is missing"),
    ((FIGURES,), ["--figure=rescue", "--workdir="], "--workdir is missing"),
    ((FIGURES,), ["--config=configs/models.py"], "has no --config"),
    ((FIGURES,), ["--config", "configs/digits_mlp.py"], "has no --config"),
    ((FIGURES,), ["extra"], "unexpected argument 'extra'"),
    (BENCHMARK, ["--only=resnet"], "vmap, got 'resnet'"),
    (BENCHMARK, ["--rounds=0"], "rounds must be a whole number of at least 1, got 0"),
    (BENCHMARK, ["--rounds=many"], "--rounds=many"),
    (BENCHMARK, ["--seconds=0"], "seconds must be above 0, got 0.0"),
    (BENCHMARK, ["--workdir=/proc/run"], "'/proc/run' cannot be written"),
    (BENCHMARK, ["--workdir="], "--workdir is missing"),
    (THROUGHPUT, ["--configs=digits"], "'configs/digits.py'; .* configs/digits_mlp.py"),
    (THROUGHPUT, ["--rounds=0"], "rounds must be a whole number of at least 1, got 0"),
    (THROUGHPUT, ["--seconds=-1"], "seconds must be above 0, got -1.0"),
    (THROUGHPUT, ["--workdir="], "--workdir is missing"),
    (("experiments.publish",), ["extra"], "unexpected argument 'extra'"),
]


def test_bad_input_is_named_before_anything_is_written(environment, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    cases = [
        (*command, *([] if "publish" in command[0] else [workdir]), *given)
        for command, given, _ in BAD_INPUT
    ]
    started = time.monotonic()
    ends = call_all({**environment, "JAX_NUM_CPU_DEVICES": "8"}, cases)
    for end, (_, _, message) in zip(ends, BAD_INPUT, strict=True):
        assert_one_line(end, message)
        assert end.out == ""
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 15 * len(cases)


def test_help_lists_what_can_be_asked_for(environment):
    figure, train = call_all(environment, [(FIGURES, "--help"), (TRAIN[0], "--help")])
    for end, names in (
        (figure, [*figures.GROUPS, *figures.ITEMS]),
        (train, commands_share.CONFIGS),
    ):
        for name in names:
            assert re.search(rf"\b{name}\b", end.out), name
    assert "configs/digits_mlp.py" in commands_share.CONFIGS
    assert "configs/models.py" not in commands_share.CONFIGS


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_alone_lists_what_there_is_to_make():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert re.findall(r"^make ([\w-]+)$", done.stdout, re.M) == targets.split()


def test_damaged_files_of_a_run_are_named(environment, trained, tmp_path):
    def damaged(name, damage):
        folder = tmp_path / name
        shutil.copytree(trained[0], folder)
        damage(folder)
        return (*TRAIN, "--config.num_steps=120", f"--workdir={folder}")

    def no_checkpoints(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "checkpoints").write_text("in the way")

    def no_place_for_metrics(folder):
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()

    def hole_in_metrics(folder):
        first, *rest = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join([first[:9] + "\n", *rest]))

    expected = {
        "checkpoints": (no_checkpoints, "checkpoints .*File exists.*move"),
        "deleted": (
            lambda folder: (folder / "metrics.jsonl").unlink(),
            "metrics.jsonl lacks the metrics of step 100, and the checkpoint",
        ),
        "hole": (hole_in_metrics, "metrics.jsonl lacks the metrics of step 100"),
        "metrics": (no_place_for_metrics, "metrics.jsonl is a folder, .* move it away"),
        "provenance": (
            lambda folder: (folder / "provenance.json").write_text('[{"a'),
            "provenance.json is damaged .* restore it from a copy",
        ),
        "config": (
            lambda folder: (folder / "config.json").write_bytes(b"\xff"),
            "config.json is damaged .* restore it from a copy",
        ),
    }
    cases = [damaged(name, damage) for name, (damage, _) in expected.items()]
    before = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    ends = call_all(environment, cases)
    for end, (_, message) in zip(ends, expected.values(), strict=True):
        assert_one_line(end, message)
    # Nothing is lost.
    assert all(x.read_bytes() == content for x, content in before.items() if x.suffix)


def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(environment, tmp_path):
    run = (*SHORT, f"--workdir={tmp_path}/run")
    environment = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    prepare = (*TRAIN, "--dry_run")
    _, full, again = call_all(environment, [prepare, ({"max_file": 30_000}, *run), run])
    assert_one_line(full, "checkpoints cannot be written to .* goes on from", code=1)
    assert "finished after 100 steps" in again.out


def test_a_terminal_that_is_closed_or_knows_no_greek(environment, tmp_path):
    published = (FIGURES, "--figure=table2", f"--workdir={tmp_path}")
    plan = (*TRAIN, "--dry_run")
    _, ascii_end, closed, closed_plan = call_all(
        environment,
        [
            plan,  # prepares the digits
            ({"encoding": "ascii"}, *published),
            ({"closed": True}, *published),
            ({"closed": True}, *plan),
        ],
    )
    assert (ascii_end.code, ascii_end.err) == (0, "")
    assert "Picture" in ascii_end.out
    for end in (closed, closed_plan):
        assert_one_line(end, "Broken pipe", code=1)
    assert (tmp_path / "table2" / "table2.png").exists()


def test_damaged_digits_are_named(environment, trained, tmp_path):
    for name, damage in (
        ("dataset_info.json", lambda content: content[: len(content) // 2]),
        ("digits-train.array_record-00000-of-00001", lambda content: content[:-9]),
    ):
        place = tmp_path / name
        shutil.copytree(trained[-1], place)
        file = place / "digits" / "1.0.0" / name
        file.write_bytes(damage(file.read_bytes()))
        (end,) = call_all(
            {**environment, "TFDS_DATA_DIR": str(place)},
            [(*TRAIN, "--dry_run")],
        )
        assert_one_line(end, f"'digits.*' in {place}/digits.* is damaged .*delete that")


def test_an_interrupted_figure_says_how_it_goes_on(environment, tmp_path):
    process = start(environment, *QUICK, f"--workdir={tmp_path}")
    wait_for(process, (tmp_path / "book_underflow" / "provenance.json").exists)
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 130)
    assert re.search(r"\d+ of \d+ parts are in .*the same command continues", err)
    assert err.endswith("Interrupted.\n")
