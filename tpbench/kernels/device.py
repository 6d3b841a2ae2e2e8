"""Where fused kernels run. Triton is imported only in the *_triton rooms, and only once one of them is to run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton compiles for a device: a CUDA device of compute capability 8.0 or more, with Triton installed."""
    return device.type == "cuda" and _ampere(device.index or 0)


@cache
def _ampere(index: int) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(index) >= (8, 0)
