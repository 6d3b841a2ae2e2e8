"""All native twins by topic, and compiling those of a topic before the first of them runs."""

from __future__ import annotations

import torch

from tpbench.kernels.native import agglomerative, density, distances, iterations, matching, sampling, segments, starts
from tpbench.kernels.native.engine import compile_kernels

TOPICS = {
    "agglomerative": (agglomerative,),
    "clustering": (distances, starts, iterations),
    "density": (distances, density, iterations),
    "matching": (matching,),
    "sampling": (sampling,),
    "segments": (segments,),
}


def prepare(exact: torch.dtype, topic: str) -> None:
    """Compile the kernels of a topic for float32 or float64, or load them from numba's cache.

    Raises RuntimeError or OSError where the cache cannot be written, and RuntimeError where numba is switched off.
    """
    for module in TOPICS[topic]:
        compile_kernels(exact, module.kernels)
