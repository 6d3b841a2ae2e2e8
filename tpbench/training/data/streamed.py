"""Any timm data set, read by torch's DataLoader with timm's transforms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpbench.errors import DataError, in_short
from tpbench.recipe import Data
from tpbench.training.data.draws import batch_indices, chosen_indices, generator, generators_kept, seed_generators
from tpbench.training.data.parts import Batch, Parts, TestSet


class Streamed:
    """A timm data set, read and transformed by this many worker processes, or in this one if there are none."""

    def __init__(self, dataset: Any, processes: int, device: torch.device):
        self.dataset = dataset
        self.processes = processes
        self.device = device

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, count: int) -> Streamed:
        """`count` of the images; see `tpbench.training.data.parts.Part.subset`."""
        fewer = torch.utils.data.Subset(self.dataset, chosen_indices(len(self), count))
        return Streamed(fewer, self.processes, self.device)

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        """Batches of up to `size` images [B, C, rows, columns] with their labels [B], on the part's device.

        shuffle is (seed, epoch), None for the order of the files without augmentation; the other arguments are those
        of `draws.batch_indices`. Raises DataError with the name of an image that cannot be read. The worker processes
        have ended when the iterator is exhausted, closed or left by an error.
        """
        loader = torch.utils.data.DataLoader(
            SeededAugmentation(self.dataset, shuffle),
            batch_sampler=[
                share.tolist() for share in batch_indices(len(self), size, shuffle, rank=rank, ranks=ranks, skip=skip)
            ],
            num_workers=self.processes,
            generator=generator(*(shuffle or (0, 0))),  # otherwise it would draw from the generator of the training
            pin_memory=self.device.type == "cuda",
        )
        try:
            with loader_iterator(loader) as batches:
                for images, labels in batches:
                    yield Batch(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
        except DataError as error:  # a worker process wraps its traceback around it
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error


@contextmanager
def loader_iterator(loader: torch.utils.data.DataLoader) -> Iterator[Iterator[list[Tensor]]]:
    """An iterator over the loader. Its worker processes have ended when the block is left.

    By itself, torch ends them when the iterator is garbage-collected. They would outlive an exception that refers to
    it, and if one was killed (say, by a signal to the whole process group), torch would raise inside `__del__`, where
    Python can only print the error.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        shutdown = getattr(iterator, "_shutdown_workers", None)  # torch has no public name for it
        if shutdown is not None:
            with suppress(RuntimeError):  # "worker is killed by signal": it has ended
                shutdown()


def read_timm(data: Data, device: torch.device) -> Parts:
    """Read a data set with timm's readers and transforms.

    The fingerprint covers the names and the order of the files, not their pixels. Raises DataError where
    the folder is missing or timm cannot read it.
    """
    from timm.data import create_dataset, create_transform

    if data.root and not Path(data.root).exists():
        raise DataError(f"data folder {data.root} does not exist")
    shape = {
        "input_size": (data.channels, data.image_size, data.image_size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
    }
    plain = create_transform(**shape, is_training=False, crop_pct=data.crop)
    augmented = create_transform(**shape, is_training=True, **data.transform)
    try:
        sides = [create_dataset(data.source, root=data.root or None, split=side) for side in ("train", "validation")]
        sides = [side if hasattr(side, "__getitem__") else list(side) for side in sides]  # a stream is held in memory
    except Exception as error:
        raise DataError(
            f"data set {data.source!r} under {data.root!r} cannot be read: {in_short(error, 200)}"
        ) from error
    chosen = chosen_indices(len(sides[0]), data.train_limit)
    tested = chosen_indices(len(sides[1]), data.test_limit)
    order = [chosen[i] for i in torch.randperm(len(chosen), generator=generator(0, 0))]
    cut = max(1, round(len(order) * data.validation))
    train = Selected(sides[0], order[cut:], transform=augmented, data=data)
    validation = Selected(sides[0], order[:cut], transform=plain, data=data)
    test = Selected(sides[1], tested, transform=plain, data=data)
    return Parts(
        train=Streamed(train, data.loader_processes, device),
        validation=Streamed(validation, data.loader_processes, device),
        test=Streamed(test, data.loader_processes, device),
        source=data.source,
        fingerprint=_digest([train.names(), validation.names(), test.names()]),
        test_set=TestSet(_digest(test.names()), len(tested), np.arange(len(tested))),
    )


def _digest(names: list) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


class SeededAugmentation(torch.utils.data.Dataset):
    """A data set whose augmentation of an image follows from (seed, epoch) and its index alone.

    It is therefore the same in any number of worker processes, and in a run that continues within an epoch. The
    generators of the process are left as they were.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, shuffle: tuple[int, int] | None):
        self.dataset = dataset
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.shuffle is None:
            return self.dataset[index]
        with generators_kept():
            seed_generators(*self.shuffle, index)
            return self.dataset[index]


class Selected(torch.utils.data.Dataset):
    """Some images of a timm data set under one transform. Raises DataError with the name of an unreadable image."""

    def __init__(self, dataset: Any, indices: list[int], transform: Any, data: Data):
        self.dataset = dataset
        self.indices = indices
        self.transform = transform
        self.data = data

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
            raise DataError(f"image {self.name(index)} cannot be read: {in_short(error, 200)}") from error
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
        """The files of all images, in the order of the data set."""
        return [self.name(index) for index in self.indices]
