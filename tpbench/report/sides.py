"""The two sides of `tpbench compare A B`: the records and timing sessions that each text names.

DIR                 a results folder; its only machine, or every machine that both sides have
DIR:MACHINE         one machine of the folder
DIR@COMMIT          the folder as it was committed; a commit is a hash, a branch, or for instance HEAD~1
DIR@COMMIT:MACHINE  one machine of that
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tpbench.errors import UsageError
from tpbench.measure import timings
from tpbench.measure.timings import Session
from tpbench.record import Record, Store
from tpbench.record.committed import folder_at
from tpbench.report import contrast as contrasts
from tpbench.report.contrast import Contrast
from tpbench.report.frame import by_machine


class SideText(NamedTuple):
    """The parts of a side's text; commit and machine are "" if it does not name them."""

    folder: Path
    commit: str
    machine: str


@dataclass(frozen=True)
class Side:
    """One side as read.

    contrast: what the folder declares, None for a packaged recipe. unread: one line for each record that could not be
    read, with the reason.
    """

    text: str
    machines: dict[str, list[Record]]
    sessions: dict[str, Session] = field(default_factory=dict)
    contrast: Contrast | None = None
    unread: tuple[str, ...] = ()


def parse(text: str) -> SideText:
    """Split a side's text into its parts. If a folder of that name exists, @ and : belong to its name."""
    folder = text
    commit = ""
    machine = ""
    if not Path(folder).is_dir() and (match := re.fullmatch(r"(.+):([^:/\\]+)", folder)):
        folder, machine = match.groups()
    if not Path(folder).is_dir() and (match := re.fullmatch(r"(.+?)@(.+)", folder)):
        folder, commit = match.groups()
    return SideText(Path(folder), commit=commit, machine=machine)


@contextmanager
def located(named: SideText) -> Iterator[Path]:
    """The folder to read for a side. The folder of a commit exists only within the context."""
    if not named.commit:
        yield named.folder
        return
    with folder_at(named.folder, named.commit) as folder:
        yield folder


def read(text: str) -> Side:
    """Read the records and timing sessions of a side. Raises UsageError if there are no records, or mixed recipes."""
    named = parse(text)
    with located(named) as folder:
        store = Store.of(folder)
        machines = by_machine(store)
        sessions = {session.machine: session for session in timings.read_all(folder) if session.rounds}
        contrast = contrasts.of(folder)
        unread = tuple(bad.reason.replace(str(folder), text) for bad in store.bad)
    if not machines:
        raise UsageError(unread[0] if unread else f"{text} holds no records")
    if named.machine:
        if named.machine not in machines:
            raise UsageError(f"{text} holds no records of {named.machine}; it has {', '.join(machines)}")
        machines = {named.machine: machines[named.machine]}
    return Side(text, machines=machines, sessions=sessions, contrast=contrast, unread=unread)


def pairs(a: Side, b: Side) -> list[tuple[str, str]]:
    """The pairs of machines to compare: those that both sides have, or the only one of each.

    Raises UsageError if the pair is not clear.
    """
    common = [machine for machine in a.machines if machine in b.machines]
    if common:
        return [(machine, machine) for machine in common]
    if len(a.machines) == len(b.machines) == 1:
        (first,) = a.machines
        (second,) = b.machines
        return [(first, second)]
    raise UsageError(
        f"{a.text} and {b.text} have no machine in common ({', '.join(a.machines)}; {', '.join(b.machines)}): choose"
        " one of each with DIR:MACHINE"
    )
