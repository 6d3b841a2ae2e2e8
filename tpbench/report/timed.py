"""The tables of a timing session: milliseconds and speed-ups of all rows, one table for each batch size and dtype.

The terminal, OUT/README.md and OUT/tables/MACHINE-speed.md show the tables that `tables` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from tpbench.measure import speeds
from tpbench.measure.speeds import Ratio, Speed
from tpbench.measure.timings import Group, Session
from tpbench.report import markdown as pages
from tpbench.report.markdown import escape

if TYPE_CHECKING:
    from rich.console import Console

NOTE = """\
Milliseconds are medians of one forward pass of the batch. All rows of all tables took turns in random order, so they
are comparable. A speed-up is the median over rounds of the time of timm's unreduced model, in its fastest mode, divided
by the row's time. Intervals are at 95 %, by resampling rounds. The promised speed-up is that of multiply-adds alone.
`timm` is the unreduced model as timm runs it, `none` the same model as tpbench runs it.
* misses the requested latency by more than 2 %."""
PIPE_WIDTH = 120  # characters at least, if the output is not a terminal
HEADS = ("Method", "Schedule", "Mode", "Tokens", "ms", "p95 ms", "Speed-up", "Promised", "Images/s")
TEXT_COLUMNS = ("Method", "Schedule", "Mode", "Tokens")  # the rest are numbers
MOST_FIRST = 8  # columns in the README
DISPENSABLE = ("Tokens", "p95 ms")  # left out in this order if there are too many columns


class Table(NamedTuple):
    """The table of one batch size and dtype as text, without columns that are blank or the same in all rows."""

    title: str
    remark: str
    heads: list[str]
    rows: list[list[str]]


def tables(session: Session, most: int = len(HEADS)) -> list[Table]:
    """The table of each group, with at most `most` columns."""
    return [_table(session, group, most) for group in session.groups]


def _table(session: Session, group: Group, most: int) -> Table:
    rows = lines(session, group)
    left_out = {"Mode"} if len({row["Mode"] for row in rows}) == 1 else set()
    left_out |= {head for head in HEADS if not any(row[head] for row in rows)}
    heads = [head for head in HEADS if head not in left_out]
    for head in DISPENSABLE:
        if len(heads) > most and head in heads:
            heads.remove(head)
    return Table(
        str(group), remark=remark(session, group), heads=heads, rows=[[row[head] for head in heads] for row in rows]
    )


def lines(session: Session, group: Group) -> list[dict[str, str]]:
    """The rows of a group as texts: timm's first, then by schedule; within a schedule by falling speed-up.

    The speed-up compares rows round by round, so it orders them better than the median of their milliseconds.
    """
    rank = {"reference": 0, "reduced": 1}
    schedules = list(dict.fromkeys(row.schedule for row in session.rows))
    found = speeds.speeds(session, group)
    found.sort(key=lambda s: (rank[s.row.role], schedules.index(s.row.schedule), -s.speedup.value))
    return [line(speed) for speed in found]


def line(speed: Speed) -> dict[str, str]:
    """The texts of a row, by heading."""
    middle = milliseconds(speed.median) + ("*" if speed.misses_latency else "")
    return {
        "Method": speed.row.method,
        "Schedule": speed.row.schedule,
        "Mode": speed.row.mode,
        "Tokens": ", ".join(map(str, speed.row.counts)),
        "ms": f"{middle} ({milliseconds(speed.low)} to {milliseconds(speed.high)})",
        "p95 ms": "" if speed.p95 is None else milliseconds(speed.p95),
        "Speed-up": f"{speed.speedup.value:.2f} ({interval(speed.speedup)})",
        "Promised": f"{speed.promised:.2f}",
        "Images/s": milliseconds(speed.images_per_second / 1e3),
    }


def milliseconds(seconds: float) -> str:
    """Milliseconds with four digits, enough to distinguish rows that differ by less than a percent."""
    value = seconds * 1e3
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def interval(ratio: Ratio) -> str:
    """The ends of a speed-up's interval: "1.02 to 1.10"."""
    return f"{ratio.low:.2f} to {ratio.high:.2f}"


