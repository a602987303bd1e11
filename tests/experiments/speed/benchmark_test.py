"""The benchmark: the trees are what they are called, and what is timed are steps."""

import json
import math
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import results
from experiments.speed import orthogonality, step_cost as benchmark, steps
from lars import spectral
from tests.experiments.commands import call_all

CASES = steps.cases()
TINY = steps.transformer(1, 4)


def test_the_trees_are_of_the_sizes_that_their_models_have():
    sizes = {
        name: (len(jax.tree.leaves(case.tree)), steps.num_parameters(case))
        for name, case in CASES.items()
    }
    assert sizes["resnet50"] == (161, 25_557_032)
    assert sizes["transformer"] == (12 * 12, 85_054_464)
    assert sizes["leaves"] == (5000, 5_000_000)
    arrays, parameters = sizes["vmap"]
    # The head's bias and its 1,000 columns do not get narrower, the kernels do twice.
    assert arrays == 161
    assert parameters / 4 == pytest.approx(25_557_032 / 16, rel=0.3)


def test_every_tree_has_every_optimizer_that_can_step_it():
    assert CASES["resnet50"].arms == steps.ARMS
    # Of vectors alone: the spectral geometry does nothing else to these.
    assert {*CASES["leaves"].arms} - {*steps.ARMS} == {steps.HANDOVER}
    assert CASES["transformer"].arms == (*steps.ARMS, steps.MUON)
    assert CASES["vmap"].arms == ("optax.lars", "lars")
    named = {steps.HANDOVER, *CASES["transformer"].arms}
    assert named == set(steps.optimizers())


@pytest.fixture(scope="module")
def tiny_table():
    parts = []
    case = steps.Case("tiny", TINY, (*steps.ARMS, steps.MUON))
    with jax.numpy_dtype_promotion("standard"):  # what Optax's own need
        table = benchmark.measure("tiny", case, 6, 5.0, begin=parts.append)
    assert len(parts) == steps.num_parts(case, 6)
    assert parts[0] == "tiny: compiling optax.sgd"
    return table


def test_each_optimizer_has_a_row_of_positive_measurements(tiny_table):
    assert list(tiny_table.columns) == benchmark.COLUMNS
    assert list(tiny_table.optimizer) == [*steps.ARMS, steps.MUON]
    assert set(tiny_table.parameters) == {4 * 4 * 12 + 4 * 13}
    numbers = tiny_table.drop(columns=["case", "tree", "optimizer", "temporary_mib"])
    assert (numbers > 0).all(axis=None)
    assert (tiny_table.temporary_mib >= 0).all()
    assert (tiny_table.rounds >= steps.MIN_ROUNDS).all()
    assert (tiny_table.ms_q1 <= tiny_table.ms).all()
    assert (tiny_table.ms <= tiny_table.ms_q3).all()
    rows = tiny_table.set_index("optimizer")
    assert rows.per_optax_lars["optax.lars"] == 1
    assert rows.per_muon[steps.MUON] == 1


def test_copies_are_stepped_under_vmap():
    case = steps.Case("tiny", {"w": TINY["layer_00"]["qkv"]}, ("lars",), copies=3)
    with jax.numpy_dtype_promotion("standard"):
        table = benchmark.measure("tiny", case, rounds=5, seconds=5.0)
    assert list(table.parameters) == [3 * (4 * 12 + 12)]
    assert table[["per_optax_lars", "per_muon"]].isna().all(axis=None)


@pytest.mark.parametrize("name", ["lars", steps.EQUATIONS])
def test_the_step_that_is_timed_is_the_step_of_the_optimizer(name):
    params = {"w": jnp.array([3.0, 4.0])}
    grads = {"w": jnp.array([0.0, 10.0])}
    with jax.numpy_dtype_promotion("standard"):
        run = steps.Stepper(steps.optimizers()[name](), params, grads)
        run()
        run.wait()
    ratio = 0.001 * 5 / (10 + 1e-4 * 5)
    expected = np.array([3.0, 4.0]) - 0.1 * ratio * np.array([3e-4, 10 + 4e-4])
    np.testing.assert_allclose(run._params["w"], expected, rtol=1e-6)
    np.testing.assert_array_equal(params["w"], [3.0, 4.0])


