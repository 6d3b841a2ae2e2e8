"""Tuned fine-tuning: what `tpbench tune` found for the methods of a recipe, kept in a file beside the recipe.

The space is small and the same for every method: one trial with the settings of recipe and method, and seven that
set all five lines. The trial with the smallest mean validation loss is chosen, on seeds that no benchmark reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tpbench.errors import UsageError
from tpbench.record import checked
from tpbench.schedule import parse

if TYPE_CHECKING:
    from tpbench.recipe import Optim, Recipe

SEEDS = (10_000,)  # larger than any seed of `tpbench run`


class Trial(NamedTuple):
    """One point of the space, relative to the recipe's fine-tuning.

    lr and the scales are factors; warm-up and frozen are shares of the epochs.
    """

    lr: float
    new_lr_scale: float
    backbone_lr_scale: float = 1.0
    warmup: float = 0.1
    frozen: float = 0.0

    def lines(self, optim: Optim) -> dict[str, float]:
        """The lines of a fine-tuning that this trial changes, with their values."""
        return {
            "lr": self.lr * optim.lr,
            "new_lr_scale": self.new_lr_scale,
            "backbone_lr_scale": self.backbone_lr_scale,
            "warmup_epochs": self.warmup * optim.epochs,
            "frozen_share": self.frozen,
        }


# The learning rates differ, so that methods without new parameters have seven different trials too. For them, the
# second is the recipe's own fine-tuning where that has the same warm-up.
TRIALS = (
    Trial(lr=0.5, new_lr_scale=10.0),
    Trial(lr=1.0, new_lr_scale=5.0),
    Trial(lr=1.5, new_lr_scale=5.0, frozen=0.25),
    Trial(lr=2.0, new_lr_scale=1.0),
    Trial(lr=3.0, new_lr_scale=5.0, backbone_lr_scale=0.5),
    Trial(lr=4.0, new_lr_scale=1.0),
    Trial(lr=8.0, new_lr_scale=1.0, warmup=0.2),
)


def space(optim: Optim) -> list[dict[str, float]]:
    """The lines that each trial changes; the first changes none."""
    return [{}, *(trial.lines(optim) for trial in TRIALS)]


@dataclass(frozen=True)
class Tuned:
    """The trials of one method: mean validation loss (nats) and top-1 (share) of each, and the chosen one's number.

    A trial whose training loss was no longer finite has the loss None.
    """

    chosen: int
    losses: list[float | None]
    top1: list[float | None]


@dataclass(frozen=True)
class Tuning:
    """All tuned methods of a recipe.

    space: the lines that each trial changes; see `space`. trial_images: on how many images a trial trained; None: all.
    """

    recipe: str
    digest: str
    schedule: str
    seeds: list[int]
    space: list[dict[str, float]]
    methods: dict[str, Tuned]
    machine: str = ""
    git: dict[str, Any] = field(default_factory=dict)
    trial_images: int | None = None

    def lines(self) -> dict[str, dict[str, float]]:
        """The lines to change for each method."""
        return {method: self.space[tuned.chosen] for method, tuned in self.methods.items()}


def read(path: Path) -> Tuning:
    """A tuning from its file. Raises UsageError that names a file that cannot be used."""
    try:
        return checked(Tuning, path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"tuning file {path} cannot be used ({error}); run `tpbench tune` again") from error


def previously_tuned(recipe: Recipe, path: Path) -> dict[str, Tuned]:
    """The methods that were tuned for a recipe before; none if the file is missing or for another recipe.

    Raises UsageError for a file that was tuned at another schedule than the recipe's first.
    """
    if not path.exists():
        return {}
    found = read(path)
    if why_unusable(found, recipe):
        return {}
    schedule = parse(recipe.schedules[0]).text
    if found.schedule != schedule:
        raise UsageError(f"{path} was tuned at {found.schedule}; delete it to tune at {schedule}")
    return found.methods


def lines_for(recipe: Recipe, path: Path) -> dict[str, dict[str, float]]:
    """The tuned lines for a recipe from a file. Raises UsageError if it is for another recipe or space."""
    found = read(path)
    if reason := why_unusable(found, recipe):
        remedy = f"run `tpbench tune --recipe {recipe.name}` again or delete the file"
        raise UsageError(f"tuning file {path} {reason}; {remedy}")
    return found.lines()


def why_unusable(found: Tuning, recipe: Recipe) -> str:
    """Why a tuning cannot be used for a recipe; empty where it can."""
    if found.recipe != recipe.name:
        return f"is for recipe {found.recipe!r}, not {recipe.name!r}"
    if found.digest != recipe.digest:
        return f"is for another version of recipe {recipe.name!r}"
    if found.space != space(recipe.finetune):
        return "was made with another space of trials"
    if found.trial_images != recipe.trial_images:
        return f"was made with trials on {found.trial_images or 'all'} images, not {recipe.trial_images or 'all'}"
    return ""
