"""From a timm model, a method and a schedule to the reduced model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tpbench import budget, registry
from tpbench.downsampler import Downsampler, Site
from tpbench.errors import ScheduleError, UsageError
from tpbench.schedule import Kind, Schedule, parse
from tpbench.vit.model import TokenModel
from tpbench.vit.planning import plan
from tpbench.vit.support import check_supported


def reduce(
    model: nn.Module,
    method: str | type[Downsampler],
    schedule: str | Schedule = "none",
    *,
    site: str | Site = Site.MID,
    **settings: Any,
) -> TokenModel:
    """A timm vision transformer with its tokens reduced by a method.

    method is a registered name (`tpbench list`) or a Downsampler class, schedule as in `tpbench.schedule`, site where
    in the named blocks ("mid" or "end"), settings fields of the method's Config. The result is called like the model it
    came from and returns the same logits type; it shares that model's parameters (deepcopy the model first to train
    the two apart), which itself stays as it was. Raises UnsupportedModel, ScheduleError or UsageError.
    """
    cls = registry.method(method) if isinstance(method, str) else method
    schedule = parse(schedule) if isinstance(schedule, str) else schedule
    site = _site(site)
    config = registry.configure(cls, settings)
    check_supported(model)
    if not cls.reduces:
        return TokenModel.around(model, reducers=[], requested=(), site=site)
    if not schedule.blocks:
        raise ScheduleError(f"method {cls.__name__} needs a schedule such as 0.7@3,6,9")
    solved = schedule
    if schedule.kind is Kind.MACS:
        schedule.check(len(model.blocks))
        solved = budget.solve(
            schedule, macs_share(model, cls=cls, config=config, site=site), model.patch_embed.num_patches
        )
    setups, requested = plan(model, cls=cls, schedule=solved, config=config)
    device = next(model.parameters()).device
    reducers = [cls(setup, config).to(device).train(model.training) for setup in setups]
    return TokenModel.around(model, reducers=reducers, requested=requested, site=site, schedule=schedule)


def macs_share(
    model: nn.Module, cls: type[Downsampler], config: Downsampler.Config, site: Site
) -> Callable[[Schedule], float]:
    """A function that gives the MACs of the model under a schedule, as a share of the unreduced model's.

    A method that only hides tokens is priced as if it removed them, so that it hides as many as others remove.
    """
    plain = TokenModel.around(model, reducers=[], requested=(), site=site)
    unreduced = sum(plain.macs().values())

    def share(schedule: Schedule) -> float:
        setups, _ = plan(model, cls=cls, schedule=schedule, config=config)
        if cls.masks:
            return plain.macs_living({setup.block: setup.k for setup in setups}) / unreduced
        with torch.device("meta"):  # shapes decide; no weight is made
            reducers = [cls(setup, config) for setup in setups]
        return sum(plain.macs_under(reducers).values()) / unreduced

    return share


def _site(site: str | Site) -> Site:
    try:
        return Site(site)
    except ValueError:
        raise UsageError(f"unknown site {site!r}; known: {', '.join(Site)}") from None
