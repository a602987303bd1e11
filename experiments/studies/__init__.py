"""Figures, tables and claims of the LARS paper and of the book's section, one by one.

An `Item` knows what its source says, computes a table, draws it, and judges from the
table alone what became of each claim. The packages `paper`, `book` and `rescue` list
them.
"""

from experiments.studies.item import (
    Claim as Claim,
    Item as Item,
    Settings as Settings,
    Verdict as Verdict,
    judged as judged,
    mean_and_spread as mean_and_spread,
    median_and_spread as median_and_spread,
)
