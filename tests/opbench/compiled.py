"""What the fused kernels compile to, without a GPU: `python -m opbench.compiled`.

Every launch of the fused twins at the shapes of DeiT-S, batch 256, is compiled ahead of time for compute capability
9.0 (H100, H200), and its registers, spills and shared memory are printed. The twins run as they are, on tensors
without memory; only the launches are caught. Needs Triton with the ptxas it ships, and no device.
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

BATCH, HEADS, TOKENS, BODY, KEPT, WIDTH, HEAD = 256, 6, 197, 196, 137, 384, 64
HOPPER = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Compiled:
    """One kernel at one set of argument types."""

    kernel: str
    dtype: str
    warps: int
    registers: int  # a thread
    stack_bytes: int  # a thread: registers spilled
    shared_bytes: int  # a program


class NoDevice:
    """Stands in for a GPU's driver where only the target is asked for."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0


@contextmanager
def caught_launches(room: ModuleType) -> Iterator[list]:
    """Every `kernel[grid](...)` of a room compiles instead of running; the compiled kernels are collected."""
    kernels = {name: kernel for name, kernel in vars(room).items() if name.endswith("_kernel")}
    caught: list = []

    class Catch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid) -> Callable[..., None]:
            return lambda *args, **how: caught.append(self.kernel.warmup(*args, grid=grid, **how))

    driver.set_active(NoDevice())
    try:
        for name, kernel in kernels.items():
            setattr(room, name, Catch(kernel))
        yield caught
    finally:
        for name, kernel in kernels.items():
            setattr(room, name, kernel)
        driver._active = None


def launches(dtype: torch.dtype) -> list[tuple[ModuleType, Callable[[], object]]]:
    """One call of every fused twin, on tensors that have shapes and no memory."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k, v = empty(BATCH, TOKENS, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
    bias, score = empty(BATCH, 1, 1, TOKENS), empty(BATCH, BODY, dtype=torch.float32)
    first = empty(BATCH, KEPT, dtype=torch.int64)
    x = empty(BATCH, TOKENS, WIDTH)[:, 1:]
    pairs = distances_triton.empty_pairs(x)
    return [
        (attention_triton, lambda: attention_triton.attend_and_receive(q, k, v, None, 0.125)),
        (attention_triton, lambda: attention_triton.attend_and_receive(q, k, v, bias, 0.125)),
        (attention_triton, lambda: attention_triton.receive(q, k, None, None, 0.125)),
        (distances_triton, lambda: distances_triton.squared_distances(x)),
        (distances_triton, lambda: distances_triton.inner_products(x)),
        (starts_triton, lambda: starts_triton.heaviest(score, KEPT)),
        (starts_triton, lambda: starts_triton.peaks(pairs, score, KEPT)),
        (starts_triton, lambda: starts_triton.farthest(pairs, score, KEPT)),
        (clustering_triton, lambda: clustering_triton.iterate_medoids(pairs, score, first, 5)),
        (clustering_triton, lambda: clustering_triton.iterate_means(pairs, score, first, 5)),
    ]


def compile_all(dtype: torch.dtype) -> list[Compiled]:
    """Every kernel, each once for every set of argument types that the twins give it."""
    found: dict[str, Compiled] = {}
    for room, call in launches(dtype):
        with caught_launches(room) as caught:
            call()
        for kernel in caught:
            found.setdefault(kernel.hash, described(kernel, str(dtype).removeprefix("torch.")))
    return list(found.values())


def described(kernel, dtype: str) -> Compiled:
    registers, stack = resources(kernel.asm["cubin"])
    return Compiled(kernel.metadata.name, dtype, kernel.metadata.num_warps, registers, stack, kernel.metadata.shared)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread; none of the kernels has arrays of its own, so the stack is spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{what}:(\d+)", report)[1]) for what in ("REG", "STACK"))


def main() -> None:
    names = [field.name for field in fields(Compiled)]
    print(" | ".join(names))
    for dtype in (torch.bfloat16, torch.float32):
        for row in compile_all(dtype):
            print(" | ".join(map(str, astuple(row))))


if __name__ == "__main__":
    main()
