"""Runs that are killed, stopped, or find a full disk, a lost folder or a wrong clock, and then continue.

Commands are forked from a process that has computed on one thread only: `test_a_part_of_this_in_a_fresh_process` runs
this file again in one. A short part runs with the other tests; `tox -e faults` draws moments at random until 8 minutes
have gone or TPBENCH_FAULTS_SECONDS.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import faults
import pytest
from faults import PLACES, Command, Moment, Watch

from tpbench.cli import DONE, FAILED, WRONG
from tpbench.record import Store, unseal

RECIPE = str(Path(__file__).with_name("short_recipe.py"))
METHODS = "none,random,topk"
CELLS = 3
CLEAN = {signal.SIGTERM: 143, signal.SIGINT: 130}
ACTS = {signal.SIGKILL: faults.kill, signal.SIGTERM: faults.terminate, signal.SIGINT: faults.interrupt}
WRITTEN = [kind for kind in PLACES if kind not in ("work", "folder")]  # what a run writes
SECONDS = float(os.environ.get("TPBENCH_FAULTS_SECONDS", "480"))
SEED = int(os.environ.get("TPBENCH_FAULTS_SEED", "0"))


@pytest.mark.slow
@pytest.mark.skipif(faults.FRESH, reason="this is that process")
def test_a_part_of_this_in_a_fresh_process():
    faults.passes_in_a_fresh_process(__file__)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        faults.hurry(patch, tmp_path_factory.mktemp("tmp"))
        yield


class Folder:
    """A results folder, and commands on it one after the other."""

    def __init__(self, path: Path):
        self.path = path
        self.out = path / "results"
        self.logs = 0

    def run(self, moment: Moment | None = None, act: Callable[[Path], None] = print, **more) -> Command:
        """Run the benchmark until it ends or the fault ends it."""
        self.logs += 1
        log = self.path / f"log{self.logs}"
        asked = ["run", "--recipe", RECIPE, "--methods", METHODS, "--seeds", "1", "--out", str(self.out)]
        prepare = more.pop("prepare", list)
        command = Command(asked, log, Watch(self.out, moment, act, **more), prepare=prepare)
        command.end()
        assert faults.none_left(log), "it left processes behind"
        return command

    def records(self) -> dict[str, dict]:
        """All records by name. Fails where one cannot be read."""
        store = Store(self.out)
        store.scan()
        assert store.bad == [], "no record is ever half written"
        # A folder that vanished begins as a new machine; of two records of a cell the one that did not fail counts.
        failed_first = sorted(store, key=lambda record: record.error is None)
        return {record.file_name: asdict(record) for record in failed_first}

    def metrics(self) -> dict[str, dict]:
        return {name: record["metrics"] for name, record in self.records().items() if record["error"] is None}

    def files(self) -> set[str]:
        """What the folder holds, without this machine's name, which no other folder has."""
        machine = next(iter(self.records().values()))["machine"]
        paths = (path.relative_to(self.out) for path in self.out.rglob("*"))
        return {str(path).replace(machine, "MACHINE") for path in paths}

    def claims(self) -> list[str]:
        folder = self.out / "work" / "claims"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def check_files(self) -> None:
        """Every file with a checksum is whole; only a killed writer's own file may be half there."""
        for path in self.out.rglob("*.json"):
            if "claims" not in path.parts and not path.name.startswith("."):
                json.loads(unseal(path.read_bytes())[0])

    def check_kept(self, before: dict[str, dict]) -> None:
        """What was measured before is there as it was."""
        after = self.records()
        assert {name: after.get(name) for name in before} == before, "nothing finished is lost or measured again"

    def check_complete(self, one: Folder) -> None:
        """It ended like an undisturbed run: same numbers, same files."""
        assert self.metrics() == one.metrics()
        assert self.files() == one.files()
        self.check_files()


def finished(records: dict[str, dict]) -> dict[str, dict]:
    return {name: record for name, record in records.items() if record["error"] is None}


