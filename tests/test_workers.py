"""What the user is told of the time ahead."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.progress import Ahead, Progress, spell
from tpbench.errors import CellFailed
from tpbench.training.train import Update


def job(name: str, work: float) -> Job:
    return Job(name, print, None, work=work)


def test_the_time_ahead_follows_from_the_speed_of_the_running_jobs():
    ahead = Ahead([job("base", 10), job("a", 2), job("b", 2)])
    assert ahead.seconds() == 0, "nothing is known before the first steps"
    ahead.note("base", 0.5, now=100.0)  # continued: the first half was done before
    assert not ahead.speeds
    ahead.note("base", 0.6, now=104.0)  # one of ten epochs in four seconds
    assert ahead.seconds() == pytest.approx(4 * (4 + 2 + 2))
    ahead.drop("base")
    assert ahead.seconds() == pytest.approx(4 * 4), "the last speed serves until another is known"
    ahead.note("a", 0.0, now=200.0)
    ahead.note("b", 0.0, now=200.0)
    ahead.note("a", 0.5, now=202.0)
    ahead.note("b", 0.5, now=202.0)
    assert ahead.seconds() == pytest.approx(2 / (0.5 + 0.5)), "two at once are twice as fast"


def test_times_are_spelled():
    assert [spell(seconds) for seconds in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def stuck(context: object, argument: str, update: Update) -> None:  # noqa: ARG001
    """Report without a pause until killed."""
    Path(argument, str(os.getpid())).touch()
    while True:
        update("still at it")


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05])
def test_a_killed_worker_ends_the_run(tmp_path, moment):
    """Killed while it reports: the others must not wait for what it held."""

    def kill() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        time.sleep(moment)
        os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    jobs = [Job(name, stuck, str(tmp_path)) for name in ("a", "b", "c")]
    began = time.monotonic()
    with pytest.raises(CellFailed, match="a worker process died"):
        side_by_side(jobs, 2, None, dict, Progress())
    killer.join()
    assert time.monotonic() - began < 60, "it hung"


def noted(context: object, argument: tuple[str, str], update: Update) -> None:  # noqa: ARG001
    file, name = argument
    with Path(file).open("a") as notes:
        notes.write(name + "\n")


def test_jobs_of_the_first_seed_come_before_the_base_of_the_third(tmp_path):
    file = tmp_path / "order"
    jobs = []
    for seed in range(4):
        jobs.append(Job(f"base {seed}", noted, (str(file), f"base {seed}")))
        cells = [f"cell {seed} {number}" for number in range(3)]
        jobs += [Job(name, noted, (str(file), name), needs=(f"base {seed}",)) for name in cells]
    side_by_side(jobs, 2, None, dict, Progress())
    order = file.read_text().split("\n")
    assert len(order) == 17
    assert order.index("cell 0 0") < order.index("base 2"), "a partial run is a comparison"
