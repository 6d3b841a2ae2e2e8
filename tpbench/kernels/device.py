"""Where fused kernels run. Triton is imported only in the *_triton rooms, and only once one of them is to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

_definitions = False


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton compiles for a device: a CUDA device of compute capability 8.0 or more, with Triton installed."""
    return device.type == "cuda" and not _definitions and _ampere(device.index or 0)


@contextmanager
def definitions() -> Iterator[None]:
    """Within it nothing is fused: the definitions run on every device, to be measured and compared with."""
    global _definitions
    _definitions = True
    try:
        yield
    finally:
        _definitions = False


@cache
def _ampere(index: int) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(index) >= (8, 0)
