"""The tables of a timing session: every row's milliseconds and speed-up, one table for each batch size and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tpbench.measure import speeds, timings
from tpbench.measure.speeds import Ratio, Speed
from tpbench.measure.timings import Group, Session
from tpbench.record import replace_text

if TYPE_CHECKING:
    from rich.console import Console

NOTE = """\
Milliseconds are medians; all rows of all tables took turns in random order, so they compare. A speed-up is the median,
over rounds, of the time of timm's unreduced model in its fastest mode over the row's; its 95 % interval resamples
rounds. Promised is what multiply-adds alone would give. `timm` is the unreduced model as timm runs it, `none` the same
model as tpbench runs it.
* misses the latency that was asked for by more than 2 %."""
PIPE_WIDTH = 120  # characters at least, where the output is no terminal


class Line(NamedTuple):
    """One row as text."""

    method: str
    schedule: str
    mode: str
    tokens: str
    ms: str
    speedup: str
    interval: str
    promised: str


HEADS = Line("Method", "Schedule", "Mode", "Tokens", "ms (p95)", "Speed-up", "95 % interval", "Promised")
TEXT_COLUMNS = 4  # the rest are numbers


def lines(session: Session, group: Group) -> list[Line]:
    """The rows of a group: timm's first, then what reduces nothing, then by schedule the fastest first."""
    rank = {"reference": 0, "reduced": 1}
    schedules = list(dict.fromkeys(row.schedule for row in session.rows))
    found = speeds.speeds(session, group)
    found.sort(key=lambda s: (rank[s.row.role], schedules.index(s.row.schedule), s.median))
    return [line(speed) for speed in found]


def line(speed: Speed) -> Line:
    late = "" if speed.p95 is None else f" ({milliseconds(speed.p95)})"
    return Line(
        method=speed.row.method,
        schedule=speed.row.schedule,
        mode=speed.row.mode,
        tokens=", ".join(map(str, speed.row.counts)),
        ms=milliseconds(speed.median) + late + ("*" if speed.marked else ""),
        speedup=f"{speed.speedup.value:.2f}",
        interval=interval(speed.speedup),
        promised=f"{speed.promised:.2f}",
    )


def milliseconds(seconds: float) -> str:
    """Four digits: so many tell rows apart that differ by less than a percent."""
    value = seconds * 1e3
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def interval(ratio: Ratio) -> str:
    return f"{ratio.low:.2f} to {ratio.high:.2f}"


def title(session: Session, group: Group) -> str:
    """What a table shows, and how far the same model timed twice is from itself."""
    same = speeds.control(session, group)
    noise = f"the same model twice: {same.value:.3f} ({same.low:.3f} to {same.high:.3f})"
    return f"{group}; {noise}" + ("" if same.includes_one else ", which should include 1: distrust this table")


def about(session: Session) -> Iterator[str]:
    """What was timed, on what, and how busy the machine was."""
    facts = session.facts
    yield f"{session.model}, weights {session.weights}, on {session.environment['device']}, {facts['threads']} threads"
    images = session.images
    yield f"{session.rounds} rounds over {len(session.timed)} rows; images: {images['source']}"
    loads = [load for part in session.sittings for load in (part.load_before, part.load_after) if load is not None]
    busy = f"load {min(loads):.1f} to {max(loads):.1f}" if loads else "load unknown"
    yield f"{busy} on {session.environment['cores']} cores; governor {facts['governor'] or 'unknown'}"


def failures(session: Session) -> list[str]:
    """Why rows have no samples, each reason once for a method and schedule."""
    failed = [row for row in session.rows if row.error is not None]
    return list(dict.fromkeys(f"{row.method}, {row.schedule}: {row.error}" for row in failed))


def missed(session: Session) -> list[str]:
    """The rows that miss the latency asked for by more than 2 %."""
    found = [speed for group in session.groups for speed in speeds.speeds(session, group) if speed.marked]
    return [
        f"{speed.row.method}, {speed.row.schedule}, {speed.row.group}: {(1 + speed.off) * speed.row.asked:.3f} of the"
        f" unreduced model's latency, {speed.row.asked:g} was asked"
        for speed in found
    ]


def show(session: Session, console: Console) -> None:
    """Print every table of a session."""
    from rich.table import Table

    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print("", *about(session), sep="\n", highlight=False)
    for group in session.groups:
        table = Table(box=None, pad_edge=False, header_style="bold")
        rows = lines(session, group)
        shown = [place for place in range(len(HEADS)) if place != HEADS.index("Mode") or modes(rows) > 1]
        for place in shown:
            table.add_column(HEADS[place], justify="left" if place < TEXT_COLUMNS else "right")
        for row in rows:
            table.add_row(*(row[place] for place in shown))
        console.print("", title(session, group), sep="\n", highlight=False, soft_wrap=True, style="italic")
        console.print(table, highlight=False)
    notes = [NOTE, *missed(session), *failures(session)]
    console.print("", *notes, sep="\n", highlight=False, markup=False, soft_wrap=True)


def modes(rows: list[Line]) -> int:
    return len({row.mode for row in rows})


def markdown(session: Session) -> str:
    """The same tables as a page."""
    parts = [f"# Speed of {session.model}", "", *(f"- {line}" for line in about(session)), ""]
    for group in session.groups:
        parts += [f"## {group.batch} images at a time, {group.dtype}", "", f"{title(session, group)}.", ""]
        parts += [_row(HEADS), _row([":--"] * TEXT_COLUMNS + ["--:"] * (len(HEADS) - TEXT_COLUMNS))]
        parts += [_row(_escaped(text) for text in row) for row in lines(session, group)]
        parts.append("")
    notes = [*missed(session), *failures(session)]
    return "\n".join([*parts, _escaped(NOTE), "", *(f"- {_escaped(note)}" for note in notes)]).rstrip() + "\n"


def _row(texts: Any) -> str:
    return f"| {' | '.join(texts)} |"


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("|", "\\|")


def write(path: Path) -> Path:
    """The page of a session beside its file, made from that alone."""
    page = path.with_suffix(".md")
    replace_text(page, markdown(timings.read(path)))
    return page


def summary(session: Session) -> list[dict[str, Any]]:
    """Every row in numbers, without its samples; seconds and shares, nothing rounded."""
    return [
        {
            "batch": group.batch,
            "dtype": group.dtype,
            "same_model_twice": asdict(speeds.control(session, group)),
            "rows": [_numbers(speed) for speed in speeds.speeds(session, group)],
        }
        for group in session.groups
    ]


def _numbers(speed: Speed) -> dict[str, Any]:
    row = asdict(speed.row)
    del row["seconds"]
    return row | {
        "samples": speed.samples,
        "median_seconds": speed.median,
        "p95_seconds": speed.p95,
        "speedup": asdict(speed.speedup),
        "promised": speed.promised,
        "off": speed.off,
    }
