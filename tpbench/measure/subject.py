"""The user's own model as the subject of a timing session: by timm's name or by the function that makes it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tpbench import vit
from tpbench.errors import DataError, UsageError, explain_out_of_memory
from tpbench.measure.entries import Subject, reduced
from tpbench.measure.images import Images, of_part, photographs
from tpbench.recipe import Data
from tpbench.training.data import Part
from tpbench.training.data.held_out import held_out

MOST_CLASSES = 1_000_000  # where labels are not looked at


def load(
    name: str,
    where: torch.device,
    images: int,
    *,
    pretrained: bool | str = False,
    folder: Path | None = None,
    site: str = "mid",
) -> Subject:
    """A model with images to time it on: those of a folder, or crops of two photographs.

    name is a timm model or "module:function". Raises UsageError where there is no such model, no such weights or no
    such images, or where tpbench cannot reduce it.
    """
    model = make(name, pretrained).eval().to(where)
    vit.check_supported(model)
    with explain_out_of_memory("in timing", images, "choose smaller --batch-sizes", kind=UsageError):
        pixels = (
            photographs(model, images, where)
            if folder is None
            else from_folder(model, images, folder=folder, where=where)
        )
    return Subject(
        name=name, weights=weights(name, pretrained), model=model, images=pixels, reduce=partial(reduced, site=site)
    )


def make(name: str, pretrained: bool | str = False) -> nn.Module:
    """A model by timm's name, with random weights of seed 0 unless pretrained, or what a function returns."""
    torch.manual_seed(0)
    if ":" not in name:
        return vit.create(name, {}, pretrained)
    if pretrained:
        raise UsageError(f"--pretrained is for timm's models; let {name} return a model with its weights")
    module, _, function = name.partition(":")
    try:
        with found_here():
            model = getattr(importlib.import_module(module), function)()
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UsageError(f"model {name!r} cannot be made: {why}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} is a {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def found_here() -> Iterator[None]:
    """Let modules of the current folder be imported, whichever way tpbench was started."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)


def weights(name: str, pretrained: bool | str) -> str:
    """Where the weights come from, in words."""
    if ":" in name:
        return f"of {name}"
    return {True: "from the hub", False: "random"}.get(pretrained, str(pretrained))


def lines(model: nn.Module, folder: Path, limit: int | None) -> Data:
    """How a folder's images are prepared for a model: as its weights want them."""
    how = vit.preprocessing(model)
    height, width = model.patch_embed.img_size
    if height != width:
        raise DataError(f"--data prepares square images, and the model takes {height} x {width}")
    return Data(
        source="",
        root=str(folder),
        image_size=height,
        channels=model.in_chans,
        classes=model.num_classes,
        mean=how["mean"],
        std=how["std"],
        crop=how["crop"],
        interpolation=how["interpolation"],
        test_limit=limit,
    )


def from_folder(model: nn.Module, count: int, folder: Path, where: torch.device) -> Images:
    """The first images of a folder, whatever their classes are."""
    any_class = replace(lines(model, folder, count), classes=MOST_CLASSES)
    part, _ = held_out(any_class, where)
    return of_part(part, count, source=str(folder), where=where)


def labelled(model: nn.Module, folder: Path, limit: int, where: torch.device) -> Part:
    """Images with labels of the model's classes. Raises DataError where the folder has another number of classes."""
    part, classes = held_out(lines(model, folder, limit), where)
    if classes != model.num_classes:
        raise DataError(
            f"{folder} has {classes} folders of classes and the model {model.num_classes} classes: labels would not fit"
        )
    return part
