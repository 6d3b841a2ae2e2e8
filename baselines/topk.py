"""Top-K by attention received (PoWER-BERT, Goyal et al., ICML 2020, https://arxiv.org/abs/2001.08950).

The significance of a token is its column sum of the attention matrix; the K most significant stay, in their order.
"""

from tpbench.downsampler import Downsampler, Needs, Probe, stable_topk
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "topk",
    title="Top-K by attention received (PoWER-BERT)",
    paper="PoWER-BERT: Accelerating BERT Inference via Progressive Word-vector Elimination",
    venue="ICML",
    year=2020,
    url="https://arxiv.org/abs/2001.08950",
    differs="K comes from the schedule and not from the paper's soft-extract search",
)
class TopK(Downsampler):
    needs = Needs.RECEIVED

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        return tokens.keep(stable_topk(probe.received, self.setup.k).sort(dim=1).values)
