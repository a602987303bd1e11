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
from configs import digits_mlp, optimizers, rescue
from experiments import data as datasets, publish, results
from experiments.rescue import describe
from experiments.studies.rescue import scales as analysis, search, sweep, sweeps
from experiments.training import plan
from experiments.training.setup import model_of, training_of
from experiments.training.sharding import device_mesh
from experiments.training.training import Run, num_kernels

SWEEPS = [rescue.get_config(kind) for kind in ("compared", "search")]


@pytest.mark.parametrize("optimizer", optimizers.COMPARED)
def test_a_run_of_every_compared_optimizer_makes_two_steps(digits, optimizer):
    config = digits_mlp.get_config(optimizer)
    config.num_steps = 2
    model = model_of(config.model, digits.num_classes)
    training = training_of(config, config.optimizer, model, 1077)
    run = Run(
        np.int32(config.seed),
        np.ones(num_kernels(model, digits), np.float32),
        np.float32(config.optimizer.learning_rate),
    )
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes floats and integers
        result = jax.jit(training.train)(run, digits)
    assert np.isfinite(result.train_loss)


@pytest.mark.parametrize("config", SWEEPS, ids=["compared", "search"])
def test_every_optimizer_of_a_sweep_can_be_built(digits, config):
    model = model_of(config.model, digits.num_classes)
    for arm in config.optimizers.values():
        training_of(config, arm, model, 1077)


def test_the_comparison_gives_every_optimizer_the_same():
    config = rescue.get_config()
    assert len(config.init_scales) == 13
    assert len(config.seeds) >= 3
    assert {len(arm.learning_rates) for arm in config.optimizers.values()} == {5}
    # Six optimizers, 13 scales, 5 rates, 3 seeds; SGD comes first in tables, as here.
    assert len(sweeps.wanted_runs(config)) == 6 * 13 * 5 * 3
    assert next(iter(config.optimizers)) == "sgd"


def kept(name):
    folder = publish.DOCS / "rescue" / name
    return results.read_table(folder / "results.csv", sweep.DTYPES)


def variants(arm):
    """The names in the search of the optimizer of an arm, and of the arm itself."""
    same = {
        name: other
        for name, other in search.SEARCHED.items()
        if other["name"] == arm["name"]
    }
    (itself,) = (n for n, o in same.items() if o["settings"] == arm["settings"])
    return list(same), itself


@pytest.mark.parametrize("name", optimizers.COMPARED)
def test_the_compared_settings_are_the_best_of_the_search_on_validation(name):
    arm = optimizers.COMPARED[name]
    useful = analysis.most_useful_rates(kept("search"), "sgd", count=5)
    same, itself = variants(arm)
    assert useful.learning_rates[itself] == arm["learning_rates"]
    if name != "paper":  # which has the settings of the paper, best or not
        # The most rescued scales, of equal ones the fewest settings.
        best = min(
            same,
            key=lambda n: (
                -useful.rescued[n],
                len(search.SEARCHED[n]["settings"]),
            ),
        )
        assert best == itself


@pytest.mark.parametrize("name", optimizers.COMPARED)
def test_the_rate_of_a_single_run_is_the_best_at_scale_one_on_validation(name):
    best = analysis.best_rate_per_scale(kept("rescue"), "sgd")
    at_one = best[(best.optimizer == name) & (best.init_scale == 1.0)]
    assert at_one.learning_rate.item() == optimizers.COMPARED[name]["learning_rate"]


def test_no_choice_of_the_search_is_cut_off_by_the_edge_of_its_rates():
    # At the edge of its rates no scale may be rescued better than inside.
    table = analysis.medians(kept("search"))
    standard = analysis.threshold(kept("search"), "sgd", "validation")
    for (name, scale), cell in table.groupby(["optimizer", "init_scale"]):
        edges = cell.learning_rate.isin(
            [cell.learning_rate.min(), cell.learning_rate.max()]
        )
        at_edge = cell[edges].validation.max()
        inside = cell[~edges].validation.max()
        assert at_edge < standard or inside >= standard, (name, scale)


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


@pytest.mark.parametrize("kind", ["compared", "search"])
def test_every_setting_of_a_sweep_is_read(digits, kind, tmp_path, monkeypatch):
    values = rescue.get_config(kind).to_dict()
    read = set()
    config = Spy(values, read)
    monkeypatch.setattr(sweeps.datasets, "load", lambda name: digits)
    monkeypatch.setattr(sweeps, "use_every_core", lambda: None)
    monkeypatch.setattr(sweeps.hosts, "connect", lambda: None)
    monkeypatch.setattr(sweeps.results, "claim", lambda workdir, config: tmp_path)
    monkeypatch.setattr(sweeps.sweep, "runs_left", lambda wanted, _: wanted.iloc[:0])
    sweeps.complete(config, str(tmp_path))
    describe(config)
    analysis.search_space_table(config.optimizers)
    assert leaves(values) == read


FIXTURE = Path(__file__).parent / "fixtures" / "tfds"
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


@pytest.mark.parametrize("name", SINGLE_RUNS)
def test_a_single_run_reads_every_setting_and_makes_two_steps(
    name, photos_dir, tmp_path, monkeypatch
):
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
    _, _, _, source, run, compiled = plan.plan_of(Spy(values, read))
    assert leaves(values) == read
    progress = compiled.init(run, source.data)
    before = jax.device_get(progress.state.variables["params"])
    for batch in source.batches(
        0, values["batch_size"], 0, 2, values["steps_per_call"]
    ):
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
