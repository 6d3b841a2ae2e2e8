"""What DeepSpeed is given: its configuration, the optimiser and the schedule of learning rates.

ZeRO stages 1 and 2 hand the optimiser one flat share of all parameters. That is the same step only for optimisers
that treat every element by itself; those that look at a whole tensor (Muon, LAMB, Adafactor, ...) need stage 0.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from tpbench.errors import UsageError
from tpbench.recipe import Optim
from tpbench.registry import nearest
from tpbench.training.groups import parameter_groups
from tpbench.vit import TokenViT

# Of timm's optimisers, those whose step is the same on a flattened share of the parameters.
ELEMENTWISE = frozenset(
    {"adam", "adamax", "adamw", "adopt", "adoptw", "lion", "momentum", "nadam", "nadamw", "radam", "rmsprop", "sgd"}
)


def micro_batch(optim: Optim, ranks: int) -> int:
    """Images of one forward pass on one rank. Raises UsageError for a batch that does not divide evenly."""
    micro = optim.batch_size // (ranks * optim.accumulation)
    if micro * ranks * optim.accumulation != optim.batch_size:
        raise UsageError(
            f"a batch of {optim.batch_size} does not divide into {ranks} ranks"
            f" x {optim.accumulation} accumulation steps"
        )
    if (optim.mixup or optim.cutmix) and micro % 2:
        raise UsageError(f"mixup pairs images: {micro} at a time on each rank is odd")
    return micro


def make_optimizer(model: TokenViT, optim: Optim) -> torch.optim.Optimizer:
    """timm's optimiser of that name over the model's parameter groups.

    Raises UsageError for an unknown name, for arguments that it does not take, and for one that ZeRO would change.
    """
    name = optim.optimizer.lower()
    if optim.zero_stage and name not in ELEMENTWISE:
        raise UsageError(
            f"optimizer {optim.optimizer!r} needs zero_stage=0: ZeRO flattens the parameters, which is safe for"
            f" {', '.join(sorted(ELEMENTWISE))}"
        )
    if name not in list_optimizers():
        raise UsageError(f"unknown optimizer {optim.optimizer!r}; {nearest(name, list_optimizers())}")
    own = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if taken := own.keys() & optim.optimizer_args.keys():
        raise UsageError(f"optimizer_args holds {', '.join(sorted(taken))}, which has a recipe line of its own")
    try:
        return create_optimizer_v2(parameter_groups(model, optim), opt=name, **own, **optim.optimizer_args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {name!r} with {optim.optimizer_args}: {' '.join(str(error).split())}") from error


def engine_config(optim: Optim, micro: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe's training. Clipping is always set, since DeepSpeed's default is 1."""
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": optim.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": optim.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice in every step
    }
    if dtype == torch.bfloat16:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def make_scheduler(optimizer: torch.optim.Optimizer, optim: Optim, updates: int) -> Scheduler:
    """A cosine schedule with warm-up, stepped after each of the `updates` optimiser steps of an epoch."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=optim.epochs,
        warmup_epochs=optim.warmup_epochs,
        warmup_lr=optim.lr * 0.01,
        min_lr=optim.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return scheduler
