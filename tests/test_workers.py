"""Any number of workers share a folder: claims, commands beside each other, kills among them, several hosts.

Two workers, one of them killed, run with the other tests, in a process of their own; more of them by `tox -e faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FRESH, Command, fork, hurry, passes_in_a_fresh_process

from tpbench import environment
from tpbench import recipe as recipes
from tpbench.bench import claim as claims_room
from tpbench.bench.claim import Claim, Claims, Holder, key_of
from tpbench.bench.host import pid_scope, start_time
from tpbench.cli import DONE, WRONG, launch, main, parser
from tpbench.errors import UsageError
from tpbench.record import Store

TESTS = Path(__file__).parent
RECIPE = str(TESTS / "short_recipe.py")
METHODS = "none,random,topk"
SEEDS = "2"
CELLS = 6
LEFT = "another run times the rows and writes the report"


@pytest.mark.slow
@pytest.mark.skipif(FRESH, reason="this is that process")
def test_a_part_of_this_in_a_fresh_process():
    passes_in_a_fresh_process(__file__)


def words(out: Path, *more: str) -> list[str]:
    return ["run", "--recipe", RECIPE, "--methods", METHODS, "--seeds", SEEDS, "--out", str(out), *more]


class Run(Command):
    """A run of the plan in a process of its own."""

    def __init__(self, out: Path, log: Path, *more: str):
        super().__init__(words(out, *more), log)

    def did(self) -> list[str]:
        """The cells that it finished itself."""
        lines = re.findall(r"^\[\d+/\d+\] .*$", self.said(), flags=re.MULTILINE)
        cells = [line for line in lines if re.search(r" (none|0\.5@0,1) seed \d", line)]
        return [line for line in cells if not line.endswith("by another run")]


def metrics(out: Path) -> dict[str, dict]:
    return {record.file_name: record.metrics for record in Store.of(out)}


def left_behind(out: Path) -> list[Path]:
    """Claims and half-written files."""
    return [*(out / "work" / "claims").iterdir(), *out.rglob(".*.part")]


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory) -> Iterator[None]:
    """Forked commands make no figures and no page either: other tests look at those."""
    from tpbench.report import page, write

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, tmp_path_factory.mktemp("tmp"))
        patch.setattr(write, "write", lambda _: None)
        patch.setattr(page, "write", lambda _, path, **__: path)
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one worker alone makes of the plan."""
    out = tmp_path_factory.mktemp("one") / "results"
    run = Run(out, out.parent / "log")
    assert run.end() == DONE, run.said()
    assert len(metrics(out)) == CELLS
    return out


def until(true: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait for an answer that counts as true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return answer


# ------------------------------------------------------------------------------------ claims


def elsewhere(out: Path, job: str, pid: int = 1, **changes) -> Path:
    """A claim that a process of another host has left."""
    folder = out / "work" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key_of(job)}.1.json"
    holder = Holder(job, host="elsewhere", pid=pid, start="5", place="elsewhere", token="a1")
    path.write_text(json.dumps(asdict(replace(holder, **changes))))
    return path


def quickly(monkeypatch, expiry: float = 0.5) -> None:
    monkeypatch.setattr(claims_room, "EXPIRY", expiry)
    monkeypatch.setattr(claims_room, "BEAT", 0.05)


def test_a_job_is_claimed_once_until_it_is_released(tmp_path):
    mine = Claims(tmp_path).take("a job")
    assert Claims(tmp_path).take("a job") is None
    other = Claims(tmp_path).take("another job")
    assert other is not None, "control: claims of other jobs do not matter"
    mine.release()
    again = Claims(tmp_path).take("a job")
    assert again is not None
    again.release()
    other.release()
    assert left_behind(tmp_path) == []


def test_a_dead_process_of_this_host_holds_nothing(tmp_path):
    def die() -> None:
        Claims(tmp_path).take("a job")
        os._exit(0)

    process = fork.Process(target=die)
    process.start()
    process.join()
    (path,) = left_behind(tmp_path)
    assert json.loads(path.read_text())["pid"] == process.pid, "control: it died with its claim"
    claim = Claims(tmp_path).take("a job")
    assert claim is not None
    claim.release()
    assert left_behind(tmp_path) == []


