"""Learned counts in a report: compared with the fixed rates that cost as much, and with no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import MACHINE, over_seeds, store

from tpbench.cli import DONE, main
from tpbench.record import Record
from tpbench.report.learned import at_the_same_cost

LEARNED = "learned:topk_seed0"
FIXED = "macs=0.5@0,1,2"
SCATTER = (0.1, -0.1, 0.0)
TOPS = {"tome": (95.0, 96.2, 95.7), "topk": (94.0, 95.1, 94.6)}


def records(gain: float = 3.0, share: float = 0.505) -> list[Record]:
    """Learned counts that cost `share` of the MACs and gain so many points, and fixed rates at 0.5 and 0.3."""
    found = over_seeds("none", (97.0, 98.0, 97.5), share=1.0)
    for method, tops in TOPS.items():
        gained = tuple(top + gain + scatter for top, scatter in zip(tops, SCATTER))
        found += over_seeds(method, gained, LEARNED, share)
        found += over_seeds(method, tops, FIXED, 0.5)
        found += over_seeds(method, tuple(top - 9 for top in tops), "macs=0.3@0,1,2", 0.3)
        found += over_seeds(method, tops, "0.5@0,1,2", 0.5)  # a keep rate, whose cost no budget states
    return found


def test_they_are_compared_with_the_share_of_macs_that_they_cost():
    (one,) = at_the_same_cost(records(), LEARNED)
    assert one.fixed_rate == FIXED
    assert one.unequal == []
    assert {row.method for row in one.compared.rows} == {"tome", "topk"}
    for row in one.compared.rows:
        assert row.difference.value == pytest.approx(3.0)
        assert row.macs_percent == pytest.approx(1.0)
        assert row.judgement.verdict == "better"


def test_a_method_that_costs_more_with_them_is_not_judged():
    costly = over_seeds("kmeans", (90.0, 91.1, 90.6), LEARNED, 0.53) + over_seeds("kmeans", (80.0, 81.2, 80.7), FIXED)
    (one,) = at_the_same_cost([*records(), *costly], LEARNED)
    assert {row.method for row in one.compared.rows} == {"tome", "topk"}
    assert [row.method for row in one.unequal] == ["kmeans"]
    assert one.unequal[0].macs_percent > 2


def test_the_folders_margin_decides_what_is_equivalent():
    wide, narrow = (next(at_the_same_cost(records(gain=0.0), LEARNED, margin)).compared for margin in (2.0, 0.01))
    assert {row.judgement.verdict for row in wide.rows} == {"equivalent"}
    assert {row.judgement.verdict for row in narrow.rows} == {"undecided"}


def test_a_share_far_from_theirs_is_another_cost():
    assert not list(at_the_same_cost(records(share=0.45), LEARNED))
    assert not list(at_the_same_cost(records(), "learned:another")), "control: nothing was learned under this name"


def test_the_report_shows_them(tmp_path: Path):
    store(tmp_path, records(gain=-2.0))
    content = {"counts": [30, 20], "kept": [30.5, 20.1], "patches": 64, "method": "topk", "search": "SoftExtract"}
    content |= {"off_the_shelf": {"macs_share": 0.505, "validation_top1": 0.5}}
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "topk_seed0.json").write_text(json.dumps(content))
    assert main(["report", str(tmp_path), "--quiet"]) == DONE
    text = (tmp_path / "README.md").read_text()
    assert f"### {LEARNED} and {FIXED} ({MACHINE})" in text
    assert "of 2 methods, none is better, 2 are worse" in text
    assert "| tome | 95.6 | 93.6 | -2.0 " in text
    assert "| +1.0 % |" in text
