"""The parts of a data set, as training and evaluation see them.

Shapes: B images of C channels, H x W pixels; labels [B] int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Batch(NamedTuple):
    """Images and their labels, on the device that trains."""

    images: Tensor  # [B, C, H, W] float32, normalised
    labels: Tensor  # [B]


class Part(Protocol):
    """One part of a data set."""

    def __len__(self) -> int:
        """The number of images."""

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        """Batches of `size` images over all ranks, this rank's share of each.

        shuffle (seed, epoch) means training: shuffled, augmented, a last incomplete batch left out. None means
        evaluation: all images in order. The first `skip` batches are left out, unread.
        """

    def subset(self, count: int) -> Part:
        """`count` of the images, always the same ones; all images if the part has no more."""


class TestSet(NamedTuple):
    """The images among which a part was tested, so that results on different folds of them can be compared.

    images: the digest that identifies them and their order; count: how many there are; positions [len(test)] int64:
    those that the test part holds.
    """

    images: str
    count: int
    positions: np.ndarray


@dataclass(frozen=True)
class Parts:
    """train and validation come from the training side, test from the test side."""

    train: Part
    validation: Part
    test: Part
    source: str = ""
    fingerprint: str = ""
    test_set: TestSet | None = None

    @property
    def images(self) -> dict[str, int]:
        """The images of each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    @property
    def description(self) -> dict[str, Any]:
        """What a record says of its data: source, fingerprint, images of each part."""
        return {"source": self.source, "fingerprint": self.fingerprint, **self.images}
