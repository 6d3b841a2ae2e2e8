"""Schedules: exact integers, and every bad request rejected with an explanation."""

from __future__ import annotations

import json
import re

import pytest

from tpbench.cli.rows import reducing
from tpbench.errors import ScheduleError, UsageError
from tpbench.schedule import Kind, parse, parse_all, spell

DEPTH = 12


def requested(text: str, patches: int = 196) -> tuple[int, ...]:
    return parse(text).requested(patches, DEPTH)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("patches", [10, 64, 100, 196, 1000])
@pytest.mark.parametrize("percent", [10, 29, 50, 57, 70, 90, 95, 99, 100])
def test_keep_rates_are_exact_integers(patches, percent):
    """int(N r^s) by whole-number division, for several spellings of the same rate."""
    want = tuple(patches * percent**s // 100**s for s in (1, 2, 3))
    for rate in {
        f"{percent / 100}",
        f"{percent / 100:.2f}",
        f"{percent / 100:.4f}",
        f"{percent / 100:.2f}".lstrip("0"),
    }:
        if min(want) >= 1:
            assert requested(f"{rate}@3,6,9", patches) == want, rate


def test_control_floats_lose_a_token():
    assert int(0.7**2 * 100) == 48
    assert requested("0.7@3,6", 100) == (70, 49)


@pytest.mark.parametrize(
    ("text", "blocks", "want"),
    [
        ("137,96,67@3,6,9", (3, 6, 9), (137, 96, 67)),
        ("-13@0-11", tuple(range(12)), tuple(196 - 13 * (i + 1) for i in range(12))),
        ("-16@0-3,6,8-9", (0, 1, 2, 3, 6, 8, 9), tuple(196 - 16 * (i + 1) for i in range(7))),
        ("0.7@3", (3,), (137,)),
        ("1.0@3,6", (3, 6), (196, 196)),
        ("1@3,6", (3, 6), (196, 196)),
        ("1@3", (3,), (1,)),
        ("196,196,1@0,1,11", (0, 1, 11), (196, 196, 1)),
        (" 0.5@3, 6 ", (3, 6), (98, 49)),
        ("none", (), ()),
        ("", (), ()),
    ],
)
def test_schedules_read_as_written(text, blocks, want):
    schedule = parse(text)
    assert schedule.blocks == blocks
    assert schedule.requested(196, DEPTH) == want


KINDS = {
    "none": Kind.NONE,
    "0.7@3": Kind.RATE,
    "137@3": Kind.COUNTS,
    "-13@3": Kind.STEP,
    "macs=0.5@3": Kind.MACS,
    "latency=0.5@3": Kind.LATENCY,
}


@pytest.mark.parametrize("text", KINDS)
def test_a_schedule_knows_its_kind_and_has_its_value_alone(text):
    schedule = parse(text)
    values = {
        Kind.RATE: schedule.rate,
        Kind.COUNTS: schedule.counts,
        Kind.STEP: schedule.step,
        Kind.MACS: schedule.budget if schedule.kind is Kind.MACS else None,
        Kind.LATENCY: schedule.budget if schedule.kind is Kind.LATENCY else None,
    }
    assert schedule.kind is KINDS[text]
    assert {kind for kind, value in values.items() if value is not None} == {KINDS[text]} - {Kind.NONE}


def test_several_schedules():
    assert [s.text for s in parse_all("0.7@3,6,9; -13@0-11;;")] == ["0.7@3,6,9", "-13@0-11"]
    assert parse_all(["0.7@3"]) == (parse("0.7@3"),)


def test_counts_are_written_as_they_are_read():
    assert requested(spell((137, 96), (3, 6))) == (137, 96)


# ---------------------------------------------------------------- what is rejected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.7", "expected BUDGET@BLOCKS"),
        ("0.7@", "expected BUDGET@BLOCKS"),
        ("@3,6", "neither a keep rate"),
        ("seven@3", "'seven' is neither a keep rate"),
        ("0.7x@3", "neither a keep rate"),
        ("nan@3", "neither a keep rate"),
        ("1e-1@3", "neither a keep rate"),
        ("137,,96@3,6", "neither a keep rate"),
        ("macs=@3", "neither a keep rate"),
        ("macs=half@3", "neither a keep rate"),
        ("macs=-0.5@3", "neither a keep rate"),
        ("1.5@3,6", "keep rate 1.5 is outside (0, 1]"),
        ("0.0@3,6", "keep rate 0.0 is outside (0, 1]"),
        ("0@3,6", "keep rate 0 is outside (0, 1]"),
        ("-0.5@3", "keep rate -0.5 is outside (0, 1]"),
        ("macs=0@3", "share of MACs 0 is outside (0, 1]"),
        ("macs=1.2@3", "share of MACs 1.2 is outside (0, 1]"),
        ("0.7@a", "'a' is not a block number"),
        ("0.7@-1", "'-1' is not a block number"),
        ("0.7@3,,6", "'' is not a block number"),
        ("0.7@3@6", "is not a block number"),
        ("0.7@1.5", "'1.5' is not a block number"),
        ("0.7@3,3", "named once each, in rising order"),
        ("0.7@6,3", "named once each, in rising order"),
        ("0.7@0-3,2", "named once each, in rising order"),
        ("0.7@5-3", "named once each, in rising order"),
        ("137,96@3,6,9", "2 counts for 3 blocks"),
        ("137,96,67@3,6", "3 counts for 2 blocks"),
    ],
)
def test_a_text_that_is_no_schedule_is_rejected_with_an_explanation(text, says):
    with pytest.raises(ScheduleError, match=re.escape(says)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("text", "patches", "says"),
    [
        ("0@3", 196, "0 tokens after block 3 cannot be reached (at least 1 must stay)"),
        ("0.1@0,1,2", 64, "0 tokens after block 1 cannot be reached (at least 1 must stay)"),
        ("-13@0-11", 100, "-4 tokens after block 7 cannot be reached (at least 1 must stay)"),
        ("197@3", 196, "197 tokens after block 3 cannot be reached (only 196 arrive)"),
        ("50,60@3,6", 196, "60 tokens after block 6 cannot be reached (only 50 arrive)"),
        ("0.7@3,12", 196, "block 12 is out of range, the model has blocks 0-11"),
        ("macs=0.6@3,6,9", 196, "must be solved"),
    ],
)
def test_counts_that_a_model_cannot_reach_are_rejected_with_an_explanation(text, patches, says):
    with pytest.raises(ScheduleError, match=re.escape(says)) as caught:
        requested(text, patches)
    assert repr(text) in str(caught.value)


