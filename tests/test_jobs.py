"""Jobs in worker processes, and what the user sees of them: bars on a terminal, quiet lines elsewhere.

How the workers of several commands share a folder: see test_workers.py.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tpbench.bench import jobs as jobs_module
from tpbench.bench.claim import Claims
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.progress import Progress, TrainingEstimate, clock_time
from tpbench.errors import CellFailed
from tpbench.training.train import Update


def job(name: str, work: float) -> Job:
    return Job(name, function=print, argument=None, work=work)


class Here:
    """What a worker needs of a workspace."""

    device = torch.device("cpu")
    writes = True

    def __init__(self, out: Path):
        self.claims = Claims(out)

    def check_time(self) -> None:
        """There is no time limit."""

    def same_on_all_ranks(self, number: int) -> int:
        return number


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of standard error. Not a fixture: pytest sets standard error anew for each test."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    return stderr


def reporting(progress: Progress) -> None:
    """Two jobs, one of which is done, as a run reports them."""
    progress.start(3, 1, [job("base", 10), job("topk [a] seed 0", 2)])
    progress.update("base", "epoch 1, loss 2.100", 0.1)
    progress.update("topk [a] seed 0", share=0.5)
    progress.finish("base", counts=False)
    progress.update("topk [a] seed 0", "epoch 2, loss 0.500")
    progress.finish("topk [a] seed 0", counts=True)
    progress.stop()


def test_elsewhere_than_on_a_terminal_every_finished_job_is_one_line(capsys):
    reporting(Progress())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1 of 3 cells have been measured before and are kept")
    assert [re.sub(r"\d:\d\d", "TIME", line) for line in lines[1:]] == [
        "[1/3] TIME base: epoch 1, loss 2.100",
        "[2/3] TIME topk [a] seed 0: epoch 2, loss 0.500",
    ]


def test_a_terminal_shows_bars_and_keeps_the_lines_of_finished_jobs(monkeypatch):
    stderr = terminal(monkeypatch)
    reporting(Progress())
    shown = re.sub(r"\d:\d\d", "TIME", stderr.getvalue())
    for text in ("cells", "1/3 TIME", "epoch 1, loss 2.100", "[2/3] TIME topk [a] seed 0: epoch 2, loss 0.500"):
        assert text in shown
    assert "━" in shown, "a bar"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"


def failing(context: object, argument: None, update: Update) -> None:  # noqa: ARG001
    update("begun")
    raise KeyboardInterrupt


def test_the_terminal_is_restored_when_a_run_is_interrupted(tmp_path, monkeypatch):
    stderr = terminal(monkeypatch)
    jobs = [Job("a", function=failing, argument=None)]
    progress = Progress()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(jobs, workers=1, context=Here(tmp_path), make_context=dict, progress=progress)
    shown = stderr.getvalue()
    assert "begun" in shown, "control: it was drawn"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_an_update_that_comes_after_its_job_draws_nothing(monkeypatch):
    stderr = terminal(monkeypatch)
    progress = Progress()
    progress.update("a", "early")
    progress.finish("a", counts=True)
    before = stderr.getvalue()
    progress.update("a", "late")
    assert stderr.getvalue() == before
    progress.update("b", "next")
    assert "next" in stderr.getvalue(), "control"
    progress.stop()


def test_what_other_runs_do_is_shown(monkeypatch, capsys):
    progress = Progress()
    progress.start(2, 0, [job("a", 1), job("b", 1)])
    for waiting in (False, True, True):
        progress.show_other_runs({"a": "host, process 7"}, waiting)
    progress.done_elsewhere("a", counts=True)
    progress.finish("b", counts=True)
    progress.done_elsewhere("b", counts=True)
    lines = [re.sub(r"\d:\d\d", "TIME", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["waiting for other runs: a (host, process 7)", "[1/2] TIME a: by another run", "[2/2] TIME b"]
    stderr = terminal(monkeypatch)
    progress = Progress()
    progress.update("c", "working")
    progress.show_other_runs({"a": "host, process 7"}, waiting=False)
    progress.update("c", "working on")
    assert "a (host, process 7)" in stderr.getvalue()
    progress.show_other_runs({}, waiting=False)
    before = len(stderr.getvalue())
    progress.update("c", "still working")
    assert "process 7" not in stderr.getvalue()[before:], "control: the line is gone"
    progress.stop()


def test_the_time_ahead_follows_from_the_speed_of_the_running_jobs():
    ahead = TrainingEstimate([job("base", 10), job("a", 2), job("b", 2)])
    assert ahead.seconds() == 0, "nothing is known before the first steps"
    ahead.note("base", 0.5, now=100.0)  # continued: the first half was done before
    assert not ahead.speeds
    ahead.note("base", 0.6, now=104.0)  # one of ten epochs in four seconds
    assert ahead.seconds() == pytest.approx(4 * (4 + 2 + 2))
    ahead.drop("base")
    assert ahead.seconds() == pytest.approx(4 * 4), "the last speed is used until another is known"
    ahead.note("a", 0.0, now=200.0)
    ahead.note("b", 0.0, now=200.0)
    ahead.note("a", 0.5, now=202.0)
    ahead.note("b", 0.5, now=202.0)
    assert ahead.seconds() == pytest.approx(2 / (0.5 + 0.5)), "two at once are twice as fast"


def test_a_display_that_fails_does_not_block_the_workers():
    """The pipe to it holds 64 KiB, so that a worker would wait for ever after about a thousand messages."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    class Broken:
        def update(self, *_words) -> None:
            raise OSError("the terminal is gone")

    listening = threading.Thread(target=jobs_module._listen, args=(receiver, Broken()), daemon=True)
    listening.start()
    messages = jobs_module.Messages(sender)
    for number in range(3000):
        messages.update("a job", "x" * 50, number / 3000)
    sender.close()
    listening.join(timeout=30)
    assert not listening.is_alive()


