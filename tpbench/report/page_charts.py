"""The charts of the report page as Vega-Lite specifications. The page supplies their data and colours.

Charts read named data: `rows` (a study's rows), `front` (those on its Pareto front), `chosen` (the rows of one
schedule), `tokens` and `layers`. The parameter `on` is false, or an object whose keys are the chosen rows; all others
then fade. Families have the colours and symbols of the page's theme, in the order of FAMILIES_SHOWN. The `tooltip` of a
row is taken from the page's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from tpbench.report.families import BETTER, EQUIVALENT, WORSE
from tpbench.report.layers import OTHER
from tpbench.report.methods import FAMILIES_SHOWN

KIND_COLOURS = {"attention": "#56B4E9", "reducer": "#D55E00", "MLP": "#9AA3AD", OTHER: "#6B7280"}
QUIET = 0.4  # opacity of rows that are not emphasised
FADED = 0.07  # opacity of rows that are not chosen
CHOSEN = "(on === false || on[datum.id] === true)"
LOUD = "(datum.ours === true || datum.base === true || isValid(datum.front))"
DECIDED = [BETTER, WORSE, EQUIVALENT]
TOOLTIP = alt.ExprRef("datum.tooltip")
HEIGHT = 340  # pixels
LOW_HEIGHT = 240  # pixels
STAR = "M0,-1L.25,-.31L.95,-.31L.38,.12L.59,.81L0,.38L-.59,.81L-.38,.12L-.95,-.31L-.25,-.31Z"
STEP = 17  # pixels of a line in a list of methods
Range = tuple[float, float]


class Cost(NamedTuple):
    """The cost that accuracy is drawn against: a field of the rows, the title of the axis, and its direction."""

    field: str
    title: str
    less_is_better: bool = True


def schema() -> str:
    """The version of Vega-Lite that the charts are made for, such as "6.4"."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def accuracy(cost: Cost, top1: str, shown: Range, intervals: bool) -> dict[str, Any]:
    """Top-1 against a cost: a point for each row, the Pareto front as a line, and a few names.

    top1: the title of the vertical axis; shown: its limits; intervals: whether any row has one.
    """
    rows = alt.Chart(alt.NamedData("rows")).transform_filter("datum.base !== true")
    base = alt.Chart(alt.NamedData("rows")).transform_filter("datum.base === true")
    x = alt.X(cost.field, type="quantitative", title=cost.title, scale=alt.Scale(zero=False, nice=False, padding=24))
    y = alt.Y("top1:Q", title=top1, scale=alt.Scale(domain=list(shown), zero=False, nice=False))
    steps = "step-after" if cost.less_is_better else "step-before"
    front = alt.Chart(alt.NamedData("front")).mark_line(interpolate=steps, style="front", clip=True)
    bars = rows.transform_filter(f"isValid(datum.low) && isValid(datum.{cost.field})").mark_rule(
        clip=True, tooltip=TOOLTIP
    )
    points = rows.mark_point(filled=True, clip=True, tooltip=TOOLTIP)
    names = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter("isValid(datum.label)")
        .mark_text(style="name", dx=8, dy=-9, align="left", tooltip=TOOLTIP)
    )
    size = alt.when(LOUD).then(alt.value(110)).otherwise(alt.value(50))
    return _chart(
        front.encode(x=x, y=y),
        base.mark_rule(style="zero").encode(y=y),
        bars.encode(x=x, y="low:Q", y2="high:Q", color=_family(), opacity=_opacity(0.3)) if intervals else None,
        points.encode(x=x, y=y, color=_family(), shape=_symbol(), opacity=_opacity(), size=size),
        base.mark_point(shape=STAR, style="base", size=170, filled=True, tooltip=TOOLTIP).encode(x=x, y=y),
        names.encode(x=x, y=y, text="label:N", opacity=_opacity()),
        height=HEIGHT,
    )


def forest(methods: Sequence[str], reference: str, margin: float, shown: Range, intervals: bool) -> dict[str, Any]:
    """The difference of each method to the reference at a schedule, filled if it is better, worse or equivalent.

    methods: their order from top to bottom; shown: the limits of the axis in points.
    """
    rows = alt.Chart(alt.NamedData("chosen"))
    y = alt.Y("method:N", title=None, scale=alt.Scale(domain=list(methods)))
    scale = alt.Scale(domain=list(shown), zero=False, nice=False)
    x = alt.X("difference:Q", title=f"top-1 minus that of {reference}, points", scale=scale)
    band = alt.Chart(alt.InlineData([{"from": -margin, "to": margin}])).mark_rect(style="margin", clip=True)
    zero = alt.Chart(alt.InlineData([{"at": 0}])).mark_rule(style="zero")
    own = rows.transform_filter("datum.verdict === 'reference'").mark_point(
        shape="diamond", style="base", size=70, filled=True
    )
    bars = rows.transform_filter("isValid(datum.least)").mark_rule(strokeWidth=2, clip=True, tooltip=TOOLTIP)
    filled = alt.when(f"indexof({DECIDED}, datum.verdict) >= 0").then(alt.value(1.0)).otherwise(alt.value(0.0))
    points = rows.mark_point(size=60, strokeWidth=2, clip=True, tooltip=TOOLTIP)
    return _chart(
        band.encode(x=alt.X("from:Q", scale=scale), x2="to:Q"),
        zero.encode(x=alt.X("at:Q", scale=scale)),
        own.encode(x=alt.XDatum(0), y=y),
        bars.encode(x="least:Q", x2="most:Q", y=y, color=_family(), opacity=_opacity(0.8)) if intervals else None,
        points.encode(
            x=x,
            y=y,
            color=_family(),
            fill=alt.Fill("family:N", scale=alt.Scale(domain=list(FAMILIES_SHOWN)), legend=None),
            fillOpacity=filled,
            opacity=_opacity(0.8),
        ),
        height=STEP * len(methods),
    )