def one_line(command: Command) -> str:
    """The last line that a command said; every line before belongs to what it did."""
    said = command.said()
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Folder:
    """An undisturbed run."""
    folder = Folder(tmp_path_factory.mktemp("one"))
    command = folder.run()
    assert command.end() == DONE, command.said()
    assert len(folder.metrics()) == CELLS
    assert folder.claims() == []
    folder.seen = command.seen()
    return folder


@pytest.mark.fresh
def test_the_undisturbed_run_writes_every_kind_of_file(one):
    assert set(WRITTEN) - set(one.seen) <= {"starts"}, "the moments below are all there"
    assert (one.out / "report.html").exists()


@pytest.mark.fresh
def test_control_what_is_left_behind_is_seen(one, tmp_path):
    """The checks below find a half record, a lost one, one measured again, other numbers, a forgotten file."""
    folder = Folder(tmp_path)
    shutil.copytree(one.out, folder.out)
    folder.check_complete(one)
    before = folder.records()
    (packed,) = (folder.out / "records").glob("*.jsonl")
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssertionError, match="half written"):
        folder.records()
    packed.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(AssertionError, match="lost"):
        folder.check_kept(before)
    packed.write_bytes(whole)
    (folder.out / "work" / ".half.part").touch()
    with pytest.raises(AssertionError):
        folder.check_complete(one)


# ------------------------------------------------------------------------------------ killed and stopped


def chain(folder: Folder, one: Folder, *, moments: list[Moment], signs: list[int]) -> Counter[str]:
    """End one run after the other at these moments; how many were ended at each kind of file. The last one finishes."""
    ended: Counter[str] = Counter()
    for moment, sign in zip(moments, signs):
        before = finished(folder.records()) if folder.out.exists() else {}
        command = folder.run(moment, ACTS[sign])
        code = command.end()
        assert code in (DONE, CLEAN.get(sign, -sign)), f"{moment}: {command.said()}"
        folder.check_kept(before)
        folder.check_files()
        ended[moment.kind] += code != DONE
        if code in CLEAN.values():
            assert "the same command continues" in one_line(command), moment
            assert folder.claims() == [], moment
            assert not list(folder.out.rglob(".*.part")), moment
    command = folder.run()
    assert command.end() == DONE, command.said()
    assert folder.claims() == []
    folder.check_complete(one)
    return ended


@pytest.mark.fresh
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(one, tmp_path):
    """Once at each of these kinds of file, in the order in which a run comes to them."""
    chance = random.Random(SEED)
    kinds = ["training of the base", "base", "fine-tuning", "record", "timing", "figure", "page"]
    moments = [Moment.chosen(chance, kind, min(3, one.seen[kind])) for kind in kinds]
    signs = [signal.SIGKILL] * len(moments)
    assert chain(Folder(tmp_path), one, moments=moments, signs=signs).total() >= 5


@pytest.mark.faults
def test_a_run_stopped_again_and_again_says_so_and_ends_like_an_undisturbed_one(one, tmp_path):
    kinds = ["claim", "training of the base", "fine-tuning", "record", "timing", "table"]
    signs = [signal.SIGTERM, signal.SIGINT] * 3
    moments = [Moment(kind) for kind in kinds]
    assert chain(Folder(tmp_path), one, moments=moments, signs=signs).total() == len(kinds)


@pytest.mark.faults
def test_random_moments_until_the_time_is_up(one, tmp_path):
    """Killed, terminated and interrupted at every kind of file."""
    chance = random.Random(SEED)
    end = time.monotonic() + SECONDS
    ended: Counter[str] = Counter()
    number = 0
    while time.monotonic() < end:
        kinds = chance.choices([kind for kind in WRITTEN if one.seen[kind]], k=6)
        kinds.sort(key=WRITTEN.index)
        moments = [Moment.chosen(chance, kind, one.seen[kind]) for kind in kinds]
        signs = chance.choices(list(ACTS), weights=[2, 1, 1], k=len(moments))
        ended += chain(Folder(tmp_path / str(number)), one, moments=moments, signs=signs)
        shutil.rmtree(tmp_path / str(number))
        number += 1
    print(f"\n{ended.total()} runs ended in {number} folders, seed {SEED}: {dict(ended)}")
    assert ended.total() >= min(50, SECONDS / 30)


