"""Every configuration builds, and every setting in it is read."""

import importlib
import pkgutil
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

import configs
from configs import digits_mlp, optimizers
from experiments import data as datasets
from experiments.training import plan
from experiments.training.setup import configured_training, model_of
from experiments.training.sharding import device_mesh
from experiments.training.training import Run, num_kernels

DIGITS = [n for n, arm in optimizers.ARMS.items() if arm["initialization"] == "scaled"]


@pytest.mark.parametrize("optimizer", DIGITS)
def test_a_run_of_every_compared_optimizer_makes_two_steps(digits, optimizer):
    config = digits_mlp.get_config(optimizer)
    config.num_steps = 2
    model = model_of(config.model, digits.num_classes)
    training = configured_training(config, model)
    run = Run(
        np.int32(config.seed),
        np.ones(num_kernels(model, digits), np.float32),
        np.float32(config.optimizer.learning_rate),
    )
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        result = jax.jit(training.train)(run, digits)
    assert np.isfinite(result.train_loss)


class Spy(Mapping):
    """A configuration that notes which of its leaves are read."""

    def __init__(self, values, read, path=()):
        """Wraps a dictionary; `read` collects the paths."""
        self._values, self._read, self._path = values, read, path

    def to_dict(self):
        """Returns the plain dictionary, without a note."""
        return self._values

    def __getitem__(self, key):
        value, path = self._values[key], (*self._path, key)
        if is_inner(path, value):
            return Spy(value, self._read, path)
        self._read.add(path)
        return value

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError as error:
            raise AttributeError(key) from error

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)


def is_inner(path, value):
    # A mask is a description that is read as a whole.
    is_mask = path and path[-1].endswith("_mask")
    return isinstance(value, dict) and value and not is_mask


def leaves(values, path=()):
    if is_inner(path, values):
        return {x for k, v in values.items() for x in leaves(v, (*path, k))}
    return {path}


FIXTURE = Path(__file__).parents[1] / "data" / "fixtures" / "tfds"
MODULES = {
    name: importlib.import_module(f"configs.{name}")
    for _, name, _ in pkgutil.iter_modules(configs.__path__)
}
SINGLE_RUNS = {
    name: module.get_config().to_dict()
    for name, module in MODULES.items()
    if hasattr(module, "get_config") and "optimizer" in module.get_config()
}
# One more that differs in what is built; `full_scale_test.py` has all the others.
SINGLE_RUNS["paper_alexnet:plain,sgd,4096"] = (
    MODULES["paper_alexnet"].get_config("plain,sgd,4096").to_dict()
)


def test_there_are_single_runs():
    assert {
        *("digits_mlp", "fashion_mnist_cnn", "cifar10_cnn"),
        *("cifar10_resnet18", "imagenet_resnet50"),
        *("paper_resnet50", "paper_alexnet", "paper_alexnet:plain,sgd,4096"),
    } == SINGLE_RUNS.keys()


def planned(name, photos_dir, tmp_path, monkeypatch):
    """The plan of a small version of a run, its settings, and which are read."""
    # A copy: the digits are prepared beside it. Given by its place, as
    # tensorflow-datasets reads the environment when it is imported and never again.
    place, load = str(shutil.copytree(FIXTURE, tmp_path / "tfds")), datasets.load
    monkeypatch.setattr(datasets, "load", lambda name: load(name, place))
    # On one device, for which XLA compiles in a third of the time.
    mesh = device_mesh(jax.devices()[:1])
    monkeypatch.setattr(plan, "device_mesh", lambda: mesh)
    stream = datasets.stream
    monkeypatch.setattr(
        datasets, "stream", lambda name, size: stream(name, size, photos_dir)
    )
    monkeypatch.setenv("LARS_CACHE_DIR", str(tmp_path / "cache"))
    values = SINGLE_RUNS[name]
    changes = {"num_steps": 2, "batch_size": 32, "eval_batch_size": 200}
    if values["dataset"] != "digits":  # images of clothes stand for all others
        changes["dataset"] = "fashion_mnist"
        smaller = {"cnn": {"width": 8}, "resnet": {"depth": 18}, "alexnet": {}}
        changes["model"] = {**values["model"], **smaller[values["model"]["name"]]}
        changes["schedule"] = {**values["schedule"], "warmup_steps": 1}
    if values["image_size"] is not None:  # and photographs for those that are streamed
        # The smallest that AlexNet takes is 28; a test of its own has its own size.
        smallest = 28 if values["model"]["name"] == "alexnet" else 16
        changes |= {"dataset": "photos", "image_size": smallest, "data_workers": 0}
        changes |= {"batch_size": 16, "microbatches": 2}
    values = {**values, **changes}
    read = set()
    return plan.plan_of(Spy(values, read)), values, read


@pytest.mark.parametrize("name", SINGLE_RUNS)
def test_a_single_run_reads_every_setting(name, photos_dir, tmp_path, monkeypatch):
    _, values, read = planned(name, photos_dir, tmp_path, monkeypatch)
    assert leaves(values) == read


# A ResNet compiles for a minute, an AlexNet has 60 million parameters, and of the plain
# networks others train one on the images of clothes.
_SLOW = ("resnet", "alexnet")
LONG = {name for name, run in SINGLE_RUNS.items() if run["model"]["name"] in _SLOW}
LONG |= {"cifar10_cnn", "fashion_mnist_cnn"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in SINGLE_RUNS],
)
def test_a_single_run_makes_two_steps(name, photos_dir, tmp_path, monkeypatch):
    made, values, _ = planned(name, photos_dir, tmp_path, monkeypatch)
    source, run, compiled = made.source, made.run, made.compiled
    progress = compiled.init(run, source.data)
    before = jax.device_get(progress.state.variables["params"])
    steps = range(0, 2, values["steps_per_call"])
    for batch in source.batches(0, values["batch_size"], steps):
        progress, report = compiled.advance(progress, run, source.data, batch)
        assert np.isfinite(report.loss)
    after = jax.device_get(progress.state.variables["params"])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(new).all()
        # Behind a last scale of zero, scales have no gradient in the first steps.
        is_still = values["model"].get("zero_init_last_scale") and old.ndim == 1
        assert (old != new).any() or not old.any() or is_still
    assert progress.state.step == 2
    assert 0 <= compiled.evaluate(progress, source, "test")["test/accuracy"] <= 1
