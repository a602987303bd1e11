"""What is counted and divided when the speed of training is measured."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import results
from experiments.speed import throughput
from experiments.speed.flops import training_flops
from tests.experiments.small import small_cnn, small_mlp


def flops_of(model, *shape):
    image = jnp.zeros(shape)
    variables = model.init(jax.random.key(0), image[None])
    return training_flops(model, variables, image) / 3


def test_the_operations_of_an_mlp():
    model = small_mlp(width=128, use_bias=False)
    products = 2 * (64 * 128 + 128 * 128 + 128 * 10)
    activations = 2 * 128
    assert flops_of(model, 8, 8, 1) == products + activations


def test_the_operations_of_convolutions():
    model = small_cnn(use_bias=False)
    # Along an axis of 12 pixels a 3-wide kernel meets 34 pixels and 2 of padding.
    products = 2 * (34 * 34 * 3 * 16 + 34 * 34 * 16 * 16 + 16 * 10)
    others = 2 * 12 * 12 * 16 + 4 * 36 * 16 + 36 * 16
    assert products < flops_of(model, 12, 12, 3) <= products + others


def rounds_of(**seconds):
    """Three rounds; in the second everything takes twice as long."""
    slower = np.array([1.0, 2.0, 1.0])
    return pd.DataFrame(
        {
            (what, quantity): values * slower
            for what, quantities in seconds.items()
            for quantity, values in quantities.items()
        }
    )


def test_ratios_are_those_of_the_same_round():
    product = 2 * throughput.PRODUCT_SIZE**3
    rounds = rounds_of(
        **{
            throughput.PRODUCT: {"seconds": product / 1e11},
            "run": {"seconds": 1e-3, "device_seconds": 0.75e-3},
            throughput.SWEEP: {"seconds": 2e-5},
            throughput.LOOP: {"seconds": 6e-5},
            throughput.TORCH: {"seconds": 8e-5},
        }
    )
    names = ("run", throughput.SWEEP, throughput.LOOP, throughput.TORCH)
    flops = dict.fromkeys(names, 1e6)
    devices = dict.fromkeys((throughput.PRODUCT, *names), "a device")
    table = throughput.summary(rounds, flops, devices).set_index("what")
    assert list(table.columns) == throughput.COLUMNS[1:]
    assert table.gflop_per_s[throughput.PRODUCT] == pytest.approx(100)
    np.testing.assert_allclose(
        table.of_product[list(names)], [0.01, 0.5, 1 / 6, 0.125], rtol=1e-9
    )
    assert table.wait["run"] == pytest.approx(0.25)
    assert table.wait.drop("run").isna().all()
    assert table.sweep_is_faster[throughput.LOOP] == pytest.approx(3)
    assert table.sweep_is_faster[throughput.TORCH] == pytest.approx(4)
    assert table.images_per_s["run"] == pytest.approx(1000)
    assert table.images_per_s_q1["run"] == pytest.approx(750)
    shown = throughput.markdown(table.reset_index())
    assert "| run " in shown
    assert "| 25.0% " in shown
    assert "| 4.0 " in shown


@pytest.mark.long
def test_the_command_times_what_there_is(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.throughput"),
            *(f"--workdir={tmp_path}/run", "--configs=digits_mlp,fashion_mnist_cnn"),
            *("--nosweep", "--rounds=2", "--seconds=0.02"),
        ],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    table = results.read_table(tmp_path / "run" / "throughput.csv")
    assert list(table.what) == [throughput.PRODUCT, "digits_mlp"]
    assert (table.gflop_per_s > 0).all()
    assert 0 < table.of_product[1] < 1
    assert throughput.markdown(table) in done.stdout
    assert "fashion_mnist_cnn is left out" in done.stderr
    assert "download_and_prepare" in done.stderr
