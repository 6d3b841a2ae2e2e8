"""The operation benchmarks: tables from the JSON alone, targets judged by turns, references that are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from opbench import __main__ as opbench_module
from opbench import report as opbench
from opbench import targets
from opbench.__main__ import main as opbench_main
from opbench.plain import looped_kmedoids, one_by_one, textbook_kmeans

from tpbench import registry
from tpbench.downsampler import Probe, Setup
from tpbench.pooling import cluster
from tpbench.tokens import Tokens

ROOT = Path(__file__).parents[1]


def cases(place: dict[str, Any], **operations: dict[str, Any]) -> list[dict[str, Any]]:
    """pytest-benchmark's entries of one group; what its own statistics say must not matter."""
    return [
        {
            "group": "g",
            "stats": {"median": 99.0},
            "extra_info": {"place": list(place), **place, "operation": n, **facts},
        }
        for n, facts in operations.items()
    ]


def run(*entries: dict[str, Any]) -> dict[str, Any]:
    environment = {"device": "Some CPU", "packages": {"torch": "2.15.0", "timm": "1.0.31"}}
    about = {
        "machine": "some-cpu-2c-0000",
        "environment": environment,
        "git": {"commit": "0123456789ab", "changed": False},
    }
    return {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"node": "secret", "tpbench": about},
        "benchmarks": list(entries),
    }


