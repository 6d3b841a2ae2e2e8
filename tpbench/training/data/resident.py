"""Images that are held in memory as one tensor on the device: scikit-learn's digits and parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from tpbench.errors import DataError, in_short
from tpbench.recipe import Data
from tpbench.training.data.draws import (
    AUGMENTATION,
    batch_indices,
    chosen_indices,
    generator,
    generators_kept,
    seed_generators,
)
from tpbench.training.data.hub import parquet_path
from tpbench.training.data.parts import Batch, Parts, TestSet


class Resident:
    """Images [N, C, H, W] uint8 and labels [N], on the device."""

    def __init__(self, data: Data, images: Tensor, labels: Tensor, device: torch.device):
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.shift = data.shift
        self.flip = data.flip
        self.eraser = RandomErasing(data.erase, mode="pixel", device="cpu") if data.erase else None
        self.mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(data.std, device=device).view(1, -1, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int) -> Resident:
        """`count` of the images; see `tpbench.training.data.parts.Part.subset`."""
        index = chosen_indices(len(self), count)
        fewer = copy(self)
        fewer.images = self.images[index]
        fewer.labels = self.labels[index]
        return fewer

    def batches(
        self, size: int, shuffle: tuple[int, int] | None = None, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        """This rank's share of the batches; see `tpbench.training.data.parts.Part.batches`."""
        augmentation = None if shuffle is None else Augmentation(self, shuffle)
        for index in batch_indices(
            len(self), size=size, shuffle=shuffle, rank=rank, ranks=ranks, skip=skip, device=self.labels.device
        ):
            images = self.images[index]
            if augmentation is not None:
                images = augmentation.move(images, index)
            images = (images.float() - self.mean) / self.std
            if augmentation is not None:
                augmentation.erase(images, index)
            yield Batch(images, self.labels[index])


class Augmentation:
    """The augmentation of every image of a part in one epoch of one seed.

    Flips and shifts are drawn for all N images at once, so an image's depend on (seed, epoch, image) alone.
    """

    def __init__(self, part: Resident, shuffle: tuple[int, int]):
        draw = generator(*shuffle, stream=AUGMENTATION)
        device = part.labels.device
        flipped = torch.rand(len(part), generator=draw) < 0.5
        by = torch.randint(0, 2 * part.shift + 1, (2, len(part)), generator=draw)
        self.flipped = flipped.to(device) if part.flip else None  # [N]
        self.by = by.to(device)  # [2, N] rows and columns, pixels
        self.shift = part.shift
        self.eraser = part.eraser
        self.shuffle = shuffle

    def move(self, images: Tensor, index: Tensor) -> Tensor:
        """Flip and shift the images [B, C, H, W] with these numbers [B]; what a shift uncovers is black."""
        if self.flipped is not None:
            images = torch.where(self.flipped[index, None, None, None], images.flip(-1), images)
        if not self.shift:
            return images
        batch, channels, height, width = images.shape
        device = images.device
        padded = F.pad(images, [self.shift] * 4)
        down, right = self.by[:, index]
        rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width, device=device))[:, None, None, :]
        each = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[each, channel, rows, columns]

    def erase(self, images: Tensor, index: Tensor) -> None:
        """Erase a rectangle of some of the images [B, C, H, W], in place."""
        if self.eraser is None:
            return
        with generators_kept():
            for image, number in zip(images, index.tolist()):
                seed_generators(*self.shuffle, number)
                self.eraser(image)


