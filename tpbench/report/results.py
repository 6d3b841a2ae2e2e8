"""What a results folder holds, compared once: for its written report, the terminal's tables and its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpbench.measure.timings import Session
from tpbench.record import Record, Store
from tpbench.report import contrast as contrasts
from tpbench.report import sessions
from tpbench.report.contrast import Contrast
from tpbench.report.frame import Comparison, compare


@dataclass(frozen=True, eq=False)
class Results:
    """The timing sessions of a folder, and one comparison for every machine that has records in it."""

    folder: Path
    contrast: Contrast | None
    sessions: list[Session]
    comparisons: list[Comparison]

    @staticmethod
    def of(folder: Path, contrast: Contrast | None = None) -> Results:
        """Read and compare what a folder holds.

        contrast: which method the others are compared with; by default what the folder keeps, or else what the
        records' recipe declares. Raises UsageError for records that cannot share a table.
        """
        found = sessions.of(folder)
        contrast = contrast or contrasts.of(folder)
        return Results(
            folder=folder,
            contrast=contrast,
            sessions=found,
            comparisons=compare(Store.of(folder), contrast, timed=found),
        )

    def of_records(self, records: Sequence[Record]) -> list[Comparison]:
        """The comparisons of some of the folder's records: its own where they are all of the machine's."""
        machines = {record.machine for record in records}
        whole = [own for own in self.comparisons if own.machine in machines]
        if sum(len(own.records) for own in whole) == len(records):
            return whole
        return compare(records, self.contrast, timed=self.sessions)
