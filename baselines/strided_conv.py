"""Strided convolution on the token grid, the learned fixed downsampling of pyramid transformers.

Depthwise, as the pooling layer of PiT (Heo et al., ICCV 2021, https://arxiv.org/abs/2103.16302). Kernel and stride
follow from the two grids; the kernel starts as an average, so that an untrained one pools.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.avgpool import GridPooling
from tpbench.downsampler import Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "strided_conv",
    title="Strided convolution",
    family="grid",
    paper="Rethinking Spatial Dimensions of Vision Transformers",
    venue="ICCV",
    year=2021,
    url="https://arxiv.org/abs/2103.16302",
    count="at_most",
    differs="width stays as it is; the class token passes through; Token Pooling does not state its baseline's kernel",
)
class StridedConv(GridPooling):
    """Every token is a learned convolution of a window of the grid."""

    @dataclass(frozen=True)
    class Config:
        """The settings of StridedConv."""

        depthwise: bool = True

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        stride = tuple(source // target for source, target in zip(setup.grid, self.target))
        kernel = tuple(s - (t - 1) * step for s, t, step in zip(setup.grid, self.target, stride))
        groups = setup.width if self.config.depthwise else 1
        self.conv = nn.Conv2d(setup.width, setup.width, kernel_size=kernel, stride=stride, groups=groups)
        nn.init.zeros_(self.conv.bias)
        if self.config.depthwise:
            nn.init.constant_(self.conv.weight, 1 / (kernel[0] * kernel[1]))

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """A learned convolution over the windows of the grid."""
        return self.from_grid(tokens, self.conv(self.on_grid(tokens.body)))

    def average(self, image: Tensor) -> Tensor:
        """The mean of every window of the convolution, over an image [B, C, rows, columns]."""
        return F.avg_pool2d(image, self.conv.kernel_size, self.conv.stride)

    def macs(self) -> int:
        """K C^2 for every place of the window."""
        return self.setup.k * self.conv.weight.numel()
