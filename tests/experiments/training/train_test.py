"""A run survives what happens to it, and is the same on any devices.

On a few hundred real images of Fashion-MNIST.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.training.metrics import MetricsWriter, finished_metrics, read_lines
from tests.experiments import commands
from tests.experiments.commands import ended

FIXTURE = Path(__file__).parents[1] / "data" / "fixtures" / "tfds"
TRAIN = (
    *("experiments.train", "--config=configs/fashion_mnist_cnn.py"),
    *("--config.model.width=4", "--config.model.depth=3", "--config.batch_size=32"),
    *("--config.num_steps=24", "--config.schedule.warmup_steps=3"),
    *("--config.log_every=2", "--config.evaluate_every=4"),
    *("--config.checkpoint_every=4", "--config.eval_batch_size=40"),
    *("--config.steps_per_call=2", "--config.microbatches=2"),
    "--config.augmentation.crop_padding=2",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    environment = {
        **os.environ,
        "TFDS_DATA_DIR": str(FIXTURE),
        "LARS_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return environment


def start(environment, workdir, *flags, own_group=False, **changes):
    command = (*TRAIN, f"--workdir={workdir}", *flags)
    return commands.start({**environment, **changes}, *command, own_group=own_group)


def call(*arguments, status=0, **changes):
    return ended(start(*arguments, **changes), status)


def wait_for_metrics(process, folder, reached=0):
    """Until there are more than so many lines of metrics."""
    commands.wait_for(process, lambda: len(lines(folder)) > reached)


def lines(folder):
    return read_lines(folder / "metrics.jsonl")


def newest(folder):
    """The files of the newest checkpoint that hold arrays, by their content."""
    steps = [p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name))


def arrays(folder):
    """What the newest checkpoint holds, in this process."""
    import orbax.checkpoint as ocp

    restored = ocp.StandardCheckpointer().restore(newest(folder).absolute() / "default")
    leaves = jax.tree.leaves_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_end(folder, other):
    files = [x / "metrics.jsonl" for x in (folder, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    ours, theirs = arrays(folder), arrays(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    out, _ = call(environment, folder)
    return folder, out


def test_the_metrics_of_a_run(whole):
    folder, out = whole
    metrics = lines(folder)
    assert [line["step"] for line in metrics] == [*range(2, 25, 2), 24]
    assert all(
        ("validation/accuracy" in line) == (line["step"] % 4 == 0)
        for line in metrics[:-1]
    )
    for name in ("hidden_0/kernel", "norm_1/scale", "output/kernel"):
        for line in metrics[:-1]:
            w, g = line[f"weight_norm/{name}"], line[f"gradient_norm/{name}"]
            beta = 5e-4 if name.endswith("kernel") else 0.0
            # A module of one array has the ratio of that array: η‖w‖/(‖g‖ + β‖w‖).
            if name.endswith("kernel"):
                np.testing.assert_allclose(
                    line[f"trust_ratio/{name}"], 1e-3 * w / (g + beta * w), rtol=1e-4
                )
    # The warm-up of three steps to 10, and then 10 (1 - t / 21)² from there on.
    rates = [line["learning_rate"] for line in metrics[:-1]]
    expected = [10 / 3] + [10 * (1 - (t - 3) / 21) ** 2 for t in range(3, 24, 2)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    last = metrics[-1]
    assert last["finished"]
    assert last["train/loss"] < metrics[0]["train/batch_loss"]
    assert f"test accuracy {last['test/accuracy']:.4f}" in out
    # The number of test images is no multiple of 40: the last, incomplete part counts.
    info = json.loads((FIXTURE / "fashion_mnist/3.0.1/dataset_info.json").read_text())
    (count,) = (
        sum(map(int, split["shardLengths"]))
        for split in info["splits"]
        if split["name"] == "test"
    )
    assert count % 40
    correct = last["test/accuracy"] * count
    assert correct == pytest.approx(round(correct), abs=1e-3)


def test_tensorboard_has_the_metrics_of_the_lines(whole):
    from tensorboardX.proto.event_pb2 import Event

    folder, _ = whole
    (file,) = (folder / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    found = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    for line in lines(folder)[:-1]:
        for name in ("train/batch_loss", "trust_ratio/hidden_0/kernel"):
            np.testing.assert_allclose(found[name, line["step"]], line[name], rtol=1e-6)
    assert any(name == "images_per_second" for name, _ in found)


@pytest.mark.long
def test_killed_five_times_it_ends_the_same_to_the_bit(environment, whole, tmp_path):
    chance = random.Random(0)
    folder, kills = tmp_path / "run", 0
    while kills < 5:
        process, reached = start(environment, folder), len(lines(folder))
        while process.poll() is None and len(lines(folder)) <= reached:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        if finished_metrics(folder) is not None:  # it was faster
            assert_same_end(folder, whole[0])
            shutil.rmtree(folder)
            kills = 0
            continue
        kills += 1
    out, _ = call(environment, folder)
    assert_same_end(folder, whole[0])
    assert out.split("Metrics")[0] == whole[1].split("Metrics")[0]


def test_asked_to_stop_it_saves_first(environment, whole, tmp_path):
    folder = tmp_path / "run"
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        process = start(environment, folder)
        wait_for_metrics(process, folder, reached=len(lines(folder)))
        process.send_signal(number)
        _, err = ended(process, status)
        stopped = int(re.search(r"Stopped after (\d+) of 24 steps", err)[1])
        assert newest(folder).name == str(stopped)
        assert "Traceback" not in err
    _, err = call(environment, folder)
    assert_same_end(folder, whole[0])


def test_a_run_that_says_it_is_finished_has_its_last_checkpoint(
    environment, whole, tmp_path
):
    # Killed as soon as the last line of metrics is there.
    folder = tmp_path / "run"
    process = start(environment, folder)
    commands.wait_for(process, lambda: finished_metrics(folder) is not None)
    process.kill()
    process.communicate()
    assert_same_end(folder, whole[0])


def test_asked_to_stop_it_stops_though_every_call_ends_with_a_checkpoint(
    environment, tmp_path
):
    folder = tmp_path / "run"
    process = start(environment, folder, "--config.checkpoint_every=2")
    wait_for_metrics(process, folder)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as some schedulers do
    _, err = ended(process)
    assert re.search(r"Stopped after (\d+) of 24 steps", err)[1] == newest(folder).name


def test_a_damaged_checkpoint_is_passed_over(environment, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    # As if it had been killed before the last line of metrics.
    metrics = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(metrics[:-1]) + metrics[-1][:20])
    assert newest(folder).name == "24"
    for file in newest(folder).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    _, err = call(environment, folder)
    assert re.search(
        r"checkpoint of step 24 .* is damaged .* using that of step 20", err
    )
    assert_same_end(folder, whole[0])


def test_a_finished_run_is_not_made_again_and_another_is_refused(
    environment, whole, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    shutil.rmtree(folder / "checkpoints")
    out, _ = call(environment, folder)
    assert out.split("Metrics")[0] == whole[1].split("Metrics")[0]
    _, err = call(environment, folder, "--config.seed=1", status=2)
    assert "config.seed: there 0, asked for 1" in err


def test_a_loss_that_is_not_finite_ends_the_run(environment, tmp_path):
    flags = ("--config.init_scale=1e30", "--config.model.normalization=none")
    out, _ = call(environment, tmp_path / "run", *flags)
    assert "diverged: step 0 is not finite, first in hidden_1" in out
    last = lines(tmp_path / "run")[-1]
    assert last["first_nonfinite"] == "hidden_1"
    assert last["diverged_at"] == 0
    assert len(lines(tmp_path / "run")) == 1


def test_a_dry_run_prints_the_plan_and_writes_nothing(environment, tmp_path):
    out, _ = call(environment, tmp_path / "run", "--dry_run")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["output/kernel"][-3:] == ["yes", "yes", "-"]
    assert rows["norm_0/scale"][-3:] == ["yes", "no", "-"]
    assert "first after it (3)" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_streamed_run_goes_on_with_the_images_that_it_would_have_seen(
    environment, photos_dir, tmp_path
):
    # JPEG files of many sizes, decoded and cropped by a process of their own.
    flags = ("--config.dataset=photos", "--config.image_size=16", "--config.seed=3")
    flags += ("--config.data_workers=1", "--config.batch_size=10")
    flags += ("--config.log_every=1", "--config.evaluate_every=12")
    flags += ("--config.steps_per_call=1",)
    place = {"TFDS_DATA_DIR": str(photos_dir)}
    out, err = call(environment, tmp_path / "whole", *flags, **place)
    assert "test accuracy" in out
    process = start(environment, tmp_path / "run", *flags, **place)
    wait_for_metrics(process, tmp_path / "run", reached=5)
    process.kill()
    process.communicate(timeout=60)  # the process that decodes ends as well
    assert len(lines(tmp_path / "run")) < 25
    # A terminal and schedulers send signals to the process that decodes, too.
    process = start(environment, tmp_path / "run", *flags, **place, own_group=True)
    wait_for_metrics(process, tmp_path / "run", len(lines(tmp_path / "run")))
    os.killpg(process.pid, signal.SIGINT)
    _, err = ended(process, 130)
    assert re.search(r"Stopped after \d+ of 24 steps", err)
    _, err = call(environment, tmp_path / "run", *flags, **place)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


FIRST_STEPS = ("--config.num_steps=8",)


def close(folder, other):
    """Equal but for rounding, as long as it has had few steps to grow."""
    for ours, theirs in zip(lines(folder), lines(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name.endswith("loss") or "norm/" in name:
                np.testing.assert_allclose(value, theirs[name], rtol=2e-3)


@pytest.fixture(scope="module")
def on_one_device(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    call(environment, folder, *FIRST_STEPS)
    return folder


@pytest.mark.parametrize(
    "placement", [pytest.param("replicated", marks=pytest.mark.long), "fsdp"]
)
def test_eight_devices_make_the_same_run(
    environment, on_one_device, tmp_path, placement
):
    flags = (*FIRST_STEPS, f"--config.placement={placement}")
    call(environment, tmp_path, *flags, JAX_NUM_CPU_DEVICES="8")
    close(tmp_path, on_one_device)


def two_hosts(environment, workdir, *flags, **changes):
    """Two processes that make one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            environment,
            workdir,
            *flags,
            f"--coordinator_address=localhost:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            **changes,
        )
        for i in range(2)
    ]


