"""Meet a share of the unreduced model's latency: bisection over the keep rate, each candidate timed."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from tpbench.budget import BudgetSearch, Counts
from tpbench.measure.modes import Mode, compare
from tpbench.recipe import Measure
from tpbench.schedule import Schedule
from tpbench.vit import TokenViT

TOLERANCE = 0.05  # how far the nearest candidate may be off, as a share of the budget; the clock is no finer
ROUNDS = 3  # bisections at most: a noisy sample may lead one astray, and the next adds its samples to those before


class Solution(NamedTuple):
    """The counts that meet a share of latency, or None and the reason; and every candidate with its samples."""

    counts: list[int] | None
    error: str | None
    tried: list[dict[str, Any]]


def solve(
    make: Callable[[Schedule], TokenViT], base: nn.Module, schedule: Schedule, how: Measure, dtype: torch.dtype
) -> Solution:
    """Find token counts whose latency, at the largest batch and in turns with the base, is the schedule's share.

    make returns the reduced model of a schedule.
    """
    mode = Mode.of(how, next(base.parameters()).device)
    batch = max(how.batch_sizes)
    sampled: dict[Counts, dict[str, list[float]]] = {}

    def cost(counts: Counts) -> float:
        model = make(schedule.counting(counts))
        samples, _ = compare(model, base, mode, (batch,), how.repeats, how.warmup, dtype)
        pooled = sampled.setdefault(counts, {"reduced": [], "unreduced": []})
        for name, seconds in samples[str(batch)].items():
            pooled[name] += seconds
        return median(pooled["reduced"]) / median(pooled["unreduced"])

    found = None
    error = None
    for _ in range(ROUNDS):
        search = BudgetSearch(schedule, cost)
        search.by_rate(base.patch_embed.num_patches)
        nearest = min(search.tried, key=search.off)
        if search.off(nearest) <= TOLERANCE:
            found = list(nearest)
            break
    else:
        error = str(search.unreachable())
    return Solution(found, error, [{"counts": list(counts), **seconds} for counts, seconds in sampled.items()])
