"""ToFu (Kim et al., WACV 2024, https://arxiv.org/abs/2312.01026): prune early, merge late, keep the norms.

ToMe's matching says which tokens leave and whom they are most similar to. In the first half of the layers, which
respond nonlinearly to mixed tokens, those that leave are dropped. In the second half they merge by MLERP: the merged
token points where the mean points, and is as long as the longest of those merged.
"""

import torch
from torch import Tensor

from baselines.tome import ToMe, head_mean
from tpbench.downsampler import Probe
from tpbench.kernels.matching import match_halves
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, segment_sum


def mlerp(tokens: Tokens, assignment: Tensor, k: int) -> Tokens:
    """Merge by assignment [B, N] into k tokens: direction of the size-weighted mean, greatest norm of the members.

    A token alone in its cluster stays unchanged, to the last bit.
    """
    out = tokens.merge(assignment, k)
    norm = tokens.body.float().norm(dim=2)
    longest = torch.zeros_like(out.size).scatter_reduce(1, assignment, norm, "amax", include_self=False)
    length = out.body.float().norm(dim=2).clamp(min=torch.finfo(torch.float32).eps)
    several = segment_sum(torch.ones_like(norm), assignment, k) > 1
    scale = torch.where(several, longest / length, 1)
    body = out.body * scale[:, :, None].to(out.body.dtype)
    return out.with_x(torch.cat([out.x[:, : out.prefix], body], dim=1))


def targets(assignment: Tensor, prefix: int, k: int) -> Tensor:
    """The token that stays in each cluster of ToMe's matching: assignment [B, N] -> token indices [B, k].

    All tokens of B stay. ToMe numbers the clusters by the tokens of A that stay and then by those of B, so a token of A
    stays if the number of its cluster is below k minus the size of B.
    """
    n = assignment.shape[1]
    position = torch.arange(n, device=assignment.device)
    in_b = (position + prefix) % 2 == 1
    size_of_b = (n + prefix % 2) // 2
    stays = in_b | (assignment < k - size_of_b)
    cluster = torch.where(stays, assignment, k)  # tokens that leave write to one entry too many, which is cut off
    target = assignment.new_zeros(assignment.shape[0], k + 1)
    return target.scatter(1, cluster, position.expand_as(cluster))[:, :k]


@register(
    "tofu",
    title="Token Fusion (ToFu)",
    family="merging",
    paper="Token Fusion: Bridging the Gap between Token Pruning and Token Merging",
    venue="WACV",
    year=2024,
    url="https://arxiv.org/abs/2312.01026",
    differs="halves are counted over the schedule's blocks; the mean under MLERP is size-weighted, as ToMe's; it is "
    "divided by its own norm, as in the paper, where two public re-implementations divide it by the target's",
)
class ToFu(ToMe):
    """Drops the tokens that ToMe would merge in the first half of the blocks, and merges by MLERP in the second."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Prune or merge N - K tokens of A, by the stage of the block."""
        metric = head_mean(probe.keys)
        assignment = match_halves(cosine(metric[:, ::2], metric[:, 1::2]), tokens.prefix, self.setup.k)
        if 2 * self.setup.stage >= self.setup.stages:
            return mlerp(tokens, assignment, self.setup.k)
        return tokens.keep(targets(assignment, tokens.prefix, self.setup.k))