# ---------------------------------------------------------------- learned counts


def learned(tmp_path, **change) -> str:
    path = tmp_path / "soft_extract.json"
    found = {"method": "topk", "search": "SoftExtract", "patches": 196, "counts": [196, 150, 150, 40], "kept": [1.5]}
    found["off_the_shelf"] = {"macs_share": 0.5}
    path.write_text(json.dumps(found | change))
    return f"learned:{path}"


def test_learned_counts_are_those_of_the_file_where_tokens_leave(tmp_path):
    schedule = parse(learned(tmp_path))
    assert (schedule.text, schedule.blocks, schedule.kind) == ("learned:soft_extract", (1, 3), Kind.LEARNED)
    assert schedule.requested(196, 4) == (150, 40)
    assert parse(learned(tmp_path, counts=[196, 150, 120, 40])).blocks == (1, 2, 3)  # control: the file decides


def test_a_run_has_each_schedule_once_and_refuses_two_of_one_name(tmp_path):
    once = reducing(parse_all("none;0.5@0,1;0.7@0,1;0.5@0,1"))
    assert [schedule.text for schedule in once] == ["0.5@0,1", "0.7@0,1"]
    first = parse(learned(tmp_path))
    second = parse(learned(tmp_path, counts=[196, 150, 120, 40]))
    assert reducing([first, first]) == (first,), "control"
    with pytest.raises(UsageError, match="two files are named learned:soft_extract"):
        reducing([first, second])


@pytest.mark.parametrize("change", [{"counts": None}, {"counts": ["x"]}, {"patches": None}], ids=str)
def test_a_learned_file_that_cannot_be_read_is_named(tmp_path, change):
    with pytest.raises(ScheduleError, match=r"learned schedule .*soft_extract\.json cannot be read"):
        parse(learned(tmp_path, **change))
    with pytest.raises(ScheduleError, match=r"nowhere\.json cannot be read"):
        parse("learned:nowhere.json")


@pytest.mark.parametrize(
    ("text", "cost"), [("macs=0.3@0,1", 0.3), ("latency=0.6@1", 0.6), ("0.5@0,1", 1.0), ("none", 1.0)]
)
def test_estimates_expect_the_cost_that_a_budget_asks_for(text, cost):
    assert parse(text).expected_cost == cost
