"""The rescue map: which initial scales can the optimizer alone train?

    make rescue
    python -m experiments.rescue --config=configs/rescue.py --workdir=results/rescue

Time: about a minute and a half on two cores. Result: the table in the README.

With ``configs/rescue.py:search`` the wider search that the five learning rates of each
optimizer, and the settings of some, were chosen by (about ten minutes).
"""

from ml_collections import config_dict

from configs import models, optimizers
from experiments.studies.rescue import search


def get_config(kind: str = "compared") -> config_dict.ConfigDict:
    """Returns the configuration of the comparison, or of the search before it."""
    kinds = {"compared": optimizers.COMPARED, "search": search.SEARCHED}
    if kind not in kinds:
        raise ValueError(f"config must be one of {', '.join(kinds)}, got {kind!r}.")
    return config_dict.ConfigDict(
        {
            "dataset": "digits",
            "model": models.DIGITS_MLP,
            "num_steps": 600,
            "batch_size": 128,
            "schedule": optimizers.LINEAR,
            "optimizers": config_dict.ConfigDict(
                {
                    name: {k: v for k, v in arm.items() if k != "learning_rate"}
                    for name, arm in kinds[kind].items()
                },
                sort_keys=False,
            ),
            "reference": "sgd",
            "profile": "all",
            "init_scales": (
                *(1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1),
                *(1.0, 1e1, 1e2, 1e3, 1e4, 1e6, 1e8),
            ),
            "seeds": (0, 1, 2),
            # None: `default_runs_per_vmap` of the devices.
            "runs_per_vmap": config_dict.placeholder(int),
        },
        sort_keys=False,  # the order of the optimizers is that of tables and legends
    )
