"""A timing session: models take turns on one machine, in random order in every round, so that all rows are comparable.

A busy second affects only some rows of a round, but over many rounds it affects all rows alike. Every row is warm
before the first round. An interrupted session continues with the next round. `tpbench.measure.timings` describes its
file, and `tpbench.measure.speeds` evaluates it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tpbench import environment
from tpbench.errors import UsageError
from tpbench.measure import machine, timings
from tpbench.measure.entries import Call, Entry, Subject
from tpbench.measure.latency import synchroniser
from tpbench.measure.timings import LEAST_ROUNDS, Key, Row, Session, Sitting

WARM_UP = 2  # calls of every row before the first round; further calls are as fast as the second
SAVE_SECONDS = 10.0  # an interruption loses at most this much sampling

Watch = Callable[[str, float, float], None]  # shows progress: the stage, the share that is done, seconds left


def unwatched(stage: str, share: float, left: float) -> None:
    """The default `watch`: show no progress."""


def unchecked() -> None:
    """The default `check`: never stop the session."""


@dataclass(frozen=True)
class Effort:
    """How long one sitting samples: `rounds`, or as many as fit into `seconds`, but at least LEAST_ROUNDS.

    Every sitting takes at least one round, so that a session always ends after some sittings.
    """

    rounds: int = 50
    seconds: float | None = None

    def enough(self, rounds: int, seconds: float) -> bool:
        """Whether sampling can stop after `rounds` rounds that took `seconds` seconds."""
        if rounds >= self.rounds:
            return True
        if self.seconds is None or seconds == 0:  # every sitting takes at least one round
            return False
        return seconds >= self.seconds and rounds >= LEAST_ROUNDS

    def left(self, rounds: int, seconds: float, round_seconds: float) -> float:
        """Estimated seconds until sampling stops, if one round takes `round_seconds`."""
        until_all_rounds = (self.rounds - rounds) * round_seconds
        if self.seconds is None:
            return until_all_rounds
        needed_rounds = max(0, LEAST_ROUNDS - rounds)
        if seconds == 0:  # every sitting takes at least one round
            needed_rounds = max(1, needed_rounds)
        return min(until_all_rounds, max(needed_rounds * round_seconds, self.seconds - seconds))

    def within(self, session: Session) -> Effort:
        """This effort, limited by what is left of the session's budget."""
        if session.budget is None:
            return self
        left = max(0.0, session.budget - session.seconds)
        return replace(self, seconds=left if self.seconds is None else min(left, self.seconds))


class Warm(NamedTuple):
    """Calls that are compiled and warm, the rows of all entries, and roughly the seconds of a round."""

    calls: dict[Key, Call]
    rows: list[Row]
    round_seconds: float


def begin(
    subject: Subject,
    machine_name: str,
    wanted: int,
    dtype: torch.dtype = torch.float32,
    budget: float | None = None,
) -> Session:
    """A session of a model on this machine, still without rows. wanted, budget: see `timings.Session`."""
    return Session(
        machine=machine_name,
        model=subject.name,
        weights=subject.weights,
        wanted=wanted,
        budget=budget,
        images=subject.about,
        environment=environment.describe(subject.where, dtype),
        facts=machine.facts(subject.where),
        git=environment.git(),
    )


def run(
    session: Session,
    entries: Sequence[Entry],
    effort: Effort,
    where: torch.device,
    path: Path | None = None,
    *,
    watch: Watch = unwatched,
    check: Callable[[], None] = unchecked,
) -> Session:
    """Time all entries and return the session with their samples.

    A reduced row that fails has the reason as its error. With a path, the session is written every few seconds. An
    interrupted session continues if conditions and rows are the same; otherwise it starts again, and `watch` gets the
    reason. `check` is called before each round and may raise to stop; complete rounds are then written.
    """
    return sample(
        session, warm=warmed(entries, where, watch), effort=effort, where=where, path=path, watch=watch, check=check
    )


