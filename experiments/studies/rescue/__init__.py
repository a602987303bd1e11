"""The rescue maps: which starts of which networks each optimizer trains."""

from experiments.studies.item import Item
from experiments.studies.rescue import cost, items, mechanism, repair
from experiments.studies.rescue.settings import QUICK as QUICK, SIZES as SIZES

ITEMS: dict[str, Item] = {
    "rescue": items.SMALL,
    "rescue_transformer": items.SMALL_TRANSFORMER,
    "rescue_map": items.MAP,
    "rescue_start_digits": items.START_DIGITS,
    "rescue_start_fashion": items.START_FASHION,
    "rescue_mechanism": mechanism.MECHANISM,
    "rescue_recovery": mechanism.RECOVERY,
    "rescue_cost": cost.COST,
    "rescue_parts": items.PARTS,
    "rescue_profiles": items.PROFILES,
    "rescue_transformer_profiles": items.TRANSFORMER_PROFILES,
    "rescue_normalized": items.NORMALIZED,
    "rescue_networks": items.NETWORKS,
    "rescue_mended": items.MENDED,
    "rescue_depth": items.DEPTH,
    "rescue_confirmation": items.CONFIRMATION,
    "rescue_repair": repair.REPAIR,
    "rescue_search": items.SEARCH,
}
