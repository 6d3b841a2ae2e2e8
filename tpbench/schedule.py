"""Schedules: how many body tokens are left after which block. Exact integers, without torch.

    "0.7@3,6,9"           keep rate: K = int(N r), int(N r^2), int(N r^3) after blocks 3, 6, 9 (blocks count from 0)
    "137,96,67@3,6,9"     explicit K for each block
    "-13@0-11"            13 tokens fewer at each of the blocks 0 to 11
    "macs=0.6@3,6,9"      a keep rate, solved for each method, whose model costs this share of the unreduced one's MACs
    "latency=0.6@3,6,9"   the same by measured latency (`tpbench run` measures it)
    "learned:FILE"        the counts that `tpbench search` has learned and written to FILE
    "none"                nothing is reduced
K is always the number of body tokens after the step, without the prefix (class token, registers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from tpbench.errors import ScheduleError, UsageError
from tpbench.record import read_learned


class Kind(StrEnum):
    """How a schedule says how many tokens are left."""

    NONE = "none"  # nothing is reduced
    RATE = "rate"  # the share r of the tokens that each block keeps: K = int(N r^s) after the s-th
    COUNTS = "counts"  # K after each block
    STEP = "step"  # how many tokens leave at each block
    MACS = "macs"  # the share of the unreduced model's multiply-adds; counts are solved for each method
    LATENCY = "latency"  # the share of the unreduced model's latency; counts are measured for each method
    LEARNED = "learned"  # K after each block, from a file of `tpbench search`


MOST_DIGITS = 20  # of a number
MOST_BLOCKS = 10_000  # of a range
UNITS = {Kind.MACS: "MACs", Kind.LATENCY: "latency"}  # the kinds that name a budget, and what it is a share of


@dataclass(frozen=True)
class Schedule:
    """A parsed schedule: its text, the blocks that reduce (from 0, rising), and the one value that its kind needs."""

    text: str
    blocks: tuple[int, ...] = ()
    kind: Kind = Kind.NONE
    rate: Fraction | None = None  # of RATE, in (0, 1]
    counts: tuple[int, ...] | None = None  # of COUNTS and LEARNED, one for each of `blocks`
    step: int | None = None  # of STEP
    budget: Fraction | None = None  # of MACS and LATENCY, in (0, 1]: the share of the unreduced model's cost to meet

    @property
    def unit(self) -> str:
        """What the budget is a share of: MACs or latency."""
        return UNITS[self.kind]

    @property
    def expected_cost(self) -> float:
        """The share of the unreduced model's cost that is asked for, for estimates; 1.0 where there is no budget."""
        return float(self.budget or 1)

    def requested(self, patches: int, depth: int) -> tuple[int, ...]:
        """K after each of `blocks` for a model with this many patches and blocks.

        Raises ScheduleError for a block that the model does not have, for counts that rise or fall below 1, and for a
        budget, which must first be solved for a model and method.
        """
        if self.kind in UNITS:
            raise ScheduleError(
                f"schedule {self.text!r}: a share of {self.unit} must be solved for a model and method first"
            )
        self.check(depth)
        before = patches
        counts = self._counts(patches)
        for block, k in zip(self.blocks, counts):
            if not 1 <= k <= before:
                limit = "at least 1 must stay" if k < 1 else f"only {before} arrive"
                raise ScheduleError(
                    f"schedule {self.text!r}: {k} tokens after block {block} cannot be reached ({limit})"
                )
            before = k
        return counts

    def _counts(self, patches: int) -> tuple[int, ...]:
        stages = range(1, len(self.blocks) + 1)
        if self.kind is Kind.RATE:
            return tuple(int(patches * self.rate**stage) for stage in stages)
        if self.kind is Kind.STEP:
            return tuple(patches - self.step * stage for stage in stages)
        if self.kind in (Kind.COUNTS, Kind.LEARNED):
            return self.counts
        return ()

    def with_counts(self, counts: Sequence[int]) -> Schedule:
        """The schedule that keeps these counts at the same blocks."""
        return Schedule(spell(counts, self.blocks), self.blocks, kind=Kind.COUNTS, counts=tuple(counts))

    def check(self, depth: int) -> None:
        """Raise ScheduleError if a model of this depth does not have all of the blocks."""
        for block in self.blocks:
            if block >= depth:
                raise ScheduleError(
                    f"schedule {self.text!r}: block {block} is out of range, the model has blocks 0-{depth - 1}"
                )


