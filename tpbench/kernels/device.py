"""Where native and fused kernels run.

numba and Triton are imported only in `kernels.native` and the *_triton modules, and only when one of them is to run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

_definitions = False


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton compiles for a device: a CUDA device of compute capability 8.0 or more, with Triton installed."""
    return device.type == "cuda" and not _definitions and _ampere(device.index or 0)


def native_runs_on(device: torch.device, exact: torch.dtype, topic: str) -> bool:
    """Whether compiled loops run on a device in float32 or float64: on a CPU, with numba and a cache it can write.

    topic is a key of `native.twins.TOPICS`. The first call in a process compiles its loops, or loads them from the
    cache. If that fails, the process prints the reason once, on standard error, and runs the definitions.
    """
    return device.type == "cpu" and not _definitions and _prepared(exact, topic)


@contextmanager
def definitions() -> Iterator[None]:
    """Within the block, run the definitions on every device instead of native and fused twins, to compare them."""
    global _definitions
    before = _definitions
    _definitions = True
    try:
        yield
    finally:
        _definitions = before


@cache
def _ampere(index: int) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(index) >= (8, 0)


@cache
def _prepared(exact: torch.dtype, topic: str) -> bool:
    try:
        from tpbench.kernels.native import twins

        twins.prepare(exact, topic)
    except (ImportError, OSError, RuntimeError) as error:
        _say_why_not(str(error).partition("\n")[0])
        return False
    return True


@cache  # once in a process
def _say_why_not(reason: str) -> None:
    print(
        f"tpbench: reducing on the CPU runs in plain PyTorch, with the same results but slower: {reason}",
        file=sys.stderr,
    )
