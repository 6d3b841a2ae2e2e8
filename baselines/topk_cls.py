"""Top-K by the class token's attention, mean over heads: the selection rule of EViT without its fused token.

EViT: Liang et al., ICLR 2022, https://arxiv.org/abs/2202.07800.
"""

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens, stable_topk


@register(
    "topk_cls",
    title="Top-K by class attention",
    family="pruning",
    paper="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    venue="ICLR",
    year=2022,
    url="https://arxiv.org/abs/2202.07800",
    differs="the dropped tokens are not fused into one",
)
class TopKClass(Downsampler):
    """Keeps the K tokens with the highest class attention."""

    needs = Needs.CLS

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep the K tokens of highest class attention, in their order."""
        return tokens.keep(stable_topk(probe.cls, self.setup.k).sort(dim=1).values)
