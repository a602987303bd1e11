"""The configurations of the paper's own runs: every row, and one run of AlexNet."""

import jax
import numpy as np
import pytest

from configs import paper_alexnet, paper_resnet50
from experiments import data as datasets
from experiments.training import plan
from experiments.training.setup import configured_training, model_of
from experiments.training.sharding import device_mesh

# Batch size and whose rate; optimizer, learning rate, steps, steps of the warm-up.
# 1,271,167 images: 90 epochs, and a warm-up of 5.
RESNET_RUNS = {
    **{f"256,{x}": ("sgd", 0.2, 446_894, 0) for x in ("printed", "figure5", "meant")},
    "8192,printed": ("lars", 0.6, 13_965, 775),
    "8192,figure5": ("sgd", 6.4, 13_965, 775),
    "8192,meant": ("lars", 12.8, 13_965, 775),
    "16384,printed": ("lars", 2.5, 6_982, 387),
    "16384,figure5": ("lars", 2.5, 6_982, 387),
    "16384,meant": ("lars", 25.0, 6_982, 387),
    "32768,printed": ("lars", 2.9, 3_491, 193),
    "32768,figure5": ("lars", 2.9, 3_491, 193),
    "32768,meant": ("lars", 29.0, 3_491, 193),
}
# And of AlexNet: learning rate, epochs, epochs of the warm-up, where that begins.
ALEXNET_RUNS = {
    "plain,sgd,512": (0.02, 100, 0, 0.0),
    "plain,sgd,4096": (0.05, 100, 2.5, 0.001),
    "plain,sgd,8192": (0.03, 100, 2.5, 0.001),
    "plain,sgd,8192,rate=0.05": (0.05, 100, 2.5, 0.001),
    "bn,sgd,512": (0.02, 128, 0, 0.0),
    "bn,sgd,4096": (0.18, 128, 0, 0.0),
    "bn,sgd,8192": (0.3, 128, 0, 0.0),
    "bn,sgd,8192,rate=0.41": (0.41, 128, 0, 0.0),
    "plain,lars,512": (2.0, 100, 2, 1.0),
    "plain,lars,4096": (10.0, 100, 2, 1.0),
    "plain,lars,8192": (10.0, 100, 2, 1.0),
    "plain,lars,16384": (14.0, 100, 2, 1.0),
    "plain,lars,32768": (14.0, 100, 2, 1.0),
    "bn,lars,512": (2.0, 100, 5, 1.0),
    "bn,lars,4096": (10.0, 100, 5, 1.0),
    "bn,lars,8192": (14.0, 100, 5, 1.0),
    "bn,lars,16384": (23.0, 100, 5, 1.0),
    "bn,lars,32768": (22.0, 100, 5, 1.0),
    "bn,lars,32768,epochs=200": (22.0, 200, 5, 1.0),
}


def check_what_all_share(config, weight_decay):
    settings = config.optimizer["settings"]
    assert settings["momentum"] == 0.9
    assert settings["weight_decay"] == weight_decay
    # LARS and the decay are on every array alone: nothing is left out.
    assert not {"weight_decay_mask", "trust_ratio_mask"} & set(settings)
    if config.optimizer["name"] == "lars":
        assert settings["trust_coefficient"] == 0.001
        assert settings["layer"] == "parameter"
    schedule = config.schedule
    assert (schedule.decay, schedule.restart_after_warmup) == ("quadratic", False)
    assert config.label_smoothing == 0
    assert config.batch_size % config.microbatches == 0
    assert config.evaluate_every % config.log_every == 0
    model = model_of(config.model, 1000)
    configured_training(config, model, microbatches=config.microbatches)


@pytest.mark.parametrize("name", RESNET_RUNS)
def test_every_row_of_table_4_and_figure_5_can_be_run(name):
    config = paper_resnet50.get_config(name)
    optimizer, rate, steps, warmup_steps = RESNET_RUNS[name]
    assert config.optimizer["name"] == optimizer
    assert config.optimizer.learning_rate == rate
    assert (config.num_steps, config.schedule.warmup_steps) == (steps, warmup_steps)
    assert config.batch_size == int(name.split(",")[0])
    assert (config.model.depth, config.image_size) == (50, 224)
    check_what_all_share(config, weight_decay=1e-4)
    assert config.schedule.warmup_start == 0


def test_no_other_row_is_taken():
    assert {
        f"{batch},{whose}"
        for rates in (paper_resnet50.LARS_RATES, paper_resnet50.SGD_RATES)
        for whose, of_batch in rates.items()
        for batch in of_batch
    } == RESNET_RUNS.keys()
    with pytest.raises(ValueError, match="got '1024' and 'meant'"):
        paper_resnet50.get_config("1024,meant")
    with pytest.raises(ValueError, match="got 'bn,sgd,16384'"):
        paper_alexnet.get_config("bn,sgd,16384")
    with pytest.raises(ValueError, match="got 'gamma=3'"):
        paper_alexnet.get_config("bn,lars,8192,gamma=3")


@pytest.mark.parametrize("name", ALEXNET_RUNS)
def test_every_row_of_tables_1_3_and_5_can_be_run(name):
    config = paper_alexnet.get_config(name)
    network, optimizer, batch = name.split(",")[:3]
    rate, epochs, warmup_epochs, start = ALEXNET_RUNS[name]
    in_epoch = 1_271_167 / int(batch)
    assert config.model.batch_norm == (network == "bn")
    assert config.optimizer["name"] == optimizer
    assert config.optimizer.learning_rate == rate
    assert (config.batch_size, config.image_size) == (int(batch), 227)
    assert config.num_steps == int(epochs * in_epoch)
    assert config.schedule.warmup_steps == int(warmup_epochs * in_epoch)
    assert config.schedule.warmup_start == start
    check_what_all_share(config, weight_decay=5e-4)


@pytest.mark.long
def test_alexnet_makes_two_steps_in_its_own_size(photos_dir, monkeypatch):
    stream = datasets.stream
    monkeypatch.setattr(
        datasets, "stream", lambda name, size: stream("photos", size, photos_dir)
    )
    mesh = device_mesh(jax.devices()[:1])
    monkeypatch.setattr(plan, "device_mesh", lambda: mesh)
    config = paper_alexnet.get_config("bn,lars,8192")
    config.update({"num_steps": 2, "batch_size": 4, "microbatches": 2})
    config.update({"data_workers": 0})
    config.schedule.warmup_steps = 1
    config.model.compute_dtype = "float32"  # bfloat16 is slow on a CPU
    _, _, _, source, run, compiled = plan.plan_of(config)
    progress = compiled.init(run, source.data)
    before = jax.device_get(progress.state.variables["params"])
    assert before["fc6"]["kernel"].shape == (9216, 4096)
    for batch in source.batches(0, 4, range(2)):
        progress, report = compiled.advance(progress, run, source.data, batch)
        assert np.isfinite(report.loss)
    after = jax.device_get(progress.state.variables["params"])
    # LARS on all 16 arrays, biases too: none moves by more than γ η ‖w‖ a step and
    # its momentum, with γ of 1 and then (1 - 1/2)² 14.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        moved = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert 0 < moved < 1.1 * 0.001 * (1 + 0.9 + 14 / 4)
