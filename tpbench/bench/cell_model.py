"""The model of a cell: the trained base of its seed, reduced by its method at its schedule."""

from __future__ import annotations

import copy
from functools import partial

import torch

from tpbench import registry, vit
from tpbench.bench.bases import load_base
from tpbench.bench.models import reduced, with_live_budget
from tpbench.bench.plan import Cell
from tpbench.bench.workspace import Workspace


def build_cell(workspace: Workspace, cell: Cell) -> tuple[vit.TokenViT, vit.TokenViT | None]:
    """The reduced model of a cell on the trained base of its seed, and the teacher that its method asks for."""
    base = load_base(workspace, cell.seed)
    method = registry.method(cell.variant.method)
    teacher = vit.reduce(copy.deepcopy(base), "none") if method.teacher else None
    torch.manual_seed(cell.seed)  # a method's own parameters start the same in every run
    schedule = with_live_budget(
        workspace.recipe,
        model=base,
        variant=cell.variant,
        schedule=workspace.schedule(cell),
        images=partial(validation_images, workspace, cell),
    )
    return reduced(workspace.recipe, model=base, variant=cell.variant, schedule=schedule), teacher


def validation_images(workspace: Workspace, cell: Cell) -> torch.Tensor:
    """A batch of validation images, [B, C, H, W]."""
    return next(iter(workspace.data(cell.seed).validation.batches(workspace.recipe.finetune.batch_size))).images


def new_parameters(model: vit.TokenViT) -> int:
    """How many parameters a model's method brings of its own; before fine-tuning they are random."""
    return sum(parameter.numel() for reducer in model.reducers for parameter in reducer.parameters())
