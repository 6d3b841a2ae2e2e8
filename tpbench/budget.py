"""Budgets: the token counts with which a method costs a given share of the unreduced model. Integers, without torch.

The caller supplies the cost of a schedule, by counting MACs or by measuring latency; this module decides which counts
to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from math import inf

from tpbench.errors import Unreachable
from tpbench.schedule import Schedule, spell

STARTS = 16  # keep rates from which the search for single counts may start
TOLERANCE = 0.01  # how far a solved share of MACs may be off, as a share of the budget

Counts = tuple[int, ...]


def solve(schedule: Schedule, cost: Callable[[Schedule], float], patches: int) -> Schedule:
    """Find the counts whose model costs the schedule's share of MACs, within TOLERANCE.

    cost(schedule) returns the MACs of a schedule as a share of the unreduced model's, and raises Unreachable for counts
    that the method cannot reach. patches is the number of body tokens that the model starts with. Keep rates are tried
    first; where their steps are too coarse (as on grids), single counts are changed from there. Raises Unreachable if
    no counts meet the share; the message names the nearest share that was found.
    """
    search = BudgetSearch(schedule, lambda counts: cost(schedule.with_counts(counts)))
    for start in search.by_rate(patches)[:STARTS]:
        counts = search.refine(start, patches)
        if search.relative_error(counts) <= TOLERANCE:
            return schedule.with_counts(counts)
    raise search.unreachable()


class BudgetSearch:
    """A search for the counts whose cost is nearest to a target. It keeps the cost of all counts that were tried.

    cost(counts) returns a share of the unreduced model's cost, which rises with the counts, and raises Unreachable for
    fewer tokens than the method can reach.
    """

    def __init__(self, schedule: Schedule, cost: Callable[[Counts], float]):
        self.schedule = schedule
        self.cost = cost
        self.target = float(schedule.budget)
        self.tried: dict[Counts, float] = {}  # 0 for counts that the method cannot reach

    def price(self, counts: Counts) -> float:
        """The cost of these counts, computed only once; 0 for counts that the method cannot reach."""
        if counts not in self.tried:
            try:
                self.tried[counts] = self.cost(counts)
            except Unreachable:
                self.tried[counts] = 0.0
        return self.tried[counts]

    def relative_error(self, counts: Counts) -> float:
        """The distance of these counts' cost from the target, as a share of the target."""
        return abs(self.price(counts) - self.target) / self.target

    def by_rate(self, patches: int) -> list[Counts]:
        """The counts of all keep rates, in order of distance from those whose cost is nearest to the target."""
        chain = rates(patches, len(self.schedule.blocks))
        low = -1
        high = len(chain) - 1
        while high - low > 1:  # chain[low] costs too little or is unreachable; chain[high] costs enough, or is the last
            middle = (low + high) // 2
            if self.price(chain[middle]) < self.target:
                low = middle
            else:
                high = middle
        nearest = min(range(max(low, 0), high + 1), key=lambda place: self.relative_error(chain[place]))
        return [chain[place] for place in sorted(range(len(chain)), key=lambda place: abs(place - nearest))]

    def refine(self, counts: Counts, patches: int) -> Counts:
        """Change single counts, the last first, until the cost is within TOLERANCE or no change helps; return them."""
        changed = True
        while changed and self.relative_error(counts) > TOLERANCE:
            changed = False
            for stage in reversed(range(len(counts))):
                better = min(neighbours(counts, stage, patches), key=self.relative_error)
                if self.relative_error(better) < self.relative_error(counts):
                    counts = better
                    changed = True
        return counts

    def unreachable(self) -> Unreachable:
        """The error for a target that cannot be met. It names the nearest share that was found."""
        reached = {counts: price for counts, price in self.tried.items() if price}
        asked = f"{self.target:g} of the unreduced model's {self.schedule.unit}"
        start = f"schedule {self.schedule.text!r}: the method cannot cost {asked}"
        if not reached:
            return Unreachable(f"{start}, nor come near it")
        nearest = min(reached, key=self.relative_error)
        tokens = spell(nearest, self.schedule.blocks)
        return Unreachable(f"{start}; the nearest it reaches is {reached[nearest]:.3f}, with {tokens}")


@cache
def rates(patches: int, stages: int) -> tuple[Counts, ...]:
    """Every tuple of counts that some keep rate in (0, 1] gives, each count at least 1, in rising order."""
    places = product(range(1, stages + 1), range(2, patches + 1))
    steps = sorted(((k / patches) ** (1 / stage), stage, k) for stage, k in places)
    next_rates = [*(rate for rate, _, _ in steps[1:]), inf]
    counts = [1] * stages
    chain = [tuple(counts)]
    for (rate, stage, k), next_rate in zip(steps, next_rates):
        counts[stage - 1] = k  # from this keep rate on, the count after this stage is k
        if next_rate - rate > 1e-12:  # steps at the same rate count as one
            chain.append(tuple(counts))
    return tuple(chain)


def neighbours(counts: Counts, stage: int, patches: int) -> Iterator[Counts]:
    """Every tuple of counts that differs from these in one stage at most and never rises from block to block."""
    most = counts[stage - 1] if stage else patches
    least = counts[stage + 1] if stage + 1 < len(counts) else 1
    return ((*counts[:stage], k, *counts[stage + 1 :]) for k in range(least, most + 1))
