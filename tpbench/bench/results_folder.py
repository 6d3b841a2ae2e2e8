"""What a results folder already holds, read without loading torch, a model or images."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tpbench import environment
from tpbench.bench.claim import FOLDER, Claims, Holder
from tpbench.bench.plan import Cell, Plan
from tpbench.errors import UsageError
from tpbench.measure import timings
from tpbench.measure.timings import Row, Session
from tpbench.recipe import Recipe
from tpbench.record import SCHEMA, Record, Store, host_id, sweep, without_garbage_collection

PATIENCE = 300.0  # seconds to wait for a folder that another process holds; packing and reports take less


@without_garbage_collection()
def records_if_finished(plan: Plan) -> list[Record] | None:
    """The records of a plan if all its cells were measured and timed on this machine, None if work is left.

    Also None with several ranks, which have to agree. Raises UsageError for a folder of another recipe, and for records
    of this machine that cannot be read. Loads torch only if this machine may have a GPU.
    """
    work = plan.out / "work"
    if "RANK" in os.environ or not (work / "host-id").exists():
        return None
    machine = environment.machine_of(plan.device, host_id(work))
    with locked(plan.out):
        delete_leftovers(plan.out)
        store = Store.of(plan.out)
        check_records(store, plan.recipe, machine)
        if not all(is_done(record_of(store, machine, cell), cell, plan.recipe) for cell in plan.cells):
            return None
        if timing_left(plan, machine):
            return None
    return pack_if_complete(plan, machine)


def delete_leftovers(out: Path) -> None:
    """Delete what killed processes left in a folder, unless others may be writing. The caller must hold the folder."""
    claims = Claims(out)
    claims.delete_dead()
    if not claims.others():
        sweep(out)
        for trained in (out / "work").glob("base_seed*.safetensors"):
            shutil.rmtree(trained.with_suffix(""), ignore_errors=True)  # its checkpoints, no longer needed


def delete_checkpoints(out: Path, records: Iterable[Record | None]) -> None:
    """Delete the checkpoints of measured cells, which remain where a process was killed before it deleted them."""
    folders = {folder.name: folder for folder in (out / "work" / "cells").glob("*")}
    if not folders:
        return
    for record in records:
        if record is not None and record.error is None:
            folder = folders.get(Path(record.file_name).stem)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


class RecordChanged:
    """Tells whether a cell's record has changed since this was made: a worker has finished the cell or failed."""

    def __init__(self, plan: Plan, machine: str, *, cell: Cell, path: Path):
        self.plan = plan
        self.machine = machine
        self.cell = cell
        self.path = path
        self.packed = plan.out / "records" / f"{machine}.jsonl"
        self.own_at_first = file_state(self.path)
        self.packed_at_first = file_state(self.packed)

    def __call__(self) -> bool:
        own = file_state(self.path)
        if own is not None and own != self.own_at_first:
            return True
        if file_state(self.packed) == self.packed_at_first:
            return False
        record = record_of(Store.of(self.plan.out), self.machine, self.cell)  # another run has packed it
        return is_done(record, self.cell, self.plan.recipe)


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Modification time, size and inode, which change when a file is replaced; None without a file."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def timing_left(plan: Plan, machine: str) -> str:
    """What is left of a plan's timing session, as text; empty if it is complete.

    Also empty if the weights of the base are gone, because the session can no longer be run.
    """
    if not weights_path(plan.out, seed=0).exists():
        return ""
    path = timings.path_in(plan.out, machine)
    session = timings.read(path) if path.exists() else None
    rows = {(str(variant), schedule.text) for variant, schedule in plan.rows() if plan.is_timed(variant)}
    if session is None or not rows <= {(row.method, row.schedule) for row in session.rows}:
        return "all rows are still to be timed"
    if outdated_rows(session, Store.of(plan.out)):
        return "all rows are to be timed again"
    return "" if session.complete else f"{session.rounds} of {session.wanted} rounds of timing are done"


def outdated_rows(session: Session, records: Iterable[Record]) -> list[Row]:
    """The timed rows whose token counts no record of their machine has, because they were learned again."""
    achieved: dict[tuple[str, str], list[list[int]]] = {}  # of each seed
    for record in records:
        if record.machine == session.machine and record.tokens.get("achieved"):
            achieved.setdefault((record.method, record.schedule), []).append(record.tokens["achieved"])
    return [row for row in session.timed if row.counts not in achieved.get((row.method, row.schedule), [row.counts])]


def weights_path(out: Path, seed: int) -> Path:
    """The path of a seed's trained base in a results folder."""
    return out / "work" / f"base_seed{seed}.safetensors"


