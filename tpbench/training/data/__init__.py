"""Data: a recipe's images as three parts, each a source of batches on the device.

Two kinds. Resident: all images as one uint8 tensor on the device, augmented there per image (digits, parquet).
Streamed: any timm data set, read by torch's DataLoader with timm's transforms. Which image comes when and what
augmentation does to it follow from (seed, epoch, image) alone; see `draws`.
"""

from __future__ import annotations

import torch

from tpbench.errors import DataError
from tpbench.recipe import Data
from tpbench.training.data.parts import Batch, Part, Parts, TestSet
from tpbench.training.data.resident import Resident, read_digits, read_parquet
from tpbench.training.data.streamed import Streamed, read_timm

__all__ = ["Batch", "Part", "Parts", "Resident", "Streamed", "TestSet", "load"]


def load(data: Data, device: torch.device, split: int = 0) -> Parts:
    """Read a recipe's data set. What is missing, unreadable or wrong is a DataError that names the file.

    split is the seed that draws the test fold of a recipe with folds; other recipes have one test part for all seeds.
    """
    if data.folds and data.source != "digits":
        raise DataError(f"folds are for digits; data set {data.source!r} has a test side of its own")
    if data.source == "digits":
        parts = read_digits(data, device, split)
    elif data.source == "parquet":
        parts = read_parquet(data, device)
    else:
        parts = read_timm(data, device)
    if not all(parts.images.values()):
        raise DataError(f"data set {data.source!r} has an empty part: {parts.images}")
    return parts
