"""Quick versions of items, computed in this process."""

import jax
import pandas as pd

from experiments.figures import ITEMS, settings_of


def computed(name, keep=lambda cell: True, **changes):
    """The table of an item's quick version, of some parts, and its settings."""
    settings = {**settings_of(name, quick=True), **changes}
    item = ITEMS[name]
    # What Optax' Adam needs, which mixes floats and integers.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        tables = [
            item.measure(cell, settings).assign(**cell)
            for cell in item.cells(settings)
            if keep(cell)
        ]
    return pd.concat(tables, ignore_index=True), settings


def verdicts(name, table, settings):
    """Those on the claims of a table that can be drawn."""
    assert ITEMS[name].draw(table, settings).axes
    found = ITEMS[name].claims(table, settings)
    for claim in found:
        assert "nan" not in claim.found, claim
        assert "\n" not in claim.says + claim.found
    return [claim.verdict for claim in found]