def test_a_pid_that_is_used_again_is_another_process(tmp_path):
    own = {"place": pid_scope(), "pid": os.getpid()}
    elsewhere(tmp_path, "a job", **own, start=start_time(os.getpid()))
    assert Claims(tmp_path).take("a job") is None, "control: this process holds it"
    elsewhere(tmp_path, "a job", **own, start="1")
    claim = Claims(tmp_path).take("a job")
    assert claim is not None
    claim.release()


def test_a_claim_of_another_host_expires_when_its_heart_stops(tmp_path, monkeypatch):
    quickly(monkeypatch)
    elsewhere(tmp_path, "a job")
    watching = Claims(tmp_path)
    assert watching.take("a job") is None, "nobody has watched it yet"
    began = time.monotonic()
    until(lambda: (claim := watching.take("a job")) is not None and (claim.release() or True), 10)
    assert time.monotonic() - began >= 0.45


def test_control_a_claim_of_another_host_that_beats_stays(tmp_path, monkeypatch):
    quickly(monkeypatch)
    path = elsewhere(tmp_path, "a job")
    watching = Claims(tmp_path)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert watching.take("a job") is None
        os.utime(path)
        time.sleep(0.02)
    assert watching.is_certain(next(iter(watching.holders().values()))), "it was seen to beat"


@pytest.mark.parametrize("shift", [-3600.0, 3600.0])
def test_clocks_that_differ_do_not_matter(tmp_path, monkeypatch, shift):
    """The other host's clock is an hour ahead or behind; only whether its claim changes counts."""
    quickly(monkeypatch)
    path = elsewhere(tmp_path, "a job")
    watching = Claims(tmp_path)
    for beat in range(30):
        os.utime(path, (time.time() + shift + beat, time.time() + shift + beat))
        assert watching.take("a job") is None
        time.sleep(0.02)
    until(lambda: watching.holders() == {}, 10)


def test_time_in_which_nobody_watched_does_not_count(tmp_path, monkeypatch):
    """A watcher that was stopped, or a file server that was away, must not take a living worker's job."""
    monkeypatch.setattr(claims_room, "EXPIRY", 60.0)
    elsewhere(tmp_path, "a job")
    watching = Claims(tmp_path)
    watching.holders()
    clock = time.monotonic
    monkeypatch.setattr(claims_room.time, "monotonic", lambda: clock() + 3600)
    assert watching.holders() != {}
    for second in range(0, 70, 4):
        monkeypatch.setattr(claims_room.time, "monotonic", lambda second=second: clock() + 3600 + second)
        found = watching.holders()
    assert found == {}, "control: watched all the time, it expires"


def test_a_worker_notices_that_its_job_was_taken_over(tmp_path, monkeypatch):
    quickly(monkeypatch)
    claim = Claims(tmp_path).take("a job")
    time.sleep(0.2)
    assert not claim.lost, "control"
    claim.path.unlink()
    until(lambda: claim.lost, 10)
    other = Claims(tmp_path).take("a job")
    claim.release()
    assert other.path.exists(), "and it leaves the other's claim alone"
    other.release()


class Careless(Claims):
    """Takes a dead claim over by deleting it and creating it again: two may do so, one after the other."""

    def take(self, job: str, alone: bool = False) -> Claim | None:
        if key_of(job) in self.holders():
            return None
        time.sleep(0.002)
        path = self._path(key_of(job), 1)
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            return Claim(path, self._content(job, alone))
        return None


def race(kind: type[Claims], out: Path, number: int) -> None:
    """Claim and release a job; who holds it must find nobody beside it. Every third time the holder dies with it."""
    beside = out / "beside"
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        claim = kind(out).take("a job")
        if claim is None:
            continue
        try:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            (out / "two").touch()
            os._exit(1)
        time.sleep(0.003)
        beside.unlink(missing_ok=True)
        with (out / "taken").open("a") as file:
            file.write(f"{number}\n")
        if os.urandom(1)[0] % 3 == 0:
            os._exit(0)
        claim.release()
    os._exit(0)


