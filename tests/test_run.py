"""The benchmark as a user runs it: records, tables, continued runs, failed cells, and folders of other recipes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tpbench import environment
from tpbench.bench import base_measurements
from tpbench.bench.runner import may_be_alone
from tpbench.cli import DONE, FAILED, WRONG, main
from tpbench.errors import CellFailed, DataError, Diverged, Unreachable, UsageError
from tpbench.record import Store, read_all

TESTS = Path(__file__).parent
TINY = str(TESTS / "tiny_recipe.py")
METHODS = "none,wkmedoids,avgpool,random"


def run(out: Path, *words: str, methods: str = METHODS) -> int:
    return main(["run", "--recipe", TINY, "--methods", methods, "--out", str(out), *words])


def records(out: Path) -> dict[str, dict]:
    return {record.file_name: asdict(record) for record in Store.of(out)}


def without(out: Path, method: str) -> None:
    """Take a method's records out of the packed file of a finished run."""
    for path in (out / "records").glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["method"] != method))


def spawn(out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "tpbench", "run", "--recipe", TINY, "--methods", METHODS, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """Where the tests run in the background of a shell, that shell lets processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A complete run of the tiny recipe in its own process."""
    out = tmp_path_factory.mktemp("run") / "results"
    process = spawn(out)
    stdout, stderr = process.communicate(timeout=900)
    return out, subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_results_and_progress_go_where_they_belong(finished):
    out, done = finished
    assert done.returncode == DONE, done.stderr
    assert all(name in done.stdout for name in METHODS.split(","))
    assert "Fine-tuned" in done.stdout
    assert "[4/4]" in done.stderr
    assert "DeepSpeed" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert {path.suffix for path in (out / "tables").iterdir()} == {".csv", ".md", ".tex"}
    assert list((out / "figures").glob("*.png"))
    assert [path.name for path in (out / "starts").glob("*/*")] == ["seed0.json"]


def test_a_record_holds_everything(finished):
    out, _ = finished
    cells = {record.method: record for record in read_all(out)}
    assert set(cells) == set(METHODS.split(","))
    for record in cells.values():
        assert record.error is None
        assert {"off_the_shelf_top1", "fine_tuned_top1", "fine_tuned_loss"} <= set(record.metrics)
        assert record.macs["total"] == record.macs["closed_form"] == sum(row["macs"] for row in record.macs["layers"])
        assert {size: len(both["reduced"]) for size, both in record.latency.items()} == {"1": 3, "4": 3}
        assert record.peak_memory_bytes["unreduced"] > 0
        assert record.training["images"] == record.training["steps"] * 16 == 2 * (128 // 16) * 16
        assert record.evaluation == {"test": 60, "validation": 32}
        assert record.data["fingerprint"]
        assert record.environment["packages"]["torch"]
    exact = cells["wkmedoids"].tokens
    grid = cells["avgpool"].tokens
    assert exact["requested"] == exact["achieved"] == exact["after_block"] == [8, 4]
    assert all(reached <= asked for reached, asked in zip(grid["achieved"], grid["requested"]))
    assert cells["none"].schedule == "none"
    assert cells["none"].macs["total"] == cells["wkmedoids"].macs["unreduced"]
    seen = {record.training["images"] for record in cells.values()} | {
        record.data["fingerprint"] for record in cells.values()
    }
    assert len(seen) == 2, "every method saw as many of the same images"


def test_hidden_tokens_are_counted_with_the_macs_that_removing_them_would_save(finished):
    """For whole numbers of living tokens, the MACs without padding are those of the closed form."""
    import timm
    import torch

    import tpbench
    from tpbench.measure import cell

    base = timm.create_model("test_vit").eval()
    kept = tpbench.reduce(base, "random", "50,20@1,2")
    avit = tpbench.reduce(base, "avit", "50,20@1,2")
    assert cell.live_macs(avit, [50.0, 20.0]) == sum(kept.macs().values())
    assert cell.live_macs(avit, [50.0, 10.0]) < sum(kept.macs().values())
    ats = tpbench.reduce(base, "ats", "50,20@1,2")
    tokens = cell.token_counts(ats, torch.randn(4, 3, 160, 160))
    assert len(tokens["live"]) == 2
    assert all(0 < live <= k for live, k in zip(tokens["live"], tokens["achieved"]))
    assert cell.live_macs(ats, tokens["live"]) <= sum(ats.macs().values())
    assert "live" not in next(record for record in read_all(finished[0]) if record.method == "wkmedoids").tokens


def test_the_same_command_again_changes_nothing(finished, capsys):
    out, _ = finished
    before = records(out)
    assert run(out) == DONE
    assert records(out) == before
    printed = capsys.readouterr()
    assert "4 of 4 cells have been measured before" in printed.err


def test_report_rebuilds_the_same_tables(finished, capsys):
    out, _ = finished
    tables = {path: path.read_bytes() for path in (out / "tables").iterdir()}
    for path in tables:
        path.unlink()
    assert main(["report", str(out)]) == DONE
    assert {path: path.read_bytes() for path in (out / "tables").iterdir()} == tables
    assert str(next(iter(tables))) in capsys.readouterr().out


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "deepspeed": ["deepspeed.launcher.runner", "--num_gpus", "2", "--no_local_rank"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_give_the_numbers_of_one_process(finished, tmp_path, launcher):
    """Up to the order of sums. On a CPU the launcher of DeepSpeed starts what it takes for GPUs."""
    out = tmp_path / "results"
    own = ["run", "--recipe", TINY, "--methods", "none,avgpool", "--out", str(out)]
    module = ["-m", "tpbench"] if launcher == "torchrun" else ["--master_port", free_port(), "--module", "tpbench"]
    words = [sys.executable, "-m", *LAUNCHERS[launcher], *module, *own]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == DONE, done.stderr[-4000:]
    assert done.stderr.count("avgpool 0.5@0,1 seed 0") == 1, "one rank speaks"
    one = records(finished[0])
    two = records(out)
    assert len(two) == 2
    for name, record in two.items():
        assert record["environment"]["ranks"] == 2
        losses = {metric: value for metric, value in record["metrics"].items() if metric.endswith("loss")}
        assert losses == pytest.approx({metric: one[name]["metrics"][metric] for metric in losses}, rel=1e-5)
        changed = losses["fine_tuned_loss"] / losses["off_the_shelf_loss"]
        assert changed != pytest.approx(1, rel=1e-4), "control: training moves a loss by more"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in the base", "in a cell", "between cells"])
def test_a_killed_run_continues_to_the_same_numbers(finished, tmp_path, moment):
    uninterrupted = finished[0]
    out = tmp_path / "results"
    process = spawn(out)
    sign = {
        "in the base": lambda: list((out / "work").glob("base_seed0/progress.json")),
        "in a cell": lambda: list((out / "work" / "cells").glob("*/progress.json")),
        "between cells": lambda: list((out / "records").glob("*/*.json")),
    }[moment]
    deadline = time.monotonic() + 120
    while not sign() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(list((out / "records").glob("*/*.json"))) < 4, "control: it was cut short"
    again = spawn(out)
    _, stderr = again.communicate(timeout=300)
    assert again.returncode == DONE, stderr
    expected = {name: record["metrics"] for name, record in records(uninterrupted).items()}
    assert {name: record["metrics"] for name, record in records(out).items()} == expected


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so_and_continues_to_the_same_numbers(finished, tmp_path, sign):
    out = tmp_path / "results"
    process = spawn(out)
    while not list(out.glob("records/*/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(sign)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + sign
    assert "the same command continues" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert run(out) == DONE
    expected = {name: record["metrics"] for name, record in records(finished[0]).items()}
    assert {name: record["metrics"] for name, record in records(out).items()} == expected


def test_a_run_stopped_by_a_time_limit_continues_elsewhere_to_the_same_numbers(finished, tmp_path, capsys, monkeypatch):
    """Every part of the run ends after ten steps and continues in a copy of the folder, as on another machine."""
    import shutil

    from tpbench.training.train import Run

    sittings = 0
    out = tmp_path / "0"
    while True:
        left = iter(range(10, -1, -1))
        with monkeypatch.context() as patch:
            patch.setattr(Run, "past_deadline", lambda _, left=left: next(left, 0) == 0)
            assert run(out, "--time-limit", "9m") == DONE
        said = capsys.readouterr().err
        if "time limit reached" not in said:
            break
        assert "cells are left; the same command continues" in said
        sittings += 1
        out = Path(shutil.copytree(out, tmp_path / str(sittings)))
    assert sittings >= 5, "control: it was stopped in the base and in every cell"
    expected = {name: record["metrics"] for name, record in records(finished[0]).items()}
    renamed = {name: record["metrics"] for name, record in records(out).items()}
    assert renamed == expected
    for record in records(out).values():
        assert record["training"]["images"] == 2 * (128 // 16) * 16


def test_a_time_limit_also_ends_a_cell_after_its_training_or_evaluation(finished, tmp_path, capsys, monkeypatch):
    """The checkpoint is kept, and the numbers are those of an uninterrupted run."""
    from tpbench.bench.workspace import Workspace
    from tpbench.errors import OutOfTime

    kept = []
    for sitting in range(20):
        left = iter(range(3 + sitting % 2))  # looks at the clock before time is up

        def check_time(bench: Workspace, left=left) -> None:
            if next(left, None) is None:
                kept.extend(path.parent.name for path in bench.work.glob("cells/*/progress.json"))
                raise OutOfTime

        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "check_time", check_time)
            assert run(tmp_path, "--time-limit", "9m") == DONE
        if "time limit reached" not in capsys.readouterr().err:
            break
    assert kept, "control: a trained cell was left"
    assert len(records(tmp_path)) == 4
    expected = {name: record["metrics"] for name, record in records(finished[0]).items()}
    assert {name: record["metrics"] for name, record in records(tmp_path).items()} == expected


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (DataError("an image cannot be read"), True),
        (CellFailed("out of memory"), True),
        (RuntimeError("CUDA"), True),
        (Diverged("the loss"), False),
        (UsageError("a wrong setting"), False),
        (AssertionError("a method's own"), False),
    ],
)
def test_errors_that_one_rank_alone_may_have_end_all_ranks(error, alone):
    """The others would wait for it for ever. What all ranks have alike becomes a record."""
    assert may_be_alone(error) == alone


def test_the_starts_of_a_budget_that_the_reference_cannot_meet_are_left_out(tmp_path, monkeypatch):
    def build(*_words) -> None:
        raise Unreachable("the nearest it reaches is 0.5")

    monkeypatch.setattr(base_measurements, "build_cell", build)
    place = SimpleNamespace(writes=True, starts_path=lambda _: tmp_path / "starts.json", check_time=lambda: None)
    base_measurements.measure_starts(place, SimpleNamespace(seed=0), lambda *_: None)
    assert not (tmp_path / "starts.json").exists()


def test_an_edited_baseline_shows_in_the_record(tmp_path, monkeypatch):
    ask = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    for name in ("tpbench/environment.py", "baselines/topk.py", "docs/page.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("one\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        ask(["git", *words])
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "tpbench" / "environment.py"))
    assert environment.git()["changed"] is False
    (tmp_path / "docs/page.md").write_text("two\n")
    assert environment.git()["changed"] is False, "control: it decides no result"
    (tmp_path / "baselines/topk.py").write_text("two\n")
    assert environment.git()["changed"] is True


def test_after_the_time_limit_nothing_is_started(tmp_path, capsys):
    out = tmp_path / "results"
    assert run(out, "--time-limit", "0.001s") == DONE
    printed = capsys.readouterr()
    assert "time limit reached: 4 of 4 cells are left" in printed.err
    assert printed.out == ""
    assert not records(out)
    assert not list((out / "work").glob("base_seed*"))


def test_images_of_another_folder_are_rejected(tmp_path, capsys):
    """The recipe names a folder and `--data` another with other images, which the digest of the recipe cannot show."""
    from test_data import encoded, write_parquet

    text = Path(TINY).read_text()
    text = text.replace(
        'Data("digits", image_size=8, channels=1, shift=1, train_limit=160, test_limit=60, ', "Data(**D, "
    )
    text += '\nD = {"source": "parquet", "image_size": 8, "channels": 1, "classes": 2, "root": "nowhere"}\n'
    (tmp_path / "mine.py").write_text(text)
    words = ["run", "--recipe", str(tmp_path / "mine.py"), "--methods", "none", "--out", str(tmp_path / "out")]
    assert main(words) == WRONG
    assert "nowhere" in capsys.readouterr().err
    for name, levels in (("a", (50, 200)), ("b", (60, 190))):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name, [encoded("L", level=level) for level in levels] * 40, [0, 1] * 40)
    assert main([*words, "--data", str(tmp_path / "a")]) == DONE
    assert main([*words, "--data", str(tmp_path / "a")]) == DONE, "control"
    capsys.readouterr()
    assert main([*words, "--data", str(tmp_path / "b")]) == WRONG
    assert "other images" in capsys.readouterr().err
    without(tmp_path / "out", "none")
    assert main([*words, "--data", str(tmp_path / "b")]) == WRONG
    assert "base_seed0.safetensors was trained on other images" in capsys.readouterr().err


IMAGENET = """
from dataclasses import replace
from tpbench.recipe import Measure, load

def recipe():
    full = load("imagenet-deit-ti")
    model = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 2}
    return replace(
        full, name="imagenet-tiny", model="vit_tiny_patch16_224", model_args=full.model_args | model,
        pretrained=False,
        data=replace(full.data, image_size=32, classes=2, validation=0.2, loader_processes=1),
        finetune=replace(full.finetune, epochs=1, batch_size=4, compile=False),
        schedules=("0.5@0,1",), seeds=1, measure=Measure(batch_sizes=(1, 4), repeats=3, warmup=1),
    )
"""


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_the_imagenet_recipe_runs_end_to_end(odd_folder, tmp_path, capsys):
    """imagenet-deit-ti in a small size: an ImageFolder, RandAugment, erasing, mixing, averaging, ZeRO, bfloat16."""
    (tmp_path / "mine.py").write_text(IMAGENET)
    words = ["run", "--recipe", str(tmp_path / "mine.py"), "--methods", "none,wkmedoids", "--data", str(odd_folder)]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == DONE
    cells = read_all(tmp_path / "out")
    assert {record.evaluation["test"] for record in cells} == {12}
    assert {record.environment["dtype"] for record in cells} == {"bfloat16"}
    broken = next((odd_folder / "train").rglob("large.jpg"))
    broken.write_bytes(broken.read_bytes()[:2000])
    capsys.readouterr()
    assert main([*words, "--fresh"]) == FAILED
    said = capsys.readouterr().err
    assert "large.jpg cannot be read" in said
    assert "Traceback" not in said


def test_a_diverging_cell_fails_and_the_others_run(tmp_path, capsys, monkeypatch):
    from tpbench.bench import runner

    def poisoned(model, *rest, **more):
        if model.reducers and model.reducers[0].name == "topk":
            model.head.weight.data.fill_(float("nan"))
        return train(model, *rest, **more)

    train = runner.train
    out = tmp_path / "results"
    monkeypatch.setattr(runner, "train", poisoned)
    assert run(out, methods="none,topk,random") == FAILED
    printed = capsys.readouterr()
    assert (
        "topk 0.5@0,1 seed 0: Diverged: the loss is no longer finite at step 0 (epoch 0, learning rate" in printed.err
    )
    assert {r["method"]: r["error"] is None for r in records(out).values()} == {
        "none": True,
        "topk": False,
        "random": True,
    }
    tables = [path.read_text() for path in (out / "tables").glob("*.md")]
    assert any("no longer finite" in table for table in tables)


def test_another_recipe_in_the_folder_is_rejected(finished, tmp_path, capsys):
    out, _ = finished
    before = records(out)
    assert main(["run", "--recipe", "smoke", "--methods", "none", "--out", str(out)]) == WRONG
    assert "holds results of recipe 'tiny'" in capsys.readouterr().err
    edited = tmp_path / "tiny_recipe.py"
    edited.write_text(Path(TINY).read_text().replace("epochs=2", "epochs=1"))
    assert main(["run", "--recipe", str(edited), "--methods", "none", "--out", str(out)]) == WRONG
    assert "another version of recipe" in capsys.readouterr().err
    assert records(out) == before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[:200], "is corrupt"),
        (lambda text: text.replace('"schema": 2', '"schema": 99'), "schema 99"),
        (lambda text: text.replace('"seed": 0', '"seed": 1', 1), "it was changed since it was written"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(finished, tmp_path, capsys, spoil, reason):
    """A run refuses it, since measuring again would hide it; a report goes on without it."""
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    path = next((out / "records").glob("*.jsonl"))
    lines = path.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if '"method": "random"' in line)
    lines[at] = spoil(lines[at])
    path.write_text("\n".join(lines) + "\n")
    for words, code in ((["report", str(out)], FAILED), (["run", "--recipe", TINY, "--out", str(out)], WRONG)):
        assert main(words) == code
        error = capsys.readouterr().err
        assert reason in error
        assert f"{path.name} line {at + 1}" in error
        assert len(error.strip().splitlines()) == 1
    table = next(path for path in (out / "tables").glob("*-cells.csv")).read_text()
    assert "wkmedoids" in table
    assert "random" not in table


