"""The book's section "Numerical Stability and Initialization", item by item.

Zhang et al., `Dive into Deep Learning <https://d2l.ai>`_, section 5.4.
"""

from lars.figures.book import sigmoid
from lars.figures.item import Item

ITEMS: dict[str, Item] = {
    "book_sigmoid": sigmoid.ITEM,
}
"""In the order of the section."""
