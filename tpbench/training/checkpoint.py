"""Checkpoints of a training run: after an epoch, or between two steps where a time limit ends it.

FOLDER/progress.json   how far the run is, of which recipe and data, and which checkpoint holds it
FOLDER/epoch2          the engine's weights and optimiser after two epochs
FOLDER/epoch2-step31   the same 31 steps into the third, with every rank's random state
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tpbench.errors import UsageError
from tpbench.record import replace_text
from tpbench.training.ranks import agreed

COSTLY = 10  # a checkpoint that can wait is left out while the last one took more than a tenth of the time since


@dataclass
class Training:
    """What one run did: images seen, seconds of its epochs, mean loss of every epoch, and its pace (training.pace)."""

    images: int = 0
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    pace: dict[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """How far a run is: what it did, and where it is in the epoch under way."""

    training: Training = field(default_factory=Training)
    step: int = 0  # optimiser steps done of the epoch under way
    losses: list[float] = field(default_factory=list)  # of its micro batches
    random: dict[str, Any] | None = None  # this rank's generators there; between epochs they are seeded anew

    @property
    def tag(self) -> str:
        return f"epoch{self.training.epochs}" + (f"-step{self.step}" if self.step else "")


class Keeper:
    """Writes and reads the checkpoints of one run. `identity` says of which recipe and data they are."""

    def __init__(self, folder: Path | None, engine: Any, identity: str, device: torch.device):
        self.folder, self.engine, self.identity, self.device = folder, engine, identity, device
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.written, self.cost = time.monotonic(), 0.0

    def save(self, state: State, extra: dict[str, Any], can_wait: bool = False) -> None:
        """Write a checkpoint, then point `progress.json` at it, then drop the one before."""
        began = time.monotonic()
        if self.folder is None or (can_wait and agreed(began - self.written < COSTLY * self.cost, self.device)):
            return
        if state.step:
            (self.folder / state.tag).mkdir(parents=True, exist_ok=True)
            torch.save(generators(self.device), self.folder / state.tag / f"random-rank{self.rank}.pt")
        self.engine.save_checkpoint(str(self.folder), tag=state.tag, client_state=extra, save_latest=False)
        if self.rank == 0:
            self.point(state)
        self.written = time.monotonic()
        self.cost = self.written - began

    def point(self, state: State) -> None:
        about = {"tag": state.tag, "identity": self.identity, "ranks": self.ranks}
        about |= {"training": asdict(state.training), "step": state.step, "losses": state.losses}
        about |= {"checksums": checksums(self.folder / state.tag)}
        replace_text(self.folder / "progress.json", json.dumps(about))
        for old in self.folder.glob("epoch*"):
            if old.name != state.tag:
                shutil.rmtree(old)

    def load(self) -> tuple[State, dict[str, Any]]:
        """The last state with what was saved beside it, loaded into the engine; or the beginning."""
        if self.folder is None or not (self.folder / "progress.json").exists():
            return State(), {}
        try:
            about = json.loads((self.folder / "progress.json").read_text())
            self.check(about)
            check_files(self.folder / about["tag"], about.get("checksums", {}))
            state = State(Training(**about["training"]), about["step"], about["losses"])
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
                f" ({type(error).__name__}: {' '.join(str(error).split())[:160]}); delete it or run with --fresh"
            ) from error

    def check(self, about: dict[str, Any]) -> None:
        """Refuse what would not end with the numbers of an uninterrupted run."""
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
def tensors_only() -> Iterator[None]:
    """Read checkpoints as tensors and plain values alone, so that no code in a file is executed."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # DeepSpeed has no argument for it
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by name."""
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


def generators(device: torch.device) -> dict[str, Any]:
    """The states of every generator that augmentation, mixup, dropout or a method may draw from."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
