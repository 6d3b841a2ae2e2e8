"""The charts of the page, by study and section, and their data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from tpbench.report import first, layers, page_charts
from tpbench.report.layout import name_with_signs
from tpbench.report.methods import FAMILIES_SHOWN
from tpbench.report.page_charts import Cost, Range
from tpbench.report.page_rows import Study, drawn, number
from tpbench.report.page_table import Line
from tpbench.report.pareto import family_colour

MOST_LAYERED = 800  # rows, over all studies, whose layers are in the page
MEGA = 1e6
DARK = {"#7A4B1E": "#C48A52", "#0072B2": "#3E9BDC", "#777777": "#9AA3AD"}  # colours that are too dark on black
# Vega's names of symbols, so that families differ in shape as well as in colour.
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
GLYPHS = {  # the outlines of these symbols for the buttons, in a box from -1 to 1
    "circle": "M0,-.9A.9,.9,0,1,1,0,.9A.9,.9,0,1,1,0,-.9Z",
    "square": "M-.8,-.8H.8V.8H-.8Z",
    "triangle-up": "M0,-.9L.9,.8H-.9Z",
    "triangle-down": "M0,.9L.9,-.8H-.9Z",
    "triangle-right": "M.9,0L-.8,.9V-.9Z",
    "diamond": "M0,-1L1,0L0,1L-1,0Z",
    "cross": "M-1,-.3H-.3V-1H.3V-.3H1V.3H.3V1H-.3V.3H-1Z",
    "triangle-left": "M-.9,0L.8,.9V-.9Z",
}


class Figure(NamedTuple):
    """A chart and its place on the page.

    about: a description for readers who cannot see it. schedule: the schedule that the chart shows, if it is only one.
    """

    id: str
    section: str
    study: int
    title: str
    about: str
    note: str
    spec: dict[str, Any]
    schedule: str = ""


def figures(studies: Sequence[Study]) -> list[Figure]:
    """All charts, in the order of the page."""
    found: list[Figure] = []
    for study in studies:
        found += [*_accuracy(study), *_forests(study), *_layers(study), *_speedup(study)]
    return found


def _accuracy(study: Study) -> Iterator[Figure]:
    comparison = study.comparison
    tops = comparison.frame[comparison.top1].dropna()
    if tops.empty:
        return
    macs = Cost("macs", f"multiply-adds per image ({study.macs_unit.name})")
    margin = max(0.08 * (tops.max() - tops.min()), 0.1)
    shown = (float(tops.min() - margin), float(tops.max() + margin))
    words = "top-1, fine-tuned (%)" if comparison.stage == "fine_tuned" else "top-1, off the shelf (%)"
    seeds = max((table.seeds for table in comparison.tables.values()), default=0)
    bars = f"Bars: 95 % intervals over {seeds} seeds, cut at the frame." if study.has_intervals else NO_INTERVALS
    note = f"{bars} Broad line: the Pareto front. In full colour: Token Pooling and the front."
    yield Figure(
        f"macs-{study.number}",
        section="accuracy",
        study=study.number,
        title="Accuracy against multiply-adds",
        about=f"Top-1 of every row against its multiply-adds, {study.label}; the numbers are in the table.",
        note=note,
        spec=page_charts.accuracy(macs, top1=words, shown=shown, intervals=study.has_intervals),
    )
    batch, timing = timing_of(study)
    if batch is None:
        return
    for cost, title in _timed_costs(batch):
        about = f"Top-1 of every row against {cost.title}, {study.label}; the numbers are in the table."
        spec = page_charts.accuracy(cost, top1=words, shown=shown, intervals=study.has_intervals)
        yield Figure(
            f"{cost.field}-{study.number}",
            section="accuracy",
            study=study.number,
            title=title,
            about=about,
            note=f"{note} {timing}",
            spec=spec,
        )


def _timed_costs(batch: int) -> Iterator[tuple[Cost, str]]:
    """The horizontal axes that need measured time, and the titles of their charts."""
    yield Cost("ms", f"milliseconds, batch {batch}"), "Accuracy against latency"
    yield Cost("ips", f"images per second, batch {batch}", less_is_better=False), "Accuracy against throughput"


NO_INTERVALS = "No intervals: too few seeds."


def timing_of(study: Study) -> tuple[int | None, str]:
    """The batch size at which a study was timed, and a sentence about how; (None, "") if it was not timed."""
    if study.speeds:
        return next(iter(study.speeds.values())).row.batch, f"Timed in turns: {study.timed_at}."
    if study.batch is not None:
        return study.batch, "Times come from the records: each row took turns with the base, not with the other rows."
    return None, ""


def _forests(study: Study) -> Iterator[Figure]:
    comparison = study.comparison
    for place, section in enumerate(first.sections(comparison)):
        table = comparison.tables[section.title]
        rows = [row for _, own in section.groups for row in own if not row["unreduced"]]
        if not table.judgements or not rows:
            continue
        methods = [name_with_signs(row) for row in rows]
        note = (
            "Bars: 95 % intervals, not corrected. Filled: better, worse or equivalent after Holm. Shaded: within the"
            " margin."
        )
        yield Figure(
            f"forest-{study.number}-{place}",
            section="differences",
            study=study.number,
            title=section.title,
            about=f"Difference of every method to {table.reference} at {section.title}, {study.label}; see the table.",
            note=note if study.has_intervals else NO_INTERVALS,
            spec=page_charts.forest(
                methods,
                reference=table.reference,
                margin=table.margin,
                shown=_points_shown(rows, table.margin),
                intervals=study.has_intervals,
            ),
            schedule=section.title,
        )


def _points_shown(rows: Sequence[dict[str, Any]], margin: float) -> Range:
    """The limits of a forest plot in points. They are set by the means, so a wide interval may leave the frame."""
    means = [row["reference_difference_points"] for row in rows]
    widths = [row["reference_difference_half_width_points"] for row in rows]
    means = [mean for mean in means if mean == mean]
    usual = median([width for width in widths if width == width] or [0.0])
    return min([*means, -margin]) - usual - 0.5, max([*means, margin]) + usual + 0.5


def _layers(study: Study) -> Iterator[Figure]:
    known = layers.rows(study.comparison.records).values()
    if not any(row.layers for row in known):
        return
    timed = any(layer.seconds is not None for row in known for layer in row.layers)
    about = f"at the chosen schedule, {study.label}."
    one = "Ticks: the unreduced model."
    shown = [
        ("tokens", "Tokens after each block", "All methods.", page_charts.tokens()),
        ("mmacs", "Multiply-adds by block", one, page_charts.layers("mmacs", "million multiply-adds per image")),
    ]
    if timed:
        spec = page_charts.layers("ms", "milliseconds, largest batch")
        shown.append(("layer-ms", "Milliseconds by block", f"{one} Each layer timed by itself.", spec))
    frame = study.comparison.frame
    most = int((frame["reducer_share"] > 0).groupby(frame["schedule"]).sum().max())
    if most:
        note = "Rows whose reducer takes multiply-adds."
        shown.append(("reducer", "The reducer's share", note, page_charts.reducers(most)))
    for name, title, note, spec in shown:
        yield Figure(
            f"{name}-{study.number}",
            section="layers",
            study=study.number,
            title=title,
            about=f"{title} {about}",
            note=note,
            spec=spec,
        )


def _speedup(study: Study) -> Iterator[Figure]:
    batch, timing = timing_of(study)
    if batch is None:
        return
    note = f"Rows on the broad line reach what multiply-adds promise; rows below the dashed line are slower. {timing}"
    about = f"Measured against promised speed-up of every row at batch {batch}, {study.label}."
    spec = page_charts.speedup(intervals=bool(study.speeds))
    yield Figure(
        f"speedup-{study.number}",
        section="speed",
        study=study.number,
        title=f"At batch {batch}",
        about=about,
        note=note,
        spec=spec,
    )


# ------------------------------------------------------------------------------------------ data


def data(studies: Sequence[Study], lines: Sequence[Line], shown: Sequence[Figure]) -> dict[str, Any]:
    """The data of the page's scripts: rows by their number in the table, layers, specifications and the theme."""
    rows = []
    for study in studies:
        own = [line.id for line in lines if line.study == study.number]
        rows += [{"id": id, "study": study.number, **row} for id, row in zip(own, drawn(study))]
    specs = {figure.id: {"spec": figure.spec, "study": figure.study, "at": figure.schedule} for figure in shown}
    light = [family_colour(family) for family in FAMILIES_SHOWN]
    theme = {"light": light, "dark": [DARK.get(colour, colour) for colour in light], "symbols": SYMBOLS}
    theme["families"] = FAMILIES_SHOWN
    return {"rows": rows, "charts": specs, "theme": theme, **_by_layer(studies, lines)}


def _by_layer(studies: Sequence[Study], lines: Sequence[Line]) -> dict[str, Any]:
    """Tokens and layers by row, for the first MOST_LAYERED rows.

    A layer is [index in `places`, million multiply-adds, milliseconds].
    """
    places: dict[tuple[str, str], int] = {}
    tokens: dict[int, list[float | None]] = {}
    layered: dict[int, list[list[float | None]]] = {}
    for study in studies:
        known = layers.rows(study.comparison.records)
        for line in [line for line in lines if line.study == study.number]:
            row = known.get((line.row["schedule"], line.row["method"]))
            if row is None or len(layered) >= MOST_LAYERED:
                continue
            tokens[line.id] = [number(count) for count in row.tokens]
            layered[line.id] = [
                [
                    places.setdefault((layer.block, layer.kind), len(places)),
                    number(layer.macs / MEGA),
                    None if layer.seconds is None else number(1e3 * layer.seconds),
                ]
                for layer in row.layers
            ]
    return {"places": list(places), "tokens": tokens, "layers": layered}
