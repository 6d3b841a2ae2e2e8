"""Timing sessions in reports: the clock's columns beside accuracies, and a folder that holds sessions alone."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_report import MACHINE, example, store

from tpbench.cli import DONE, WRONG, main
from tpbench.errors import UsageError
from tpbench.measure import timings
from tpbench.measure.timings import Row, Session
from tpbench.report import columns, findings, first, sessions, tables, terminal, timed
from tpbench.report.frame import Comparison, compare
from tpbench.report.write import write

SCHEDULES = {"0.5@0,1,2": 0.5, "0.7@0,1,2": 0.7}
METHODS = {"wkmedoids": 0.55, "tome": 0.6, "topk": 0.52, "ats": 0.7, "dynamicvit": 0.51}  # share of the time at 0.5
ROUNDS = 12


def row(method: str, role: str = "reduced", **lines) -> Row:
    return Row(method, role=role, **({"schedule": "none", "dtype": "float32", "mode": "eager"} | lines))


def samples(seconds: float, seed: int, rounds: int = ROUNDS) -> list[float]:
    """Every round is as slow as the machine was busy then; each row has some noise of its own."""
    busy = np.exp(np.random.default_rng(0).normal(0, 0.2, rounds))
    own = np.exp(np.random.default_rng(seed).normal(0, 0.01, rounds))
    return (seconds * busy * own).tolist()


def session(rounds: int = ROUNDS, **lines) -> Session:
    """All rows of the example at two batch sizes; its macs fit those of the records."""
    rows: list[Row] = []
    for batch, unit in ((1, 0.002), (32, 0.040)):
        at = {"batch": batch, "macs": 8_000_000}
        for role in ("reference", "control"):
            rows.append(row("timm", role, seconds=samples(unit, len(rows), rounds), **at))
        rows.append(row("none", seconds=samples(1.01 * unit, len(rows), rounds), **at))
        for schedule, share in SCHEDULES.items():
            for method, slow in METHODS.items():
                own = at | {"macs": int(8e6 * share), "schedule": schedule, "counts": [32, 16, 8]}
                seconds = samples(unit * (slow + share - 0.5), len(rows), rounds)
                rows.append(row(method, seconds=seconds, **own))
    about = {"machine": MACHINE, "model": "digits", "weights": "trained", "wanted": rounds, "rows": rows}
    about |= {"environment": {"device": "Xeon", "cores": 4}, "facts": {"threads": 1, "governor": None}}
    return Session(images={"source": "test images of digits"}, **(about | lines))


def comparison(timing: Session | None) -> Comparison:
    (found,) = compare(example(), timed=[] if timing is None else [timing])
    return found


def rows_of(found: Comparison) -> dict[tuple[str, str], dict]:
    return {(line["method"], line["schedule"]): line for line in found.rows}


# ------------------------------------------------------------------------------------------ beside accuracies


def test_the_columns_hold_what_the_session_says():
    timing = session()
    whole = rows_of(comparison(timing))
    own = whole["tome", "0.5@0,1,2"]
    (line,) = (x for x in timing.rows if (x.method, x.schedule, x.batch) == ("tome", "0.5@0,1,2", 32))
    (reference,) = (x for x in timing.rows if (x.role, x.batch) == ("reference", 32))
    assert own["timed_b32_ms"] == pytest.approx(1e3 * np.median(line.seconds))
    ratios = np.array(reference.seconds) / np.array(line.seconds)
    assert own["timed_b32_speedup"] == pytest.approx(np.median(ratios))
    assert own["timed_b32_speedup_low"] <= own["timed_b32_speedup"] <= own["timed_b32_speedup_high"]
    assert own["timed_b32_ms_low"] < own["timed_b32_ms"] < own["timed_b32_ms_high"]
    assert own["timed_b32_images_per_second"] == pytest.approx(32 / np.median(line.seconds))
    assert own["timed_b1_ms"] == pytest.approx(2 * 0.6, rel=0.3), "each batch size its own"
    assert whole["none", "none"]["timed_b32_speedup"] == pytest.approx(1 / 1.01, rel=0.02)
    null = whole["wkmedoids(finetune_seed=1)", "0.5@0,1,2"]
    assert np.isnan(null["timed_b32_ms"]), "the session has no such row"


def test_of_several_modes_the_fastest_counts_and_of_several_dtypes_the_first():
    timing = session()
    (line,) = (x for x in timing.rows if (x.method, x.schedule, x.batch) == ("tome", "0.5@0,1,2", 32))
    slow = replace(line, mode="compiled", seconds=[9.0] * ROUNDS)
    fast = replace(line, mode="compiled", seconds=[0.001] * ROUNDS)
    lower = [replace(x, dtype="bfloat16", seconds=[1e-6] * ROUNDS) for x in timing.rows]
    before = rows_of(comparison(timing))["tome", "0.5@0,1,2"]["timed_b32_ms"]
    for added, expected in (([slow], before), ([fast], 1.0), (lower, before)):
        own = replace(timing, rows=[*timing.rows, *added])
        assert rows_of(comparison(own))["tome", "0.5@0,1,2"]["timed_b32_ms"] == pytest.approx(expected)


def test_the_clock_comes_first_in_wide_tables_and_old_latencies_make_room():
    with_session, without = (tables.cost(comparison(timing).frame) for timing in (session(), None))
    headings = [column.heading for column in with_session]
    assert headings[1:6] == [
        "Batch 1, ms (95 % interval)",
        "Speed-up, batch 1 (95 % interval)",
        "Batch 32, ms (95 % interval)",
        "Speed-up, batch 32 (95 % interval)",
        "Speed-up, promised",
    ]
    assert "latency_b32_median_ms" not in [column.name for column in with_session]
    assert "latency_b32_median_ms" in [column.name for column in without], "control: without a session they stay"
    page = tables.markdown(comparison(session()))
    (line,) = (line for line in page.splitlines() if line.startswith("| tome | ") and " to " in line)
    own = rows_of(comparison(session()))["tome", "0.5@0,1,2"]
    assert f"{own['timed_b32_speedup']:.2f} ({own['timed_b32_speedup_low']:.2f} to " in line
    assert "| 2.00 |" in line, "what multiply-adds promise stands beside it"


def test_the_first_table_has_eight_columns_with_the_clock_in_them():
    found = comparison(session())
    for section in first.sections(found):
        heads = [(column.head, column.short_unit) for column in section.columns]
        assert len(heads) <= 8
        assert ("Batch 32", "ms") in heads
        assert ("Speed-up", "of promised") in heads
        assert "MACs" not in dict(heads), "the promised speed-up says the same"
    assert (
        "In measured time at 0.5@0,1,2, batch 32, 5 of 5 are faster than the fastest unreduced model: dynamicvit"
        in "".join(findings.findings(found))
    )
    (told,) = (column for column in section.columns if column.head == "Speed-up")
    own = rows_of(found)["tome", "0.5@0,1,2"]
    assert told.short(own).startswith(f"{own['timed_b32_speedup']:.2f} ±0.0")
    assert told.short(own).endswith(" of 2.00")
    assert first.TIMED in first.remarks(found)
    plain = [column.head for column in first.sections(comparison(None))[0].columns]
    assert "MACs" in plain
    assert "Speed-up" not in plain, "control: without a session the table is as before"
    assert first.TIMED not in first.remarks(comparison(None))


@pytest.mark.parametrize(("asked", "star"), [(None, False), (0.6, False), (0.5, True)])
def test_a_row_that_misses_its_latency_is_marked(asked, star):
    timing = session()
    (line,) = (x for x in timing.rows if (x.method, x.schedule, x.batch) == ("tome", "0.5@0,1,2", 32))
    line.asked = asked
    found = comparison(timing)
    own = rows_of(found)["tome", "0.5@0,1,2"]
    for column in columns.chosen(["timed_b32_ms"], [], [1, 32]):
        assert ("*" in column.text(own)) == ("*" in column.short(own)) == star
    assert (first.MISSED in first.remarks(found)) == star


def test_the_terminal_prints_the_clock():
    out = StringIO()
    terminal.show([comparison(session())], Console(file=out, color_system=None))
    assert "of promised" in out.getvalue()
    assert "Milliseconds and speed-ups are medians of one timing session" in out.getvalue()


# ------------------------------------------------------------------------------------------ files


def filed(folder: Path, timing: Session) -> Path:
    timings.write(timings.path_in(folder, timing.machine), timing)
    return folder


def test_a_report_of_records_and_a_session(tmp_path):
    write(filed(store(tmp_path, example()), session()))
    page = (tmp_path / "README.md").read_text()
    assert "### Timing session" in page
    assert "The same model twice" not in page, "that belongs to the session's own page"
    assert "batch 32, float32: the same model twice: " in page
    assert "`timed_bB_speedup`" in page
    assert (tmp_path / "tables" / f"{MACHINE}-speed.md").exists()
    assert "timed_b32_ms" in (tmp_path / "tables" / f"{MACHINE}.csv").read_text().splitlines()[0]


def test_a_session_of_another_machine_does_not_mix_in(tmp_path):
    write(filed(store(tmp_path, example()), session(machine="elsewhere")))
    assert "timed_b" not in (tmp_path / "README.md").read_text()
    assert (tmp_path / "tables" / "elsewhere-speed.md").exists()


def test_a_folder_with_sessions_alone_has_tables_and_a_readme(tmp_path, capsys):
    filed(tmp_path, session())
    assert main(["report", str(tmp_path)]) == DONE
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in paths} == {"README.md", f"{MACHINE}-speed.md", f"{MACHINE}-speed.csv"}
    assert all(path.is_file() for path in paths)
    page = (tmp_path / "README.md").read_text()
    for text in (f"## {MACHINE}", "### batch 32, float32", "The same model twice: ", "| tome |", "`speedup_low`"):
        assert text in page
    heads = next(line for line in page.splitlines() if line.startswith("| Method"))
    assert heads == "| Method | Schedule | Tokens | ms | Speed-up | Promised | Images/s |"
    assert main(["report", str(tmp_path), "--by", "macs"]) == DONE
    assert "the same model twice" in capsys.readouterr().out
    again = (tmp_path / "README.md").read_bytes()
    assert main(["report", str(tmp_path)]) == DONE
    assert (tmp_path / "README.md").read_bytes() == again


def test_control_a_folder_with_nothing_and_a_session_without_rounds_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no records and no timing session"):
        write(tmp_path)
    filed(tmp_path, replace(session(), rows=[replace(line, seconds=[]) for line in session().rows]))
    with pytest.raises(UsageError, match="no records and no timing session"):
        write(tmp_path)


def test_a_session_that_cannot_be_read_is_named(tmp_path, capsys):
    filed(tmp_path, session())
    path = timings.path_in(tmp_path, MACHINE)
    path.write_text(path.read_text()[:-20])
    assert main(["report", str(tmp_path)]) == WRONG
    assert f"{MACHINE}.json is corrupt" in capsys.readouterr().err


def test_every_number_of_a_session_is_in_its_csv_file(tmp_path):
    timing = session()
    timing.rows.append(row("avgpool", batch=32, schedule="0.5@0,1,2", error="no grid,\nat all"))
    (_, path) = sessions.write(tmp_path, [timing])
    lines = list(csv.DictReader(StringIO(path.read_text())))
    assert list(lines[0]) == list(sessions.MEANINGS)
    assert len(lines) == len([x for x in timing.rows if x.role != "control"])
    (own,) = (x for x in lines if (x["method"], x["schedule"], x["batch"]) == ("tome", "0.5@0,1,2", "32"))
    (line,) = (x for x in timing.rows if (x.method, x.schedule, x.batch) == ("tome", "0.5@0,1,2", 32))
    assert float(own["median_ms"]) == 1e3 * np.median(line.seconds)
    assert float(own["speedup_low"]) < float(own["speedup"]) < float(own["speedup_high"])
    assert own["p95_ms"] == ""
    assert own["counts"] == "32,16,8"
    assert lines[-1]["error"] == "no grid, at all"
    assert lines[-1]["median_ms"] == ""


@pytest.mark.parametrize(("rounds", "heads"), [(199, False), (200, True)])
def test_a_95th_percentile_is_shown_from_200_samples_on(rounds, heads):
    for table in timed.tables(session(rounds)):
        assert ("p95 ms" in table.heads) == heads
        assert len(table.rows[0]) == len(table.heads)
    assert all(len(table.heads) <= 8 for table in timed.tables(session(rounds), most=8))


def test_a_session_that_was_cut_off_says_so(tmp_path):
    cut = replace(session(), wanted=50)
    filed(tmp_path, cut)
    write(tmp_path)
    assert "12 rounds of 50; the session was cut off and can be continued" in (tmp_path / "README.md").read_text()
    assert not any("cut off" in line for line in timed.about(session())), "control"
