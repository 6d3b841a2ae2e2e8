"""The benchmark: for each method, schedule and seed -> build, train, evaluate, measure, record. It only connects."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tpbench import data, environment, evaluate, registry, vit
from tpbench.errors import Unreachable, UsageError
from tpbench.measure import flops, latency, memory
from tpbench.recipe import Recipe
from tpbench.record import Record, host_id, read, write
from tpbench.registry import Card
from tpbench.schedule import Schedule
from tpbench.tokens import Tokens
from tpbench.train import connect, train
from tpbench.workers import Job, Progress, side_by_side


class Cell(NamedTuple):
    """One row's one seed."""

    method: str
    schedule: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.schedule} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What to run, where."""

    recipe: Recipe
    cells: tuple[Cell, ...]
    out: Path
    device: str  # auto | cpu | cuda
    plugins: tuple[str, ...] = ()  # files of methods outside every package


def plan(
    recipe: Recipe,
    cards: Sequence[Card],
    schedules: Sequence[Schedule],
    seeds: int,
    out: Path,
    device: str,
    plugins: tuple[str, ...] = (),
    holes: bool = False,
) -> Plan:
    """Every cell, in an order that makes a partial run a comparison: all methods at one schedule and seed first.

    Each method and schedule is built once, untrained, so that a budget that cannot be reached is refused before any
    training; with `holes` it is left to its cell to record why it stays empty.
    """
    model = build_base(recipe, seed=0)
    rows: list[tuple[str, str]] = []
    for schedule in schedules:
        schedule.check(len(model.blocks))
        for card in cards:
            row = (card.name, "none" if card.unreduced else schedule.text)
            if row not in rows:
                try:
                    vit.reduce(model, card.name, schedule, site=recipe.site, **recipe.knobs.get(card.name, {}))
                except Unreachable:
                    if not holes:
                        raise
                rows.append(row)
    cells = [Cell(method, schedule, seed) for seed in range(seeds) for method, schedule in rows]
    return Plan(recipe, tuple(cells), out, device, plugins)


def run(plan: Plan, fresh: bool, progress: Progress) -> list[Record]:
    """Run a plan's cells that have no record yet, and return all its records."""
    with locked(plan.out):
        return run_missing(plan, fresh, progress)


def run_missing(plan: Plan, fresh: bool, progress: Progress) -> list[Record]:
    bench = Bench(plan)
    bench.prepare(fresh)
    missing = [cell for cell in plan.cells if not bench.done(cell)]
    bases = [
        Job(f"base seed {seed}", train_base, seed, counts=False) for seed in sorted({cell.seed for cell in missing})
    ]
    cells = [Job(str(cell), run_cell, cell, needs=f"base seed {cell.seed}") for cell in missing]
    progress.start(len(plan.cells), len(plan.cells) - len(missing))
    side_by_side(bases + cells, bench.workers, bench, partial(Bench, plan), progress)
    return [read(bench.record_path(cell)) for cell in plan.cells]


def train_base(bench: Bench, seed: int, tell: Callable[[str], None]) -> None:
    """Train the unreduced model of a seed once, unless its weights are there already."""
    if bench.base_path(seed).exists():
        bench.base(seed)  # refuses weights of another recipe
        return
    model = vit.reduce(build_base(bench.recipe, seed).to(bench.device), "none")
    if bench.recipe.base.epochs:
        folder = bench.work / f"base_seed{seed}"
        training = train(
            model, bench.data, bench.recipe.base, seed=seed, dtype=bench.dtype, folder=folder, progress=told(tell)
        )
        bench.keep_base(seed, model, training.seconds)
        bench.forget(folder)
    else:
        bench.keep_base(seed, model, 0.0)


