"""The rescue maps: which starts of which networks each optimizer trains."""

from lars.figures.item import Item
from lars.figures.plane import items

ITEMS: dict[str, Item] = {
    "rescue_search": items.SEARCH,
    "rescue_map": items.MAP,
    "rescue_normalized": items.NORMALIZED,
    "rescue_profiles": items.PROFILES,
    "rescue_cnn": items.CNN,
    "rescue_parts": items.PARTS,
    "rescue_start_digits": items.START_DIGITS,
    "rescue_start_fashion": items.START_FASHION,
}
