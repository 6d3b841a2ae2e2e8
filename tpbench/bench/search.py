"""Learning how many tokens each block keeps, by the search of a method's paper; the counts work with any method.

The result is OUT/learned/METHOD_seedS.json (`tpbench.record.Learned`). The schedule `learned:FILE` reads it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tpbench import environment, registry, vit
from tpbench.bench.bases import load_base
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.models import reduced
from tpbench.bench.plan import Plan
from tpbench.bench.progress import Progress
from tpbench.bench.runner import base_job
from tpbench.bench.workspace import Workspace
from tpbench.downsampler import Search
from tpbench.errors import ScheduleError, UsageError
from tpbench.recipe import Search as HowToSearch
from tpbench.record import Learned, write
from tpbench.registry import Variant
from tpbench.schedule import parse, spell
from tpbench.training.evaluate import evaluate
from tpbench.training.train import Update, train


def run(plan: Plan, method: str, seed: int, progress: Progress) -> Path:
    """Learn K for every block by a method's search on the base of a seed, which is trained first if it is missing.

    Returns the path of the file with the result. Raises UsageError if the method has no search or the recipe does not
    configure it, and ScheduleError if every block has learned to keep all tokens.
    """
    search_class(method)
    if method not in plan.recipe.search:
        known = ", ".join(plan.recipe.search) or "none"
        raise UsageError(f"recipe {plan.recipe.name} does not say how {method} searches; it does for: {known}")
    workspace = Workspace(plan)
    workspace.prepare(fresh=False)
    base = base_job(workspace, seed)
    base = replace(base, counts=not base.is_done())
    epochs = plan.recipe.search[method].optim.epochs
    jobs = [base, Job(f"search of {method} seed {seed}", search, (method, seed), needs=(base.name,), work=epochs)]
    progress.start(total=sum(job.counts for job in jobs), done=0, jobs=jobs)
    side_by_side(jobs, workers=1, context=workspace, make_context=partial(Workspace, plan), progress=progress)
    return learned_path(workspace, method, seed)


def learned_path(workspace: Workspace, method: str, seed: int) -> Path:
    """The file with the counts that a method's search has learned on the base of a seed."""
    return workspace.out / "learned" / f"{method}_seed{seed}.json"


def search(workspace: Workspace, which: tuple[str, int], update: Update) -> None:
    """Train a method's search on the trained base of a seed, and write the counts that it has learned."""
    method, seed = which
    cls = search_class(method)
    how = workspace.recipe.search[method]
    model = with_search(load_base(workspace, seed), cls, how, site=workspace.recipe.site, seed=seed)
    training = train(
        model,
        replace(workspace.conditions(seed), identity="", deadline=None),
        how.optim,
        seed=seed,
        regulariser=lambda: penalty(model),
        update=update,
    )
    kept = [k.item() for k in tokens_after_blocks(model)]
    counts = [max(1, int(k)) for k in kept]
    if counts[-1] == model.patch_embed.num_patches:
        raise ScheduleError(
            f"the search of {method} keeps every token; make its penalty stronger in the recipe ({how.knobs})"
        )
    found = Learned(
        method=method,
        search=cls.__name__,
        recipe=workspace.recipe.name,
        machine=workspace.machine,
        seed=seed,
        patches=model.patch_embed.num_patches,
        counts=counts,
        kept=kept,
        config=asdict(model.reducers[0].config),
        optim=asdict(how.optim),
        backbone_lr_scale=how.backbone_lr_scale,
        training=asdict(training),
        environment=environment.describe(workspace.device, workspace.dtype),
        git=environment.git(),
        off_the_shelf=evaluate_learned(workspace, method, seed=seed, schedule=spell(counts, range(len(counts)))),
    )
    write(learned_path(workspace, method, seed), found, indent=1)


def with_search(base: nn.Module, cls: type[Search], how: HowToSearch, site: str, seed: int) -> vit.TokenViT:
    """The base with an instance of the search in every block; all tokens arrive at each of them."""
    patches = base.patch_embed.num_patches
    depth = len(base.blocks)
    torch.manual_seed(seed)
    model = vit.reduce(base, cls, spell([patches] * depth, range(depth)), site=site, **how.knobs)
    for block in model.reducers:
        block.backbone_lr_scale = how.backbone_lr_scale
    return model


def search_class(method: str) -> type[Search]:
    """The search of a method. Raises UsageError for a method without one, with the methods that have one."""
    cls = registry.method(method).search
    if cls is None:
        able = [name for name, other in registry.discover().items() if other.search is not None]
        raise UsageError(f"method {method!r} has no search for K; these have: {', '.join(able)}")
    return cls


def tokens_after_blocks(model: vit.TokenViT) -> list[Tensor]:
    """The tokens that are left after every block, as learned so far: scalars with a gradient, which never rise."""
    count = torch.tensor(float(model.patch_embed.num_patches), device=next(model.parameters()).device)
    counts = []
    for reducer in model.reducers:
        count = reducer.kept(count)
        counts.append(count)
    return counts


def penalty(model: vit.TokenViT) -> Tensor:
    """The sum of all blocks' penalties, given the share of the unreduced model's MACs that their counts cost."""
    kept = tokens_after_blocks(model)
    every = torch.full_like(kept[0], model.patch_embed.num_patches)
    share = model.macs_with_counts(kept) / model.macs_with_counts([every] * len(kept))
    return sum(reducer.penalty(share) for reducer in model.reducers)


def evaluate_learned(workspace: Workspace, method: str, seed: int, schedule: str) -> dict[str, float]:
    """The share of MACs and the validation top-1 of the method at the learned counts, without fine-tuning."""
    base = load_base(workspace, seed)
    model = reduced(workspace.recipe, base, variant=Variant(method), schedule=parse(schedule))
    unreduced = sum(vit.reduce(base, "none").macs().values())
    batch_size = workspace.recipe.finetune.batch_size
    score = evaluate(model, workspace.data(seed).validation, batch_size, dtype=workspace.dtype, seed=seed)
    return {"macs_share": sum(model.macs().values()) / unreduced, "validation_top1": score.top1}
