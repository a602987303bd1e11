"""The figures and tables of the paper, one by one.

You, Gitman, Ginsburg, `Large Batch Training of Convolutional Networks
<https://arxiv.org/abs/1708.03888v3>`_, version 3, 2017.
"""

from lars.figures.item import Item

ITEMS: dict[str, Item] = {}
