"""Evaluation: which images of a part a model classifies right, its top-1 and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tpbench.errors import explain_out_of_memory
from tpbench.training.data import Part, Parts


@dataclass(frozen=True, eq=False)
class Score:
    """A model on one part of the data: right [images] bool, loss the mean cross-entropy in nats."""

    right: np.ndarray
    loss: float

    @property
    def images(self) -> int:
        """How many images were evaluated."""
        return len(self.right)

    @property
    def top1(self) -> float:
        """The share of images that were classified right, in [0, 1]."""
        return int(self.right.sum()) / self.images


@dataclass(frozen=True)
class Accuracy:
    """A model on the test images and on those set apart for validation."""

    test: Score
    validation: Score


def assess(model: nn.Module, data: Parts, batch_size: int, *, dtype: torch.dtype, seed: int) -> Accuracy:
    """Evaluate a model on the test and the validation part. Raises CellFailed where memory runs out."""
    with explain_out_of_memory("in evaluation", batch_size, "choose a smaller batch_size of finetune in the recipe"):
        return Accuracy(
            test=evaluate(model, part=data.test, batch_size=batch_size, dtype=dtype, seed=seed),
            validation=evaluate(model, part=data.validation, batch_size=batch_size, dtype=dtype, seed=seed),
        )


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, batch_size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Score:
    """Evaluate a model on all images of a part, in their order.

    Methods that draw are seeded; a lower dtype runs under autocast.
    """
    torch.manual_seed(seed)
    model.eval()
    device = next(model.parameters()).device
    right = []
    loss = 0.0
    for batch in part.batches(batch_size):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(batch.images).float()
        right.append(logits.argmax(dim=1) == batch.labels)
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
    flags = torch.cat(right).cpu().numpy()
    return Score(flags, loss / len(flags))