@pytest.mark.parametrize("kind", [Claims, Careless])
def test_dead_claims_are_taken_over_by_one_worker_alone(tmp_path, kind):
    start = time.monotonic()
    taken = tmp_path / "taken"
    taken.touch()

    def long_enough() -> bool:
        decided = (tmp_path / "two").exists() if kind is Careless else time.monotonic() > start + 4
        return decided and len(taken.read_text().splitlines()) > 10

    running: list = []
    while time.monotonic() < start + 30 and not long_enough():
        running = [process for process in running if process.is_alive()]
        running += [fork.Process(target=race, args=(kind, tmp_path, 0)) for _ in range(4 - len(running))]
        for process in running:
            if process.pid is None:
                process.start()
        time.sleep(0.005)
    for process in running:
        process.join(20)
    assert len(taken.read_text().splitlines()) > 10, "control: it was taken over and over"
    assert (tmp_path / "two").exists() == (kind is Careless), "control: a careless way is found out"


# ------------------------------------------------------------------------------------ runs


@pytest.mark.faults
def test_four_workers_give_the_records_of_one(one, tmp_path):
    out = tmp_path / "results"
    run = Run(out, tmp_path / "log", "--workers", "4")
    assert run.end() == DONE, run.said()
    assert metrics(out) == metrics(one)
    assert len(run.did()) == CELLS
    assert left_behind(out) == []


def numbers(out: Path) -> dict[str, tuple]:
    """All that a cell's training and evaluation gave, by cell: metrics, every image's outcome, every epoch's loss."""
    return {r.file_name: (r.metrics, r.outcomes, r.training["losses"]) for r in Store.of(out)}


@pytest.mark.faults
def test_a_cell_depends_neither_on_the_other_methods_nor_on_their_order(one, tmp_path):
    out = tmp_path / "results"
    run = Run(out, tmp_path / "log", "--methods", "topk,none", "--seeds", "1", "--workers", "2")
    assert run.end() == DONE, run.said()
    alone = numbers(out)
    known = numbers(one)
    assert alone == {name: known[name] for name in alone}
    assert len(alone) == 2
    for name in alone:
        other = known[name.replace("seed0", "seed1")]
        assert alone[name][0] != other[0], "control: another seed has other metrics"
        assert alone[name][2] != other[2], "control: and other losses"


@pytest.mark.fresh
def test_two_runs_at_once_share_the_work_and_report(one, tmp_path):
    """A run that comes to the timing while the other is at it leaves the report to that one."""
    out = tmp_path / "results"
    runs = [Run(out, tmp_path / f"log{number}") for number in range(2)]
    assert [run.end() for run in runs] == [DONE, DONE], [run.said() for run in runs]
    assert metrics(out) == metrics(one)
    assert sorted(len(run.did()) for run in runs)[0] > 0, "both took cells"
    assert sum(len(run.did()) for run in runs) == CELLS, "each cell was measured once"
    reported = ["tables: " in run.said() for run in runs]
    assert any(reported)
    assert [LEFT not in run.said() for run in runs] == reported
    assert len(list((out / "records").iterdir())) == 1, "packed"
    assert left_behind(out) == []


@pytest.mark.fresh
def test_the_run_that_times_the_rows_writes_the_report(one, tmp_path):
    """Where another run is at it, a run says so and ends."""
    out = tmp_path / "results"
    shutil.copytree(one, out)
    shutil.rmtree(out / "timing")
    other = fork_holder(out, "", job=timing_job(out))
    run = Run(out, tmp_path / "log")
    assert run.end() == DONE, run.said()
    assert LEFT in run.said()
    assert not (out / "timing").exists()
    other.kill()
    other.join()
    again = Run(out, tmp_path / "again")
    assert again.end() == DONE, again.said()
    assert LEFT not in again.said(), "control: nobody is at it"
    assert (out / "timing").exists()
    assert left_behind(out) == []


@pytest.mark.parametrize(
    ("number", "kinds"),
    [
        pytest.param(2, ["0.5@0,1 seed"], marks=pytest.mark.fresh, id="one of two"),
        pytest.param(4, ["base seed", "0.5@0,1 seed"], marks=pytest.mark.faults, id="two of four"),
    ],
)
def test_workers_killed_among_others_lose_nothing(one, tmp_path, number, kinds):
    """Each is killed at a job of a kind."""
    out = tmp_path / "results"
    runs = [Run(out, tmp_path / f"log{run}") for run in range(number)]
    for kind in kinds:
        victim = until(lambda kind=kind: holding(out, runs, kind))[0]
        time.sleep(0.05)
        victim.process.kill()
        victim.process.join()
    codes = [run.end() for run in runs]
    expected = [-signal.SIGKILL] * len(kinds) + [DONE] * (number - len(kinds))
    assert sorted(codes) == expected, [run.said() for run in runs]
    assert metrics(out) == metrics(one)
    assert left_behind(out) == []


