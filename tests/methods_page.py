"""Write docs/methods.md from the methods' cards and flags: `python tests/methods_page.py`. A test compares the two."""

from __future__ import annotations

from pathlib import Path

import methods_cards
from test_contract import promise_sizes

from tpbench import registry
from tpbench.cards import FAMILIES, Card
from tpbench.downsampler import Downsampler, Needs, Site
from tpbench.report.markdown import table

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEADS = (
    "Method",
    "What it is",
    "Published",
    "Family",
    "Removed tokens are",
    "Reads",
    "Tokens",
    "Differs from the paper",
)
INTRODUCTION = """<!-- Made by `python tests/methods_page.py` from the cards in `tpbench/pooling` and `baselines`,
and from what the methods do to the tokens of a tiny model. Do not edit it by hand. -->

Every method, what it does to the tokens, and what differs from its paper.

**Family** is how a method reduces. *Pruning* keeps some tokens; *merging* joins tokens in pairs or with those that are
kept; *clustering* groups all tokens and keeps one for each group; *learned queries* gather all tokens into new ones
with weights that are trained; *grid* pools neighbours in the image; *trivial* keeps tokens without looking at them.

**Removed tokens** are *pruned*, that is dropped, *merged* into others (soft means are merging too), *pruned and
merged*, *pooled on the grid*, or only *masked*: then none is removed.

**Reads** is what a method reads of the block beside the tokens, under its default settings: the queries, keys or values
of its attention, the class token's attention (cls), the attention that each token receives (received), the block's
normalised input (input), or how far its attention moves each token (shift). **Tokens**: *exact* meets the requested
number, *at most* may keep fewer, *masked* hides tokens and removes none."""


def page() -> str:
    """The text of docs/methods.md."""
    classes = registry.discover()
    cards = sorted(registry.select("all"), key=lambda card: ["", *FAMILIES].index(card.family))
    rows = [[text.replace("|", r"\|") for text in texts(card, classes[card.name])] for card in cards]
    pages = methods_cards.section(cards, classes)
    return "\n".join(["# Methods", "", INTRODUCTION, "", *table(HEADS, rows, left=len(HEADS)), "\n\n".join(pages), ""])


def texts(card: Card, method: type[Downsampler]) -> list[str]:
    """A method's cells."""
    needs = method.asks(method.Config())
    asked = ", ".join(need.name.lower() for need in Needs if need in needs)
    reads = "" if card.unreduced else asked or "only the tokens"
    where = f"{card.venue} {card.year}" if card.venue else card.paper
    published = f"[{where}]({card.url})" if card.url else where
    count = "" if card.unreduced else card.count.replace("_", " ")
    return [f"`{card.name}`", card.title, published, card.family, effect(method), reads, count, card.differs]


def effect(method: type[Downsampler]) -> str:
    """What a method does with the tokens that leave, found by running it. Empty for the unreduced model."""
    if not method.reduces:
        return ""
    if method.masks:
        return "masked"
    _, grid = method.reachable(64, 32, (8, 8))
    if grid is not None:
        return "pooled on the grid"
    words = {"prunes": "pruned", "merges": "merged", "does both": "pruned and merged"}
    return words[promise_sizes(method, Site.MID)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
