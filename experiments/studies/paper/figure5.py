"""Figure 5: ResNet-50 up to batch 32K, its learning rates and a proxy of its curves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from configs.optimizers import going_on
from experiments.studies.item import Claim, Settings, judged
from experiments.studies.paper import curves, grid
from experiments.studies.paper.table4 import EPOCHS, IMAGES, RATES
from experiments.studies.style import look, panels
from experiments.training.schedules import learning_rate_schedule

LEGEND = {32768: (2.9, True), 16384: (2.5, True), 8192: (6.4, False), 256: (0.2, False)}
"""The figure's legend: batch size, learning rate, and whether with LARS."""

WARMUP_EPOCHS = 5


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the schedules of the legend, right the proxy's accuracy over the epochs."""
    figure, axes = panels(
        1,
        2,
        "ResNet-50: the legend's learning rates; and a proxy's accuracy\n"
        f"Right: mean of {len(settings['seeds'])} seeds; bands: lowest to highest.",
    )
    left, right = axes[0]
    for number, (batch_size, (rate, is_lars)) in enumerate(LEGEND.items()):
        epochs = np.linspace(0, EPOCHS, 181)
        steps = jnp.asarray(epochs * IMAGES / batch_size, jnp.int32)
        label = f"batch {batch_size}, γ = {rate:g}{', LARS' if is_lars else ''}"
        style = {**look(number), "marker": ""}
        left.plot(
            epochs, jax.vmap(schedule_of(batch_size))(steps), label=label, **style
        )
    left.set(xlabel="epochs", ylabel="learning rate γ")
    left.legend(frameon=False, fontsize=9)
    for number, ((name, size), rows) in enumerate(_shown(table).items()):
        label = f"batch {size}, {settings['optimizers'][name]['label']}"
        curves.draw_over_epochs(right, rows, "test_accuracy", number, label)
    right.set(ylabel="test accuracy", ylim=(0, 1))
    right.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _shown(table: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """The small batch with SGD, and the larger ones with LARS."""
    small, base = next(iter(curves.by_size(table, "sgd").items()))
    larger = {
        ("lars", size): rows
        for size, rows in curves.by_size(table, "lars").items()
        if size > small
    }
    return {("sgd", small): base, **larger}


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether all curves end together, and the rate of batch 8K in the legend."""
    del settings
    ends = {
        size: curves.at_end(rows, "test_accuracy")
        for (_, size), rows in _shown(table).items()
    }
    (small, base), *larger = ends.items()
    in_table = RATES["table 4, version 3"][8192]
    in_report = RATES["technical report"][8192]
    return [
        Claim(
            "Large batches with LARS end at about the accuracy of the small batch "
            "(0.72 to 0.73 at all batch sizes), within a point.",
            f"At the end, in %: {grid.percent(base)} with SGD at batch {small}; "
            "with LARS "
            + ", ".join(f"{grid.percent(x)} at {size}" for size, x in larger)
            + ".",
            judged([100 * (base.mean() - x.mean()) < 1 for _, x in larger]),
        ),
        Claim(
            f"At batch 8192 the rate is {LEGEND[8192][0]:g}, without LARS.",
            f"The technical report has the same rate ({in_report:g}). Table 4 has LARS "
            f"and γ = {in_table:g} for the same accuracy.",
            judged([in_report == LEGEND[8192][0]]),
        ),
    ]


def schedule_of(batch_size: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of a step, as the legend and the paper's text have it."""
    warmup_epochs = WARMUP_EPOCHS if batch_size > 256 else 0
    schedule = going_on(warmup_epochs * IMAGES // batch_size, warmup_start=0.0)
    rate, steps = LEGEND[batch_size][0], EPOCHS * IMAGES // batch_size
    return learning_rate_schedule(rate, steps, **schedule)


ITEM = curves.item(
    title="Figure 5: ResNet-50 up to batch 32K",
    about=(
        "The paper draws the accuracy of ResNet-50 on ImageNet over 90 epochs at four "
        "batch sizes. Here are the learning rates of its legend, which "
        "`configs/paper_resnet50.py` trains with, and the curves of the proxy of Table "
        "1 with batch normalization: a small batch with SGD, larger ones with LARS."
    ),
    cells=lambda settings: curves.cells_of(settings, ["sgd", "lars"]),
    draw=draw,
    claims=claims,
)
