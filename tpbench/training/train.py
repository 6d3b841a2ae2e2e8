"""Training with DeepSpeed: one loop for the base and for every fine-tuning, on GPUs and CPUs, one rank or several.

DeepSpeed's engine makes every step. timm supplies parameter groups, schedulers, mixup and averaged weights. The random
state of an epoch depends on (seed, epoch) alone, and checkpoints are written after epochs and where a time limit ends
a run. A run that is killed or stopped therefore continues with the numbers that it would have had (on a CPU, to the
last bit).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tpbench.errors import OutOfTime, explain_out_of_memory
from tpbench.recipe import Optim
from tpbench.training.checkpoint import Training
from tpbench.training.conditions import Conditions, Update, no_update
from tpbench.training.groups import parameter_groups
from tpbench.training.randomness import seed_all
from tpbench.training.run import Run
from tpbench.vit import TokenViT

__all__ = ["Conditions", "Run", "Update", "no_update", "parameter_groups", "seed_all", "train"]


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
    """Train a model in place, on its own device. It then has the weights to evaluate, averaged if the recipe says so.

    teacher is the frozen unreduced model for methods that need one; regulariser returns a further term of the loss.
    folder keeps a checkpoint from which the same call continues. update receives the mean loss of every epoch, and
    about once a second the share of all steps that is done. Raises CellFailed when the loss is no longer finite or
    memory runs out, UsageError when a checkpoint cannot be used, and OutOfTime, with everything saved, at the deadline.
    """
    run = Run(
        model, conditions, optim, seed=seed, teacher=teacher, regulariser=regulariser, folder=folder, update=update
    )
    state = run.resume()
    remedy = f"set accumulation={2 * optim.accumulation} in the recipe"
    while state.training.epochs < optim.epochs:
        with explain_out_of_memory("in training", run.micro, remedy):
            complete = run.advance(state)
        late = run.past_deadline()
        last = state.training.epochs == optim.epochs
        run.save(state, can_wait=not late and not last)
        if complete:
            update(f"epoch {state.training.epochs}, loss {state.training.losses[-1]:.3f}")
        if late and not last:
            run.engine.destroy()
            raise OutOfTime
    run.finish()
    return state.training
