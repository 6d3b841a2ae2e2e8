"""A timing session: fair turns, samples that survive an interruption, intervals that cover, latencies that are met."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from test_report import measured

from tpbench import registry, vit
from tpbench.bench import results_folder
from tpbench.bench.plan import Cell
from tpbench.bench.workspace import Workspace
from tpbench.errors import UsageError
from tpbench.measure import advice, grid_session, latency_budget, session, speeds, timings
from tpbench.measure import images as pictures
from tpbench.measure import subject as subjects
from tpbench.measure.entries import Entry, Grid, Subject, entries, keys, require_some
from tpbench.measure.modes import Mode
from tpbench.measure.session import Effort
from tpbench.measure.timings import Group, Key, Row, Session
from tpbench.record import Budget, Record, write
from tpbench.report import advised
from tpbench.report import timed as table
from tpbench.schedule import Schedule, parse, parse_all

CPU = torch.device("cpu")
ALONE = Group(1, "float32")


def row(method: str = "topk", role: str = "reduced", **lines) -> Row:
    about = {"schedule": "0.5@0", "batch": 1, "dtype": "float32", "mode": "eager", "macs": 50}
    return Row(method, role=role, **(about | lines))


def rows_of(**seconds: list[float]) -> list[Row]:
    """A reference, its control and reduced rows of a group, with their samples."""
    roles = {"reference": "reference", "control": "control"}
    return [
        row("timm" if name in roles else name, roles.get(name, "reduced"), seconds=samples, macs=100)
        for name, samples in seconds.items()
    ]


def made(rows: list[Row], wanted: int = 5, **lines) -> Session:
    about = {"machine": "here", "model": "tiny", "weights": "random", "images": {"fingerprint": "a"}}
    about |= {"environment": {"device": "it", "cores": 2}, "facts": {}}
    return Session(wanted=wanted, rows=rows, **(about | lines))


@pytest.fixture
def subject(vit) -> Subject:
    return Subject("tiny", "random", vit, pictures.photographs(vit, 4, CPU))


# ---------------------------------------------------------------- the file


def test_a_session_comes_back_from_its_file(tmp_path):
    session = made(rows_of(reference=[0.1, 0.2], control=[0.1, 0.3], topk=[0.05, 1e-9]))
    session.rows.append(row("tome", error="it failed"))
    timings.write(tmp_path / "s.json", session)
    assert timings.read(tmp_path / "s.json") == session
    assert (tmp_path / "s.json").read_text().count("\n  {") == 4, "one line a row"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole.update(schema=0), "schema 0"),
        (lambda whole: whole["rows"][0].update(batch="one"), "rows.0.batch"),
        (lambda whole: whole["rows"][0]["seconds"].pop(), "different numbers of samples"),
        (lambda whole: whole["rows"].append(whole["rows"][0]), "occurs twice"),
        (lambda whole: whole["rows"][0].update(error="no"), "with an error has samples"),
        (lambda whole: whole.pop("model"), "model"),
    ],
)
def test_a_file_that_is_no_session_is_refused_by_name(tmp_path, change, says):
    path = tmp_path / "s.json"
    timings.write(path, made(rows_of(reference=[0.1, 0.2], topk=[0.1, 0.2])))
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(UsageError, match=rf"s\.json .*{says}"):
        timings.read(path)


# ---------------------------------------------------------------- intervals


def drifting(seed: int, rounds: int = 60) -> tuple[list[float], list[float]]:
    """Samples of one model twice: each round is as slow as the machine is busy then, and every sample has noise."""
    draw = np.random.default_rng(seed)
    busy = np.exp(draw.normal(0, 0.5, rounds))
    return tuple((busy * np.exp(draw.normal(0, 0.02, rounds))).tolist() for _ in range(2))


def test_the_interval_of_one_model_against_itself_covers_one():
    ratios = [speeds.ratio(*drifting(seed)) for seed in range(200)]
    assert 0.90 <= sum(ratio.includes_one for ratio in ratios) / 200 <= 1.0
    slower = [speeds.ratio(own, [1.05 * second for second in other]) for own, other in map(drifting, range(200))]
    assert sum(ratio.includes_one for ratio in slower) / 200 < 0.5, "control: 5 % are seen in spite of the drift"


def test_resampling_rounds_uses_that_they_are_shared():
    """Control: where samples of a round do not belong together, the same numbers say far less."""
    own, other = drifting(0)
    together = speeds.ratio(own, other)
    random.Random(0).shuffle(other)
    apart = speeds.ratio(own, other)
    assert (apart.high - apart.low) > 5 * (together.high - together.low)
    with pytest.raises(ValueError, match="different rounds"):
        speeds.ratio(own, other[:-1])


def test_the_reference_is_the_fastest_mode_and_the_control_is_no_rival():
    rows = rows_of(reference=[2.0] * 5, control=[0.1] * 5, topk=[0.5] * 5)
    rows.append(row("timm", "reference", mode="compiled", seconds=[1.0] * 5, macs=100))
    found = {(s.row.method, s.row.mode): s for s in speeds.speeds(made(rows), ALONE)}
    assert found["topk", "eager"].speedup.value == 2.0
    assert found["timm", "eager"].speedup.value == 0.5
    assert set(found) == {("timm", "eager"), ("timm", "compiled"), ("topk", "eager")}
    assert speeds.control(made(rows), ALONE).value == 20


@pytest.mark.parametrize(("count", "known"), [(199, False), (200, True)])
def test_a_95th_percentile_needs_200_samples(count, known):
    samples = np.linspace(1, 2, count).tolist()
    (_, found) = speeds.speeds(made(rows_of(reference=samples, control=samples, topk=samples)), ALONE)
    assert (found.p95 is not None) == known
    assert found.p95 is None or found.p95 == pytest.approx(1.95)


@pytest.mark.parametrize(("seconds", "marked"), [(0.70, False), (0.712, False), (0.716, True), (0.68, True)])
def test_a_row_more_than_two_percent_off_its_latency_is_marked(seconds, marked):
    rows = [*rows_of(reference=[1.0] * 5, control=[1.0] * 5), row(asked=0.7, seconds=[seconds] * 5)]
    assert speeds.speeds(made(rows), ALONE)[-1].misses_latency == marked


# ---------------------------------------------------------------- turns


class Clockwork:
    """Entries that note who was called, in order."""

    def __init__(self, *methods: str):
        self.called: list[str] = []
        self.entries = [self.entry(method) for method in methods]

    def entry(self, method: str) -> Entry:
        return Entry(row(method), lambda: lambda: self.called.append(method))

    def run(self, path: Path | None = None, rounds: int = 8, begun: Session | None = None, **how) -> Session:
        begun = begun or made([], wanted=rounds)
        return session.run(begun, self.entries, Effort(rounds), CPU, path, **how)


def test_every_row_has_its_turn_in_every_round_in_random_order():
    work = Clockwork("a", "b", "c", "d")
    done = work.run(rounds=40)
    warm, rest = work.called[: 4 * session.WARM_UP], work.called[4 * session.WARM_UP :]
    assert sorted(warm) == sorted("abcd" * session.WARM_UP), "warm before the first round"
    rounds = ["".join(rest[start : start + 4]) for start in range(0, len(rest), 4)]
    assert len(rounds) == 40
    assert all(sorted(turn) == list("abcd") for turn in rounds)
    assert len(set(rounds)) > 10, "no fixed order"
    assert {turn[0] for turn in rounds} == set("abcd")
    assert [len(line.seconds) for line in done.rows] == [40] * 4
    assert all(second > 0 for line in done.rows for second in line.seconds)


class Stop(Exception):
    pass


def stopping(after: int) -> Callable[[], None]:
    left = iter(range(after))

    def check() -> None:
        if next(left, None) is None:
            raise Stop

    return check


def test_an_interrupted_session_continues(tmp_path):
    path = tmp_path / "timing" / "here.json"
    with pytest.raises(Stop):
        Clockwork("a", "b").run(path, check=stopping(after=3))
    before = timings.read(path)
    assert before.rounds == 3
    done = Clockwork("a", "b").run(path)
    assert done.rounds == 8
    assert [part.rounds for part in done.sittings] == [3, 5]
    assert [line.seconds[:3] for line in done.rows] == [line.seconds for line in before.rows], "samples are kept"
    assert timings.read(path) == done


def test_a_session_cut_by_a_time_limit_is_not_finished_and_goes_on_to_the_rounds_wanted(tmp_path):
    path = tmp_path / "here.json"
    limited = Effort(8, seconds=1e-9)
    work = Clockwork("a", "b")
    known = [entry.row.key for entry in work.entries]
    cut = session.run(made([], wanted=8), work.entries, limited, CPU, path)
    assert cut.rounds == timings.LEAST_ROUNDS, "the limit is over, but an interval needs these"
    assert not cut.complete
    assert session.finished(path, made([], wanted=8), known) is None
    further = session.run(made([], wanted=8), work.entries, limited, CPU, path)
    assert further.rounds == timings.LEAST_ROUNDS + 1, "however little time there is, it goes on"
    done = work.run(path)
    assert [part.rounds for part in done.sittings] == [timings.LEAST_ROUNDS, 1, 2]
    assert [line.seconds[: cut.rounds] for line in done.rows] == [line.seconds for line in cut.rows]
    assert done.complete
    assert session.finished(path, made([], wanted=8), known) == done
    assert session.finished(path, made([], wanted=9), known) is None, "control: more rounds are wanted"


def test_a_budget_is_for_all_sittings_together(tmp_path):
    path = tmp_path / "here.json"
    begun = made([], wanted=1000, budget=0.05)
    spent = timings.Sitting("before", rounds=20, seconds=0.05)
    work = Clockwork("a", "b")
    rows = [replace(entry.row, seconds=[0.1] * 20) for entry in work.entries]
    timings.write(path, replace(begun, rows=rows, sittings=[spent]))
    assert session.finished(path, begun, [line.key for line in rows]) is not None
    assert session.finished(path, replace(begun, budget=0.06), [line.key for line in rows]) is None, "control"
    assert work.run(path, rounds=1000, begun=begun).rounds == 21, "not as long again"


KILLED = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_timing import Clockwork, made
from tpbench.measure import session
session.SAVE_SECONDS = 0.0
rounds = iter(range(7))
def check():
    if next(rounds, None) is None:
        os.kill(os.getpid(), 9)
Clockwork("a", "b").run(Path({path!r}), check=check)
"""