def test_a_damaged_file_of_base_weights_is_rejected(finished, tmp_path, capsys):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    without(out, "random")
    base = out / "work" / "base_seed0.safetensors"
    base.write_bytes(base.read_bytes()[:500])
    assert run(out) == WRONG
    assert "base_seed0.safetensors cannot be read" in capsys.readouterr().err


def test_a_flipped_bit_in_a_base_is_found(tmp_path, capsys):
    assert run(tmp_path, methods="none") == DONE
    base = next(tmp_path.glob("work/base_seed0.safetensors"))
    assert run(tmp_path, methods="none,avgpool") == DONE, "control: undamaged, it is used"
    content = bytearray(base.read_bytes())
    content[-3] ^= 1
    base.write_bytes(content)
    capsys.readouterr()
    assert run(tmp_path, methods="none,avgpool,random") == WRONG
    assert "base_seed0.safetensors was changed since it was written" in capsys.readouterr().err


def test_a_changed_fine_tuning_keeps_the_trained_base(tmp_path, capsys):
    import shutil

    lines = Path(TINY).read_text()
    mine = tmp_path / "mine.py"
    out = tmp_path / "out"
    words = ["run", "--recipe", str(mine), "--methods", "none", "--out", str(out)]

    def forget_results():
        for folder in ("records", "timing"):
            shutil.rmtree(out / folder)

    mine.write_text(lines)
    assert main(words) == DONE
    base = out / "work" / "base_seed0.safetensors"
    trained = base.stat()
    forget_results()
    mine.write_text(lines.replace("finetune=Optim(epochs=2", "finetune=Optim(epochs=1"))
    assert main(words) == DONE
    assert base.stat().st_mtime_ns == trained.st_mtime_ns
    forget_results()
    mine.write_text(lines.replace("base=Optim(epochs=3", "base=Optim(epochs=2"))
    capsys.readouterr()
    assert main(words) == WRONG, "control: another training of the base"
    assert "belongs to another recipe" in capsys.readouterr().err


