"""Checkpoints of a training run: after an epoch, or between two steps where a time limit ends it.

FOLDER/progress.json   how far the run is, its recipe and data, and the name of its checkpoint
FOLDER/epoch2          the engine's weights and optimiser after two epochs
FOLDER/epoch2-step31   the same, 31 steps into the third epoch, with every rank's random state
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tpbench.errors import UsageError, in_short
from tpbench.record import replace_text
from tpbench.training.randomness import generators
from tpbench.training.ranks import rank_0_answer

COSTLY = 10  # a checkpoint that can wait is skipped if the last one took more than a tenth of the time since then
FULL = 2**20  # a disk with fewer free bytes after a failed write is full


@dataclass
class Training:
    """What a run has done: images, epochs, optimiser steps, seconds, the mean loss of every epoch, and its pace."""

    images: int = 0
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    pace: dict[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """How far a run is: what it has done, and where it is in the current epoch."""

    training: Training = field(default_factory=Training)
    step: int = 0  # optimiser steps done in the current epoch
    losses: list[float] = field(default_factory=list)  # of the micro batches of the current epoch
    random: dict[str, Any] | None = None  # this rank's generators at that step; None between epochs, which seed them

    @property
    def tag(self) -> str:
        """The name of the checkpoint's folder."""
        step = f"-step{self.step}" if self.step else ""
        return f"epoch{self.training.epochs}{step}"


class Checkpoints:
    """Writes and reads the checkpoints of one run; without a folder, none.

    identity names the recipe and the data; a checkpoint of another identity is refused. settings names what else
    decides the run; a checkpoint of other settings is not continued, and the run begins again.
    """

    def __init__(self, folder: Path | None, engine: Any, *, identity: str, settings: str, device: torch.device):
        self.folder = folder
        self.engine = engine
        self.identity = identity
        self.settings = settings
        self.device = device
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        self.written = time.monotonic()
        self.cost = 0.0  # seconds that the last checkpoint took

    def save(self, state: State, extra: dict[str, Any], can_wait: bool = False) -> None:
        """Write a checkpoint, then name it in `progress.json`, then delete the previous one. All ranks call this.

        extra is kept beside the weights; a checkpoint that can wait may be skipped (see COSTLY).
        """
        began = time.monotonic()
        if self.folder is None or (can_wait and rank_0_answer(began - self.written < COSTLY * self.cost, self.device)):
            return
        with name_full_disk(self.folder):
            if state.step:
                (self.folder / state.tag).mkdir(parents=True, exist_ok=True)
                torch.save(generators(self.device), self.folder / state.tag / f"random-rank{self.rank}.pt")
            self.engine.save_checkpoint(str(self.folder), tag=state.tag, client_state=extra, save_latest=False)
        if self.rank == 0:
            self.set_current(state)
        self.written = time.monotonic()
        self.cost = self.written - began

    def set_current(self, state: State) -> None:
        """Name the checkpoint of a state in `progress.json`, and delete all others."""
        about = {
            "tag": state.tag,
            "identity": self.identity,
            "settings": self.settings,
            "ranks": self.ranks,
            "training": asdict(state.training),
            "step": state.step,
            "losses": state.losses,
            "checksums": checksums(self.folder / state.tag),
        }
        replace_text(self.folder / "progress.json", json.dumps(about))
        for old in self.folder.glob("epoch*"):
            if old.name != state.tag:
                shutil.rmtree(old)

    def load(self) -> tuple[State, dict[str, Any]]:
        """Load the last checkpoint into the engine; its state, and the extra that was saved with it.

        Without a checkpoint the state is the beginning and the extra empty. Raises UsageError for a checkpoint that
        is damaged or belongs to another run.
        """
        if self.folder is None or not (self.folder / "progress.json").exists():
            return State(), {}
        try:
            about = json.loads((self.folder / "progress.json").read_text())
            self.check(about)
            if about.get("settings", "") != self.settings:
                return State(), {}
            check_files(self.folder / about["tag"], expected=about.get("checksums", {}))
            state = State(Training(**about["training"]), step=about["step"], losses=about["losses"])
            with tensors_only():
                _, extra = self.engine.load_checkpoint(str(self.folder), tag=state.tag, load_lr_scheduler_states=False)
            if state.step:
                path = self.folder / state.tag / f"random-rank{self.rank}.pt"
                state.random = torch.load(path, weights_only=True)
            return state, extra
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"checkpoint {self.folder} cannot be read"
                f" ({type(error).__name__}: {in_short(error, 160)}); delete it or run with --fresh"
            ) from error

    def check(self, about: dict[str, Any]) -> None:
        """Raise UsageError for a checkpoint from which a run would end with other numbers than an uninterrupted one."""
        if about["identity"] != self.identity:
            raise UsageError(
                f"checkpoint {self.folder} belongs to another recipe or other data; run with --fresh or another --out"
            )
        if about["step"] and about["ranks"] != self.ranks:
            raise UsageError(
                f"checkpoint {self.folder} was left within an epoch by {about['ranks']} ranks and cannot be continued"
                f" by {self.ranks}; continue with as many, or delete it"
            )


@contextlib.contextmanager
def name_full_disk(folder: Path) -> Iterator[None]:
    """Raise OSError with the folder if torch could not write because the disk is full; its own error says neither."""
    try:
        yield
    except RuntimeError as error:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if shutil.disk_usage(there).free >= FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Read nothing but tensors and plain values from checkpoints, so that no code in a file is executed.

    The three classes are those that DeepSpeed's ZeRO writes beside its tensors.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # DeepSpeed has no argument for it
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 checksum of every file of a checkpoint, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_files(folder: Path, expected: dict[str, str]) -> None:
    """Raise ValueError for a checkpoint file that is missing or was changed since it was written.

    Checkpoints of earlier versions have no checksums and pass.
    """
    known = checksums(folder)
    for name, checksum in expected.items():
        if known.get(name) != checksum:
            raise ValueError(f"{name} is missing" if name not in known else f"{name} was changed since it was written")
