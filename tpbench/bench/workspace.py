"""The workspace of a benchmark: its folder, device and data, and what the folder already holds.

Layout of the folder: see `tpbench.record`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from tpbench import environment, registry
from tpbench.bench.claim import Claims
from tpbench.bench.models import cell_seeds, settings, split_seed
from tpbench.bench.plan import Cell, Plan
from tpbench.bench.results_folder import (
    check_records,
    delete_leftovers,
    is_done,
    locked,
    record_of,
    refuse_other_recipes,
    refuse_others,
)
from tpbench.errors import OutOfTime, Unreachable, UsageError
from tpbench.measure import timings
from tpbench.record import Record, Store, host_id, read_budget, row_name
from tpbench.report import contrast
from tpbench.schedule import Schedule
from tpbench.training import data, ranks
from tpbench.training.data import Parts
from tpbench.training.train import Conditions


class Workspace:
    """What the jobs of one process share: the plan, the device, the data and the paths of results."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.recipe = plan.recipe
        self.out = plan.out
        for path in plan.plugins:
            registry.plug(path)
        if plan.deterministic:
            environment.make_deterministic()
        self.device = environment.device(plan.device)
        self.dtype = environment.dtype(plan.recipe.dtype, self.device)
        self.work = plan.out / "work"
        shares = ranks.world_size() == 1 and self.recipe.can_share(self.device.type)
        self.workers = self.recipe.workers if shares else 1
        self.writes = ranks.rank() == 0
        self.claims = Claims(plan.out, plan.recipe.digest)
        self.splits: dict[int, Parts] = {}

    def data(self, seed: int) -> Parts:
        """The recipe's images in a seed's split, read when they are first needed."""
        drawn = split_seed(self.recipe, seed)
        if drawn not in self.splits:
            self.splits = {drawn: data.load(self.recipe.data, self.device, drawn)}  # one split in memory
        return self.splits[drawn]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the images, independently of the split."""
        return self.data(0).fingerprint

    def conditions(self, seed: int, digest: str | None = None) -> Conditions:
        """What all training runs of a seed share. digest: of the lines that decide the training; default: all."""
        return Conditions(
            data=self.data(seed),
            dtype=self.dtype,
            identity=f"{digest or self.recipe.digest} {self.fingerprint}",
            deadline=self.plan.deadline,
        )

    @cached_property
    def machine(self) -> str:
        """This machine's name in the folder; see `environment.machine`."""
        return environment.machine(self.device, host_id(self.work))

    @cached_property
    def store(self) -> Store:
        """The folder's records, as they were at the first access."""
        return Store.of(self.out)

    def check_time(self) -> None:
        """Raise OutOfTime after the time limit, so that no further work begins. All ranks must call this."""
        if self.plan.deadline is not None and ranks.rank_0_answer(self.past_deadline, self.device):
            raise OutOfTime

    @property
    def past_deadline(self) -> bool:
        """Whether the time limit has passed by this process's clock."""
        return self.plan.deadline is not None and time.monotonic() >= self.plan.deadline

    def on_first_rank(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Call work(check) on the first rank while the others wait; OutOfTime ends it on all of them.

        check() raises OutOfTime after the time limit. `check_time` would wait for the other ranks.
        """
        out_of_time = False
        if self.writes:
            try:
                work(self.check_own_clock)
            except OutOfTime:
                out_of_time = True
        if ranks.rank_0_answer(out_of_time, self.device):
            raise OutOfTime

    def check_own_clock(self) -> None:
        """`check_time` by this process's clock alone."""
        if self.past_deadline:
            raise OutOfTime

    def same_on_all_ranks(self, number: int) -> int:
        """The first rank's number, on every rank."""
        return ranks.rank_0_number(number, self.device)

    # ------------------------------------------------------------------------------------ the folder

    def prepare(self, fresh: bool) -> None:
        """Create the folders and, with `fresh`, delete this machine's results.

        Raises UsageError for a folder of another recipe, and with `fresh` where other processes work in it.
        """
        if ranks.world_size() > 1:
            ranks.connect(self.device)
        if self.writes:
            self.work.mkdir(parents=True, exist_ok=True)
            with locked(self.out):
                if fresh:
                    refuse_others(self.out, "wait for it, or leave out --fresh to join it")
                refuse_other_recipes(self.out, self.recipe.digest)
                delete_leftovers(self.out)
                host_id(self.work)
                check_records(Store.of(self.out), recipe=self.recipe, machine=self.machine, fresh=fresh)
                contrast.declare(self.out, self.recipe)
                if fresh:
                    self._delete_everything()
        ranks.barrier()

    def check_images(self) -> None:
        """Raise UsageError for unreadable images, or if this machine's records were measured on other images."""
        if not self.writes:
            return
        fingerprint = self.fingerprint  # computed even where there is no record, so that unreadable images are refused
        for record in self.store:
            if record.machine == self.machine and record.data.get("fingerprint", fingerprint) != fingerprint:
                raise UsageError(
                    f"{self.out} holds results on other images ({record.file_name}); use --fresh or another --out"
                )

    def _delete_everything(self) -> None:
        for kept in ("records", "spectra", "starts", "budgets"):
            shutil.rmtree(self.out / kept / self.machine, ignore_errors=True)
        (self.out / "records" / f"{self.machine}.jsonl").unlink(missing_ok=True)
        timings.path_in(self.out, self.machine).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.is_dir() and path.name != "claims":
                shutil.rmtree(path)
            elif path.name not in ("host-id", "claims"):
                path.unlink()

    def delete(self, folder: Path) -> None:
        """Delete a folder of checkpoints that is no longer needed."""
        if self.writes:
            shutil.rmtree(folder, ignore_errors=True)

    def record_path(self, cell: Cell) -> Path:
        """The path of a cell's record; packing moves records into one file per machine."""
        name = f"{row_name(str(cell.variant), cell.schedule.text)}_seed{cell.seed}.json"
        return self.out / "records" / self.machine / name

    def budget_path(self, cell: Cell) -> Path:
        """The path of the counts for a share of latency: one file for all seeds."""
        name = f"{row_name(str(cell.variant), cell.schedule.text)}.json"
        return self.out / "budgets" / self.machine / name

    def spectrum_path(self, seed: int) -> Path:
        """The path of the spectrum of a seed's base."""
        return self.out / "spectra" / self.machine / f"seed{seed}.json"

    def starts_path(self, seed: int) -> Path:
        """The path of the clustering objectives of a seed's base."""
        return self.out / "starts" / self.machine / f"seed{seed}.json"

    def checkpoint_folder(self, cell: Cell) -> Path:
        """The folder of a cell's checkpoints during training."""
        return self.work / "cells" / self.record_path(cell).stem

    # ------------------------------------------------------------------------------------ cells

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell was measured or is known to be unreachable. Failed cells are tried again."""
        return is_done(record_of(self.store, self.machine, cell), cell, self.recipe)

    def schedule(self, cell: Cell) -> Schedule:
        """The cell's schedule; for a share of latency, with the counts that were found by measuring.

        Raises Unreachable if there are none.
        """
        if not cell.needs_latency:
            return cell.schedule
        found = read_budget(self.budget_path(cell))
        if found.recipe_digest not in ("", self.recipe.digest):
            path = self.budget_path(cell)
            raise UsageError(f"{path} was solved for another version of the recipe; delete it or run with --fresh")
        if found.counts is None:
            raise Unreachable(found.error)
        return cell.schedule.with_counts(found.counts)

    def new_record(self, cell: Cell) -> Record:
        """A cell's record before anything is measured: the settings, the machine and the code."""
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
            seeds=cell_seeds(self.recipe, cell.variant, cell.seed),
            finetune=self.recipe.tuned_lines(cell.variant.method),
            data=self.data(cell.seed).description,
            environment=environment.describe(self.device, self.dtype),
            git=environment.git(),
        )
