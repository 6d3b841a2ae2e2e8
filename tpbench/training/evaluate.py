"""Evaluation: yields (name, value) over every image of a part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from tpbench.training.data import Part


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
