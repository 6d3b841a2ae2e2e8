"""What a record and a budget hold, checked by type when they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeVar

from annotated_types import Len, Predicate
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 2  # 1 kept no outcomes, no seeds and no training settings; it is read with these empty
READABLE = (1, SCHEMA)
T = TypeVar("T")
Digits = Predicate(str.isdecimal)


Number = int | float  # counts are integers, means are not


class Samples(TypedDict):
    """Raw samples in seconds, taken in turns."""

    reduced: Annotated[list[float], Len(1)]
    unreduced: Annotated[list[float], Len(1)]


class Layer(TypedDict):
    """Multiply-adds of one layer per image."""

    name: str
    macs: Number


class Macs(TypedDict, total=False):
    """Multiply-adds per image; see Record."""

    total: Number
    unreduced: Number
    reducers: Number
    closed_form: Number
    live: float
    layers: list[Layer]


class TrainingRun(TypedDict, total=False):
    """One training run: images seen, mean loss of every epoch, seconds, and its pace."""

    images: int
    epochs: int
    steps: int
    seconds: float
    losses: list[float]
    pace: dict[str, Number | list[Number] | None]


class PackedOutcomes(TypedDict):
    """Which test images were classified right, one bit an image; see tpbench.outcomes."""

    images: str
    count: int
    right: str
    tested: NotRequired[str]


class Seeds(TypedDict):
    """What each seed of a cell decides: the split into folds, the base's training, the fine-tuning."""

    split: int
    base: int
    finetune: int


class Code(TypedDict, total=False):
    """The commit that the code came from, and whether files were changed since."""

    commit: str
    changed: bool


@dataclass(slots=True)  # twenty thousand of them fit into memory
class Record:
    """One cell. Seconds, bytes, multiply-adds and shares in [0, 1]; nothing is rounded here.

    metrics is what a rerun must reproduce: {"off_the_shelf_top1", "off_the_shelf_loss", "fine_tuned_top1",
    "fine_tuned_loss", the same for "validation_...", ...}; top1 are shares, not percent.
    tokens: {"blocks": [...], "requested": [...], "achieved": [...], "after_block": [...]}, and for methods whose count
    depends on the image "live": the mean tokens that are no padding.
    macs: {"total", "unreduced", "reducers", "closed_form", "layers": [{"name", "macs"}]}, per image; "live": what total
    would be without padding.
    outcomes: "off_the_shelf" and "fine_tuned" -> the test images that were classified right.
    seeds: what the cell's seed stands for; None in records of schema 1.
    finetune: the lines of the recipe's fine-tuning that were tuned for this method, with their values.
    new_parameters: parameters of the method's own, which start untrained; teacher: whether it learned from one.
    latency: batch size -> {"reduced": [seconds], "unreduced": [seconds]}, raw samples taken in turns.
    unreduced_mode: batch size -> the mode in which the unreduced model was fastest ("eager", "compiled", ...).
    """

    recipe: str
    recipe_digest: str
    machine: str
    method: str
    schedule: str
    seed: int
    title: str = ""
    count: str = "exact"
    unreduced: bool = False
    site: str = "mid"
    config: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    reachable: bool = True  # False: the method cannot meet this budget; see `error`
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, PackedOutcomes] = field(default_factory=dict)
    seeds: Seeds | None = None
    finetune: dict[str, Number] = field(default_factory=dict)
    new_parameters: int = 0
    teacher: bool = False
    tokens: dict[str, list[Number]] = field(default_factory=dict)
    macs: Macs = field(default_factory=dict)
    layers_seconds: dict[str, float] = field(default_factory=dict)
    latency: dict[Annotated[str, Digits], Samples] = field(default_factory=dict)
    unreduced_mode: dict[str, str] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    training: TrainingRun = field(default_factory=dict)
    evaluation: dict[str, int] = field(default_factory=dict)  # images
    data: dict[str, Any] = field(default_factory=dict)  # source, fingerprint, images per part
    environment: dict[str, Any] = field(default_factory=dict)
    git: Code = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def failed(self) -> bool:
        """Whether the cell failed; a budget that a method cannot meet is not a failure."""
        return self.error is not None and self.reachable

    @property
    def file_name(self) -> str:
        """The name of the record's own file while a run is unfinished."""
        return f"{row_name(self.method, self.schedule)}_seed{self.seed}.json"


@dataclass
class Budget:
    """The counts with which a method meets a share of the unreduced model's latency on a machine, and their search.

    tried: {"counts": [...], "reduced": [seconds], "unreduced": [seconds]} for every candidate, samples taken in turns
    at batch size `batch`. counts is None where no candidate came near; `error` says how near.
    """

    machine: str
    method: str
    schedule: str
    batch: int
    blocks: list[int]
    counts: list[int] | None = None
    error: str | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe_digest: str = ""  # "" in files of earlier versions


def checked(kind: type[T], text: str | bytes) -> T:
    """A dataclass from its JSON text, with the types of all its fields checked, nested ones too.

    Raises ValueError that names the first field that does not fit, or is unknown or missing.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValueError as error:  # pydantic's ValidationError
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}") from error


@cache
def _adapter(kind: type) -> TypeAdapter:
    from pydantic import TypeAdapter  # here, because listing methods reads no record

    return TypeAdapter(kind)


@cache
def row_name(method: str, schedule: str) -> str:
    """What a row of a table is called in file names."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', method).strip('-')}_{slug(schedule)}"


def slug(text: str) -> str:
    """Letters, digits, dots and dashes only: "0.7@3,6,9" becomes "0.7-at-3-6-9"."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("@", " at ")).strip("-").lower()
