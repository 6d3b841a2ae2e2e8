"""Which methods keep the same tokens, and which group patches alike: tables from the stages that `pictures` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tpbench.record import replace_text
from tpbench.report.pictures import Stage

KEPT = """\
Tokens kept in common: of the patches that two methods keep as tokens of their own, how many both keep, as a share of
the fewer; mean over the images. By chance it is {chance}. In brackets, how many each method keeps."""
GROUPED = """\
Patches grouped alike: the adjusted Rand index of two groupings, mean over the images; 1 is the same grouping, 0 what
chance gives. Of methods that drop nothing."""


def write(folder: Path, rows: Mapping[str, Sequence[Stage]], about: str) -> Path:
    """FOLDER/overlap.md: the tables behind every block."""
    lines = ["# Which methods keep the same tokens", "", f"{about}.", ""]
    for number, stage in enumerate(next(iter(rows.values()))):
        here = {name: stages[number] for name, stages in rows.items() if number < len(stages)}
        lines += [f"## After block {stage.block}", "", *tables(here)]
    path = folder / "overlap.md"
    replace_text(path, "\n".join(lines))
    return path


def tables(rows: Mapping[str, Stage]) -> list[str]:
    """The Markdown lines of one block's tables."""
    keeping = {name: stage for name, stage in rows.items() if kept_count(stage)}
    grouping = {name: stage for name, stage in rows.items() if (stage.owner >= 0).all()}
    lines: list[str] = []
    if len(keeping) > 1:
        heads = {name: f"{name} ({kept_count(stage):.0f})" for name, stage in keeping.items()}
        lines += [*KEPT.format(chance=chance(list(keeping.values()))).splitlines(), ""]
        lines += [*matrix(keeping, heads, kept_in_common), ""]
    if len(grouping) > 1:
        lines += [*GROUPED.splitlines(), "", *matrix(grouping, {name: name for name in grouping}, grouped_alike), ""]
    without = [name for name in rows if name not in keeping and name not in grouping]
    if without:
        lines += [f"Neither: {', '.join(without)}.", ""]
    return lines


def matrix(rows: Mapping[str, Stage], heads: Mapping[str, str], measure: Callable[[Stage, Stage], float]) -> list[str]:
    """A row and a column for every method."""
    lines = [f"| Method | {' | '.join(map(escaped, heads.values()))} |", f"| :-- |{' --: |' * len(rows)}"]
    for name, stage in rows.items():
        cells = ["" if other is stage else f"{measure(stage, other):.2f}" for other in rows.values()]
        lines.append(f"| {escaped(name)} | {' | '.join(cells)} |")
    return lines


def escaped(name: str) -> str:
    """A name for a cell of a Markdown table."""
    return name.replace("|", r"\|")


def kept(stage: Stage, image: int) -> np.ndarray:
    """The patches that are tokens of their own still."""
    return stage.patch[image][stage.patch[image] >= 0]


def kept_count(stage: Stage) -> float:
    """Patches that are tokens of their own still, mean over the images."""
    return float((stage.patch >= 0).sum(axis=1).mean())


def chance(stages: Sequence[Stage]) -> str:
    """What two methods have in common that draw as many patches at random as the methods here keep."""
    shares = [kept_count(stage) / stage.owner.shape[1] for stage in stages]
    low = min(shares)
    high = max(shares)
    return f"{high:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}, the larger share of the two"


def kept_in_common(one: Stage, other: Stage) -> float:
    """Of the patches kept by both, the share of what the one that keeps fewer keeps; mean over the images with any."""
    shares = []
    for image in range(len(one.patch)):
        ours = kept(one, image)
        theirs = kept(other, image)
        if len(ours) and len(theirs):
            shares.append(len(np.intersect1d(ours, theirs)) / min(len(ours), len(theirs)))
    return float(np.mean(shares)) if shares else float("nan")


def grouped_alike(one: Stage, other: Stage) -> float:
    """Adjusted Rand index of the groups of patches, mean over the images."""
    from sklearn.metrics import adjusted_rand_score

    return float(np.mean([adjusted_rand_score(a, b) for a, b in zip(one.owner, other.owner)]))
