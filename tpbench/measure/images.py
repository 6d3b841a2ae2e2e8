"""Real images for timing, since the number of K-Medoids iterations depends on the image.

Shapes: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tpbench import vit
from tpbench.errors import UsageError
from tpbench.training.data import Part

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
SMALLEST = 0.5  # the smallest side of a crop, as a share of the photograph's shorter side


class Images(NamedTuple):
    """Normalised images [B, C, H, W] on the model's device; about: their source, number, shape and fingerprint."""

    pixels: Tensor
    about: dict[str, Any]


def photographs(model: nn.Module, count: int, where: torch.device) -> Images:
    """Square crops of scikit-learn's two photographs at random places, resized and normalised for a timm model.

    Raises UsageError for a model that takes neither colour nor grey images.
    """
    pictures = [photograph(name) for name in PHOTOGRAPHS]
    size = tuple(model.patch_embed.img_size)
    draw = torch.Generator().manual_seed(0)
    crops = torch.stack([crop(pictures[number % len(pictures)], size, draw) for number in range(count)])
    if model.in_chans == 1:
        crops = crops.mean(dim=1, keepdim=True)
    elif model.in_chans != 3:
        raise UsageError(f"the model takes images of {model.in_chans} channels; photographs have 3, or 1 in grey")
    how = vit.preprocessing(model)
    mean, std = (torch.tensor(how[name][: model.in_chans]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return described((crops - mean) / std, "crops of scikit-learn's photographs", where)


def photograph(name: str) -> Tensor:
    """One of scikit-learn's photographs [3, H, W] in [0, 1], read as a file to save the seconds of its import."""
    path = Path(find_spec("sklearn").origin).parent / "datasets" / "images" / name
    if not path.is_file():
        raise UsageError(f"scikit-learn's photograph {path} is missing; use --data DIR")
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def crop(picture: Tensor, size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """A square of a picture [C, H, W] at a random place and scale, resized to `size` (height, width)."""
    _, height, width = picture.shape
    scale = SMALLEST + (1 - SMALLEST) * torch.rand((), generator=draw).item()
    side = int(scale * min(height, width))
    top = int(torch.randint(height - side + 1, (), generator=draw))
    left = int(torch.randint(width - side + 1, (), generator=draw))
    square = picture[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def of_part(part: Part, count: int, source: str, where: torch.device) -> Images:
    """The first `count` images of one part of a data set; they are repeated if it has fewer."""
    pixels = next(iter(part.batches(min(count, len(part))))).images
    rounds = -(-count // len(pixels))
    return described(pixels.repeat(rounds, 1, 1, 1)[:count], source, where)


def described(pixels: Tensor, source: str, where: torch.device) -> Images:
    """Move images [B, C, H, W] to a device and describe their source, number, shape and fingerprint."""
    digest = hashlib.sha256(pixels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    about = {"source": source, "images": len(pixels), "shape": list(pixels.shape[1:]), "fingerprint": digest}
    return Images(pixels.contiguous().to(where), about)
