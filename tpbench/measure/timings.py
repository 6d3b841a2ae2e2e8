"""A timing session as a file: many models timed in turns on one machine, with every sample. No torch, no pandas.

OUT/timing/MACHINE.json holds the session of one machine. Each line of it is a row: a method at a schedule, batch size,
dtype and mode. Sample i of every row was taken in round i, so that rows can be compared round by round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tpbench.errors import UsageError
from tpbench.record import Code, checked, replace_text

SCHEMA = 1
LEAST_ROUNDS = 5  # taken despite a time limit, because fewer give no interval
TIMM = "timm"  # the method in rows of the unreduced model as timm runs it


class Key(NamedTuple):
    """What identifies a row within a session."""

    method: str
    schedule: str
    batch: int
    dtype: str
    mode: str
    role: str


class Group(NamedTuple):
    """Batch size and dtype, which rows must share to be compared."""

    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.dtype}"


@dataclass
class Row:
    """One model in one mode.

    role: "reduced" for rows that are compared, including the method `none`; "reference" for timm's unreduced model in
    one of the permitted modes, the fastest of which is compared with; "control" for the first reference once more.
    counts: body tokens after each of the schedule's blocks. macs: multiply-adds per image in closed form. asked: the
    share of the unreduced model's latency that the counts were solved for, if any. seconds: of one forward pass of
    `batch` images, one sample for each round; empty for a row with an error.
    """

    method: str
    schedule: str
    batch: int
    dtype: str
    mode: str
    role: Literal["reduced", "reference", "control"] = "reduced"
    counts: list[int] = field(default_factory=list)
    macs: int = 0
    asked: float | None = None
    error: str | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What identifies the row in a session."""
        return Key(
            method=self.method,
            schedule=self.schedule,
            batch=self.batch,
            dtype=self.dtype,
            mode=self.mode,
            role=self.role,
        )

    @property
    def group(self) -> Group:
        """The group of rows that it is compared with."""
        return Group(self.batch, self.dtype)


@dataclass
class Sitting:
    """An uninterrupted part of a session.

    began: UTC. seconds: of sampling. load_before, load_after: the number of runnable processes, averaged over one
    minute; None if the system does not tell it.
    """

    began: str
    rounds: int = 0
    seconds: float = 0.0
    load_before: float | None = None
    load_after: float | None = None


@dataclass
class Session:
    """All rows of one model on one machine.

    wanted: the number of rounds to take. budget: seconds of sampling over all sittings after which fewer rounds are
    enough; None for no limit. images: their source, number and fingerprint. environment, facts: the packages, the
    machine, and what determines its speed.
    """

    machine: str
    model: str
    weights: str
    wanted: int
    images: dict[str, Any]
    environment: dict[str, Any]
    facts: dict[str, Any]
    git: Code = field(default_factory=dict)
    sittings: list[Sitting] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    schema: int = SCHEMA
    budget: float | None = None

    @property
    def timed(self) -> list[Row]:
        """The rows that have no error."""
        return [row for row in self.rows if row.error is None]

    @property
    def rounds(self) -> int:
        """The number of complete rounds."""
        return min((len(row.seconds) for row in self.timed), default=0)

    @property
    def seconds(self) -> float:
        """Seconds of sampling, over all sittings."""
        return sum(sitting.seconds for sitting in self.sittings)

    @property
    def complete(self) -> bool:
        """Whether the session needs no more rounds."""
        return self.enough(self.wanted, self.budget)

    def enough(self, wanted: int, budget: float | None) -> bool:
        """Whether `wanted` rounds were taken, or at least LEAST_ROUNDS in `budget` seconds of sampling."""
        if self.rounds >= wanted:
            return True
        return budget is not None and self.seconds >= budget and self.rounds >= LEAST_ROUNDS

    @property
    def groups(self) -> list[Group]:
        """The pairs of batch size and dtype, in the order of the rows."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def of(self, group: Group, *roles: str) -> list[Row]:
        """The timed rows of a group that have one of the roles."""
        return [row for row in self.timed if row.group == group and row.role in roles]

    def conditions(self) -> dict[str, Any]:
        """The facts that two sittings must share to belong to one session."""
        same = ("machine", "model", "weights", "images", "environment", "facts", "git")
        return {name: getattr(self, name) for name in same}


def path_in(out: Path, machine: str) -> Path:
    """The path of a machine's session in a results folder."""
    return out / "timing" / f"{machine}.json"


def read(path: Path) -> Session:
    """Read a session. Raises UsageError, with the path, for a damaged file or another schema version."""
    try:
        text = path.read_text(encoding="utf-8")
        schema = json.loads(text)["schema"]
        if schema != SCHEMA:
            raise UsageError(f"timing session {path} has schema {schema}, this version reads {SCHEMA}")
        session = checked(Session, text)
        check_rounds(session.rows)
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"timing session {path} is corrupt ({type(error).__name__}: {error}); delete it to time again"
        ) from error
    return session


def check_rounds(rows: Iterable[Row]) -> None:
    """Raise ValueError if rows differ in their number of samples or occur twice."""
    rows = list(rows)
    if len({len(row.seconds) for row in rows if row.error is None}) > 1:
        raise ValueError("rows have different numbers of samples")
    if any(row.seconds for row in rows if row.error is not None):
        raise ValueError("a row with an error has samples")
    if len({row.key for row in rows}) < len(rows):
        raise ValueError("a row occurs twice")


def read_all(out: Path) -> list[Session]:
    """The sessions of all machines in a results folder."""
    return [read(path) for path in sorted((out / "timing").glob("*.json"))]


def write(path: Path, session: Session) -> None:
    """Write a session atomically, with one line for each row."""
    content = asdict(session)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content.pop("rows"))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    replace_text(path, f'{head},\n "rows": [\n{rows}\n ]\n}}\n')
