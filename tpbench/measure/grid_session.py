"""A timing session of a grid: counts for shares of latency are found first, then all rows are timed in turns."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tpbench import environment
from tpbench.errors import UsageError
from tpbench.measure import entries, latency_budget, session, timings
from tpbench.measure.entries import Grid, Solved, Subject
from tpbench.measure.latency_budget import Solution
from tpbench.measure.session import Effort, Watch, unchecked, unwatched
from tpbench.measure.timings import Session
from tpbench.record import host_id
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule

SOLVING = 0.5  # the largest share of the time limit that is spent on shares of latency


def check(grid: Grid) -> None:
    """Raise UsageError if a grid has methods that reduce but no schedule for them."""
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
    """Run a grid's session, or read it from OUT/timing/MACHINE.json if a complete one is there.

    Without `out` nothing is written. A session that was cut off by a time limit or a signal continues with its rounds.
    fresh: delete an earlier session first.
    """
    start = clock.monotonic()
    name = environment.machine(subject.where, "unnamed" if out is None else host_id(out / "work"))
    begun = session.begin(subject, machine_name=name, wanted=effort.rounds, dtype=grid.dtypes[0])
    path = None if out is None else timings.path_in(out, name)
    if path is not None and fresh:
        path.unlink(missing_ok=True)
    if path is not None:
        done = session.finished(path, begun, entries.keys(grid))
        if done is not None:
            return done
    solved = solve(subject, grid=grid, effort=effort, known=found_before(path, begun, grid), watch=watch)
    rows = entries.entries(subject, grid, solved)
    entries.require_some(rows)
    if effort.seconds is not None:
        effort = replace(effort, seconds=max(0.0, effort.seconds - (clock.monotonic() - start)))
    return session.run(begun, entries=rows, effort=effort, where=subject.where, path=path, watch=watch)


def solve(
    subject: Subject,
    grid: Grid,
    effort: Effort,
    known: Solved | None = None,
    *,
    farthest: float = latency_budget.FARTHEST,
    watch: Watch = unwatched,
    check: Callable[[], None] = unchecked,
) -> Solved:
    """Find the counts of each row with a share of latency, at `Grid.solved_at`, or the reason why there are none.

    known: counts that need no search.
    """
    pairs = [(variant, schedule) for variant, schedule in grid.pairs() if schedule.kind is Kind.LATENCY]
    solved: dict[tuple[Variant, Schedule], Schedule | str] = dict(known or {})
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
    return solved | counted(solutions)


def counted(solutions: Mapping[tuple[Variant, Schedule], Solution]) -> Solved:
    """Each solution as a schedule of its counts, or as the reason why it has none."""
    found: dict[tuple[Variant, Schedule], Schedule | str] = {}
    for (variant, schedule), solution in solutions.items():
        met = schedule.with_counts(solution.counts) if solution.counts else None
        found[variant, schedule] = met or solution.error
    return found


def found_before(path: Path | None, begun: Session, grid: Grid) -> Solved:
    """The counts that an interrupted session found, if it ran under the same conditions at `Grid.solved_at`."""
    if path is None or not path.exists():
        return {}
    earlier = timings.read(path)
    if earlier.conditions() != begun.conditions():
        return {}
    dtype, batch, mode = grid.solved_at
    place = (batch, entries.name_of(dtype), str(mode))
    rows = {(row.method, row.schedule): row for row in earlier.rows if (row.batch, row.dtype, row.mode) == place}
    found: dict[tuple[Variant, Schedule], Schedule | str] = {}
    for variant, schedule in grid.pairs():
        row = rows.get((str(variant), schedule.text))
        if row is not None and row.asked is not None:
            found[variant, schedule] = row.error or schedule.with_counts(row.counts)
    return found
