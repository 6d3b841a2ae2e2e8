"""Which of timm's models can be reduced, and why the others cannot."""

from __future__ import annotations

from timm.layers import Attention, AttentionPoolLatent, AttentionRope
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tpbench.errors import UnsupportedModel
from tpbench.vit.model import TokenModel
from tpbench.vit.rotary import ROTARY


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModel, with the reason, where reducing tokens would change what the model computes."""
    if isinstance(model, TokenModel):
        raise UnsupportedModel("the model is reduced already; reduce the timm model it came from")
    if type(model) not in (VisionTransformer, VisionTransformerDistilled, Eva):
        raise UnsupportedModel(
            f"{type(model).__name__} is not supported: only timm's VisionTransformer, its distilled form and Eva are"
        )
    _check_pooling(model)
    if isinstance(model.patch_drop, nn.Module) and not isinstance(model.patch_drop, nn.Identity):
        raise UnsupportedModel(
            "patch dropout is not supported: it changes the number of tokens before the schedule starts"
        )
    _check_rotation(model)
    _check_blocks(model)


def _check_pooling(model: nn.Module) -> None:
    if model.attn_pool is None and model.global_pool not in ("token", "avg"):
        raise UnsupportedModel(
            f"global pool {model.global_pool!r} is not supported: it reads all tokens and would ignore what each "
            "stands for"
        )
    if model.attn_pool is not None and type(model.attn_pool) is not AttentionPoolLatent:
        raise UnsupportedModel(
            f"pooling by {type(model.attn_pool).__name__} is not supported: its tokens attend to each other again"
        )
    if model.attn_pool is not None and model.attn_pool.pos_embed is not None:
        raise UnsupportedModel("attention pooling with a position embedding is not supported: it has one row a patch")


def _check_rotation(model: nn.Module) -> None:
    rope = getattr(model, "rope", None)
    if rope is not None and type(rope) not in ROTARY:
        raise UnsupportedModel(
            f"rotary embedding by {type(rope).__name__} is not supported: its angles between patches are not known"
        )
    if rope is not None and getattr(rope, "grid_type", "index") != "index":
        raise UnsupportedModel(f"rotary embedding on a {rope.grid_type!r} grid is not supported, only by patch index")


def _check_blocks(model: nn.Module) -> None:
    plain = Block
    attentions = (Attention,)
    if type(model) is Eva:
        plain = EvaBlock
        attentions = (EvaAttention, AttentionRope)
    for index, block in enumerate(model.blocks):
        if type(block) is not plain:
            raise UnsupportedModel(
                f"block {index} is a {type(block).__name__}; only timm's plain {plain.__name__} is supported"
            )
        if type(block.attn) not in attentions:
            known = " and ".join(kind.__name__ for kind in attentions)
            raise UnsupportedModel(
                f"block {index} attends with {type(block.attn).__name__}; only timm's {known} is supported"
            )
