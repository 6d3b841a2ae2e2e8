"""Data: batches are whole, seeded and fair to every rank; what is wrong with a data set is said with its name."""

from __future__ import annotations

import copy
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import tiny_recipe
import torch
from PIL import Image

from tpbench import registry, vit
from tpbench.bench.models import build_base
from tpbench.errors import DataError
from tpbench.recipe import Data, load
from tpbench.training import data
from tpbench.training.data.resident import Augmentation
from tpbench.training.train import seed_all

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


def test_some_images_of_a_part_are_always_the_same_of_all_classes():
    train = data.load(DIGITS, CPU).train
    some = train.subset(200)
    assert len(some) == 200
    assert set(some.labels.tolist()) == set(range(10))
    assert torch.equal(some.images, data.load(DIGITS, CPU).train.subset(200).images)
    assert len(train.subset(5000)) == len(train) == 1193


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
    dot = torch.zeros(64, 1, 9, 9).byte()
    dot[:, :, 4, 4] = 255
    resident = data.Resident(replace(DIGITS, shift=2, flip=True), dot, torch.zeros(64), CPU)
    moved = Augmentation(resident, (0, 0)).move(dot, torch.arange(64))
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert len(places) > 10
    assert all(2 <= row <= 6 and 2 <= column <= 6 for row, column in places)
    assert (moved.flatten(1) > 0).sum() == 64, "no image loses its dot, none gains one"


def test_augmentation_follows_from_seed_epoch_and_image_alone():
    lines = replace(DIGITS, shift=2, flip=True, erase=0.5)
    part = data.load(lines, CPU).train

    def images(seed: int, epoch: int, **where) -> torch.Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())  # wherever the global generator stands
        return torch.cat([batch.images for batch in part.batches(32, (seed, epoch), **where)])

    first = images(1, 2)
    assert torch.equal(first, images(1, 2))
    assert torch.equal(first[5 * 32 :], images(1, 2, skip=5)), "a run that continues sees the same"
    shares = [images(1, 2, rank=rank, ranks=2) for rank in range(2)]
    assert torch.equal(first[0::2], shares[0]), "and two ranks see it together"
    assert torch.equal(first[1::2], shares[1])
    assert not torch.equal(first, images(1, 3)), "control: another epoch"
    assert not torch.equal(first, images(2, 2)), "control: another seed"


class DrawnGlobally(data.Resident):
    """The defect that was: augmentation from the generator that methods draw from."""

    def batches(self, size: int, shuffle: tuple[int, int] | None = None, **where):
        for batch in super().batches(size, shuffle, **where):
            yield data.Batch(batch.images.roll(int(torch.randint(3, ())), -1), batch.labels)


def seen_by(method: str, part: data.Part, base: torch.nn.Module) -> str:
    """A digest of the images of one epoch, with the method's training steps between them."""
    model = vit.reduce(copy.deepcopy(base), method, "0.5@0,1").train()
    seed_all(0, 1)
    digest = hashlib.sha256()
    for number, batch in enumerate(part.batches(16, (0, 0))):
        digest.update(batch.images.numpy().tobytes())
        if number < 2:
            model(batch.images).sum().backward()
    return digest.hexdigest()


def test_every_method_is_trained_on_the_same_images():
    recipe = tiny_recipe.recipe()
    part = data.load(recipe.data, CPU).train
    base = build_base(recipe, seed=0)
    methods = [card.name for card in registry.select("all") if not card.unreduced]
    assert len({seen_by(method, part, base) for method in methods}) == 1
    spoilt = DrawnGlobally(recipe.data, part.images, part.labels, CPU)
    drawn = {seen_by(method, spoilt, base) for method in ("topk", "random")}
    assert len(drawn) == 2, "control: augmentation that shares the methods' generator differs"


# ------------------------------------------------------------------------------------------ folds

FOLDS = replace(DIGITS, folds=5)


def test_five_seeds_test_every_image_once():
    splits = [data.load(FOLDS, CPU, split) for split in range(5)]
    positions = np.concatenate([parts.test_set.positions for parts in splits])
    assert sorted(positions) == list(range(1797))
    assert {parts.fingerprint for parts in splits} == {splits[0].fingerprint}, "they are the same images"
    whole = {image.tobytes() for image in splits[0].test.images.numpy()}
    assert not whole & {image.tobytes() for image in splits[0].train.images.numpy()}, "none is trained on"
    for parts in splits:
        assert torch.bincount(parts.test.labels).min() >= 34, "every class is in every fold"


