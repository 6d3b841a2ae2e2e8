"""Uniform patch dropout: evenly spaced tokens stay, the same ones for every image. A trivial control.

PatchDropout (Liu et al., WACV 2023, https://arxiv.org/abs/2208.07220) drops at random at the input of training; here
the kept tokens are fixed, so that inference is deterministic and `random` remains the random control.
"""

import torch

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "patch_dropout",
    title="Evenly spaced tokens",
    family="trivial",
    paper="PatchDropout: Economizing Vision Transformers Using Patch Dropout",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2208.07220",
    differs="evenly spaced and the same for every image, in training and inference, at the schedule's blocks",
)
class PatchDropout(Downsampler):
    """Keeps K evenly spaced tokens."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """Keep K tokens, evenly spaced in their order."""
        k = self.setup.k
        index = (2 * torch.arange(k, device=tokens.x.device) + 1) * tokens.count // (2 * k)
        return tokens.keep(index.expand(tokens.x.shape[0], -1))
