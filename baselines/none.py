"""The unreduced model: the reference of every comparison, trained for as long as the others."""

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register("none", title="Unreduced model", unreduced=True)
class Unreduced(Downsampler):
    """Keeps every token."""

    reduces = False

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """The tokens as they are."""
        return tokens
