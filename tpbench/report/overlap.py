"""Which methods keep the same tokens, and which group patches alike: tables from the stages of `pictures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tpbench.record import replace_text
from tpbench.report.markdown import escape, table
from tpbench.report.pictures import Stage

KEPT = """\
Tokens kept in common: the number of patches that both methods keep as separate tokens, divided by the smaller of the
two numbers that they keep; mean over the images. For random tokens it would be {chance}. The number in brackets is how
many a method keeps."""
GROUPED = """\
Patches grouped alike: the adjusted Rand index of two groupings, mean over the images. 1 means the same grouping, and 0
is expected for random groupings. Only methods that drop no patch are compared."""


def write(folder: Path, rows: Mapping[str, Sequence[Stage]], about: str) -> Path:
    """Write FOLDER/overlap.md, the tables after each block; return its path. rows: the stages of each method."""
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
        lines += matrix(keeping, heads, kept_in_common)
    if len(grouping) > 1:
        lines += [*GROUPED.splitlines(), "", *matrix(grouping, {name: name for name in grouping}, grouped_alike)]
    without = [name for name in rows if name not in keeping and name not in grouping]
    if without:
        lines += [f"In neither table: {', '.join(without)}.", ""]
    return lines


def matrix(rows: Mapping[str, Stage], heads: Mapping[str, str], measure: Callable[[Stage, Stage], float]) -> list[str]:
    """A table with a row and a column for each method. heads: the columns' headings."""
    lines = []
    for name, stage in rows.items():
        cells = ["" if other is stage else f"{measure(stage, other):.2f}" for other in rows.values()]
        lines.append([escape(name), *cells])
    return table(["Method", *map(escape, heads.values())], lines)


def kept(stage: Stage, image: int) -> np.ndarray:
    """The patches of an image that are still separate tokens."""
    return stage.patch[image][stage.patch[image] >= 0]


def kept_count(stage: Stage) -> float:
    """The number of patches that are still separate tokens, mean over the images."""
    return float((stage.patch >= 0).sum(axis=1).mean())


def chance(stages: Sequence[Stage]) -> str:
    """What two methods would have in common if they kept as many patches, drawn at random."""
    shares = [kept_count(stage) / stage.owner.shape[1] for stage in stages]
    low = min(shares)
    high = max(shares)
    return f"{high:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}, the larger share of the two"


def kept_in_common(one: Stage, other: Stage) -> float:
    """The patches that both keep, as a share of the smaller number kept; mean over the images where both keep any."""
    shares = []
    for image in range(len(one.patch)):
        ours = kept(one, image)
        theirs = kept(other, image)
        if len(ours) and len(theirs):
            shares.append(len(np.intersect1d(ours, theirs)) / min(len(ours), len(theirs)))
    return float(np.mean(shares)) if shares else float("nan")


def grouped_alike(one: Stage, other: Stage) -> float:
    """The adjusted Rand index of two groupings of patches, mean over the images."""
    from sklearn.metrics import adjusted_rand_score

    return float(np.mean([adjusted_rand_score(a, b) for a, b in zip(one.owner, other.owner)]))
