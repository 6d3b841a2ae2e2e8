"""The report: golden tables, intervals, pairing, ranks, holes. `python tests/test_report.py` rewrites tests/golden."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
from rich.console import Console

from tpbench.errors import UsageError
from tpbench.record import Record, read, read_all
from tpbench.record import write as write_record
from tpbench.report import bands, columns, layout, published, tables
from tpbench.report.frame import cells, comparison, pairs
from tpbench.report.interval import interval
from tpbench.report.pareto import front
from tpbench.report.write import write

GOLDEN = Path(__file__).with_name("golden")
MACHINE = "xeon-4c-ab12"
KINDS = (".csv", "-cells.csv", "-pairs.csv", ".md", "-by-macs.md", "-by-latency.md", ".tex")
TABLES = tuple(f"{MACHINE}{kind}" for kind in KINDS)
SCHEDULE = "0.5@0,1,2"
REDUCED = {"blocks": [0, 1, 2], "requested": [32, 16, 8], "achieved": [32, 16, 8]}
T1 = math.tan(0.475 * math.pi)  # the 0.975 quantile of Student's t in closed form: 12.706 with 1 degree of freedom,
T2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # 4.303 with 2


def measured(method: str, seed: int, top1: float, schedule: str = SCHEDULE, share: float = 0.5, **other) -> Record:
    """A record of a method that is as much faster as it is cheaper, less a fifth; top1 in percent."""
    times = [0.008, 0.010, 0.009, 0.013]
    slower = share if method == "none" else 0.8 * share + 0.2
    record = Record(
        recipe="digits",
        recipe_digest="0123456789ab",
        machine=MACHINE,
        method=method,
        schedule="none" if method == "none" else schedule,
        seed=seed,
        title=f"The method {method}",
        unreduced=method == "none",
        metrics={"off_the_shelf_top1": (top1 - 10) / 100, "fine_tuned_top1": top1 / 100, "fine_tuned_loss": 0.25},
        tokens={"requested": [], "achieved": []} if method == "none" else REDUCED,
        macs={"total": int(8e6 * share), "unreduced": 8_000_000, "reducers": 50_000, "closed_form": int(8e6 * share)},
        latency={
            batch: {"reduced": [scale * slower * t for t in times], "unreduced": [scale * t for t in times]}
            for batch, scale in (("1", 0.25), ("32", 4.0))
        },
        peak_memory_bytes={"reduced": int(share * 2**24), "unreduced": 2**24},
        training={
            "seconds": 12.5,
            "images": 1297,
            "pace": {"images_per_second": 400 / share, "outside_model_share": 0.125},
        },
        evaluation={"test": 500, "validation": 104},
        environment={"device": "Xeon", "threads": 1, "dtype": "float32", "packages": {"torch": "2.15.0"}},
        git={"commit": 10 * "abcd", "changed": True},
    )
    return replace(record, **other)


def example() -> list[Record]:
    """Two schedules, three methods: one stands alone, one meets its tokens at most, one fails."""
    base = [measured("none", seed, top1, share=1.0) for seed, top1 in enumerate((97.0, 98.0, 97.6))]
    tome = [measured("tome", seed, top1) for seed, top1 in enumerate((95.9, 97.0, 96.55))]
    ats = [measured("ats", seed, top1, share=0.48, count="at_most") for seed, top1 in enumerate((93.0, 94.1, 93.5))]
    ats[1] = replace(ats[1], tokens=REDUCED | {"achieved": [31, 16, 7]})
    topk = [measured("topk", seed, top1, "0.7@0,1,2", 0.7) for seed, top1 in enumerate((96.0, 97.5, 96.8))]
    topk[2] = replace(topk[2], error="loss is NaN in epoch 2")
    failed = [replace(measured("topk", seed, 90), error="out of memory:\n 99 % of block_3 & more") for seed in range(3)]
    return base + tome + ats + topk + failed


def store(folder: Path, records: list[Record]) -> Path:
    for record in records:
        write_record(folder / "records" / record.machine / record.file_name, record)
    return folder


def compared(records: list[Record]) -> dict[tuple[str, str], dict]:
    """Rows of the comparison by method and schedule."""
    rows = comparison(cells(records)).to_dict("records")
    return {(row["method"], row["schedule"]): row for row in rows}


def printed(records: list[Record], width: int | None = None) -> str:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=width is not None, color_system=None)
    tables.show(comparison(cells(records)), console)
    return out.getvalue()


# ------------------------------------------------------------------------------------------ golden tables


REPORT = """
import sys
from pathlib import Path
from tpbench.report.write import write
write(Path(sys.argv[1]))
print("torch" in sys.modules)
sys.modules["torch"] = sys
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's report, written by a process of its own that also says whether torch was loaded."""
    folder = store(tmp_path_factory.mktemp("results"), example())
    run = subprocess.run([sys.executable, "-c", REPORT, str(folder)], capture_output=True, text=True, check=True)
    (folder / "torch-loaded").write_text(run.stdout)
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_golden_ones(written: Path, name: str) -> None:
    assert (written / "tables" / name).read_text(encoding="utf-8") == (GOLDEN / name).read_text(encoding="utf-8")


