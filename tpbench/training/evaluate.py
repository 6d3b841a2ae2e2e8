"""Evaluation: top-1 and loss of a model over every image of a part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tpbench.errors import explain_out_of_memory
from tpbench.training.data import Part, Parts


class Score(NamedTuple):
    """A model on one part of the data: top1 a share in [0, 1], loss the mean cross-entropy in nats."""

    top1: float
    loss: float
    images: int


class Accuracy(NamedTuple):
    """A model on the test images and on those set apart for validation."""

    test: Score
    validation: Score


def assess(model: nn.Module, data: Parts, batch_size: int, *, dtype: torch.dtype, seed: int) -> Accuracy:
    """Evaluate a model on the test and the validation part. Raises CellFailed where memory runs out."""
    with explain_out_of_memory("in evaluation", batch_size, "choose a smaller batch_size of finetune in the recipe"):
        test, validation = (
            Score(**dict(evaluate(model, part, batch_size, dtype, seed))) for part in (data.test, data.validation)
        )
    return Accuracy(test, validation)


@torch.no_grad()
def evaluate(
    model: nn.Module, part: Part, batch_size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Iterator[tuple[str, float]]:
    """("top1", share in [0, 1]), ("loss", mean cross-entropy in nats) and ("images", count) of a model on a part.

    Methods that draw are seeded; a lower dtype runs under autocast.
    """
    torch.manual_seed(seed)
    model.eval()
    device = next(model.parameters()).device
    correct, loss, images = 0.0, 0.0, 0
    for batch in part.batches(batch_size):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(batch.images).float()
        correct += (logits.argmax(dim=1) == batch.labels).sum().item()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        images += len(batch.labels)
    yield "top1", correct / images
    yield "loss", loss / images
    yield "images", images
