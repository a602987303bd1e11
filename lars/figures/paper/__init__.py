"""The figures and tables of the paper, one by one.

You, Gitman, Ginsburg, `Large Batch Training of Convolutional Networks
<https://arxiv.org/abs/1708.03888v3>`_, version 3, 2017.
"""

from lars.figures.item import Item
from lars.figures.paper import large_batch

ITEMS: dict[str, Item] = {
    "large_batch": large_batch.ITEM,
}
"""In the order of the paper; behind them what it lacks."""
