"""What a report knows about a method apart from its records: its family, and whether its row is a null row."""

from __future__ import annotations

import re
from functools import cache

from tpbench import cards, registry
from tpbench.errors import UsageError

FAMILIES = cards.FAMILIES
OTHER = "other"
NULL = "null row"
FAMILIES_SHOWN = (*FAMILIES, NULL, OTHER)
SETTING = "finetune_seed"


def without_settings(method: str) -> str:
    """The name of a row's method alone: "wkmedoids" of "wkmedoids(init=grid)"."""
    return method.partition("(")[0]


def family(method: str) -> str:
    """The family of a row's method, from its card; "other" if the card is missing or names no family."""
    card = _cards().get(without_settings(method))
    return card.family if card is not None and card.family else OTHER


def is_token_pooling(method: str) -> bool:
    """Whether a row's method is a form of Token Pooling: its module lies in `tpbench.pooling`."""
    card = _cards().get(without_settings(method))
    return card is not None and card.module.startswith("tpbench.pooling")


@cache
def _cards() -> dict[str, cards.Card]:
    try:
        return registry.catalogue()[0]
    except UsageError:  # reports work where no method is installed
        return {}


def null_of(method: str) -> str:
    """The row that a null row repeats with another fine-tuning seed; "" for every other row.

    "wkmedoids(init=grid,finetune_seed=1)" repeats "wkmedoids(init=grid)".
    """
    match = re.fullmatch(r"([^(]+)\((.*)\)", method)
    settings = match[2].split(",") if match else []
    others = [setting for setting in settings if setting.partition("=")[0].strip() != SETTING]
    if len(others) == len(settings):
        return ""
    return f"{match[1]}({','.join(others)})" if others else match[1]