def test_a_changed_record_changes_the_golden_tables(tmp_path: Path) -> None:
    """The control: every table would notice one accuracy."""
    records = example()
    records[4] = replace(records[4], metrics=records[4].metrics | {"fine_tuned_top1": 0.9701})
    rows = cells(records)
    tables.write(tmp_path, rows, comparison(rows), pairs(rows))
    changed = [name for name in TABLES if (tmp_path / "tables" / name).read_text() != (GOLDEN / name).read_text()]
    assert changed == list(TABLES)


def test_rebuilding_gives_the_same_bytes(written: Path) -> None:
    paths = [path for path in written.rglob("*") if path.suffix in (".csv", ".md", ".tex", ".png")]
    before = {path: path.read_bytes() for path in paths}
    returned = write(written)
    assert set(returned) == set(before)
    assert before == {path: path.read_bytes() for path in paths}
    assert not list(written.rglob("*.part"))


def test_the_report_never_loads_torch(written: Path) -> None:
    """Neither its import nor its work; the second answer is the control, given with a module of that name loaded."""
    assert (written / "torch-loaded").read_text() == "False\nTrue\n"


def test_every_column_is_explained(written: Path) -> None:
    frame, text = comparison(cells(example())), (written / "README.md").read_text(encoding="utf-8")
    assert list(frame) == columns.names([1, 32])
    assert all(f"`{name}`" in text for name in (*columns.MEANINGS, *columns.PAIR_MEANINGS))
    assert "Xeon; threads: 1; float32; torch 2.15.0; commit abcdabcdabcd, changed" in text
    assert "`no_such_column`" not in text


