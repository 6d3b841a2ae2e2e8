"""Learned counts: the result of a search as a sentence, K against depth as a figure, and what the counts bring.

They are compared with a fixed rate at the same cost: the same methods on the same seeds, paired as in `compare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

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

SAME_COST = 2.0  # percent: a fixed rate is compared if the typical method's MACs differ by at most this
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
            for fixed_rate, compared in at_the_same_cost(comparison.records, f"learned:{name}"):
                lines += [f"### learned:{name} and {fixed_rate} ({comparison.machine})", ""]
                lines += [_sentence(compared, fixed_rate), "", *table(HEADINGS, map(_cells, _ordered(compared)))]
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
        f" {judged['macs_share']:.1%} of the MACs under {found.method},"
        f" validation top-1 {judged['validation_top1']:.2%} off the shelf"
    )


def at_the_same_cost(records: Sequence[Record], learned: str) -> Iterator[tuple[str, Changes]]:
    """The schedules that are a share of the MACs and cost as much as learned counts, each compared with them.

    learned: the text of the schedule. In a comparison, side A is the fixed rate and side B the learned counts.
    """
    own = [record for record in records if record.schedule == learned]
    shares = dict.fromkeys(record.schedule for record in records if record.schedule.startswith("macs="))
    for schedule in shares if own else ():
        others = [replace(record, schedule=learned) for record in records if record.schedule == schedule]
        compared = changes(others, own)
        costs = [row.macs_percent for row in compared.rows if row.paired]
        if costs and abs(median(costs)) <= SAME_COST:
            yield schedule, compared


def _sentence(compared: Changes, fixed_rate: str) -> str:
    rows = [row for row in compared.rows if row.paired]
    stage = "Fine-tuned" if compared.by == FINE_TUNED else "Off the shelf"
    judged = ", ".join(verdicts(compared, rows))
    return f"{stage}, learned counts minus {escape(fixed_rate)}: of {counted(len(rows), 'method')}, {escape(judged)}."


def _ordered(compared: Changes) -> list[Change]:
    """The rows with a difference, the largest gain first."""
    return sorted((row for row in compared.rows if row.paired), key=lambda row: -row.difference.value)


def _cells(row: Change) -> list[str]:
    top1 = (fixed(value, 1) for value in row.top1)
    return [escape(row.method), *top1, points_text(row), verdict(row), f"{fixed(row.macs_percent, 1, '+')} %"]


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
            panel.plot([one.patches, *one.counts], label=f"{name}: {share:.0%} of the MACs", **look)
            panel.plot(range(1, len(one.kept) + 1), one.kept, "_", color=look["color"], markersize=12, alpha=0.6)
        ticks = range(len(one.counts) + 1)
        panel.set_xticks(ticks, ["input", *(f"block {block}" for block in ticks[:-1])], rotation=45 * (len(ticks) > 7))
        panel.set_ylabel("K: body tokens after the block (dash: as learned)")
        panel.set_ylim(bottom=0)
        panel.legend()
        path = folder / "figures" / "learned.png"
        save(figure, path)
    return path