def holding(out: Path, runs: list[Run], kind: str) -> list[Run]:
    """The runs that hold a claim of a kind."""
    pids = {holder.pid for holder in Claims(out).holders().values() if kind in holder.job}
    return [run for run in runs if run.process.pid in pids and run.process.is_alive()]


@pytest.mark.faults
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_several_workers_ends_as_a_whole(one, tmp_path, sign):
    out = tmp_path / "results"
    run = Run(out, tmp_path / "log", "--workers", "2")
    until(lambda: list((out / "records").glob("*/*.json")))
    children = [int(pid) for pid in children_of(run.process.pid)]
    os.kill(run.process.pid, sign)
    code = run.end(120)
    assert code == (-sign if sign == signal.SIGKILL else 128 + sign)
    assert len(children) == 2
    until(lambda: all(start_time(pid) is None for pid in children), 10)
    if sign != signal.SIGKILL:
        assert "the same command continues" in run.said().splitlines()[-1]
        assert list((out / "work" / "claims").iterdir()) == [], "no stale claim"
    if sign == signal.SIGKILL:
        again = Run(out, tmp_path / "again", "--workers", "2")
        assert again.end() == DONE, again.said()
        assert metrics(out) == metrics(one)
        assert left_behind(out) == []


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def copy_without(one: Path, out: Path, *methods: str) -> Path:
    """A copy of a finished folder in which the cells of some methods are missing."""
    shutil.copytree(one, out)
    for path in (out / "records").glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["method"] not in methods))
    return out