def test_a_session_that_was_killed_continues(tmp_path):
    """By a signal that no handler sees: what the last save held is there, and the file is whole."""
    path = tmp_path / "here.json"
    script = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = timings.read(path)
    assert before.rounds == 7
    after = Clockwork("a", "b").run(path)
    assert [part.rounds for part in after.sittings] == [7, 1]
    assert [line.seconds[:7] for line in after.rows] == [line.seconds for line in before.rows]


def test_counts_are_kept_before_the_first_round(tmp_path):
    path = tmp_path / "here.json"
    with pytest.raises(Stop):
        Clockwork("a", "b").run(path, check=stopping(after=0))
    assert [line.key.method for line in timings.read(path).rows] == ["a", "b"]
    assert timings.read(path).rounds == 0


@pytest.mark.parametrize(
    ("change", "work", "says"),
    [
        ({"facts": {"threads": 7}}, Clockwork("a", "b"), "facts changed since 3 rounds"),
        ({"git": {"commit": "another"}}, Clockwork("a", "b"), "git changed"),
        ({}, Clockwork("a", "c"), "rows changed"),
        ({}, Clockwork("a", "b", "c"), "rows changed"),
    ],
)
def test_rounds_under_other_conditions_are_not_mixed(tmp_path, change, work, says):
    path = tmp_path / "here.json"
    with pytest.raises(Stop):
        Clockwork("a", "b").run(path, check=stopping(after=3))
    told = []
    done = work.run(path, begun=made([], wanted=8, **change), watch=lambda stage, *_: told.append(stage))
    assert [part.rounds for part in done.sittings] == [8]
    assert any(says in stage for stage in told), "nobody loses rounds without being told"


