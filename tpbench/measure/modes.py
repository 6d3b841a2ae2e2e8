"""How a model is run when it is timed: eager, compiled, or replayed as a CUDA graph.

A mode changes only the time, not the result. A reduced model is timed in the requested mode. The unreduced model is
timed in every mode that this permits, and the fastest is the reference, so that no gain comes from a slow reference.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, product
from statistics import median

import torch
from torch import Tensor, nn

from tpbench.errors import CellFailed, UsageError
from tpbench.measure.latency import forward_call, interleaved, random_images
from tpbench.recipe import Measure

_compiled = count()

Samples = dict[str, dict[str, list[float]]]  # batch size -> "reduced" and "unreduced" -> seconds


@dataclass(frozen=True)
class Mode:
    """What is done to a model before it is timed."""

    compiled: bool = False  # torch.compile, the whole model in one graph, for these shapes only
    cuda_graph: bool = False  # the kernels of one forward pass recorded once and replayed

    def __str__(self) -> str:
        return ("compiled" if self.compiled else "eager") + (" in a CUDA graph" if self.cuda_graph else "")

    @classmethod
    def of(cls, how: Measure, where: torch.device) -> Mode:
        """The mode in which a recipe measures on a device; CUDA graphs are used only on CUDA devices."""
        return cls(how.compile, how.cuda_graph and where.type == "cuda")

    def permitted(self) -> list[Mode]:
        """This mode and all modes with a subset of its options, the plainest first."""
        compiled = (False, True) if self.compiled else (False,)
        cuda_graph = (False, True) if self.cuda_graph else (False,)
        return [Mode(compiled=first, cuda_graph=second) for first, second in product(compiled, cuda_graph)]

    def check(self, where: torch.device) -> None:
        """Raise UsageError, before any work, if the device or machine does not support the mode."""
        if self.cuda_graph and where.type != "cuda":
            raise UsageError(f"--cuda-graph needs a CUDA device, and this profile runs on a {where.type}")
        compiler = os.environ.get("CXX", "g++")
        if self.compiled and where.type == "cpu" and shutil.which(compiler) is None:
            raise UsageError(f"--compile needs a C++ compiler on a CPU, and {compiler} is not installed")

    def call(self, model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
        """A function that runs one inference of `images`, already compiled and recorded. See `latency.forward_call`."""
        model.eval()
        forward = forward_call(compiled(model) if self.compiled else model, images, dtype)
        if self.compiled:
            forward()
        return captured(forward) if self.cuda_graph else forward


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward pass of a model, compiled in one graph for the shapes that it meets.

    Each model gets a function with a code object of its own. torch caches compiled graphs by code object: with a shared
    one it would search the graphs of all models at every call, and stop compiling after eight models.
    """

    def forward(images: Tensor) -> Tensor:
        return model(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_compiled)}")
    return torch.compile(forward, fullgraph=True, dynamic=False)


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record a call as a CUDA graph, which always reads and writes the same memory.

    Three calls on a side stream before the recording let the kernels choose their plans and workspaces. Raises
    CellFailed if the call waits for the host.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = call()
    except RuntimeError as error:
        raise CellFailed(f"the model cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}") from error

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def compare(
    reduced: nn.Module,
    unreduced: nn.Module,
    mode: Mode,
    batch_sizes: Sequence[int],
    repeats: int,
    warmup: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Samples, dict[str, str]]:
    """Time the reduced model in a mode and the unreduced model in its fastest mode, in turns, by batch size.

    The second value is the name of that fastest mode by batch size, since a CUDA graph may be faster for one image but
    not for many.
    """
    samples = {}
    chosen = {}
    for batch in batch_sizes:
        images = random_images(reduced, batch)
        if mode.compiled:
            torch.compiler.reset()  # frees the graphs of the cell before
        rivals = {str(permitted): permitted.call(unreduced, images, dtype) for permitted in mode.permitted()}
        calls = {"reduced": mode.call(reduced, images, dtype), **rivals}
        seconds = interleaved(calls, repeats, warmup=warmup, device=images.device)
        best = min(rivals, key=lambda name: median(seconds[name]))
        samples[str(batch)] = {"reduced": seconds["reduced"], "unreduced": seconds[best]}
        chosen[str(batch)] = best
    return samples, chosen
