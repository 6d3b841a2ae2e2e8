"""The table of the report page: declared columns and those of timing sessions, for the rows of all studies."""

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
SPEED = ("speedup_promised", "speedup_reached", "images_per_second")
LAST = ("seeds",)
NAMING = ("method", "study", "schedule")  # the columns that a failed row has too
TEXTS = ("method", "family", "schedule", "verdict", "study")  # all other columns sort by number
Text = Callable[[Study, Row], str]


class Shown(NamedTuple):
    """A column of the page. unit: the second line of its heading; meaning: a sentence that explains it."""

    name: str
    head: str
    unit: str
    meaning: str
    text: Text

    @property
    def kind(self) -> str:
        """How the page sorts and filters the column: as "text" or "number"."""
        return "text" if self.name in TEXTS else "number"

    @property
    def title(self) -> str:
        """The heading in one line."""
        return ", ".join(filter(None, (self.head, self.unit)))


class Line(NamedTuple):
    """A row of the table: its texts by column. A failed row has only the texts of NAMING, and the reason."""

    id: int
    study: int
    row: Row
    texts: list[str]
    failure: str


def table(studies: Sequence[Study]) -> tuple[list[Shown], list[Line]]:
    """The columns that are not blank in all rows, and all rows, study by study."""
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
    found = [_declared(column, timed=False) for column in chosen(ACCURACY, [])]
    for batch in dict.fromkeys(study.batch for study in studies if study.batch and not study.speeds):
        found += [_declared(column, timed=True) for column in chosen([f"latency_b{batch}_median_ms", *SPEED], [batch])]
    found += _session(studies)
    found += [_declared(column, timed=False) for column in chosen(LAST, [])]
    if len(studies) > 1:
        found.insert(
            1,
            Shown(
                "study", head="Study", unit="", meaning="recipe, machine and folder", text=lambda study, _: study.label
            ),
        )
    return list({(column.name, column.unit): column for column in found}.values())


def _declared(column: Column, timed: bool) -> Shown:
    """A declared column. timed: whether it is blank for studies with a timing session, which has better numbers."""

    def text(study: Study, row: Row) -> str:
        if column.name not in row or failure(row) or (timed and study.speeds):
            return row[column.name] if column.name in NAMING else ""
        return column.text(row)

    return Shown(column.name, head=column.head, unit=column.unit, meaning=column.meaning, text=text)


def _session(studies: Sequence[Study]) -> list[Shown]:
    """The columns of timing sessions, by batch size, with the same texts as the session's own tables."""
    found = []
    for batch in dict.fromkeys(speed.row.batch for study in studies for speed in study.speeds.values()):
        at = f"at batch {batch}"
        found += [
            Shown(
                "session_ms",
                head="Time",
                unit=f"ms {at} (p95)",
                meaning="median time of one forward pass",
                text=_session_text("ms", batch),
            ),
            Shown(
                "session_speedup",
                head="Speed-up",
                unit=at,
                meaning="relative to timm's fastest unreduced model",
                text=_session_text("speedup", batch),
            ),
            Shown(
                "session_interval",
                head="Speed-up",
                unit="95 % interval",
                meaning="interval of the speed-up, by resampling rounds",
                text=_session_text("interval", batch),
            ),
            Shown(
                "session_promised",
                head="Speed-up",
                unit="promised",
                meaning="the speed-up that multiply-adds alone would give",
                text=_session_text("promised", batch),
            ),
        ]
    return found


def _session_text(name: str, batch: int) -> Text:
    """A function that gives the text of a session's column; "" if a row was not timed at the batch size."""

    def text(study: Study, row: Row) -> str:
        speed = study.speeds.get((row["schedule"], row["method"]))
        return _timed(speed)[name] if speed is not None and speed.row.batch == batch else ""

    return text


def _timed(speed: Speed) -> dict[str, str]:
    """The texts of a timed row, by column."""
    tail = "" if speed.p95 is None else f" ({timed.milliseconds(speed.p95)})"
    return {
        "ms": timed.milliseconds(speed.median) + tail,
        "speedup": f"{speed.speedup.value:.2f}",
        "interval": timed.interval(speed.speedup),
        "promised": f"{speed.promised:.2f}",
    }
