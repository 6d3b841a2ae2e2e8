"""The contract between the harness and a method of token reduction.

A method is a subclass of Downsampler, registered under a name. The harness makes one instance for every block that
reduces, passes it the tokens and the parts of the block's attention that it needs, and gets fewer tokens back. The
harness decides by the flags of a method, never by its name.

B batch, P prefix tokens, N body tokens that arrive, K body tokens that are left, H heads, D head width, C width.
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
    """What a method must see of the block. What no method needs is not computed."""

    NONE = 0
    KEYS = auto()
    VALUES = auto()
    CLS = auto()
    RECEIVED = auto()
    QUERIES = auto()
    INPUT = auto()
    SHIFT = auto()
    ATTENTION = KEYS | VALUES | CLS | RECEIVED | QUERIES  # computed within the attention


class Probe(NamedTuple):
    """What a method sees of the block that reduces. Fields that it does not need are None.

    keys, values [B, H, P + N, D]  after any query/key normalisation, before any rotation
    cls      [B, N]  attention that the class token pays to each body token, mean over heads
    received [B, N]  attention that each body token gets: summed over all queries, mean over heads
    own      [B, N]  the part of `received` that the token pays to itself (the diagonal)
    queries, rotated_keys [B, H, P + N, D]  queries times the scale, and the keys that they are compared with, both
             rotated if the model has a rotary embedding: softmax(queries rotated_keys^T) is the attention without key
             weights
    input    [B, P + N, C]  the input of the attention: the block's normalised tokens
    shift    [B, N] float32  how far the branch before the site moved each body token (L2): the attention at the site
             mid, the MLP at the site end; without gradient
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    cls: Tensor | None = None
    received: Tensor | None = None
    own: Tensor | None = None
    queries: Tensor | None = None
    rotated_keys: Tensor | None = None
    input: Tensor | None = None
    shift: Tensor | None = None


class Setup(NamedTuple):
    """The place of one instance in the model: the tokens that arrive and the number that must be left."""

    block: int  # 0-based index of the block
    stage: int  # 0-based index among the blocks that reduce
    stages: int  # how many blocks reduce
    tokens: int  # N: body tokens that arrive
    k: int  # K: body tokens that must be left
    patches: int  # body tokens the model starts with
    width: int  # C
    heads: int  # H
    grid: tuple[int, int] | None  # grid of the arriving tokens, if they lie on one
    prefix: int = 1  # P


class Output(NamedTuple):
    """What a token model returns in every mode.

    logits [B, classes], the tokens after the final norm, and the number of body tokens after each block.
    """

    logits: Tensor
    tokens: Tokens
    counts: tuple[int, ...]


class Downsampler(nn.Module):
    """The base of all methods. The harness makes one instance for every block that reduces."""

    needs: ClassVar[Needs] = Needs.NONE
    reduces: ClassVar[bool] = True  # False: the method is the unreduced model and has no schedule
    weighted_attention: ClassVar[bool] = False  # later attention counts keys by size or key_weight
    masks: ClassVar[bool] = False  # tokens are hidden and none is removed; about K stay alive
    teacher: ClassVar[bool] = False  # `objective` is called with the unreduced model's Output
    backbone_lr_scale: ClassVar[float] = 1.0  # learning rate of the backbone relative to the method's parameters
    search: ClassVar[type[Search] | None] = None  # how the method's paper learns K, if it does
    frozen_share: ClassVar[float] = 0.0  # share of the fine-tuning during which the backbone is not trained

    @dataclass(frozen=True)
    class Config:
        """The method's own settings, with their types, ranges and defaults."""

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
    def tokens_out(self) -> int:
        """Body tokens that go on to the next layer: K, or all that arrived if the method only masks tokens."""
        return self.setup.tokens if self.masks else self.setup.k

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Reduce tokens with setup.tokens body tokens (x of shape [B, P + N, C]) to tokens with setup.k of them.

        A method that draws at random uses torch's default generator. The harness seeds it before every epoch,
        evaluation and measurement, in the same way for all methods.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def objective(self, out: Output, teacher: Output) -> dict[str, Tensor]:  # noqa: ARG002
        """Further loss terms (scalars, by name) from the outputs of the student and of the frozen teacher.

        The harness calls it on the last instance only, if the class sets `teacher`.
        """
        return {}

    def macs(self) -> int:
        """Multiply-adds of this instance for one image at inference, in closed form.

        They must equal what the counter finds: matrix products and registered custom operators count; sorting,
        gathering and adding do not. The harness adds the cost of the probe.
        """
        return 0

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        """The number of body tokens that come out when k are asked for, and their grid (None: on no grid).

        By default exactly k, on no grid. Raises Unreachable for a k that the method cannot meet.
        """
        del tokens, grid
        return k, None

    def extra_repr(self) -> str:
        """The block, the numbers of tokens and the settings, as torch prints them."""
        return f"block={self.setup.block}, tokens={self.setup.tokens} -> {self.setup.k}, {self.config}"


class Search(Downsampler):
    """The base of searches for K (`tpbench search`), with one instance for every block.

    No token is removed during the search. The parameters and the Config are those of the search. The learned counts
    work with any method.
    """

    masks = True

    def kept(self, arriving: Tensor) -> Tensor:
        """The number of arriving tokens to keep, as learned so far: a real-valued scalar with a gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not implement kept")

    def penalty(self, share: Tensor) -> Tensor:
        """This block's term of the loss. share is the cost of all blocks' `kept` as a share of the unreduced MACs."""
        raise NotImplementedError(f"{type(self).__name__} does not implement penalty")
