"""Training with DeepSpeed: one loop for the base and for every fine-tuning, on GPUs and CPUs, one rank or several.

DeepSpeed's engine makes every step. timm supplies parameter groups, schedulers, mixup and averaged weights. The random
state of an epoch depends on (seed, epoch) alone, and checkpoints are written after epochs and where a time limit ends
a run. A run that is killed or stopped therefore continues with the numbers that it would have had (on a CPU, to the
last bit).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tpbench.downsampler import Output
from tpbench.errors import CellFailed, OutOfTime, UsageError, explain_out_of_memory
from tpbench.recipe import Optim
from tpbench.training.checkpoint import Keeper, State, Training, set_generators
from tpbench.training.data import Parts
from tpbench.training.pace import Pace
from tpbench.training.ranks import agreed, connect, quiet_stdout
from tpbench.vit import TokenViT

FUSED = ("adam", "adamw", "sgd")  # torch's own: all parameters in one operation, on CPUs too


@dataclass(frozen=True)
class Conditions:
    """What all training runs of one benchmark have in common.

    data holds the images; dtype is that of the forward and backward pass; identity names recipe and data, and a
    checkpoint of another identity is rejected; deadline, in seconds of time.monotonic(), ends a run between two steps.
    """

    data: Parts
    dtype: torch.dtype = torch.float32
    identity: str = ""
    deadline: float | None = None


class Update(Protocol):
    """How a job reports its progress to the user."""

    def __call__(self, text: str = "", share: float | None = None) -> None:
        """Report a text (empty: unchanged) and the share of the job's work that is done, if it is known."""


def no_update(text: str = "", share: float | None = None) -> None:
    """Report nothing."""


def train(
    model: TokenViT,
    conditions: Conditions,
    optim: Optim,
    *,
    seed: int,
    teacher: TokenViT | None = None,
    regulariser: Callable[[], Tensor] | None = None,
    folder: Path | None = None,
    update: Update = no_update,
) -> Training:
    """Train a model in place, on its own device. It ends with the weights to evaluate, averaged if the recipe says so.

    teacher is the frozen unreduced model for methods that need one; regulariser returns a further term of the loss.
    folder keeps a checkpoint from which the same call continues. update receives the mean loss of every epoch, and
    about once a second the share of all steps that is done. Raises CellFailed when the loss is no longer finite or
    memory runs out, UsageError when a checkpoint cannot be used, and OutOfTime, with everything saved, at the deadline.
    """
    run = Run(
        model,
        conditions,
        optim,
        seed=seed,
        teacher=teacher,
        regulariser=regulariser,
        folder=folder,
        update=update,
    )
    state = run.resume()
    remedy = f"set accumulation={2 * optim.accumulation} in the recipe"
    while state.training.epochs < optim.epochs:
        with explain_out_of_memory("in training", run.micro, remedy):
            complete = run.advance(state)
        late = run.late()
        last = state.training.epochs == optim.epochs
        run.save(state, can_wait=not late and not last)
        if complete:
            update(f"epoch {state.training.epochs}, loss {state.training.losses[-1]:.3f}")
        if late and not last:
            run.engine.destroy()
            raise OutOfTime
    run.finish()
    return state.training


