"""The rows of the report page: the rows of each comparison, with the results of its timing session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from tpbench.errors import UsageError
from tpbench.measure import speeds, timings
from tpbench.measure.speeds import Speed
from tpbench.record import Record, Store
from tpbench.report import contrast as contrasts
from tpbench.report.contrast import Contrast
from tpbench.report.frame import Comparison, batch_sizes, compare
from tpbench.report.layout import Row, ends, half_width_of, name_with_signs
from tpbench.report.methods import is_token_pooling
from tpbench.report.pareto import front
from tpbench.report.results import Results

COSTS = ("macs", "ms", "ips")  # horizontal axes of the accuracy charts; ips is images per second, more is better
LABELS = 8  # labelled rows of a study
DIGITS = 5  # significant digits: enough for charts, and small for thousands of rows
Key = tuple[str, str]  # schedule, method


class Unit(NamedTuple):
    """A unit of multiply-adds. gmacs: its size in 1e9."""

    name: str
    gmacs: float


GIGA = Unit("GMACs", 1.0)
MEGA = Unit("MMACs", 1e-3)


@dataclass(frozen=True, eq=False)
class Study:
    """One recipe on one machine in one folder.

    speeds: by schedule and method, from the timing session; empty if there is none. timed_at: the group and the number
    of rounds of that session, in words.
    """

    number: int
    folder: Path
    label: str
    comparison: Comparison
    speeds: dict[Key, Speed] = field(default_factory=dict)
    timed_at: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int | None:
        """The largest batch size at which the records hold latencies; None if there are none."""
        return max(batch_sizes(self.comparison.frame), default=None)

    @property
    def macs_unit(self) -> Unit:
        """The unit of multiply-adds: 1e6 for small models, otherwise 1e9."""
        return MEGA if self.comparison.frame["gmacs"].max() < 0.1 else GIGA

    @property
    def has_intervals(self) -> bool:
        """Whether the accuracy of any row has an interval."""
        frame = self.comparison.frame
        return bool(frame[half_width_of(self.comparison.top1)].notna().any())


def studies(folders: Sequence[Path], contrast: Contrast | None = None, results: Results | None = None) -> list[Study]:
    """The studies of all folders. Several recipes on one machine become several studies, each with a remark.

    results: the results of one of the folders, if they were already read and compared. Raises UsageError if a folder
    holds no records.
    """
    found: list[Study] = []
    for folder in folders:
        store = Store.of(folder)
        if not len(store):
            store.refuse_bad()
            raise UsageError(f"{folder} holds no records")
        grouped: dict[tuple[str, str, str], list[Record]] = {}
        for record in store:
            grouped.setdefault((record.machine, record.recipe, record.recipe_digest), []).append(record)
        unread = (
            [f"{len(store.bad)} records cannot be read and are left out: {store.bad[0].reason}"] if store.bad else []
        )
        for (machine, recipe, digest), own in grouped.items():
            mixed = sum(other == machine for other, _, _ in grouped) > 1
            if results is not None and results.folder == folder:
                (comparison,) = [known.without_session() for known in results.of_records(own)]
            else:
                (comparison,) = compare(own, contrast or contrasts.of(folder))
            parts = [
                folder.resolve().name if len(folders) > 1 else "",
                f"{recipe} on {machine}",
                digest if mixed else "",
            ]
            label = ", ".join(filter(None, parts))
            found.append(
                _study(
                    len(found),
                    folder=folder,
                    label=label,
                    comparison=comparison,
                    remarks=[*unread, *_mixture(grouped, machine, digest)],
                )
            )
    return found


def _mixture(grouped: dict[tuple[str, str, str], list[Record]], machine: str, digest: str) -> Iterator[str]:
    others = [f"{recipe} ({other})" for own, recipe, other in grouped if own == machine and other != digest]
    if others:
        yield f"The folder also holds other records of {machine}, which are kept apart: {', '.join(others)}."


def _study(number: int, folder: Path, label: str, comparison: Comparison, remarks: list[str]) -> Study:
    path = timings.path_in(folder, comparison.machine)
    study = Study(number=number, folder=folder, label=label, comparison=comparison, remarks=remarks)
    if not path.exists():
        return study
    session = timings.read(path)
    about = comparison.records[0]
    if session.model != about.recipe or session.weights != f"recipe {about.recipe_digest}":
        remarks.append(f"The session {path.name} times another model: {session.model}, {session.weights}.")
        return study
    if not session.rounds:
        remarks.append(f"The session {path.name} has no complete round yet.")
        return study
    group = max(session.groups, key=lambda group: group.batch)
    title = f"{group}; {session.rounds} rounds"
    return Study(
        number=number,
        folder=folder,
        label=label,
        comparison=comparison,
        speeds=_fastest(speeds.speeds(session, group)),
        timed_at=title,
        remarks=remarks,
    )


def _fastest(found: Sequence[Speed]) -> dict[Key, Speed]:
    """The speed of each row in its fastest mode, without timm's own model, which is the reference."""
    rows: dict[Key, Speed] = {}
    for speed in sorted(found, key=lambda speed: -speed.median):
        if speed.row.role == "reduced":
            rows[speed.row.schedule, speed.row.method] = speed
    return rows


