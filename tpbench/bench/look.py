"""What a results folder already holds, found out before anything heavy is loaded: no torch, no model, no image."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpbench import environment
from tpbench.bench.claim import FOLDER, Claims, Holder
from tpbench.bench.plan import Cell, Plan
from tpbench.errors import UsageError
from tpbench.measure import timings
from tpbench.recipe import Recipe
from tpbench.record import SCHEMA, Record, Store, host_id, sweep

PATIENCE = 300.0  # seconds to wait for a folder that another process holds; packing and reports take less


def finished(plan: Plan) -> list[Record] | None:
    """The records of a plan all of whose cells were measured and timed on this machine; None where work is left.

    None also with several ranks, which have to agree. Raises UsageError for a folder of another recipe, and for records
    of this machine that cannot be read. Torch is loaded only where this machine may have a GPU.
    """
    work = plan.out / "work"
    if "RANK" in os.environ or not (work / "host-id").exists():
        return None
    machine = environment.machine_of(plan.device, host_id(work))
    with locked(plan.out):
        tidy(plan.out)
        store = Store.of(plan.out)
        check(store, plan.recipe, machine)
        if not all(is_done(found(store, machine, cell), cell, plan.recipe) for cell in plan.cells):
            return None
        if untimed(plan, machine):
            return None
    return conclude(plan, machine)


def tidy(out: Path) -> None:
    """Delete what killed processes left in a folder, unless others may be writing; whoever calls this holds it."""
    claims = Claims(out)
    claims.bury()
    if not claims.others():
        sweep(out)


class Renewed:
    """Whether a cell's record is another one than at first: a worker of any run has ended the cell, well or not."""

    def __init__(self, plan: Plan, machine: str, *, cell: Cell, path: Path):
        self.plan = plan
        self.machine = machine
        self.cell = cell
        self.path = path
        self.packed = plan.out / "records" / f"{machine}.jsonl"
        self.own_at_first = state(self.path)
        self.packed_at_first = state(self.packed)

    def __call__(self) -> bool:
        own = state(self.path)
        if own is not None and own != self.own_at_first:
            return True
        if state(self.packed) == self.packed_at_first:
            return False
        record = found(Store.of(self.plan.out), self.machine, self.cell)  # another run has packed it
        return is_done(record, self.cell, self.plan.recipe)


def state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def untimed(plan: Plan, machine: str) -> str:
    """What is left of the timing session of a plan, in words; nothing where it is complete.

    Nothing is left either where the weights of the base that it times are gone: it cannot be taken any more.
    """
    if not weights_path(plan.out, seed=0).exists():
        return ""
    path = timings.path_in(plan.out, machine)
    session = timings.read(path) if path.exists() else None
    rows = {(str(variant), schedule.text) for variant, schedule in plan.rows() if plan.is_timed(variant)}
    if session is None or not rows <= {(row.method, row.schedule) for row in session.rows}:
        return "all rows are still to be timed"
    return "" if session.complete else f"{session.rounds} of {session.wanted} rounds of timing are done"


def weights_path(out: Path, seed: int) -> Path:
    """Where a results folder keeps the trained base of a seed."""
    return out / "work" / f"base_seed{seed}.safetensors"


def conclude(plan: Plan, machine: str) -> list[Record]:
    """The records of a plan's cells that have one.

    If none is left to measure and no other process works on the folder, the machine's records are packed.
    """
    with locked(plan.out):
        store = Store.of(plan.out)
        complete = all(is_done(found(store, machine, cell), cell, plan.recipe) for cell in plan.cells)
        if complete and not others(plan.out):
            tidy(plan.out)
            store.pack(machine)
    return known(plan, machine)


def known(plan: Plan, machine: str) -> list[Record]:
    """The records of a plan's cells that have one."""
    store = Store.of(plan.out)
    records = [found(store, machine, cell) for cell in plan.cells]
    return [record for record in records if record is not None]


def failures(records: Sequence[Record]) -> Iterator[Record]:
    """The records of cells that failed; a budget that a method cannot meet is no failure."""
    return (record for record in records if record.error is not None and record.reachable)


def found(store: Store, machine: str, cell: Cell) -> Record | None:
    """A cell's record on a machine."""
    return store.find(machine, str(cell.variant), cell.schedule.text, cell.seed)


def is_done(known: Record | None, cell: Cell, recipe: Recipe) -> bool:
    """Whether a cell was measured or is known to be unreachable. Failed cells are tried again."""
    if known is None:
        return False
    asked = cell.schedule.counts
    if asked and known.tokens and known.tokens.get("requested") != list(asked):  # learned again under the same name
        return False
    if known.schema == SCHEMA and known.finetune != recipe.tuned_lines(cell.variant.method):  # tuned again since
        return False
    if known.error is None and not known.training and recipe.finetune_epochs(str(cell.variant), cell.schedule.text):
        return False  # it was evaluated off the shelf alone, before the recipe asked for more
    return known.error is None or not known.reachable


def check(store: Store, recipe: Recipe, machine: str, fresh: bool = False) -> None:
    """Refuse a folder of another recipe, or records of a machine that cannot be read or are of another version of it.

    With `fresh` the machine's own records are about to be deleted and need be neither. Records of other machines that
    cannot be read are left to the report, which names them.
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
    """Hold a results folder as a whole, to prepare it, pack it or write its report; wait for whoever holds it.

    Workers need not hold it: they claim single jobs. Raises UsageError after so many seconds, by default PATIENCE.
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


def others(out: Path) -> list[Holder]:
    """The other processes that work on a folder. A claim that may be a dead host's is watched until that is clear."""
    claims = Claims(out)
    while any(not claims.certain(holder) for holder in claims.others()):
        time.sleep(1.0)
    claims.bury()
    return claims.others()


def refuse_others(out: Path, remedy: str) -> None:
    """Raise UsageError where other processes work on a folder. Whoever asks holds the folder."""
    for holder in others(out):
        raise UsageError(f"{out} is being written by another run ({holder}); {remedy}")


def refuse_other_recipes(out: Path, digest: str) -> None:
    """Raise UsageError where others work on a folder with another recipe, or with another version of this one."""
    for holder in Claims(out).others():
        if holder.recipe not in ("", digest):
            raise UsageError(f"{out} is being written by a run of another recipe ({holder}); choose another --out")
