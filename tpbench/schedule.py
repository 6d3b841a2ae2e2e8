"""Schedules: how many body tokens are left after which block. Pure integers; no torch.

    "0.7@3,6,9"           keep rate: K = int(N r), int(N r^2), int(N r^3) after blocks 3, 6, 9 (blocks count from 0)
    "137,96,67@3,6,9"     explicit K for each block
    "-13@0-11"            13 tokens fewer at each of the blocks 0 to 11
    "macs=0.6@3,6,9"      a keep rate, solved for each method, whose model costs this share of the unreduced one's MACs
    "latency=0.6@3,6,9"   the same by measured latency (`tpbench run` measures it)
    "learned:FILE"        the counts that `tpbench search` has learned and written to FILE
    "none"                nothing is reduced
K is always the number of body tokens after the step; the prefix (class token, registers) is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from tpbench.errors import ScheduleError
from tpbench.record import read_json


@dataclass(frozen=True)
class Schedule:
    """A parsed schedule. Exactly one of rate, counts, step and the shares is set, or none for the empty schedule."""

    text: str
    blocks: tuple[int, ...] = ()
    rate: Fraction | None = None
    counts: tuple[int, ...] | None = None
    step: int | None = None
    macs_share: Fraction | None = None
    latency_share: Fraction | None = None

    @property
    def budget(self) -> Fraction | None:
        """The share of the unreduced model's cost that is to be met, for schedules that name one."""
        return self.macs_share if self.latency_share is None else self.latency_share

    @property
    def unit(self) -> str:
        """What the budget is a share of."""
        return "MACs" if self.latency_share is None else "latency"

    def requested(self, patches: int, depth: int) -> tuple[int, ...]:
        """K after each of `blocks` for a model with this many patches and blocks; unreachable ones are refused."""
        if self.macs_share is not None or self.latency_share is not None:
            what = "MACs" if self.latency_share is None else "latency"
            raise ScheduleError(
                f"schedule {self.text!r}: a share of {what} must be solved for a model and method first"
            )
        self.check(depth)
        if self.rate is not None:
            wanted = [int(patches * self.rate ** (stage + 1)) for stage in range(len(self.blocks))]
        elif self.step is not None:
            wanted = [patches - self.step * (stage + 1) for stage in range(len(self.blocks))]
        else:
            wanted = list(self.counts or ())
        before = patches
        for block, k in zip(self.blocks, wanted):
            if not 1 <= k <= before:
                limit = "at least 1 must stay" if k < 1 else f"only {before} arrive"
                raise ScheduleError(
                    f"schedule {self.text!r}: {k} tokens after block {block} cannot be reached ({limit})"
                )
            before = k
        return tuple(wanted)

    def counting(self, counts: Sequence[int]) -> Schedule:
        """The schedule of these counts at the same blocks."""
        return Schedule(spell(counts, self.blocks), self.blocks, counts=tuple(counts))

    def check(self, depth: int) -> None:
        """Refuse blocks that a model of this depth does not have."""
        for block in self.blocks:
            if block >= depth:
                raise ScheduleError(
                    f"schedule {self.text!r}: block {block} is out of range, the model has blocks 0-{depth - 1}"
                )


def parse(text: str) -> Schedule:
    """Read one schedule; what cannot be read or can never be reached is a ScheduleError."""
    text = text.strip()
    if text in ("", "none"):
        return Schedule("none")
    if text.startswith("learned:"):
        return _learned(Path(text.removeprefix("learned:")))
    budget, separator, where = text.partition("@")
    if not separator or not where:
        raise ScheduleError(
            f"schedule {text!r}: expected BUDGET@BLOCKS, as in 0.7@3,6,9 or 137,96,67@3,6,9 or -13@0-11"
        )
    blocks = _blocks(text, where)
    if match := re.fullmatch(r"(macs|latency)=(\d*\.?\d+)", budget):
        kind = {"macs": "MACs"}.get(match[1], match[1])
        return Schedule(text, blocks, **{f"{match[1]}_share": _share(text, match[2], f"share of {kind}")})
    if match := re.fullmatch(r"-(\d+)", budget):
        return Schedule(text, blocks, step=int(match[1]))
    if re.fullmatch(r"\d+(,\d+)*", budget) and not (budget in ("0", "1") and len(blocks) != 1):
        counts = tuple(int(count) for count in budget.split(","))
        if len(counts) != len(blocks):
            raise ScheduleError(f"schedule {text!r}: {len(counts)} counts for {len(blocks)} blocks")
        return Schedule(text, blocks, counts=counts)
    if re.fullmatch(r"[-+]?\d*\.?\d+", budget):
        return Schedule(text, blocks, rate=_share(text, budget, "keep rate"))
    raise ScheduleError(
        f"schedule {text!r}: {budget!r} is neither a keep rate, a list of counts, -STEP, macs=SHARE nor latency=SHARE"
    )


def parse_all(text: str | Sequence[str]) -> tuple[Schedule, ...]:
    """Several schedules, separated by semicolons."""
    parts = [part for part in (text.split(";") if isinstance(text, str) else text) if part.strip()]
    if not parts:
        raise ScheduleError("no schedule is given: a budget such as 0.7@3,6,9 is needed")
    return tuple(parse(part) for part in parts)


def spell(counts: Sequence[int], blocks: Sequence[int]) -> str:
    """The explicit form of a schedule: "137,96,67@3,6,9"."""
    return f"{','.join(map(str, counts))}@{','.join(map(str, blocks))}"


def _learned(path: Path) -> Schedule:
    """The counts in a file of `tpbench search`, at the blocks where tokens leave."""
    try:
        found = read_json(path)
        counts, before = [int(k) for k in found["counts"]], [int(found["patches"]), *found["counts"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ScheduleError(f"learned schedule {path} cannot be read ({type(error).__name__}: {error})") from error
    blocks = tuple(block for block, (n, k) in enumerate(zip(before, counts)) if k < n)
    return Schedule(f"learned:{path.stem}", blocks, counts=tuple(counts[block] for block in blocks))


def _share(text: str, value: str, what: str) -> Fraction:
    share = Fraction(value)
    if not 0 < share <= 1:
        raise ScheduleError(f"schedule {text!r}: the {what} {value} is outside (0, 1]")
    return share


def _blocks(text: str, where: str) -> tuple[int, ...]:
    blocks: list[int] = []
    for part in where.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ScheduleError(f"schedule {text!r}: {part!r} is not a block number or a range of them (0-based)")
        first = int(match[1])
        blocks.extend(range(first, int(match[2] or first) + 1))
    if not blocks or any(b >= a for b, a in pairwise(blocks)):
        raise ScheduleError(f"schedule {text!r}: the blocks must be named once each, in rising order")
    return tuple(blocks)
