"""Figure 5: ResNet-50 up to batch 32K, its learning rates and a proxy of its curves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Item, Settings, judged, mean_and_spread
from experiments.studies.paper import curves
from experiments.studies.paper.table4 import EPOCHS, IMAGES, RATES
from experiments.studies.style import look, panels
from experiments.training.schedules import learning_rate_schedule

LEGEND = {
    32768: (2.9, True),
    16384: (2.5, True),
    8192: (6.4, False),
    256: (0.2, False),
}
"""The figure's legend: batch size, learning rate, and whether with LARS."""

WARMUP_EPOCHS = 5


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The curves of Figure 3."""
    return curves.cells_of(settings, ["sgd", "lars"])


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
        rates = jax.vmap(schedule_of(batch_size))(steps)
        left.plot(
            epochs,
            rates,
            label=f"batch {batch_size}, γ = {rate:g}{', LARS' if is_lars else ''}",
            **{**look(number), "marker": ""},
        )
    left.set(xlabel="epochs", ylabel="learning_rate γ")
    left.legend(frameon=False, fontsize=9)
    small = curves.sizes_of(settings, "sgd")[0]
    shown = [("sgd", small)] + [
        ("lars", size) for size in curves.sizes_of(settings, "lars") if size > small
    ]
    for number, (optimizer, batch_size) in enumerate(shown):
        curves.draw_over_epochs(
            right,
            curves.rows_of(table, optimizer, batch_size),
            "test_accuracy",
            number,
            f"batch {batch_size}, {settings['optimizers'][optimizer]['label']}",
        )
    right.set(xlabel="epochs", ylabel="test accuracy", ylim=(0, 1))
    right.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Whether all curves end together, and what the legend says of batch 8K."""
    small = curves.sizes_of(settings, "sgd")[0]
    base = 100 * curves.at_end(curves.rows_of(table, "sgd", small), "test_accuracy")
    large = {
        size: 100 * curves.at_end(curves.rows_of(table, "lars", size), "test_accuracy")
        for size in curves.sizes_of(settings, "lars")
        if size > small
    }
    in_table = RATES["table 4, version 3"][8192]
    in_report = RATES["technical report"][8192]
    return [
        Claim(
            "Large batches with LARS end at about the accuracy of the small batch "
            "(0.72 to 0.73 at all batch sizes), within a point.",
            f"At the end, in %: {mean_and_spread(base)} with SGD at batch {small}; "
            "with LARS "
            + ", ".join(
                f"{mean_and_spread(accuracy)} at {size}"
                for size, accuracy in large.items()
            )
            + ".",
            judged([base.mean() - a.mean() < 1 for a in large.values()]),
        ),
        Claim(
            f"At batch 8192 the rate is {LEGEND[8192][0]:g}, without LARS.",
            f"So does the technical report have it ({in_report:g}); Table 4 has LARS "
            f"and γ = {in_table:g} for the same accuracy.",
            judged([in_report == LEGEND[8192][0]]),
        ),
    ]


def schedule_of(batch_size: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of a step, as the legend and the paper's text have it."""
    warmup_epochs = WARMUP_EPOCHS if batch_size > 256 else 0
    return learning_rate_schedule(
        LEGEND[batch_size][0],
        EPOCHS * IMAGES // batch_size,
        decay="quadratic",
        warmup_steps=warmup_epochs * IMAGES // batch_size,
        warmup_start=0.0,
        restart_after_warmup=False,
    )


ITEM = Item(
    title="Figure 5: ResNet-50 up to batch 32K",
    about=(
        "The paper draws the accuracy of ResNet-50 on ImageNet over 90 epochs at four "
        "batch sizes. Here are the learning rates of its legend, which "
        "`configs/paper_resnet50.py` trains with, and the curves of the proxy of Table "
        "1 with batch normalization: a small batch with SGD, larger ones with LARS."
    ),
    cells=cells,
    measure=curves.measure,
    draw=draw,
    claims=claims,
    kept_in=curves.KEPT_IN,
)