MODEL = {"kind": "model", "model": "deit_small_patch16_224", "batch": 8, "dtype": "float32"}
LAYER = {"kind": "layer", "tokens": 64, "share": 0.5, "batch": 1, "dtype": "float32"}
ATTENTION = LAYER | {"kind": "attention", "share": 1.0}
START = {"kind": "start", "batch": 32, "dtype": "float32"}
CEILINGS = {
    "copy": {"seconds": [1e-3, 1e-3, 1e-3], "macs": 0, "bytes": 2**20},
    "matmul": {"seconds": [2e-3, 2e-3, 2e-3], "macs": 10**6, "bytes": 10**4},
}
RUN = run(
    *cases(
        MODEL,
        none={"seconds": [1.0, 3.0, 1.5], "macs": 1600},
        topk={"seconds": [0.5, 1.0, 1.0], "macs": 800},
        wkmedoids={"seconds": [0.5, 2.0, 1.0], "macs": 1000},
    ),
    *cases(
        LAYER,
        **CEILINGS,
        block={"seconds": [8e-3, 9e-3, 8e-3], "macs": 2 * 10**6, "bytes": 2**20, "k": 64},
        topk={"seconds": [2e-3, 3e-3, 1e-3], "macs": 0, "bytes": 2**20, "k": 32},
        wkmedoids={"seconds": [6e-3, 6e-3, 6e-3], "macs": 10**6, "bytes": 2**20, "k": 32},
        **{"looped kmedoids": {"seconds": [1.0, 1.0, 1.0], "k": 32}},
    ),
    *cases(
        ATTENTION,
        **CEILINGS,
        block={"seconds": [8e-3, 8e-3, 8e-3], "macs": 2 * 10**6, "bytes": 2**20},
        SDPA={"seconds": [4e-3, 4e-3, 4e-3], "macs": 10**6, "bytes": 2**20},
    ),
    *cases(
        START,
        **{
            "topk, 2 iterations": {"seconds": [1.0, 1.0, 1.0], "loss": 90.0, "init": "topk", "iterations": 2},
            "slow, 2 iterations": {"seconds": [3.0, 3.0, 3.0], "loss": 10.0, "init": "slow", "iterations": 2},
            "grid, 2 iterations": {"seconds": [1.5, 1.0, 2.0], "loss": 50.0, "init": "grid", "iterations": 2},
            "topk, 5 iterations": {"seconds": [2.0, 2.0, 2.0], "loss": 100.0, "init": "topk", "iterations": 5},
        },
    ),
)
GOLDEN = f"""\
# Operations: some-cpu-2c-0000

Some CPU, 2026-01-02, commit 0123456789; torch 2.15.0, timm 1.0.31. One thread on a CPU.

{opbench.NOTE}

## Targets

| Where | What | Target | Measured | Met | Remark |
| :-- | --: | --: | --: | --: | --: |
| DeiT-S, batch 8 | wkmedoids: share of the speed-up that MACs promise | >= 0.97 | 0.938 | **no** | 1.500 of 1.600 |
| DeiT-S, batch 1 | wkmedoids: share of the speed-up that MACs promise | >= 0.96 | not measured |  |  |
| DeiT-Ti, batch 8 | wkmedoids: share of the speed-up that MACs promise | >= 0.96 | not measured |  |  |
| DeiT-S, batch 8 | wkmedoids / topk: throughput | >= 0.98 | 1.000 | yes |  |
| DeiT-S, batch 1 | wkmedoids / topk: throughput | >= 0.97 | not measured |  |  |
| DeiT-Ti, batch 8 | wkmedoids / topk: throughput | >= 0.94 | not measured |  |  |
| DeiT-S, batch 8, bfloat16 | wkmedoids / topk: throughput | >= 0.97 | not measured |  |  |
| digits, macs=0.5, batch 32 | wkmedoids / unreduced: time | <= 0.75 | not measured |  |  |
| digits, macs=0.5, batch 1 | wkmedoids / topk: time | <= 1.15 | not measured |  |  |
| DeiT-S, batch 8 | block that returns the attention received / SDPA block: time | <= 1.1 | not measured |  |  |
| one layer, N=196, C=384, batch 32, K=138 | plainly looped K-Medoids / batched: time | >= 40 | not measured |  |  |
| one layer, N=196, C=384, batch 32, K=69 | plainly looped K-Medoids / batched: time | >= 22 | not measured |  |  |
| one layer, N=196, C=384, batch 8, K=138 | K-Medoids, native / definition: time | <= 0.7 | not measured |  |  |
| one layer, N=196, C=384, batch 1, K=138 | K-Medoids, native / definition: time | <= 0.55 | not measured |  |  |
| one layer, N=64, C=64, batch 32, K=32 | K-Medoids, native / definition: time | <= 0.5 | not measured |  |  |
| one layer, N=64, C=64, batch 1, K=32 | K-Medoids, native / definition: time | <= 0.35 | not measured |  |  |
| one layer, N=196, C=384, batch 8, K=138 | ATC's reducer, single linkage / wkmedoids' reducer: time | <= 1.5 | not measured |  |  |
| one layer, N=196, C=384, batch 8, K=138 | ATC's reducer, average linkage / wkmedoids' reducer: time | <= 1.5 | not measured |  |  |
| one layer, N=196, C=384, batch 8, K=138 | ATC's reducer, complete linkage / wkmedoids' reducer: time | <= 1.5 | not measured |  |  |
| one layer, N=196, C=384, batch 32, K=138 | DPC-KNN / wkmedoids: time | >= 1.6 | not measured |  |  |
| one layer, N=196, C=384, batch 32, K=138 | textbook K-Means / from the Gram matrix: time | >= 1.5 | not measured |  |  |
| tokens of a trained model | best start that is no slower (2 iterations) / top-K start (5): loss | <= 0.65 | 0.500 | yes | grid, 0.75 of the time |
| every method, DeiT-S and DeiT-Ti | reduced / unreduced: time, at most | < 1 | 0.667 | yes | wkmedoids (deit_small_patch16_224, batch 8, float32) |

## Whole models

deit_small_patch16_224, batch 8, float32

| Method | ms | time, of unreduced | speed-up | promised by MACs | share | time, of top-K |
| :-- | --: | --: | --: | --: | --: | --: |
| none | 1500 | 1.00 | 1.00 | 1.00 | 1.00 | 2.00 |
| topk | 1000 | 0.500 | 2.00 | 2.00 | 1.00 | 1.00 |
| wkmedoids | 1000 | 0.667 | 1.50 | 1.60 | 0.938 | 1.00 |

## Reducers

N = 64, batch 1, float32

| Reducer | K/N 0.5: K | K/N 0.5: ms | K/N 0.5: to top-K | K/N 0.5: to block | K/N 0.5: to loop | K/N 0.5: to roofline |
| :-- | --: | --: | --: | --: | --: | --: |
| block | 64 | 8.00 | 4.00 | 1.00 | 0.00800 | 2.00 |
| topk | 32 | 2.00 | 1.00 | 0.250 | 0.00200 | 2.00 |
| wkmedoids | 32 | 6.00 | 3.00 | 0.750 | 0.00600 | 3.00 |
| looped kmedoids | 32 | 1000 | 500 | 125 | 1.00 |  |

## Attention

| N, batch, dtype | Attention | ms | to SDPA | to block | to roofline |
| :-- | --: | --: | --: | --: | --: |
| 64, 1, float32 | block | 8.00 | 2.00 | 1.00 | 2.00 |
| 64, 1, float32 | SDPA | 4.00 | 1.00 | 0.500 | 2.00 |

## Ceilings

| N, batch, dtype | copied, read and written, MiB | GB/s | matrix product, GMAC/s |
| :-- | --: | --: | --: |
| 64, 1, float32 | 1.00 | 1.05 | 0.500 |

## Where K-Medoids starts, on tokens of a trained model

| Start | loss, of top-K with 5 | time, of top-K with 5 |
| :-- | --: | --: |
| topk, 2 iterations | 0.900 | 0.500 |
| slow, 2 iterations | 0.100 | 1.50 |
| grid, 2 iterations | 0.500 | 0.750 |
| topk, 5 iterations | 1.00 | 1.00 |
"""  # noqa: E501