def sample(
    session: Session,
    warm: Warm,
    effort: Effort,
    where: torch.device,
    path: Path | None = None,
    *,
    watch: Watch = unwatched,
    check: Callable[[], None] = unchecked,
) -> Session:
    """`run` for calls that are already warm."""
    calls, rows, round_seconds = warm
    session = continued(replace(session, rows=rows), path, watch)
    effort = effort.within(session)
    sitting = Sitting(began=datetime.now(UTC).isoformat(timespec="seconds"), load_before=machine.load())
    session.sittings.append(sitting)
    save = partial(keep, session, path)
    save()  # the rows' counts, which may have taken minutes to find
    start = time.monotonic()
    saved = start
    try:
        with no_garbage_collection():
            while not effort.enough(session.rounds, sitting.seconds):
                check()
                left = effort.left(session.rounds, sitting.seconds, round_seconds)
                watch("timing", sitting.seconds / (sitting.seconds + left), left)
                add(session, one_round(calls, where, session.rounds))
                sitting.rounds += 1
                sitting.seconds = time.monotonic() - start
                round_seconds = sitting.seconds / sitting.rounds
                if time.monotonic() - saved > SAVE_SECONDS:
                    saved = time.monotonic()
                    save()
    finally:
        sitting.load_after = machine.load()
        session.sittings = [part for part in session.sittings if part.rounds]
        save()
    return session


def keep(session: Session, path: Path | None) -> None:
    """Write a session to its path, if any. A session without rounds never replaces a file."""
    if path is not None and (session.rounds or not path.exists()):
        timings.write(path, session)


def add(session: Session, seconds: Mapping[Key, float]) -> None:
    """Add the samples of one round to a session."""
    for row in session.timed:
        row.seconds.append(seconds[row.key])


def finished(path: Path, session: Session, keys: Sequence[Key]) -> Session | None:
    """The session in a file, if it has all these rows and enough rounds for `session`; otherwise None.

    Raises UsageError if the file holds a session of another model, other weights or other images.
    """
    if not path.exists():
        return None
    earlier = timings.read(path)
    for what in ("model", "weights", "images"):
        own = getattr(session, what)
        other = getattr(earlier, what)
        if own != other:
            raise UsageError(f"{path} times {what} {_short(other)}, not {_short(own)}; use --fresh or another --out")
    known = {row.key for row in earlier.rows}
    return earlier if known.issuperset(keys) and earlier.enough(session.wanted, session.budget) else None


def _short(value: object) -> object:
    return value.get("fingerprint", value) if isinstance(value, dict) else value


def continued(session: Session, path: Path | None, watch: Watch = unwatched) -> Session:
    """The session with the rounds of its file, if the file has the same rows under the same conditions."""
    if path is None or not path.exists():
        return session
    earlier = timings.read(path)
    changed = differences(session, earlier)
    if changed:
        if earlier.rounds:
            watch(f"timing all rows again: {', '.join(changed)} changed since {earlier.rounds} rounds", 0.0, 0.0)
        return session
    samples = {row.key: row.seconds for row in earlier.timed}
    rows = [replace(row, seconds=samples.get(row.key, [])) for row in session.rows]
    return replace(session, rows=rows, sittings=earlier.sittings)


def differences(session: Session, earlier: Session) -> list[str]:
    """The names of the conditions that differ between two sessions, and "rows" if the rows differ.

    A session continues only if there are none.
    """
    own = session.conditions()
    other = earlier.conditions()
    changed = [name for name in own if own[name] != other[name]]
    same_rows = {row.key: row.counts for row in earlier.timed} == {row.key: row.counts for row in session.timed}
    return changed if same_rows else [*changed, "rows"]


# ---------------------------------------------------------------- rounds


def warmed(entries: Sequence[Entry], where: torch.device, watch: Watch = unwatched, calls_each: int = WARM_UP) -> Warm:
    """Make every call and run it `calls_each` times.

    If a reduced model fails, its row has the reason as its error; an error of an unreduced model is raised.
    """
    calls: dict[Key, Call] = {}
    rows: list[Row] = []
    round_seconds = 0.0
    start = time.monotonic()
    for number, entry in enumerate(entries):
        spent = time.monotonic() - start
        watch("warming up", number / len(entries), spent / max(number, 1) * (len(entries) - number))
        row = entry.row
        if row.error is None:
            try:
                call = entry.warm(calls_each - 1)
                round_seconds += timed(call, synchroniser(where))
                calls[row.key] = call
            except Exception as error:  # a method may raise anything, and the other rows are to be timed
                if row.role != "reduced":
                    raise
                row = replace(row, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        rows.append(replace(row, seconds=[]))
    return Warm(calls, rows, round_seconds)


def one_round(calls: Mapping[Key, Call], where: torch.device, number: int) -> dict[Key, float]:
    """Seconds of every call, in a random order that is seeded by the number of the round."""
    order = list(calls)
    random.Random(number).shuffle(order)
    wait = synchroniser(where)
    return {key: timed(calls[key], wait) for key in order}


def timed(call: Call, wait: Callable[[], None]) -> float:
    """Seconds of one call, measured while the device has no other work."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    return round(time.perf_counter() - start, 9)  # the resolution of the clock


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage once, and then not again within this context, so that samples do not contain it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
