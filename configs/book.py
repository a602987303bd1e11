"""Sizes of the items of the book's section."""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "book_sigmoid": {"x_max": 8.0, "points": 161, "max_layers": 10},
}
"""Of the items as the page shows them."""

QUICK: dict[str, dict[str, Any]] = {
    "book_sigmoid": {},
}
"""What is smaller in the quick versions."""
