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
HEADS = ("Method", "What it is", "Published", "Family", "What leaves", "Sees", "Tokens", "Differs from the paper")
INTRODUCTION = """Made by `python tests/methods_page.py` from the cards in `tpbench/pooling` and `baselines`, and from
what the methods do to the tokens of a tiny model. Do not edit it by hand.

**Family** is how a method reduces. *Pruning* keeps some tokens; *merging* joins tokens in pairs or with those that are
kept; *clustering* groups all tokens and keeps one for each group; *learned queries* gather all tokens into new ones
with weights that are trained; *grid* pools neighbours in the image; *trivial* keeps tokens without looking at them.

**What leaves** is what happens to the tokens that are removed: a method *prunes*, and drops them, *merges* them into
others (soft means are merging too), *prunes and merges*, *pools the grid*, or *masks*, and removes none.

**Sees** is what a method asks of the block's attention beside the tokens, under its default settings: keys, values, the
class token's attention (cls) or the attention that each token receives (received). **Tokens**: *exact* meets the
requested number, *at most* may keep fewer, *masked* hides tokens and removes none."""


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
    sees = "" if card.unreduced else asked or "tokens alone"
    where = f"{card.venue} {card.year}" if card.venue else card.paper
    published = f"[{where}]({card.url})" if card.url else where
    count = "" if card.unreduced else card.count.replace("_", " ")
    return [f"`{card.name}`", card.title, published, card.family, effect(method), sees, count, card.differs]


def effect(method: type[Downsampler]) -> str:
    """What a method does with the tokens that leave, found by running it. Empty for the unreduced model."""
    if not method.reduces:
        return ""
    if method.masks:
        return "masks"
    _, grid = method.reachable(64, 32, (8, 8))
    if grid is not None:
        return "pools the grid"
    return promise_sizes(method, Site.MID).replace("does both", "prunes and merges")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
