"""The loss that training minimises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from tpbench.downsampler import Output
from tpbench.errors import UsageError
from tpbench.recipe import Optim
from tpbench.vit import TokenViT


class Objective(nn.Module):
    """The model and its loss as one module, which the engine trains."""

    def __init__(
        self, model: TokenViT, optim: Optim, soft_labels: bool, regulariser: Callable[[], Tensor] | None = None
    ):
        super().__init__()
        self.model = model
        self.regulariser = regulariser
        if optim.compile:
            torch.compiler.reset()  # torch silently stops compiling a function that it compiled for eight models
        self.forward_tokens = torch.compile(model.forward_tokens) if optim.compile else model.forward_tokens
        self.criterion = SoftTargetCrossEntropy() if soft_labels else LabelSmoothingCrossEntropy(optim.smoothing)

    def forward(self, images: Tensor, labels: Tensor, teacher: Output | None) -> Tensor:
        """The scalar loss of images [B, C, rows, columns]: criterion, the method's terms and the regulariser.

        labels are [B] class indices, or [B, classes] after mixup.
        """
        out = self.forward_tokens(images)
        loss = self.criterion(out.logits.float(), labels)
        terms = list(out.tokens.aux.values())
        if teacher is not None:
            terms += self.model.objective(out, teacher).values()
        if self.regulariser is not None:
            terms.append(self.regulariser())
        return loss + sum(terms)


def make_mixup(optim: Optim, classes: int) -> Mixup | None:
    """timm's mixup and cutmix as the recipe asks; None without either. Raises UsageError for an unknown mode."""
    if not optim.mixup and not optim.cutmix:
        return None
    if optim.mixup_mode not in ("batch", "pair", "elem"):
        raise UsageError(f"unknown mixup_mode {optim.mixup_mode!r}; known: batch, pair, elem")
    return Mixup(
        mixup_alpha=optim.mixup,
        cutmix_alpha=optim.cutmix,
        mode=optim.mixup_mode,
        label_smoothing=optim.smoothing,
        num_classes=classes,
    )
