"""What a recipe declares before its run: the method that the others are compared with, and the margin."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from tpbench import recipe
from tpbench.errors import UsageError
from tpbench.record import replace_text

FILE = "contrast.json"  # in a results folder


class Contrast(NamedTuple):
    """The declared comparison. margin: points of top-1 within which two methods count as equivalent."""

    reference: str
    margin: float


@cache
def declared(name: str) -> Contrast:
    """The contrast of a packaged recipe, with or without overridden fields; for other names, a recipe's defaults."""
    packaged = name.partition(recipe.OVERRIDDEN)[0]
    if packaged in recipe.names():
        known = recipe.load(packaged)
        return Contrast(known.reference, known.margin)
    defaults = {field.name: field.default for field in fields(recipe.Recipe)}
    return Contrast(defaults["reference"], defaults["margin"])


def declare(folder: Path, asked: recipe.Recipe) -> None:
    """Write the contrast of a recipe that is not packaged into its results folder, where reports read it."""
    if asked.name.partition(recipe.OVERRIDDEN)[0] not in recipe.names():
        contrast = Contrast(asked.reference, asked.margin)
        replace_text(folder / FILE, json.dumps(contrast._asdict(), indent=1) + "\n")


def of(folder: Path) -> Contrast | None:
    """The contrast in a results folder; None if there is none. Raises UsageError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(Contrast).validate_python(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is damaged: {reason}; delete it or run the recipe again") from None
