"""A study: the records of one machine in one results folder, and whether they count as evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from tpbench import recipe
from tpbench.errors import UsageError
from tpbench.outcomes import Outcomes, unpack
from tpbench.record import Record, Spectrum, Store, read_json, read_spectrum
from tpbench.report.frame import by_machine

POOLING = "wkmedoids"  # the method of the paper's headline result
OTHER_START = "another start than the default"  # why a reading of it is only shown
START = re.compile(rf"^{POOLING}\(init=(\w+)\)$")
FINE_TUNED = "fine_tuned"
OFF_THE_SHELF = "off_the_shelf"
TRAINED = 0.9  # share of the expected base accuracy that a base must reach
SAME_LOSS = 1e-4  # relative difference of the losses of one base, evaluated on two machines


@dataclass(frozen=True)
class Study:
    """The successful records of one folder and machine, and what was measured on its bases.

    records: those with per-image outcomes if there are any, otherwise all; the two kinds are never mixed.
    older: the number of records without outcomes that were therefore left out. undeclared: the number of those left out
    because the packaged recipe does not declare their schedule, as with learned counts. expected: the top-1 in percent
    that the recipe expects of the base; 0 if the recipe states none, None if the recipe is not a packaged one.
    """

    folder: str
    machine: str
    records: list[Record]
    spectra: list[Spectrum] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    older: int = 0
    undeclared: int = 0
    expected: float | None = None

    @property
    def name(self) -> str:
        """The recipe and the machine."""
        return f"{self.recipe} on {self.machine}"

    @property
    def recipe(self) -> str:
        """The name of the recipe that all records share."""
        return self.records[0].recipe

    @property
    def images(self) -> str:
        """The fingerprint of the images that the study trains and tests on."""
        return str(self.records[0].data.get("fingerprint", self.folder))

    @property
    def has_outcomes(self) -> bool:
        """Whether any record says which test images were classified correctly."""
        return any(record.outcomes for record in self.records)

    # ------------------------------------------------------------------------------------ the base

    @property
    def bases(self) -> list[Record]:
        """The records of the unreduced model, one for each seed."""
        return [record for record in self.records if record.unreduced]

    @property
    def base(self) -> str:
        """The unreduced method's name; "" where it was not measured."""
        return self.bases[0].method if self.bases else ""

    @property
    def base_macs(self) -> int:
        """Multiply-adds of the base per image; 0 where none were counted."""
        return max((record.macs["unreduced"] for record in self.records if record.macs), default=0)

    @property
    def base_top1(self) -> float | None:
        """Top-1 of the trained base in percent, before fine-tuning, mean over seeds; None if it was not measured."""
        values = [100 * r.metrics[f"{OFF_THE_SHELF}_top1"] for r in self.bases if f"{OFF_THE_SHELF}_top1" in r.metrics]
        return fmean(values) if values else None

    @property
    def fine_tuned_on(self) -> int:
        """The number of images, repetitions included, that the fine-tuning of a base saw; 0 where there was none."""
        return max((record.training.get("images", 0) for record in self.bases), default=0)

    @property
    def no_evidence(self) -> str:
        """Why no claim may count this study; "" if it is evidence."""
        if self.expected is None:
            return ""
        if not self.expected:
            return f"smoke study (recipe {self.recipe} states no expected_base)"
        if self.base_top1 is not None and self.base_top1 < TRAINED * self.expected:
            reached = f"its base reaches {self.base_top1:.1f} %"
            return f"{reached}, less than {TRAINED:.0%} of the {self.expected:g} % that recipe {self.recipe} expects"
        return ""

    def shares_bases(self, other: Study) -> bool:
        """Whether the two studies have the same bases at their common seeds, so that they are not independent."""
        if self.images != other.images or self.base_macs != other.base_macs:
            return False
        theirs = {record.seed: record for record in other.bases}
        common = [(record, theirs[record.seed]) for record in self.bases if record.seed in theirs]
        return bool(common) and all(_same_base(a, b) for a, b in common)

    # ------------------------------------------------------------------------------------ rows

    def schedules(self, *prefixes: str) -> list[str]:
        """The schedules whose text starts with one of the prefixes; without prefixes, all counts and keep rates."""
        texts = dict.fromkeys(record.schedule for record in self.records if not record.unreduced)
        if prefixes:
            return [text for text in texts if text.startswith(prefixes)]
        return [text for text in texts if not text.startswith(("macs=", "latency="))]

    def of(self, method: str, schedule: str) -> list[Record]:
        """The records of a method at a schedule, over all seeds."""
        return self._rows.get((method, schedule), [])

    @cached_property
    def _rows(self) -> dict[tuple[str, str], list[Record]]:
        """The records by method and schedule."""
        rows: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            rows.setdefault((record.method, record.schedule), []).append(record)
        return rows

    @cached_property
    def _tables(self) -> dict[str, list[Record]]:
        """The records by schedule."""
        tables: dict[str, list[Record]] = {}
        for record in self.records:
            tables.setdefault(record.schedule, []).append(record)
        return tables

    def methods(self) -> list[str]:
        """The names of all methods, in the order of the records."""
        return list(dict.fromkeys(record.method for record in self.records))

    def other_starts(self) -> dict[str, str]:
        """Token Pooling from other starts than its default: the method's name with its setting, by start."""
        default = {record.config.get("init") for record in self.records if record.method == POOLING}
        found = {method: START.match(method) for method in self.methods()}
        return {match[1]: method for method, match in found.items() if match and match[1] not in default}

    def top1(self, schedule: str, stage: str) -> pd.DataFrame:
        """Top-1 in percent at a schedule: one row for each method, one column for each seed, NaN where not measured.

        stage: FINE_TUNED or OFF_THE_SHELF.
        """
        values: dict[int, dict[str, float]] = {}
        for record in self._tables.get(schedule, ()):
            top1 = record.metrics.get(f"{stage}_top1")
            if top1 is not None:
                values.setdefault(record.seed, {})[record.method] = 100 * top1
        return pd.DataFrame(values, dtype=float).sort_index().sort_index(axis=1)

    def outcomes(self, method: str, schedule: str, stage: str) -> dict[int, Outcomes]:
        """Which test images a method classified correctly at a schedule, by seed."""
        found = self.of(method, schedule)
        return {record.seed: unpack(record.outcomes[stage]) for record in found if stage in record.outcomes}

    def macs_share(self, method: str, schedule: str) -> float:
        """The multiply-adds of a method at a schedule as a share of the base's, mean over seeds."""
        return fmean(record.macs["total"] / record.macs["unreduced"] for record in self.of(method, schedule))


