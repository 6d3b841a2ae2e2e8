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

from tpbench.bench import results_folder
from tpbench.claims import study
from tpbench.record import Store
from tpbench.report import frame, tables
from tpbench.report.estimates import Difference, Differences, combined, combined_pairs
from tpbench.report.statistics import fit

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
    assert len(results_folder.records_if_finished(plan)) == len(plan.cells) == len(Store.of(folders[FEW]))
    packed = next((folders[FEW] / "records").glob("*.jsonl"))
    whole = packed.read_bytes()
    packed.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    assert results_folder.records_if_finished(plan) is None, "control: a record is missing"
    packed.write_bytes(whole)


# ---------------------------------------------------------------- what is done at once equals what is done one by one


def test_many_differences_say_what_each_says():
    drawn = np.random.default_rng(0)
    some = [
        Difference(float(drawn.normal()), float(drawn.uniform(0.1, 2)), df=3.5, seeds=3, a="a", b="b") for _ in "12345"
    ]
    some += [Difference(1.0, 0.0, df=4.0, seeds=3, a="a", b="b"), Difference(float("nan"), 1.0, 1.0, 1, "a", "b")]
    every = Differences.of(some)
    assert str(list(every)) == str(some)
    assert every.known.tolist() == [own.known for own in some]
    assert str(every.half_widths().tolist()) == str([own.half_width() for own in some])
    assert str(every.p_values().tolist()) == str([own.p_value() for own in some])
    assert str(every.p_above(-0.3).tolist()) == str([own.p_above(-0.3) for own in some])
    assert str(every.p_below(0.3).tolist()) == str([own.p_below(0.3) for own in some])
    assert str(every.p_above(0.3).tolist()) != str([own.p_above(-0.3) for own in some]), "control"
    assert str(list(every.part(1, 3))) == str(some[1:3])
    assert Differences.of([]).p_values().tolist() == []


def test_variances_added_at_once_are_those_added_one_by_one():
    first = np.array([1.5, 0.3, 0.0, 2.0, np.nan, 1.0])
    first_df = np.array([4.0, 2.0, 3.0, 0.0, 3.0, 5.0])
    second = np.array([0.5, 0.0, 0.0, 1.0, 1.0, 2.0])
    second_df = np.array([7.0, 0.0, 0.0, 9.0, 2.0, 0.0])
    alone = [
        combined([(a, a_df), (b, b_df)] if b else [(a, a_df)])
        for a, a_df, b, b_df in zip(*(own.tolist() for own in (first, first_df, second, second_df)))
    ]
    together = combined_pairs(first, first_df, second, second_df)
    assert str(list(zip(*(own.tolist() for own in together)))) == str(alone)
    assert [df > 0 for _, df in alone] == [True, True, False, False, False, False], "every case is there"


def test_plain_differences_are_those_of_the_model():
    values = np.random.default_rng(1).uniform(50, 90, (6, 4))
    values[4, 1] = values[5, 1] = np.nan
    model = fit(pd.DataFrame(values, index=list("abcdef"), columns=range(4)))
    alike = model.fitted.same_seeds(np.array([4, 0]), np.array([5, 4]))
    assert alike.tolist() == [True, False], "measured with the same seeds; control: with others"
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
            "equal": [1, True, 1.0, "1"],
        }
    )
    assert tables.csv(table) == table.to_csv(index=False, lineterminator="\n")
    assert tables.csv(table) != table.round(3).to_csv(index=False, lineterminator="\n"), "control"
