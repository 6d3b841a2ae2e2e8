"""The figure of accuracy against multiply-adds and against measured latency, for screen and print.

At most eight methods have a label: the reference, the ends of the fronts, others on the fronts from the most accurate
on, then the best of each family. Each is drawn as a line through its schedules, with the colour and marker of its
family; methods of one family differ in their dashes. Other methods are grey points.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from tpbench.report.cost_columns import SAME_MACS
from tpbench.report.first import fullest
from tpbench.report.frame import Comparison, batch_sizes
from tpbench.report.layout import half_width_of
from tpbench.report.methods import FAMILIES, NULL
from tpbench.report.saved import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours that are visible on white. 7 colours and 9 markers give 63 different pairs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4B1E")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK = "#222222"
GREY = "#777777"
FAINT = "#C9CDD2"
EMPHASISED = 8  # methods with a label
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#ECEEF0",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, as journals require
}
MASKED = "masked"  # `count` of rows that mask tokens without removing them; they save nothing and are not drawn
COST = "cost"  # the column of the panel's horizontal axis
PANEL_INCHES = (6.2, 5.0)
CAPTION_LETTERS = 95  # per line of the caption under one panel
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # of the labelled methods of a family, in turns
# The labels stand to the right of a panel: where their leader ends, their line sample and their text, as shares of the
# panel's width.
LEADER_END, SAMPLE_END, TEXT_START = 1.02, 1.08, 1.095
LINE_SHARE = 0.052  # distance between labels, as a share of the panel's height
SHOWN_BELOW = 1.5  # height of the frame, relative to the span of the upper nine tenths of the means


class Axis(NamedTuple):
    """The horizontal axis of a panel: a cost in percent of the unreduced model's, and its label."""

    values: pd.Series
    label: str
    slack: float = 0.0  # percent by which costs may differ and still count as equal


class Label(NamedTuple):
    """A method's name, beside its costliest point (x, y). look: how its line is drawn."""

    method: str
    family: str
    x: float
    y: float
    look: dict[str, Any]
    heavy: bool


def family_colour(family: str) -> str:
    """A family's colour in every figure; grey for methods without a family."""
    return dict(zip(FAMILIES, COLOURS)).get(family, GREY)


def dark(colour: str) -> str:
    """A darker shade of a colour, for text on white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{int(0.65 * part):02x}" for part in parts)


def family_marker(family: str) -> str:
    """A family's marker in every figure, so that families also differ in black and white."""
    return dict(zip(FAMILIES, MARKERS)).get(family, "o")


