"""Tokens, MACs and latency of one model and method, layer by layer and without training (`tpbench profile`)."""

from __future__ import annotations

from pathlib import Path

import torch

from tpbench import environment, vit
from tpbench.errors import UsageError, explain_out_of_memory
from tpbench.measure import latency
from tpbench.measure.cell import measure
from tpbench.measure.modes import Mode
from tpbench.measure.trace import write_trace
from tpbench.recipe import Measure
from tpbench.record import Profile


def profile(
    name: str,
    method: str,
    schedule: str,
    how: Measure,
    *,
    site: str = "mid",
    dtype: str = "float32",
    device: str = "auto",
    trace: Path | None = None,
) -> Profile:
    """Measure a timm model that a method reduces, beside the fastest unreduced form of the same model.

    Layers, memory and trace are those of the eager model, whatever the mode. Weights are random, since only shapes
    matter here (except for methods that depend on the image). Raises UsageError for unknown names, for what the device
    does not support, and if the memory cannot hold the largest batch.
    """
    where = environment.device(device)
    precision = environment.dtype(dtype, where)
    mode = Mode(how.compile, how.cuda_graph)
    mode.check(where)
    torch.manual_seed(0)
    base = vit.create(name, {}).eval().to(where)
    model = vit.reduce(base, method, schedule, site=site)
    largest = max(how.batch_sizes)
    with explain_out_of_memory("in profiling", largest, "choose smaller --batch-sizes", kind=UsageError):
        images = latency.random_images(model, largest)
        cost = measure(model, base=base, how=how, dtype=precision, images=images)
        traced = None if trace is None else write_trace(model, images, trace, dtype=precision)
    return Profile(
        model=name,
        method=method,
        schedule=schedule,
        site=site,
        mode=str(mode),
        environment=environment.describe(where, precision),
        trace=None if traced is None else str(traced),
        **vars(cost),
    )
