"""Faults at chosen moments: what a command does to the files of a folder, and something that happens at one of them."""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tpbench.cli import main

FRESH = os.environ.get("TPBENCH_FAULTS_FRESH") == "1"  # this process has computed on one thread only, so it may fork
HEAVY = ("deepspeed", "altair", "matplotlib.pyplot", "tpbench.bench.runner", "tpbench.report.page")
fork = multiprocessing.get_context("fork")  # commands that need not import everything again
PLACES = {  # the first that fits a path within the results folder; in the order in which a run writes them
    "claim": r"work/claims/",
    "training of the base": r"work/base_seed\d+(/|$)",
    "base": r"work/\.?base_seed",
    "spectrum": r"spectra",
    "fine-tuning": r"work/cells",
    "work": r"work",
    "record": r"records",
    "starts": r"starts",
    "timing": r"timing",
    "table": r"tables",
    "figure": r"figures",
    "page": r"[^/]*\.html",
    "report": r".",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def passes_in_a_fresh_process(path: str) -> None:
    """Run the tests of a file that are marked `fresh` in a process of its own, which is a safe one to fork.

    A process that has used torch's threads or process groups is not: a command that is forked from it may hang.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "fresh", "-p", "no:cacheprovider", path]
    own = {"TPBENCH_FAULTS_FRESH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def hurry(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Prepare this process for forked commands: they find everything imported, and their timing sessions are short.

    The lock that keeps timing sessions of a machine apart lies in `folder`: none waits for what else the machine times.
    """
    if FRESH:
        for module in HEAVY:
            importlib.import_module(module)
    patch.setattr(importlib.import_module("tpbench.bench.timing"), "ROUNDS", 5)
    patch.setattr(tempfile, "tempdir", str(folder))
    patch.setenv("TMPDIR", str(folder))


def kind_of(path: str) -> str:
    """What kind of file a path within a results folder is."""
    return next((kind for kind, pattern in PLACES.items() if re.match(pattern, path.replace("/.", "/"))), "folder")


@dataclass(frozen=True)
class Moment:
    """The number-th change of a file of a kind, from 0, and how many seconds after it; `lasting` from then on."""

    kind: str
    number: int = 0
    delay: float = 0.0
    lasting: bool = False

    @classmethod
    def chosen(cls, chance: random.Random, kind: str, count: int) -> Moment:
        """One of the `count` changes of a kind, or a moment after it."""
        return cls(kind, chance.randrange(count), delay=chance.choice([0.0, 0.0, chance.uniform(0, 0.3)]))


@dataclass
class Watch:
    """Sees every change of a file under `out` by this process's main thread, and calls `act` at a moment.

    A change is the opening of a file to write, its saving to disk (half of it is there then), renaming, deleting, and
    making a folder. torch.save counts as one too.
    """

    out: Path
    moment: Moment | None = None
    act: Callable[[Path], None] = print
    writes_alone: bool = False  # leave out renaming and deleting, which a full disk allows
    seen: Counter[str] = field(default_factory=Counter)
    acting: bool = False

    def install(self) -> None:
        import torch

        sync = os.fsync
        save = torch.save

        def fsync(file: int) -> None:
            path = os.readlink(f"/proc/self/fd/{file}")
            self.happen(path, half=True)
            sync(file)

        def saved(content: Any, path: Any, *rest: Any, **more: Any) -> None:
            self.happen(path)
            save(content, path, *rest, **more)
            self.happen(path, half=True)

        os.fsync = fsync
        torch.save = saved
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        """An audit hook of Python."""
        if event == "open":
            _, mode, flags = arguments
            written = set(mode) & set("wax+") if isinstance(mode, str) else flags & WRITING
            if not written:
                return
        elif event not in CHANGES:
            return
        if not (self.writes_alone and event in ("os.rename", "os.remove", "os.rmdir")):
            self.happen(arguments[0])

    def happen(self, path: Any, half: bool = False) -> None:
        """Something is about to change a file, or has written it; then `half` of it is there at the moment."""
        if not isinstance(path, str | bytes | os.PathLike) or threading.current_thread() is not threading.main_thread():
            return
        place = Path(os.fsdecode(path))
        if self.acting or not place.is_absolute() or not place.is_relative_to(self.out):
            return
        kind = kind_of(str(place.relative_to(self.out)))
        number = self.seen[kind]
        self.seen[kind] += 1
        moment = self.moment
        if moment is None or moment.kind != kind:
            return
        if number == moment.number or (moment.lasting and number > moment.number):
            self.strike(place, half=half)

    def strike(self, place: Path, half: bool) -> None:
        if self.moment.delay:
            threading.Timer(self.moment.delay, self.late, [place]).start()
            return
        self.acting = True
        try:
            if half and place.exists():
                os.truncate(place, place.stat().st_size // 2)
            self.act(place)
        finally:
            self.acting = False

    def late(self, place: Path) -> None:
        if not self.acting:  # the command has ended before
            self.act(place)


def kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def failing(number: int) -> Callable[[Path], None]:
    """A system call that fails with an error of this number."""

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    return fail


disk_full = failing(errno.ENOSPC)
read_only = failing(errno.EROFS)


def print_into(log: Path) -> None:
    """Send what this process and its children print into a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)


class Command:
    """A command in a process of its own, with what it prints in a file, and something that happens to it."""

    def __init__(self, asked: Sequence[str], log: Path, watch: Watch | None = None, prepare: Callable[[], None] = list):
        self.log = log
        self.watch = watch
        self.prepare = prepare
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.process = fork.Process(target=self._work, args=(list(asked),))
        self.process.start()

    def _work(self, asked: list[str]) -> None:
        print_into(self.log)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.prepare()
        if self.watch is None:
            code = main(asked)
        else:
            self.watch.install()
            code = main(asked)
            self.watch.acting = True
            self.log.with_suffix(".seen").write_text(json.dumps(self.watch.seen))
        sys.stdout.flush()
        os._exit(code)

    def end(self, seconds: float = 300.0) -> int:
        """The exit code; less than 0 for the signal that ended the process."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it hung: {self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text()

    def seen(self) -> Counter[str]:
        """How many changes of every kind there were, if the process ended by itself."""
        return Counter(json.loads(self.log.with_suffix(".seen").read_text()))


def orphans(log: Path) -> list[str]:
    """The processes that still have a command's log open for writing: those that it left behind."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                if any(os.path.realpath(fd) == str(log) for fd in (process / "fd").iterdir()):
                    found.append(process.name)
    return found


def none_left(log: Path, seconds: float = 5.0) -> bool:
    """Whether no process of a command is left after at most so many seconds."""
    end = time.monotonic() + seconds
    while orphans(log) and time.monotonic() < end:
        time.sleep(0.05)
    return not orphans(log)
