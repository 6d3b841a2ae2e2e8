"""Traces of the forward pass, with a row per layer: for https://ui.perfetto.dev, and for TensorBoard's plug-in.

A trace is a file in Chrome's trace format. Perfetto opens it in a browser as it is: drop the file on its page; nothing
is uploaded. TensorBoard's PyTorch Profiler plug-in (torch-tb-profiler), no longer developed, reads it too.

The plug-in's Operator view counts events of category "cpu_op" and drops "user_annotation", the only category that
record_function writes. So every layer runs inside a record_function of its own name, and the written trace calls
exactly those annotations operators. Their total time is the layer's, their self time what passes in it between
operators, and kernels that an operator inside them launches count as theirs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from tpbench.measure.latency import forward_call, named_layers
from tpbench.record import replace_text
from tpbench.vit import TokenViT

WARMUP = 2  # forward passes before the first recorded one, with the profiler already at work


def write_trace(
    model: TokenViT,
    images: Tensor,
    folder: Path,
    name: str = "tpbench",
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Trace `steps` forward passes, as `latency` times them, into a new file of a folder.

    Perfetto opens the file, `tensorboard --logdir` the folder. The plug-in shows each folder as a run and each name as
    a worker; a second trace of the same name becomes that worker's next span. The file appears whole or not at all.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # read when the process first profiles
    layers = traced_layers(model)
    with annotated(layers):
        trace = _recorded(model, images=images, steps=steps, dtype=dtype)
    path = folder / f"{name}.{time.time_ns()}.pt.trace.json"  # the plug-in reads worker and span from the name
    replace_text(path, json.dumps(as_operators(trace, layers.keys())))
    return path


def traced_layers(model: TokenViT) -> dict[str, nn.Module]:
    """What gets a row: the layers that also have measured seconds and MACs, and every block as a whole."""
    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    return {**blocks, **named_layers(model)}


@contextmanager
def annotated(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While it lasts, every call of a layer is a record_function of the layer's name."""
    running: list[record_function] = []  # innermost last

    def enter(name: str) -> None:
        running.append(record_function(name))
        running[-1].__enter__()

    def leave(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    hooks = []
    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(layer.register_forward_hook(leave, always_call=True))  # also when the layer raises
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_operators(trace: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The same trace (changed in place) in which the plug-in finds the named annotations among the operators.

    torch-tb-profiler 0.4.3 also knows CUDA's launches only under their old category, and without them no operator
    has device time (pytorch/kineto#1166). Launches outside any operator keep theirs: the plug-in could not place them.
    """
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if category == "user_annotation" and event["name"] in names:
            event["cat"] = "cpu_op"
        elif category in ("cuda_runtime", "cuda_driver") and "External id" in event.get("args", {}):
            event["cat"] = "runtime"
    return trace


def _recorded(model: TokenViT, images: Tensor, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """Kineto's Chrome trace of the steps after the warm-up. Each step ends when its device is done.

    Python's stack is for the plug-in's Module view; it costs host time per Python call, which only small batches show.
    """
    call = forward_call(model, images, dtype)
    on_gpu = images.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    phases = schedule(wait=0, warmup=WARMUP, active=steps, repeat=1)
    with profile(
        activities=activities, schedule=phases, record_shapes=True, profile_memory=True, with_stack=True
    ) as profiler:
        for _ in range(WARMUP + steps):
            call()
            if on_gpu:
                torch.cuda.synchronize(images.device)
            profiler.step()
    with TemporaryDirectory() as scratch:
        raw = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(raw))
        return json.loads(raw.read_text(encoding="utf-8"))