def speedup(intervals: bool) -> dict[str, Any]:
    """Measured against promised speed-up; rows on the broad line reach what multiply-adds promise."""
    known = "isValid(datum.promised) && isValid(datum.reached)"
    rows = alt.Chart(alt.NamedData("rows")).transform_filter(f"{known} && datum.base !== true")
    base = alt.Chart(alt.NamedData("rows")).transform_filter(f"{known} && datum.base === true")
    x = alt.X("promised:Q", title="speed-up promised by multiply-adds", scale=alt.Scale(zero=False, padding=14))
    y = alt.Y("reached:Q", title="speed-up measured", scale=alt.Scale(zero=False))
    even = alt.Chart(alt.InlineData([{"at": 1}])).mark_rule(style="zero")
    bars = rows.transform_filter("isValid(datum.slowest)").mark_rule(tooltip=TOOLTIP)
    points = rows.mark_point(filled=True, size=70, tooltip=TOOLTIP)
    return _chart(
        alt.Chart(alt.NamedData("rows")).transform_filter(known).mark_line(style="front").encode(x=x, y="promised:Q"),
        even.encode(y="at:Q"),
        bars.encode(x=x, y="slowest:Q", y2="fastest:Q", color=_family(), opacity=_opacity(0.3)) if intervals else None,
        base.mark_point(shape=STAR, style="base", size=170, filled=True, tooltip=TOOLTIP).encode(x=x, y=y),
        points.encode(x=x, y=y, color=_family(), shape=_symbol(), opacity=_opacity()),
        height=HEIGHT,
    )


def tokens() -> dict[str, Any]:
    """Tokens after each block, one line for each method."""
    rows = alt.Chart(alt.NamedData("tokens"))
    x = alt.X("block:O", title="after block", axis=alt.Axis(labelAngle=0))
    y = alt.Y("tokens:Q", title="tokens (patches)")
    line = rows.mark_line(interpolate="step-after", strokeWidth=2)
    points = rows.mark_point(filled=True, size=30, tooltip=TOOLTIP)
    return _chart(
        line.encode(x=x, y=y, detail="id:N", color=_family(), opacity=_opacity()),
        points.encode(x=x, y=y, color=_family(), opacity=_opacity()),
        height=LOW_HEIGHT,
    )


def layers(field: str, title: str) -> dict[str, Any]:
    """A quantity of one method by block, stacked by kind of layer; ticks show the unreduced model."""
    rows = alt.Chart(alt.NamedData("layers"))
    x = alt.X("block:O", title="block", sort=None, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    kinds = alt.Scale(domain=list(KIND_COLOURS), range=list(KIND_COLOURS.values()))
    colour = alt.Color("kind:N", scale=kinds, legend=alt.Legend(orient="top", title=None))
    bars = rows.transform_filter("!datum.base").mark_bar(tooltip=TOOLTIP)
    ticks = rows.transform_filter("datum.base === true").mark_tick(style="unreduced", thickness=2)
    y = alt.Y(field, type="quantitative", title=title, stack="zero")
    return _chart(
        bars.encode(x=x, y=y, color=colour, order=alt.Order("order:Q")),
        ticks.encode(x=x, y=alt.Y(field, type="quantitative", aggregate="sum")),
        height=LOW_HEIGHT,
    )


def reducers(most: int) -> dict[str, Any]:
    """The reducer's share of each method's multiply-adds at a schedule. most: the largest number of rows."""
    rows = alt.Chart(alt.NamedData("chosen")).transform_filter("datum.reducer > 0")
    x = alt.X("reducer:Q", title="reducer, % of the model's multiply-adds")
    bars = rows.mark_bar(height=9, tooltip=TOOLTIP)
    y = alt.Y("method:N", sort="-x", title=None)
    return _chart(bars.encode(x=x, y=y, color=_family(), opacity=_opacity(0.75)), height=STEP * most)


def _chart(*parts: alt.Chart | None, height: Any) -> dict[str, Any]:
    """Layers, without those that are None, as one chart that is as wide as its place on the page."""
    chart = alt.layer(*(part for part in parts if part is not None)).add_params(alt.param(name="on", value=False))
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    spec = chart.properties(width="container", height=height, autosize=fit).to_dict(validate=False)
    del spec["config"]  # the page's theme is the only one
    return spec


def _family() -> alt.Color:
    return alt.Color("family:N", scale=alt.Scale(domain=list(FAMILIES_SHOWN)), legend=None)


def _symbol() -> Any:
    return alt.Shape("family:N", scale=alt.Scale(domain=list(FAMILIES_SHOWN)), legend=None)


def _opacity(quiet: float = QUIET) -> Any:
    """Full opacity for Token Pooling, the base and the front, less for other rows, and little for rows not chosen."""
    faded = alt.when(f"!{CHOSEN}").then(alt.value(FADED))
    return faded.when(LOUD).then(alt.value(1.0)).otherwise(alt.value(quiet))