def pack_if_complete(plan: Plan, machine: str) -> list[Record]:
    """Pack the machine's records if no cell of the plan is left and no other process works on the folder.

    Returns the records of the plan's measured cells.
    """
    with locked(plan.out):
        store = Store.of(plan.out)
        records = [record_of(store, machine, cell) for cell in plan.cells]
        complete = all(is_done(record, cell, plan.recipe) for record, cell in zip(records, plan.cells))
        if complete and not other_processes(plan.out):
            delete_leftovers(plan.out)
            delete_checkpoints(plan.out, records)
            store.pack(machine)
    return [record for record in records if record is not None]


def measured_records(plan: Plan, machine: str) -> list[Record]:
    """The records of a plan's measured cells."""
    store = Store.of(plan.out)
    records = [record_of(store, machine, cell) for cell in plan.cells]
    return [record for record in records if record is not None]


def cells_left(plan: Plan, records: Iterable[Record]) -> int:
    """The number of a plan's cells that are still to be measured; a cell that failed is not left."""
    known = {(record.method, record.schedule, record.seed): record for record in records}
    left = 0
    for cell in plan.cells:
        record = known.get((str(cell.variant), cell.schedule.text, cell.seed))
        failed = record is not None and record.failed
        left += not failed and not is_done(record, cell, plan.recipe)
    return left


def failures(records: Sequence[Record]) -> Iterator[Record]:
    """The records of failed cells."""
    return (record for record in records if record.failed)


def record_of(store: Store, machine: str, cell: Cell) -> Record | None:
    """A cell's record on a machine, if there is one."""
    return store.find(machine, str(cell.variant), cell.schedule.text, cell.seed)


def is_done(known: Record | None, cell: Cell, recipe: Recipe) -> bool:
    """Whether a cell was measured or is known to be unreachable. Failed cells are tried again."""
    if known is None:
        return False
    asked = cell.schedule.counts
    if asked and known.tokens.get("requested", list(asked)) != list(asked):  # learned again under the same name
        return False
    if known.schema == SCHEMA and known.finetune != recipe.tuned_lines(cell.variant.method):  # tuned again since
        return False
    if known.error is None and not known.training and recipe.finetune_epochs(str(cell.variant), cell.schedule.text):
        return False  # it was only evaluated off the shelf, before the recipe fine-tuned
    return known.error is None or not known.reachable


def check_records(store: Store, recipe: Recipe, machine: str, fresh: bool = False) -> None:
    """Raise UsageError for a folder of another recipe, and for records of a machine that are unreadable or outdated.

    With `fresh`, the machine's own records are not checked, since they are about to be deleted. The report names the
    unreadable records of other machines.
    """
    if not fresh:
        store.refuse_bad(machine)
    digest = recipe.digest
    for record in store:
        if record.recipe != recipe.name:
            raise UsageError(
                f"{store.folder} holds results of recipe {record.recipe!r}, not {recipe.name!r}; choose another --out"
            )
        if record.machine == machine and record.recipe_digest != digest and not fresh:
            raise UsageError(
                f"{store.folder} holds results of another version of recipe {record.recipe!r}; use --fresh or another"
                " --out"
            )


@contextlib.contextmanager
def locked(out: Path, patience: float | None = None) -> Iterator[None]:
    """Hold a results folder, to prepare it, pack it or write its report; wait while another process holds it.

    Workers do not hold the folder: they claim single jobs. Raises UsageError after `patience` seconds, by default
    PATIENCE.
    """
    if int(os.environ.get("RANK", "0")) != 0:  # the first rank holds it for all
        yield
        return
    claims = Claims(out)
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    while (claim := claims.take(FOLDER)) is None:
        if time.monotonic() > until:
            raise UsageError(f"{out} is being written by another process; wait for it or choose another --out")
        time.sleep(0.1)
    try:
        yield
    finally:
        claim.release()


def other_processes(out: Path) -> list[Holder]:
    """The other processes that work on a folder. Claims of hosts that may be dead are watched until this is certain."""
    claims = Claims(out)
    while any(not claims.is_certain(holder) for holder in claims.others()):
        time.sleep(1.0)
    claims.delete_dead()
    return claims.others()


def refuse_others(out: Path, remedy: str) -> None:
    """Raise UsageError if other processes work on a folder. The caller must hold the folder."""
    for holder in other_processes(out):
        raise UsageError(f"{out} is being written by another run ({holder}); {remedy}")


def refuse_other_recipes(out: Path, digest: str) -> None:
    """Raise UsageError if others work on a folder with another recipe, or with another version of this one."""
    for holder in Claims(out).others():
        if holder.recipe not in ("", digest):
            raise UsageError(f"{out} is being written by a run of another recipe ({holder}); choose another --out")
