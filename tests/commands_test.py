"""The real commands, small: what they write, and what they say of bad input."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest

from configs import digits_mlp

RESCUE = ("experiments.rescue", "--config=configs/rescue.py")
TRAIN = ("experiments.train", "--config=configs/digits_mlp.py")
SMALL_MAP = ("--config.init_scales=(1e-4,1.0)", "--config.num_steps=3")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds"))}
    # The commands choose for themselves how many devices a CPU has.
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return environment


def start(environment, module, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(environment, *arguments):
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_a_training_run_writes_metrics_and_prints_the_test_accuracy(
    environment, tmp_path
):
    command = (*TRAIN, f"--workdir={tmp_path}/run", "--config.num_steps=120")
    code, out, err = call(environment, *command)
    assert code == 0, err
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [100, 120, 120]
    assert 0 < lines[0]["trust_ratio/hidden_0/kernel"] < 1
    assert lines[1]["train/batch_loss"] < lines[0]["train/batch_loss"]
    assert f"test accuracy {lines[-1]['test/accuracy']:.4f}" in out
    assert lines[-1]["test/accuracy"] > 0.8
    # The same command again reports and does not train; another config is refused.
    again, same, _ = call(environment, *command)
    assert (again, same) == (0, out)
    code, _, err = call(environment, *command, "--config.seed=1")
    assert code == 2
    assert "config.seed: there 0, asked for 1" in err


def test_a_command_starts_anew_with_memory_in_large_pages(environment, tmp_path):
    # A module that every process imports when it starts.
    note = "import os; print(os.environ.get('GLIBC_TUNABLES'))"
    (tmp_path / "sitecustomize.py").write_text(note)
    environment = {**environment, "PYTHONPATH": str(tmp_path)}
    environment.pop("GLIBC_TUNABLES", None)
    _, out, _ = call(environment, "experiments.cli.command")
    large = "glibc.malloc.hugetlb=1" if sys.platform == "linux" else None
    assert out.split() == (["None", large] if large else ["None"])
    # What the user has chosen stays, and importing starts nothing.
    environment["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=7"
    _, out, _ = call(environment, "experiments.cli.command")
    assert out.split() == ["glibc.malloc.tcache_count=7"]
    del environment["GLIBC_TUNABLES"]
    out = subprocess.run(
        [sys.executable, "-c", "import experiments"],
        **{"env": environment, "capture_output": True, "text": True},
    )
    assert out.stdout.split() == ["None"]


def test_the_result_that_the_configuration_states(environment, tmp_path):
    stated = re.search(r"test accuracy (0\.\d+)", digits_mlp.__doc__)[1]
    environment = {**environment}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS")  # as users run it
    code, out, err = call(environment, *TRAIN, f"--workdir={tmp_path}/run")
    assert code == 0, err
    reached = re.search(r"test accuracy (0\.\d+)", out)[1]
    # Other processors round otherwise, which in 600 steps moves some of 360 images.
    assert float(reached) == pytest.approx(float(stated), abs=0.015)


def test_an_interrupted_sweep_goes_on_to_the_same_result(environment, tmp_path):
    def command(workdir):
        return (*RESCUE, *SMALL_MAP, f"--workdir={workdir}")

    code, out, err = call(environment, *command(tmp_path / "whole"))
    assert code == 0, err
    assert "LARS (recommended" in out
    assert (tmp_path / "whole" / "rescue.png").read_bytes()[:4] == b"\x89PNG"
    whole = pd.read_csv(tmp_path / "whole" / "results.csv")
    assert len(whole) == 6 * 2 * 5 * 3

    part = tmp_path / "part"
    for stop in (signal.SIGINT, signal.SIGKILL):
        before = rows(part)
        process = start(environment, *command(part))
        while rows(part) <= before and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "the same command continues from there" in err
            assert f"{rows(part)} of 180 runs" in err
        assert before < rows(part) < 180
    code, _, err = call(environment, *command(part))
    assert code == 0, err
    assert (part / "results.csv").read_bytes() == (
        tmp_path / "whole" / "results.csv"
    ).read_bytes()
    sessions = json.loads((part / "provenance.json").read_text())
    assert len(sessions) == 3
    assert sessions[2]["runs_after"] == 180


def test_two_hosts_make_the_sweep_of_one(environment, tmp_path):
    flags = (*SMALL_MAP, "--config.seeds=(0,)")
    code, out, err = call(environment, *RESCUE, *flags, f"--workdir={tmp_path}/one")
    assert code == 0, err
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [
        start(
            environment,
            *RESCUE,
            *flags,
            f"--workdir={tmp_path}/two",
            f"--coordinator_address=localhost:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    ends = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ends[0][1][-2000:]
    one, two = tmp_path / "one" / "results.csv", tmp_path / "two" / "results.csv"
    assert two.read_bytes() == one.read_bytes()
    # What joins the hosts talks to the standard output as well.
    said = [
        [line for line in end[0].splitlines() if not line.startswith("[Gloo]")]
        for end in ends
    ]
    assert said == [out.replace(f"{tmp_path}/one", f"{tmp_path}/two").splitlines(), []]


def rows(folder):
    file = folder / "results.csv"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (TRAIN, ["--config.num_step=3"], 'Did you mean "num_steps"'),
        (TRAIN, ["--config.optimizer.settings.momentun=3"], "momentun"),
        (TRAIN, ["--config.num_steps=many"], "--config.num_steps=many"),
        (TRAIN, ["--config.num_steps=1.5"], "--config.num_steps=1.5"),
        (TRAIN, ["--config.num_steps=0"], "num_steps .* at least 1, got 0"),
        (TRAIN, ["--config.batch_size=0"], "batch_size .* at least 1, got 0"),
        (TRAIN, ["--config.batch_size=2000"], "1077 training images, got 2000"),
        (TRAIN, ["--config.log_every=-1"], "log_every .* got -1"),
        (TRAIN, ["--config.seed=-1"], "seed .* got -1"),
        (TRAIN, ["--config.optimizer.learning_rate=-1"], "learning_rate .* got -1"),
        (TRAIN, ["--config.optimizer.learning_rate=nan"], "learning_rate .* got nan"),
        (TRAIN, ["--config.optimizer.name=sdg"], "sgd, adam, .* got 'sdg'"),
        (TRAIN, ["--config.optimizer.name=adam"], "'adam' has no setting 'layer'"),
        (TRAIN, ["--config.optimizer.settings.layer=net"], "layer .* got 'net'"),
        (TRAIN, ["--config.schedule.decay=cosin"], "schedule.decay .* got 'cosin'"),
        (
            TRAIN,
            ["--config.dataset=digit"],
            "no data set 'digit' .* you mean digits",
        ),
        (TRAIN, ["--config.model.name=rnn"], "mlp, cnn, .* got 'rnn'"),
        (TRAIN, ["--config.model.depth=0"], "depth .* got 0"),
        (TRAIN, ["--config.profile=some"], "profile .* got 'some'"),
        (TRAIN, ["--config.init_scale=0"], "init_scale .* got 0"),
        (TRAIN, ["--config=configs/digits_mlp.py:sdg"], "sgd, adam, .* got 'sdg'"),
        (TRAIN, ["--config=configs/digits.py"], "configs/digits.py: there is no such"),
        (TRAIN, ["--workdir=/proc/run"], "'/proc/run' cannot be written"),
        (TRAIN, ["--wrkdir=x"], "Did you mean: workdir"),
        (TRAIN, ["extra"], "unexpected argument 'extra'"),
        (RESCUE, ["--config.init_scales=(1,'a')"], "init_scales .* got 'a'"),
        (RESCUE, ["--config.init_scales=(1.0,1.0)"], "different numbers"),
        (RESCUE, ["--config.init_scales=(10.0,)"], "must have 1.0 among them"),
        (RESCUE, ["--config.seeds=(0,-1)"], "seed .* got -1"),
        (RESCUE, ["--config.optimizers.sgd.learning_rates=(-1.0,)"], "got -1.0"),
        (RESCUE, ["--config.reference=adm"], "reference .* got 'adm'"),
        (RESCUE, ["--config.runs_per_vmap=0"], "runs_per_vmap .* got 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    environment, tmp_path, command, flags, message, capsys
):
    code, out, err = call(environment, *command, f"--workdir={tmp_path}/run", *flags)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert pd.Series([last]).str.contains(message).all(), last
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
    assert out == ""
