"""Sizes of the figures and tables of the paper."""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {}
QUICK: dict[str, dict[str, Any]] = {}
