"""Data: batches are whole, seeded and fair to every rank; what is wrong with a data set is said with its name."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from tpbench import data
from tpbench.errors import DataError
from tpbench.recipe import Data

CPU = torch.device("cpu")
DIGITS = Data("digits", image_size=16, channels=1, shift=2)
CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


def encoded(mode: str = "RGB", size: int = 8, level: int = 100, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), level if mode in ("L", "P") else (level,) * len(mode)).save(file, kind)
    return file.getvalue()


def write_parquet(folder: Path, images: list[bytes], labels: list[int], **columns) -> Data:
    struct = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    for side in ("train", "test"):
        parquet.write_table(arrow.table(columns or {"image": struct, "label": labels}), folder / f"{side}.parquet")
    return Data("parquet", root=str(folder), image_size=8, classes=2, mean=(0.5,) * 3, std=(0.5,) * 3, validation=0.25)


def test_digits_are_split_the_same_way_every_time():
    first, second = data.load(DIGITS, CPU), data.load(DIGITS, CPU)
    assert first.description == second.description
    assert (len(first.train), len(first.validation), len(first.test)) == (1193, 104, 500)
    seen = {bytes(image.numpy().tobytes()) for part in (first.train, first.validation) for image in part.images}
    tested = [bytes(image.numpy().tobytes()) for image in first.test.images]
    assert not seen & set(tested), "no test image is trained on"
    other = data.load(replace(DIGITS, test_limit=499), CPU)
    assert other.description["fingerprint"] != first.description["fingerprint"], (
        "control: other data, other fingerprint"
    )


def test_training_batches_follow_from_seed_and_epoch_alone():
    train = data.load(DIGITS, CPU).train

    def order(seed: int, epoch: int) -> torch.Tensor:
        return torch.cat([batch.labels for batch in train.batches(32, (seed, epoch))])

    assert torch.equal(order(1, 2), order(1, 2))
    assert not torch.equal(order(1, 2), order(1, 3))
    assert not torch.equal(order(1, 2), order(2, 2))
    assert len(order(1, 2)) == 1193 // 32 * 32


def test_evaluation_sees_every_image_once_in_order():
    test = data.load(DIGITS, CPU).test
    labels = torch.cat([batch.labels for batch in test.batches(64)])
    assert torch.equal(labels, test.labels)


def test_ranks_share_every_batch():
    train = data.load(replace(DIGITS, shift=0), CPU).train
    whole = list(train.batches(32, (0, 0)))
    shares = [list(train.batches(32, (0, 0), rank, 2)) for rank in range(2)]
    for all_images, first, second in zip(whole, *shares):
        both = torch.stack([first.images, second.images], 1).flatten(0, 1)
        assert torch.equal(all_images.images, both)


def test_augmentation_moves_each_image_by_itself():
    resident = data.Resident(replace(DIGITS, shift=2, flip=True), torch.zeros(1, 1, 9, 9).byte(), torch.zeros(1), CPU)
    torch.manual_seed(0)
    dot = torch.zeros(64, 1, 9, 9).byte()
    dot[:, :, 4, 4] = 255
    places = {tuple(image[0].nonzero()[0].tolist()) for image in resident.augment(dot)}
    assert len(places) > 15, "a shift drawn per batch would give one place"
    assert all(2 <= row <= 6 and 2 <= column <= 6 for row, column in places)
    assert (resident.augment(dot).sum(dim=(1, 2, 3)) == 255).all()


def test_parquet_of_mixed_images_is_read(tmp_path):
    images = [
        encoded("RGB"),
        encoded("L"),
        encoded("RGBA"),
        encoded("P"),
        encoded("CMYK", kind="JPEG"),
        encoded(size=5),
    ] * 2
    lines = write_parquet(tmp_path, images, [0, 1] * 6)
    parts = data.load(lines, CPU)
    assert parts.test.images.shape == (12, 3, 8, 8)
    assert parts.description["test"] == 12


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda images, labels: ([*images[:-1], b"no image"], labels),
            "1 of 8 images cannot be decoded, the first in row 7",
        ),
        (lambda images, labels: ([*images[:-1], images[-1][:40]], labels), "1 of 8 images cannot be decoded"),
        (lambda images, labels: (images, [*labels[:-1], 7]), "labels 0 to 7, the recipe has 2 classes"),
    ],
    ids=["undecodable", "truncated", "label out of range"],
)
def test_half_a_data_set_is_refused(tmp_path, spoil, reason):
    lines = write_parquet(tmp_path, *spoil([encoded()] * 8, [0, 1] * 4))
    with pytest.raises(DataError, match=reason):
        data.load(lines, CPU)


def test_missing_and_broken_files_are_named(tmp_path):
    lines = Data("parquet", root=str(tmp_path))
    with pytest.raises(DataError, match=r"train\.parquet does not exist"):
        data.load(lines, CPU)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        data.load(lines, CPU)
    with pytest.raises(DataError, match="label"):
        data.load(write_parquet(tmp_path, [], [], image=[{"bytes": encoded()}] * 4), CPU)


def test_an_image_folder_is_read_through_timm(tmp_path):
    for side in ("train", "validation"):
        for label in ("cat", "dog"):
            folder = tmp_path / side / label
            folder.mkdir(parents=True)
            for index, mode in enumerate(("RGB", "L", "CMYK", "RGB")):
                (folder / f"{index}.jpg").write_bytes(encoded(mode, size=20 + index, kind="JPEG"))
    lines = Data("", root=str(tmp_path), image_size=16, classes=2, mean=(0.5,) * 3, std=(0.5,) * 3, validation=0.25)
    parts = data.load(lines, CPU)
    assert parts.description | {"fingerprint": ""} == {
        "source": "",
        "fingerprint": "",
        "train": 6,
        "validation": 2,
        "test": 8,
    }
    batch = next(parts.train.batches(4, (0, 0)))
    assert batch.images.shape == (4, 3, 16, 16)
    with pytest.raises(DataError, match="does not exist"):
        data.load(replace(lines, root=str(tmp_path / "nowhere")), CPU)
    broken = next((tmp_path / "validation" / "cat").iterdir())
    broken.write_bytes(broken.read_bytes()[:30])
    with pytest.raises(DataError, match=broken.name):
        list(data.load(lines, CPU).test.batches(4))
    with pytest.raises(DataError, match="the recipe has 1 classes"):
        list(data.load(replace(lines, classes=1), CPU).train.batches(4))


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 parquet files are not at ../shared/data/cifar10")
def test_cifar10_is_read():
    lines = Data(
        "parquet", root=str(CIFAR), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, train_limit=500, test_limit=200
    )
    parts = data.load(lines, CPU)
    assert parts.description["test"] == 200
    assert 0.2 < parts.test.images.float().mean() / 255 < 0.8
    assert set(parts.test.labels.tolist()) == set(range(10))
