"""The table of claims as files: claims.md (rounded), claims.csv and claims.json (in full), and the hulls' figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from tpbench.claims import hull
from tpbench.claims.claims import CLAIMS, same_images, several_widths
from tpbench.claims.study import Study
from tpbench.claims.verdict import FAILS, HOLDS, OPEN, Reading
from tpbench.record import replace_text
from tpbench.report.interval import interval
from tpbench.report.layout import fixed

INTRODUCTION = """Made by `python -m tpbench claims` from records alone. The paper is Token Pooling in Vision
Transformers (Marin et al., WACV 2023); its numbers are for DeiT on ImageNet. Ours are means with 95 % intervals over
seeds (Student's t), differences paired by seed; what is counted and not sampled has no interval. A reading holds or
does not hold only where the whole interval lies on one side of its bound; intervals are not corrected for the number
of readings. The bounds were set before the results: the paper's own number where it gives one, otherwise 0 for a
difference, and for what it states without a number 0.5 points (robust, converged) and 10 points (preserved off the
shelf). A Pareto front over noisy points flatters: it follows the luckiest."""


def write(folder: Path, studies: Sequence[Study], readings: Sequence[Reading]) -> list[Path]:
    """Write the three files and the figures and return their paths."""
    rows = [row(reading) for reading in readings]
    texts = {
        "claims.md": markdown(studies, readings),
        "claims.csv": pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"),
        "claims.json": json.dumps([{k: _blank(v) for k, v in entry.items()} for entry in rows], indent=1) + "\n",
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [folder / name for name in texts] + figures(folder, studies)


def figures(folder: Path, studies: Sequence[Study]) -> list[Path]:
    """The hull of every group of studies on bases of several widths."""
    groups = [group for group in same_images(studies) if several_widths(group)]
    return [hull.draw(group, folder / f"claims-hull-{group[0].recipe}.png") for group in groups]


def row(reading: Reading) -> dict[str, Any]:
    """A reading in full. NaN where nothing is known."""
    return {
        "claim": reading.claim,
        "statement": CLAIMS[reading.claim],
        "test": reading.test,
        "study": reading.study,
        "schedule": reading.schedule,
        "paper": reading.paper,
        "mean": reading.ours.mean,
        "half_width": 0.0 if reading.exact else reading.ours.half_width,
        "n": reading.ours.n,
        "unit": reading.unit,
        "holds_if": str(reading.rule),
        "verdict": reading.verdict,
        "decided_by": reading.decided_by,
        "detail": reading.detail,
        "note": reading.note,
    }


def _blank(value: Any) -> Any:
    return None if isinstance(value, float) and isnan(value) else value


def summary(readings: Sequence[Reading]) -> list[tuple[int, str, str]]:
    """(claim, its statement, how its readings came out)."""
    return [(claim, text, outcome([r for r in readings if r.claim == claim])) for claim, text in CLAIMS.items()]


def outcome(readings: Sequence[Reading]) -> str:
    """The verdict of a claim: it holds if every reading does; otherwise how many say what. Details are not counted."""
    verdicts = [reading.verdict for reading in readings if not reading.detail]
    holds, fails, undecided = (verdicts.count(verdict) for verdict in (HOLDS, FAILS, OPEN))
    counts = f"of {len(verdicts)} readings {holds} hold, {fails} do not, {undecided} undecided"
    if not holds + fails:
        return OPEN
    if holds == len(verdicts):
        return HOLDS
    if fails == len(verdicts):
        return FAILS
    if holds and fails:
        return f"holds in part ({counts})"
    return f"{FAILS if fails else OPEN} ({counts})"


def markdown(studies: Sequence[Study], readings: Sequence[Reading]) -> str:
    lines = ["# The paper's claims", "", INTRODUCTION, "", "Studies:", ""]
    lines += [_study(study) for study in studies] or ["- none"]
    lines += ["", *_table(["", "claim", "verdict"], [[str(n), text, said] for n, text, said in summary(readings)])]
    for claim, text in CLAIMS.items():
        own = [reading for reading in readings if reading.claim == claim]
        heads = [
            "test",
            "study",
            "schedule",
            "paper",
            "ours",
            "unit",
            "holds if",
            "verdict",
            "n",
            "what would decide it",
        ]
        lines += [f"## {claim}. {text}", "", *_table(heads, [_texts(reading) for reading in own])]
    return "\n".join(lines)


def _study(study: Study) -> str:
    """What was measured there, and how good its base is: claims are about models that have learned something."""
    base = fixed(interval(study.top1(study.base, "none").values()).mean, 1)
    quality = f", the base at {base} %" if base else ""
    return f"- {study.name} (`{study.folder}`): {len(study.records)} records{quality}"


def _texts(reading: Reading) -> list[str]:
    schedule = f"{reading.schedule} (detail)" if reading.detail else reading.schedule
    test = f"{reading.test}; {reading.note}" if reading.note else reading.test
    place = [test, reading.study, schedule, reading.paper or "not given"]
    bound = [reading.unit, str(reading.rule), reading.verdict, str(reading.ours.n or ""), reading.decided_by]
    return [*place, ours(reading), *bound]


def ours(reading: Reading) -> str:
    """mean ± half-width, the mean alone where there is no interval, nothing where nothing was measured."""
    decimals = 3 if reading.unit == "ratio" else 2
    mean, half_width = fixed(reading.ours.mean, decimals), fixed(reading.ours.half_width, decimals)
    return mean if reading.exact or not half_width else f"{mean} ± {half_width}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, [":--"] * len(heads), *([text.replace("|", r"\|") for text in texts] for texts in rows)]
    return [f"| {' | '.join(texts)} |" for texts in lines] + [""]
