"""What is measured or learned besides the cells: a profile, a search's counts, a base's spectrum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tpbench.record.schema import Macs, Number, Samples


@dataclass(kw_only=True)
class Profile:
    """One model and method without training (`tpbench profile --json`); the names are those of a Record.

    mode: how the reduced model ran ("eager", "compiled", ...). layers_seconds: median seconds of each layer at the
    largest batch size, and of all "other" operations. trace: the file of the trace, where one was asked for.
    """

    model: str
    method: str
    schedule: str
    site: str
    mode: str
    tokens: dict[str, list[Number]]
    macs: Macs
    layers_seconds: dict[str, float]
    latency: dict[str, Samples]
    unreduced_mode: dict[str, str]
    peak_memory_bytes: dict[str, int]
    environment: dict[str, Any]
    trace: str | None = None


@dataclass(kw_only=True)
class Learned:
    """How many tokens each block keeps, as one method's search has learned on the base of a seed.

    counts: K after every block; kept: the learned real numbers that they are rounded down from. patches: the tokens
    that the model starts with. off_the_shelf: {"macs_share", "validation_top1"} of the method at these counts.
    """

    method: str
    search: str
    recipe: str = ""
    machine: str = ""
    seed: int = 0
    patches: int
    counts: list[int]
    kept: list[float]
    config: dict[str, Any] = field(default_factory=dict)  # the settings of the search
    optim: dict[str, Any] = field(default_factory=dict)
    backbone_lr_scale: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    off_the_shelf: dict[str, float]


@dataclass(kw_only=True)
class Gains:
    """What attention does to frequencies.

    gains: by block, head and band; the first band is the constant. high_over_low: the gain of the upper half of the
    frequencies over that of their lowest quarter, geometric mean over blocks and heads.
    """

    gains: list[list[list[float]]]
    high_over_low: float


@dataclass(kw_only=True)
class Spectrum:
    """The gains of a base's attention: with the keys as queries, as it is, and with all keys at their mean norm.

    images: how many were measured. kernel: the gains of the exact case. key_norm_variation: standard deviation over
    mean of the keys' norms, by block.
    """

    recipe: str = ""
    recipe_digest: str = ""
    seed: int = 0
    images: int
    kernel: list[list[list[float]]]
    key_norm_variation: list[float]
    at_the_keys: Gains
    as_it_is: Gains
    one_key_norm: Gains
