"""DeepSpeed's training step beside a plain loop's, in turns: part of `tox -e opbench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_recipe
import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

from opbench.turns import Operation, Turns
from tpbench.bench.models import build_base
from tpbench.recipe import load
from tpbench.training import data
from tpbench.training.train import Conditions, Run
from tpbench.vit import reduce

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest) -> Iterator[Turns]:
    """A training step (forward, backward, clipping, optimiser) by DeepSpeed and by a plain loop."""
    recipe = tiny_recipe.recipe() if request.param == "tiny" else load("digits")
    parts = data.load(recipe.data, CPU)
    run = Run(reduce(build_base(recipe, 0), "none"), Conditions(parts), recipe.base, seed=0)
    plain = reduce(build_base(recipe, 0), "none").train()
    optimizer = create_optimizer_v2(plain, opt="adamw", lr=recipe.base.lr, weight_decay=0.05)
    images, labels = next(parts.train.batches(recipe.base.batch_size, (0, 0)))
    run.engine.train()

    def deepspeed_step() -> None:
        loss = run.engine(images, labels, teacher=None)
        run.engine.backward(loss)
        run.engine.step()

    def plain_step() -> None:
        F.cross_entropy(plain(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    operations = {"DeepSpeed": Operation(deepspeed_step, {}), "plain": Operation(plain_step, {})}
    place = {"kind": "training", "model": request.param, "batch": len(images)}
    yield Turns(place, operations, repeats=40, warmup=5)
    run.finish()


@pytest.mark.parametrize("steps", ["tiny", "digits"], indirect=True)
@pytest.mark.parametrize("operation", ["DeepSpeed", "plain"])
def test_training_step(benchmark: Any, steps: Turns, operation: str):
    steps.report(benchmark, operation)
