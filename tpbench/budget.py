"""Budgets: the token counts with which a method costs a given share of the unreduced model. Pure integers; no torch.

What a schedule costs is the caller's to say, by counting MACs or by the clock; here is only where to look next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

from tpbench.errors import Unreachable
from tpbench.schedule import Schedule, spell

STARTS = 16  # keep rates from which single counts may depart
TOLERANCE = 0.01  # how far a solved share of MACs may be off, as a share of the budget

Counts = tuple[int, ...]


def solve(schedule: Schedule, cost: Callable[[Schedule], float], patches: int) -> Schedule:
    """The counts whose model costs the schedule's share of MACs, within TOLERANCE.

    cost gives a schedule's MACs as a share of the unreduced model's, and raises Unreachable where the method cannot
    go. Keep rates are tried first; where their steps are too coarse (grids), single counts depart from the rate. A
    share that no counts meet is Unreachable; the message names the nearest that some do.
    """
    search = BudgetSearch(schedule, lambda counts: cost(schedule.counting(counts)))
    for start in search.by_rate(patches)[:STARTS]:
        counts = search.refined(start, patches)
        if search.off(counts) <= TOLERANCE:
            return schedule.counting(counts)
    raise search.unreachable()


class BudgetSearch:
    """Counts whose cost is nearest to a target: what was tried, at which cost, and what comes next.

    cost maps counts to a share of the unreduced model's; it rises with the counts, and Unreachable means too few.
    """

    def __init__(self, schedule: Schedule, cost: Callable[[Counts], float]):
        self.schedule, self.cost, self.target = schedule, cost, float(schedule.budget)
        self.tried: dict[Counts, float] = {}  # 0 where the method cannot go: a budget, if any, lies above

    def price(self, counts: Counts) -> float:
        if counts not in self.tried:
            try:
                self.tried[counts] = self.cost(counts)
            except Unreachable:
                self.tried[counts] = 0.0
        return self.tried[counts]

    def off(self, counts: Counts) -> float:
        """How far from the target, as a share of it."""
        return abs(self.price(counts) - self.target) / self.target

    def by_rate(self, patches: int) -> list[Counts]:
        """The counts that keep rates ask for, from those of the nearest cost outwards."""
        chain = rates(patches, len(self.schedule.blocks))
        low, high = -1, len(chain) - 1
        while high - low > 1:  # chain[low] costs too little or cannot be; chain[high] costs enough, or is the last
            middle = (low + high) // 2
            low, high = (middle, high) if self.price(chain[middle]) < self.target else (low, middle)
        nearest = min(range(max(low, 0), high + 1), key=lambda place: self.off(chain[place]))
        return [chain[place] for place in sorted(range(len(chain)), key=lambda place: abs(place - nearest))]

    def refined(self, counts: Counts, patches: int) -> Counts:
        """The counts, or if they are off by more than TOLERANCE nearer ones, changed one by one from the last on."""
        changed = True
        while changed and self.off(counts) > TOLERANCE:
            changed = False
            for stage in reversed(range(len(counts))):
                better = min(neighbours(counts, stage, patches), key=self.off)
                if self.off(better) < self.off(counts):
                    counts, changed = better, True
        return counts

    def unreachable(self) -> Unreachable:
        """The error that names the nearest that was met."""
        reached = {counts: price for counts, price in self.tried.items() if price}
        asked = f"{self.target:g} of the unreduced model's {self.schedule.unit}"
        start = f"schedule {self.schedule.text!r}: the method cannot cost {asked}"
        if not reached:
            return Unreachable(f"{start}, nor come near it")
        nearest = min(reached, key=self.off)
        tokens = spell(nearest, self.schedule.blocks)
        return Unreachable(f"{start}; the nearest it reaches is {reached[nearest]:.3f}, by {tokens}")


@cache
def rates(patches: int, stages: int) -> tuple[Counts, ...]:
    """Every list of counts that a keep rate in (0, 1] can ask for, at least 1 each, from the fewest tokens on."""
    places = product(range(1, stages + 1), range(2, patches + 1))
    steps = sorted(((k / patches) ** (1 / stage), stage, k) for stage, k in places)
    counts, chain = [1] * stages, [(1,) * stages]
    for (rate, stage, k), following in zip(steps, [*steps[1:], (2.0, 0, 0)]):
        counts[stage - 1] = k
        if following[0] - rate > 1e-12:  # steps that fall together are one
            chain.append(tuple(counts))
    return tuple(chain)


def neighbours(counts: Counts, stage: int, patches: int) -> Iterator[Counts]:
    """The counts with one of them changed in every way that leaves no block more than arrives."""
    most = counts[stage - 1] if stage else patches
    least = counts[stage + 1] if stage + 1 < len(counts) else 1
    return ((*counts[:stage], k, *counts[stage + 1 :]) for k in range(least, most + 1))