def test_a_round_that_was_interrupted_is_left_out(tmp_path):
    work = Clockwork("a", "b")
    calls = iter(range(2 * session.WARM_UP + 5))  # the warm-up, two rounds, and half of the third

    def interrupted() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    for entry in work.entries:
        entry.make = lambda: interrupted
    path = tmp_path / "here.json"
    with pytest.raises(KeyboardInterrupt):
        work.run(path)
    assert timings.read(path).rounds == 2


def test_what_a_file_has_already_is_not_timed_again(tmp_path):
    path = tmp_path / "here.json"
    done = Clockwork("a", "b").run(path, rounds=5)
    known = [line.key for line in done.rows]
    begun = made([], wanted=5)
    assert session.finished(path, begun, known) == done
    assert session.finished(path, begun, known[:1]) == done, "a part of its rows is there too"
    assert session.finished(path, made([], wanted=6), known) is None
    assert session.finished(path, made([], wanted=6, budget=0.0), known) == done, "its budget was spent"
    assert session.finished(path, begun, [*known, row("c").key]) is None
    assert session.finished(tmp_path / "other.json", begun, known) is None
    with pytest.raises(UsageError, match=r"times model tiny, not other; use --fresh"):
        session.finished(path, replace(begun, model="other"), known)


def test_a_row_that_cannot_run_leaves_its_reason_and_a_reference_must_run():
    def broken() -> Callable[[], None]:
        raise RuntimeError("no such kernel\nat all")

    work = Clockwork("a")
    work.entries.append(Entry(row("b"), broken))
    done = work.run()
    assert [line.error for line in done.rows] == [None, "RuntimeError: no such kernel at all"]
    assert [len(line.seconds) for line in done.rows] == [8, 0]
    work.entries.append(Entry(row("timm", "reference"), broken))
    with pytest.raises(RuntimeError, match="no such kernel"):
        work.run()


