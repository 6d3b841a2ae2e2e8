"""The one writer of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\|*<`"})


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table and an empty line; the first `left` columns are aligned left, the others right.

    A row shorter than the heads is filled up. Cells are text that is already escaped.
    """
    rule = [":--"] * left + ["--:"] * (len(heads) - left)
    filled = [list(row) + [""] * (len(heads) - len(row)) for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule[: len(heads)], *filled)] + [""]


def escape(text: str) -> str:
    """Text that Markdown prints as it stands, in a table too."""
    return text.translate(ESCAPED)
