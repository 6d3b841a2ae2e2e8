"""Max pooling on the token grid: the windows of avgpool, without parameters."""

from torch.nn import functional as F

from baselines.avgpool import GridPooling
from tpbench.downsampler import Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register("maxpool", title="Max pooling on the grid", family="grid", count="at_most")
class MaxPooling(GridPooling):
    """Every token is the maximum, channel by channel, of a window of the grid."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """The maxima of the windows of the grid."""
        return self.from_grid(tokens, F.adaptive_max_pool2d(self.on_grid(tokens.body), self.target))