def test_durations_are_written_as_on_a_clock():
    assert [clock_time(seconds) for seconds in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def stuck(context: object, argument: str, update: Update) -> None:  # noqa: ARG001
    """Report without a pause until the process is killed."""
    Path(argument, str(os.getpid())).touch()
    while True:
        update("still at it")


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05])
def test_a_killed_worker_ends_the_run(tmp_path, moment):
    """It is killed while it reports; the others must not wait for a lock that it held."""

    pids = tmp_path / "pids"
    pids.mkdir()

    def kill() -> None:
        while len(list(pids.iterdir())) < 2:
            time.sleep(0.01)
        time.sleep(moment)
        os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    jobs = [Job(name, stuck, str(pids)) for name in ("a", "b", "c")]
    began = time.monotonic()
    with pytest.raises(CellFailed, match="a worker process died"):
        side_by_side(jobs, workers=2, context=Here(tmp_path), make_context=partial(Here, tmp_path), progress=Progress())
    killer.join()
    assert time.monotonic() - began < 60, "it hung"
    assert not list((tmp_path / "work" / "claims").iterdir()), "the dead worker's claim is gone"


def noted(context: object, argument: tuple[str, str], update: Update) -> None:  # noqa: ARG001
    file, name = argument
    with Path(file).open("a") as notes:
        notes.write(name + "\n")


def noted_in(file: Path, name: str) -> bool:
    return file.exists() and name in file.read_text().splitlines()


def process_of(context: object, argument: str, update: Update) -> None:  # noqa: ARG001
    Path(argument).write_text(multiprocessing.current_process().name)


@pytest.mark.parametrize(("kind", "name"), [("cpu", "ForkProcess"), ("cuda", "SpawnProcess")])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks workers")
def test_workers_on_a_gpu_are_processes_of_their_own(tmp_path, kind, name):
    """A forked process cannot use a GPU that its parent has used."""
    there = Here(tmp_path)
    there.device = torch.device(kind)
    jobs = [Job(f"job {n}", process_of, str(tmp_path / f"job {n}")) for n in range(2)]
    side_by_side(jobs, workers=2, context=there, make_context=partial(Here, tmp_path), progress=Progress())
    assert all((tmp_path / job.name).read_text().startswith(name) for job in jobs)


def test_jobs_of_the_first_seed_come_before_the_base_of_the_third(tmp_path):
    file = tmp_path / "order"
    jobs = []
    for seed in range(4):
        for name in (f"base {seed}", *(f"cell {seed} {number}" for number in range(3))):
            needs = () if name.startswith("base") else (f"base {seed}",)
            jobs.append(Job(name, noted, (str(file), name), needs=needs, is_done=partial(noted_in, file, name)))
    side_by_side(jobs, workers=2, context=Here(tmp_path), make_context=partial(Here, tmp_path), progress=Progress())
    order = file.read_text().split("\n")
    assert len(order) == 17, "each was done once"
    assert order.index("cell 0 0") < order.index("base 2"), "a partial run is a comparison"
