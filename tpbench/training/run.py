"""A training run: DeepSpeed's steps over epochs, which a time limit may interrupt and a checkpoint continue."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from tpbench.downsampler import Output
from tpbench.errors import Diverged, UsageError
from tpbench.recipe import Optim
from tpbench.training.checkpoint import Checkpoints, State
from tpbench.training.conditions import Conditions, Update, no_update
from tpbench.training.engine import engine_config, make_scheduler, micro_batch
from tpbench.training.groups import backbone_lr_scale, frozen_share, patch_drop
from tpbench.training.objective import Objective, make_mixup
from tpbench.training.optimizer import make_optimizer
from tpbench.training.pace import Pace
from tpbench.training.randomness import seed_all, set_generators
from tpbench.training.ranks import connect, quiet_stdout, rank_0_answer
from tpbench.vit import TokenViT, drop_patches


def updates_per_epoch(images: int, batch_size: int) -> int:
    """How many complete batches an epoch has. Raises UsageError where there is none."""
    if images < batch_size:
        raise UsageError(f"a batch of {batch_size} is larger than the {images} training images")
    return images // batch_size


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
        self.teacher = None if teacher is None else teacher.eval()
        self.update = update
        self.updated = 0.0  # seconds of time.monotonic() at the last report of a share
        self.device = next(model.parameters()).device
        deepspeed = connect(self.device)
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        self.micro = micro_batch(optim, self.ranks)
        self.updates = updates_per_epoch(len(self.data.train), optim.batch_size)
        seed_all(seed, 0)
        self.mixup = make_mixup(optim, model.num_classes)
        optimizer = make_optimizer(model, optim)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scheduler = make_scheduler(optimizer, optim, self.updates)
        objective = Objective(model, optim, soft_labels=self.mixup is not None, regulariser=regulariser)
        config = engine_config(optim, self.micro, self.dtype)
        with quiet_stdout():
            self.engine, *_ = deepspeed.initialize(
                model=objective, optimizer=optimizer, config=config, dist_init_required=False
            )
        # A single rank has nothing to add up; DeepSpeed would copy all gradients to a buffer and back.
        self.reduces = self.ranks > 1 or optim.zero_stage > 0
        self.engine.enable_backward_allreduce = self.reduces
        self.checkpoints = Checkpoints(
            folder, self.engine, identity=conditions.identity, settings=conditions.settings, device=self.device
        )
        self.pace = Pace(self.device, before={})
        self.ema = None if optim.ema is None else ModelEmaV3(model, decay=optim.ema)

    def advance(self, state: State) -> bool:
        """Train to the end of the current epoch, or up to the deadline; return whether the epoch is complete."""
        start = time.perf_counter()
        training = state.training
        losses = [torch.tensor(state.losses, device=self.device)] if state.losses else []
        losses += self.steps(state)
        state.losses = []
        complete = state.step == self.updates
        if complete:
            training.losses.append(self.mean_loss(torch.cat(losses), training.epochs))
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
        self.set_backbone_rate(epoch)
        drop_patches(self.model, patch_drop(self.optim, epoch))
        self.pace.begin()
        for images, labels in self.batches(epoch, state.step):
            yield self.micro_step(images, labels)
            steps_before = epoch * self.updates + state.step
            if self.engine.global_steps > steps_before:  # this micro batch completed a batch
                state.step += 1
                self.pace.step(self.optim.batch_size)
                self.report_share()
                if state.step < self.updates and self.past_deadline():
                    break
        self.pace.end()

    def micro_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward pass, and the optimiser's step where a batch is complete; the loss of shape [1]."""
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with self.pace.model():
            teacher = None if self.teacher is None else self.teacher_output(images)
            loss = self.engine(images, labels, teacher)
            self.engine.backward(loss)
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and not self.reduces:
            self.fill_gradients()
        self.engine.step()
        if boundary:
            self.scheduler.step_update(self.engine.global_steps)
            if self.ema is not None:
                self.ema.update(self.model, step=self.engine.global_steps)
        return loss.detach().reshape(1)

    def fill_gradients(self) -> None:
        """Give parameters without a gradient one of zeros, as DeepSpeed's reduction does, so that they decay too."""
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def batches(self, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the micro batches of an epoch, from step `done` on, for complete steps only."""
        size = self.optim.batch_size // self.optim.accumulation
        batches = self.updates * self.optim.accumulation
        skip = done * self.optim.accumulation
        source = self.data.train.batches(size, shuffle=(self.seed, epoch), rank=self.rank, ranks=self.ranks, skip=skip)
        yield from islice(source, batches - skip)

    def report_share(self) -> None:
        """Report the share of all steps that is done, at most once a second, after the first steps, which compile."""
        if not self.pace.warming and time.monotonic() - self.updated >= 1:
            self.updated = time.monotonic()
            self.update(share=self.engine.global_steps / (self.updates * self.optim.epochs))

    def past_deadline(self) -> bool:
        """Whether the deadline has passed. Rank 0's clock decides for all ranks, which ask it at every tenth step."""
        if self.deadline is None or (self.ranks > 1 and self.engine.global_steps % 10):
            return False
        return rank_0_answer(time.monotonic() >= self.deadline, self.device)

    def mean_loss(self, losses: Tensor, epoch: int) -> float:
        """The mean loss of an epoch, over all ranks. Raises Diverged on all of them if a loss is not finite."""
        bad = (~losses.isfinite()).int()
        if self.ranks > 1:
            torch.distributed.all_reduce(bad)
        if bad.any():
            step = epoch * self.updates + int(bad.nonzero()[0]) // self.optim.accumulation
            rate = self.engine.optimizer.param_groups[0]["lr"]
            raise Diverged(
                f"the loss is no longer finite at step {step} (epoch {epoch}, learning rate about {rate:.2g})"
            )
        total = losses.mean()
        if self.ranks > 1:
            torch.distributed.all_reduce(total)
        return (total / self.ranks).item()

    @torch.no_grad()
    def teacher_output(self, images: Tensor) -> Output:
        """The frozen unreduced model's output, in the engine's precision."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.teacher.forward_tokens(images)

    def set_backbone_rate(self, epoch: int) -> None:
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
            self.checkpoints.save(state, extra, can_wait)

    def resume(self) -> State:
        """Load the last checkpoint into the engine and return its state; without one, the beginning."""
        with quiet_stdout():
            state, extra = self.checkpoints.load()
        if self.ema is not None and extra:
            self.ema.module.load_state_dict(extra["ema"])
        self.pace = Pace(self.device, state.training.pace)
        return state

    def finish(self) -> None:
        """Put the weights that are to be evaluated into the model, and free the engine."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.engine.destroy()
        drop_patches(self.model, 0.0)
        self.model.zero_grad(set_to_none=True)