def parse(text: str) -> Schedule:
    """Read one schedule. Raises ScheduleError for a text that cannot be read or that no model can meet."""
    text = text.strip()
    if text in ("", "none"):
        return Schedule("none")
    if text.startswith("learned:"):
        return _learned(Path(text.removeprefix("learned:")))
    if re.search(rf"\d{{{MOST_DIGITS + 1}}}", text):
        raise ScheduleError(f"schedule {text[:40]!r}...: a number has more than {MOST_DIGITS} digits")
    budget, separator, where = text.partition("@")
    if not separator or not where:
        raise ScheduleError(
            f"schedule {text!r}: expected BUDGET@BLOCKS, as in 0.7@3,6,9 or 137,96,67@3,6,9 or -13@0-11"
        )
    blocks = _blocks(text, where)
    return Schedule(text, blocks, **_value(text, budget, stages=len(blocks)))


def _value(text: str, budget: str, stages: int) -> dict[str, Any]:
    """The kind of a schedule and the value that it needs, from the part before the @."""
    if match := re.fullmatch(r"(macs|latency)=(\d*\.?\d+)", budget):
        kind = Kind(match[1])
        return {"kind": kind, "budget": _share(text, match[2], f"share of {UNITS[kind]}")}
    if match := re.fullmatch(r"-(\d+)", budget):
        return {"kind": Kind.STEP, "step": int(match[1])}
    if re.fullmatch(r"\d+(,\d+)*", budget) and not (budget in ("0", "1") and stages != 1):
        counts = tuple(int(count) for count in budget.split(","))
        if len(counts) != stages:
            raise ScheduleError(f"schedule {text!r}: {len(counts)} counts for {stages} blocks")
        return {"kind": Kind.COUNTS, "counts": counts}
    if re.fullmatch(r"[-+]?\d*\.?\d+", budget):
        return {"kind": Kind.RATE, "rate": _share(text, budget, "keep rate")}
    raise ScheduleError(
        f"schedule {text!r}: {budget!r} is neither a keep rate, a list of counts, -STEP, macs=SHARE nor latency=SHARE"
    )


def parse_all(text: str | Sequence[str]) -> tuple[Schedule, ...]:
    """Read several schedules, separated by semicolons. Raises ScheduleError as `parse` does, and for none at all."""
    given = text.split(";") if isinstance(text, str) else text
    parts = [part for part in given if part.strip()]
    if not parts:
        raise ScheduleError("no schedule is given: a budget such as 0.7@3,6,9 is needed")
    return tuple(parse(part) for part in parts)


def spell(counts: Sequence[int], blocks: Sequence[int]) -> str:
    """The explicit form of a schedule: "137,96,67@3,6,9"."""
    return f"{','.join(map(str, counts))}@{','.join(map(str, blocks))}"


def _learned(path: Path) -> Schedule:
    """The counts in a file of `tpbench search`, at the blocks where tokens leave."""
    try:
        found = read_learned(path)
    except UsageError as error:
        raise ScheduleError(str(error)) from error
    counts = found.counts
    before = [found.patches, *counts]
    blocks = tuple(block for block, (n, k) in enumerate(zip(before, counts)) if k < n)
    leaving = tuple(counts[block] for block in blocks)
    return Schedule(f"learned:{path.stem}", blocks, kind=Kind.LEARNED, counts=leaving)


def _share(text: str, value: str, what: str) -> Fraction:
    """A share as an exact fraction; `what` names it if it is outside (0, 1]."""
    share = Fraction(value)
    if not 0 < share <= 1:
        raise ScheduleError(f"schedule {text!r}: the {what} {value} is outside (0, 1]")
    return share


def _blocks(text: str, where: str) -> tuple[int, ...]:
    """The blocks that a text such as "0-3,6" names."""
    blocks: list[int] = []
    for part in where.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ScheduleError(f"schedule {text!r}: {part!r} is not a block number or a range of them (0-based)")
        first = int(match[1])
        last = int(match[2] or first)
        if last - first >= MOST_BLOCKS:
            raise ScheduleError(f"schedule {text!r}: {part!r} names more blocks than any model has")
        blocks.extend(range(first, last + 1))
    if not blocks or any(b >= a for b, a in pairwise(blocks)):
        raise ScheduleError(f"schedule {text!r}: the blocks must be named once each, in rising order")
    return tuple(blocks)
