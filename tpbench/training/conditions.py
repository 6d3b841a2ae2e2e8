"""What training runs are given: the images, the precision, the deadline, and how progress is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tpbench.training.data import Parts


@dataclass(frozen=True)
class Conditions:
    """What all training runs of one benchmark have in common.

    data holds the images; dtype is that of the forward and backward pass; identity names recipe and data, and a
    checkpoint of another identity is rejected; deadline, in seconds of time.monotonic(), ends a run between two steps.
    settings is what decides one training beside these: a checkpoint with others is not continued.
    """

    data: Parts
    dtype: torch.dtype = torch.float32
    identity: str = ""
    deadline: float | None = None
    settings: str = ""


class Update(Protocol):
    """How a job reports its progress to the user."""

    def __call__(self, text: str = "", share: float | None = None) -> None:
        """Report a text (empty: unchanged) and the share of the job's work that is done, if it is known."""


def no_update(text: str = "", share: float | None = None) -> None:
    """Report nothing."""