def test_the_temporary_file_of_a_killed_run_is_deleted(tmp_path):
    assert run(tmp_path, methods="none") == DONE
    left = tmp_path / "records" / "some-machine" / ".none_none_seed0.json.123.part"
    left.parent.mkdir()
    left.write_text("{")
    assert run(tmp_path, methods="none") == DONE
    assert not left.exists()


def test_the_checkpoints_of_a_base_that_is_there_are_deleted(tmp_path):
    """A run can be killed when it has saved a base and not yet deleted the checkpoints of its training."""
    assert run(tmp_path, methods="none") == DONE
    needless = tmp_path / "work" / "base_seed0"
    needed = tmp_path / "work" / "base_seed7"  # a base whose training goes on
    for folder in (needless, needed):
        folder.mkdir()
        (folder / "progress.json").write_text("{}")
    assert run(tmp_path, methods="none") == DONE
    assert not needless.exists()
    assert needed.exists(), "control"


def test_the_checkpoints_of_a_measured_cell_are_deleted(tmp_path):
    """A run can be killed when it has written a record and not yet deleted the checkpoints of the cell."""
    assert run(tmp_path, methods="none,topk") == DONE
    record = next(record for record in Store.of(tmp_path) if record.method == "topk")
    needless = tmp_path / "work" / "cells" / Path(record.file_name).stem
    needed = tmp_path / "work" / "cells" / "tome_0.5-at-0_seed0"  # of another run, which goes on
    for folder in (needless, needed):
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text("{}")
    assert run(tmp_path, methods="none,topk") == DONE
    assert not needless.exists()
    assert needed.exists(), "control"


