"""Which of timm's models can be reduced; the others are refused with the reason."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tpbench.errors import UnsupportedModel
from tpbench.vit.model import TokenViT


def check_supported(model: nn.Module) -> None:
    """Refuse, in words, every model whose tokens cannot be reduced without changing what it computes."""
    if isinstance(model, TokenViT):
        raise UnsupportedModel("the model is reduced already; reduce the timm model it came from")
    name = type(model).__name__
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise UnsupportedModel(f"{name} is not supported: only timm's VisionTransformer and its distilled form are")
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        pool = "attention pooling" if model.attn_pool is not None else f"global pool {model.global_pool!r}"
        raise UnsupportedModel(
            f"{pool} is not supported: the head reads all tokens and would ignore what each stands for"
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise UnsupportedModel(
            "patch dropout is not supported: it changes the number of tokens before the schedule starts"
        )
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedModel(f"block {index} is a {type(block).__name__}; only timm's plain Block is supported")
        if type(block.attn) is not Attention:
            raise UnsupportedModel(
                f"block {index} attends with {type(block.attn).__name__}; only timm's Attention is supported"
            )