def _same_base(a: Record, b: Record) -> bool:
    name = f"{OFF_THE_SHELF}_loss" if f"{OFF_THE_SHELF}_loss" in a.metrics else f"{OFF_THE_SHELF}_top1"
    return name in a.metrics and name in b.metrics and isclose(a.metrics[name], b.metrics[name], rel_tol=SAME_LOSS)


# ------------------------------------------------------------------------------------------ from files


def read_studies(folders: Iterable[Path]) -> list[Study]:
    """One study for each machine of each results folder."""
    studies = []
    for folder in folders:
        for machine, records in by_machine(_records(folder)).items():
            good = [record for record in records if record.error is None]
            if good:
                studies.append(_study(folder, machine, good))
    return studies


def _study(folder: Path, machine: str, records: list[Record]) -> Study:
    name = records[0].recipe
    packaged = recipe.load(name, tuned=False) if name in recipe.names() else None
    declared = records if packaged is None else _as_declared(records, packaged)
    newer = [record for record in declared if record.outcomes]
    return Study(
        folder=folder.name,
        machine=machine,
        records=newer or declared,
        spectra=[read_spectrum(path) for path in sorted((folder / "spectra" / machine).glob("seed*.json"))],
        starts=[_starts(path) for path in sorted((folder / "starts" / machine).glob("seed*.json"))],
        older=len(declared) - len(newer) if newer else 0,
        undeclared=len(records) - len(declared),
        expected=None if packaged is None else packaged.expected_base,
    )


def _as_declared(records: list[Record], packaged: recipe.Recipe) -> list[Record]:
    """The records at schedules that their recipe declares, if any reduced row has one, or else all of them.

    Schedules that somebody added after seeing results must not move a claim's mean or interpolation.
    """
    schedules = {"none", *packaged.schedules}
    declared = [record for record in records if record.schedule in schedules]
    return declared if any(not record.unreduced for record in declared) else records


def _records(folder: Path) -> Store:
    """The readable records of a folder. The command that asks for the studies reports the others."""
    if not (folder / "records").is_dir():
        raise UsageError(f"{folder} holds no records")
    return Store.of(folder)


def _starts(path: Path) -> dict[str, Any]:
    """The clustering objectives in a JSON file. Raises UsageError, with the file's name, if a number is missing."""
    try:
        found = read_json(path)
        parts = [part for by_iterations in found["starts"].values() for part in by_iterations.values()]
        parts += found["unconverged"].values()
        # Raise KeyError here, not later, if a number is missing.
        _ = [found["images"], found["default"], *(part[name] for part in parts for name in ("mean", "sd"))]
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"objectives {path} is corrupt ({type(error).__name__}: {error}); delete it") from error
