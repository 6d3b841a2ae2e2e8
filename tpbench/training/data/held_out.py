"""The evaluation side of a folder of images alone, for verbs that train nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from tpbench.errors import DataError, in_short
from tpbench.recipe import Data
from tpbench.training.data.draws import chosen_indices
from tpbench.training.data.streamed import Selected, Streamed


def held_out(data: Data, device: torch.device) -> tuple[Streamed, int]:
    """The images under root/val, root/validation or root itself, one folder a class, and the number of classes.

    Labels are the places of the folders in natural order, as timm counts them. Raises DataError for a folder that does
    not exist or holds no images in class folders.
    """
    from timm.data import create_dataset, create_transform

    if not Path(data.root).is_dir():
        raise DataError(f"data folder {data.root} does not exist")
    try:
        dataset = create_dataset("", root=data.root, split="validation")
        classes = len(dataset.reader.class_to_idx)
    except Exception as error:
        raise DataError(f"images under {data.root} cannot be read: {in_short(error, 200)}") from error
    transform = create_transform(
        input_size=(data.channels, data.image_size, data.image_size),
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        crop_pct=data.crop,
        is_training=False,
    )
    chosen = chosen_indices(len(dataset), data.test_limit)
    selected = Selected(dataset, indices=chosen, transform=transform, data=data)
    return Streamed(selected, data.loader_processes, device), classes
