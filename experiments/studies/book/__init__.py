"""The book's section "Numerical Stability and Initialization", item by item.

Zhang et al., `Dive into Deep Learning <https://d2l.ai>`_, section 5.4.
"""

from experiments.studies.book import (
    dropout,
    exercise1,
    exercise2,
    exercise3,
    exercise4,
    gradient_norms,
    he_or_xavier,
    keep_variance,
    matrices,
    sigmoid,
    sigmoid_or_relu,
    symmetry,
    underflow,
    variance,
)
from experiments.studies.book.settings import QUICK as QUICK, SIZES as SIZES
from experiments.studies.item import Item

ITEMS: dict[str, Item] = {
    "book_sigmoid": sigmoid.ITEM,
    "book_gradient_norms": gradient_norms.ITEM,
    "book_matrices": matrices.ITEM,
    "book_variance": variance.ITEM,
    "book_keep_variance": keep_variance.ITEM,
    "book_he_or_xavier": he_or_xavier.ITEM,
    "book_underflow": underflow.ITEM,
    "book_symmetry": symmetry.ITEM,
    "book_dropout": dropout.ITEM,
    "book_exercise1": exercise1.ITEM,
    "book_exercise2": exercise2.ITEM,
    "book_exercise3": exercise3.ITEM,
    "book_exercise4": exercise4.ITEM,
    "book_sigmoid_or_relu": sigmoid_or_relu.ITEM,
}
"""In the order of the section."""