def test_whatever_a_method_raises_the_other_rows_are_timed():
    def failing() -> Callable[[], object]:
        raise AssertionError("a method's own")

    broken = Entry(row("topk"), failing)
    found = session.warmed([broken, Entry(row("tome"), lambda: lambda: None)], CPU)
    assert {one.method: one.error for one in found.rows} == {"topk": "AssertionError: a method's own", "tome": None}
    with pytest.raises(AssertionError):
        session.warmed([Entry(row("timm", role="reference"), failing)], CPU)


def test_memory_that_runs_out_names_the_batch():
    def full() -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UsageError, match="out of GPU memory in timing with 1 images"):
        session.run(made([]), [Entry(row("timm", "reference"), full)], Effort(5), CPU)


@pytest.mark.parametrize(
    ("effort", "rounds", "seconds", "enough"),
    [
        (Effort(50), 49, 1e9, False),
        (Effort(50), 50, 0, True),
        (Effort(50, 10), 20, 9, False),
        (Effort(50, 10), 20, 11, True),
        (Effort(50, 10), timings.LEAST_ROUNDS - 1, 11, False),
        (Effort(50, 1e-9), 20, 0, False),
    ],
)
def test_effort_is_rounds_or_seconds_and_at_least_a_few_rounds(effort, rounds, seconds, enough):
    assert effort.enough(rounds, seconds) == enough
    assert (effort.left(rounds, seconds, round_seconds=1.0) == 0) == enough


# ---------------------------------------------------------------- images and rows


def test_photographs_are_real_crops_and_always_the_same(vit):
    pixels, about = pictures.photographs(vit, 6, CPU)
    assert pixels.shape == (6, 3, 32, 32)
    assert pixels.abs().max() <= 1 + 1e-5
    assert torch.equal(pixels, pictures.photographs(vit, 6, CPU).pixels)
    assert about["fingerprint"] == pictures.photographs(vit, 6, CPU).about["fingerprint"]
    assert len({image.mean().item() for image in pixels}) == 6, "different crops"
    near = (pixels[..., 1:] - pixels[..., :-1]).abs().mean()
    noise = torch.randn(6, 3, 32, 32) * pixels.std()
    assert near < 0.3 * (noise[..., 1:] - noise[..., :-1]).abs().mean(), "control: noise"


