"""Data: a recipe's images as three parts, each a source of batches on the device.

Two kinds. Resident: all images as one uint8 tensor on the device, augmented there per image (digits, parquet).
Streamed: any timm data set behind torch's DataLoader, with timm's transforms. Both shuffle from (seed, epoch) alone,
so a run that continues at an epoch sees what an uninterrupted one would have seen.
Shapes: B images of C channels, H x W pixels; labels [B] int64.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from tpbench.errors import DataError
from tpbench.recipe import Data


class Batch(NamedTuple):
    images: Tensor  # [B, C, H, W] float32, normalised
    labels: Tensor  # [B]


class Part(Protocol):
    """One part of a data set."""

    def __len__(self) -> int:
        """Images."""

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        """Batches of `size` images over all ranks, this rank's share of each.

        shuffle (seed, epoch) means training: shuffled, augmented, a last incomplete batch left out. None means
        evaluation: all images in order. The first `skip` batches are left out, unread.
        """


@dataclass(frozen=True)
class Parts:
    """train and validation come from the training side, test from the test side."""

    train: Part
    validation: Part
    test: Part
    description: dict[str, Any]  # source, fingerprint, images per part


def load(data: Data, device: torch.device) -> Parts:
    """Read a recipe's data set. What is missing, unreadable or wrong is a DataError that names the file."""
    if data.source == "digits":
        parts, fingerprint = _resident(data, *_digits(data), device)
    elif data.source == "parquet":
        parts, fingerprint = _resident(data, _parquet(data, "train"), _parquet(data, "test"), device)
    else:
        parts, fingerprint = _streamed(data, device)
    counts = {name: len(part) for name, part in zip(("train", "validation", "test"), parts)}
    if not all(counts.values()):
        raise DataError(f"data set {data.source!r} has an empty part: {counts}")
    return Parts(*parts, {"source": data.source, "fingerprint": fingerprint, **counts})


