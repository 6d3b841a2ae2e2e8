"""How to reproduce the results of a study: its environment and its commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tpbench import recipe
from tpbench.errors import UsageError
from tpbench.report import first
from tpbench.report.findings import findings
from tpbench.report.page_rows import Study
from tpbench.report.write import measured_on

PYTHON = "python -m tpbench"


class About(NamedTuple):
    """The texts of the page about a study: findings, notes, machines, and how to repeat it. caution: see `caution`."""

    findings: list[str]
    notes: list[str]
    measured_on: list[str]
    commands: list[str]
    caution: str


def about(study: Study) -> About:
    """The texts of the page about a study."""
    comparison = study.comparison
    notes = [f"{section.title}: {note}" for section in first.sections(comparison) for note in section.notes]
    return About(
        findings=findings(comparison),
        notes=[*study.remarks, *notes, *first.remarks(comparison)],
        measured_on=list(dict.fromkeys(measured_on(record) for record in comparison.records if record.environment)),
        commands=commands(study),
        caution=caution(study),
    )


def commands(study: Study) -> list[str]:
    """The commands that repeat a study: check out the commit, if all records share one, and run."""
    records = study.comparison.records
    first_record = records[0]
    commits = {record.git["commit"] for record in records if record.git.get("commit")}
    variants = dict.fromkeys(record.method for record in records if not record.unreduced)
    schedules = dict.fromkeys(record.schedule for record in records if not record.unreduced)
    seeds = max(record.seed for record in records) + 1
    plain, lines = _parts(first_record.recipe)
    words = ["--recipe", plain]
    for line in lines:
        words += ["--set", line]
    if variants:
        found = ";".join(_with_path(schedule, study.folder) for schedule in schedules)
        words += ["--methods", ",".join(variants), "--schedules", found]
    else:
        words += ["--methods", "none"]
    words += ["--seeds", str(seeds), "--out", str(study.folder)]
    words += ["--deterministic"] if first_record.environment.get("deterministic") else []
    if variants and not any(record.training for record in records if not record.unreduced):
        words += ["--off-the-shelf"]
    checkout = [f"git checkout {commits.pop()}"] if len(commits) == 1 else []
    return [*checkout, f"{PYTHON} run {shlex.join(words)}"]


def _with_path(schedule: str, folder: Path) -> str:
    """A schedule as the command line takes it: for learned counts, with the path of their file."""
    stem = schedule.removeprefix("learned:")
    return schedule if stem == schedule else f"learned:{folder / 'learned' / stem}.json"


def _parts(name: str) -> tuple[str, list[str]]:
    """The plain name of a recipe, and the lines that the command line has changed: "digits", ["finetune.epochs=5"]."""
    plain, *lines = re.split(rf"{re.escape(recipe.OVERRIDDEN)}(?=[\w.]+=)", name)
    return plain, lines


def _digest(plain: str, lines: Sequence[str]) -> str:
    """The digest of a packaged recipe with these lines today; "" if it has such lines no longer."""
    try:
        return recipe.load(plain, lines=lines).digest
    except UsageError:
        return ""


def caution(study: Study) -> str:
    """Why the commands may not give the same records; "" if no reason is known."""
    records = study.comparison.records
    about = records[0]
    changed = any(record.git.get("changed") for record in records)
    several = len({record.git.get("commit") for record in records}) > 1
    said = []
    plain, lines = _parts(about.recipe)
    if plain not in recipe.names():
        said.append(f"The recipe {plain} is not a packaged one: pass its file to --recipe.")
    elif _digest(plain, lines) != about.recipe_digest:
        said.append(f"The recipe {about.recipe} has changed since these records ({about.recipe_digest}).")
    if several:
        said.append("The records were measured with several commits.")
    if changed:
        said.append("Files had been changed since the commit.")
    return " ".join(said)


def page_command(folders: Sequence[Path], path: Path) -> str:
    """The command that makes the page again from the records."""
    return f"{PYTHON} report {shlex.join([*map(str, folders), '--html', '--out', str(path)])}"
