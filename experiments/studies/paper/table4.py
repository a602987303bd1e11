"""Table 4: the learning rates of ResNet-50, of which some are misprints."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies.item import Claim, Settings
from experiments.studies.paper import grid
from experiments.studies.style import look, panels

RATES = {
    "table 4, version 3": {8192: 0.6, 16384: 2.5, 32768: 2.9},
    "technical report": {8192: 6.4, 16384: 2.5, 32768: 2.9},
    "torchlars": {8192: 12.8, 16384: 25.0, 32768: 29.0},
    "ICLR submission (decay 5e-4, 100 epochs)": {8192: 30.0, 16384: 33.0, 32768: 40.0},
}
"""The peak rates γ by source: arXiv:1708.03888v3; UCB/EECS-2017-156, table 1; torchlars
0.1.2 (https://pypi.org/project/torchlars), from the authors' log files; and the paper's
submission to ICLR 2018 (https://openreview.net/forum?id=rJ4uaX2aW)."""

COMPARED = [RATES["table 4, version 3"][16384], RATES["torchlars"][16384]]
"""The printed rate of batch 16K and ten times it, with which the proxy trains."""

ACCURACIES = {256: 73.0, 8192: 72.7, 16384: 73.0, 32768: 72.3}
"""Top-1, in %, as printed."""

OF_TORCHLARS = {8192: 73.78, 16384: 73.36, 32768: 72.26}
"""What torchlars reports with its rates."""

OF_ALEXNET = {16384: 23.0, 32768: 22.0}
"""The rates of AlexNet-BN in Table 3, with the same η, over 100 epochs."""

TRUST_COEFFICIENT = 0.001
EPOCHS, IMAGES = 90, 1_281_167


def draw(table: pd.DataFrame, settings: Settings) -> Figure:
    """Left the rates by source, right what two of them reach in the proxy."""
    figure, axes = panels(
        1,
        2,
        "Learning rates of LARS for ResNet-50, and a proxy at a tenth and in full\n"
        f"Right: mean of {len(settings['seeds'])} seeds, bars from lowest to highest.",
        height=4.4,
    )
    left, right = axes[0]
    for number, (source, rates) in enumerate(RATES.items()):
        left.plot(list(rates), list(rates.values()), label=source, **look(number))
    left.set_xscale("log", base=2)
    left.set_xticks(list(OF_TORCHLARS), map(str, OF_TORCHLARS))
    left.minorticks_off()
    left.set_yscale("log")
    left.set(xlabel="batch size", ylabel="learning_rate γ (peak)")
    left.legend(
        frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.45, -0.16)
    )
    counted = grid.counted_accuracies(table)
    for number, (batch_size, rows) in enumerate(counted.groupby("batch_size")):
        accuracies = rows.groupby("learning_rate")["accuracy"]
        line = accuracies.agg(["mean", "min", "max"]).loc[COMPARED]
        right.errorbar(
            np.arange(len(line)) + 0.06 * number,
            line["mean"],
            [line["mean"] - line["min"], line["max"] - line["mean"]],
            capsize=3,
            label=f"batch {batch_size}",
            **look(number),
        )
    right.set_xticks([0, 1], [f"γ = {rate:g}" for rate in COMPARED])
    right.set(xlim=(-0.5, 1.5), ylim=(0, 1))
    right.set(xlabel="learning_rate of the proxy", ylabel="test accuracy")
    right.legend(frameon=False, loc="lower right")
    return figure


def claims(table: pd.DataFrame, settings: Settings) -> list[Claim]:
    """Which rates other sources contradict, and the evidence of the proxy."""
    version3, report = RATES["table 4, version 3"], RATES["technical report"]
    meant = RATES["torchlars"]
    del settings
    sizes = (16384, 32768)
    apart = [abs(OF_TORCHLARS[size] - ACCURACIES[size]) for size in sizes]
    counted = grid.counted_accuracies(table)

    def both(rates: Mapping[int, float], unit: str = "") -> str:
        return " and ".join(f"{rates[size]:g}{unit}" for size in sizes)

    def lengths(rates: Mapping[int, float], epochs: int = EPOCHS) -> str:
        return " and ".join(f"{path_length(rates[s], s, epochs):.2g}" for s in sizes)

    def reached(rows: pd.DataFrame) -> str:
        return " and ".join(
            f"{grid.percent(rows[rows['learning_rate'] == rate]['accuracy'])}% with "
            f"{rate:g}"
            for rate in COMPARED
        )

    found = "; ".join(
        f"{reached(rows)} at batch {size}"
        for size, rows in counted.groupby("batch_size")
    )
    return [
        Claim(
            "At batch 8192, LARS has γ = 0.6.",
            f"The authors' technical report has {report[8192]:g} in the same row, "
            f"{report[8192] / version3[8192]:.3g} times as much. The legend of Figure "
            "5 has it, too, there without LARS.",
            "misprint" if report[8192] != version3[8192] else "confirmed",
        ),
        Claim(
            "At batches of 16K and 32K, LARS has γ = 2.5 and 2.9, with η = 0.001.",
            f"torchlars, from the authors' log files, has {both(meant)}, and reports "
            f"{both(OF_TORCHLARS, '%')} with them, where the paper has "
            f"{both(ACCURACIES, '%')}. Over a run, η Σγ is {lengths(version3)} "
            f"(printed), {lengths(meant)} (torchlars), {lengths(OF_ALEXNET, 100)} "
            f"(AlexNet-BN). The proxy, in far fewer steps, reaches {found}.",
            "misprint"
            if max(apart) < 1 and all(meant[s] > 2 * version3[s] for s in sizes)
            else "untested",
        ),
        Claim(
            "ResNet-50 keeps its accuracy with LARS up to batch 32K ("
            + ", ".join(f"{a}% at {size}" for size, a in ACCURACIES.items())
            + ").",
            "Needs ImageNet and accelerators: `python -m experiments.train "
            "--config=configs/paper_resnet50.py:32768,meant --workdir=runs/resnet50`. "
            "Figure 5 below has a proxy.",
            "untested",
        ),
    ]


def path_length(rate: float, batch_size: int, epochs: int) -> float:
    """η Σ γ (1 - t/T)² over a run of T steps: how often a layer can move its own norm.

    The sum is T/3, but for a part in T.
    """
    return TRUST_COEFFICIENT * rate * (epochs * IMAGES // batch_size) / 3


ITEM = grid.item(
    title="Table 4: the learning rates of ResNet-50",
    about=(
        "The paper trains ResNet-50 on ImageNet at batches of 256 to 32K. Its learning "
        "rates differ from those of the authors' technical report, of the paper's "
        "submission to ICLR, and of those who worked from the authors' log files. The "
        "configurations in `configs/paper_resnet50.py` have both; the proxy, that of "
        "Table 1 with batch normalization, trains with the rate printed for 16K and "
        "with ten times it. In so few steps a larger rate has an advantage of its own."
    ),
    cells=lambda settings: grid.cells_of(
        settings,
        ["batch_norm"],
        ["lars"],
        sorted(settings["batch_sizes"])[-2:],
        rates=["between"],  # a printed and a meant rate are among them
    ),
    draw=draw,
    claims=claims,
)
