"""Outcomes: which test images a model classified right, packed into one bit an image. numpy and nothing else.

Any two models of any two runs whose outcomes name the same images can be compared image by image. A model need not
have been tested on all of them: where the seed draws the test fold, every seed tests its own part of the same images.

I images, S seeds
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpbench.errors import UsageError


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which images of one set a model classified right.

    images: the digest that identifies the images and their order; right: [I] bool, False where not tested;
    tested: [I] bool, at least one of them. Raises UsageError for anything else.
    """

    images: str
    right: np.ndarray
    tested: np.ndarray

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError("outcomes without the identity of their images cannot be compared")
        for name, bits in (("right", self.right), ("tested", self.tested)):
            if bits.dtype != bool or bits.ndim != 1:
                raise UsageError(f"outcomes: '{name}' has shape {bits.shape} of {bits.dtype}, not one bool an image")
        if len(self.right) != len(self.tested):
            raise UsageError(f"outcomes: {len(self.right)} images in 'right', {len(self.tested)} in 'tested'")
        if not self.tested.any():
            raise UsageError("outcomes: no image was tested")
        if (self.right & ~self.tested).any():
            raise UsageError("outcomes: an image that was not tested counts as right")

    @property
    def top1(self) -> float:
        """The share of the tested images that were classified right, in [0, 1]."""
        return int(self.right.sum()) / int(self.tested.sum())


def outcomes(images: str, right: np.ndarray, tested: np.ndarray | None = None) -> Outcomes:
    """Outcomes of one model from arrays of bool, [I]. Without `tested` every image was tested."""
    right = np.asarray(right)
    used = np.ones(right.shape, dtype=bool) if tested is None else np.asarray(tested)
    return Outcomes(images, right, used)


# ------------------------------------------------------------------------------------------ packed, for a record


def pack(own: Outcomes) -> dict[str, Any]:
    """Outcomes as JSON values: {"images": digest, "count": I, "right": base64, "tested": base64}.

    The bits are those of numpy.packbits, first image first. "tested" is left out where every image was tested.
    """
    packed = {"images": own.images, "count": len(own.right), "right": _packed(own.right)}
    return packed if own.tested.all() else packed | {"tested": _packed(own.tested)}


def unpack(packed: Mapping[str, Any]) -> Outcomes:
    """The inverse of `pack`. Raises UsageError for anything else, also for bytes that do not fit the count."""
    try:
        images = str(packed["images"])
        count = int(packed["count"])
        right = _decoded(packed["right"])
        tested = _decoded(packed["tested"]) if "tested" in packed else None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"packed outcomes are corrupt ({type(error).__name__}: {error})") from error
    return outcomes(images, _bits(right, count), None if tested is None else _bits(tested, count))


def _packed(bits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text.encode("ascii"), validate=True), dtype=np.uint8)


def _bits(data: np.ndarray, count: int) -> np.ndarray:
    """The first `count` bits. Raises UsageError unless the rest of the last byte is zero and no other byte follows."""
    bits = np.unpackbits(data).astype(bool)
    if count < 0 or len(data) != (count + 7) // 8 or bits[count:].any():
        raise UsageError(f"packed outcomes hold {len(data)} bytes that do not fit their count of {count} images")
    return bits[:count]


# ------------------------------------------------------------------------------------------ paired


def paired(a: Mapping[int, Outcomes], b: Mapping[int, Outcomes]) -> np.ndarray:
    """a minus b image by image, for the seeds that both have: [S, I] in points (-100, 0, 100), NaN where not tested.

    Raises UsageError unless both have tested the same images of one set, seed by seed.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise UsageError("outcomes of two rows can be paired only where both have the same seed")
    refuse_other_images([outcome for seed in seeds for outcome in (a[seed], b[seed])])
    for seed in seeds:
        if not np.array_equal(a[seed].tested, b[seed].tested):
            raise UsageError(f"seed {seed}: the two rows were tested on different images of the same set")
    return np.stack([_points(a[seed], b[seed]) for seed in seeds])


def _points(a: Outcomes, b: Outcomes) -> np.ndarray:
    return np.where(a.tested, 100.0 * (a.right.astype(float) - b.right), np.nan)


def refuse_other_images(several: Collection[Outcomes]) -> None:
    """Raise UsageError unless all outcomes are of one set of images."""
    sets = sorted({outcome.images for outcome in several})
    if len(sets) > 1:
        raise UsageError(f"outcomes on different images cannot be compared: {', '.join(sets)}")
    lengths = sorted({len(outcome.right) for outcome in several})
    if len(lengths) > 1:
        raise UsageError(f"outcomes on images {sets[0]} have different lengths: {', '.join(map(str, lengths))}")
