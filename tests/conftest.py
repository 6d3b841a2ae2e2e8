"""Small models on few threads: the suite runs on a laptop in about a minute."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from faults import FRESH
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

from tpbench import environment, registry
from tpbench.record import host_id

torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True)  # the same examples each time: a change is what fails
settings.register_profile("searching")  # other examples each time: TPBENCH_HYPOTHESIS=searching
settings.load_profile(os.environ.get("TPBENCH_HYPOTHESIS", "repeatable"))

COMMIT = pytest.StashKey[dict]()
TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 7}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.stash[COMMIT] = environment.git()  # now: a long run may outlast a commit


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked gpu is skipped, with the reason, where there is none; what is marked faults, unless asked for.

    What is marked fresh runs in a process of its own.
    """
    if not FRESH:
        for item in items:
            if item.get_closest_marker("fresh"):
                item.add_marker(pytest.mark.skip(reason="test_a_part_of_this_in_a_fresh_process runs it"))
    if "faults" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: `tox -e faults`"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """What tpbench calls the machine, in the JSON that `tox -e opbench` makes its tables from."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = environment.machine(where, host_id(config.rootpath / "results" / "opbench" / "work"))
    about = environment.describe(where, torch.bfloat16 if where.type == "cuda" else torch.float32)
    machine_info["tpbench"] = {"machine": name, "environment": about, "git": config.stash[COMMIT]}


def tiny(name: str = "vit_tiny_patch16_224", *, seed: int = 0, **overrides) -> nn.Module:
    """A tiny model of timm's in evaluation mode: the same numbers at every call, with weights that show."""
    return randomise(timm.create_model(name, **{**TINY, **overrides}), seed).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """No weight stays at a value that hides it: norms are not 1, biases and position embeddings not 0, and attention
    is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("gamma"):  # LayerScale starts at 1e-5 or so, and then does not show
            p.copy_(0.7 + 0.2 * noise)
        elif p.dim() == 1:
            p.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
        elif name.endswith(("pos_embed", "token")):
            p.copy_(0.5 * noise)
        else:
            p.copy_(1.5 * noise / math.sqrt(p[0].numel()))
    return model


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., nn.Module]:
    return tiny


@pytest.fixture
def vit() -> nn.Module:
    """8 x 8 patches, a class token, four blocks; a fresh one for every test."""
    return tiny()


@pytest.fixture(scope="session")
def images() -> Tensor:
    """[3, 3, 32, 32]"""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unplugged() -> Iterator[None]:
    """What a test plugs in by a file is gone behind it."""
    yield
    for module in registry._plugins:
        sys.modules.pop(module, None)
    registry._plugins.clear()
    for name in [name for name, card in registry._cards.items() if card.module.startswith("tpbench_plugin_")]:
        registry._cards.pop(name)
        registry._classes.pop(name, None)


@pytest.fixture
def odd_folder(tmp_path) -> Path:
    """A small ImageFolder of what real folders hold: grayscale, CMYK, rotated by EXIF, progressive, odd shapes."""
    generator = torch.Generator().manual_seed(0)

    def save(path: Path, mode: str, size: tuple[int, int], **options) -> None:
        channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
        pixels = torch.randint(256, (size[1], size[0], channels), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(path, "JPEG", **options)

    rotated = Image.Exif()
    rotated[0x0112] = 6  # "rotate by 90 degrees to show"
    for side in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            folder = tmp_path / side / label
            folder.mkdir(parents=True)
            save(folder / "gray.JPEG", "L", (40, 30))
            save(folder / "cmyk.JPEG", "CMYK", (33, 47))
            save(folder / "rotated.JPEG", "RGB", (60, 20), exif=rotated)
            save(folder / "progressive.JPEG", "RGB", (25, 25), progressive=True)
            save(folder / "narrow.JPEG", "RGB", (3, 90))
            save(folder / "large.jpg", "RGB", (300, 200), quality=20)
    return tmp_path
