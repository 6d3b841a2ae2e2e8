"""The forest plot: each method's difference to the reference with its interval, grouped by family."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tpbench.report import first
from tpbench.report.families import BETTER, EQUIVALENT, WORSE
from tpbench.report.frame import Comparison
from tpbench.report.layout import Row, spread_out
from tpbench.report.pareto import GREY, INK, STYLE, dark, family_colour
from tpbench.report.phrases import counted
from tpbench.report.saved import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 3  # schedules side by side
ROW_INCHES = 0.2
FILLED = (BETTER, WORSE, EQUIVALENT)  # not inferior says only that a large loss is excluded
Place = tuple[str, str]  # (family, method) of a line; the method "" stands for the family's heading


def draw(comparison: Comparison, path: Path) -> Path | None:
    """Draw a PNG, and a PDF beside it, with one panel for each schedule, or for three of them from first to last.

    Return the path, or None if there are no differences to draw.
    """
    sections = [section for section in first.sections(comparison) if comparison.tables[section.title].judgements]
    if not sections:
        return None
    sections, left_out = spread_out(sections, PANELS), len(sections) - PANELS
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which keeps global state

    places = _places(sections, reference=comparison.contrast.reference)
    with rc_context(STYLE):
        size = (3.0 + 3.2 * len(sections), 1.4 + ROW_INCHES * len(places))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(sections), sharey=True, squeeze=False)[0]
        for panel, section in zip(panels, sections):
            panel.tick_params(axis="y", length=0)
            rows = {row["method"]: row for _, own in section.groups for row in own}
            _panel(panel, comparison, schedule=section.title, lines=[(place, rows.get(place[1])) for place in places])
        _names(panels[0], places)
        _title(figure, comparison, left_out)
        save(figure, path, print_too=True)
    return path


def _places(sections: Sequence[first.Section], reference: str) -> list[Place]:
    """The lines from top to bottom: families in the order of the first panel, each with a heading.

    Rows without a difference in any panel are left out.
    """
    families: dict[str, list[str]] = {}
    for section in sections:
        for family, rows in section.groups:
            known = families.setdefault(family, [])
            own = (row for row in rows if row["method"] == reference or not isnan(row["reference_difference_points"]))
            known += [row["method"] for row in own if row["method"] not in known]
    return [(family, name) for family, names in families.items() if names for name in ("", *names)]


def _panel(panel: Axes, comparison: Comparison, schedule: str, lines: Sequence[tuple[Place, Row | None]]) -> None:
    table = comparison.tables[schedule]
    panel.axvspan(-table.margin, table.margin, color="#E3E6EA", zorder=0)
    panel.axvline(0, color=INK, linewidth=0.9)
    panel.grid(visible=False, axis="y")
    differences = [row["reference_difference_points"] for _, row in lines if row is not None]
    known = [difference for difference in differences if difference == difference]
    for height, ((family, name), row) in enumerate(lines):
        if name == table.reference:
            panel.plot(0, height, "D", color=INK, markersize=5)
        elif row is not None and row["reference_difference_points"] in known:
            _line(panel, row, height=height, colour=family_colour(family))
    widths = [row["reference_difference_half_width_points"] for _, row in lines if row is not None]
    usual = median([width for width in widths if width == width] or [0.0])
    panel.set_xlim(min([*known, -table.margin]) - 1.2 * usual - 0.5, max([*known, table.margin]) + 1.2 * usual + 0.5)
    panel.set_title(schedule, loc="left", fontsize=10, color=INK)
    panel.set_xlabel(f"top-1 minus that of {table.reference}, points")


def _line(panel: Axes, row: Row, height: int, colour: str) -> None:
    """Draw a mean with its 95 % interval; the marker is filled for the verdicts in FILLED, else hollow."""
    mean = row["reference_difference_points"]
    half_width = row["reference_difference_half_width_points"]
    if half_width == half_width:
        panel.plot([mean - half_width, mean + half_width], [height, height], color=colour, linewidth=1.6)
    face = colour if row["verdict"] in FILLED else "white"
    panel.plot(mean, height, "o", color=colour, markerfacecolor=face, markersize=5)


def _names(panel: Axes, places: Sequence[Place]) -> None:
    panel.set_yticks(range(len(places)), [name or family for family, name in places])
    panel.set_ylim(len(places) - 0.4, -0.6)
    for label, (family, name) in zip(panel.get_yticklabels(), places):
        if not name:
            label.set_color(dark(family_colour(family)))
            label.set_fontweight("bold")


def _title(figure: Figure, comparison: Comparison, left_out: int) -> None:
    about = f"{comparison.records[0].recipe} on {comparison.machine}"
    how = (
        "lines: 95 % intervals, not corrected (lines cut at the frame continue); filled: better, worse or equivalent"
        " after Holm's correction; band: the margin"
    )
    if left_out > 0:
        how += f"; {counted(left_out, 'more budget')} in the tables"
    figure.suptitle(about, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.supxlabel(how, fontsize=8.5, color=GREY)
