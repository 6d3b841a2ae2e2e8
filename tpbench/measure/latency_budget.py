"""A share of the unreduced model's latency, met by bisection over the keep rate with the clock as judge."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from tpbench.budget import BudgetSearch, Counts
from tpbench.measure.modes import Mode, compare
from tpbench.recipe import Measure
from tpbench.record import Budget
from tpbench.schedule import Schedule
from tpbench.vit import TokenViT

TOLERANCE = 0.05  # how far the nearest candidate may be off, as a share of the budget; the clock is no finer
ROUNDS = 3  # bisections at most: a noisy sample may lead one astray, and the next adds its samples to those before


def solve(
    found: Budget,
    make: Callable[[Schedule], TokenViT],
    base: nn.Module,
    schedule: Schedule,
    how: Measure,
    dtype: torch.dtype,
) -> None:
    """Fill in a Budget: the counts, or why there are none, and every sample that led there.

    make gives the reduced model of a schedule; latency is that at the largest batch, in turns with the base.
    """
    mode = Mode.of(how, next(base.parameters()).device)
    sampled: dict[Counts, dict[str, list[float]]] = {}

    def cost(counts: Counts) -> float:
        model = make(schedule.counting(counts))
        samples, _ = compare(model, base, mode, (found.batch,), how.repeats, how.warmup, dtype)
        pooled = sampled.setdefault(counts, {"reduced": [], "unreduced": []})
        for name, seconds in samples[str(found.batch)].items():
            pooled[name] += seconds
        return median(pooled["reduced"]) / median(pooled["unreduced"])

    for _ in range(ROUNDS):
        search = BudgetSearch(schedule, cost)
        search.by_rate(base.patch_embed.num_patches)
        nearest = min(search.tried, key=search.off)
        if search.off(nearest) <= TOLERANCE:
            found.counts = list(nearest)
            break
    else:
        found.error = str(search.unreachable())
    found.tried = [{"counts": list(counts), **seconds} for counts, seconds in sampled.items()]
