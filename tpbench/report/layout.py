"""The columns of readable tables: their headings with units, and how a row's numbers are rounded into text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import floor, log10
from typing import Any, NamedTuple

import pandas as pd

from tpbench.report.frame import batch_sizes

LONG_LIST = 4  # longer lists of token counts are shown by their ends
NOTE = (
    "Top-1 in percent, differences in percentage points; ± is the half-width of the 95 % interval over seeds "
    "(Student's t), absent with one seed. Differences to the base are paired by seed, the base fine-tuned equally "
    "long. A rank is the range of places that paired intervals leave; bold separates from every other method. "
    "Times are medians (95th percentile) of one forward pass; MACs promise a speed-up, the clock shows another. The "
    "paper's numbers are for DeiT-S on ImageNet, at a share of MACs at most 5 points away."
)

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of a readable table."""

    head: str
    unit: str  # the heading's second line
    text: Callable[[Row], str]
    narrow: bool = True  # whether it is also in LaTeX, where a line holds 500 points


def accuracy() -> list[Column]:
    """What is kept, what it costs in MACs, and what is left of the accuracy."""
    return [
        Column("Method", "", lambda row: row["method"]),
        Column("Tokens", "kept", tokens),
        Column("GMACs", "per image", lambda row: significant(row["gmacs"], 4)),
        Column("MACs", "% of base", _macs),
        Column("Reducer", "% of MACs", lambda row: fixed(100 * row["reducer_share"], 2), narrow=False),
        Column("Off the shelf", "top-1 %", lambda row: plus_minus(row, "off_the_shelf_top1_percent")),
        Column("Fine-tuned", "top-1 %", lambda row: plus_minus(row, "fine_tuned_top1_percent")),
        Column("To base", "points", lambda row: plus_minus(row, "base_difference_points", "+")),
        Column("Seeds", "", _seeds),
        Column("Rank", "", rank),
        Column("Paper", "top-1 %", lambda row: fixed(row["paper_top1"], 2)),
        Column("Paper", "MACs, % of base", lambda row: fixed(100 * row["paper_share"], 1), narrow=False),
    ]


def cost(frame: pd.DataFrame) -> list[Column]:
    """What the clock and the memory say."""
    batches = batch_sizes(frame)
    largest = f"batch {max(batches)}" if batches else "largest batch"
    return [
        Column("Method", "", lambda row: row["method"]),
        *(Column(f"Batch {batch}", "ms (p95)", latency(batch)) for batch in batches),
        *(Column(f"Batch {batch}", "time, % of base", _ratio(batch), narrow=False) for batch in batches),
        Column("Speed-up", "promised", lambda row: fixed(row["speedup_promised"], 2)),
        Column("Speed-up", f"at {largest}", lambda row: fixed(row["speedup_reached"], 2)),
        Column("Reached", "% of promised", lambda row: fixed(100 * row["speedup_share_reached"], 0), narrow=False),
        Column("Images/s", f"at {largest}", lambda row: significant(row["images_per_second"], 3)),
        Column("Peak memory", "MiB", lambda row: significant(row["peak_memory_mib"], 3)),
        Column("Base's peak", "MiB", lambda row: significant(row["unreduced_peak_memory_mib"], 3), narrow=False),
        Column("Fine-tuning", "s", lambda row: significant(row["fine_tuning_seconds"], 3)),
        Column("Fine-tuning", "images/s", lambda row: significant(row["training_images_per_second"], 3), narrow=False),
    ]


def terminal(frame: pd.DataFrame) -> list[Column]:
    """A selection for 120 characters."""
    batches = batch_sizes(frame)
    return [
        Column("method", "", lambda row: row["method"]),
        Column("tokens", "", lambda row: failure(row).partition(":")[0] or _shown(row)),
        Column("GMACs", "", lambda row: significant(row["gmacs"], 3)),
        Column("MACs", "%", lambda row: fixed(100 * row["macs_share"], 1)),
        Column("off the", "shelf %", lambda row: fixed(row["off_the_shelf_top1_percent"], 2)),
        Column("fine-tuned", "%", lambda row: plus_minus(row, "fine_tuned_top1_percent", gap="")),
        Column("to base", "points", lambda row: plus_minus(row, "base_difference_points", "+", gap="")),
        *(Column("ms at", f"b {batch}", latency(batch, p95=False)) for batch in sorted({*batches[:1], *batches[-1:]})),
        Column("speed-up", "(promised)", _speedup),
        Column("rank", "", rank),
    ]


# ------------------------------------------------------------------------------------------ numbers as text