def run_cell(bench: Bench, cell: Cell, tell: Callable[[str], None]) -> None:
    """Build, evaluate off the shelf, train, evaluate, measure, record. What goes wrong is recorded with its reason."""
    record = bench.blank(cell)
    try:
        recipe, base = bench.recipe, bench.base(cell.seed)
        teacher = vit.reduce(copy.deepcopy(base), "none")
        torch.manual_seed(cell.seed)  # a method's own parameters start alike in every run
        model = vit.reduce(base, cell.method, cell.schedule, site=recipe.site, **recipe.knobs.get(cell.method, {}))
        method = registry.method(cell.method)

        bench.assess(record, "off_the_shelf", model)
        folder = bench.work / "cells" / Path(record.file_name).stem
        training = train(
            model,
            bench.data,
            recipe.finetune,
            seed=cell.seed,
            dtype=bench.dtype,
            teacher=teacher if method.teacher else None,
            folder=folder,
            progress=told(tell),
        )
        record.training = asdict(training)
        bench.assess(record, "fine_tuned", model)
        if bench.writes:
            measure(record, model, base=bench.base(cell.seed), bench=bench)
    except Unreachable as error:
        record.reachable, record.error = False, f"unreachable: {error}"
    except Exception as error:
        record.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{cell}: {record.error}", file=sys.stderr)
        if not isinstance(error, RuntimeError):  # unforeseen: whoever mends it wants the place
            traceback.print_exc()
    if bench.writes:
        write(bench.record_path(cell), record)
        bench.forget(folder) if record.error is None else None


def measure(record: Record, model: vit.TokenViT, base: torch.nn.Module, bench: Bench) -> None:
    """Tokens, multiply-adds, seconds and bytes of a model, beside the unreduced one on the same machine."""
    how, unreduced = bench.recipe.measure, vit.reduce(base, "none")
    with torch.no_grad():
        counts = model.eval().forward_tokens(latency.random_images(model, 1)).counts
    with torch.no_grad():
        live = live_tokens(model, next(iter(bench.data.test.batches(how.batch_sizes[-1]))).images)
    record.tokens = ({"live": live} if live else {}) | {
        "blocks": [block for block, _ in model.requested],
        "requested": [k for _, k in model.requested],
        "achieved": [counts[block] for block, _ in model.requested],
        "after_block": list(counts),
    }
    macs = flops.measured(model)
    record.macs = {
        "total": macs.total,
        "unreduced": flops.closed_form(unreduced).total,
        "reducers": macs.reducers,
        "closed_form": flops.closed_form(model).total,
        "layers": [{"name": name, "macs": count} for name, count in macs.layers.items()],
    }
    candidates = {"eager": base} | ({"compiled": torch.compile(base)} if how.compile else {})
    best = candidates[latency.fastest(candidates, how.batch_sizes[-1], dtype=bench.dtype)]
    timed = torch.compile(model) if how.compile else model
    record.latency = latency.compare(timed, best, how.batch_sizes, how.repeats, how.warmup, dtype=bench.dtype)
    images = latency.random_images(model, how.batch_sizes[-1])
    record.layers_seconds = latency.layers(model, images, how.repeats, how.warmup, bench.dtype)
    for name, network in (("reduced", model), ("unreduced", base)):
        call = latency.forward_call(network, images, bench.dtype)
        record.peak_memory_bytes[name] = memory.peak_bytes(call, bench.device)


def live_tokens(model: vit.TokenViT, images: torch.Tensor) -> list[float]:
    """Mean tokens that are no padding after each reducing block; empty for methods that never pad."""
    live: list[float] = []

    def note(_: object, __: object, tokens: Tokens) -> None:
        if tokens.alive is not None:
            live.append(tokens.alive.sum(dim=1).mean().item())

    hooks = [reducer.register_forward_hook(note) for reducer in model.reducers]
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    return live