@pytest.mark.long
def test_two_processes_make_the_same_run_and_others_go_on_with_it(
    environment, on_one_device, tmp_path
):
    processes = two_hosts(
        environment,
        tmp_path,
        *FIRST_STEPS,
        "--config.placement=fsdp",
        JAX_NUM_CPU_DEVICES="4",
    )
    ends = [ended(process) for process in processes]
    assert "test accuracy" in ends[0][0]
    # What joins the hosts talks to the standard output as well.
    assert all(line.startswith("[Gloo]") for line in ends[1][0].splitlines())
    close(tmp_path, on_one_device)
    # The last checkpoint of two processes with four devices each, read by one with one.
    metrics = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(metrics[:-1]))
    call(environment, tmp_path, *FIRST_STEPS, "--config.placement=fsdp")
    close(tmp_path, on_one_device)
    sessions = json.loads((tmp_path / "provenance.json").read_text())
    assert [session["first_step"] for session in sessions] == [0, 8]


@pytest.mark.long
def test_when_one_host_is_asked_to_stop_both_do(environment, tmp_path):
    processes = two_hosts(environment, tmp_path, "--config.num_steps=100000")
    wait_for_metrics(processes[0], tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    ends = [ended(process) for process in processes]
    stopped = re.search(r"Stopped after (\d+) of 100000 steps", ends[0][1])[1]
    assert newest(tmp_path).name == stopped
    assert "Stopped" not in ends[1][1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_named_when_metrics_are_written(tmp_path, name):
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": 0.5}, {})
    full = open("/dev/full", "ab")  # noqa: SIM115 - the writer closes it
    if name == "tensorboard":
        recorder = writer._events._py_recordio_writer
        recorder._writer, held = full, recorder._writer
    else:
        writer._lines, held = io.TextIOWrapper(full), writer._lines
    with pytest.raises(OSError, match=rf"{name} cannot be written \(No space left"):
        writer.write({"step": 2, "loss": 0.5}, {})
    writer.close()
    held.close()
    with contextlib.suppress(OSError):
        full.close()
    assert read_lines(tmp_path / "metrics.jsonl")[0] == {"step": 1, "loss": 0.5}
