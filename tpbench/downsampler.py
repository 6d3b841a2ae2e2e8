"""The contract between the harness and a method of token reduction.

A method is one subclass of Downsampler, registered under its name. The harness makes one instance for every block
that reduces, gives it the tokens and what it asked to see of the block's attention, and takes fewer tokens back.
It asks a method for its flags and never for its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from tpbench.tokens import Tokens


class Site(StrEnum):
    """Where in a block tokens are reduced."""

    MID = "mid"  # after the attention residual, before the MLP
    END = "end"  # after the block (the same as before the next one)


class Needs(Flag):
    """What a method must see of the block's attention; it is paid for only when asked for."""

    NONE = 0
    KEYS = auto()
    VALUES = auto()
    CLS = auto()
    RECEIVED = auto()


class Probe(NamedTuple):
    """The attention of the block that reduces (H heads, D head width); what was not asked for is None.

    keys, values [B, H, P + N, D]  after any query/key normalisation, before any rotation
    cls      [B, N]  attention that the class token pays to each body token, mean over heads
    received [B, N]  attention that each body token gets: summed over all queries, mean over heads
    own      [B, N]  the part of `received` that the token pays to itself (the diagonal)
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    cls: Tensor | None = None
    received: Tensor | None = None
    own: Tensor | None = None


class Setup(NamedTuple):
    """The place of one instance: what it will meet and what it must reach."""

    block: int  # 0-based index of the block
    stage: int  # 0-based index among the blocks that reduce
    stages: int  # how many blocks reduce
    tokens: int  # N: body tokens that arrive
    k: int  # K: body tokens that must leave
    patches: int  # body tokens the model starts with
    width: int  # C
    heads: int  # H
    grid: tuple[int, int] | None  # grid of the arriving tokens, if they lie on one
    prefix: int = 1  # P


class Output(NamedTuple):
    """What a token model returns in every mode.

    logits [B, classes], the tokens behind the final norm, and the body tokens that left each block.
    """

    logits: Tensor
    tokens: Tokens
    counts: tuple[int, ...]


class Count(StrEnum):
    """How a method meets the requested number of tokens."""

    EXACT = "exact"
    AT_MOST = "at_most"
    MASKED = "masked"  # no token is removed; about K stay alive


class Downsampler(nn.Module):
    """One instance per reducing block; a subclass is a method."""

    needs: ClassVar[Needs] = Needs.NONE
    reduces: ClassVar[bool] = True  # False: the method is the unreduced model and has no schedule
    weighted_attention: ClassVar[bool] = False  # later keys count by size or key_weight (proportional attention)
    masks: ClassVar[bool] = False  # tokens are hidden and none is removed; K is the number meant to stay alive
    teacher: ClassVar[bool] = False  # the harness supplies the unreduced model's Output to `objective`
    backbone_lr_scale: ClassVar[float] = 1.0  # learning rate of the backbone relative to the method's parameters
    search: ClassVar[type[Search] | None] = None  # how the method's paper learns K, if it does
    frozen_share: ClassVar[float] = 0.0  # share of the fine-tuning during which the backbone stands still

    @dataclass(frozen=True)
    class Config:
        """The method's own knobs; defaults stand here and nowhere else."""

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__()
        self.setup = setup
        self.config = config if config is not None else self.Config()
        self.needs = self.asks(self.config)

    @classmethod
    def asks(cls, config: Config) -> Needs:  # noqa: ARG003
        """What the method must see of the attention under these settings."""
        return cls.needs

    @property
    def leaves(self) -> int:
        """Body tokens that leave: K, or all that arrived where tokens are only hidden."""
        return self.setup.tokens if self.masks else self.setup.k

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """tokens with setup.tokens body tokens -> tokens with setup.k of them.

        A method that draws uses torch's default generator: the harness seeds it before every epoch, evaluation and
        measurement, alike for all methods.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it reduces")

    def objective(self, out: Output, teacher: Output) -> dict[str, Tensor]:  # noqa: ARG002
        """Extra loss terms from the student's and the frozen teacher's output; asked of the last instance."""
        return {}

    def macs(self) -> int:
        """Multiply-adds this instance spends on one image at inference, in closed form.

        The same as the counter must find: matrix products and registered custom operators; sorting, gathering
        and adding count nothing. The probe's own cost is the harness's to count.
        """
        return 0

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        """Body tokens (and their grid) that come out when k are asked for. Exact methods: k of them, on no grid."""
        del tokens, grid
        return k, None

    def extra_repr(self) -> str:
        return f"block={self.setup.block}, tokens={self.setup.tokens} -> {self.setup.k}, {self.config}"


class Search(Downsampler):
    """One instance for every block while K is learned (`tpbench search`); no token is removed meanwhile.

    Its parameters and its Config are the search's own. What is learned are counts that any method can then use.
    """

    masks = True

    def kept(self, arriving: Tensor) -> Tensor:
        """Tokens to keep of those that arrive, as learned so far: scalars, not whole numbers; differentiable."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it has learned")

    def penalty(self, share: Tensor) -> Tensor:
        """This block's term of the loss; share is that of the unreduced model's MACs which all `kept` together cost."""
        raise NotImplementedError(f"{type(self).__name__} has no reason to keep fewer tokens")
