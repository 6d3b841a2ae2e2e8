"""The part of docs/methods.md that says how each method works: its rule, its docstring and its settings."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from tpbench.cards import Card
from tpbench.downsampler import Downsampler

RULES = Path(__file__).parents[1] / "docs" / "rules.toml"
INTRODUCTION = """## How each works

N tokens x_1 ... x_N arrive and K leave; the prefix is not among them. n_i is the number of patches that token i stands
for, a_i the class token's attention to it (mean over heads), r_i the attention that it receives (summed over queries,
mean over heads), k_i its key (mean over heads), v_i its value (all heads). C is the width. Of equal values the one with
the lower index comes first."""


def section(cards: Sequence[Card], classes: dict[str, type[Downsampler]]) -> list[str]:
    """Paragraphs of Markdown. Raises ValueError for a rule whose method does not exist."""
    rules = tomllib.loads(RULES.read_text(encoding="utf-8"))
    if unknown := rules.keys() - {card.name for card in cards}:
        raise ValueError(f"{RULES.name} has rules of no method: {', '.join(sorted(unknown))}")
    in_module = Counter(card.module for card in cards)
    paragraphs = [INTRODUCTION]
    for card in cards:
        method = classes[card.name]
        source = sys.modules[card.module] if in_module[card.module] == 1 else method
        paragraphs += [f"### {card.name}", *rule(rules.get(card.name, "")), *words(source), *settings(method)]
    return paragraphs


def rule(text: str) -> Iterator[str]:
    if text:
        yield f"```text\n{text.strip()}\n```"


def words(source: object) -> Iterator[str]:
    """The docstring of a method's file, or of its class where several methods share a file."""
    text = inspect.getdoc(source)
    if text:
        yield text.replace("*", "\\*")


def settings(method: type[Downsampler]) -> Iterator[str]:
    """The settings and their defaults."""
    known = [f"`{field.name}={field.default}`" for field in fields(method.Config)]
    if known:
        yield f"Settings: {', '.join(known)}."
