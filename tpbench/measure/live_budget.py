"""Counts for a share of MACs without padding, for methods that may keep fewer tokens than requested."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tpbench import budget, vit
from tpbench.measure.cell import live_macs, token_counts
from tpbench.measure.flops import closed_form
from tpbench.schedule import Schedule


def solve(schedule: Schedule, base: nn.Module, reduced: Callable[[Schedule], vit.TokenViT], images: Tensor) -> Schedule:
    """The counts at which the live tokens cost the schedule's share of MACs, within `budget.TOLERANCE`.

    reduced(schedule) reduces the base. Live tokens are those that are not padding, counted off the shelf on `images`
    [B, C, H, W]; fine-tuning may change their number. With padding the model costs more than the share. Raises
    Unreachable if no counts meet it.
    """
    unreduced = closed_form(vit.reduce(base, "none")).total

    def cost(asked: Schedule) -> float:
        model = reduced(asked)
        live = token_counts(model, images).get("live")  # None if every token is kept
        return 1.0 if live is None else live_macs(model, live) / unreduced

    return budget.solve(schedule, cost, base.patch_embed.num_patches)