def test_folds_are_shuffled_anew_after_each_round_and_repeat():
    first, again, later = (data.load(FOLDS, CPU, split).test_set.positions for split in (0, 0, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("folds", [1, 175, -2])
def test_impossible_folds_are_refused(folds):
    with pytest.raises(DataError, match=f"folds={folds} is not possible"):
        data.load(replace(DIGITS, folds=folds), CPU)


def test_folds_of_other_data_sets_are_refused(tmp_path):
    lines = write_parquet(tmp_path, [encoded()] * 8, [0, 1] * 4)
    with pytest.raises(DataError, match="folds are for digits"):
        data.load(replace(lines, folds=5), CPU)


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
    assert (
        len(torch.cat([batch.labels for batch in parts.train.subset(3).batches(2)])) == len(parts.train.subset(3)) == 3
    )
    with pytest.raises(DataError, match="does not exist"):
        data.load(replace(lines, root=str(tmp_path / "nowhere")), CPU)
    broken = next((tmp_path / "validation" / "cat").iterdir())
    broken.write_bytes(broken.read_bytes()[:30])
    with pytest.raises(DataError, match=broken.name):
        list(data.load(lines, CPU).test.batches(4))
    with pytest.raises(DataError, match="the recipe has 1 classes"):
        list(data.load(replace(lines, classes=1), CPU).train.batches(4))


def imagenet_like(root: Path, **lines) -> Data:
    """The ImageNet recipes' lines on a folder of two classes and small crops."""
    whole = load("imagenet-deit-ti").data
    cut = {"image_size": 16, "classes": 2, "validation": 0.25, "loader_processes": 0}
    return replace(whole, root=str(root), **(cut | lines))


def test_odd_jpegs_reach_the_model_as_they_reach_others(odd_folder):
    parts = data.load(imagenet_like(odd_folder), CPU)
    assert parts.description["test"] == 12
    images = torch.cat([batch.images for batch in parts.test.batches(5)])
    assert images.shape == (12, 3, 16, 16)
    assert images.isfinite().all()
    gray = [i for i, name in enumerate(parts.test.dataset.names()) if "gray" in name]
    mean, std = torch.tensor(parts.test.dataset.data.mean), torch.tensor(parts.test.dataset.data.std)
    pixels = images[gray] * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(pixels[:, 0], pixels[:, 1], rtol=0, atol=1e-5)
    assert all(batch.images.shape == (4, 3, 16, 16) for batch in parts.train.batches(4, (0, 0)))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_truncated_jpeg_is_named_in_one_line(odd_folder, processes):
    broken = next((odd_folder / "val").rglob("large.jpg"))
    parts = data.load(imagenet_like(odd_folder, loader_processes=processes), CPU)
    assert len(list(parts.test.batches(4))) == 3, "control"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"image .*large\.jpg cannot be read: .*truncated") as found:
        list(parts.test.batches(4))
    assert len(str(found.value).splitlines()) == 1


def test_streamed_augmentation_follows_from_seed_epoch_and_image_alone(odd_folder):
    """In this process or in others, from the start or from the second batch on, whatever was drawn before."""

    def seen(processes: int = 0, shuffle: tuple[int, int] = (1, 2), skip: int = 0) -> torch.Tensor:
        part = data.load(imagenet_like(odd_folder, loader_processes=processes), CPU).train
        torch.randn(7)
        return torch.cat([batch.images for batch in part.batches(3, shuffle, skip=skip)])

    whole = seen()
    assert torch.equal(whole, seen(processes=2))
    assert torch.equal(whole[3:], seen(skip=1))
    assert not torch.equal(whole, seen(shuffle=(1, 3))), "control: another epoch, another draw"
    state = torch.get_rng_state()
    part = data.load(imagenet_like(odd_folder), CPU).train
    list(part.batches(3, (0, 0)))
    assert torch.equal(state, torch.get_rng_state()), "training's own generator is left alone"


def test_skipped_batches_are_those_at_the_start():
    train = data.load(replace(DIGITS, shift=0), CPU).train
    whole, rest = (torch.cat([b.labels for b in train.batches(32, (1, 2), skip=skip)]) for skip in (0, 5))
    assert torch.equal(whole[5 * 32 :], rest)


def test_erasing_takes_a_rectangle_of_some_images_in_training_only():
    import random

    random.seed(0)
    torch.manual_seed(0)
    plain = data.Resident(replace(DIGITS, shift=0), torch.zeros(200, 1, 16, 16).byte(), torch.zeros(200), CPU)
    erased = data.Resident(replace(DIGITS, shift=0, erase=0.5), plain.images, plain.labels, CPU)
    value = next(iter(plain.batches(1))).images[0, 0, 0, 0]

    def touched(part: data.Resident, shuffle: tuple[int, int] | None) -> float:
        images = torch.cat([batch.images for batch in part.batches(100, shuffle)])
        return ((images - value).abs() > 1e-6).flatten(1).any(dim=1).float().mean().item()

    assert 0.3 < touched(erased, (0, 0)) < 0.7, "drawn for each image by itself"
    assert touched(erased, None) == touched(plain, (0, 0)) == 0


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 parquet files are not at ../shared/data/cifar10")
def test_cifar10_is_read():
    lines = Data(
        "parquet", root=str(CIFAR), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, train_limit=500, test_limit=200
    )
    parts = data.load(lines, CPU)
    assert parts.description["test"] == 200
    assert 0.2 < parts.test.images.float().mean() / 255 < 0.8
    assert set(parts.test.labels.tolist()) == set(range(10))