def test_a_run_with_nothing_to_do_builds_and_reads_nothing(tmp_path, monkeypatch):
    from tpbench.bench import models
    from tpbench.training import data

    def refused(*_, **__):
        raise AssertionError("no model and no image is needed")

    assert run(tmp_path, methods="none,avgpool") == DONE
    monkeypatch.setattr(models.vit, "create", refused)
    monkeypatch.setattr(data, "load", refused)
    assert run(tmp_path, methods="none,avgpool") == DONE
    with pytest.raises(AssertionError, match="no model"):  # control: another method needs both
        run(tmp_path, methods="none,random")


def test_a_failed_cell_is_shown_with_its_reason_and_is_tried_again(tmp_path, capsys, monkeypatch):
    from tpbench.bench import runner

    def out_of_memory(model, *rest, **more):
        if model.reducers:
            raise RuntimeError("out of memory, they say")
        return measure(model, *rest, **more)

    measure = runner.measure
    out = tmp_path / "results"
    monkeypatch.setattr(runner, "measure", out_of_memory)
    assert run(out, methods="none,wkmedoids") == FAILED
    printed = capsys.readouterr()
    assert "out of memory, they say" in printed.out
    assert "out of memory, they say" in printed.err
    assert "Traceback" not in printed.err
    assert {r["method"]: r["error"] is None for r in records(out).values()} == {"none": True, "wkmedoids": False}
    tables = [path.read_text() for path in (out / "tables").glob("*.md")]
    assert any("out of memory, they say" in table for table in tables)
    monkeypatch.undo()
    assert run(out, methods="none,wkmedoids") == DONE
    assert "1 of 2 cells have been measured before" in capsys.readouterr().err
    assert all(record["error"] is None for record in records(out).values())