# ------------------------------------------------------------------------------------------ rows for the charts


def drawn(study: Study) -> list[dict[str, Any]]:
    """All rows as the charts read them: numbers with five digits, and names."""
    comparison = study.comparison
    rows = [_drawn(study, row) for row in comparison.rows]
    for cost in COSTS:
        for row in _on_front(rows, cost):
            row["front"].append(cost)
    for row in _named(rows, comparison.contrast.reference):
        row["label"] = row["method"]
    return [{name: value for name, value in row.items() if not _absent(value)} for row in rows]


def _absent(value: Any) -> bool:
    """Whether a value is left out of the page's data; zero is a value."""
    return value is None or value is False or value in ("", [])


def _drawn(study: Study, row: Row) -> dict[str, Any]:
    top1 = study.comparison.top1
    known = pd.notna(row[half_width_of(top1)])
    low, high = ends(row, top1) if known else (None, None)
    difference = row["reference_difference_points"]
    width = row["reference_difference_half_width_points"]
    return {
        "method": name_with_signs(row),
        "schedule": row["schedule"],
        "family": row["family"],
        "base": row["unreduced"],
        "masked": row["count"] == "masked",
        "ours": is_token_pooling(row["method"]),
        "top1": number(row[top1]),
        "low": number(low),
        "high": number(high),
        "macs": number(row["gmacs"] / study.macs_unit.gmacs),
        "share": number(100 * row["macs_share"]),
        "reducer": number(100 * row["reducer_share"]),
        "difference": number(difference),
        "least": number(difference - width),
        "most": number(difference + width),
        "verdict": row["verdict"],
        "front": [],
        **_timed(study, row),
    }


def _timed(study: Study, row: Row) -> dict[str, Any]:
    """Milliseconds, images per second and speed-ups, from the timing session or else from the records."""
    if study.speeds:
        speed = study.speeds.get((row["schedule"], row["method"]))
        if speed is None:
            return {"ms": None, "ips": None}
        return {
            "ms": number(1e3 * speed.median),
            "ips": number(speed.row.batch / speed.median),
            "promised": number(speed.promised),
            "reached": number(speed.speedup.value),
            "slowest": number(speed.speedup.low),
            "fastest": number(speed.speedup.high),
        }
    if study.batch is None:
        return {"ms": None, "ips": None}
    return {
        "ms": number(row[f"latency_b{study.batch}_median_ms"]),
        "ips": number(row["images_per_second"]),
        "promised": number(row["speedup_promised"]),
        "reached": number(row["speedup_reached"]),
    }


def _on_front(rows: Sequence[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """The rows on the Pareto front of cost and accuracy, without masked rows, which save nothing."""
    sign = -1 if cost == "ips" else 1
    found = [row for row in rows if row[cost] is not None and row["top1"] is not None and not row["masked"]]
    known = {(sign * row[cost], row["top1"]): row for row in found}
    return [known[point] for point in front(list(known))]


def _named(rows: Sequence[dict[str, Any]], reference: str) -> Iterator[dict[str, Any]]:
    """The labelled rows: the base, the reference, and rows on the front by MACs that are far enough apart."""
    known = [row for row in rows if row["macs"] is not None and row["top1"] is not None]
    if not known:
        return
    wide = max(row["macs"] for row in known) - min(row["macs"] for row in known) or 1.0
    high = max(row["top1"] for row in known) - min(row["top1"] for row in known) or 1.0
    wanted = [row for row in known if row["base"]]
    wanted += [row for row in known if row["method"] == reference]
    wanted += sorted((row for row in known if "macs" in row["front"]), key=lambda row: -row["top1"])
    taken: list[tuple[float, float]] = []
    for row in wanted:
        x = row["macs"] / wide
        y = row["top1"] / high
        if len(taken) < LABELS and all(abs(x - u) > 0.33 or abs(y - v) > 0.06 for u, v in taken):
            taken.append((x, y))
            yield row


def number(value: Any) -> float | None:
    """A number with DIGITS significant digits; None for a blank or infinite one."""
    if value is None or pd.isna(value) or not isfinite(value):
        return None
    return float(f"{float(value):.{DIGITS}g}")