def test_the_figure_is_small(written: Path) -> None:
    picture = (written / "figures" / f"{MACHINE}-pareto.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 200_000


# ------------------------------------------------------------------------------------------ arithmetic


def test_intervals_are_students() -> None:
    mean, half_width, n = interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2.0, 3)
    assert half_width == pytest.approx(T2 / math.sqrt(3), rel=1e-9)  # a standard deviation of 1
    assert half_width != pytest.approx(1.959963984540054 / math.sqrt(3), rel=0.5)  # what a normal quantile would give
    assert interval([1.0, 3.0]).half_width == pytest.approx(T1, rel=1e-9)  # sqrt(2) / sqrt(2)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    assert interval([4.0, math.nan])[::2] == (4.0, 1)
    assert math.isnan(interval([4.0]).half_width)
    assert math.isnan(interval([]).mean)
    row = compared([measured("none", 0, 98), measured("tome", 0, 96)])["tome", SCHEDULE]
    assert row["base_difference_points"] == pytest.approx(-2)
    assert math.isnan(row["fine_tuned_half_width_points"])
    assert "±" not in tables.markdown(comparison(cells([measured("tome", 0, 96)]))).replace(tables.NOTE, "")


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by points, the methods by 1.0, 1.1, 0.9 within each; and tome lacks seed 0."""
    base, tome = {0: 90.0, 1: 95.0, 2: 98.0, 3: 92.0}, {1: 94.0, 2: 96.9, 3: 91.1}
    records = [measured("none", *item) for item in base.items()] + [measured("tome", *item) for item in tome.items()]
    row = compared(records)["tome", SCHEDULE]
    hand = (-1.0, T2 * 0.1 / math.sqrt(3))
    assert (row["base_difference_points"], row["base_difference_half_width_points"]) == pytest.approx(hand)
    assert row["base_difference_seeds"] == 3
    assert (row["seeds"], row["seeds_expected"]) == (3, 4)
    unpaired = row["fine_tuned_top1_percent"] - interval(base.values()).mean
    by_position = interval(b - a for a, b in zip(base.values(), tome.values()))
    assert abs(unpaired - row["base_difference_points"]) > 0.5
    assert by_position.half_width > 10 * row["base_difference_half_width_points"]


def test_pairs_of_methods_are_paired_too() -> None:
    tops = {"a": (90.0, 95.0, 98.0), "b": (89.0, 93.9, 97.1)}
    frame = pairs(cells([measured(method, seed, top1) for method, t in tops.items() for seed, top1 in enumerate(t)]))
    (row,) = frame.to_dict("records")
    assert (row["method_a"], row["method_b"], row["n"]) == ("a", "b", 3)
    assert row["difference_points"] == pytest.approx(1.0)
    assert row["half_width_points"] == pytest.approx(T2 * 0.1 / math.sqrt(3))
    assert interval(tops["a"]).half_width > 20 * row["half_width_points"]


def test_speed_is_a_ratio_within_each_record() -> None:
    """The second seed ran on a machine three times as slow: the ratio must not notice, the milliseconds must."""
    fast, slow = measured("tome", 0, 96), measured("tome", 1, 96)
    slow.latency["32"] = {
        "reduced": [3 * 0.75 / 0.6 * seconds for seconds in slow.latency["32"]["reduced"]],
        "unreduced": [3 * seconds for seconds in slow.latency["32"]["unreduced"]],
    }
    row = compared([fast, slow])["tome", SCHEDULE]
    assert row["latency_b32_ratio"] == pytest.approx((0.6 + 0.75) / 2)
    assert row["speedup_reached"] == pytest.approx(1 / 0.675)
    assert row["speedup_promised"] == pytest.approx(2)
    assert row["speedup_share_reached"] == pytest.approx(1 / 0.675 / 2)
    medians = [median(record.latency["32"]["reduced"]) for record in (fast, slow)]
    assert row["latency_b32_median_ms"] == pytest.approx(1e3 * sum(medians) / 2)
    assert row["images_per_second"] == pytest.approx(32 / (sum(medians) / 2))
    pooled = sum(medians) / sum(median(record.latency["32"]["unreduced"]) for record in (fast, slow))
    assert abs(pooled - row["latency_b32_ratio"]) > 0.03


def test_p95_is_between_the_two_largest_of_four() -> None:
    row = compared([measured("tome", 0, 96, share=1.0)])["tome", SCHEDULE]
    assert row["latency_b32_p95_ms"] == pytest.approx(1e3 * 4 * (0.010 + 0.85 * 0.003))
    assert row["latency_b32_median_ms"] == pytest.approx(1e3 * 4 * 0.0095)


def test_macs_memory_and_shares() -> None:
    row = compared([measured("tome", 0, 96)])["tome", SCHEDULE]
    assert (row["gmacs"], row["macs_share"]) == (pytest.approx(0.004), 0.5)
    assert row["reducer_share"] == pytest.approx(50_000 / 4_000_000)  # of its own MACs, not of the base's 8 million
    assert (row["peak_memory_mib"], row["unreduced_peak_memory_mib"]) == (8.0, 16.0)
    assert (row["images_trained"], row["images_evaluated"], row["fine_tuning_seconds"]) == (1297, 500, 12.5)


# ------------------------------------------------------------------------------------------ ranks


def ranked(tops: dict[str, tuple[float, ...]]) -> dict[str, dict]:
    records = [measured("none", seed, 98) for seed in range(len(next(iter(tops.values()))))]
    records += [measured(method, seed, top1) for method, t in tops.items() for seed, top1 in enumerate(t)]
    return {method: row for (method, _), row in compared(records).items()}


def test_methods_that_do_not_separate_share_a_rank() -> None:
    rows = ranked({"a": (95.0, 96.0, 97.0), "b": (95.4, 95.7, 97.1), "c": (90.0, 91.1, 92.0)})
    assert [rows[name]["rank"] for name in "abc"] == [1, 1, 3]
    assert [layout.rank(rows[name]) for name in "abc"] == ["1-2", "1-2", "3"]
    assert rows["a"]["fine_tuned_top1_percent"] != rows["b"]["fine_tuned_top1_percent"]  # a sort would split them
    assert not any(row["stands_alone"] for row in rows.values())


def test_methods_that_separate_have_ranks_of_their_own() -> None:
    """The methods' own intervals overlap throughout: only the pairing separates them."""
    rows = ranked({"a": (95.0, 96.0, 97.0), "b": (94.6, 95.7, 96.6), "c": (94.0, 95.1, 96.0)})
    assert [rows[name]["rank"] for name in "abc"] == [1, 2, 3]
    assert [layout.rank(rows[name]) for name in "abc"] == ["1", "2", "3"]
    assert [rows[name]["stands_alone"] for name in "abc"] == [True, False, False]
    assert rows["a"]["fine_tuned_half_width_points"] > 1.0
    mirrored = ranked({"a": (94.0, 95.1, 96.0), "b": (94.6, 95.7, 96.6), "c": (95.0, 96.0, 97.0)})
    assert [mirrored[name]["rank"] for name in "abc"] == [3, 2, 1]  # whichever of a pair is subtracted


