"""Training with DeepSpeed: one loop for the base and for every fine-tuning, on GPUs and CPUs, one rank or several.

Every step is the engine's. timm supplies parameter groups, schedulers, mixup and averaged weights. The random state of
an epoch follows from (seed, epoch) alone and a checkpoint is written after every epoch, so a run that is killed
continues with the numbers it would have had.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tpbench.data import Parts
from tpbench.downsampler import Output
from tpbench.errors import CellFailed, UsageError
from tpbench.recipe import Optim
from tpbench.record import replace_text
from tpbench.vit import TokenViT


@dataclass
class Training:
    """What one run did: images seen, seconds of its epochs, mean loss of every epoch."""

    images: int
    epochs: int
    steps: int
    seconds: float
    losses: list[float]


def train(
    model: TokenViT,
    data: Parts,
    optim: Optim,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    teacher: TokenViT | None = None,
    regulariser: Callable[[], Tensor] | None = None,
    folder: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Training:
    """Train a model in place, on its own device, and leave the weights to evaluate in it.

    teacher is the frozen unreduced model of methods that ask for one, regulariser a further term of the loss. folder
    keeps a checkpoint of the last finished epoch, from which the same call continues. progress is told every epoch and
    its mean loss. Raises CellFailed when the loss is no longer finite, UsageError when a checkpoint cannot be read.
    """
    run = Run(model, data, optim, seed, dtype, teacher, regulariser)
    state = run.resume(folder)
    for epoch in range(len(state.losses), optim.epochs):
        start = time.perf_counter()
        loss = run.epoch(epoch)
        state.losses.append(loss)
        state.seconds += time.perf_counter() - start
        state.images, state.steps, state.epochs = run.images(epoch + 1), run.engine.global_steps, epoch + 1
        run.save(folder, state)
        if progress is not None:
            progress(epoch, loss)
    run.finish()
    return state


class Run:
    """One engine with what belongs to it."""

    def __init__(
        self,
        model: TokenViT,
        data: Parts,
        optim: Optim,
        seed: int,
        dtype: torch.dtype,
        teacher: TokenViT | None = None,
        regulariser: Callable[[], Tensor] | None = None,
    ):
        self.model, self.data, self.optim = model, data, optim
        self.seed, self.dtype, self.teacher = seed, dtype, teacher
        self.device = next(model.parameters()).device
        deepspeed = connect(self.device)
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.micro = optim.batch_size // (self.ranks * optim.accumulation)
        if self.micro * self.ranks * optim.accumulation != optim.batch_size:
            raise UsageError(
                f"a batch of {optim.batch_size} does not divide into {self.ranks} ranks"
                f" x {optim.accumulation} accumulation steps"
            )
        self.updates = len(data.train) // optim.batch_size
        if self.updates == 0:
            raise UsageError(f"a batch of {optim.batch_size} is larger than the {len(data.train)} training images")
        seed_all(seed, 0)
        self.mixup = _mixup(optim, model.num_classes)
        groups = parameter_groups(model, optim)
        optimizer = create_optimizer_v2(groups, opt=optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay)
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=optim.epochs,
            warmup_epochs=optim.warmup_epochs,
            warmup_lr=optim.lr * 0.01,
            min_lr=optim.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.updates,
        )
        objective = Objective(model, optim, self.mixup is not None, regulariser)
        with _quiet_stdout():
            self.engine, *_ = deepspeed.initialize(
                model=objective,
                optimizer=optimizer,
                config=engine_config(optim, self.micro, dtype),
                dist_init_required=False,
            )
        self.ema = None if optim.ema is None else ModelEmaV3(model, decay=optim.ema)
        if teacher is not None:
            teacher.eval()

    def epoch(self, epoch: int) -> float:
        """Train one epoch; its mean loss over all ranks."""
        seed_all(self.seed, epoch + 1, self.rank)
        self.engine.train()
        self.thaw(epoch)
        losses: list[Tensor] = []
        micro_batches = self.optim.batch_size // self.optim.accumulation
        for images, labels in self.batches(epoch, micro_batches):
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            teacher = None if self.teacher is None else self.teach(images)
            loss = self.engine(images, labels, teacher)
            self.engine.backward(loss)
            self.engine.step()
            if self.engine.is_gradient_accumulation_boundary():
                self.scheduler.step_update(self.engine.global_steps)
                if self.ema is not None:
                    self.ema.update(self.model, step=self.engine.global_steps)
            losses.append(loss.detach())
        return self.mean(torch.stack(losses), epoch)

    def batches(self, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of every micro batch of an epoch; whole optimiser steps only."""
        whole = self.updates * self.optim.accumulation
        source = self.data.train.batches(size, (self.seed, epoch), self.rank, self.ranks)
        yield from (batch for _, batch in zip(range(whole), source))

    def mean(self, losses: Tensor, epoch: int) -> float:
        """The epoch's mean loss; a loss that is not finite ends the cell with its step and learning rate."""
        if not losses.isfinite().all():
            step = epoch * self.updates + int((~losses.isfinite()).nonzero()[0]) // self.optim.accumulation
            rate = self.engine.optimizer.param_groups[0]["lr"]
            raise CellFailed(
                f"the loss is no longer finite at step {step} (epoch {epoch}, learning rate about {rate:.2g})"
            )
        total = losses.mean()
        if self.ranks > 1:
            torch.distributed.all_reduce(total)
        return (total / self.ranks).item()

    @torch.no_grad()
    def teach(self, images: Tensor) -> Output:
        """The frozen unreduced model's output, in the engine's precision."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.teacher.forward_tokens(images)

    def thaw(self, epoch: int) -> None:
        """Hold the backbone still for the first epochs of methods that ask for it: its learning rate is 0."""
        for reducer in self.model.reducers[-1:]:
            frozen = math.ceil(reducer.frozen_share * self.optim.epochs)
            for group in self.scheduler.optimizer.param_groups:
                if group.get("backbone"):
                    group["lr_scale"] = 0.0 if epoch < frozen else reducer.backbone_lr_scale
        self.scheduler.step_update(self.engine.global_steps)

    def images(self, epochs: int) -> int:
        return epochs * self.updates * self.optim.batch_size

    def save(self, folder: Path | None, state: Training) -> None:
        """Write this epoch's checkpoint, then point `progress.json` at it, then drop the one before."""
        if folder is None:
            return
        tag = f"epoch{state.epochs}"
        extra = {} if self.ema is None else {"ema": self.ema.module.state_dict()}
        with _quiet_stdout():
            self.engine.save_checkpoint(str(folder), tag=tag, client_state=extra, save_latest=False)
        if self.rank == 0:
            replace_text(folder / "progress.json", json.dumps({"tag": tag, **vars(state)}))
            for old in folder.glob("epoch*"):
                if old.name != tag:
                    shutil.rmtree(old)

    def resume(self, folder: Path | None) -> Training:
        """The state after the last finished epoch, loaded into the engine; or the beginning."""
        fresh = Training(images=0, epochs=0, steps=0, seconds=0.0, losses=[])
        if folder is None or not (folder / "progress.json").exists():
            return fresh
        try:
            progress = json.loads((folder / "progress.json").read_text())
            tag = progress.pop("tag")
            with _quiet_stdout():
                _, extra = self.engine.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
            if self.ema is not None:
                self.ema.module.load_state_dict(extra["ema"])
            return Training(**progress)
        except Exception as error:
            raise UsageError(
                f"checkpoint {folder} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
                "delete it or run with --fresh"
            ) from error

    def finish(self) -> None:
        """Leave the weights to evaluate in the model and let go of the engine."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.engine.destroy()
        self.model.zero_grad(set_to_none=True)


class Objective(nn.Module):
    """The model and its loss, as the engine trains them."""

    def __init__(
        self, model: TokenViT, optim: Optim, soft_labels: bool, regulariser: Callable[[], Tensor] | None = None
    ):
        super().__init__()
        self.model, self.regulariser = model, regulariser
        self.criterion = SoftTargetCrossEntropy() if soft_labels else LabelSmoothingCrossEntropy(optim.smoothing)

    def forward(self, images: Tensor, labels: Tensor, teacher: Output | None) -> Tensor:
        out = self.model.forward_tokens(images)
        loss = self.criterion(out.logits.float(), labels)
        terms = list(out.tokens.aux.values())
        if teacher is not None:
            terms += self.model.objective(out, teacher).values()
        if self.regulariser is not None:
            terms.append(self.regulariser())
        return loss + sum(terms)


def parameter_groups(model: TokenViT, optim: Optim) -> list[dict[str, Any]]:
    """timm's groups (no decay for biases, norms and tokens), split into the backbone's and the reducers' own."""
    own = {id(p) for reducer in model.reducers for p in reducer.parameters()}
    scale = model.reducers[-1].backbone_lr_scale if model.reducers else 1.0
    groups = []
    for group in param_groups_weight_decay(model, optim.weight_decay, model.no_weight_decay()):
        for mine in (False, True):
            members = [p for p in group["params"] if (id(p) in own) == mine]
            if members:
                rate = {"lr_scale": 1.0} if mine else {"lr_scale": scale, "backbone": True}
                groups.append({**group, "params": members, **rate})
    return groups


def engine_config(optim: Optim, micro: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe's lines; clipping is always said, its default is 1."""
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": optim.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": optim.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if dtype == torch.bfloat16:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def seed_all(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed every generator that augmentation, mixup, dropout or a method may draw from."""
    value = (seed * 100_003 + epoch) * 1_009 + rank
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def _mixup(optim: Optim, classes: int) -> Mixup | None:
    if not optim.mixup and not optim.cutmix:
        return None
    return Mixup(
        mixup_alpha=optim.mixup, cutmix_alpha=optim.cutmix, label_smoothing=optim.smoothing, num_classes=classes
    )


def connect(device: torch.device) -> Any:
    """DeepSpeed, imported and connected: to the other ranks under torchrun, to itself otherwise."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    first = "deepspeed" not in sys.modules
    with _quiet_stdout(), _quiet_children(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    if first:  # its log goes to standard output, where results belong
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setStream(sys.stderr)
    # Otherwise initialising on a CPU compiles a shared-memory transport for a minute; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "WORLD_SIZE" in os.environ:
            torch.distributed.init_process_group(backend)
        else:
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    return deepspeed


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Results alone go to standard output: what a library prints there is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Drop what compilers say that a library starts to learn what it could build."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
