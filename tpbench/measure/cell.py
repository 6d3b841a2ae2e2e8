"""The cost of one cell of the benchmark: tokens, multiply-adds, seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tpbench import vit
from tpbench.measure import flops, latency, memory
from tpbench.measure.modes import Mode, Samples, compare
from tpbench.recipe import Measure
from tpbench.tokens import Tokens


@dataclass(frozen=True)
class Cost:
    """The cost of a model beside that of the unreduced one. The fields are those of `record.Record`."""

    tokens: dict[str, list]
    macs: dict[str, Any]
    latency: Samples = field(default_factory=dict)
    unreduced_mode: dict[str, str] = field(default_factory=dict)
    layers_seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)


def measure(model: vit.TokenViT, base: nn.Module, how: Measure, dtype: torch.dtype, images: Tensor) -> Cost:
    """Measure tokens, multiply-adds, seconds and bytes of a model, beside the unreduced base on the same machine.

    images: [B, C, H, W] of the data set, to count the tokens that are not padding in methods where these depend on the
    image. Nothing is timed if `how.repeats` is 0.
    """
    tokens = token_counts(model, images)
    counted = macs(model, base)
    if "live" in tokens:
        counted["live"] = live_macs(model, tokens["live"])
    cost = Cost(tokens=tokens, macs=counted)
    return replace(cost, **timed(model, base, how=how, dtype=dtype)) if how.repeats else cost


def timed(model: vit.TokenViT, base: nn.Module, how: Measure, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a Cost that are measured by running the models: seconds and bytes."""
    mode = Mode.of(how, next(model.parameters()).device)
    seconds, fastest = compare(
        model,
        unreduced=base,
        mode=mode,
        batch_sizes=how.batch_sizes,
        repeats=how.repeats,
        warmup=how.warmup,
        dtype=dtype,
    )
    noise = latency.random_images(model, max(how.batch_sizes))
    networks = {"reduced": model, "unreduced": base}
    calls = {name: latency.forward_call(network, noise, dtype) for name, network in networks.items()}
    return {
        "latency": seconds,
        "unreduced_mode": fastest,
        "layers_seconds": latency.layers(model, noise, repeats=how.repeats, warmup=how.warmup, dtype=dtype),
        "peak_memory_bytes": {name: memory.peak_bytes(call, noise.device) for name, call in calls.items()},
    }


def macs(model: vit.TokenViT, base: nn.Module) -> dict[str, Any]:
    """Multiply-adds per image: counted, in closed form, and of the unreduced model."""
    counted = flops.measured(model)
    return {
        "total": counted.total,
        "unreduced": flops.closed_form(vit.reduce(base, "none")).total,
        "reducers": counted.reducers,
        "closed_form": flops.closed_form(model).total,
        "layers": [{"name": name, "macs": count} for name, count in counted.layers.items()],
    }


def live_macs(model: vit.TokenViT, live: list[float]) -> float:
    """Multiply-adds per image if neither padding nor masked tokens were computed.

    live: mean tokens after each reducing block that are neither.
    """
    blocks = (reducer.setup.block for reducer in model.reducers)
    return model.macs_living(dict(zip(blocks, live))) + flops.closed_form(model).reducers


@torch.no_grad()
def token_counts(model: vit.TokenViT, images: Tensor) -> dict[str, list]:
    """Requested and achieved body tokens; with padding or masks also "live", the mean over images without these."""
    live: list[float] = []

    def note(_: nn.Module, __: tuple, tokens: Tokens) -> None:
        if tokens.alive is not None:
            live.append(tokens.alive.sum(dim=1).mean().item())

    hooks = [reducer.register_forward_hook(note) for reducer in model.reducers]
    try:
        counts = model.eval().forward_tokens(images).counts
    finally:
        for hook in hooks:
            hook.remove()
    asked = model.requested
    found = {"blocks": [block for block, _ in asked], "requested": [k for _, k in asked]}
    found |= {"achieved": [counts[block] for block, _ in asked], "after_block": list(counts)}
    return found | ({"live": live} if live else {})