def test_a_wide_interval_leaves_a_wide_range() -> None:
    """Whoever swings by tens of points separates from nobody: first or last, nobody knows."""
    rows = ranked({"a": (95.0, 96.0, 97.0), "b": (90.0, 91.0, 92.1), "wild": (20.0, 99.0, 60.0)})
    assert [layout.rank(rows[name]) for name in ("a", "b", "wild")] == ["1-2", "2-3", "1-3"]


def test_one_seed_and_the_base_have_no_rank() -> None:
    assert all(pd.isna(row["rank"]) for row in ranked({"a": (95.0,), "b": (80.0,)}).values())
    two = ranked({"a": (95.0, 96.0), "b": (80.0, 81.0)})
    assert [name for name, row in two.items() if pd.isna(row["rank"])] == ["none"]


def test_bold_only_where_a_method_stands_alone() -> None:
    apart = [measured(m, seed, top + seed) for m, top in (("a", 95), ("b", 93)) for seed in range(3)]
    level = [measured(m, seed, 95 + (seed + shift) % 3) for m, shift in (("a", 0), ("b", 1)) for seed in range(3)]
    for records, bold in ((apart, 1), (level, 0)):
        frame = comparison(cells(records))
        assert tables.markdown(frame).count("**") == 2 * bold
        assert tables.latex(frame).count("\\textbf") == bold


# ------------------------------------------------------------------------------------------ grouped by cost


def at(method: str, top1: float, macs: float, time: float, schedule: str = SCHEDULE) -> Record:
    """A record that costs these shares of the unreduced model."""
    record = measured(method, 0, top1, schedule, macs)
    unreduced = record.latency["32"]["unreduced"]
    return replace(record, latency={"32": {"reduced": [time * t for t in unreduced], "unreduced": unreduced}})


def test_a_winner_by_macs_that_loses_by_latency_is_seen() -> None:
    """Equal MACs: a is better than b. But a takes 70 % of the time, where c is better than it, and b 50 %."""
    records = [measured("none", 0, 98, share=1.0), at("a", 95, 0.504, 0.7), at("b", 94, 0.497, 0.5)]
    frame = comparison(cells([*records, at("c", 96, 0.8, 0.72), at("a", 80, 0.3, 0.5, "0.3@0")]))
    by_macs = {title: [(row["method"], row["places"]) for row in rows] for title, rows in bands.banded(frame, "macs")}
    assert list(by_macs) == [f"{low}% to {low + 10}% of the unreduced model's multiply-adds" for low in (25, 45, 75)]
    half = by_macs["45% to 55% of the unreduced model's multiply-adds"]
    assert half == [("a", {"macs": (1, 2), "latency": (2, 2)}), ("b", {"macs": (2, 2), "latency": (1, 2)})]
    by_time = {title[:3]: [row["method"] for row in rows] for title, rows in bands.banded(frame, "latency")}
    assert by_time == {"45%": ["b", "a"], "65%": ["c", "a"]}
    text = tables.grouped(frame, "macs")
    assert "| a | 0.5@0,1,2 | 32,16,8 | 50.4 | 70.0 | 85.00 | 95.00 | 1 of 2 | 2 of 2 |" in text


def test_a_method_stands_in_a_band_once_by_its_best_row() -> None:
    records = [at("a", 95, 0.5, 0.5), at("a", 96, 0.52, 0.5, "macs=0.52@0"), at("b", 95.5, 0.5, 0.5)]
    ((_, rows),) = bands.banded(comparison(cells(records)), "macs")
    assert [(row["method"], row["schedule"], row["places"]["macs"]) for row in rows] == [
        ("a", "macs=0.52@0", (1, 2)),
        ("b", SCHEDULE, (2, 2)),
    ]