@contextlib.contextmanager
def beating(path: Path) -> Iterator[threading.Event]:
    """Keep a claim's heartbeat in the place of another host, until the event is set."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield stop
    finally:
        stop.set()
        heart.join()


@pytest.mark.faults
def test_a_dead_hosts_cell_is_taken_over_and_a_living_hosts_cell_is_waited_for(one, tmp_path, monkeypatch):
    out = copy_without(one, tmp_path / "results", "random", "topk")
    alive = elsewhere(out, "random 0.5@0,1 seed 0", token="b2")
    elsewhere(out, "topk 0.5@0,1 seed 0")
    quickly(monkeypatch, expiry=3.0)
    run = Run(out, tmp_path / "log")
    with beating(alive):
        until(lambda: "waiting for other runs: random 0.5@0,1 seed 0 (elsewhere, process 1)" in run.said())
        until(lambda: "topk 0.5@0,1 seed 0" in "".join(run.did()))
        assert run.process.is_alive()
        assert "random 0.5@0,1 seed 0" not in "".join(run.did())
    alive.unlink()
    assert run.end() == DONE, run.said()
    assert metrics(out) == metrics(one)
    assert left_behind(out) == []


def test_other_recipes_and_fresh_starts_are_refused_beside_a_running_worker(tmp_path, capsys):
    beside = Claims(tmp_path, "000000000000")
    claim = fork_holder(tmp_path, beside.recipe)
    try:
        assert main(words(tmp_path)) == WRONG
        assert "is being written by a run of another recipe" in capsys.readouterr().err
        assert main(words(tmp_path, "--fresh")) == WRONG
        assert "is being written by another run" in capsys.readouterr().err
    finally:
        claim.kill()
        claim.join()
    assert main(words(tmp_path, "--fresh", "--time-limit", "0.001s")) == DONE, "control: nobody is beside"
    assert left_behind(tmp_path) == []


def fork_holder(out: Path, recipe: str, job: str = "a cell") -> multiprocessing.Process:
    """A process that holds the claim of a job until it is killed."""

    def hold() -> None:
        Claims(out, recipe).take(job)
        time.sleep(600)

    process = fork.Process(target=hold)
    process.start()
    until(lambda: key_of(job) in Claims(out).holders())
    return process


def timing_job(out: Path) -> str:
    """The name of the job that times the rows."""
    (machine,) = {record.machine for record in Store.of(out)}
    return f"timing on {machine}"


@pytest.mark.faults
def test_timing_waits_until_nobody_else_works_on_the_host(one, tmp_path, monkeypatch):
    """Another command works on a cell of its own; a claim of another host does not matter."""
    quickly(monkeypatch, expiry=2.0)
    out = copy_without(one, tmp_path / "results", "random")
    shutil.rmtree(out / "timing")
    other = fork_holder(out, "")
    elsewhere(out, "another cell")
    run = Run(out, tmp_path / "log")
    until(lambda: key_of(timing_job(out)) in Claims(out).holders())
    time.sleep(1)
    assert run.process.is_alive()
    assert not (out / "timing").exists()
    other.kill()
    other.join()
    assert run.end() == DONE, run.said()
    assert (out / "timing").exists()


# ------------------------------------------------------------------------------------ launchers


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--launcher", "submitit"], "go together"),
        (["--jobs", "4"], "go together"),
        (["--slurm", "partition=gpu"], "--slurm is for --launcher submitit"),
        (["--launcher", "submitit", "--jobs", "2", "--gpus", "2"], "--slurm gpus_per_node=1"),
        (["--launcher", "submitit", "--jobs", "2", "--fresh"], "delete the folder instead"),
        (["--launcher", "submitit", "--jobs", "2"], "--slurm time=240"),
        (["--launcher", "submitit", "--jobs", "2", "--slurm", "gpu"], "expected KEY=VALUE"),
        (["--launcher", "submitit", "--jobs", "2", "--slurm", "time=9", "--slurm", "colour=red"], "submitit"),
        (["--gpus", "999"], "that can be used"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(tmp_path, capsys, asked, reason):
    assert main(words(tmp_path, *asked)) == WRONG
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("asked", [("--workers", "2"), ("--set", "workers=2")])
def test_workers_share_a_gpu_only_where_cells_time_nothing(tmp_path, capsys, monkeypatch, asked):
    monkeypatch.setattr(environment, "device", lambda _: torch.device("cuda"))
    assert main(["run", "--recipe", "smoke", *asked, "--out", str(tmp_path)]) == WRONG
    assert "--set measure.repeats=0" in capsys.readouterr().err
    small = recipes.load("cifar10-small")
    launch.check_workers(8, small, "auto")
    assert small.can_share("cuda")
    assert not recipes.load("smoke").can_share("cuda")
    assert recipes.load("smoke").can_share("cpu")


def test_without_submitit_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(words(tmp_path, "--launcher", "submitit", "--jobs", "2", "--slurm", "time=9")) == WRONG
    assert "python -m pip install submitit" in capsys.readouterr().err


def test_workers_get_the_commands_words_without_what_launched_them(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(launch, "on_slurm", lambda own, count, **more: found.append((own, count, more)) or DONE)
    options = ["--slurm", "time=9", "--slurm=partition=gpu"]
    assert main(words(tmp_path, "--launcher", "submitit", "--jobs", "2", *options)) == DONE
    ((own, count, more),) = found
    assert (count, more["asked"]) == (2, ["time=9", "partition=gpu"])
    worker = parser().parse_args(own)
    launch.check(argparse.Namespace(**vars(worker), words=own))
    assert not launch.uses_other_processes(worker)
    assert worker.out == tmp_path


@pytest.mark.parametrize(("asked", "each"), [([], "--workers=1"), (["--workers", "3"], "--workers=3")])
def test_every_gpu_gets_one_worker_or_as_many_as_asked_for(tmp_path, monkeypatch, asked, each):
    found = []
    monkeypatch.setattr(launch, "visible_gpus", lambda count: ["0", "1"][:count])
    monkeypatch.setattr(launch, "on_gpus", lambda own, gpus: found.append((own, gpus)) or DONE)
    assert main(words(tmp_path, "--gpus", "2", *asked)) == DONE
    ((own, gpus),) = found
    assert (own[-1], gpus) == (each, ["0", "1"])
    assert parser().parse_args(own).workers == int(each[-1])


def test_options_of_sbatch_get_submitits_names():
    asked = ["partition=gpu", "--cpus-per-task=8", "time=90", "gpus_per_node=1"]
    expected = {"slurm_partition": "gpu", "cpus_per_task": 8, "timeout_min": 90, "gpus_per_node": 1}
    assert launch.options_of(asked) == expected
    assert launch.options_of(["time=1-00:00:00"]) == {"slurm_time": "1-00:00:00"}


@pytest.mark.faults
def test_submitted_workers_share_what_is_left(one, tmp_path, capsys):
    """submitit's local executor in the place of Slurm."""
    pytest.importorskip("submitit")
    out = copy_without(one, tmp_path / "results", "random")
    options = ["--slurm", "cluster=local", "--slurm", "time=20"]
    assert main(words(out, "--launcher", "submitit", "--jobs", "2", *options)) == DONE
    assert "submitted 2 workers" in capsys.readouterr().err
    assert metrics(out) == metrics(one)
    printed = [path.read_text() for path in (out / "work" / "slurm").glob("*.err")]
    assert sum(text.count("random 0.5@0,1 seed") for text in printed) >= 2
    assert left_behind(out) == []


