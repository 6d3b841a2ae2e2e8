"""Schedules: how many body tokens are left after which block. Pure integers; no torch.

    "0.7@3,6,9"           keep rate: K = int(N r), int(N r^2), int(N r^3) after blocks 3, 6, 9 (blocks count from 0)
    "137,96,67@3,6,9"     explicit K for each block
    "-13@0-11"            13 tokens fewer at each of the blocks 0 to 11
    "macs=0.6@3,6,9"      the largest keep rate whose model costs at most this share of the unreduced model's MACs
    "none"                nothing is reduced
K is always the number of body tokens after the step; the prefix (class token, registers) is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from tpbench.errors import ScheduleError, Unreachable


@dataclass(frozen=True)
class Schedule:
    """A parsed schedule. Exactly one of rate, counts, step and macs_share is set, or none for the empty schedule."""

    text: str
    blocks: tuple[int, ...] = ()
    rate: Fraction | None = None
    counts: tuple[int, ...] | None = None
    step: int | None = None
    macs_share: Fraction | None = None

    def requested(self, patches: int, depth: int) -> tuple[int, ...]:
        """K after each of `blocks` for a model with this many patches and blocks; unreachable ones are refused."""
        if self.macs_share is not None:
            raise ScheduleError(f"schedule {self.text!r}: a share of MACs must be solved for a model and method first")
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

    def solved(self, cost: Callable[[Schedule], float], patches: int, depth: int) -> Schedule:
        """The schedule itself, or for a share of MACs the largest keep rate that costs at most that share.

        cost gives a schedule's MACs as a share of the unreduced model's. Searched over the counts of the first
        reducing block, which is what a keep rate comes down to.
        """
        if self.macs_share is None:
            return self
        self.check(depth)

        def at(first: int) -> Schedule:
            rate = Fraction(first, patches)
            counts = tuple(max(1, int(patches * rate ** (stage + 1))) for stage in range(len(self.blocks)))
            return Schedule(text=spell(counts, self.blocks), blocks=self.blocks, counts=counts)

        def price(first: int) -> float:
            """0 for fewer tokens than the method can reach: the budget, if reachable, lies above."""
            try:
                return cost(at(first))
            except ScheduleError:
                return 0.0

        low, high = 1, patches
        if price(high) <= self.macs_share:  # reducing less may cost more than not reducing at all
            return at(high)
        while high - low > 1:  # invariant: at(low) is affordable or out of reach, at(high) is not affordable
            middle = (low + high) // 2
            low, high = (middle, high) if price(middle) <= self.macs_share else (low, middle)
        if not 0 < price(low) <= self.macs_share:
            nearest = price(low) or price(high)
            raise Unreachable(
                f"schedule {self.text!r}: the method cannot cost so little from block {self.blocks[0]} on;"
                f" the nearest reachable share is {nearest:.3f}"
            )
        return at(low)

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
    budget, separator, where = text.partition("@")
    if not separator or not where:
        raise ScheduleError(
            f"schedule {text!r}: expected BUDGET@BLOCKS, as in 0.7@3,6,9 or 137,96,67@3,6,9 or -13@0-11"
        )
    blocks = _blocks(text, where)
    if match := re.fullmatch(r"macs=(\d*\.?\d+)", budget):
        share = _share(text, match[1], "share of MACs")
        return Schedule(text, blocks, macs_share=share)
    if match := re.fullmatch(r"-(\d+)", budget):
        return Schedule(text, blocks, step=int(match[1]))
    if re.fullmatch(r"\d+(,\d+)*", budget) and not (budget in ("0", "1") and len(blocks) != 1):
        counts = tuple(int(count) for count in budget.split(","))
        if len(counts) != len(blocks):
            raise ScheduleError(f"schedule {text!r}: {len(counts)} counts for {len(blocks)} blocks")
        return Schedule(text, blocks, counts=counts)
    if re.fullmatch(r"[-+]?\d*\.?\d+", budget):
        return Schedule(text, blocks, rate=_share(text, budget, "keep rate"))
    raise ScheduleError(f"schedule {text!r}: {budget!r} is neither a keep rate, a list of counts, -STEP nor macs=SHARE")


def parse_all(text: str | Sequence[str]) -> tuple[Schedule, ...]:
    """Several schedules, separated by semicolons."""
    parts = text.split(";") if isinstance(text, str) else text
    return tuple(parse(part) for part in parts if part.strip())


def spell(counts: Sequence[int], blocks: Sequence[int]) -> str:
    """The explicit form of a schedule: "137,96,67@3,6,9"."""
    return f"{','.join(map(str, counts))}@{','.join(map(str, blocks))}"


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
