"""The claims as files: claims.md (rounded), claims.csv and claims.json (unrounded), and figures of Pareto hulls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from tpbench.claims import hull
from tpbench.claims.at_base import several_widths
from tpbench.claims.claims import CLAIMS, sharing_a_hull
from tpbench.claims.study import Study
from tpbench.claims.summary import Summary, summaries, value_text
from tpbench.claims.verdict import Reading, Rule
from tpbench.record import replace_text
from tpbench.report.markdown import table

INTRODUCTION = """Made by `python -m tpbench claims` from records alone. The paper is Token Pooling in Vision
Transformers (Marin et al., WACV 2023); its numbers are for DeiT on ImageNet.

Every contrast is tested against the claim's bound and against the paper's effect. The claim *holds* or *does not hold*
where the contrast differs significantly from the bound. The paper's effect is *excluded* where the contrast does not
differ significantly from the bound and is significantly smaller than the effect. Otherwise the contrast is *undecided*.
Intervals are 95 % intervals of single readings, over seeds and test images. Verdicts are corrected by Holm's procedure
over the contrasts of one claim in one study. Computed numbers are not sampled and have no interval.

The bounds were set before the results were known: 0 for a difference; for equal accuracy a loss of 0.6 points, which is
the paper's own loss on one base; and, where the paper gives no number, 0.5 points (settings), 5 % of the clustering
objective (starts), 1 % (convergence) and 10 points (accuracy preserved off the shelf). Of studies that share their
bases, only the most precise counts. The verdict on a claim is the worst verdict of its quantities; each quantity is
decided by its most precise study. A claim that holds *differs between studies* where any counted reading of another
study does not; one that does not hold, where everything holds in another study that has the tests which failed. In
claims 3 and 4, each start of Token Pooling other than its default is a family of its own and only shown."""
PAPERS = "the paper's effect"
HULLS_CLAIM = 3  # equal accuracy at fewer computations
HULLS_CAPTION = (
    "Stars: unreduced models, joined by a dashed line. Points: the same models with Token Pooling, at several budgets."
    " Grey: the best at every cost. Means over bases; the table has the intervals."
)
HEADS = ("test", "study", "schedule", "paper", "ours", "unit", "holds if", "verdict", "seeds", "remark")


def write(folder: Path, studies: Sequence[Study], readings: Sequence[Reading]) -> list[Path]:
    """Write the three files and the figures into a folder; return their paths."""
    rows = [row(reading) for reading in readings]
    drawn = figures(folder, studies)
    texts = {
        "claims.md": markdown(studies, readings, drawn),
        "claims.csv": pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"),
        "claims.json": json.dumps([{k: _blank(v) for k, v in entry.items()} for entry in rows], indent=1) + "\n",
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [folder / name for name in texts] + drawn


def figures(folder: Path, studies: Sequence[Study]) -> list[Path]:
    """Draw the hull of every group of studies that has bases of several widths; return the paths."""
    evidence = [study for study in studies if not study.no_evidence]
    groups = [group for group in sharing_a_hull(evidence) if several_widths(group)]
    drawn = [hull.draw(group, folder / f"claims-hull-{group[0].recipe}.png") for group in groups]
    return [path for path in drawn if path is not None]


def row(reading: Reading) -> dict[str, Any]:
    """A reading as a row of claims.csv, unrounded; NaN where a number is not known."""
    low, high = reading.bounds
    return {
        "claim": reading.claim,
        "statement": CLAIMS[reading.claim],
        "topic": reading.topic,
        "test": reading.test,
        "study": reading.study,
        "schedule": reading.schedule,
        "paper": reading.paper,
        "paper_effect": reading.shown(reading.effect),
        "value": reading.value,
        "low": low,
        "high": high,
        "seeds": reading.ours.seeds,
        "unit": reading.unit,
        "holds_above": reading.shown(reading.rule.low),
        "holds_below": reading.shown(reading.rule.high),
        "verdict": reading.verdict,
        "effect_excluded": reading.effect_excluded,
        "counts": reading.counts,
        "remark": remark(reading),
    }


def _blank(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def remark(reading: Reading) -> str:
    """Why a reading does not count, what would decide it, and other notes; "" if there is nothing to say."""
    excluded = f"{reading.claimed or PAPERS} is excluded" if reading.effect_excluded else ""
    shown = f"shown only: {reading.shown_only}" if reading.shown_only else ""
    return "; ".join(text for text in (shown, reading.why_undecided, excluded, reading.note) if text)


def markdown(studies: Sequence[Study], readings: Sequence[Reading], hulls: Sequence[Path] = ()) -> str:
    """The page of all claims: a summary of each, then the studies, then every reading.

    hulls: the figures of Pareto hulls, in the folder of the page.
    """
    lines = ["# The paper's claims", ""]
    for one in summaries(readings):
        lines += _summary(one)
    lines += ["", INTRODUCTION]
    lines += ["", "Studies:", "", *([described(study) for study in studies] or ["- none"]), ""]
    for claim, text in CLAIMS.items():
        own = [reading for reading in readings if reading.claim == claim]
        lines += [f"## {claim}. {text}", ""]
        if claim == HULLS_CLAIM:
            lines += [f"![{path.stem}]({path.name})\n\n{HULLS_CAPTION}\n" for path in hulls]
        counted = [reading for reading in own if reading.counts or reading.missing]
        shown = [reading for reading in own if reading not in counted]
        if counted:
            lines += _table([_texts(reading) for reading in counted])
        if shown:
            lines += ["Shown only, without counting:", "", *_table([_texts(reading) for reading in shown])]
    return "\n".join(lines)


def _summary(one: Summary) -> list[str]:
    """A claim as an item of the list, with an item for each part below it."""
    claim, _, verdict = one.heading.rpartition(": ")
    studies = f" ({one.studies})" if one.studies else ""
    parts = [*one.parts, *(f"also {other}" for other in one.others)]
    return [f"{claim}: **{verdict}**{studies}", *(f"   - {part}" for part in parts)]


def described(study: Study) -> str:
    """A line about a study: its records, the accuracy of its base, and why it is not evidence."""
    parts = [f"- {study.name} (`{study.folder}`): {len(study.records)} records"]
    if study.base_top1 is not None:
        parts.append(f"the base at {study.base_top1:.1f} %")
    if study.no_evidence:
        parts.append(f"no evidence: {study.no_evidence}")
    elif not study.has_outcomes:
        parts.append(
            "without per-image outcomes (older records): the noise of its test images is not known, so its"
            " accuracies are shown and do not count"
        )
    if study.undeclared:
        parts.append(f"{study.undeclared} records at schedules that the recipe does not declare are left out")
    if study.older:
        parts.append(f"{study.older} older records without outcomes are left out")
    return ", ".join(parts)


def _texts(reading: Reading) -> list[str]:
    place = [reading.test, reading.study, reading.schedule, reading.paper or "not given"]
    seeds = "" if reading.exact else str(reading.ours.seeds or "")
    return [*place, value_text(reading), reading.unit, _rule(reading), reading.verdict, seeds, remark(reading)]


def _rule(reading: Reading) -> str:
    return ruled(Rule(low=_shown(reading, reading.rule.low), high=_shown(reading, reading.rule.high)))


def _shown(reading: Reading, bound: float) -> float:
    return reading.shown(bound) if isfinite(bound) else bound


def ruled(rule: Rule) -> str:
    """A rule in words: "above 80", "between 0.952 and 1.05"."""
    low, high = (f"{bound:.3g}" for bound in rule)
    if rule.low == -inf:
        return f"below {high}"
    return f"above {low}" if rule.high == inf else f"between {low} and {high}"


def _table(rows: list[list[str]]) -> list[str]:
    return table(HEADS, [[text.replace("|", r"\|") for text in texts] for texts in rows], left=len(HEADS))
