"""Learned counts: the result of a search as a sentence, K against depth as a figure, and what the counts bring.

They are compared with a fixed rate at the same cost: the same methods on the same seeds, paired as in `compare`.
Methods whose cost with learned counts is another one are listed and not judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tpbench.record import Learned, Record, read_learned
from tpbench.report.compare import Change, Changes, changes
from tpbench.report.compare_text import points_text, verdict, verdicts
from tpbench.report.frame import Comparison
from tpbench.report.layout import fixed
from tpbench.report.markdown import escape, table
from tpbench.report.pareto import COLOURS, MARKERS, STYLE
from tpbench.report.phrases import counted
from tpbench.report.saved import save
from tpbench.report.standings import FINE_TUNED

SAME_COST = 2.0  # percent: MACs that differ by at most this count as equal
HEADINGS = ("Method", "Fixed rate, top-1 %", "Learned counts, top-1 %", "Difference, points", "Verdict", "MACs")


def section(folder: Path, comparisons: Sequence[Comparison]) -> list[str]:
    """What the searches of a folder have learned, and how it compares with fixed rates; empty without searches."""
    found = saved(folder)
    if not found:
        return []
    lines = ["## Learned counts", ""]
    lines += [f"- [{name}.json](learned/{name}.json): {summary(one)}" for name, one in found.items()]
    lines += ["", "![K against depth](figures/learned.png)", ""]
    for comparison in comparisons:
        for name in found:
            for one in at_the_same_cost(comparison.records, f"learned:{name}", comparison.contrast.margin):
                lines += [f"### learned:{name} and {one.fixed_rate} ({comparison.machine})", "", _sentence(one), ""]
                lines += table(HEADINGS, map(_cells, _ordered(one.compared)))
    return lines


def saved(folder: Path) -> dict[str, Learned]:
    """The results of the searches of a folder, by the stem of their file."""
    return {path.stem: read_learned(path) for path in sorted((folder / "learned").glob("*.json"))}


def summary(found: Learned) -> str:
    """The result of a search in one line."""
    counts = ", ".join(map(str, found.counts))
    judged = found.off_the_shelf
    return (
        f"{found.search} learned {counts} of {found.patches} tokens after blocks 0 to {len(found.counts) - 1}:"
        f" {100 * judged['macs_share']:.1f} % of the MACs with {found.method},"
        f" validation top-1 {100 * judged['validation_top1']:.2f} % off the shelf"
    )


class AtTheSameCost(NamedTuple):
    """Learned counts compared with a fixed rate: side A is the fixed rate, side B the learned counts.

    compared: the methods whose MACs are equal within SAME_COST. unequal: the other methods.
    """

    fixed_rate: str
    compared: Changes
    unequal: list[Change]


def at_the_same_cost(records: Sequence[Record], learned: str, margin: float | None = None) -> Iterator[AtTheSameCost]:
    """The schedules that are a share of the MACs and cost a typical method as much as learned counts, compared.

    learned: the text of the schedule. margin: see `compare.changes`.
    """
    own = [record for record in records if record.schedule == learned]
    if not own:
        return
    shares = dict.fromkeys(record.schedule for record in records if record.schedule.startswith("macs="))
    for schedule in shares:
        others = [replace(record, schedule=learned) for record in records if record.schedule == schedule]
        known = [row for row in changes(others, own, margin=margin).rows if row.paired]
        if not known or not abs(median(row.macs_percent for row in known)) <= SAME_COST:
            continue
        equal = {row.method for row in known if abs(row.macs_percent) <= SAME_COST}
        if not equal:
            continue
        compared = changes(_of(others, equal), _of(own, equal), margin=margin)
        yield AtTheSameCost(schedule, compared, unequal=[row for row in known if row.method not in equal])


def _of(records: Sequence[Record], methods: Collection[str]) -> list[Record]:
    return [record for record in records if record.method in methods]


def _sentence(one: AtTheSameCost) -> str:
    rows = _ordered(one.compared)
    stage = "Fine-tuned" if rows[0].stage == FINE_TUNED else "Off the shelf"
    verdicts_of_all = ", ".join(verdicts(one.compared, rows))
    text = f"{stage}, learned counts minus {one.fixed_rate}: of {counted(len(rows), 'method')}, {verdicts_of_all}."
    if one.unequal:
        by_cost = sorted(one.unequal, key=lambda row: -row.macs_percent)
        others = [f"{row.method} ({_macs_text(row)}, {points_text(row)} points)" for row in by_cost]
        text += f" Not judged, because their MACs differ by more than {SAME_COST:g} %: {', '.join(others)}."
    return escape(text)


def _ordered(compared: Changes) -> list[Change]:
    """The rows with a difference, the largest gain first."""
    return sorted((row for row in compared.rows if row.paired), key=lambda row: -row.difference.value)


def _cells(row: Change) -> list[str]:
    top1 = (fixed(value, 1) for value in row.top1)
    return [escape(row.method), *top1, points_text(row), verdict(row), _macs_text(row)]


def _macs_text(row: Change) -> str:
    return f"{fixed(row.macs_percent, 1, '+')} %"


def draw(folder: Path) -> Path | None:
    """Draw K after each block for all files of FOLDER/learned into FOLDER/figures/learned.png.

    Return the path, or None if there are no files.
    """
    found = saved(folder)
    if not found:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        panel = figure.subplots()
        for number, (name, one) in enumerate(found.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            share = one.off_the_shelf["macs_share"]
            label = f"learned by {one.method}: {100 * share:.0f} % of the MACs ({name})"
            panel.plot([one.patches, *one.counts], label=label, **look)
            panel.plot(range(1, len(one.kept) + 1), one.kept, "_", color=look["color"], markersize=12, alpha=0.6)
        labels = ["input", *(f"block {block}" for block in range(len(one.counts)))]
        panel.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 7 else 0)
        panel.set_ylabel("body tokens after the block")
        panel.plot([], [], "_", color="grey", markersize=12, label="before rounding")
        panel.set_ylim(bottom=0)
        panel.legend()
        path = folder / "figures" / "learned.png"
        save(figure, path, print_too=True)
    return path