@pytest.mark.parametrize("name", ["lars", "optax.adam"])
def test_steps_in_one_program_are_those_of_as_many_calls(name):
    params, grads = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.5, -10.0])}
    with jax.numpy_dtype_promotion("standard"):
        optimizer = steps.optimizers()[name]()
        one, three = (
            steps.Stepper(optimizer, params, grads, at_once=n) for n in (1, 3)
        )
        for _ in range(3):
            one()
        three()
    np.testing.assert_allclose(three._params["w"], one._params["w"], rtol=1e-6)


@pytest.mark.parametrize("gradient", [0.0, np.inf])
def test_steps_that_go_nowhere_are_not_a_measurement(gradient):
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.full(2, gradient)}
    with jax.numpy_dtype_promotion("standard"):
        run = steps.Stepper(steps.optimizers()["optax.sgd"](), params, grads)
        run()
    with pytest.raises(RuntimeError, match=r"the steps left .*w"):
        run.check(params)


def test_singular_values_are_those_of_the_decomposition():
    # One step is the quintic itself, many reach one, and Muon's interval is known.
    with jax.numpy_dtype_promotion("standard"):  # what Optax's own need
        table = orthogonality.measure(rows=40, columns=30).set_index("method")
    before = table.loc["1 step", "before"]
    np.testing.assert_allclose(np.square(before).sum(), 1)
    a, b, c = spectral._quintics(1, 0.1)[0]
    expected = a * before + b * before**3 + c * before**5
    np.testing.assert_allclose(table.loc["1 step", "after"], expected, atol=1e-6)
    for method, lowest, atol in (
        ("8 steps", 1e-3, 1e-4),
        (orthogonality.MUON, 0.01, 0.33),
    ):
        rows = table.loc[method]
        after = rows["after"][rows["before"] >= lowest]
        np.testing.assert_allclose(after, 1, atol=atol)
    assert (table["beside"] < 1e-3).all()
    methods = list(orthogonality.overview_table(table.reset_index())[""])
    assert methods[:2] == [orthogonality.MUON, "1 step"]
    assert len(methods) == 1 + len(orthogonality.STEPS)


def test_ratios_are_medians_of_the_ratios_in_a_round():
    case = steps.Case("tiny", {"w": jax.ShapeDtypeStruct((10,), jnp.float32)}, ())
    nan = math.nan
    times = pd.DataFrame(
        {"optax.lars": [1.0, 2.0, 8.0, 4.0], "lars": [3.0, 1.0, 8.0, nan]}
    )
    runs = types.SimpleNamespace(compile_seconds=5.0, temporary_bytes=2**21)
    table = benchmark.summary(
        "tiny",
        case,
        times,
        pd.Series([3.0, 3.0, 6.0, 3.0]),
        {"optax.lars": runs, "lars": runs},
    ).set_index("optimizer")
    assert list(table.rounds) == [4, 3]
    assert list(table.ms) == [3000, 3000]
    assert (table.ms_q1["lars"], table.ms_q3["lars"]) == (2000, 5500)
    assert list(table.per_optax_lars) == [1, 1]  # of 3, 1/2 and 1
    np.testing.assert_allclose(table.per_floor["lars"], 3 / 7)  # of 3/7, 1/7 and 4/7
    np.testing.assert_allclose(table.floor_ms, 7000)
    np.testing.assert_allclose(table.gb_per_s, 3 * 40 / 3 / 1e9)
    assert list(table.temporary_mib) == [2, 2]


def test_the_table_for_people_has_every_optimizer(tiny_table):
    shown = benchmark.markdown(tiny_table)
    for arm in (*steps.ARMS, steps.MUON):
        assert f"| `{arm}` " in shown
    assert "floor: 7 passes at" in shown
    assert "of Muon" in shown


def test_the_command_writes_and_prints_the_table(tmp_path):
    command = ("--quick", "--only=leaves", "--rounds=5", f"--workdir={tmp_path}/run")
    command = ("experiments.benchmark", *command)
    # The second in place of the first.
    *ends, other = call_all(os.environ, [command, command, (*command, "--rounds=6")])
    for end in ends:
        assert end.code == 0, end.err
        assert "leaves: compiling lars" in end.err
    table = results.read_table(tmp_path / "run" / "benchmark.csv")
    assert list(table.optimizer) == list(CASES["leaves"].arms)
    assert benchmark.markdown(table) in end.out
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "orthogonality.png").stat().st_size > 10_000
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["trees"], config["rounds"]) == (["leaves"], 5)
    (session,) = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert session["command"].startswith("python -m experiments.benchmark --quick")
    assert session["seconds"] > 0
    assert other.code == 2
    assert "config.rounds: there 5, asked for 6" in other.err
