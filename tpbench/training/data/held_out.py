"""The evaluation side of a folder of images alone, for verbs that train nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from tpbench.errors import DataError, in_short
from tpbench.recipe import Data
from tpbench.training.data.draws import chosen_indices
from tpbench.training.data.streamed import Selected, Streamed


def held_out(lines: Data, where: torch.device) -> tuple[Streamed, int]:
    """The images under root/val, root/validation or root itself, one folder a class, and the number of classes.

    Labels are the places of the folders in natural order, as timm counts them. Raises DataError for a folder that does
    not exist or holds no images in class folders.
    """
    from timm.data import create_dataset, create_transform

    if not Path(lines.root).is_dir():
        raise DataError(f"data folder {lines.root} does not exist")
    try:
        dataset = create_dataset("", root=lines.root, split="validation")
        classes = len(dataset.reader.class_to_idx)
    except Exception as error:
        raise DataError(f"images under {lines.root} cannot be read: {in_short(error, 200)}") from error
    transform = create_transform(
        input_size=(lines.channels, lines.image_size, lines.image_size),
        mean=lines.mean,
        std=lines.std,
        interpolation=lines.interpolation,
        crop_pct=lines.crop,
        is_training=False,
    )
    chosen = chosen_indices(len(dataset), lines.test_limit)
    selected = Selected(dataset, indices=chosen, transform=transform, data=lines)
    return Streamed(selected, lines.loader_processes, where), classes