# ------------------------------------------------------------------------------------ what the system refuses


def refused(folder: Folder, kind: str, *, act: Callable[[Path], None], says: str) -> int:
    """Run until a kind of file cannot be written, and see that one line says so; the exit code."""
    before = finished(folder.records()) if folder.out.exists() else {}
    command = folder.run(Moment(kind, lasting=True), act, writes_alone=act is faults.disk_full)
    said = one_line(command)
    assert says in said, f"{kind}: {command.said()}"
    assert said.startswith(("tpbench: ", "cannot write ", "error: ")) or "cannot" in said, said
    folder.check_kept(before)
    folder.check_files()
    assert not list(folder.out.rglob(".*.part")), kind
    return command.end()


@pytest.mark.faults
@pytest.mark.parametrize(
    "kinds",
    [
        ["claim", "base", "record", "timing", "page"],
        pytest.param(
            [kind for kind in WRITTEN if kind != "starts"],
            marks=pytest.mark.faults,
        ),
    ],
    ids=["some", "all"],
)
def test_a_full_disk_is_said_and_nothing_is_lost(one, tmp_path, kinds):
    folder = Folder(tmp_path)
    for kind in kinds:
        assert refused(folder, kind, act=faults.disk_full, says="No space left on device") == FAILED, kind
    assert folder.run().end() == DONE
    folder.check_complete(one)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["claim", "record", pytest.param("table", marks=pytest.mark.faults)])
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(one, tmp_path, kind):
    folder = Folder(tmp_path)
    assert refused(folder, kind, act=faults.read_only, says="Read-only file system") == WRONG
    if kind == "record":
        assert folder.run().end() == DONE
        folder.check_complete(one)


@pytest.mark.faults
def test_a_disk_that_fills_up_really(one, tmp_path):
    """A small file system in memory; torch writes its checkpoints past Python."""
    folder = Folder(tmp_path)
    folder.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tpbench-faults", str(folder.out)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()}")
    try:
        for size in ("64k", "180k", "320k"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder.out)], check=True)
            command = folder.run()
            assert command.end() == FAILED, command.said()
            assert "No space left on device" in one_line(command), size
            folder.records()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder.out)], check=True)
        command = folder.run()
        assert command.end() == DONE, command.said()
        folder.check_complete(one)
    finally:
        subprocess.run(["umount", str(folder.out)], check=False)


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind", ["record", *(pytest.param(kind, marks=pytest.mark.faults) for kind in ("fine-tuning", "timing", "table"))]
)
def test_a_folder_that_vanishes_is_no_puzzle(one, tmp_path, kind):
    """Somebody deletes it meanwhile: what cannot go on says so, and the same command starts again."""
    folder = Folder(tmp_path)

    def vanish(_: Path) -> None:
        shutil.rmtree(folder.out)

    command = folder.run(Moment(kind), vanish)
    assert command.end() in (DONE, FAILED, WRONG), command.said()
    assert "Traceback" not in command.said()
    again = folder.run()
    assert again.end() == DONE, again.said()
    assert folder.metrics() == one.metrics(), again.said()
    assert folder.claims() == []


@pytest.mark.faults
def test_a_clock_that_goes_backwards_changes_no_number(one, tmp_path):
    """An hour back at every look."""
    folder = Folder(tmp_path)

    def prepare() -> None:
        clock = time.time
        looks = iter(range(10**9))
        time.time = lambda: clock() - 3600 * next(looks)

    command = folder.run(prepare=prepare)
    assert command.end() == DONE, command.said()
    folder.check_complete(one)
    for record in folder.records().values():
        assert all(pair >= 0 for pair in durations(record)), record["file_name"]


def durations(record: dict) -> Iterator[float]:
    """Every number of a record that is a time in seconds."""
    yield record["training"].get("seconds", 0.0)
    for times in record["latency"].values():
        yield from times["reduced"]
        yield from times["unreduced"]
