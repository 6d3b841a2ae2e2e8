"""How fast training is on this machine: `tox -e trainbench`.

Two questions, answered by samples in turns, because a machine's speed drifts. How fast is our step (augmentation,
DeepSpeed, clipping, scheduler, no wait for the loss) relative to a plain PyTorch loop with the same model, batch and
precision on data in memory, both compiled on a GPU? And how much faster is the step of a reduced model than the base's,
relative to what multiply-adds promise? Targets on one H200: at least 0.9 of the plain loop, and at least 0.8 of the
promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import pytest
import torch
from torch.nn import functional as F

from tpbench import environment
from tpbench.bench.models import build_base
from tpbench.measure import flops, latency
from tpbench.recipe import Recipe, load
from tpbench.training import data
from tpbench.training.train import Conditions, Run
from tpbench.vit import TokenViT, reduce

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NAMES = ["cifar10", "cifar10-p2"] if GPU else ["cifar10-cpu"]
REPEATS = 50 if GPU else 15
WARM_UP = 10 if GPU else 3


def comparable(name: str) -> Recipe:
    """A recipe without mixing, smoothing and patch dropout, compiled on a GPU."""
    recipe = load(name)
    base = replace(recipe.base, compile=GPU, mixup=0.0, cutmix=0.0, smoothing=0.0, optimizer="adamw", patch_drop=0.0)
    return replace(recipe, base=base)


def images_like(recipe: Recipe, batches: int) -> data.Parts:
    """Random images, resident on the device, under the recipe's augmentation."""
    generator = torch.Generator().manual_seed(0)
    count = batches * recipe.base.batch_size
    size = recipe.data.image_size
    images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    part = data.Resident(recipe.data, images, labels=torch.arange(count) % recipe.data.classes, device=DEVICE)
    return data.Parts(part, part, part)


def ours(recipe: Recipe, model: TokenViT) -> tuple[Callable[[], None], Run]:
    """One step as tpbench trains, and its run."""
    parts = images_like(recipe, WARM_UP + REPEATS)
    run = Run(model, Conditions(parts, environment.dtype(recipe.dtype, DEVICE)), recipe.base, seed=0)
    run.engine.train()
    batches = run.batches(0, 0)
    return lambda: run.micro_step(*next(batches)), run


def plain(recipe: Recipe, model: TokenViT) -> Callable[[], None]:
    """One step of a plain PyTorch loop."""
    batches: Iterator = images_like(recipe, WARM_UP + REPEATS).train.batches(recipe.base.batch_size, (0, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.base.lr, weight_decay=recipe.base.weight_decay)
    forward = torch.compile(model) if GPU else model
    model.train()
    dtype = environment.dtype(recipe.dtype, DEVICE)

    def step() -> None:
        images, labels = next(batches)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.base.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def fresh(recipe: Recipe, method: str = "none", schedule: str = "none") -> TokenViT:
    """The recipe's base, untrained and reduced by a method."""
    return reduce(build_base(recipe, 0).to(DEVICE), method, schedule)


@pytest.mark.parametrize("name", NAMES)
def test_our_step_against_a_plain_loops(benchmark, name):
    recipe = comparable(name)
    step, run = ours(recipe, fresh(recipe))
    calls = {"ours": step, "plain": plain(recipe, fresh(recipe))}
    samples = latency.interleaved(calls, REPEATS - 1, warmup=WARM_UP, device=DEVICE)
    seconds = {who: median(times) for who, times in samples.items()}
    ratio = seconds["plain"] / seconds["ours"]
    benchmark.extra_info |= {
        "speed_against_plain": ratio,
        "images_per_second": recipe.base.batch_size / seconds["ours"],
    }
    print(f"\n{name}: {recipe.base.batch_size / seconds['ours']:.0f} images/s, {ratio:.3f} of a plain loop's speed")
    benchmark.pedantic(calls["ours"], rounds=1)
    run.finish()
    assert ratio > 0


@pytest.mark.parametrize("method", ["topk", "wkmedoids"])
@pytest.mark.parametrize("name", NAMES)
def test_a_reduced_models_step_against_the_bases(benchmark, name, method):
    recipe = comparable(name)
    models = {"base": fresh(recipe), method: fresh(recipe, method, recipe.schedules[0])}
    promised = flops.closed_form(models["base"]).total / flops.closed_form(models[method]).total
    steps = {who: ours(recipe, model) for who, model in models.items()}
    calls = {who: step for who, (step, _) in steps.items()}
    samples = latency.interleaved(calls, REPEATS - 1, warmup=WARM_UP, device=DEVICE)
    reached = median(samples["base"]) / median(samples[method])
    benchmark.extra_info |= {"promised": promised, "reached": reached, "share": reached / promised}
    print(f"\n{name} {method}: trains {reached:.2f}x as fast, {promised:.2f}x promised ({reached / promised:.3f})")
    benchmark.pedantic(calls[method], rounds=1)
    for _, run in steps.values():
        run.finish()
    assert promised > 1
