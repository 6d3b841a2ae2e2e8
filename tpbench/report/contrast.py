"""What a recipe declares before its run: which method the others are compared with, and which margin is small."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import NamedTuple

from tpbench import recipe


class Contrast(NamedTuple):
    """The declared comparison. margin: points of top-1 within which two methods count as equivalent."""

    reference: str
    margin: float


@cache
def declared(name: str) -> Contrast:
    """The contrast of a packaged recipe, its lines overridden or not; for any other name, a recipe's defaults."""
    packaged = name.partition(recipe.OVERRIDDEN)[0]
    if packaged in recipe.names():
        known = recipe.load(packaged)
        return Contrast(known.reference, known.margin)
    defaults = {field.name: field.default for field in fields(recipe.Recipe)}
    return Contrast(defaults["reference"], defaults["margin"])
