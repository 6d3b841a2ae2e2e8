"""`--log`: losses and metrics in TensorBoard, trackio and wandb, without any effect on what is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tpbench.bench.loggers import EPOCH, LOSS
from tpbench.cli import main
from tpbench.record import Record, read_all

TINY = str(Path(__file__).with_name("tiny_recipe.py"))


def run(out: Path, *words: str) -> int:
    return main(["run", "--recipe", TINY, "--methods", "none,random", "--out", str(out), "--quiet", *words])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a logger."""
    out = tmp_path_factory.mktemp("plain")
    assert run(out) == 0
    return out


def computed(record: Record) -> tuple:
    return record.metrics, record.outcomes, record.training["losses"], record.macs["total"]


def test_tensorboard_gets_every_epoch_and_the_final_metrics(tmp_path: Path, plain: Path) -> None:
    assert run(tmp_path, "--log", "tensorboard") == 0
    logs = {path.name: EventAccumulator(str(path)).Reload() for path in (tmp_path / "work" / "log").iterdir()}
    assert set(logs) == {"base-seed-0", "none-none-seed-0", "random-0.5-at-0-1-seed-0"}
    records = {record.method: record for record in read_all(tmp_path)}
    log, record = logs["random-0.5-at-0-1-seed-0"], records["random"]
    losses = log.Scalars(LOSS)
    assert [event.step for event in losses] == [1, 2]
    assert [event.value for event in losses] == pytest.approx(record.training["losses"], abs=6e-4)
    assert set(log.Tags()["scalars"]) == {LOSS, *record.metrics}
    assert log.Scalars("fine_tuned_top1")[0].value == pytest.approx(record.metrics["fine_tuned_top1"])
    assert [event.step for event in logs["base-seed-0"].Scalars(LOSS)] == [1, 2, 3]
    for other in read_all(plain):
        assert computed(other) == computed(records[other.method]), "the logger changed a result"


class Logger(ModuleType):
    """A package that knows runs as trackio and wandb do, and notes what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: list[SimpleNamespace] = []

    def init(self, **settings: object) -> SimpleNamespace:
        print("a greeting")
        run = SimpleNamespace(settings=settings, logged=[], finished=0)
        run.log = lambda values, step: run.logged.append((step, dict(values)))
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        self.runs.append(run)
        return run


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_loggers_get_the_same(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    package = Logger(name)
    monkeypatch.setitem(sys.modules, name, package)
    assert run(tmp_path, "--log", name) == 0
    assert capsys.readouterr().out == "", "a logger's greeting is no result"
    runs = {run.settings["name"]: run for run in package.runs}
    assert set(runs) == {"base seed 0", "none none seed 0", "random 0.5@0,1 seed 0"}
    assert len(runs) == len(package.runs)
    assert {run.settings["project"] for run in package.runs} == {"tiny"}
    assert all(run.finished == 1 for run in package.runs)
    steps = [(step, list(values)) for step, values in runs["random 0.5@0,1 seed 0"].logged]
    assert steps[:2] == [(1, [LOSS]), (2, [LOSS])]
    assert "fine_tuned_top1" in steps[2][1]
    assert run(tmp_path, "--log", name) == 0
    assert len(package.runs) == 3, "what is measured already is not logged again"


def test_a_logger_that_is_absent_is_said_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert run(tmp_path, "--log", "trackio") == 2
    err = capsys.readouterr().err
    assert "python -m pip install trackio" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "records").exists()


def test_control_the_pattern_reads_epochs_alone() -> None:
    assert EPOCH.fullmatch("epoch 12, loss 0.512")[2] == "0.512"
    assert EPOCH.fullmatch("trial 1 of 8") is None