def test_golden_markdown():
    assert opbench.markdown(RUN) == GOLDEN


def test_a_run_is_written_lean_and_reads_back_the_same(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    written = opbench.write(tmp_path / "run.json", tmp_path / "first")
    assert [path.name for path in written] == [f"some-cpu-2c-0000.{kind}" for kind in ("json", "csv", "md")]
    again = opbench.write(written[0], tmp_path / "second")
    assert [path.read_text() for path in written] == [path.read_text() for path in again]
    assert "secret" not in written[0].read_text()
    header, first, *_ = written[1].read_text().splitlines()
    row = dict(zip(header.split(","), first.split(",")))
    assert (row["operation"], row["median_seconds"], row["to_topk"], row["macs"]) == ("none", "1.5", "2.0", "1600")


@pytest.mark.parametrize("text", ["{", "{}", '{"benchmarks": [{"extra_info": {}}]}'])
def test_another_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, text: str):
    (tmp_path / "run.json").write_text(text)
    assert opbench.main([str(tmp_path / "run.json"), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "not a run of" in err
    assert not (tmp_path / "out").exists()


def test_a_ratio_is_taken_turn_by_turn():
    """A machine that is ten and a hundred times slower in some turns changes no ratio."""
    slowness = [1, 10, 100]
    a, b = [own * by for own, by in zip([2.0, 3.0, 2.0], slowness)], [1.0 * by for by in slowness]
    group = {"a": {"seconds": a}, "b": {"seconds": b}}
    assert targets.ratio(group, "a", "b") == 2
    assert median(a) / median(b) == 3  # control: the medians' ratio, of different turns, does change
    with pytest.raises(targets.NotMeasured):
        targets.ratio(group, "a", "c")


def test_methods_that_are_not_faster_are_named_and_miss_the_target():
    slow = run(
        *cases(
            MODEL,
            none={"seconds": [1.0], "macs": 2},
            topk={"seconds": [0.5], "macs": 1},
            slower={"seconds": [1.25], "macs": 1},
        )
    )
    [target] = [target for target in targets.TARGETS if target.measure is targets.slowest]
    value, remark = target.measure(opbench.groups(slow))
    assert not target.met(value)
    assert remark == "slower (deit_small_patch16_224, batch 8, float32) 1.250"
    assert not target.met(1.0)


def test_the_committed_tables_are_those_of_their_json(tmp_path: Path):
    runs = sorted((ROOT / "results" / "opbench").glob("*.json"))
    assert runs
    for source in runs:
        for path in opbench.write(source, tmp_path):
            assert path.read_text() == source.with_suffix(path.suffix).read_text(), path.name


# ---------------------------------------------------------------- two records


def slowed(by: float, machine: float = 1.0) -> dict[str, Any]:
    """The run with wkmedoids `by` times as slow in the whole model, on a machine `machine` times as slow."""
    entries = json.loads(json.dumps(RUN["benchmarks"]))
    for case in (entry["extra_info"] for entry in entries):
        hit = case["kind"] == "model" and case["operation"] == "wkmedoids"
        case["seconds"] = [machine * (by if hit else 1) * seconds for seconds in case["seconds"]]
    return run(*entries)


def compared(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], *words: str) -> int:
    (tmp_path / "before.json").write_text(json.dumps(before))
    (tmp_path / "after.json").write_text(json.dumps(after))
    return opbench_main(["compare", str(tmp_path / "before.json"), str(tmp_path / "after.json"), *words])


def test_a_slower_machine_is_no_slower_operation(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert compared(tmp_path, RUN, slowed(1, machine=3)) == 0
    assert capsys.readouterr().out.startswith("0 slower, 0 faster")


def test_a_slower_operation_fails_beyond_the_threshold(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert compared(tmp_path, RUN, slowed(1.5, machine=0.5)) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("slower +50 %: wkmedoids / none")
    assert compared(tmp_path, RUN, slowed(1.5), "--threshold", "0.6") == 0
    assert compared(tmp_path, slowed(1.5), RUN) == 0, "faster"


def test_samples_that_overlap_are_no_change(tmp_path: Path):
    place = {"kind": "native", "tokens": 64}
    product = {"seconds": [1.0] * 5}
    wide = run(*cases(place, product=product, kmedoids={"seconds": [1.0, 2.0, 3.0, 4.0, 5.0]}))
    more = run(*cases(place, product=product, kmedoids={"seconds": [2.0, 3.0, 3.5, 4.0, 5.0]}))
    most = run(*cases(place, product=product, kmedoids={"seconds": [4.5, 4.6, 4.7, 4.8, 4.9]}))
    assert compared(tmp_path, wide, more) == 0
    assert compared(tmp_path, wide, most) == 1, "control"


def test_an_operation_of_one_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert compared(tmp_path, RUN, run(*RUN["benchmarks"][:2])) == 0
    assert "only in one record: batch 8, dtype float32, kind model" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--threshold", "-1"], ["--threshold", "nan"]])
def test_a_threshold_that_is_none_is_refused(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture):
    assert compared(tmp_path, RUN, RUN, *words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_records_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    other = run(*cases({"kind": "native", "tokens": 1}, product={"seconds": [1.0]}))
    assert compared(tmp_path, RUN, other) == 2
    assert "no operation in common" in capsys.readouterr().err
    assert compared(tmp_path, RUN, {}) == 2
    assert "not a run of" in capsys.readouterr().err


def git(folder: Path, *words: str) -> None:
    about = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *about, *words], check=True, capture_output=True)


def test_the_committed_record_is_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "opbench"
    folder.mkdir()
    words = ["compare", "--folder", str(folder)]
    assert opbench_main(words) == 2, "no repository"
    git(tmp_path, "init")
    for machine in ("here", "elsewhere"):
        (folder / f"{machine}.json").write_text(json.dumps(RUN))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "baseline")
    assert opbench_main(words) == 2
    assert "no record differs from the committed ones" in capsys.readouterr().err
    (folder / "here.json").write_text(json.dumps(slowed(1.5)))
    assert opbench_main(words) == 1
    assert "slower +50 %: wkmedoids / none" in capsys.readouterr().out
    (folder / "here.json").write_text(json.dumps(slowed(1, machine=3)))
    assert opbench_main(words) == 0, "control: a slower machine"
    (folder / "elsewhere.json").write_text(json.dumps(slowed(1.5)))
    assert opbench_main(words) == 2
    assert opbench_main([*words, str(folder / "here.json")]) == 2, "one name alone"


# ---------------------------------------------------------------- what is compared with


def test_the_tokens_of_a_trained_model_are_those_that_three_reducers_meet():
    from opbench.bench_targets import trained_tokens

    met = trained_tokens(epochs=1)
    assert [(x.shape[:2], weight.shape, k) for x, weight, k in met] == [
        ((32, n), (32, n), k) for n, k in ((64, 32), (32, 16), (16, 8))
    ]


def test_agglomeration_image_by_image_is_the_batched_one():
    tokens = Tokens(torch.randn(3, 20, 8), 0, torch.ones(3, 20))
    keys = torch.randn(3, 2, 20, 4)
    setup = Setup(0, 0, 1, 20, 12, 20, 8, 2, None, 0)
    method = registry.method("atc")
    merged = {}
    for linkage in ("single", "average", "complete"):
        merged[linkage] = method(setup, method.Config(linkage))(tokens, Probe(keys=keys))
        assert sets(one_by_one(tokens, keys, 12, linkage)) == sets(merged[linkage])
    assert sets(merged["single"]) != sets(merged["complete"]), "control"


def sets(tokens: Tokens) -> list[list[tuple[float, ...]]]:
    """The tokens of each image, rounded and in an order of their own."""
    return [sorted(tuple(round(value, 4) for value in token) for token in image) for image in tokens.x.tolist()]


def test_what_was_timed_is_reported_though_a_case_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def one_fails(words: list[str], **_: bool) -> subprocess.CompletedProcess:
        (path,) = [word.partition("=")[2] for word in words if word.startswith("--benchmark-json=")]
        Path(path).write_text(json.dumps(RUN))
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(opbench_module.subprocess, "run", one_fails)
    monkeypatch.setattr(opbench_module.compare, "FOLDER", tmp_path)
    assert opbench_main([]) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_the_looped_kmedoids_is_the_batched_one():
    x, weight = torch.randn(3, 40, 6), torch.rand(3, 40) + 0.1
    looped, (batched, _) = looped_kmedoids(x, weight, 9), cluster.kmedoids(x, weight, 9)
    assert torch.equal(looped.sort().values, batched.sort().values)
    assert not torch.equal(looped, looped_kmedoids(x, weight, 9, iterations=0))  # control: it iterates


def test_the_textbook_kmeans_is_the_one_from_the_gram_matrix():
    x, weight = torch.randn(3, 40, 6), torch.rand(3, 40) + 0.1
    (centres, assignment), (ours, own) = textbook_kmeans(x, weight, 9), cluster.kmeans(x, weight, 9)
    torch.testing.assert_close(centres, ours)
    assert torch.equal(assignment, own)
    assert not torch.equal(assignment, textbook_kmeans(x, weight, 9, iterations=0)[1])  # control: it iterates


@pytest.mark.slow
def test_a_case_of_the_benchmark_runs_and_makes_a_table(tmp_path: Path):
    pytest.importorskip("pytest_benchmark")
    out = tmp_path / "run.json"
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "tests/opbench/bench_operations.py",
        "-k",
        "64-0.7-1-",
        "--benchmark-only",
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, *words, f"--benchmark-json={out}"], cwd=ROOT, env=alone, capture_output=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-2000:]
    _, table, text = opbench.write(out, tmp_path)
    lines = table.read_text().splitlines()
    assert len(lines) > 20
    assert all(len(line.split(",")) >= 19 for line in lines)
    assert "wkmedoids" in text.read_text()
