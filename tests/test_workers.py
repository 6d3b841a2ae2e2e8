"""What the user is told of the time ahead."""

from __future__ import annotations

import pytest

from tpbench.bench.jobs import Job
from tpbench.bench.progress import Ahead, spell


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
