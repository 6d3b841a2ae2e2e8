"""Schedules: exact integers, and every bad request refused in words."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest

from tpbench.errors import ScheduleError, UsageError
from tpbench.schedule import Schedule, parse, parse_all, spell

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


def test_several_schedules():
    assert [s.text for s in parse_all("0.7@3,6,9; -13@0-11;;")] == ["0.7@3,6,9", "-13@0-11"]
    assert parse_all(["0.7@3"]) == (parse("0.7@3"),)


def test_spelling_reads_back():
    assert requested(spell((137, 96), (3, 6))) == (137, 96)


# ---------------------------------------------------------------- what is refused


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
def test_what_cannot_be_read_is_refused_in_words(text, says):
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
def test_what_cannot_be_reached_is_refused_in_words(text, patches, says):
    with pytest.raises(ScheduleError, match=re.escape(says)) as caught:
        requested(text, patches)
    assert repr(text) in str(caught.value)


# ---------------------------------------------------------------- a share of MACs


def first_count(schedule: Schedule) -> int:
    return schedule.requested(196, DEPTH)[0]


def cost(schedule: Schedule) -> float:
    """A made-up model: half its cost before the first reducing block, the rest in proportion to what is left."""
    counts = schedule.requested(196, DEPTH)
    return 0.5 + 0.5 * sum(counts) / (196 * len(counts))


@pytest.mark.parametrize("share", ["0.51", "0.6", "0.75", "0.9", "0.999", "1", "1.0"])
def test_solved_is_the_largest_affordable(share):
    solved = parse(f"macs={share}@3,6,9").solved(cost, 196, DEPTH)
    assert solved.macs_share is None
    assert cost(solved) <= float(share)
    first = first_count(solved)
    assert first == 196 or cost(parse(spell(chain(first + 1), solved.blocks))) > float(share)
    assert solved.requested(196, DEPTH) == chain(first)
    assert parse(solved.text) == solved  # the record's text gives the schedule back


def chain(first: int) -> tuple[int, ...]:
    return tuple(max(1, math.floor(196 * Fraction(first, 196) ** s)) for s in (1, 2, 3))


def test_solved_leaves_other_schedules_alone():
    schedule = parse("0.7@3,6,9")
    assert schedule.solved(cost, 196, DEPTH) is schedule


def test_a_share_too_small_names_the_nearest():
    with pytest.raises(ScheduleError, match=r"nearest reachable share is 0\.503"):
        parse("macs=0.5@3,6,9").solved(cost, 196, DEPTH)


def test_a_share_with_a_block_out_of_range_is_refused():
    with pytest.raises(ScheduleError, match="block 12 is out of range"):
        parse("macs=0.5@3,12").solved(cost, 196, DEPTH)


def test_the_whole_budget_reduces_nothing():
    """Where reducing itself costs more than it saves, the largest rate within the whole budget is 1."""

    def with_overhead(schedule: Schedule) -> float:
        return cost(schedule) + (0.2 if first_count(schedule) < 196 else 0.0)

    assert first_count(parse("macs=1@3,6,9").solved(with_overhead, 196, DEPTH)) == 196


@pytest.mark.parametrize("floor", [98, 120, 150])
def test_a_method_that_cannot_go_low_still_meets_a_budget_it_can(floor):
    """As ToMe, which at most halves: one token is beyond it, 80% of the MACs are not; 52% are, and it says so."""

    def limited(schedule: Schedule) -> float:
        if first_count(schedule) < floor:
            raise ScheduleError("so many tokens cannot go")
        return cost(schedule)

    solved = parse("macs=0.8@3,6,9").solved(limited, 196, DEPTH)
    assert solved == parse("macs=0.8@3,6,9").solved(cost, 196, DEPTH)
    nearest = f"{cost(parse(spell(chain(floor), (3, 6, 9)))):.3f}"
    with pytest.raises(ScheduleError, match=rf"nearest reachable share is {re.escape(nearest)}"):
        parse("macs=0.52@3,6,9").solved(limited, 196, DEPTH)


@pytest.mark.parametrize("method", ["topk", "wkmedoids", "strided_conv"])
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_a_solved_model_costs_what_it_may(vit, method, share):
    """In MACs counted on the model; with one token more at the first block it costs too much."""
    import tpbench
    from tpbench.measure import flops

    whole = flops.counted(tpbench.reduce(vit, "none")).total
    solved = tpbench.reduce(vit, method, f"macs={share}@1,2")
    assert flops.counted(solved).total <= share * whole
    first = solved.requested[0][1]
    while dict(solved.requested) == dict(solved.achieved) or first < 64:  # at_most methods change in steps
        first += 1
        counts = tuple(max(1, math.floor(64 * Fraction(first, 64) ** s)) for s in (1, 2))
        more = tpbench.reduce(vit, method, spell(counts, (1, 2)))
        if more.achieved != solved.achieved:
            break
    assert flops.counted(more).total > share * whole