def test_fresh_measures_again(tmp_path, capsys):
    out = tmp_path / "results"
    assert run(out, methods="none") == DONE
    before = records(out)
    assert run(out, "--fresh", methods="none") == DONE
    assert "measured before" not in capsys.readouterr().err
    after = records(out)
    assert {n: r["metrics"] for n, r in after.items()} == {n: r["metrics"] for n, r in before.items()}
    assert {n: r["latency"] for n, r in after.items()} != {n: r["latency"] for n, r in before.items()}


def test_a_run_waits_for_a_folder_that_is_being_packed(tmp_path, capsys, monkeypatch):
    from tpbench.bench import results_folder

    out = tmp_path / "results"
    monkeypatch.setattr(results_folder, "PATIENCE", 0.3)
    with results_folder.locked(out):
        assert run(out, methods="none") == WRONG
    assert "is being written by another process" in capsys.readouterr().err
    assert run(out, "--time-limit", "0.001s", methods="none") == DONE, "control: nobody holds it any more"


def test_rows_of_an_earlier_command_are_timed_with_the_new_ones(tmp_path, capsys):
    from tpbench.measure import timings

    def timed() -> set[str]:
        (session,) = timings.read_all(tmp_path)
        return {f"{row.method} {row.schedule}" for row in session.rows if row.role == "reduced"}

    assert run(tmp_path, "--schedules", "0.5@0,1", methods="none,random") == DONE
    assert timed() == {"none none", "random 0.5@0,1"}
    assert run(tmp_path, "--schedules", "0.8@0,1", methods="none,topk") == DONE
    every = {"none none", *(f"{method} {text}" for method in ("random", "topk") for text in ("0.5@0,1", "0.8@0,1"))}
    assert timed() == every, "rows of two sessions could not be compared"
    assert "timed any more" not in capsys.readouterr().err
    (path,) = (tmp_path / "timing").glob("*.json")
    whole = path.read_bytes()
    assert run(tmp_path, "--schedules", "0.5@0,1", methods="none,random") == DONE
    assert path.read_bytes() == whole, "control: the session has these rows"
    renamed = path.read_text().replace('"random"', '"once_a_plugin"')
    path.write_text(renamed)
    assert run(tmp_path, "--schedules", "0.7@0,1", methods="none,topk") == DONE
    assert "topk 0.5@0,1" in timed()
    assert not any("plugin" in row for row in timed())
    assert "once_a_plugin is not timed any more" in capsys.readouterr().err