def test_living_tokens_are_shown() -> None:
    live = measured("ats", 0, 93, count="at_most", tokens=REDUCED | {"live": [30.04, 15.5, 7.25]})
    other = replace(live, seed=1, tokens=REDUCED | {"live": [31.0, 15.5, 7.75]})
    row = compared([live, other])["ats", SCHEDULE]
    assert row["tokens_live"] == "30.5,15.5,7.5"
    assert layout.tokens(row) == "32,16,8 (30.5,15.5,7.5 live)"
    text = tables.markdown(comparison(cells([replace(live, macs=live.macs | {"live": 3.0e6})])))
    assert "| 50.0 (37.5 live) |" in text
    masked = replace(live, count="masked", tokens={"requested": [32], "achieved": [64], "live": [40.0]})
    assert layout.tokens(compared([masked])["ats", SCHEDULE]) == "all of 32 (40.0 live)"
    assert "live" not in layout.tokens(compared([measured("tome", 0, 96)])["tome", SCHEDULE])


def test_off_the_shelf_alone_still_ranks_rows() -> None:
    """Without fine-tuning the most accurate off the shelf stands first."""
    bare = [replace(measured(m, 0, t), metrics={"off_the_shelf_top1": t / 100}) for m, t in (("a", 80), ("b", 90))]
    frame = comparison(cells(bare))
    assert list(frame["method"]) == ["b", "a"]
    assert [row["method"] for _, rows in bands.banded(frame, "macs") for row in rows] == ["b", "a"]


# ------------------------------------------------------------------------------------------ holes, refusals


def test_a_failed_record_is_a_hole_with_its_reason() -> None:
    rows = compared(example())
    hole, partial = rows["topk", SCHEDULE], rows["topk", "0.7@0,1,2"]
    assert hole["error"] == "out of memory: 99 % of block_3 & more"
    assert hole["seeds"] == 0
    numbers = ("gmacs", "fine_tuned_top1_percent", "latency_b32_median_ms", "peak_memory_mib", "fine_tuning_seconds")
    assert all(math.isnan(hole[name]) for name in numbers)
    assert not any(math.isnan(rows["tome", SCHEDULE][name]) for name in numbers)
    assert (partial["seeds"], partial["error"]) == (2, "seed 2: loss is NaN in epoch 2")
    assert partial["fine_tuned_top1_percent"] == pytest.approx((96.0 + 97.5) / 2)  # 96.77 with the failed seed


def test_failed_rows_say_so_in_every_table() -> None:
    frame = comparison(cells(example()))
    assert "| topk | failed: out of memory: 99 % of block_3 & more |" in tables.markdown(frame)
    assert "{failed: out of memory: 99 \\% of block\\_3 \\& more} \\\\" in tables.latex(frame)
    assert "topk, 0.5@0,1,2: out of memory: 99 % of block_3 & more" in printed(example())
    healthy = [record for record in example() if record.error is None]
    for text in (tables.markdown(comparison(cells(healthy))), printed(healthy)):
        assert "failed" not in text


def test_several_recipes_on_one_machine_are_refused(tmp_path: Path) -> None:
    records = example()
    other = replace(records[3], recipe_digest="ba9876543210", seed=9)
    assert len(cells(records)) == len(records)
    store(tmp_path, records)
    with pytest.raises(
        UsageError, match=r"xeon-4c-ab12 has records of several recipes: digits .0123.*, digits .ba98"
    ) as e:
        write(store(tmp_path, [other]))
    assert "\n" not in str(e.value)


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"two records of tome 0\.5@0,1,2 seed 0"):
        cells([measured("tome", 0, 96), measured("tome", 0, 97)])
    assert len(cells([measured("tome", 0, 96), measured("tome", 1, 97)])) == 2


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no records"):
        write(tmp_path)
    (tmp_path / "records").mkdir()
    with pytest.raises(UsageError, match="holds no records"):
        write(tmp_path)


