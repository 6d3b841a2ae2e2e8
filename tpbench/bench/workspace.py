"""What the cells of a benchmark share: the plan, the data, the bases, and the folder where everything is kept."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tpbench import environment, registry, vit
from tpbench.bench.models import build_base, settings
from tpbench.bench.plan import Cell, Plan
from tpbench.errors import OutOfTime, Unreachable, UsageError, explain_out_of_memory
from tpbench.record import Budget, Record, host_id, read, read_budget, row_name
from tpbench.schedule import Schedule
from tpbench.training import data, evaluate, ranks
from tpbench.training.ranks import agreed, connect


class Bench:
    """What the cells of one process share: device, data, base weights, and where things are kept."""

    def __init__(self, plan: Plan):
        self.plan, self.recipe, self.out = plan, plan.recipe, plan.out
        for path in plan.plugins:
            registry.plug(path)
        self.device = environment.device(plan.device)
        self.dtype = environment.dtype(plan.recipe.dtype, self.device)
        self.work = plan.out / "work"
        self.workers = plan.recipe.workers if self.device.type == "cpu" and ranks.ranks() == 1 else 1
        self.writes = ranks.rank() == 0
        self._data: data.Parts | None = None

    @property
    def data(self) -> data.Parts:
        if self._data is None:
            self._data = data.load(self.recipe.data, self.device)
        return self._data

    @property
    def identity(self) -> str:
        """Of which recipe and which images a checkpoint is."""
        return f"{self.recipe.digest} {self.data.description['fingerprint']}"

    def check_time(self) -> None:
        """Begin nothing after the time limit."""
        if self.plan.deadline is not None and agreed(time.monotonic() >= self.plan.deadline, self.device):
            raise OutOfTime

    @property
    def machine(self) -> str:
        return environment.machine(self.device, host_id(self.work))

    def prepare(self, fresh: bool) -> None:
        """Make the folders, refuse those of another recipe, and with `fresh` forget what this machine has done."""
        if ranks.ranks() > 1:
            connect(self.device)
        if self.writes:
            self.work.mkdir(parents=True, exist_ok=True)
            for path in sorted((self.out / "records").glob("*/*.json")):
                self.check_recipe(path, fresh)
            if fresh:
                for kept in ("records", "spectra", "budgets"):
                    shutil.rmtree(self.out / kept / self.machine, ignore_errors=True)
                for path in self.work.iterdir():
                    if path.name not in ("host-id", "lock"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            host_id(self.work)
            self.data  # noqa: B018  refuse a data set that cannot be read before anything starts
        self.wait()

    def check_recipe(self, path: Path, fresh: bool) -> None:
        record = read(path)
        if record.recipe != self.recipe.name:
            raise UsageError(
                f"{self.out} holds results of recipe {record.recipe!r}, not {self.recipe.name!r}; choose another --out"
            )
        if record.machine == self.machine and record.recipe_digest != self.recipe.digest and not fresh:
            raise UsageError(
                f"{self.out} holds results of another version of recipe {record.recipe!r}; use --fresh or another --out"
            )
        known = record.data.get("fingerprint", self.data.description["fingerprint"])
        if record.machine == self.machine and known != self.data.description["fingerprint"] and not fresh:
            raise UsageError(f"{self.out} holds results on other images ({path.name}); use --fresh or another --out")

    def record_path(self, cell: Cell) -> Path:
        return self.out / "records" / self.machine / self.blank(cell, bare=True).file_name

    def budget_path(self, cell: Cell) -> Path:
        return self.out / "budgets" / self.machine / f"{row_name(str(cell.variant), cell.schedule.text)}.json"

    def schedule(self, cell: Cell) -> Schedule:
        """The cell's schedule; for a share of latency the counts that were found by the clock."""
        if cell.schedule.latency_share is None or cell.variant.card.unreduced:
            return cell.schedule
        found = read_budget(self.budget_path(cell))
        if found.counts is None:
            raise Unreachable(found.error)
        return cell.schedule.counting(found.counts)

    def done(self, cell: Cell) -> bool:
        """Whether a cell has been measured or cannot be; failed ones are tried again."""
        if not self.record_path(cell).exists():
            return False
        known = read(self.record_path(cell))
        asked = cell.schedule.counts
        if asked and known.tokens and known.tokens["requested"] != list(asked):  # learned anew under the same name
            return False
        return known.error is None or not known.reachable

    def blank(self, cell: Cell, bare: bool = False) -> Record:
        """A cell's record before anything is measured."""
        variant, schedule = cell.variant, cell.schedule.text
        record = Record(self.recipe.name, self.recipe.digest, self.machine, str(variant), schedule, cell.seed)
        if not bare:
            card, (site, knobs) = variant.card, settings(self.recipe, variant)
            record.title, record.count, record.unreduced = variant.title, card.count, card.unreduced
            record.site, record.config = str(site), asdict(registry.method(variant.method).Config(**knobs))
            record.environment, record.git = environment.describe(self.device, self.dtype), environment.git()
            record.data = self.data.description
        return record

    def budget(self, cell: Cell) -> Budget:
        """A cell's share of latency before it is solved."""
        environ, batch = environment.describe(self.device, self.dtype), max(self.recipe.measure.batch_sizes)
        row = (self.machine, str(cell.variant), cell.schedule.text)
        return Budget(*row, batch, list(cell.schedule.blocks), environment=environ)

    def wait(self) -> None:
        """Until every rank is here."""
        if ranks.ranks() > 1:
            torch.distributed.barrier()

    def assess(self, record: Record, stage: str, model: vit.TokenViT) -> None:
        """Evaluate a model on the test and the validation part."""
        for prefix, part in ((stage, self.data.test), (f"{stage}_validation", self.data.validation)):
            size = self.recipe.finetune.batch_size
            with explain_out_of_memory("in evaluation", size, "choose a smaller batch_size of finetune in the recipe"):
                values = dict(evaluate.evaluate(model, part, size, self.dtype, record.seed))
            images = int(values.pop("images"))
            record.metrics |= {f"{prefix}_{name}": value for name, value in values.items()}
            record.evaluation["test" if part is self.data.test else "validation"] = images

    def base_path(self, seed: int) -> Path:
        return self.work / f"base_seed{seed}.safetensors"

    def keep_base(self, seed: int, model: torch.nn.Module, seconds: float) -> None:
        """Write the base's weights, whole or not at all."""
        if not self.writes:
            return
        part = self.base_path(seed).with_suffix(".part")
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        about = {"recipe": self.recipe.digest, "data": self.data.description["fingerprint"]}
        save_file(state, part, metadata={**about, "seed": str(seed), "seconds": str(seconds)})
        part.replace(self.base_path(seed))

    def base(self, seed: int) -> torch.nn.Module:
        """The trained unreduced timm model of a seed."""
        path = self.base_path(seed)
        try:
            with safe_open(path, "pt") as file:
                digest, images = file.metadata()["recipe"], file.metadata()["data"]
            weights = load_file(path)
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise UsageError(
                f"base checkpoint {path} cannot be read ({error}); delete it or run with --fresh"
            ) from error
        if digest != self.recipe.digest:
            raise UsageError(f"base checkpoint {path} belongs to another recipe; run with --fresh or another --out")
        if images != self.data.description["fingerprint"]:
            raise UsageError(f"base checkpoint {path} was trained on other images; run with --fresh or another --out")
        model = build_base(self.recipe, seed)
        model.load_state_dict(weights)
        return model.to(self.device)

    def forget(self, folder: Path) -> None:
        if self.writes:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Two runs never write into one folder; the lock goes with the process that holds it."""
    if ranks.rank() != 0:
        yield
        return
    (out / "work").mkdir(parents=True, exist_ok=True)
    with (out / "work" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out} is being written by another run; wait for it or choose another --out") from None
        yield
