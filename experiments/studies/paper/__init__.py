"""The figures and tables of the paper, one by one.

You, Gitman, Ginsburg, `Large Batch Training of Convolutional Networks
<https://arxiv.org/abs/1708.03888v3>`_, version 3, 2017.
"""

from experiments.studies.item import Item
from experiments.studies.paper import (
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,
    large_batch,
    table1,
    table2,
    table3,
    table4,
    table5,
)
from experiments.studies.paper.settings import QUICK as QUICK, SIZES as SIZES

ITEMS: dict[str, Item] = {
    "table1": table1.ITEM,
    "figure1": figure1.ITEM,
    "table2": table2.ITEM,
    "figure2": figure2.ITEM,
    "table3": table3.ITEM,
    "figure3": figure3.ITEM,
    "figure4": figure4.ITEM,
    "table4": table4.ITEM,
    "figure5": figure5.ITEM,
    "table5": table5.ITEM,
    "large_batch": large_batch.ITEM,
    "large_batch_plain": large_batch.PLAIN,
}
"""In the order of the paper; behind them what it lacks."""
