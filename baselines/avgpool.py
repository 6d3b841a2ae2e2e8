"""Average pooling on the token grid: fixed windows, nothing learned, blind to the image."""

from torch import Tensor
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Probe
from tpbench.errors import UsageError
from tpbench.registry import register
from tpbench.tokens import Tokens


class GridPooling(Downsampler):
    """A method that maps the token grid to a smaller one: the largest of at most K tokens.

    A side never shrinks more than twice as much as the other, so that no image is squeezed flat.
    """

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        if grid is None:
            raise UsageError(f"{cls.__name__} needs tokens on a grid")
        if k >= tokens:
            return tokens, grid
        height, width = grid
        stretch = {
            (h, w): h / height / (w / width) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= k
        }
        even = [(h, w) for (h, w), ratio in stretch.items() if 0.5 <= ratio <= 2] or list(stretch)
        best = max(even, key=lambda g: (g[0] * g[1], -abs(g[0] * width - g[1] * height), g[0]))
        return best[0] * best[1], best

    @property
    def target(self) -> tuple[int, int]:
        return self.reachable(self.setup.tokens, self.setup.k, self.setup.grid)[1]

    def on_grid(self, tokens: Tokens) -> Tensor:
        """The body tokens as an image: [B, C, rows, columns]."""
        return tokens.body.transpose(1, 2).unflatten(2, self.setup.grid)

    def from_grid(self, tokens: Tokens, image: Tensor) -> Tokens:
        """The image [B, C, rows, columns] as body tokens; each stands for an equal share of the patches."""
        size = tokens.size.sum(dim=1, keepdim=True) / self.setup.k
        return tokens.with_body(image.flatten(2).transpose(1, 2), size.expand(-1, self.setup.k), self.target)


@register("avgpool", title="Average pooling on the grid", count="at_most")
class AveragePooling(GridPooling):
    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        return self.from_grid(tokens, F.adaptive_avg_pool2d(self.on_grid(tokens), self.target))
