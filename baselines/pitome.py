"""PiToMe (Tran et al., NeurIPS 2024, https://arxiv.org/abs/2405.16148): merge tokens that have many similar ones.

A token's energy is its mean similarity to the others beyond a margin, which shrinks with depth. In the first half of
layers the sorted tokens are split alternately and the r most similar pairs merge; in the second half only the 2r tokens
of highest energy may merge. Every block sorts the tokens by energy anew, so that the order in which they leave the
block before has no effect. Written from the paper's description.
"""

from dataclasses import dataclass

from torch.nn import functional as F

from baselines.tome import ToMe, head_mean
from tpbench.downsampler import Probe, Setup
from tpbench.kernels.matching import match_by_energy
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine


@register(
    "pitome",
    title="PiToMe",
    family="merging",
    paper="Accelerating Transformers with Spectrum-Preserving Token Merging",
    venue="NeurIPS",
    year=2024,
    url="https://arxiv.org/abs/2405.16148",
    differs="depth is counted over the schedule's blocks; r follows from its tokens, at most half in one block; later "
    "attention ignores sizes, as the published DeiT code does, unless proportional=True",
)
class PiToMe(ToMe):
    """Merges the most similar pairs among the tokens that have many similar ones."""

    weighted_attention = False

    @dataclass(frozen=True)
    class Config:
        """The settings of PiToMe."""

        margin: float = 0.75  # at the first reducing block, falling to 0 at the last but one after
        proportional: bool = False  # later attention counts keys by their sizes, as ToMe's does

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.weighted_attention = self.config.proportional

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Merge N - K tokens in pairs, from the middle block on among the 2 (N - K) of highest energy alone."""
        r = tokens.count - self.setup.k
        depth = self.setup.stage / self.setup.stages
        metric = head_mean(probe.keys[:, :, tokens.prefix :])
        similarity = cosine(metric, metric)
        energy = F.elu(similarity - self.config.margin * (1 - depth)).mean(dim=2)
        among = tokens.count if depth < 0.5 else 2 * r
        assignment = match_by_energy(similarity, energy, among, self.setup.k)
        return tokens.merge(assignment, self.setup.k)

    def macs(self) -> int:
        """N^2 D: the cosines of all pairs of head-averaged keys."""
        return self.setup.tokens**2 * self.setup.width // self.setup.heads
