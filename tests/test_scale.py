"""The cost of the harness grows with the records and no faster: ratios of processor time, never seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
import scale

from tpbench.bench import look
from tpbench.claims import study
from tpbench.record import Store
from tpbench.report import frame, p_values, tables
from tpbench.report.statistics import Difference, fit

FEW, MANY = 150, 1_200
TOLERATED = 2.5  # times the growth of the records; a quadratic action grows 8 times as much
ROUNDS = 3


def growth(action: Callable[[int], object]) -> float:
    """How many times longer an action takes for MANY than for FEW, over how many times more they are; in turns."""
    ratios = []
    for _ in range(ROUNDS):
        spent = {}
        for size in (FEW, MANY):
            start = time.process_time()
            action(size)
            spent[size] = time.process_time() - start
        ratios.append(spent[MANY] / spent[FEW] / (MANY / FEW))
    return median(ratios)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Packed results folders of FEW and MANY records."""
    found = {}
    for size in (FEW, MANY):
        folder = tmp_path_factory.mktemp(f"records{size}")
        scale.make_packed(size, folder)
        found[size] = folder
    return found


def test_reading_resuming_and_comparing_are_linear(folders):
    def read(size: int) -> None:
        Store(folders[size]).scan()

    def compare(size: int) -> None:
        assert len(frame.compare(Store.of(folders[size]))) == 1

    def claim(size: int) -> None:
        for own in study.read_studies([folders[size]]):
            assert all(own.of(record.method, record.schedule) for record in own.records)

    for action in (read, compare, claim):
        action(FEW)  # what is made once in a process
        assert growth(action) < TOLERATED, action.__name__


def test_a_quadratic_action_is_noticed():
    """The control: looking through all records for every record."""

    def look_through(size: int) -> None:
        records = list(range(3 * size))
        assert sum(sum(1 for other in records if other == record) for record in records[::3]) == size

    assert growth(look_through) > TOLERATED


def test_a_folder_made_packed_is_finished(folders):
    plan = scale.plan_of(FEW, folders[FEW])
    assert len(look.finished(plan)) == len(plan.cells) == len(Store.of(folders[FEW]))
    packed = next((folders[FEW] / "records").glob("*.jsonl"))
    whole = packed.read_bytes()
    packed.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    assert look.finished(plan) is None, "control: a record is missing"
    packed.write_bytes(whole)


# ---------------------------------------------------------------- what is done at once equals what is done one by one


def test_p_values_at_once_are_those_one_by_one():
    drawn = np.random.default_rng(0)
    some = [
        Difference(*drawn.normal(size=1), *drawn.uniform(0.1, 2, 1), df=3.5, seeds=3, a="a", b="b") for _ in "12345"
    ]
    some += [Difference(1.0, 0.0, df=4.0, seeds=3, a="a", b="b"), Difference(float("nan"), 1.0, 1.0, 1, "a", "b")]
    assert str(p_values.different(some).tolist()) == str([own.p_value() for own in some])
    assert str(p_values.above(some, -0.3).tolist()) == str([own.p_above(-0.3) for own in some])
    assert str(p_values.below(some, 0.3).tolist()) == str([own.p_below(0.3) for own in some])
    assert str(p_values.above(some, 0.3).tolist()) != str([own.p_above(-0.3) for own in some]), "control"
    assert p_values.different([]).tolist() == []


def test_plain_differences_are_those_of_the_model():
    values = np.random.default_rng(1).uniform(50, 90, (6, 4))
    values[4, 1] = values[5, 1] = np.nan
    model = fit(pd.DataFrame(values, index=list("abcdef"), columns=range(4)))
    assert model.fitted.alike(4, 5), "measured with the same seeds"
    assert not model.fitted.alike(0, 4), "control: other seeds"
    for first, second in ((0, 1), (4, 5)):
        general = model._estimate({first: 1.0, second: -1.0}, np.zeros(4))
        own = model.difference(model.methods[first], model.methods[second])
        assert (own.value, own.standard_error, own.df) == general
        assert own.seeds == np.isfinite(values[first]).sum()


def test_a_csv_file_is_the_one_that_pandas_writes():
    table = pd.DataFrame(
        {
            "number": [0.1 + 0.2, float("nan"), 1e-17, 1e22],
            "count": [1, 2, 3, -4],
            "rank": pd.array([1, None, 3, 4], dtype="Int64"),
            "text": ['with "quotes"', "a,b", "line\nbreak", None],
            "flag": [True, False, True, False],
            "mixed": [1, 2.5, "", float("nan")],
        }
    )
    assert tables.csv(table) == table.to_csv(index=False, lineterminator="\n")
    assert tables.csv(table) != table.round(3).to_csv(index=False, lineterminator="\n"), "control"
