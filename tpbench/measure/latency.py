"""Seconds of a forward pass: raw samples, taken in turns, so that noise of the machine affects all models alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from tpbench.vit import TokenViT


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Sample the seconds of several calls in turns, one sample of each call per round.

    Each call gets `warmup` unrecorded rounds, then `repeats` samples.
    """
    wait = synchroniser(device)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn >= warmup:
                samples[name].append(time.perf_counter() - start)
    return samples


def forward_call(
    model: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """A function that runs one inference of `images` in evaluation mode; lower dtypes use autocast, as in training."""
    if isinstance(model, nn.Module):
        model.eval()

    def call() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return model(images)

    return call


def random_images(model: nn.Module, batch: int) -> Tensor:
    """Standard normal images of the model's size on its device: [batch, channels, height, width]."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (batch, model.in_chans, *model.patch_embed.img_size)
    return torch.randn(shape, generator=generator).to(device)


def layers(
    model: TokenViT, images: Tensor, repeats: int, warmup: int, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Median seconds of each layer in one forward pass, and of all operations between layers as "other"."""
    samples: dict[str, list[float]] = {}
    started: dict[str, float] = {}
    wait = synchroniser(images.device)

    def watch(name: str, module: nn.Module) -> list:
        def before(*_: object) -> None:
            wait()
            started[name] = time.perf_counter()

        def after(*_: object) -> None:
            wait()
            samples.setdefault(name, []).append(time.perf_counter() - started[name])

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    hooks = [hook for name, module in named_layers(model).items() for hook in watch(name, module)]
    try:
        passes = interleaved({"": forward_call(model, images, dtype)}, repeats, warmup=warmup, device=images.device)[""]
    finally:
        for hook in hooks:
            hook.remove()
    medians = {name: median(times[warmup:]) for name, times in samples.items()}
    return medians | {"other": max(0.0, median(passes) - sum(medians.values()))}


def named_layers(model: TokenViT) -> dict[str, nn.Module]:
    """The layers that are measured, with the names of `measure.flops`."""
    found: dict[str, nn.Module] = {"patch_embed": model.patch_embed}
    for index, block in enumerate(model.blocks):
        found[f"blocks.{index}.attn"] = block.attn
        if block.reducer is not None:
            found[f"blocks.{index}.reducer"] = block.reducer
        found[f"blocks.{index}.mlp"] = block.mlp
    if model.attn_pool is not None:
        found["attn_pool"] = model.attn_pool
    return found | {"head": model.head}


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until a device has finished its work; on a CPU it does nothing."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