def test_machines_are_never_averaged(tmp_path: Path) -> None:
    here = [measured("none", 0, 98, share=1.0), measured("tome", 0, 96)]
    there = [replace(r, machine="h200-cd34", recipe_digest="other", metrics={"fine_tuned_top1": 0.5}) for r in here]
    frame = comparison(cells(read_all(store(tmp_path, here + there))))
    tome = frame[frame["method"] == "tome"].set_index("machine")
    assert tome["fine_tuned_top1_percent"].to_dict() == {MACHINE: 96.0, "h200-cd34": 50.0}
    assert tome["base_difference_points"].to_dict() == pytest.approx({MACHINE: -2.0, "h200-cd34": 0.0})


def test_stages_that_were_not_run_are_blank() -> None:
    bare = [replace(measured("tome", s, 96), metrics={}, latency={}, training={}, macs={}) for s in range(2)]
    row = compared(bare)["tome", SCHEDULE]
    assert math.isnan(row["fine_tuned_top1_percent"])
    assert math.isnan(row["speedup_reached"])
    assert row["seeds"] == 2
    assert "nan" not in tables.markdown(comparison(cells(bare)))
    assert "nan" not in printed(bare)


# ------------------------------------------------------------------------------------------ reading


def test_published_points_must_be_near() -> None:
    assert published.nearest("topk", 2.27 / 4.599) == (79.38, 2.27 / 4.599, published.nearest("topk", 0.49).source)
    assert published.nearest("topk", 2.94 / 4.599 + 0.04).top1 == 80.62
    assert math.isnan(published.nearest("topk", 2.94 / 4.599 + 0.06).top1)
    assert published.nearest("kmedoids", 2.13 / 4.599).top1 == 79.87  # from the hull; there is no other
    assert published.nearest("wkmedoids", 2.13 / 4.599).top1 == 80.13  # DeiT-S, where the hull has 80.12
    assert math.isnan(published.nearest("tome", 0.5).top1)  # published without GMACs
    assert math.isnan(published.nearest("topk", math.nan).top1)


def test_the_terminal_table_fits_and_is_complete() -> None:
    names = {"a_method_with_a_very_long_name_indeed_that_takes_up_space", "tome"}
    records = [measured(name, seed, 96 + seed) for name in names for seed in range(2)]
    piped = printed(records)
    assert all(name in piped for name in names)
    assert "…" not in piped
    assert max(map(len, piped.splitlines())) > 120
    usual = printed(example(), width=120)
    assert max(map(len, usual.splitlines())) <= 120
    assert "not shown" not in usual
    assert "not shown at this width: tokens" in " ".join(printed(example(), width=80).split())


def test_latex_is_escaped() -> None:
    assert tables.tex("50 % of topk_cls & #1 ± 2 é") == "50 \\% of topk\\_cls \\& \\#1 $\\pm$ 2 ?"


def test_the_front_leaves_out_what_is_beaten() -> None:
    assert front([(3, 90), (1, 80), (2, 79), (4, 90), (2, 85)]) == [(1, 80), (2, 85), (3, 90)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(store(Path(folder), example()))
        GOLDEN.mkdir(exist_ok=True)
        for name in TABLES:
            (GOLDEN / name).write_bytes((Path(folder) / "tables" / name).read_bytes())


WRONG_VALUES = [
    ("metrics", [1]),
    ("metrics", {"fine_tuned_top1": "high"}),
    ("seed", "0"),
    ("unreduced", 3),
    ("tokens", {"achieved": 5}),
    ("macs", {"total": "many"}),
    ("macs", {"layers": [{"name": 1, "macs": 2}]}),
    ("latency", {"one": {"reduced": [1.0], "unreduced": [1.0]}}),
    ("latency", {"1": {"reduced": [1.0]}}),
    ("latency", {"1": {"reduced": [], "unreduced": [1.0]}}),
    ("training", {"losses": "falling"}),
    ("training", {"pace": 3}),
    ("evaluation", {"test": None}),
    ("git", {"commit": 7}),
    ("git", []),
    ("surplus", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG_VALUES)
def test_a_record_of_wrong_types_is_named_in_one_line(tmp_path, capsys, field, value):
    from tpbench.cli import WRONG, main

    record = measured("topk", 0, 96.0)
    path = tmp_path / "records" / MACHINE / record.file_name
    path.parent.mkdir(parents=True)
    good = asdict(record)
    path.write_text(json.dumps(good))
    assert read(path).method == "topk"  # control
    path.write_text(json.dumps(good | {field: value}))
    assert main(["report", str(tmp_path)]) == WRONG
    said = capsys.readouterr().err.strip()
    assert path.name in said
    assert field in said
    assert len(said.splitlines()) == 1