def test_a_timing_session_cut_by_the_time_limit_continues(tmp_path, capsys, monkeypatch):
    from tpbench.errors import OutOfTime
    from tpbench.measure import session, timings

    out = tmp_path / "results"
    rounds = iter(range(6))
    one_round = session.one_round

    def cut(*turn):
        if next(rounds, None) is None:
            raise OutOfTime
        return one_round(*turn)

    monkeypatch.setattr(session, "one_round", cut)
    assert run(out, methods="none,random") == DONE
    assert "6 of 50 rounds of timing are done; the same command continues" in capsys.readouterr().err
    (path,) = (out / "timing").glob("*.json")
    before = timings.read(path)
    monkeypatch.undo()
    assert run(out, methods="none,random") == DONE
    assert "of timing" not in capsys.readouterr().err
    after = timings.read(path)
    assert [part.rounds for part in after.sittings] == [6, 44]
    assert [row.seconds[:6] for row in after.rows] == [row.seconds for row in before.rows], "kept rounds stay"
    whole = path.read_bytes()
    assert run(out, methods="none,random") == DONE
    assert path.read_bytes() == whole, "control: what is complete is not timed again"
    monkeypatch.setattr(session, "one_round", cut)
    assert run(out, methods="none,random,avgpool") == DONE, "control: another row is timed with all others"
    assert "time limit reached: all rows are still to be timed" in capsys.readouterr().err
    assert path.read_bytes() == whole, "nothing is lost for no round at all"
