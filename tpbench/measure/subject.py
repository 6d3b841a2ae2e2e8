"""A user's model as the subject of a timing session, by its name in timm or by the function that makes it."""

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

MOST_CLASSES = 1_000_000  # any number of classes will do if labels are not used


def load(
    name: str,
    where: torch.device,
    images: int,
    *,
    pretrained: bool | str = False,
    folder: Path | None = None,
    site: str = "mid",
) -> Subject:
    """Load a model with images to time it on: those of a folder, or crops of two photographs.

    name: a timm model, or "module:function". images: how many. site: where in a block to reduce. Raises UsageError if
    the model, its weights or the images do not exist, and if tpbench cannot reduce the model.
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
    """A timm model, with random weights of seed 0 unless pretrained; or the model that "module:function" returns."""
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
    """Make modules in the current folder importable, however tpbench was started."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)


def weights(name: str, pretrained: bool | str) -> str:
    """Where the weights come from, in words, for reports."""
    if ":" in name:
        return f"of {name}"
    return {True: "from the hub", False: "random"}.get(pretrained, str(pretrained))


def data_for(model: nn.Module, folder: Path, limit: int | None) -> Data:
    """The preparation of a folder's images that the model's weights expect. limit: images at most."""
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
    """The first `count` images of a folder, whatever their classes."""
    any_class = replace(data_for(model, folder, count), classes=MOST_CLASSES)
    part, _ = held_out(any_class, where)
    return of_part(part, count, source=str(folder), where=where)


def labelled(model: nn.Module, folder: Path, limit: int, where: torch.device) -> Part:
    """At most `limit` labelled images of a folder. Raises DataError unless it has as many classes as the model."""
    part, classes = held_out(data_for(model, folder, limit), where)
    if classes != model.num_classes:
        raise DataError(
            f"{folder} has {classes} folders of classes and the model {model.num_classes} classes; they must agree"
        )
    return part
