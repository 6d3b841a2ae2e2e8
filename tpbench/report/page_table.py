"""The table of the report page: declared columns, and the timing session's, over the rows of all studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tpbench.measure.speeds import Speed
from tpbench.report import timed
from tpbench.report.column import Column
from tpbench.report.columns import chosen
from tpbench.report.layout import Row, failure
from tpbench.report.page_rows import Study

ACCURACY = (
    "method",
    "schedule",
    "macs_share",
    "fine_tuned_top1_percent",
    "reference_difference_points",
    "verdict",
    "rank",
    "family",
    "off_the_shelf_top1_percent",
    "base_difference_points",
    "tokens_achieved",
    "reducer_share",
)
CLOCK = ("speedup_promised", "speedup_reached", "images_per_second")
LAST = ("seeds",)
NAMING = ("method", "study", "schedule")  # the first columns, which a row without numbers has too
TEXTS = ("method", "family", "schedule", "verdict", "study")  # the rest sort by their numbers
Text = Callable[[Study, Row], str]


class Shown(NamedTuple):
    """A column of the page. unit: the second line of its heading; meaning: what it is, in a sentence."""

    name: str
    head: str
    unit: str
    meaning: str
    text: Text

    @property
    def kind(self) -> str:
        """ "text" or "number", by which the page sorts and filters the column."""
        return "text" if self.name in TEXTS else "number"

    @property
    def title(self) -> str:
        """The heading in one line."""
        return ", ".join(filter(None, (self.head, self.unit)))


class Line(NamedTuple):
    """A row of the table: its texts by column; one that failed has those that name it, and the reason."""

    id: int
    study: int
    row: Row
    texts: list[str]
    failure: str


def table(studies: Sequence[Study]) -> tuple[list[Shown], list[Line]]:
    """The columns in which any row says something, and all rows: study by study in their own order."""
    rows = [(study, row) for study in studies for row in study.comparison.rows]
    columns = [column for column in _columns(studies) if any(column.text(study, row) for study, row in rows)]
    naming = [column for column in columns if column.name in NAMING]
    lines = []
    for number, (study, row) in enumerate(rows):
        reason = failure(row)
        texts = [column.text(study, row) for column in (naming if reason else columns)]
        lines.append(Line(number, study=study.number, row=row, texts=texts, failure=reason))
    return columns, lines


def _columns(studies: Sequence[Study]) -> list[Shown]:
    found = [_declared(column, clock=False) for column in chosen(ACCURACY, [])]
    for batch in dict.fromkeys(study.batch for study in studies if study.batch and not study.speeds):
        found += [_declared(column, clock=True) for column in chosen([f"latency_b{batch}_median_ms", *CLOCK], [batch])]
    found += _session(studies)
    found += [_declared(column, clock=False) for column in chosen(LAST, [])]
    if len(studies) > 1:
        found.insert(
            1,
            Shown(
                "study", head="Study", unit="", meaning="recipe, machine and folder", text=lambda study, _: study.label
            ),
        )
    return list({(column.name, column.unit): column for column in found}.values())


def _declared(column: Column, clock: bool) -> Shown:
    """A column of the report. clock: whether a timing session, where there is one, says it better."""

    def text(study: Study, row: Row) -> str:
        if column.name not in row or failure(row) or (clock and study.speeds):
            return row[column.name] if column.name in NAMING else ""
        return column.text(row)

    return Shown(column.name, head=column.head, unit=column.unit, meaning=column.meaning, text=text)


def _session(studies: Sequence[Study]) -> list[Shown]:
    """The columns of timing sessions, by batch size; the texts are those of the session's own tables."""
    found = []
    for batch in dict.fromkeys(speed.row.batch for study in studies for speed in study.speeds.values()):
        at = f"at batch {batch}"
        found += [
            Shown(
                "session_ms",
                head="Time",
                unit=f"ms {at} (p95)",
                meaning="median time of one forward pass",
                text=_said("ms", batch),
            ),
            Shown(
                "session_speedup",
                head="Speed-up",
                unit=at,
                meaning="over timm's fastest unreduced model",
                text=_said("speedup", batch),
            ),
            Shown(
                "session_interval",
                head="Speed-up",
                unit="95 % interval",
                meaning="resampled rounds",
                text=_said("interval", batch),
            ),
            Shown(
                "session_promised",
                head="Speed-up",
                unit="promised",
                meaning="by multiply-adds alone",
                text=_said("promised", batch),
            ),
        ]
    return found


def _said(name: str, batch: int) -> Text:
    def text(study: Study, row: Row) -> str:
        speed = study.speeds.get((row["schedule"], row["method"]))
        return _timed(speed)[name] if speed is not None and speed.row.batch == batch else ""

    return text


def _timed(speed: Speed) -> dict[str, str]:
    """A timed row's texts."""
    tail = "" if speed.p95 is None else f" ({timed.milliseconds(speed.p95)})"
    return {
        "ms": timed.milliseconds(speed.median) + tail,
        "speedup": f"{speed.speedup.value:.2f}",
        "interval": timed.interval(speed.speedup),
        "promised": f"{speed.promised:.2f}",
    }