def test_grey_models_see_grey_photographs_and_others_are_refused(make_vit):
    assert pictures.photographs(make_vit(in_chans=1), 2, CPU).pixels.shape == (2, 1, 32, 32)
    with pytest.raises(UsageError, match="5 channels"):
        pictures.photographs(make_vit(in_chans=5), 2, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_method_can_be_timed_in_every_dtype(subject, dtype):
    """Weights of the dtype, its own parameters too: whatever passes through the blocks."""
    grid = Grid(tuple(registry.variants("all")), parse_all("0.5@0,2"), (2,), (dtype,))
    found = entries(subject, grid)
    calls, rows, _ = session.warmed(found, CPU)
    assert [line.method for line in rows if line.error] == []
    assert len(calls) == len(found) == len(registry.select("all")) + 2
    assert {call().dtype for call in calls.values()} == {dtype}
    assert [line.key for line in rows] == keys(grid)


def test_the_rows_of_a_grid(subject):
    grid = Grid(
        variants=tuple(registry.variants("none,topk,avgpool")),
        schedules=parse_all("0.5@0;31@1"),
        batch_sizes=(1, 4),
        modes=tuple(Mode(compiled=True).permitted()),
    )
    found = [entry.row for entry in entries(subject, grid)]
    assert [line.key for line in found] == keys(grid)
    assert len({line.key for line in found}) == len(found) == 2 * (3 + 2 * (1 + 2 * 2))
    each = [(line.method, line.role, line.mode) for line in found if line.batch == 4 and line.method == "timm"]
    assert each == [("timm", "reference", "eager"), ("timm", "reference", "compiled"), ("timm", "control", "eager")]
    counts = {(line.method, line.schedule): line.counts for line in found}
    assert counts["topk", "31@1"] == [31]
    assert counts["avgpool", "31@1"] == [30], "five times six"
    assert all(line.macs > 0 for line in found)


def test_a_method_that_cannot_is_a_hole_unless_none_can(subject):
    grid = Grid(tuple(registry.variants("none,topk,tome")), parse_all("3@0"), (1,))
    with_hole = {entry.row.method: entry.row.error for entry in entries(subject, grid)}
    assert with_hole["topk"] is None
    assert "tome" in with_hole["tome"].lower()
    with pytest.raises(UsageError, match="removes at most half"):
        require_some(entries(subject, replace(grid, variants=tuple(registry.variants("tome")))))
    require_some(entries(subject, grid))
    with pytest.raises(UsageError, match="no such setting"):
        entries(subject, replace(grid, variants=tuple(registry.variants("topk,wkmedoids(colour=red)"))))


# ---------------------------------------------------------------- shares of latency


class Machine:
    """A machine on which latency follows from multiply-adds: some fixed share, some per method, and noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: float, overhead: Mapping[str, float], noise: float):
        self.draw = np.random.default_rng(0)
        self.fixed = fixed
        self.overhead = overhead
        self.noise = noise
        self.whole = 0
        self.rows: dict[Key, Row] = {}
        monkeypatch.setattr(latency_budget, "warmed", self.warmed)
        monkeypatch.setattr(latency_budget, "one_round", self.one_round)

    def warmed(self, found, *_, **__):
        self.rows = {entry.row.key: entry.row for entry in found}
        self.whole = found[0].row.macs
        return self.rows, list(self.rows.values()), 1.0

    def true(self, line: Row) -> float:
        share = line.macs / self.whole
        return self.fixed + (1 - self.fixed) * share + self.overhead.get(line.method, 0.0)

    def one_round(self, calls, *_) -> dict[Key, float]:
        busy = np.exp(self.draw.normal(0, 0.3))
        return {key: busy * self.true(line) * np.exp(self.draw.normal(0, self.noise)) for key, line in calls.items()}


def share_of(machine: Machine, subject: Subject, method: str, counts: list[int], blocks: str) -> float:
    model = vit.reduce(subject.model, method, f"{','.join(map(str, counts))}@{blocks}")
    return machine.true(row(method, macs=sum(model.macs().values())))


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("fixed", [0.0, 0.2])
def test_every_method_meets_the_latency_asked_for(subject, monkeypatch, fixed, noise):
    overhead = {"wkmedoids": 0.08, "tome": 0.04}
    machine = Machine(monkeypatch, fixed, overhead, noise)
    asked = [(variant, parse("latency=0.8@0,1,2")) for variant in registry.variants("topk,wkmedoids,tome,random")]
    found = latency_budget.solve(subject, asked, 4, torch.float32)
    for (variant, _), solution in found.items():
        assert solution.error is None
        got = share_of(machine, subject, variant.method, solution.counts, "0,1,2")
        assert got == pytest.approx(0.8, rel=speeds.NEAR + noise / 2), "the clock is as exact as its noise allows"
        assert abs(solution.off) <= speeds.NEAR
        assert all(len(tried["reduced"]) == len(tried["unreduced"]) > 0 for tried in solution.tried)
        at_macs = vit.reduce(subject.model, variant.method, "macs=0.8@0,1,2")
        without = machine.true(row(variant.method, macs=sum(at_macs.macs().values())))
        if fixed or variant.method in overhead:
            assert without != pytest.approx(0.8, rel=0.02), "control: the share of MACs does not meet it"


@pytest.mark.parametrize(("slower", "met"), [(1.0, True), (1.1, False)])
def test_at_the_end_of_a_session_every_row_has_its_latency_or_is_marked(subject, monkeypatch, slower, met):
    """Control: a machine on which reduced models are slower in the session than they were in the search."""
    machine = Machine(monkeypatch, fixed=0.2, overhead={"wkmedoids": 0.08, "tome": 0.04}, noise=0.0)

    def one_round(calls: Mapping[Key, Row], *_) -> dict[Key, float]:
        factor = {key: slower if key.role == "reduced" else 1.0 for key in calls}
        return {key: factor[key] * seconds for key, seconds in machine.one_round(calls).items()}

    monkeypatch.setattr(session, "warmed", machine.warmed)
    monkeypatch.setattr(session, "one_round", one_round)
    grid = Grid(tuple(registry.variants("topk,wkmedoids,tome")), parse_all("latency=0.8@0,1,2"), (1, 4))
    done = grid_session.time(subject, grid, Effort(20), None)
    found = {group: speeds.speeds(done, group) for group in done.groups}
    asked = [speed for own in found.values() for speed in own if speed.row.asked is not None]
    assert [(speed.row.method, speed.row.batch) for speed in asked] == [("topk", 4), ("wkmedoids", 4), ("tome", 4)]
    for speed in asked:
        assert (slower * machine.true(speed.row) == pytest.approx(0.8, rel=speeds.NEAR)) == met
        assert speed.misses_latency != met
    marks = [line["Method"] for group in found for line in table.lines(done, group) if "*" in line["ms"]]
    assert sorted(marks) == ([] if met else ["tome", "topk", "wkmedoids"])
    assert len(table.missed(done)) == len(marks)


def test_a_latency_below_what_reducing_costs_is_out_of_reach(subject, monkeypatch):
    Machine(monkeypatch, fixed=0.6, overhead={}, noise=0.0)
    asked = (registry.variants("topk")[0], parse("latency=0.5@0,1,2"))
    (solution,) = latency_budget.solve(subject, [asked], 4, torch.float32).values()
    assert solution.counts is None
    assert "cannot cost 0.5 of the unreduced model's latency; the nearest it reaches is 0." in solution.error


def test_a_method_that_hides_tokens_only_says_why_it_cannot(subject, monkeypatch):
    Machine(monkeypatch, fixed=0.0, overhead={}, noise=0.0)
    masked = next(name for name in registry.catalogue()[0] if registry.method(name).masks)
    asked = (registry.variants(masked)[0], parse("latency=0.5@0,1,2"))
    (solution,) = latency_budget.solve(subject, [asked], 4, torch.float32).values()
    assert solution.counts is None
    assert "the nearest it reaches is 1" in solution.error


def test_steps_that_cannot_be_met_come_to_an_end(subject, monkeypatch):
    """Latency in steps of a quarter: nothing is within 2 %, the nearest is kept or refused, and it is timed thrice."""
    machine = Machine(monkeypatch, fixed=0.0, overhead={}, noise=0.0)
    monkeypatch.setattr(machine, "true", lambda line: np.ceil(4 * line.macs / machine.whole) / 4)
    asked = (registry.variants("topk")[0], parse("latency=0.65@0,1,2"))
    (solution,) = latency_budget.solve(subject, [asked], 4, torch.float32).values()
    assert solution.counts is None
    assert "0.750" in solution.error


def test_a_time_limit_shortens_the_search(subject, monkeypatch):
    machine = Machine(monkeypatch, fixed=0.1, overhead={}, noise=0.0)
    rounds = []
    monkeypatch.setattr(latency_budget, "one_round", lambda *turn: rounds.append(turn) or machine.one_round(*turn))
    asked = [(registry.variants("topk")[0], parse("latency=0.8@0,1,2"))]
    latency_budget.solve(subject, asked, 4, torch.float32)
    free = len(rounds)
    rounds.clear()
    (solution,) = latency_budget.solve(subject, asked, 4, torch.float32, seconds=1e-9).values()
    assert len(rounds) == latency_budget.LEAST_ROUNDS < free, "one pass, however little time there is"
    assert solution.tried


def test_counts_that_a_session_has_found_are_kept(subject, tmp_path, monkeypatch):
    path = tmp_path / "here.json"
    grid = Grid(tuple(registry.variants("topk,tome")), parse_all("latency=0.8@0,1,2"), (4,))
    place = {"schedule": "latency=0.8@0,1,2", "batch": 4, "asked": 0.8}
    line = row("topk", counts=[50, 40, 30], seconds=[1.0], **place)
    timings.write(path, made([line, row("tome", error="the nearest it reaches is 0.9", **place)]))
    monkeypatch.setattr(latency_budget, "solve", lambda *_, **__: pytest.fail("solved again"))
    known = grid_session.found_before(path, made([]), grid)
    solved = grid_session.solve(subject, grid, Effort(), known)
    assert [getattr(found, "counts", found) for found in solved.values()] == [
        (50, 40, 30),
        "the nearest it reaches is 0.9",
    ]
    with pytest.raises(pytest.fail.Exception, match="solved again"):
        grid_session.solve(subject, grid, Effort())


def test_counts_found_elsewhere_or_under_other_conditions_are_not_kept(tmp_path):
    path = tmp_path / "here.json"
    grid = Grid(tuple(registry.variants("topk")), parse_all("latency=0.8@0,1,2"), (4,))
    line = row("topk", schedule="latency=0.8@0,1,2", batch=4, asked=0.8, counts=[50, 40, 30], seconds=[1.0])
    timings.write(path, made([line]))
    assert grid_session.found_before(path, made([]), grid), "control"
    assert not grid_session.found_before(path, made([]), replace(grid, batch_sizes=(4, 8))), "another largest batch"
    assert not grid_session.found_before(path, made([], facts={"threads": 7}), grid)
    assert not grid_session.found_before(tmp_path / "none.json", made([]), grid)


def test_only_the_rows_where_latency_was_solved_are_held_to_it(subject):
    schedule = parse("latency=0.8@0,1,2")
    (variant,) = registry.variants("topk")
    grid = Grid((variant,), (schedule,), (1, 4))
    found = entries(subject, grid, {(variant, schedule): schedule.with_counts([50, 40, 30])})
    assert {entry.row.batch: entry.row.asked for entry in found if entry.row.method == "topk"} == {1: None, 4: 0.8}
    refused = {(variant, schedule): "out of reach"}
    assert [entry.row.error for entry in entries(subject, grid, refused)][2::3] == ["out of reach"] * 2


def test_pairs_that_nobody_asked_for_are_left_out():
    schedules = (parse("latency=0.8@0,1,2"), parse("0.5@0,1"))
    topk, tome = registry.variants("topk,tome")
    grid = Grid((topk, tome), schedules, (1,))
    without = replace(grid, without_counts=frozenset({(tome, schedules[0])}))
    assert [*grid.pairs()] == [(topk, schedules[0]), (tome, schedules[0]), (topk, schedules[1]), (tome, schedules[1])]
    assert [*without.pairs()] == [(topk, schedules[0]), (topk, schedules[1]), (tome, schedules[1])]


def test_rows_whose_records_have_other_counts_are_outdated():
    """Learned again under the same name, their seconds are those of other counts."""
    learned = row("topk", schedule="learned:one", counts=[30, 20], seconds=[1.0])
    session = made([learned, row("tome", schedule="0.5@0,1", counts=[32, 16], seconds=[1.0])])

    def record(counts: list[int], machine: str = session.machine) -> Record:
        return replace(measured("topk", 0, 50.0, "learned:one"), machine=machine, tokens={"achieved": counts})

    assert results_folder.outdated_rows(session, [record([30, 20]), record([9, 9], machine="another")]) == []
    assert results_folder.outdated_rows(session, [record([31, 22])]) == [learned]
    assert results_folder.outdated_rows(session, [replace(record([]), tokens={})]) == [], "it failed"


def test_counts_that_were_solved_for_another_recipe_are_refused(tmp_path):
    def schedule_with(digest: str) -> Schedule:
        write(tmp_path / "topk.json", Budget("m", "topk", "latency=0.8@0", 4, [0], [50], recipe_digest=digest))
        place = SimpleNamespace(recipe=SimpleNamespace(digest="own"), budget_path=lambda _: tmp_path / "topk.json")
        return Workspace.schedule(place, Cell(registry.variants("topk")[0], parse("latency=0.8@0"), 0))

    assert schedule_with("own").counts == schedule_with("").counts == (50,)
    with pytest.raises(UsageError, match="another version of the recipe"):
        schedule_with("other")


def test_advice_in_a_mode_that_this_machine_lacks_is_refused_before_any_timing(subject, monkeypatch):
    def refuse(mode: Mode, _where: torch.device) -> None:
        if mode.compiled:
            raise UsageError("no compiler")

    monkeypatch.setattr(Mode, "check", refuse)
    monkeypatch.setattr(advice, "searched", lambda *_, **__: pytest.fail("it began to time"))
    modes = (Mode(), Mode(compiled=True))
    request = advice.Request(parse("latency=0.8@0"), registry.variants("topk"), (1,), (torch.float32,), modes, 1.0)
    with pytest.raises(UsageError, match="no compiler"):
        advice.advise(subject, request)


@pytest.mark.slow
def test_a_time_limit_that_ends_the_work_of_the_first_rank_ends_all_ranks():
    script = (
        "import torch\n"
        "from types import SimpleNamespace\n"
        "from tpbench.bench.workspace import Workspace\n"
        "from tpbench.errors import OutOfTime\n"
        "from tpbench.training import ranks\n"
        "ranks.connect(torch.device('cpu'))\n"
        "first = ranks.rank() == 0\n"
        "def stop(): raise OutOfTime\n"
        "def work(check):\n"
        "    assert first\n"
        "    check()\n"
        "place = SimpleNamespace(writes=first, device=torch.device('cpu'), check_own_clock=lambda: None)\n"
        "Workspace.on_first_rank(place, work)\n"
        "place.check_own_clock = stop\n"
        "try: Workspace.on_first_rank(place, work)\n"
        "except OutOfTime: print('stopped', flush=True)\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    words = [sys.executable, *launcher, sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("stopped") == 2


# ---------------------------------------------------------------- advice


def chosen(method: str, kept: float, top1: float | None = None, marked: bool = False) -> advice.Choice:
    return advice.Choice(method, "9@0", speeds.Ratio(1.4, 1.3, 1.5), marked, kept, top1)


def test_what_meets_the_latency_is_ranked_by_accuracy_or_else_by_tokens_kept():
    blind = [chosen("a", 0.5), chosen("b", 0.7), chosen("late", 0.9, marked=True)]
    assert [choice.method for choice in advice.ranked(blind)] == ["b", "a", "late"]
    seen = [chosen("a", 0.5, 0.8), chosen("b", 0.7, 0.6), chosen("late", 0.9, 0.9, marked=True)]
    assert [choice.method for choice in advice.ranked(seen)] == ["a", "b", "late"]


def test_methods_that_would_keep_fewer_tokens_at_the_latency_are_not_timed_to_the_end(subject, monkeypatch):
    monkeypatch.setattr(advice, "FINALISTS", 2)
    schedule = parse("latency=0.8@0,1,2")
    found = {
        "topk": latency_budget.Solution([40, 30, 20], 0.0, None, []),
        "tome": latency_budget.Solution([44, 33, 22], 0.04, None, []),  # keeps more, and is slower
        "random": latency_budget.Solution([40, 30, 20], -0.01, None, []),  # as many, and faster
        "wkmedoids": latency_budget.Solution([64, 64, 64], 0.25, None, []),  # far from the latency
        "ats": latency_budget.Solution(None, None, "it cannot", []),
    }
    pairs = {(variant, schedule): found[str(variant)] for variant in registry.variants(",".join(found))}
    behind = advice.left_behind(subject, pairs)
    assert [str(variant) for variant in behind] == ["topk", "wkmedoids"]
    monkeypatch.setattr(advice, "FINALISTS", 4)
    assert advice.left_behind(subject, pairs) == [], "control: there is room for all that have counts"


@pytest.mark.parametrize(("bounds", "pays"), [((1.01, 1.2), True), ((0.8, 0.99), False), ((0.9, 1.1), None)])
def test_reduction_pays_only_where_the_interval_says_so(bounds, pays):
    assert advice.Place(1, "float32", "eager", speeds.Ratio(1.0, *bounds)).pays == pays


def test_tokens_kept_are_a_mean_over_all_blocks(vit):
    assert advice.kept(vit, (1,), (32,)) == (1 + 3 * 0.5) / 4
    assert advice.kept(vit, (), ()) == 1
    assert advice.blocks(vit) == "1,2,3"


def test_advice_on_a_users_model_runs_as_it_is_printed(make_vit, odd_folder, capsys):
    model = make_vit(num_classes=2)
    own = Subject("mine", "random", model, subjects.from_folder(model, 2, odd_folder, CPU))
    request = advice.Request(
        schedule=parse("latency=0.8@0,1,2"),
        variants=tuple(registry.variants("topk,wkmedoids(iterations=1)")),
        batch_sizes=(1, 2),
        dtypes=(torch.float32,),
        modes=(Mode(),),
        seconds=2.0,
    )
    found = advice.advise(own, request, subjects.labelled(model, odd_folder, 100, CPU))
    assert found.images == 12
    assert {choice.method for choice in found.choices} == {"topk", "wkmedoids(iterations=1)"}
    assert all(0 <= choice.top1 <= 1 and 0 < choice.kept < 1 for choice in found.choices)
    assert [(place.batch, place.dtype) for place in found.places] == [(1, "float32"), (2, "float32")]
    names = {"model": model}
    exec("\n".join(found.code), names)
    assert names["model"].requested == tuple(zip((0, 1, 2), map(int, found.choices[0].schedule[:-6].split(","))))
    advised.show(found, Console(width=150))
    printed = capsys.readouterr().out
    assert found.code[1] in printed
    assert "Ranked by top-1 off the shelf on 12 images" in printed


def test_labels_of_other_classes_are_refused(make_vit, odd_folder):
    with pytest.raises(UsageError, match="2 folders of classes and the model 7 classes"):
        subjects.labelled(make_vit(), odd_folder, 10, CPU)
    assert subjects.from_folder(make_vit(), 3, odd_folder, CPU).pixels.shape == (3, 3, 32, 32), (
        "to time on they will do"
    )


def test_a_model_comes_from_a_function_too(tmp_path, monkeypatch):
    (tmp_path / "mymodel.py").write_text("import timm\n\ndef make():\n    return timm.create_model('test_vit')\n")
    monkeypatch.chdir(tmp_path)
    own = subjects.load("mymodel:make", CPU, 2)
    assert own.images.pixels.shape == (2, 3, 160, 160)
    assert own.weights == "of mymodel:make"
    with pytest.raises(UsageError, match="--pretrained is for timm's models"):
        subjects.load("mymodel:make", CPU, 2, pretrained=True)


# ---------------------------------------------------------------- tables


def test_the_tables_show_every_row_and_every_doubt(capsys):
    rows = rows_of(reference=[1.0] * 5, control=[1.1] * 5, topk=[0.5] * 5)
    rows.append(row("tome", asked=0.7, counts=[9], seconds=[0.8] * 5))
    rows.append(row("avgpool", error="no grid"))
    whole = made(rows, environment={"device": "it", "cores": 2}, facts={"threads": 1, "governor": None})
    whole.images["source"] = "somewhere"
    table.show(whole, Console(width=150))
    printed = capsys.readouterr().out
    markdown = "\n".join(table.markdown(whole))
    for text in ("800*", "2.00", "which should include 1", "0.800 of the unreduced", "avgpool, 0.5@0: no grid"):
        assert text in printed
        assert text.replace("*", "\\*") in markdown
    assert markdown.count("\n| ") == 2 + 3, "two lines of heads, three timed rows"
