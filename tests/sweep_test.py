"""A sweep computes every run of its grid once, whatever is left of it."""

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.studies.rescue import sweep
from experiments.training.training import Result


def test_the_grid_has_every_combination_once():
    grid = sweep.grid({"a": (1.0, 2.0), "b": (3.0,)}, (0.1, 10.0), "all", (0, 1, 2))
    assert list(grid.columns) == sweep.KEYS
    assert len(grid.drop_duplicates()) == len(grid) == 3 * 2 * 3
    assert set(grid[grid.optimizer == "a"].learning_rate) == {1.0, 2.0}


def test_finished_runs_are_left_out_after_a_round_trip_through_text():
    grid = sweep.grid({"a": (0.1, 1 / 3)}, (1e-8, 1.0), "all", (0, 1))
    finished = pd.DataFrame(
        [tuple(type(x)(repr(x)) if not isinstance(x, str) else x for x in row)
         for row in grid.iloc[[0, 3, 5]].itertuples(index=False)],
        columns=sweep.KEYS,
    )  # fmt: skip
    left = sweep.runs_left(grid, finished)
    assert list(left.index) == [1, 2, 4, 6, 7]
    assert len(sweep.runs_left(grid, pd.DataFrame(columns=sweep.COLUMNS))) == 8
    assert sweep.runs_left(grid, grid).empty


@pytest.mark.parametrize("runs", [1, 16, 17, 40])
@pytest.mark.parametrize("runs_per_vmap", [1, 3])
def test_every_run_gets_its_own_result(runs, runs_per_vmap):
    grid = sweep.grid({"a": (0.5, 2.0)}, (1.0, 1e2, 1e-2), "alternating", range(9))
    grid = grid.sample(runs, random_state=0)

    def train(run, data):
        # What came in comes out, so that mixed-up runs would show.
        return Result(
            train_loss=run.learning_rate * data,
            validation_accuracy=run.kernel_scales[0],
            test_accuracy=run.kernel_scales[1],
            diverged=run.seed % 2 == 1,
        )

    pieces = list(
        sweep.run_sweep(grid, train, np.float32(2), 2, jax.devices()[:2], runs_per_vmap)
    )
    table = pd.concat(pieces)
    assert list(table.columns) == sweep.COLUMNS
    pd.testing.assert_frame_equal(table[sweep.KEYS], grid)
    np.testing.assert_allclose(table.train_loss, 2 * grid.learning_rate)
    np.testing.assert_allclose(table.validation_accuracy, grid.init_scale, rtol=1e-6)
    np.testing.assert_allclose(table.test_accuracy, 1 / grid.init_scale, rtol=1e-6)
    np.testing.assert_array_equal(table.diverged, grid.seed % 2 == 1)
