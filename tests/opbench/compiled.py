"""Compile the fused kernels without a GPU and print their resources: `python -m opbench.compiled`.

Every launch of the fused kernels at the shapes of DeiT-S, batch 256, is compiled ahead of time for compute capability
9.0 (H100, H200). The code around the kernels runs as it is, on tensors without memory; only the launches are replaced.
It needs Triton with the ptxas that it ships, and no device.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from types import ModuleType

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tpbench.kernels import attention_triton, clustering_triton, distances_triton, starts_triton

BATCH = 256
HEADS = 6
TOKENS = 197
BODY = 196  # tokens without the class token
KEPT = 137
WIDTH = 384
HEAD = 64  # width of a head
HOPPER = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Compiled:
    """The resources of one kernel at one set of argument types."""

    kernel: str
    dtype: str
    warps: int
    registers: int  # of a thread
    stack_bytes: int  # of a thread: spilled registers
    shared_bytes: int  # of a program


class NoDevice:
    """Replaces a GPU's driver, of which Triton only asks the target."""

    def get_current_target(self) -> GPUTarget:
        """The compute capability to compile for."""
        return HOPPER

    def get_current_device(self) -> int:
        """The number of the device."""
        return 0

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        """The default stream."""
        return 0


@contextmanager
def caught_launches(module: ModuleType) -> Iterator[list]:
    """Within this context, `kernel[grid](...)` in a module compiles a kernel instead of running it.

    Yields the list of the compiled kernels.
    """
    kernels = {name: kernel for name, kernel in vars(module).items() if name.endswith("_kernel")}
    caught: list = []

    class CompileOnly:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid) -> Callable[..., None]:
            return lambda *args, **how: caught.append(self.kernel.warmup(*args, grid=grid, **how))

    driver.set_active(NoDevice())
    try:
        for name, kernel in kernels.items():
            setattr(module, name, CompileOnly(kernel))
        yield caught
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
        driver._active = None


def launches(dtype: torch.dtype) -> list[tuple[ModuleType, Callable[[], object]]]:
    """(module, call) for every fused operation, on tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k, v = empty(BATCH, TOKENS, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
    bias = empty(BATCH, 1, 1, TOKENS)
    score = empty(BATCH, BODY, dtype=torch.float32)
    first = empty(BATCH, KEPT, dtype=torch.int64)
    x = empty(BATCH, TOKENS, WIDTH)[:, 1:]
    pairs = distances_triton.empty_pairs(x)
    return [
        (attention_triton, lambda: attention_triton.attend_and_receive(q, k, v, bias=None, scale=0.125)),
        (attention_triton, lambda: attention_triton.attend_and_receive(q, k, v, bias=bias, scale=0.125)),
        (attention_triton, lambda: attention_triton.receive(q, k, bias=None, lse=None, scale=0.125)),
        (distances_triton, lambda: distances_triton.squared_distances(x)),
        (distances_triton, lambda: distances_triton.inner_products(x)),
        (starts_triton, lambda: starts_triton.heaviest(score, KEPT)),
        (starts_triton, lambda: starts_triton.peaks(pairs, score, KEPT)),
        (starts_triton, lambda: starts_triton.farthest(pairs, score, KEPT)),
        (clustering_triton, lambda: clustering_triton.iterate_medoids(pairs, score, first=first, iterations=5)),
        (clustering_triton, lambda: clustering_triton.iterate_means(pairs, score, first=first, iterations=5)),
    ]


def compile_all(dtype: torch.dtype) -> list[Compiled]:
    """The resources of every kernel, once for each set of argument types."""
    found: dict[str, Compiled] = {}
    for module, call in launches(dtype):
        with caught_launches(module) as caught:
            call()
        for kernel in caught:
            found.setdefault(kernel.hash, described(kernel, str(dtype).removeprefix("torch.")))
    return list(found.values())


def described(kernel, dtype: str) -> Compiled:
    """The resources of a compiled kernel."""
    registers, stack = resources(kernel.asm["cubin"])
    return Compiled(
        kernel=kernel.metadata.name,
        dtype=dtype,
        warps=kernel.metadata.num_warps,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=kernel.metadata.shared,
    )


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread. The kernels have no local arrays, so the stack holds only spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{what}:(\d+)", report)[1]) for what in ("REG", "STACK"))


def main() -> None:
    """Print a row for each kernel and dtype."""
    names = [field.name for field in fields(Compiled)]
    print(" | ".join(names))
    for dtype in (torch.bfloat16, torch.float32):
        for row in compile_all(dtype):
            print(" | ".join(map(str, astuple(row))))


if __name__ == "__main__":
    main()