def draw(comparison: Comparison, path: Path) -> Path:
    """Draw one machine's comparison as a PNG, and a PDF beside it, with one panel for each measured cost.

    The schedules are those of the first tables.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which keeps global state

    frame = comparison.frame
    comparison = replace(comparison, frame=frame[frame["unreduced"] | frame["schedule"].isin(fullest(comparison))])
    costs = list(_costs(comparison.frame))
    named = emphasised(comparison, costs)
    with rc_context(STYLE):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(max(1, len(costs)) * width, height), layout="constrained")
        panels = figure.subplots(1, max(1, len(costs)), squeeze=False)[0]
        if not costs:
            panels[0].text(0.5, 0.5, "not measured", transform=panels[0].transAxes, ha="center", color=GREY)
        for panel, cost in zip(panels, costs):
            _panel(panel, comparison=comparison, cost=cost, named=named)
        words = "fine-tuned" if comparison.stage == "fine_tuned" else "off the shelf"
        panels[0].set_ylabel(f"top-1, {words} (%)")
        _titles(comparison, figure)
        save(figure, path, print_too=True)
    return path


def front(points: Sequence[tuple[float, float]], slack: float = 0.0) -> list[tuple[float, float]]:
    """The Pareto front of (cost, accuracy) points, from low to high cost.

    A point that is cheaper than a more accurate one by no more than `slack` is left out too.
    """
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            while slack and kept and cost - kept[-1][0] <= slack:
                kept.pop()
            kept.append((cost, accuracy))
    return kept


def _costs(frame: pd.DataFrame) -> Iterator[Axis]:
    """The horizontal axes: multiply-adds, and latency from a timing session or else from the records."""
    share = 100 * frame["macs_share"]
    if share.notna().any():
        base = frame.loc[frame["unreduced"], "gmacs"].dropna()
        per_image = f" ({1000 * base.iloc[0]:.3g} M per image)" if len(base) else ""
        yield Axis(share, f"multiply-adds, % of the unreduced model's{per_image}", slack=100 * SAME_MACS)
    timed = {int(match[1]): name for name in frame if (match := re.fullmatch(r"timed_b(\d+)_speedup", name))}
    if timed:
        values = 100 / frame[timed[max(timed)]]
        batch = max(timed)
    elif batch_sizes(frame):
        batch = max(batch_sizes(frame))
        # The ratio, not milliseconds: its samples were taken in turns, so other load affects both models alike.
        values = 100 * frame[f"latency_b{batch}_ratio"]
    else:
        return
    if values.notna().any():
        yield Axis(values, f"latency at batch {batch}, % of the unreduced model's")


# ------------------------------------------------------------------------------------------ which methods are labelled


def emphasised(comparison: Comparison, costs: Sequence[Axis]) -> list[str]:
    """The methods with a label, at most eight: the reference, the fronts (their ends first), the best of families."""
    frame = comparison.frame
    top1 = comparison.top1
    reduced = frame[~frame["unreduced"] & frame[top1].notna() & (frame["family"] != NULL) & (frame["count"] != MASKED)]
    reduced = reduced.sort_values(top1, ascending=False)
    fronts = []
    for cost in costs:
        own = reduced.assign(**{COST: cost.values}).dropna(subset=[COST])
        points = set(front(list(zip(own[COST], own[top1])), cost.slack))
        fronts.append([row["method"] for row in own.to_dict("records") if (row[COST], row[top1]) in points])
    order = [comparison.contrast.reference]
    for methods in fronts:
        order += [*methods[:1], *methods[-1:]]  # the most accurate and the cheapest
    for methods in fronts:
        order += methods
    means = reduced.groupby(["family", "method"], sort=False)[top1].mean().sort_values(ascending=False)
    best = means.reset_index().drop_duplicates("family")
    order += list(best["method"])
    known = set(reduced["method"])
    return [name for name in dict.fromkeys(order) if name in known][:EMPHASISED]


# ------------------------------------------------------------------------------------------ one panel


def _panel(panel: Axes, comparison: Comparison, cost: Axis, named: Sequence[str]) -> None:
    frame = comparison.frame
    top1 = comparison.top1
    known = frame.assign(**{COST: cost.values}).dropna(subset=[COST, top1])
    known = known[known["count"] != MASKED]
    panel.set_xlabel(cost.label)
    if known.empty:
        return
    low, high = _frame(panel, known=known, top1=top1, named=named)
    reduced = known[~known["unreduced"]]
    points = front(list(zip(known[COST], known[top1])), cost.slack)
    look = {"color": FAINT, "linewidth": 5, "alpha": 0.8, "solid_capstyle": "round", "solid_joinstyle": "round"}
    panel.plot(*zip(*points), drawstyle="steps-post", zorder=1, **look)
    quiet = reduced[~reduced["method"].isin(named)]
    panel.scatter(quiet[COST], quiet[top1].clip(lower=low), s=13, color="#AEB4BA", linewidths=0, zorder=2)
    labels = []
    of_family: dict[str, int] = {}
    for method in named:
        own = reduced[reduced["method"] == method].sort_values(COST)
        if own.empty:
            continue
        family = own.iloc[0]["family"]
        number = of_family[family] = of_family.get(family, -1) + 1
        heavy = method == comparison.contrast.reference
        labels.append(_method(panel, own, top1, dashes=DASHES[number % len(DASHES)], heavy=heavy))
    for base in known[known["unreduced"]].to_dict("records"):
        _base(panel, base, top1)
    _names(panel, labels=labels, height=high - low)


def _frame(panel: Axes, known: pd.DataFrame, top1: str, named: Sequence[str]) -> tuple[float, float]:
    """Set the limits of a panel from the means; return the lower and upper limit.

    Points far below the others become arrows on the lower edge, unless they are labelled.
    """
    means = known[top1]
    high = means.max()
    usual = high - means.quantile(0.1)
    lowest = max(means.min(), high - max(SHOWN_BELOW * usual, 1.0))
    lowest = min([lowest, *means[known["method"].isin(named)]])
    margin = max(0.06 * (high - lowest), 0.1)
    low = lowest - margin
    panel.set_ylim(low, high + margin)
    below = known[means < low]
    panel.scatter(below[COST], [low + 0.3 * margin] * len(below), marker="$↓$", s=34, color=GREY, zorder=5)
    left = known[COST].min()
    wide = max(known[COST].max() - left, 1.0)
    panel.set_xlim(left - 0.06 * wide, left + 1.06 * wide)
    return low, high + margin


def _method(panel: Axes, own: pd.DataFrame, top1: str, dashes: Any, heavy: bool) -> Label:
    """Draw a labelled method, its schedules joined by a line, with intervals. heavy: emphasise it, as the reference."""
    row = own.iloc[-1]
    look = {"color": family_colour(row["family"]), "marker": family_marker(row["family"]), "linestyle": dashes}
    look |= {"linewidth": 2.4, "markersize": 7} if heavy else {"linewidth": 1.2, "markersize": 5.5}
    look |= {"markeredgecolor": "white"}
    bars = own[half_width_of(top1)].fillna(0)
    panel.errorbar(
        own[COST], own[top1], yerr=bars, fmt="none", ecolor=look["color"], elinewidth=1, alpha=0.45, zorder=3
    )
    panel.plot(own[COST], own[top1], zorder=4, **look)
    x = float(row[COST])
    y = float(row[top1])
    return Label(row["method"], family=row["family"], x=x, y=y, look=look, heavy=heavy)


def _base(panel: Axes, base: dict[str, Any], top1: str) -> None:
    panel.axhline(base[top1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
    look = {"marker": "*", "markersize": 14, "color": INK, "markeredgecolor": "white", "linestyle": "none"}
    panel.plot(base[COST], base[top1], zorder=4, **look)
    look = {"xytext": (2, 3), "textcoords": "offset points", "fontsize": 8.5, "in_layout": False}
    panel.annotate(f"{base['method']}, unreduced", (panel.get_xlim()[0], base[top1]), color=INK, **look)


def _names(panel: Axes, labels: Sequence[Label], height: float) -> None:
    """Write the labels in a column to the right of the panel, each joined to its point by a grey line.

    The uppermost label of a family names it; the others have its colour and marker.
    """
    beside = panel.get_yaxis_transform()  # x: share of the panel's width; y: top-1
    ordered = sorted(labels, key=lambda label: label.y)
    uppermost = {label.family: label for label in ordered}
    heights = spread([label.y for label in ordered], LINE_SHARE * height, panel.get_ylim()[1])
    for label, y in zip(ordered, heights):
        leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
        where = {"textcoords": beside, "annotation_clip": False, "in_layout": False, "zorder": 1.5}
        panel.annotate("", (label.x, label.y), xytext=(LEADER_END, y), arrowprops=leader, **where)
        middle = (LEADER_END + SAMPLE_END) / 2
        sample = {"transform": beside, "clip_on": False, **label.look}
        panel.plot([LEADER_END, middle, SAMPLE_END], [y, y, y], markevery=[1], **sample)
        weight = "bold" if label.heavy else "normal"
        family = f"  {label.family}" if uppermost[label.family] is label else ""
        text = {"transform": beside, "va": "center", "fontsize": 8.5}
        name = panel.text(TEXT_START, y, label.method, color=INK, fontweight=weight, **text)
        if family:
            panel.annotate(family, (1, 0.5), xycoords=name, va="center", color=GREY, fontsize=8.5)


def spread(heights: Sequence[float], apart: float, top: float) -> list[float]:
    """Ascending heights, moved so that neighbours are at least `apart` from each other and none lies above `top`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + apart) if moved else height)
    limit = top
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - apart
    return moved


def _titles(comparison: Comparison, figure: Figure) -> None:
    """Write the title and the caption."""
    seeds = max((table.seeds for table in comparison.tables.values()), default=0)
    known = comparison.frame[half_width_of(comparison.top1)].notna().any()
    bars = f"bars: 95 % intervals over {seeds} seeds" if known else "too few seeds for intervals"
    about = f"{comparison.records[0].recipe} on {comparison.machine}"
    how = f"{bars}; wide grey line: the best at every cost; grey points: other methods; arrows: points below the frame"
    letters = CAPTION_LETTERS * len(figure.axes)
    figure.suptitle(about, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.supxlabel(fill(how, letters), x=0.01, ha="left", fontsize=8, color=GREY)
