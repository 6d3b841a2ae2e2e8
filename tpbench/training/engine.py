"""DeepSpeed's configuration, its micro batches, and the schedule of learning rates."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from tpbench.errors import UsageError
from tpbench.recipe import Optim


def micro_batch(optim: Optim, ranks: int) -> int:
    """Images of one forward pass on one rank. Raises UsageError for a batch that does not divide evenly."""
    micro = optim.batch_size // (ranks * optim.accumulation)
    if micro * ranks * optim.accumulation != optim.batch_size:
        raise UsageError(
            f"a batch of {optim.batch_size} does not divide into {ranks} ranks"
            f" x {optim.accumulation} accumulation steps"
        )
    if (optim.mixup or optim.cutmix) and micro % 2:
        raise UsageError(f"mixup pairs images, but {micro} at a time on each rank is an odd number")
    return micro


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
