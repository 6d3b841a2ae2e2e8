"""One model and method without training: tokens, MACs and latency, layer by layer (`tpbench profile`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpbench import environment, vit
from tpbench.errors import UsageError, explain_out_of_memory
from tpbench.measure import flops, latency, memory
from tpbench.measure.cell import token_counts
from tpbench.measure.modes import Mode, compare
from tpbench.measure.trace import write_trace

EAGER = Mode()


def profile(
    name: str,
    method: str,
    schedule: str,
    batch_sizes: tuple[int, ...],
    repeats: int,
    *,
    site: str = "mid",
    dtype: str = "float32",
    device: str = "auto",
    mode: Mode = EAGER,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Measure a timm model by name, reduced by a method, beside the fastest unreduced form of the same model.

    macs per image, seconds per forward pass, bytes; `layers` at the largest batch size. Layers, memory and trace are
    those of the eager model, whatever the mode. The models carry random weights: shapes alone decide what is measured
    here (image-dependent methods excepted). Raises UsageError where the memory cannot hold the largest batch.
    """
    where = environment.device(device)
    precision = environment.dtype(dtype, where)
    mode.check(where)
    torch.manual_seed(0)
    base = vit.create(name, {}).eval().to(where)
    model = vit.reduce(base, method, schedule, site=site)
    with explain_out_of_memory("in profiling", max(batch_sizes), "choose smaller --batch-sizes", kind=UsageError):
        images = latency.random_images(model, max(batch_sizes))
        result = {"model": name, "method": method, "schedule": schedule, "site": site}
        result |= _tokens(model, images)
        result |= _macs_and_layers(model, images, repeats, precision)
        result["macs_unreduced"] = flops.closed_form(vit.reduce(base, "none")).total
        samples, modes = compare(model, base, mode, batch_sizes, repeats, 3, precision)
        result |= {
            "latency": {size: both["reduced"] for size, both in samples.items()},
            "latency_unreduced": {size: both["unreduced"] for size, both in samples.items()},
            "mode": str(mode),
            "unreduced_mode": modes,
            "peak_memory_bytes": memory.peak_bytes(latency.forward_call(model, images, precision), where),
            "environment": environment.describe(where, precision),
        }
        if trace is not None:
            result["trace"] = str(write_trace(model, images, trace, dtype=precision))
    return result


def _tokens(model: vit.TokenViT, images: Tensor) -> dict[str, list[int]]:
    counts = token_counts(model, images)
    return {"blocks": counts["blocks"], "requested_tokens": counts["requested"], "tokens": counts["achieved"]}


def _macs_and_layers(model: vit.TokenViT, images: Tensor, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    macs = flops.measured(model)
    seconds = latency.layers(model, images, repeats, 2, dtype)
    rows = [{"name": n, "macs": macs.layers.get(n, 0), "seconds": seconds.get(n)} for n in (*macs.layers, "other")]
    return {"macs": macs.total, "macs_reducers": macs.reducers, "layers": rows}
