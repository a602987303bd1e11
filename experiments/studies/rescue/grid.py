"""The rescue map: which starts of which networks can each optimizer train?

Every item of this kind is the same computation with other settings: ``variants`` are
the networks, ``depths`` and ``init_scales`` span the map of each. A variant may have
``depths`` and a ``dataset`` of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.studies.item import Settings
from experiments.studies.rescue.coverage import CELL, FLAGS
from experiments.studies.rescue.starts import starts_of
from experiments.studies.runs import results_of, setting_of_arm

START = "start"
"""In the column ``optimizer``: no run, but a look at where runs start."""

GOOD_START = 0.005
"""How far below the best optimizer the recommended one may be at scale 1."""

_RUN = (
    "learning_rate",
    "validation_accuracy",
    "test_accuracy",
    "test_loss",  # which older tables lack
    "diverged",
)


def from_any_scale(settings: Settings) -> dict[str, Mapping[str, Any]]:
    """The optimizers that are run from all scales."""
    return {
        name: arm
        for name, arm in settings["optimizers"].items()
        if set(scales_of(settings, name)) == set(settings["init_scales"])
    }


def rivals_in(settings: Settings) -> list[str]:
    """The optimizers from all scales that the recommended one is compared with.

    Not itself without a part; but these, if there are no others.
    """
    arms = from_any_scale(settings)
    mine = settings["recommended"]
    kind = arms[mine]["name"].removesuffix("_waking")
    others = [name for name, arm in arms.items() if not arm["name"].startswith(kind)]
    return others or [name for name in arms if name != mine]


def cells(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """The starts, then every optimizer, from the shallowest networks on."""
    networks = sorted(networks_in(settings), key=lambda network: network[1])
    return [
        {"optimizer": name, "variant": variant, "depth": depth, "init_scale": scale}
        for name in (START, *settings["optimizers"])
        for variant, depth in networks
        for scale in scales_of(settings, name)
    ]


def networks_in(settings: Settings) -> list[tuple[str, int]]:
    """The variants with each of their depths, which are the map's or their own."""
    return [
        (name, depth)
        for name, variant in settings["variants"].items()
        for depth in variant.get("depths", settings["depths"])
    ]


def network_name(settings: Settings, variant: str, depth: int) -> str:
    """A network for people: its variant, and what its depth counts."""
    kind = settings["variants"][variant]["model"]["name"]
    return f"{variant}, {depth} {'layers' if kind in ('mlp', 'cnn') else 'blocks'}"


def scales_of(settings: Settings, optimizer: str) -> Sequence[float]:
    """Which scales an optimizer is run from: the extremes and 1 if the start is mended.

    None of these should matter then.
    """
    scales, arms = settings["init_scales"], settings["optimizers"]
    if optimizer == START or arms[optimizer]["initialization"] == "scaled":
        return scales
    return list(dict.fromkeys([min(scales), 1.0, max(scales)]))


def measure(cell: Mapping[str, Any], settings: Settings) -> pd.DataFrame:
    """Trains with every rate and seed from one start, or looks at it."""
    variant = settings["variants"][cell["variant"]]
    model = {**variant["model"], "depth": cell["depth"]}
    if "dataset" in variant:
        settings = {**settings, "dataset": variant["dataset"]}
    start = (settings["seeds"], cell["init_scale"], variant["profile"])
    if cell["optimizer"] == START:
        return starts_of(settings["dataset"], model, settings["batch_size"], *start)
    arm = settings["optimizers"][cell["optimizer"]]
    setting = setting_of_arm(settings, model, arm)
    setting = setting._replace(initialization=arm["initialization"])
    runs = results_of(setting, arm["learning_rates"], *start)
    return runs.drop(columns="train_loss")


def runs_of(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The runs of a table that the optimizers of the settings made."""
    runs = table[table["optimizer"].isin(list(settings["optimizers"]))]
    columns = [name for name in ("optimizer", *CELL, "seed", *_RUN) if name in table]
    # What the older runs of an optimizer lack is not compared.
    is_held = runs[columns].notna().groupby(runs["optimizer"]).any().all()
    runs = runs[[name for name in columns if is_held[name]]]
    return runs.assign(diverged=runs["diverged"].astype(bool))


def starts_in(table: pd.DataFrame) -> pd.DataFrame:
    """The starts that a table has."""
    return table[table["optimizer"] == START][[*CELL, "seed", *FLAGS]]
