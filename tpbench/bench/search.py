"""Learning how many tokens each block keeps: a method's search, trained on the base, leaves counts for every method.

OUT/learned/METHOD_seedS.json: {"counts": K behind every block, "patches", "kept": the learned real numbers, ...}; used
by `--schedules learned:FILE`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from tpbench import environment, registry, vit
from tpbench.bench.bases import load_base
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.look import locked
from tpbench.bench.plan import Plan
from tpbench.bench.progress import Progress
from tpbench.bench.runner import base_job
from tpbench.bench.workspace import Workspace
from tpbench.downsampler import Search
from tpbench.errors import ScheduleError, UsageError
from tpbench.record import write_json
from tpbench.schedule import spell
from tpbench.training.evaluate import evaluate
from tpbench.training.train import Update, train


def run(plan: Plan, method: str, seed: int, progress: Progress) -> Path:
    """Learn K for every block by a method's search, on the base of a seed (trained if need be); the file that holds it.

    Raises UsageError where the method has no search or the recipe does not say how to run it, ScheduleError where
    every block has learned to keep everything.
    """
    searching(method)
    if method not in plan.recipe.search:
        known = ", ".join(plan.recipe.search) or "none"
        raise UsageError(f"recipe {plan.recipe.name} does not say how {method} searches; it does for: {known}")
    workspace = Workspace(plan)
    with locked(plan.out):
        workspace.prepare(fresh=False)
        jobs = [replace(base_job(workspace, seed), counts=True), Job(f"search of {method}", search, (method, seed))]
        progress.start(len(jobs), 0, jobs)
        side_by_side(jobs, 1, workspace, partial(Workspace, plan), progress)
    return learned_path(workspace, method, seed)


def learned_path(workspace: Workspace, method: str, seed: int) -> Path:
    return workspace.out / "learned" / f"{method}_seed{seed}.json"


def search(workspace: Workspace, which: tuple[str, int], update: Update) -> None:
    """Train a method's search on the trained base of a seed, and write down what it has learned."""
    method, seed = which
    cls, how = searching(method), workspace.recipe.search[method]
    base = load_base(workspace, seed)
    patches, depth = base.patch_embed.num_patches, len(base.blocks)
    everywhere = spell([patches] * depth, range(depth))
    torch.manual_seed(seed)
    model = vit.reduce(base, cls, everywhere, site=workspace.recipe.site, **how.knobs)
    for block in model.reducers:
        block.backbone_lr_scale = how.backbone_lr_scale
    training = train(
        model,
        replace(workspace.conditions(seed), identity="", deadline=None),
        how.optim,
        seed=seed,
        regulariser=lambda: penalty(model),
        update=update,
    )
    kept = [k.item() for k in leaving(model)]
    counts = [max(1, int(k)) for k in kept]
    if counts[-1] == patches:
        raise ScheduleError(f"the search of {method} keeps every token; strengthen it in the recipe ({how.knobs})")
    path = learned_path(workspace, method, seed)
    found = {"method": method, "search": cls.__name__, "recipe": workspace.recipe.name, "machine": workspace.machine}
    found |= {"seed": seed, "patches": patches, "counts": counts, "kept": kept}
    found |= {"config": asdict(model.reducers[0].config), "optim": asdict(how.optim)}
    found |= {"backbone_lr_scale": how.backbone_lr_scale, "training": asdict(training)}
    found |= {"environment": environment.describe(workspace.device, workspace.dtype), "git": environment.git()}
    found["off_the_shelf"] = judged(workspace, method, seed, spell(counts, range(depth)))
    write_json(path, found, indent=1)


def searching(method: str) -> type[Search]:
    """The search of a method; a method without one is refused with those that have one."""
    cls = registry.method(method).search
    if cls is None:
        able = [name for name, other in registry.discover().items() if other.search is not None]
        raise UsageError(f"method {method!r} has no search for K; these have: {', '.join(able)}")
    return cls


def leaving(model: vit.TokenViT) -> list[Tensor]:
    """Tokens that leave every block as learned so far; they never rise from block to block."""
    n = torch.tensor(float(model.patch_embed.num_patches), device=next(model.parameters()).device)
    return list(accumulate((block.kept for block in model.reducers), lambda k, kept: kept(k), initial=n))[1:]


def penalty(model: vit.TokenViT) -> Tensor:
    """The blocks' terms of the loss, told what share of the unreduced model's MACs they ask for together."""
    kept = leaving(model)
    whole = torch.full_like(kept[0], model.patch_embed.num_patches)
    share = model.macs_leaving(kept) / model.macs_leaving([whole] * len(kept))
    return sum(block.penalty(share) for block in model.reducers)


def judged(workspace: Workspace, method: str, seed: int, schedule: str) -> dict[str, float]:
    """What the learned counts do to the base as it is, under the method itself: MACs share and validation top-1."""
    base = load_base(workspace, seed)
    model = vit.reduce(base, method, schedule, site=workspace.recipe.site)
    whole = sum(vit.reduce(base, "none").macs().values())
    batch_size = workspace.recipe.finetune.batch_size
    score = evaluate(model, workspace.data(seed).validation, batch_size, workspace.dtype, seed)
    return {"macs_share": sum(model.macs().values()) / whole, "validation_top1": score.top1}
