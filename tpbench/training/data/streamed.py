"""Any timm data set behind torch's DataLoader, with timm's transforms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpbench.errors import DataError
from tpbench.recipe import Data
from tpbench.training.data.draws import generator, generators_kept, seed_generators, shares, some
from tpbench.training.data.parts import Batch, Parts, TestSet


class Streamed:
    """A timm data set, read and transformed by worker processes or in this one."""

    def __init__(self, dataset: Any, processes: int, device: torch.device):
        self.dataset, self.processes, self.device = dataset, processes, device

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            Drawn(self.dataset, shuffle),
            batch_sampler=[share.tolist() for share in shares(len(self), size, shuffle, rank, ranks, skip)],
            num_workers=self.processes,
            generator=generator(*(shuffle or (0, 0))),  # or it would draw from the generator of the training
            pin_memory=self.device.type == "cuda",
        )
        try:
            for images, labels in loader:
                yield Batch(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
        except DataError as error:  # a worker process wraps its traceback around it
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error


def read_timm(data: Data, device: torch.device) -> Parts:
    """timm's readers and transforms; the fingerprint covers names, order and labels, not pixels."""
    from timm.data import create_dataset, create_transform

    if data.root and not Path(data.root).exists():
        raise DataError(f"data folder {data.root} does not exist")
    shape = {"input_size": (data.channels, data.image_size, data.image_size), "mean": data.mean, "std": data.std}
    shape["interpolation"] = data.interpolation
    plain = create_transform(**shape, is_training=False, crop_pct=data.crop)
    augmented = create_transform(**shape, is_training=True, **data.transform)
    try:
        sides = [create_dataset(data.source, root=data.root or None, split=side) for side in ("train", "validation")]
        sides = [side if hasattr(side, "__getitem__") else list(side) for side in sides]  # a stream is held in memory
    except Exception as error:
        raise DataError(
            f"data set {data.source!r} under {data.root!r} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error
    chosen, tested = some(len(sides[0]), data.train_limit), some(len(sides[1]), data.test_limit)
    order = [chosen[i] for i in torch.randperm(len(chosen), generator=generator(0, 0))]
    cut = max(1, round(len(order) * data.validation))
    parts = [
        Streamed(Selected(sides[0], order[cut:], augmented, data), data.loader_processes, device),
        Streamed(Selected(sides[0], order[:cut], plain, data), data.loader_processes, device),
        Streamed(Selected(sides[1], tested, plain, data), data.loader_processes, device),
    ]
    names = [part.dataset.names() for part in parts]
    test_set = TestSet(_digest(names[2]), len(tested), np.arange(len(tested)))
    return Parts(*parts, source=data.source, fingerprint=_digest(names), test_set=test_set)


def _digest(names: list) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


class Drawn(torch.utils.data.Dataset):
    """A data set whose augmentation of an image follows from (seed, epoch) and its index alone.

    So it is the same in any number of worker processes, and for a run that continues within an epoch. The generators
    of the process are left as they were.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, shuffle: tuple[int, int] | None):
        self.dataset, self.shuffle = dataset, shuffle

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.shuffle is None:
            return self.dataset[index]
        with generators_kept():
            seed_generators(*self.shuffle, index)
            return self.dataset[index]


class Selected(torch.utils.data.Dataset):
    """Some images of a timm data set under one transform; one that cannot be read is an error with its name."""

    def __init__(self, dataset: Any, indices: list[int], transform: Any, data: Data):
        self.dataset, self.indices, self.transform, self.data = dataset, indices, transform, data

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.indices[position]
        try:
            # A timm data set puts another image in the place of one that it cannot read; its reader does not.
            image, label = getattr(self.dataset, "reader", self.dataset)[index][:2]
            image = image if isinstance(image, Image.Image) else Image.open(image)
            image = image.convert("RGB" if self.data.channels == 3 else "L")
        except Exception as error:
            raise DataError(f"image {self.name(index)} cannot be read: {' '.join(str(error).split())[:200]}") from error
        if not 0 <= label < self.data.classes:
            raise DataError(f"image {self.name(index)} has label {label}, the recipe has {self.data.classes} classes")
        return self.transform(image), label

    def name(self, index: int) -> str:
        """The image's file, as far as the reader knows it."""
        try:
            return self.dataset.filename(index)
        except (AttributeError, NotImplementedError):
            return f"number {index}"

    def names(self) -> list[str]:
        return [self.name(index) for index in self.indices]
