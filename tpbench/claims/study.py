"""A study: what one results folder holds of one machine, asked for differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpbench.errors import UsageError
from tpbench.record import Record, read_all
from tpbench.report.frame import by_machine

Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Study:
    """The records without failure of one folder and machine, and the spectra of its bases."""

    folder: str
    machine: str
    records: list[Record]
    spectra: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.recipe} on {self.machine}"

    @property
    def recipe(self) -> str:
        return self.records[0].recipe

    @property
    def base(self) -> str:
        """The unreduced method's name; "" where it was not measured."""
        return next((record.method for record in self.records if record.unreduced), "")

    @property
    def images(self) -> str:
        """Which images were trained and tested on."""
        return str(self.records[0].data.get("fingerprint", self.folder))

    def schedules(self, *prefixes: str) -> list[str]:
        """The schedules whose text begins with a prefix; without one, those that give tokens or keep rates."""
        texts = dict.fromkeys(record.schedule for record in self.records if not record.unreduced)
        if prefixes:
            return [text for text in texts if text.startswith(prefixes)]
        return [text for text in texts if not text.startswith(("macs=", "latency="))]

    def of(self, method: str, schedule: str) -> list[Record]:
        return [record for record in self.records if record.method == method and record.schedule == schedule]

    def methods(self) -> list[str]:
        return list(dict.fromkeys(record.method for record in self.records))

    def values(self, method: str, schedule: str, value: Callable[[Record], float | None]) -> Values:
        """A value by seed, of the records that have it."""
        told = {record.seed: value(record) for record in self.of(method, schedule)}
        return {seed: number for seed, number in told.items() if number is not None}

    def top1(self, method: str, schedule: str, stage: str = "fine_tuned") -> Values:
        """Percent by seed."""
        return self.values(method, schedule, lambda record: percent(record.metrics.get(f"{stage}_top1")))


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def difference(a: Values, b: Values) -> Values:
    """a - b for the seeds that both have."""
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def mean_by_seed(several: Iterable[Values]) -> Values:
    """The mean of several values of one seed, for the seeds that all of them have."""
    several = list(several)
    seeds = set.intersection(*(set(values) for values in several)) if several else set()
    return {seed: sum(values[seed] for values in several) / len(several) for seed in sorted(seeds)}


def read_studies(folders: Iterable[Path]) -> list[Study]:
    """Every machine of every results folder."""
    studies = []
    for folder in folders:
        for machine, records in by_machine(read_all(folder)).items():
            spectra = [_spectrum(path) for path in sorted((folder / "spectra" / machine).glob("seed*.json"))]
            good = [record for record in records if record.error is None]
            if good:
                studies.append(Study(folder.name, machine, good, spectra))
    return studies


def _spectrum(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        told["at_the_keys"]["high_over_low"], told["as_it_is"]["high_over_low"], told["one_key_norm"]["high_over_low"]
        return told
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"spectrum {path} is corrupt ({type(error).__name__}: {error}); delete it") from error
