"""One model and method without training: tokens, MACs and latency, layer by layer (`tpbench profile`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tpbench import environment, vit
from tpbench.measure import flops, latency, memory
from tpbench.measure.cell import token_counts
from tpbench.measure.trace import write_trace


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
    compiled: bool = False,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Measure a timm model by name, reduced by a method, beside the fastest unreduced form of the same model.

    macs per image, seconds per forward pass, bytes; `layers` at the largest batch size. The models carry random
    weights: shapes alone decide what is measured here (image-dependent methods excepted).
    """
    where = environment.device(device)
    precision = environment.dtype(dtype, where)
    torch.manual_seed(0)
    base = vit.create(name, {}).eval().to(where)
    model = vit.reduce(base, method, schedule, site=site)
    macs, whole = flops.measured(model), flops.closed_form(vit.reduce(base, "none")).total
    images = latency.random_images(model, max(batch_sizes))
    tokens = token_counts(model, images)
    candidates = {"eager": base} | ({"compiled": torch.compile(base)} if compiled else {})
    best = latency.fastest(candidates, max(batch_sizes), dtype=precision)
    timed = torch.compile(model) if compiled else model
    samples = latency.compare(timed, candidates[best], batch_sizes, repeats, 3, dtype=precision)
    seconds = latency.layers(model, images, repeats, 2, precision)
    result = {
        "model": name,
        "method": method,
        "schedule": schedule,
        "site": site,
        "blocks": tokens["blocks"],
        "requested_tokens": tokens["requested"],
        "tokens": tokens["achieved"],
        "macs": macs.total,
        "macs_unreduced": whole,
        "macs_reducers": macs.reducers,
        "layers": [
            {"name": n, "macs": macs.layers.get(n, 0), "seconds": seconds.get(n)} for n in (*macs.layers, "other")
        ],
        "latency": {size: both["reduced"] for size, both in samples.items()},
        "latency_unreduced": {size: both["unreduced"] for size, both in samples.items()},
        "unreduced_mode": best,
        "compiled": compiled,
        "peak_memory_bytes": memory.peak_bytes(latency.forward_call(model, images, precision), where),
        "environment": environment.describe(where, precision),
    }
    if trace is not None:
        result["trace"] = str(write_trace(model, images, trace, dtype=precision))
    return result