def remark(session: Session, group: Group) -> str:
    """The control of a group, as a sentence: the ratio of two timings of the same model."""
    same = speeds.control(session, group)
    noise = f"the same model twice: {same.value:.3f} ({same.low:.3f} to {same.high:.3f})"
    return noise + ("" if same.includes_one else ", which should include 1: distrust this table")


def about(session: Session) -> Iterator[str]:
    """Lines about what was timed, on which machine, and how busy it was."""
    facts = session.facts
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    yield f"{session.model}, weights {session.weights}, on {session.environment['device']}, {threads}"
    images = session.images
    cut = "" if session.complete else f" of {session.wanted}; the session was cut off and can be continued"
    yield f"{session.rounds} rounds{cut}, {len(session.timed)} rows; images: {images['source']}"
    loads = [load for part in session.sittings for load in (part.load_before, part.load_after) if load is not None]
    busy = f"system load {min(loads):.1f} to {max(loads):.1f}" if loads else "system load unknown"
    yield f"{busy} on {session.environment['cores']} cores; governor {facts['governor'] or 'unknown'}"


def notes(session: Session) -> list[str]:
    """Sentences about rows that miss the requested latency, and rows without samples."""
    return [*missed(session), *failures(session)]


def failures(session: Session) -> list[str]:
    """Sentences that say why rows have no samples, once for each method, schedule and reason."""
    failed = [row for row in session.rows if row.error is not None]
    return list(dict.fromkeys(f"{row.method}, {row.schedule}: {row.error}" for row in failed))


def missed(session: Session) -> list[str]:
    """Sentences about rows that miss the requested latency by more than 2 %."""
    found = [speed for group in session.groups for speed in speeds.speeds(session, group) if speed.misses_latency]
    return [
        f"{speed.row.method}, {speed.row.schedule}, {speed.row.group}: {(1 + speed.off) * speed.row.asked:.3f} of the"
        f" unreduced model's latency, but {speed.row.asked:g} was requested"
        for speed in found
    ]


def show(session: Session, console: Console) -> None:
    """Print every table of a session."""
    from rich.table import Table as Printed

    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print("", *about(session), sep="\n", highlight=False)
    for table in tables(session):
        printed = Printed(box=None, pad_edge=False, header_style="bold")
        for head in table.heads:
            printed.add_column(head, justify="left" if head in TEXT_COLUMNS else "right")
        for row in table.rows:
            printed.add_row(*row)
        title = f"{table.title}; {table.remark}"
        console.print("", title, sep="\n", highlight=False, soft_wrap=True, style="italic")
        console.print(printed, highlight=False)
    console.print("", NOTE, *notes(session), sep="\n", highlight=False, markup=False, soft_wrap=True)


def markdown(session: Session, level: str = "##", most: int = len(HEADS)) -> list[str]:
    """The tables of a session as lines of Markdown. level: the signs that open each table's heading."""
    parts = [*(f"- {escape(line)}" for line in about(session)), ""]
    for table in tables(session, most):
        left = sum(head in TEXT_COLUMNS for head in table.heads)
        rows = [[escape(text) for text in row] for row in table.rows]
        parts += [f"{level} {table.title}", "", f"{table.remark[0].upper()}{table.remark[1:]}.", ""]
        parts += pages.table(table.heads, rows, left=left)
    found = [f"- {escape(note)}" for note in notes(session)]
    return [*parts, NOTE.replace("*", "\\*"), "", *found, *([""] if found else [])]


def summary(session: Session) -> list[dict[str, Any]]:
    """All rows as numbers for JSON, without samples: seconds and shares, unrounded."""
    return [
        {
            "batch": group.batch,
            "dtype": group.dtype,
            "same_model_twice": asdict(speeds.control(session, group)),
            "rows": [numbers(speed) for speed in speeds.speeds(session, group)],
        }
        for group in session.groups
    ]


def numbers(speed: Speed) -> dict[str, Any]:
    """One row as numbers for JSON, without samples."""
    row = asdict(speed.row)
    del row["seconds"]
    return row | {
        "samples": speed.samples,
        "median_seconds": speed.median,
        "median_low_seconds": speed.low,
        "median_high_seconds": speed.high,
        "p95_seconds": speed.p95,
        "images_per_second": speed.images_per_second,
        "speedup": asdict(speed.speedup),
        "promised": speed.promised,
        "off": speed.off,
    }
