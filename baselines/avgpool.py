"""Average pooling on the token grid: fixed windows, the same for every image, without parameters."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Probe
from tpbench.errors import UsageError
from tpbench.registry import register
from tpbench.tokens import Tokens


class GridPooling(Downsampler):
    """The base of methods that map the token grid to a smaller one: the largest with at most K tokens.

    No side shrinks more than twice as much as the other, so that windows stay about square.
    """

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        """The largest grid of at most k cells whose sides shrink alike within a factor of 2.

        If there is no such grid, the largest of at most k cells. Raises UsageError for tokens on no grid.
        """
        if grid is None:
            raise UsageError(f"{cls.__name__} needs tokens on a grid")
        if k >= tokens:
            return tokens, grid
        height, width = grid
        small_enough = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= k]
        even = [(h, w) for h, w in small_enough if 0.5 <= h / height / (w / width) <= 2]

        def preference(candidate: tuple[int, int]) -> tuple[int, int, int]:
            """More cells first, then sides that shrink more alike, then more rows."""
            h, w = candidate
            return h * w, -abs(h * width - w * height), h

        best = max(even or small_enough, key=preference)
        return best[0] * best[1], best

    @property
    def target(self) -> tuple[int, int]:
        """The rows and columns of the smaller grid."""
        return self.reachable(self.setup.tokens, self.setup.k, self.setup.grid)[1]

    def on_grid(self, body: Tensor) -> Tensor:
        """body [B, N, C] as an image: [B, C, rows, columns]."""
        return body.transpose(1, 2).unflatten(2, self.setup.grid)

    def from_grid(self, tokens: Tokens, image: Tensor) -> Tokens:
        """An image [B, C, rows, columns] as body tokens; each stands for an equal share of the patches."""
        size = tokens.size.sum(dim=1, keepdim=True) / self.setup.k
        position = tokens.position
        if position is not None:
            position = off_grid(self.average(self.on_grid(position)))
        return tokens.with_body(
            off_grid(image),
            size.expand(-1, self.setup.k),
            self.target,
            share=None if tokens.provenance is None else self.windows(tokens),
            position=position,
        )

    def average(self, image: Tensor) -> Tensor:
        """The mean of every window of an image [B, C, rows, columns]."""
        return F.adaptive_avg_pool2d(image, self.target)

    def windows(self, tokens: Tokens) -> Tensor:
        """The share of each token in each window: [B, K, N]. A token in several windows has a part in each."""
        each = torch.eye(tokens.count, device=tokens.x.device)[None]
        return off_grid(self.average(self.on_grid(each))).expand(tokens.x.shape[0], -1, -1)


def off_grid(image: Tensor) -> Tensor:
    """An image [B, C, rows, columns] as body tokens [B, N, C]."""
    return image.flatten(2).transpose(1, 2)


@register("avgpool", title="Average pooling on the grid", family="grid", count="at_most")
class AveragePooling(GridPooling):
    """Every token is the mean of a window of the grid."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """The means of the windows of the grid."""
        return self.from_grid(tokens, self.average(self.on_grid(tokens.body)))