def test_workers_on_gpus_see_one_each_and_the_worst_exit_code_counts(capfd, monkeypatch):
    script = "import os, sys; print('sees', os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr); sys.exit(3)"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **more: popen([sys.executable, "-c", script], **more))
    assert launch.on_gpus(["run"], ["2", "5"]) == 3
    assert sorted(capfd.readouterr().err.splitlines()) == ["GPU 2: sees 2", "GPU 5: sees 5"]


def test_gpus_are_chosen_among_those_that_the_command_may_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7a")
    assert launch.visible_gpus(1) == ["3"]
    with pytest.raises(UsageError, match="--gpus 3: this machine has 2"):
        launch.visible_gpus(3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_workers_on_gpus_end_with_a_command_that_is_killed(tmp_path):
    def begin() -> None:
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        worker = subprocess.Popen(sleeper, preexec_fn=launch.end_with_parent())
        (tmp_path / "pid").write_text(str(worker.pid))
        time.sleep(600)

    command = fork.Process(target=begin)
    command.start()
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert start_time(pid) is not None, "control"
    command.kill()
    command.join()
    until(lambda: start_time(pid) is None, 20)


# ------------------------------------------------------------------------------------ two hosts


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Two hosts with a network between them: name and network interface of each."""
    names = [f"tpb{os.getpid()}{letter}" for letter in "ab"]
    made = [["ip", "netns", "add", name] for name in names]
    made.append(["ip", "link", "add", f"{names[0]}0", "type", "veth", "peer", "name", f"{names[1]}0"])
    for number, name in enumerate(names):
        made.append(["ip", "link", "set", f"{name}0", "netns", name])
        within = ["ip", "-n", name]
        made.append([*within, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"{name}0"])
        made += [[*within, "link", "set", device, "up"] for device in (f"{name}0", "lo")]
    try:
        for command in made:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
        yield [(name, f"{name}0") for name in names]
    except FileNotFoundError:
        pytest.skip("no network namespaces here: there is no `ip`")
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.faults
def test_two_hosts_that_train_together_are_one_worker(one, tmp_path, hosts):
    """torchrun on two hosts of the test's own; the numbers are those of one process up to rounding."""
    out = tmp_path / "results"
    processes = []
    for rank, (name, interface) in enumerate(hosts):
        launcher = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
        launcher += ["--master-addr", "10.77.0.1", "--master-port", "29517"]
        asked = words(out, "--methods", "none,topk", "--seeds", "1")
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "tpbench", *asked]
        rename = f'hostname {name}; exec "$0" "$@"'
        environment = os.environ | {"GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", rename, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
        )
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [DONE, DONE], said
    assert {record.environment["ranks"] for record in Store.of(out)} == {2}
    together = losses(out)
    alone = losses(one)
    assert len(together) == 2
    for name in together:
        assert together[name] == pytest.approx(alone[name], rel=1e-3)
        assert together[name] != pytest.approx(alone[name.replace("seed0", "seed1")], rel=1e-3), "control"
    assert left_behind(out) == []


def losses(out: Path) -> dict[str, dict[str, float]]:
    """The losses of every cell, by their names."""
    return {
        name: {metric: value for metric, value in found.items() if metric.endswith("loss")}
        for name, found in metrics(out).items()
    }