def read_digits(data: Data, device: torch.device, split: int = 0) -> Parts:
    """scikit-learn's 1,797 digits, resized: one stratified split of 1,297 / 500, or a stratified fold that tests.

    With F folds, split s tests fold s % F of shuffle s // F, so that F splits in a row test every image once.
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=data.image_size, mode="bilinear", align_corners=False).round().byte()
    labels = torch.from_numpy(bundle.target).long()
    train, test = _fold(data.folds, bundle.target, split) if data.folds else _one_split(bundle.target)
    positions = np.asarray(test)[chosen_indices(len(test), data.test_limit)]
    test_set = TestSet(_digest(images, labels), len(labels), positions)
    fingerprint = test_set.images if data.folds else None
    train_side = images[train], labels[train]
    test_side = images[positions], labels[positions]
    return _parts(data, train=train_side, test=test_side, device=device, test_set=test_set, fingerprint=fingerprint)


def _one_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    return train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)


def _fold(folds: int, labels: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test positions of one fold; every class must have a member in each fold."""
    from sklearn.model_selection import StratifiedKFold

    smallest = np.bincount(labels).min()
    if not 2 <= folds <= smallest:
        raise DataError(f"folds={folds} is not possible: at least 2, and the smallest class has {smallest} images")
    shuffled = StratifiedKFold(folds, shuffle=True, random_state=split // folds)
    return list(shuffled.split(labels, labels))[split % folds]


def read_parquet(data: Data, device: torch.device) -> Parts:
    """The images of ROOT/train.parquet and ROOT/test.parquet, or those of the recipe's data set on the hub."""
    train = _parquet(data, "train")
    test = _parquet(data, "test")
    test_set = TestSet(_digest(*test), len(test[1]), np.arange(len(test[1])))
    return _parts(data, train=train, test=test, device=device, test_set=test_set)


def _parquet(data: Data, side: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a side's file: column `image` or `img` (struct with encoded `bytes`), column `label`."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = parquet_path(data, side)
    try:
        known = parquet.read_schema(path).names
        image = "img" if "img" in known and "image" not in known else "image"
        if missing := [name for name in (image, "label") if name not in known]:
            raise DataError(f"data file {path} has no column {' or '.join(missing)}, only {', '.join(known)}")
        table = parquet.read_table(path, columns=[image, "label"]).rename_columns({image: "image"})
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"data file {path} cannot be read: {in_short(error, 200)}") from error
    if missing := table["label"].null_count:
        raise DataError(f"data file {path}: {missing} of {len(table)} labels are missing")
    if not arrow.types.is_integer(table["label"].type):
        raise DataError(f"data file {path}: every label must be a whole number, not {table['label'].type}")
    limit = data.train_limit if side == "train" else data.test_limit
    table = table.take(chosen_indices(len(table), limit))
    labels = torch.tensor(table["label"].to_pylist())
    if len(labels) and not (labels.min() >= 0 and labels.max() < data.classes):
        raise DataError(
            f"data file {path} has labels {labels.min()} to {labels.max()}, the recipe has {data.classes} classes"
        )
    return _decode(data, path, table["image"].to_pylist()), labels


def _decode(data: Data, path: Path, cells: list[dict[str, Any]]) -> Tensor:
    """[N, C, H, W] uint8; every image must decode, so that no damaged image is used."""
    images = torch.empty(len(cells), data.channels, data.image_size, data.image_size, dtype=torch.uint8)
    bad: list[int] = []
    for row, cell in enumerate(cells):
        try:
            image = Image.open(io.BytesIO(cell["bytes"])).convert("RGB" if data.channels == 3 else "L")
            if image.size != (data.image_size, data.image_size):
                image = image.resize((data.image_size, data.image_size), Image.Resampling.BILINEAR)
            images[row] = torch.from_numpy(np.array(image)).view(data.image_size, data.image_size, -1).permute(2, 0, 1)
        except Exception:  # decoders raise errors of many kinds, also for an image that would fill the memory
            bad.append(row)
    if bad:
        raise DataError(
            f"data file {path}: {len(bad)} of {len(cells)} images cannot be decoded, the first in row {bad[0]}"
        )
    return images


def _parts(
    data: Data,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    device: torch.device,
    test_set: TestSet,
    fingerprint: str | None = None,
) -> Parts:
    """The parts of images [N, C, H, W] and labels [N]; a share of the training side is set apart for validation."""
    from sklearn.model_selection import train_test_split

    chosen = chosen_indices(len(train[1]), data.train_limit)
    images, labels = (tensor[chosen] for tensor in train)
    try:
        fit, check = train_test_split(
            range(len(labels)), test_size=data.validation, stratify=labels.numpy(), random_state=0
        )
    except ValueError as error:  # too few images, or a class with one
        raise DataError(f"{len(labels)} training images cannot be split for validation: {error}") from error
    return Parts(
        train=Resident(data, images=images[fit], labels=labels[fit], device=device),
        validation=Resident(data, images=images[check], labels=labels[check], device=device),
        test=Resident(data, images=test[0], labels=test[1], device=device),
        source=data.source,
        fingerprint=fingerprint or _digest(images, labels, *test),
        test_set=test_set,
    )


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