def fixed(value: Any, decimals: int, sign: str = "") -> str:
    """A number with so many decimals and never a minus zero; nothing for a blank."""
    return "" if pd.isna(value) else f"{round(float(value), decimals) + 0.0:{sign}.{decimals}f}"


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits and without an exponent; nothing for a blank."""
    if pd.isna(value) or value == 0:
        return fixed(value, 0)
    return fixed(value, max(0, digits - 1 - floor(log10(abs(value)))))


def plus_minus(row: Row, name: str, sign: str = "", gap: str = " ") -> str:
    """mean ± half-width, two decimals; the mean alone where there is no interval."""
    half_width = row[re.sub("(_top1_percent|_points)$", "_half_width_points", name)]
    return fixed(row[name], 2, sign) + ("" if pd.isna(half_width) else f" ±{gap}{half_width:.2f}")


def rank(row: Row) -> str:
    """The best and the worst place that a row's paired intervals leave it: "2-5"."""
    best, worst = fixed(row["rank"], 0), fixed(row["rank_worst"], 0)
    return best if best == worst else f"{best}-{worst}"


def tokens(row: Row) -> str:
    """Achieved tokens, the request where it differs, and those alive where not all are."""
    live = f" ({brief(row['tokens_live'])} live)" if row["tokens_live"] else ""
    if row["unreduced"] or row["tokens_achieved"] == row["tokens_requested"]:
        return _achieved(row) + live
    return f"{_achieved(row)} of {'≤' if row['count'] == 'at_most' else ''}{brief(row['tokens_requested'])}{live}"


def _achieved(row: Row) -> str:
    return "all" if row["unreduced"] or row["count"] == "masked" else brief(row["tokens_achieved"])


def _macs(row: Row) -> str:
    """Share of MACs, and what it would be without the tokens that are padding or hidden."""
    live = fixed(100 * row["live_macs_share"], 1)
    return fixed(100 * row["macs_share"], 1) + (f" ({live} live)" if live else "")


def _shown(row: Row) -> str:
    """Achieved tokens, or those alive where none is removed."""
    return f"{brief(row['tokens_live'])} live" if row["count"] == "masked" else _achieved(row)


def brief(counts: str) -> str:
    """Token counts; a long list by its ends: "184..41 (12)"."""
    listed = counts.split(",")
    return counts if len(listed) <= LONG_LIST else f"{listed[0]}..{listed[-1]} ({len(listed)})"


def latency(batch: int, p95: bool = True) -> Callable[[Row], str]:
    """Milliseconds at a batch size: median (95th percentile)."""

    def text(row: Row) -> str:
        middle, late = (significant(row[f"latency_b{batch}_{name}_ms"], 3) for name in ("median", "p95"))
        return f"{middle} ({late})" if middle and p95 else middle

    return text


def _ratio(batch: int) -> Callable[[Row], str]:
    return lambda row: fixed(100 * row[f"latency_b{batch}_ratio"], 1)


def _speedup(row: Row) -> str:
    promised = fixed(row["speedup_promised"], 2)
    return " ".join(filter(None, (fixed(row["speedup_reached"], 2), promised and f"({promised})")))


def _seeds(row: Row) -> str:
    n, expected = row["seeds"], row["seeds_expected"]
    return str(n) if n == expected else f"{n} of {expected}"


# ------------------------------------------------------------------------------------------ groups and holes


def groups(frame: pd.DataFrame) -> Iterator[tuple[str, list[Row]]]:
    """(schedule, rows) in the frame's order: the base under its own first."""
    for schedule, group in frame.groupby("schedule", sort=False):
        yield schedule, group.to_dict("records")


def sections(frame: pd.DataFrame) -> Iterator[tuple[str, list[Row]]]:
    """(schedule, rows) with the base on top of every schedule's rows; the base alone if there is nothing else."""
    base, reduced = frame[frame["unreduced"]], frame[~frame["unreduced"]]
    for schedule, rows in groups(base if reduced.empty else reduced):
        yield schedule, rows if reduced.empty else base.to_dict("records") + rows


def failure(row: Row) -> str:
    """What a row without numbers says instead of them; nothing for the others."""
    if row["seeds"]:
        return ""
    return row["error"] if row["error"].startswith("unreachable: ") else f"failed: {row['error']}"


def left_out(frame: pd.DataFrame) -> list[str]:
    """Rows of which some seeds failed, in words."""
    rows = frame[(frame["seeds"] > 0) & (frame["error"] != "")].to_dict("records")
    return [f"{row['method']}, {row['schedule']}: {row['error']}" for row in rows]
