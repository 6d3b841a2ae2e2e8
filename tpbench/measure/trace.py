"""Traces of the forward pass with one row per layer, for https://ui.perfetto.dev and for TensorBoard's plug-in.

A trace is a file in Chrome's trace format. To open it, drop it on Perfetto's page; nothing is uploaded. TensorBoard's
PyTorch Profiler plug-in (torch-tb-profiler), which is no longer developed, reads it too.

The plug-in's Operator view counts events of category "cpu_op" and drops "user_annotation", the only category that
record_function writes. Every layer therefore runs inside a record_function of its own name, and in the written trace
exactly these annotations are operators. Their total time is the layer's, their self time is the time between operators
in the layer, and they include the kernels that operators inside them launch.
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

WARMUP = 2  # forward passes that the profiler runs without recording them


def write_trace(
    model: TokenViT,
    images: Tensor,
    folder: Path,
    name: str = "tpbench",
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Trace `steps` forward passes, run as in `latency`, into a new file of a folder; return its path.

    Perfetto opens the file, `tensorboard --logdir` the folder. The plug-in shows each folder as a run and each name as
    a worker; a second trace of the same name becomes that worker's next span. The file is written atomically.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # read when the process first profiles
    layers = traced_layers(model)
    with annotated(layers):
        trace = _recorded(model, images=images, steps=steps, dtype=dtype)
    path = folder / f"{name}.{time.time_ns()}.pt.trace.json"  # the plug-in reads worker and span from the name
    replace_text(path, json.dumps(as_operators(trace, layers.keys())))
    return path


def traced_layers(model: TokenViT) -> dict[str, nn.Module]:
    """The modules that get a row: the layers whose seconds and MACs are measured, and every block."""
    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    return {**blocks, **named_layers(model)}


@contextmanager
def annotated(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within this context, every call of a layer is recorded under the layer's name."""
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
    """Change a trace in place so that the plug-in finds the named annotations among the operators, and return it.

    torch-tb-profiler 0.4.3 knows CUDA launches only by their old category, and without them no operator has device time
    (pytorch/kineto#1166). Launches outside any operator keep their category: the plug-in could not assign them.
    """
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if category == "user_annotation" and event["name"] in names:
            event["cat"] = "cpu_op"
        elif category in ("cuda_runtime", "cuda_driver") and "External id" in event.get("args", {}):
            event["cat"] = "runtime"
    return trace


def _recorded(model: TokenViT, images: Tensor, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """Kineto's Chrome trace of the steps after the warm-up. Each step ends when the device has finished.

    The Python stack is for the plug-in's Module view; its cost per Python call shows in small batches only.
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
