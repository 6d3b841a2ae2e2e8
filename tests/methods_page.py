"""Write docs/methods.md from the methods' cards and flags: `python tests/methods_page.py`. A test compares the two."""

from __future__ import annotations

from pathlib import Path

from tpbench import registry
from tpbench.downsampler import Downsampler, Needs
from tpbench.registry import Card

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEADS = ("Method", "What it is", "Published", "Sees", "Tokens", "Differs from the paper")
INTRODUCTION = """Made by `python tests/methods_page.py` from the cards in `tpbench/pooling` and `baselines`.

**Sees** is what a method asks of the block's attention beside the tokens, under its default settings: keys, values, the
class token's attention (cls) or the attention that each token receives (received). **Tokens**: *exact* meets the
requested number, *at most* may keep fewer, *masked* hides tokens and removes none."""


def page() -> str:
    """The text of docs/methods.md."""
    classes = registry.discover()
    lines = ["# Methods", "", INTRODUCTION, "", row(HEADS), row([":--"] * len(HEADS))]
    lines += [row(texts(card, classes[card.name])) for card in registry.select("all")]
    return "\n".join([*lines, ""])


def texts(card: Card, method: type[Downsampler]) -> list[str]:
    """A method's cells."""
    needs = method.asks(method.Config())
    sees = ", ".join(need.name.lower() for need in Needs if need in needs) or "tokens alone"
    where = f"{card.venue} {card.year}" if card.venue else card.paper
    published = f"[{where}]({card.url})" if card.url else where
    return [f"`{card.name}`", card.title, published, sees, card.count.replace("_", " "), card.differs]


def row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
