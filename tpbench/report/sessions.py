"""The timing sessions of a results folder in its report: their own files, and their numbers in a comparison."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from tpbench.measure import speeds, timings
from tpbench.measure.speeds import Speed
from tpbench.measure.timings import Session
from tpbench.record import replace_text
from tpbench.report import timed
from tpbench.report.markdown import escape, table

Timed = dict[tuple[str, str], dict[int, Speed]]  # (method, schedule) -> batch size -> how fast

MEANINGS = {
    "batch": "images in one forward pass",
    "dtype": "dtype of weights, images and tokens",
    "method": "`timm` is the unreduced model as timm runs it",
    "schedule": "token budget, as requested",
    "mode": "eager, compiled, in a CUDA graph",
    "role": "`reference`: timm's unreduced model, whose fastest mode is compared with; `reduced`: any other row",
    "counts": "body tokens after each reducing block",
    "macs": "multiply-adds per image, in closed form",
    "asked": "requested share of the unreduced model's latency; blank if none was requested",
    "samples": "number of rounds, with one sample each",
    "median_ms": "median time of one forward pass of the batch, milliseconds",
    "median_low_ms": "lower end of its 95 % interval, by resampling rounds",
    "median_high_ms": "upper end",
    "p95_ms": "95th percentile, milliseconds; blank below 200 samples",
    "images_per_second": "batch / median",
    "speedup": "median over rounds of the ratio of the fastest unreduced model's time to the row's",
    "speedup_low": "lower end of its 95 % interval, by resampling rounds",
    "speedup_high": "upper end",
    "promised": "the speed-up that multiply-adds alone would give",
    "off": "relative distance of the latency from the requested one",
    "error": "why a row has no samples",
}


def of(folder: Path) -> list[Session]:
    """The sessions of a results folder that have at least one round, in the order of machines.

    Raises UsageError, with the file's name, if a session cannot be read.
    """
    return [session for session in timings.read_all(folder) if session.rounds]


def by_row(session: Session | None) -> Timed:
    """The speed of each method and schedule at each batch size, in its fastest mode and the session's first dtype."""
    found: Timed = {}
    if session is None:
        return found
    for group in session.groups:
        if group.dtype == session.groups[0].dtype:
            own = [speed for speed in speeds.speeds(session, group) if speed.row.role == "reduced"]
            for speed in sorted(own, key=lambda speed: -speed.median):
                found.setdefault((speed.row.method, speed.row.schedule), {})[group.batch] = speed
    return found


def batch_sizes(timed_rows: Timed) -> list[int]:
    """The batch sizes of a session's rows, in rising order."""
    return sorted({batch for own in timed_rows.values() for batch in own})


def write(folder: Path, sessions: Iterable[Session]) -> list[Path]:
    """Write OUT/tables/MACHINE-speed.md and .csv of every session; return the paths."""
    paths = []
    for session in sessions:
        page = [f"# Speed of {session.model}", "", *timed.markdown(session)]
        texts = {f"{session.machine}-speed.md": "\n".join(page), f"{session.machine}-speed.csv": as_csv(session)}
        for name, text in texts.items():
            replace_text(folder / "tables" / name, text)
            paths.append(folder / "tables" / name)
    return paths


def readme(name: str, sessions: Sequence[Session]) -> str:
    """The README of a folder that holds sessions and no records."""
    lines = [f"# {name}", ""]
    for session in sessions:
        lines += [f"## {session.machine}", "", *timed.markdown(session, level="###", most=timed.MOST_FIRST)]
        files = f"[wide tables](tables/{session.machine}-speed.md), [all columns](tables/{session.machine}-speed.csv)"
        lines += [f"{files}, [every sample](timing/{session.machine}.json)", ""]
    lines += ["## How to make this again", "", "From `timing/` alone, in this folder:", ""]
    return "\n".join([*lines, "    python -m tpbench report .", "", *meanings()])


def section(session: Session) -> list[str]:
    """The part of a README about a session, for a folder with records: what was timed, its noise, and its files."""
    controls = [f"{shown.title}: {shown.remark}" for shown in timed.tables(session)]
    lines = [f"- {escape(line)}" for line in (*timed.about(session), *controls, *timed.notes(session))]
    files = f"[speed of all rows](tables/{session.machine}-speed.md), [in numbers](tables/{session.machine}-speed.csv)"
    return ["### Timing session", "", *lines, "", f"{files}, [every sample](timing/{session.machine}.json)", ""]


def meanings() -> list[str]:
    """The table that explains the columns of MACHINE-speed.csv."""
    rows = [[f"`{name}`", meaning] for name, meaning in MEANINGS.items()]
    return ["## Columns of `tables/MACHINE-speed.csv`", "", *table(["column", "meaning and unit"], rows, left=2)]


def as_csv(session: Session) -> str:
    """A session as CSV: all rows except controls, unrounded, with blanks as empty fields."""
    text = StringIO()
    writer = csv.DictWriter(text, MEANINGS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for group in session.groups:
        writer.writerows(_numbers(speed) for speed in speeds.speeds(session, group))
    for row in session.rows:
        if row.error is not None:
            writer.writerow(vars(row) | {"counts": "", "error": " ".join(row.error.split())})
    return text.getvalue()


def _numbers(speed: Speed) -> dict[str, Any]:
    """A row of the CSV file, by column; None for blanks."""
    row = timed.numbers(speed)
    for name in ("median", "median_low", "median_high", "p95"):
        seconds = row[f"{name}_seconds"]
        row[f"{name}_ms"] = None if seconds is None else 1e3 * seconds
    row["speedup"] = speed.speedup.value
    row["speedup_low"] = speed.speedup.low
    row["speedup_high"] = speed.speedup.high
    row["counts"] = ",".join(map(str, speed.row.counts))
    return row
