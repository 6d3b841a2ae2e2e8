"""The random generators of a process: seeded for an epoch, kept, and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed all random generators that augmentation, mixup, dropout or a method may draw from."""
    value = (seed * 100_003 + epoch) * 1_009 + rank
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def generators(device: torch.device) -> dict[str, Any]:
    """The states of all random generators that augmentation, mixup, dropout or a method may draw from."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put all random generators into the states that `generators` returned."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
