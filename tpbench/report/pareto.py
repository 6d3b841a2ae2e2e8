"""The figure: accuracy against multiply-adds and against the clock."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from tpbench.record import replace_bytes
from tpbench.report.frame import Comparison, batch_sizes
from tpbench.report.layout import half_width_of
from tpbench.report.methods import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours that show on white. 7 colours and 9 markers: 63 pairs before one comes again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4B1E")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK, GREY, FAINT = "#222222", "#777777", "#C9CDD2"
EMPHASISED = 8  # methods with a name of their own
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
}


class Axis(NamedTuple):
    """A column of the comparison, and what to call it."""

    name: str
    label: str


def family_colour(family: str) -> str:
    """A family's colour in every figure; grey for what belongs to none."""
    return dict(zip(FAMILIES, COLOURS)).get(family, GREY)


def draw(comparison: Comparison, path: Path) -> Path:
    """One machine's comparison as a PNG: a point a row, coloured by family, with the names of those on the fronts."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: it draws by Agg and keeps no state

    frame = comparison.frame
    words = "fine-tuned" if comparison.by == "fine_tuned" else "off the shelf"
    top1 = Axis(comparison.top1, f"top-1, {words} (%)")
    with rc_context(STYLE):
        figure = Figure(figsize=(11.5, 5.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        for panel, cost in zip(panels, _costs(frame)):
            _panel(panel, comparison, cost, top1)
        panels[0].set_ylabel(top1.label)
        _titles(comparison, panels)
        _legend(figure, panels)
        save(figure, path)
    return path


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no other beats in both, from cheap to costly."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def _costs(frame: pd.DataFrame) -> tuple[Axis, Axis]:
    largest = max(batch_sizes(frame), default=None)
    at_batch = f" at batch {largest}" if largest else ""
    # The ratio and not the milliseconds: it compares samples taken in turns, whatever else the machine did meanwhile.
    clock = Axis(f"latency_b{largest}_ratio", f"latency{at_batch}, relative to the unreduced model")
    return Axis("gmacs", "multiply-adds per image (GMACs)"), clock


def _panel(panel: Axes, comparison: Comparison, cost: Axis, top1: Axis) -> None:
    frame = comparison.frame
    panel.set_xlabel(cost.label)
    known = frame.dropna(subset=[cost.name, top1.name]) if cost.name in frame else frame.iloc[:0]
    if known.empty:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=GREY)
        return
    points = front(list(zip(known[cost.name], known[top1.name])))
    look = {"color": FAINT, "linewidth": 5.5, "alpha": 0.75, "solid_capstyle": "round", "solid_joinstyle": "round"}
    panel.plot(*zip(*points), drawstyle="steps-post", zorder=1, label="Pareto front", **look)
    reduced = known[~known["unreduced"]]
    for family, own in reduced.groupby("family", sort=True):
        bars = own[half_width_of(top1.name)].fillna(0)
        colour = family_colour(family)
        panel.errorbar(
            own[cost.name], own[top1.name], yerr=bars, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.25, zorder=2
        )
        panel.scatter(own[cost.name], own[top1.name], s=26, color=colour, edgecolor="white", label=family, zorder=3)
    for _, base in known[known["unreduced"]].iterrows():
        _base(panel, base, cost, top1)
    low, high = known[top1.name].min(), known[top1.name].max()
    margin = max(0.06 * (high - low), 0.1)
    panel.set_ylim(low - margin, high + margin)  # by the means: a wide interval may leave the frame
    panel.margins(x=0.1)
    panel.locator_params(axis="x", nbins=7)
    _labels(panel, reduced, set(points), cost, top1, comparison.contrast.reference)


def _labels(
    panel: Axes, rows: pd.DataFrame, points: set[tuple[float, float]], cost: Axis, top1: Axis, reference: str
) -> None:
    """The names of rows on the front and of the reference, each once, as far as they have room."""
    ordered = rows.sort_values(top1.name, ascending=False)
    on_front = [place in points for place in zip(ordered[cost.name], ordered[top1.name])]
    named = pd.concat([ordered[ordered["method"] == reference].head(1), ordered[on_front]])
    wide = max(panel.get_xlim()[1] - panel.get_xlim()[0], 1e-9)
    high = max(panel.get_ylim()[1] - panel.get_ylim()[0], 1e-9)
    taken: list[tuple[float, float]] = []
    for row in named.drop_duplicates(subset="method").to_dict("records"):
        x, y = row[cost.name] / wide, row[top1.name] / high
        if len(taken) < EMPHASISED and all(abs(x - u) > 0.16 or abs(y - v) > 0.05 for u, v in taken):
            taken.append((x, y))
            look = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8}
            panel.annotate(row["method"], (row[cost.name], row[top1.name]), color=family_colour(row["family"]), **look)


def _base(panel: Axes, base: pd.Series, cost: Axis, top1: Axis) -> None:
    panel.axhline(base[top1.name], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    look = {"marker": "*", "markersize": 15, "color": INK, "markeredgecolor": "white", "linestyle": "none"}
    panel.plot(base[cost.name], base[top1.name], label=f"{base['method']} (unreduced)", zorder=4, **look)


def _titles(comparison: Comparison, panels: Sequence[Axes]) -> None:
    """What was measured where, and what the bars are."""
    seeds = max((table.seeds for table in comparison.tables.values()), default=0)
    known = comparison.frame[half_width_of(comparison.top1)].notna().any()
    bars = f"bars: 95 % intervals over {seeds} seeds, cut at the frame" if known else "too few seeds for intervals"
    title = f"{comparison.records[0].recipe} on {comparison.machine}"
    panels[0].set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    panels[1].set_title(bars, loc="right", fontsize=9, color=GREY, pad=10)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for both panels: the front, the families, the base."""
    entries = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 128 colours (a third of the size), in one step; the same figure gives the same bytes."""
    from PIL import Image

    drawn, picture = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, format="png", optimize=True)
    replace_bytes(path, picture.getvalue())