class Run:
    """A training run: one DeepSpeed engine with its model, data, learning-rate schedule and checkpoints."""

    def __init__(
        self,
        model: TokenViT,
        conditions: Conditions,
        optim: Optim,
        *,
        seed: int,
        teacher: TokenViT | None = None,
        regulariser: Callable[[], Tensor] | None = None,
        folder: Path | None = None,
        update: Update = no_update,
    ):
        self.model = model
        self.data = conditions.data
        self.dtype = conditions.dtype
        self.deadline = conditions.deadline
        self.optim = optim
        self.seed = seed
        self.teacher = teacher
        self.update = update
        self.updated = 0.0  # seconds of time.monotonic() at the last report of a share
        self.device = next(model.parameters()).device
        deepspeed = connect(self.device)
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        self.micro = micro_batch(optim, self.ranks)
        self.updates = len(self.data.train) // optim.batch_size
        if self.updates == 0:
            raise UsageError(f"a batch of {optim.batch_size} is larger than the {len(self.data.train)} training images")
        seed_all(seed, 0)
        self.mixup = _mixup(optim, model.num_classes)
        groups = parameter_groups(model, optim)
        fused = {"fused": True} if optim.optimizer in FUSED else {}
        optimizer = create_optimizer_v2(
            groups, opt=optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay, **fused
        )
        self.scheduler = _scheduler(optimizer, optim, self.updates)
        objective = Objective(model, optim, soft_labels=self.mixup is not None, regulariser=regulariser)
        with quiet_stdout():
            self.engine, *_ = deepspeed.initialize(
                model=objective,
                optimizer=optimizer,
                config=engine_config(optim, self.micro, self.dtype),
                dist_init_required=False,
            )
        self.keeper = Keeper(folder, self.engine, identity=conditions.identity, device=self.device)
        self.pace = Pace(self.device, before={})
        self.ema = None if optim.ema is None else ModelEmaV3(model, decay=optim.ema)
        if teacher is not None:
            teacher.eval()

    def advance(self, state: State) -> bool:
        """Train to the end of the current epoch, or up to the deadline; return whether the epoch is complete."""
        start = time.perf_counter()
        training = state.training
        losses = [torch.tensor(state.losses, device=self.device)] if state.losses else []
        losses += self.steps(state)
        state.losses = []
        complete = state.step == self.updates
        if complete:
            training.losses.append(self.mean(torch.cat(losses), training.epochs))
            training.epochs += 1
            state.step = 0
        else:
            state.losses = torch.cat(losses).tolist()
        training.steps = self.engine.global_steps
        training.images = training.steps * self.optim.batch_size
        training.seconds += time.perf_counter() - start
        training.pace = self.pace.measured()
        return complete

    def steps(self, state: State) -> Iterator[Tensor]:
        """Train the remaining steps of the current epoch; yields the loss of every micro batch, of shape [1]."""
        epoch = state.training.epochs
        if state.step:
            set_generators(state.random, self.device)
        else:
            seed_all(self.seed, epoch + 1, self.rank)
        self.engine.train()
        self.thaw(epoch)
        self.pace.begin()
        for images, labels in self.batches(epoch, state.step):
            yield self.micro_step(images, labels)
            if self.engine.global_steps > epoch * self.updates + state.step:
                state.step += 1
                self.pace.step(self.optim.batch_size)
                self.report_share()
                if state.step < self.updates and self.late():
                    break
        self.pace.end()

    def micro_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward pass, and the optimiser's step where a batch is complete; the loss of shape [1]."""
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with self.pace.model():
            teacher = None if self.teacher is None else self.teach(images)
            loss = self.engine(images, labels, teacher)
            self.engine.backward(loss)
        boundary = self.engine.is_gradient_accumulation_boundary()
        self.engine.step()
        if boundary:
            self.scheduler.step_update(self.engine.global_steps)
            if self.ema is not None:
                self.ema.update(self.model, step=self.engine.global_steps)
        return loss.detach().reshape(1)

    def batches(self, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the micro batches of an epoch, from step `done` on, for complete steps only."""
        size = self.optim.batch_size // self.optim.accumulation
        batches = self.updates * self.optim.accumulation
        skip = done * self.optim.accumulation
        source = self.data.train.batches(size, shuffle=(self.seed, epoch), rank=self.rank, ranks=self.ranks, skip=skip)
        yield from (batch for _, batch in zip(range(batches - skip), source))

    def report_share(self) -> None:
        """Report the share of all steps that is done, at most once a second, after the first steps, which compile."""
        if not self.pace.warming and time.monotonic() - self.updated >= 1:
            self.updated = time.monotonic()
            self.update(share=self.engine.global_steps / (self.updates * self.optim.epochs))

    def late(self) -> bool:
        """Whether the deadline has passed. Rank 0's clock decides for all ranks, which ask it at every tenth step."""
        if self.deadline is None or (self.ranks > 1 and self.engine.global_steps % 10):
            return False
        return agreed(time.monotonic() >= self.deadline, self.device)

    def mean(self, losses: Tensor, epoch: int) -> float:
        """The mean loss of an epoch, over all ranks. Raises CellFailed with the step for a loss that is not finite."""
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
        """Set the learning rate of the backbone to 0 in the first epochs, if the method or the recipe freezes it."""
        frozen = math.ceil(frozen_share(self.model, self.optim) * self.optim.epochs)
        scale = 0.0 if epoch < frozen else backbone_lr_scale(self.model, self.optim)
        for group in self.scheduler.optimizer.param_groups:
            if group.get("backbone"):
                group["lr_scale"] = scale
        self.scheduler.step_update(self.engine.global_steps)

    def save(self, state: State, can_wait: bool) -> None:
        """Write a checkpoint of the engine and of the averaged weights."""
        extra = {} if self.ema is None else {"ema": self.ema.module.state_dict()}
        with quiet_stdout():
            self.keeper.save(state, extra, can_wait)

    def resume(self) -> State:
        """Load the last checkpoint into the engine and return its state; without one, the beginning."""
        with quiet_stdout():
            state, extra = self.keeper.load()
        if self.ema is not None and extra:
            self.ema.module.load_state_dict(extra["ema"])
        self.pace = Pace(self.device, state.training.pace)
        return state

    def finish(self) -> None:
        """Put the weights to evaluate into the model, and free the engine."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.engine.destroy()
        self.model.zero_grad(set_to_none=True)


class Objective(nn.Module):
    """The model and its loss as one module, which the engine trains."""

    def __init__(
        self, model: TokenViT, optim: Optim, soft_labels: bool, regulariser: Callable[[], Tensor] | None = None
    ):
        super().__init__()
        self.model = model
        self.regulariser = regulariser
        if optim.compile:
            torch.compiler.reset()  # torch silently stops compiling a function that it compiled for eight models
        self.forward_tokens = torch.compile(model.forward_tokens) if optim.compile else model.forward_tokens
        self.criterion = SoftTargetCrossEntropy() if soft_labels else LabelSmoothingCrossEntropy(optim.smoothing)

    def forward(self, images: Tensor, labels: Tensor, teacher: Output | None) -> Tensor:
        """The scalar loss of images [B, C, rows, columns]: criterion, the method's terms and the regulariser.

        labels are [B] class indices, or [B, classes] after mixup.
        """
        out = self.forward_tokens(images)
        loss = self.criterion(out.logits.float(), labels)
        terms = list(out.tokens.aux.values())
        if teacher is not None:
            terms += self.model.objective(out, teacher).values()
        if self.regulariser is not None:
            terms.append(self.regulariser())
        return loss + sum(terms)


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


def backbone_lr_scale(model: TokenViT, optim: Optim) -> float:
    """The backbone's learning rate relative to lr: the recipe's, or else the method's."""
    if optim.backbone_lr_scale is not None:
        return optim.backbone_lr_scale
    return model.reducers[-1].backbone_lr_scale if model.reducers else 1.0


def frozen_share(model: TokenViT, optim: Optim) -> float:
    """The share of the epochs in which the backbone is frozen: the recipe's, or else the method's."""
    if optim.frozen_share is not None:
        return optim.frozen_share
    return model.reducers[-1].frozen_share if model.reducers else 0.0


def parameter_groups(model: TokenViT, optim: Optim) -> list[dict[str, Any]]:
    """timm's groups (no decay for biases, norms and tokens), each split into the backbone's and the method's own."""
    own = {id(p) for reducer in model.reducers for p in reducer.parameters()}
    scale = backbone_lr_scale(model, optim)
    groups = []
    for group in param_groups_weight_decay(model, optim.weight_decay, model.no_weight_decay()):
        for mine in (False, True):
            members = [p for p in group["params"] if (id(p) in own) == mine]
            if members:
                rate = {"lr_scale": optim.new_lr_scale} if mine else {"lr_scale": scale, "backbone": True}
                groups.append({**group, "params": members, **rate})
    return groups


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


def seed_all(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed all random generators that augmentation, mixup, dropout or a method may draw from."""
    value = (seed * 100_003 + epoch) * 1_009 + rank
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def _scheduler(optimizer: torch.optim.Optimizer, optim: Optim, updates: int) -> Scheduler:
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


def _mixup(optim: Optim, classes: int) -> Mixup | None:
    if not optim.mixup and not optim.cutmix:
        return None
    if optim.mixup_mode not in ("batch", "pair", "elem"):
        raise UsageError(f"unknown mixup_mode {optim.mixup_mode!r}; known: batch, pair, elem")
    return Mixup(
        mixup_alpha=optim.mixup,
        cutmix_alpha=optim.cutmix,
        mode=optim.mixup_mode,
        label_smoothing=optim.smoothing,
        num_classes=classes,
    )
