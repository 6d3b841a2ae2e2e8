"""A whole timing session of one model: shares of latency are solved first, then every row is timed in turns."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tpbench import environment
from tpbench.errors import UsageError
from tpbench.measure import entries, latency_budget, session, timings
from tpbench.measure.entries import Grid, Solved, Subject
from tpbench.measure.session import Effort, Watch, unchecked, unwatched
from tpbench.measure.timings import Session
from tpbench.record import host_id
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule

SOLVING = 0.5  # of the time limit, at most, goes into meeting shares of latency


def check(grid: Grid) -> None:
    """Refuse a grid whose methods need schedules that it does not have."""
    reducing = [str(variant) for variant in grid.variants if not variant.card.unreduced]
    if reducing and not any(schedule.blocks for schedule in grid.schedules):
        raise UsageError(f"method {reducing[0]} needs a schedule such as 0.7@3,6,9: give --schedules")


def time(
    subject: Subject,
    grid: Grid,
    effort: Effort,
    out: Path | None,
    *,
    fresh: bool = False,
    watch: Watch = unwatched,
) -> Session:
    """The session of a grid, in OUT/timing/MACHINE.json too where there is an OUT; a complete one is only read."""
    start = clock.monotonic()
    name = environment.machine(subject.where, "unnamed" if out is None else host_id(out / "work"))
    begun = session.begin(subject, name, effort.rounds, grid.dtypes[0])
    path = None if out is None else timings.path_in(out, name)
    if path is not None and fresh:
        path.unlink(missing_ok=True)
    if path is not None:
        done = session.finished(path, begun, entries.keys(grid), effort)
        if done is not None:
            return done
    solved = solve(subject, grid, effort, path, watch=watch)
    rows = entries.entries(subject, grid, solved)
    entries.require_some(rows)
    if effort.seconds is not None:
        effort = replace(effort, seconds=max(0.0, effort.seconds - (clock.monotonic() - start)))
    return session.run(begun, rows, effort, subject.where, path, watch=watch)


def solve(
    subject: Subject,
    grid: Grid,
    effort: Effort,
    path: Path | None = None,
    *,
    farthest: float = latency_budget.FARTHEST,
    watch: Watch = unwatched,
    check: Callable[[], None] = unchecked,
) -> Solved:
    """The counts of every row that asks for a share of latency, met at `Grid.solved_at`, or why there are none.

    Those that an interrupted session of the same model has found already are kept.
    """
    pairs = [(variant, schedule) for variant, schedule in grid.pairs() if schedule.kind is Kind.LATENCY]
    known = found_before(path)
    solved: dict[tuple[Variant, Schedule], Schedule | str] = {}
    for variant, schedule in pairs:
        if counts := known.get((str(variant), schedule.text)):
            solved[variant, schedule] = schedule.counting(counts)
    missing = [pair for pair in pairs if pair not in solved]
    entries.check(subject, grid)
    if not missing:
        return solved
    dtype, batch, mode = grid.solved_at
    seconds = None if effort.seconds is None else SOLVING * effort.seconds
    solutions = latency_budget.solve(
        subject,
        missing,
        batch=batch,
        dtype=dtype,
        mode=mode,
        seconds=seconds,
        farthest=farthest,
        watch=watch,
        check=check,
    )
    for (variant, schedule), solution in solutions.items():
        met = schedule.counting(solution.counts) if solution.counts else None
        solved[variant, schedule] = met or solution.error
    return solved


def found_before(path: Path | None) -> dict[tuple[str, str], list[int]]:
    """(method, schedule) -> the counts that solved it, in the file of a session."""
    if path is None or not path.exists():
        return {}
    rows = [row for row in timings.read(path).timed if row.asked is not None]
    return {(row.method, row.schedule): row.counts for row in rows}
