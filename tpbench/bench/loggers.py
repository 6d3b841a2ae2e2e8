"""Loggers: the training loss of every epoch and the final metrics, a run for every job, in addition to the records.

They receive what progress shows, after it was computed, so nothing that is trained or measured depends on them. The
losses have the three decimals that progress shows; the exact ones are in the records. Only the first rank logs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

from tpbench import environment
from tpbench.bench.jobs import Job
from tpbench.bench.plan import Cell, Plan
from tpbench.bench.progress import Progress
from tpbench.bench.results_folder import record_of
from tpbench.errors import UsageError
from tpbench.record import Record, Store, host_id, slug

EPOCH = re.compile(r"epoch (\d+), loss (\S+)")  # as `training.train.train` reports it
LOSS = "training loss"


class Run(Protocol):
    """One run of a logger, as all loggers offer it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the values of one step, by name."""

    def finish(self) -> None:
        """End the run."""


class TensorBoardRun:
    """A run as TensorBoard's event files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of one step, at once."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


def tensorboard(plan: Plan) -> Callable[[str], Run]:
    """Runs under OUT/work/log, for `tensorboard --logdir`."""
    return lambda name: TensorBoardRun(plan.out / "work" / "log" / slug(name))


def trackio(plan: Plan) -> Callable[[str], Run]:
    """Runs of a trackio project that is named after the recipe."""
    package = _installed("trackio")
    return lambda name: package.init(project=slug(plan.recipe.name), name=name)


def wandb(plan: Plan) -> Callable[[str], Run]:
    """Runs of a wandb project that is named after the recipe; several are open at a time."""
    package = _installed("wandb")
    where = str(plan.out / "work")
    return lambda name: package.init(project=slug(plan.recipe.name), name=name, dir=where, reinit="create_new")


LOGGERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--log {name}: {name} is not installed; python -m pip install {name}") from error


class LoggedProgress(Progress):
    """Progress that is also logged. logger is a name of LOGGERS; raises UsageError if it is not installed."""

    def __init__(self, plan: Plan, logger: str, quiet: bool = False) -> None:
        super().__init__(quiet)
        self.plan = plan
        self.open = LOGGERS[logger](plan)
        self.logs = int(os.environ.get("RANK", "0")) == 0
        self.cells: dict[str, Cell] = {}
        self.runs: dict[str, Run] = {}
        self.lock = threading.Lock()  # workers' updates come on a thread of their own

    def start(self, total: int, done: int, jobs: Sequence[Job]) -> None:
        """Also remember which jobs are cells, whose records hold metrics."""
        super().start(total, done, jobs)
        self.cells = {job.name: job.argument for job in jobs if isinstance(job.argument, Cell)}

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """Also log the loss, where the text reports an epoch."""
        super().update(name, text, share)
        epoch = EPOCH.fullmatch(text)
        with self.lock:
            if epoch is not None and name not in self.finished:
                self._log(name, {LOSS: float(epoch[2])}, step=int(epoch[1]))

    def finish(self, name: str, counts: bool) -> None:
        """Also log the metrics of the cell's record, and close its run."""
        super().finish(name, counts)
        record = self._record(name)
        with self.lock:
            if record is not None and record.error is None:
                self._log(name, record.metrics, step=record.training.get("epochs", 0))
            if name in self.runs:
                self.runs.pop(name).finish()

    def stop(self) -> None:
        """Also close the runs of jobs that were interrupted."""
        super().stop()
        with self.lock:
            while self.runs:
                self.runs.popitem()[1].finish()

    def _log(self, name: str, values: dict[str, float], step: int) -> None:
        if not self.logs:
            return
        with contextlib.redirect_stdout(sys.stderr):  # a logger's greeting does not belong to the results
            if name not in self.runs:
                self.runs[name] = self.open(name)
            self.runs[name].log(values, step=step)

    def _record(self, name: str) -> Record | None:
        if name not in self.cells:
            return None
        machine = environment.machine_of(self.plan.device, host_id(self.plan.out / "work"))
        return record_of(Store.of(self.plan.out), machine, self.cells[name])
