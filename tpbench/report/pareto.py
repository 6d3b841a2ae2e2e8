"""The figure: accuracy against multiply-adds and against the clock."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from tpbench.record import replace_bytes
from tpbench.report.frame import batch_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours that show on white. 7 colours and 9 markers: 63 pairs before one comes again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4B1E")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK, GREY, FAINT = "#222222", "#777777", "#C9CDD2"
LEGEND_COLUMNS = 6
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
    """A column of the comparison, what to call it, and the column of its interval's half-width."""

    name: str
    label: str
    half_width: str = ""


def draw(frame: pd.DataFrame, path: Path, methods: Sequence[str] = ()) -> Path:
    """One machine's comparison as a PNG. `methods` fixes who has which colour, so that figures agree."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: it draws by Agg and keeps no state

    looks = _looks(methods or sorted(frame.loc[~frame["unreduced"], "method"].unique()))
    with rc_context(STYLE):
        size = (11.5, 5.2 + 0.23 * ceil((len(looks) + 2) / LEGEND_COLUMNS))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        top1 = _accuracy(frame)
        for panel, cost in zip(panels, _costs(frame)):
            _panel(panel, frame, cost, top1, looks)
        panels[0].set_ylabel(top1.label)
        _titles(frame, panels, top1)
        _legend(figure, frame, panels, top1)
        save(figure, path)
    return path


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no other beats in both, from cheap to costly."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def _accuracy(frame: pd.DataFrame) -> Axis:
    """Fine-tuned top-1; off the shelf where nothing was fine-tuned."""
    fine_tuned = frame["fine_tuned_top1_percent"].notna().any()
    stem, words = ("fine_tuned", "fine-tuned") if fine_tuned else ("off_the_shelf", "off the shelf")
    return Axis(f"{stem}_top1_percent", f"top-1, {words} (%)", f"{stem}_half_width_points")


def _costs(frame: pd.DataFrame) -> tuple[Axis, Axis]:
    largest = max(batch_sizes(frame), default=None)
    at_batch = f" at batch {largest}" if largest else ""
    # The ratio and not the milliseconds: it compares samples taken in turns, whatever else the machine did meanwhile.
    clock = Axis(f"latency_b{largest}_ratio", f"latency{at_batch}, relative to the unreduced model")
    return Axis("gmacs", "multiply-adds per image (GMACs)"), clock


def _looks(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        method: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for index, method in enumerate(methods)
    }


def _panel(panel: Axes, frame: pd.DataFrame, cost: Axis, top1: Axis, looks: dict[str, dict[str, str]]) -> None:
    panel.set_xlabel(cost.label)
    known = frame.dropna(subset=[cost.name, top1.name]) if cost.name in frame else frame.iloc[:0]
    if known.empty:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=GREY)
        return
    _front_line(panel, known, cost, top1)
    for method, look in looks.items():
        own = known[known["method"] == method].sort_values(cost.name)
        bars = {"ecolor": look["color"], "alpha": 0.5 if len(looks) <= 6 else 0.22}
        _method(panel, own[cost.name], own[top1.name], own[top1.half_width], look | {"label": method}, bars)
    for _, base in known[known["unreduced"]].iterrows():
        _base(panel, base, cost, top1)
    low, high = known[top1.name].min(), known[top1.name].max()
    margin = max(0.06 * (high - low), 0.1)
    panel.set_ylim(low - margin, high + margin)  # by the means: a wide interval may leave the frame
    panel.margins(x=0.06)
    panel.locator_params(axis="x", nbins=7)


def _front_line(panel: Axes, known: pd.DataFrame, cost: Axis, top1: Axis) -> None:
    x, y = zip(*front(list(zip(known[cost.name], known[top1.name]))))
    look = {"color": FAINT, "linewidth": 5.5, "alpha": 0.75, "solid_capstyle": "round", "solid_joinstyle": "round"}
    panel.plot(x, y, drawstyle="steps-post", zorder=1, label="Pareto front", **look)


def _method(panel: Axes, x: pd.Series, y: pd.Series, half_width: pd.Series, look: dict, bars: dict) -> None:
    panel.errorbar(x, y, yerr=half_width.fillna(0), fmt="none", elinewidth=0.8, zorder=2, **bars)
    size = 8 if look["marker"] in "PX" else 6.5
    shape = {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6, "linewidth": 1.1}
    panel.plot(x, y, zorder=3, alpha=0.95, **look, **shape)


def _base(panel: Axes, base: pd.Series, cost: Axis, top1: Axis) -> None:
    panel.axhline(base[top1.name], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    look = {"marker": "*", "markersize": 15, "color": INK, "markeredgecolor": "white", "linestyle": "none"}
    panel.plot(base[cost.name], base[top1.name], label=f"{base['method']} (unreduced)", zorder=4, **look)


def _titles(frame: pd.DataFrame, panels: Sequence[Axes], top1: Axis) -> None:
    """What was measured where, and what the bars are."""
    seeds = frame[top1.name.replace("top1_percent", "seeds")].max()
    bars = f"bars: 95 % intervals over {seeds} seeds, cut at the frame" if seeds > 1 else "one seed, no intervals"
    title = f"{frame['recipe'].iloc[0]} on {frame['machine'].iloc[0]}"
    panels[0].set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    panels[1].set_title(bars, loc="right", fontsize=9, color=GREY, pad=10)


def _legend(figure: Figure, frame: pd.DataFrame, panels: Sequence[Axes], top1: Axis) -> None:
    """One legend for both panels: the front, the base, then the methods by falling mean accuracy."""
    accuracy = frame[~frame["unreduced"]].groupby("method")[top1.name].mean()
    entries = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}
    labels = sorted(entries, key=lambda label: (-accuracy.get(label, 1e3), label))
    if labels:
        columns = min(LEGEND_COLUMNS, len(labels))
        figure.legend([entries[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 128 colours (a third of the size), in one step; the same figure gives the same bytes."""
    from PIL import Image

    drawn, picture = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, format="png", optimize=True)
    replace_bytes(path, picture.getvalue())
