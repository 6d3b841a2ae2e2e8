"""The workspace of a benchmark: its folder, device and data, and what the folder already holds.

Layout of the folder: see `tpbench.record`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from tpbench import environment, registry
from tpbench.bench.models import seeds, settings, split
from tpbench.bench.plan import Cell, Plan
from tpbench.errors import OutOfTime, Unreachable, UsageError
from tpbench.measure import timings
from tpbench.record import SCHEMA, Record, host_id, read, read_budget, row_name
from tpbench.schedule import Schedule
from tpbench.training import data, ranks
from tpbench.training.data import Parts
from tpbench.training.train import Conditions


class Workspace:
    """What the jobs of one process share: the plan, the device, the data, and where things are kept."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.recipe = plan.recipe
        self.out = plan.out
        for path in plan.plugins:
            registry.plug(path)
        self.device = environment.device(plan.device)
        self.dtype = environment.dtype(plan.recipe.dtype, self.device)
        self.work = plan.out / "work"
        self.workers = plan.recipe.workers if self.device.type == "cpu" and ranks.ranks() == 1 else 1
        self.writes = ranks.rank() == 0
        self.splits: dict[int, Parts] = {}

    def data(self, seed: int) -> Parts:
        """The recipe's images as a seed splits them, read when they are first needed."""
        drawn = split(self.recipe, seed)
        if drawn not in self.splits:
            self.splits = {drawn: data.load(self.recipe.data, self.device, drawn)}  # one in memory
        return self.splits[drawn]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the images, however they are split."""
        return self.data(0).fingerprint

    def conditions(self, seed: int) -> Conditions:
        """What all training runs of a seed share."""
        return Conditions(
            data=self.data(seed),
            dtype=self.dtype,
            identity=f"{self.recipe.digest} {self.fingerprint}",
            deadline=self.plan.deadline,
        )

    @cached_property
    def machine(self) -> str:
        """This machine's name in the folder; see `environment.machine`."""
        return environment.machine(self.device, host_id(self.work))

    def check_time(self) -> None:
        """Raise OutOfTime after the time limit, so that no further work begins."""
        deadline = self.plan.deadline
        if deadline is not None and ranks.agreed(time.monotonic() >= deadline, self.device):
            raise OutOfTime

    # ------------------------------------------------------------------------------------ the folder

    def prepare(self, fresh: bool) -> None:
        """Make the folders, refuse those of another recipe, and with `fresh` delete what this machine has done."""
        if ranks.ranks() > 1:
            ranks.connect(self.device)
        if self.writes:
            self.work.mkdir(parents=True, exist_ok=True)
            for part in self.out.rglob(".*.part"):  # left by a process that was killed while it wrote
                part.unlink(missing_ok=True)
            host_id(self.work)
            for path in sorted((self.out / "records").glob("*/*.json")):
                self._check_recipe(read(path), fresh)
            if fresh:
                self._delete_everything()
        ranks.wait()

    def check_images(self, fresh: bool) -> None:
        """Refuse a folder whose records of this machine were measured on other images, or unreadable images."""
        if not self.writes:
            return
        for path in sorted((self.out / "records" / self.machine).glob("*.json")):
            if read(path).data.get("fingerprint", self.fingerprint) != self.fingerprint and not fresh:
                raise UsageError(
                    f"{self.out} holds results on other images ({path.name}); use --fresh or another --out"
                )

    def _check_recipe(self, record: Record, fresh: bool) -> None:
        if record.recipe != self.recipe.name:
            raise UsageError(
                f"{self.out} holds results of recipe {record.recipe!r}, not {self.recipe.name!r}; choose another --out"
            )
        if record.machine == self.machine and record.recipe_digest != self.recipe.digest and not fresh:
            raise UsageError(
                f"{self.out} holds results of another version of recipe {record.recipe!r}; use --fresh or another --out"
            )

    def _delete_everything(self) -> None:
        for kept in ("records", "spectra", "starts", "budgets"):
            shutil.rmtree(self.out / kept / self.machine, ignore_errors=True)
        timings.path_in(self.out, self.machine).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("host-id", "lock"):
                path.unlink()

    def delete(self, folder: Path) -> None:
        """Delete a checkpoint that is no longer needed."""
        if self.writes:
            shutil.rmtree(folder, ignore_errors=True)

    def record_path(self, cell: Cell) -> Path:
        name = f"{row_name(str(cell.variant), cell.schedule.text)}_seed{cell.seed}.json"
        return self.out / "records" / self.machine / name

    def budget_path(self, cell: Cell) -> Path:
        name = f"{row_name(str(cell.variant), cell.schedule.text)}.json"
        return self.out / "budgets" / self.machine / name

    def spectrum_path(self, seed: int) -> Path:
        return self.out / "spectra" / self.machine / f"seed{seed}.json"

    def starts_path(self, seed: int) -> Path:
        return self.out / "starts" / self.machine / f"seed{seed}.json"

    def checkpoint_folder(self, cell: Cell) -> Path:
        return self.work / "cells" / self.record_path(cell).stem

    # ------------------------------------------------------------------------------------ cells

    def done(self, cell: Cell) -> bool:
        """Whether a cell was measured or is known to be unreachable. Failed cells are tried again."""
        path = self.record_path(cell)
        if not path.exists():
            return False
        known = read(path)
        asked = cell.schedule.counts
        if asked and known.tokens and known.tokens["requested"] != list(asked):  # learned again under the same name
            return False
        if known.schema == SCHEMA and known.finetune != self.recipe.tuned.get(cell.variant.method, {}):
            return False  # tuned again since
        return known.error is None or not known.reachable

    def schedule(self, cell: Cell) -> Schedule:
        """The cell's schedule; for a share of latency, the counts that were found by measuring.

        Raises Unreachable where none were found.
        """
        if not cell.needs_clock:
            return cell.schedule
        found = read_budget(self.budget_path(cell))
        if found.counts is None:
            raise Unreachable(found.error)
        return cell.schedule.counting(found.counts)

    def new_record(self, cell: Cell) -> Record:
        """A cell's record before anything is measured: what runs, on what, with which code."""
        own = settings(self.recipe, cell.variant)
        config = registry.configure(registry.method(cell.variant.method), own.method)
        card = cell.variant.card
        return Record(
            recipe=self.recipe.name,
            recipe_digest=self.recipe.digest,
            machine=self.machine,
            method=str(cell.variant),
            schedule=cell.schedule.text,
            seed=cell.seed,
            title=cell.variant.title,
            count=card.count,
            unreduced=card.unreduced,
            site=str(own.site),
            config=asdict(config),
            seeds=seeds(self.recipe, cell.variant, cell.seed),
            finetune=self.recipe.tuned.get(cell.variant.method, {}),
            data=self.data(cell.seed).description,
            environment=environment.describe(self.device, self.dtype),
            git=environment.git(),
        )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a results folder alone; a second run in it is refused. The lock ends with the process that holds it."""
    if ranks.rank() != 0:
        yield
        return
    (out / "work").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "work" / "lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"{out} is being written by another run; wait for it or choose another --out") from None
