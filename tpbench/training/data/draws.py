"""What is random in the data: the order of the images, and the augmentation of each.

Everything follows from (seed, epoch) and the number of the image alone, never from the generators that a model draws
from. So all methods see the same images, and a run that continues within an epoch sees what an uninterrupted one would.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

AUGMENTATION = 2**40  # added to a seed: augmentation draws other numbers than the order of the images


def batch_indices(
    n: int,
    size: int,
    shuffle: tuple[int, int] | None,
    rank: int,
    ranks: int,
    skip: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """The image indices of a rank's share of every batch, as in `Part.batches`; they reach the device all at once."""
    order = torch.arange(n)
    stop = n
    if shuffle is not None:
        order = torch.randperm(n, generator=generator(*shuffle))
        stop = n - n % size
    order = order.to(device)
    for start in range(skip * size, stop, size):
        yield order[start : start + size][rank::ranks]


def generator(seed: int, epoch: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one epoch of one seed; other streams give other numbers."""
    return torch.Generator().manual_seed(seed * 100_003 + epoch + stream)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the process's generators as they were."""
    own = torch.get_rng_state()
    python = random.getstate()
    arrays = np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(own)
        random.setstate(python)
        np.random.set_state(arrays)


def seed_generators(seed: int, epoch: int, image: int) -> None:
    """Seed the process's generators for the augmentation of one image. Those of a GPU stay as they are."""
    value = int(np.random.SeedSequence((seed, epoch, image)).generate_state(1)[0])
    torch.default_generator.manual_seed(value)  # torch.manual_seed would seed the GPU's too
    random.seed(value)
    np.random.seed(value)


def chosen_indices(n: int, limit: int | None) -> list[int]:
    """`limit` of n indices, drawn once for all (data sets are often sorted by label), in rising order."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(torch.randperm(n, generator=generator(0, 1))[:limit].tolist())