class Resident:
    """Images [N, C, H, W] uint8 and labels [N], on the device."""

    def __init__(self, data: Data, images: Tensor, labels: Tensor, device: torch.device):
        self.images, self.labels = images.to(device), labels.to(device)
        self.shift, self.flip = data.shift, data.flip
        self.erase = RandomErasing(data.erase, mode="pixel", device=str(device)) if data.erase else None
        self.mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(data.std, device=device).view(1, -1, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        for index in shares(len(self), size, shuffle, rank, ranks, skip, self.labels.device):
            images = self.images[index]
            if shuffle is not None:
                images = self.augment(images)
            images = (images.float() - self.mean) / self.std
            if shuffle is not None and self.erase is not None:
                images = self.erase(images)
            yield Batch(images, self.labels[index])

    def augment(self, images: Tensor) -> Tensor:
        """Shift and flip each image by itself; what a shift uncovers is black."""
        batch, _, height, width = images.shape
        if self.flip:
            turned = torch.rand(batch, device=images.device) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        if self.shift:
            padded = F.pad(images, [self.shift] * 4)
            by = torch.randint(0, 2 * self.shift + 1, (2, batch), device=images.device)
            rows = (by[0][:, None] + torch.arange(height, device=images.device))[:, None, :, None]
            columns = (by[1][:, None] + torch.arange(width, device=images.device))[:, None, None, :]
            each = torch.arange(batch, device=images.device)[:, None, None, None]
            channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
            images = padded[each, channel, rows, columns]
        return images


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


def shares(
    n: int,
    size: int,
    shuffle: tuple[int, int] | None,
    rank: int,
    ranks: int,
    skip: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """A rank's image indices of every batch, as `Part.batches` promises them; moved to the device all at once."""
    order, stop = torch.arange(n), n
    if shuffle is not None:
        order, stop = torch.randperm(n, generator=generator(*shuffle)), n - n % size
    order = order.to(device)
    for start in range(skip * size, stop, size):
        yield order[start : start + size][rank::ranks]


def generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch of one seed."""
    return torch.Generator().manual_seed(seed * 100_003 + epoch)


def some(n: int, limit: int | None) -> list[int]:
    """`limit` of n indices, drawn once for all (data sets are often sorted by label), in rising order."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(torch.randperm(n, generator=generator(0, 1))[:limit].tolist())


def _digits(data: Data) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 digits, resized, as a stratified 1,297 / 500 split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=data.image_size, mode="bilinear", align_corners=False).round().byte()
    labels = torch.from_numpy(bundle.target).long()
    train, test = train_test_split(range(len(labels)), test_size=500, stratify=bundle.target, random_state=0)
    return (images[train], labels[train]), (images[test], labels[test])


def _parquet(data: Data, side: str) -> tuple[Tensor, Tensor]:
    """Images and labels of ROOT/SIDE.parquet: column `image` or `img` (struct with encoded `bytes`), column `label`."""
    import pyarrow.parquet as parquet

    path = Path(data.root) / f"{side}.parquet"
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    try:
        known = parquet.read_schema(path).names
        image = "img" if "img" in known and "image" not in known else "image"
        if missing := [name for name in (image, "label") if name not in known]:
            raise DataError(f"data file {path} has no column {' or '.join(missing)}, only {', '.join(known)}")
        table = parquet.read_table(path, columns=[image, "label"]).rename_columns({image: "image"})
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"data file {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    limit = data.train_limit if side == "train" else data.test_limit
    table = table.take(some(len(table), limit))
    labels = torch.tensor(table["label"].to_pylist())
    if len(labels) and not (labels.min() >= 0 and labels.max() < data.classes):
        raise DataError(
            f"data file {path} has labels {labels.min()} to {labels.max()}, the recipe has {data.classes} classes"
        )
    return _decode(data, path, table["image"].to_pylist()), labels


def _decode(data: Data, path: Path, cells: list[dict[str, Any]]) -> Tensor:
    """[N, C, H, W] uint8; every image must decode, or nothing is used as if it were whole."""
    images = torch.empty(len(cells), data.channels, data.image_size, data.image_size, dtype=torch.uint8)
    bad: list[int] = []
    for row, cell in enumerate(cells):
        try:
            image = Image.open(io.BytesIO(cell["bytes"])).convert("RGB" if data.channels == 3 else "L")
            if image.size != (data.image_size, data.image_size):
                image = image.resize((data.image_size, data.image_size), Image.Resampling.BILINEAR)
            images[row] = torch.from_numpy(np.array(image)).view(data.image_size, data.image_size, -1).permute(2, 0, 1)
        except (OSError, ValueError, TypeError, KeyError, SyntaxError):
            bad.append(row)
    if bad:
        raise DataError(
            f"data file {path}: {len(bad)} of {len(cells)} images cannot be decoded, the first in row {bad[0]}"
        )
    return images


def _resident(
    data: Data, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], device: torch.device
) -> tuple[tuple[Part, Part, Part], str]:
    from sklearn.model_selection import train_test_split

    chosen, tested = some(len(train[1]), data.train_limit), some(len(test[1]), data.test_limit)
    (images, labels), test = (t[chosen] for t in train), tuple(t[tested] for t in test)
    fit, check = train_test_split(
        range(len(labels)), test_size=data.validation, stratify=labels.numpy(), random_state=0
    )
    digest = hashlib.sha256()
    for tensor in (images, labels, *test):
        digest.update(tensor.numpy().tobytes())
    sides = ((images[fit], labels[fit]), (images[check], labels[check]), test)
    return tuple(Resident(data, *side, device) for side in sides), digest.hexdigest()[:16]


def _streamed(data: Data, device: torch.device) -> tuple[tuple[Part, Part, Part], str]:
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
    digest = hashlib.sha256(repr([part.dataset.names() for part in parts]).encode())
    return tuple(parts), digest.hexdigest()[:16]


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
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        value = int(np.random.SeedSequence((*self.shuffle, index)).generate_state(1)[0])
        try:
            torch.default_generator.manual_seed(value)  # not torch.manual_seed, which would seed the GPU's too
            random.seed(value)
            np.random.seed(value)
            return self.dataset[index]
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])


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
