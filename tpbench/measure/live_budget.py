"""Shares of MACs that living tokens cost, for methods that may keep fewer tokens than they were given room for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tpbench import budget, vit
from tpbench.measure.cell import live_macs, token_counts
from tpbench.measure.flops import closed_form
from tpbench.schedule import Schedule


def solve(schedule: Schedule, base: nn.Module, reduced: Callable[[Schedule], vit.TokenViT], images: Tensor) -> Schedule:
    """The counts at which the tokens that live cost the schedule's share of MACs, within `budget.TOLERANCE`.

    reduced(schedule) reduces the base. images [B, C, H, W] show how many tokens live, off the shelf; after fine-tuning
    it may be others. With padding the model costs more than the share. Raises Unreachable if no counts meet it.
    """
    unreduced = closed_form(vit.reduce(base, "none")).total

    def cost(asked: Schedule) -> float:
        model = reduced(asked)
        live = token_counts(model, images).get("live")  # none where every token is kept
        return 1.0 if live is None else live_macs(model, live) / unreduced

    return budget.solve(schedule, cost, base.patch_embed.num_patches)