class Bench:
    """What the cells of one process share: device, data, base weights, and where things are kept."""

    def __init__(self, plan: Plan):
        self.plan, self.recipe, self.out = plan, plan.recipe, plan.out
        for path in plan.plugins:
            registry.plug(path)
        self.device = environment.device(plan.device)
        self.dtype = environment.dtype(plan.recipe.dtype, self.device)
        self.work = plan.out / "work"
        self.workers = plan.recipe.workers if self.device.type == "cpu" and environment.ranks() == 1 else 1
        self.writes = environment.rank() == 0
        self._data: data.Parts | None = None

    @property
    def data(self) -> data.Parts:
        if self._data is None:
            self._data = data.load(self.recipe.data, self.device)
        return self._data

    @property
    def machine(self) -> str:
        return environment.machine(self.device, host_id(self.work))

    def prepare(self, fresh: bool) -> None:
        """Make the folders, refuse those of another recipe, and with `fresh` forget what this machine has done."""
        if environment.ranks() > 1:
            connect(self.device)
        if self.writes:
            self.work.mkdir(parents=True, exist_ok=True)
            for path in sorted((self.out / "records").glob("*/*.json")):
                self.check_recipe(path, fresh)
            if fresh:
                shutil.rmtree(self.out / "records" / self.machine, ignore_errors=True)
                for path in self.work.iterdir():
                    if path.name not in ("host-id", "lock"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            host_id(self.work)
            self.data  # noqa: B018  refuse a data set that cannot be read before anything starts
        if environment.ranks() > 1:
            torch.distributed.barrier()

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

    def record_path(self, cell: Cell) -> Path:
        return self.out / "records" / self.machine / self.blank(cell, bare=True).file_name

    def done(self, cell: Cell) -> bool:
        """Whether a cell has been measured or cannot be; failed ones are tried again."""
        if not self.record_path(cell).exists():
            return False
        known = read(self.record_path(cell))
        return known.error is None or not known.reachable

    def blank(self, cell: Cell, bare: bool = False) -> Record:
        """A cell's record before anything is measured."""
        record = Record(self.recipe.name, self.recipe.digest, self.machine, *cell)
        if not bare:
            card, method = registry.select([cell.method])[0], registry.method(cell.method)
            record.title, record.count, record.unreduced, record.site = (
                card.title,
                card.count,
                card.unreduced,
                self.recipe.site,
            )
            record.config = asdict(method.Config(**self.recipe.knobs.get(cell.method, {})))
            record.environment, record.git = environment.describe(self.device, self.dtype), environment.git()
            record.data = self.data.description
        return record

    def assess(self, record: Record, stage: str, model: vit.TokenViT) -> None:
        """Evaluate a model on the test and the validation part."""
        for prefix, part in ((stage, self.data.test), (f"{stage}_validation", self.data.validation)):
            values = dict(evaluate.evaluate(model, part, self.recipe.finetune.batch_size, self.dtype, record.seed))
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
        save_file(state, part, metadata={"recipe": self.recipe.digest, "seed": str(seed), "seconds": str(seconds)})
        part.replace(self.base_path(seed))

    def base(self, seed: int) -> torch.nn.Module:
        """The trained unreduced timm model of a seed."""
        path = self.base_path(seed)
        try:
            with safe_open(path, "pt") as file:
                digest = file.metadata()["recipe"]
            weights = load_file(path)
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise UsageError(
                f"base checkpoint {path} cannot be read ({error}); delete it or run with --fresh"
            ) from error
        if digest != self.recipe.digest:
            raise UsageError(f"base checkpoint {path} belongs to another recipe; run with --fresh or another --out")
        model = build_base(self.recipe, seed)
        model.load_state_dict(weights)
        return model.to(self.device)

    def forget(self, folder: Path) -> None:
        if self.writes:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Two runs never write into one folder; the lock goes with the process that holds it."""
    if environment.rank() != 0:
        yield
        return
    (out / "work").mkdir(parents=True, exist_ok=True)
    with (out / "work" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out} is being written by another run; wait for it or choose another --out") from None
        yield


def build_base(recipe: Recipe, seed: int) -> torch.nn.Module:
    """The recipe's unreduced timm model with the seed's first weights."""
    torch.manual_seed(seed)
    return vit.create(recipe.model, recipe.model_args, recipe.pretrained, recipe.sincos)


def told(tell: Callable[[str], None]) -> Callable[[int, float], None]:
    return lambda epoch, loss: tell(f"epoch {epoch + 1}, loss {loss:.3f}")


def failures(records: Sequence[Record]) -> Iterator[Record]:
    """The records of cells that went wrong."""
    return (record for record in records if record.error is not None and record.reachable)
