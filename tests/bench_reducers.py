"""How much of the speed-up that MACs promise is reached, on this machine: `tox -e opbench`.

Groups: whole models at 224 pixels (batch 8, one thread), one clustering layer beside a plainly looped K-Medoids, and
DeepSpeed's training step beside a plain loop. pytest-benchmark's table shows the rounds of each; the ratios are taken
from samples in turns, because the machine's speed drifts, and go into the benchmark's extra_info (and to the terminal
with -s).
"""

from __future__ import annotations

from statistics import median

import pytest
import timm
import tiny_recipe
import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

import tpbench
from tpbench import data
from tpbench.bench import build_base
from tpbench.measure import flops, latency
from tpbench.pooling import cluster
from tpbench.recipe import load
from tpbench.train import Run
from tpbench.vit import reduce

torch.set_num_threads(1)
CPU = torch.device("cpu")
SCHEDULE = "0.7@3,6,9"


def looped_kmedoids(x: torch.Tensor, weight: torch.Tensor, k: int, iterations: int = 5) -> torch.Tensor:
    """The textbook, written plainly: a loop over images and clusters."""
    medoids = weight.topk(k, dim=1).indices
    for image in range(len(x)):
        distance = torch.cdist(x[image], x[image]).square()
        for _ in range(iterations):
            assignment = distance[medoids[image]].argmin(dim=0)
            for j in range(k):
                members = (assignment == j).nonzero()[:, 0]
                if len(members):
                    cost = (distance[members][:, members] * weight[image, members][:, None]).sum(dim=0)
                    medoids[image, j] = members[cost.argmin()]
    return medoids


@pytest.mark.parametrize("method", ["random", "topk", "wkmedoids", "wkmeans"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224"])
def test_share_of_the_promised_speedup(benchmark, name, method):
    benchmark.group = f"{name}, batch 8, {SCHEDULE}"
    torch.manual_seed(0)
    base = timm.create_model(name).eval()
    models = {
        "unreduced": base,
        "topk": tpbench.reduce(base, "topk", SCHEDULE),
        method: tpbench.reduce(base, method, SCHEDULE),
    }
    images = latency.random_images(base, 8)
    calls = {key: latency.forward_call(model, images) for key, model in models.items()}
    samples = latency.interleaved(calls, 7, 1, CPU)
    seconds = {key: median(times) for key, times in samples.items()}
    promised = flops.closed_form(tpbench.reduce(base, "none")).total / flops.measured(models[method]).total
    reached = seconds["unreduced"] / seconds[method]
    benchmark.extra_info |= {
        "speedup_promised": promised,
        "speedup_reached": reached,
        "share_reached": reached / promised,
        "throughput_against_topk": seconds["topk"] / seconds[method],
    }
    print(f"\n{name} {method}: {reached:.3f}x of {promised:.3f}x promised ({reached / promised:.3f}),", end=" ")
    print(f"{seconds['topk'] / seconds[method]:.3f} of top-K's throughput")
    benchmark.pedantic(calls[method], rounds=3, warmup_rounds=1)
    assert promised > 1


@pytest.mark.parametrize("k", [138, 69])
@pytest.mark.parametrize("how", ["batched", "looped"])
def test_one_layer(benchmark, how, k):
    """N=196, C=384, batch 32."""
    benchmark.group = f"weighted K-Medoids, N=196, C=384, B=32, K={k}"
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 196, 384, generator=generator), torch.rand(32, 196, generator=generator)
    call = {"batched": lambda: cluster.kmedoids(x, weight, k)[0], "looped": lambda: looped_kmedoids(x, weight, k)}
    with torch.inference_mode():
        if how == "looped":
            samples = latency.interleaved(call, 3, 1, CPU)
            benchmark.extra_info["times_the_batched"] = median(samples["looped"]) / median(samples["batched"])
            print(f"\nK={k}: the loop takes {benchmark.extra_info['times_the_batched']:.1f}x the batched form")
        benchmark.pedantic(call[how], rounds=3, warmup_rounds=1)
        assert call["batched"]().shape == (32, k)


@pytest.mark.parametrize("name", ["tiny", "digits"])
def test_training_step(benchmark, name):
    """DeepSpeed's step beside a plain loop's: forward, backward, clipping, optimiser."""
    benchmark.group = f"training step, {name}"
    recipe = tiny_recipe.recipe() if name == "tiny" else load("digits")
    parts = data.load(recipe.data, CPU)
    run = Run(reduce(build_base(recipe, 0), "none"), parts, recipe.base, 0, torch.float32, None)
    plain = reduce(build_base(recipe, 0), "none").train()
    optimizer = create_optimizer_v2(plain, opt="adamw", lr=recipe.base.lr, weight_decay=0.05)
    images, labels = next(parts.train.batches(recipe.base.batch_size, (0, 0)))
    run.engine.train()

    def deepspeed_step() -> None:
        loss = run.engine(images, labels, None)
        run.engine.backward(loss)
        run.engine.step()

    def plain_step() -> None:
        F.cross_entropy(plain(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    samples = latency.interleaved({"deepspeed": deepspeed_step, "plain": plain_step}, 40, 5, CPU)
    ratio = median(samples["deepspeed"]) / median(samples["plain"])
    benchmark.extra_info["deepspeed_over_plain"] = ratio
    print(f"\n{name}: DeepSpeed's step takes {ratio:.3f}x a plain one")
    benchmark.pedantic(deepspeed_step, rounds=20, warmup_rounds=2)
    run.finish()
    assert all(parameter.isfinite().all() for parameter in plain.parameters())
