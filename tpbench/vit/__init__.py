"""Everything that depends on timm: adopting its vision transformers, block by block, so that tokens can be reduced.

timm's own modules stay unchanged and keep their names, so state dicts fit and a model with nothing reduced is
bit-identical to timm's. Only two kinds are put around them: TokenBlock, which passes Tokens instead of a tensor and
holds the reducer, and ProbedAttention in the blocks whose reducer must see the attention.
"""

from timm.models.vision_transformer import VisionTransformer

from tpbench.vit.adoption import adopt
from tpbench.vit.attention import ProbedAttention
from tpbench.vit.blocks import TokenBlock
from tpbench.vit.dropping import drop_patches
from tpbench.vit.eva import TokenEva
from tpbench.vit.making import create, hub_classes, preprocessing, transform
from tpbench.vit.model import TokenModel, TokenViT
from tpbench.vit.planning import plan
from tpbench.vit.reducing import macs_share, reduce
from tpbench.vit.support import check_supported

__all__ = [
    "ProbedAttention",
    "TokenBlock",
    "TokenEva",
    "TokenModel",
    "TokenViT",
    "VisionTransformer",
    "adopt",
    "check_supported",
    "create",
    "drop_patches",
    "hub_classes",
    "macs_share",
    "plan",
    "preprocessing",
    "reduce",
    "transform",
]
