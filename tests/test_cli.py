"""The command line: what it prints where, its exit codes, and one clear line for every wrong request."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from tpbench.bench.results_folder import locked
from tpbench.cli import DONE, FAILED, WRONG, main, parser
from tpbench.cli.chosen_recipe import run_command
from tpbench.record import Profile, Record


def ask(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_list_is_a_table_and_a_list_of_objects(capsys):
    code, out, _ = ask(capsys, "list")
    assert code == DONE
    assert "wkmedoids" in out
    code, out, err = ask(capsys, "list", "--json")
    methods = {entry["name"]: entry for entry in json.loads(out)}
    assert code == DONE
    assert err == ""
    assert methods["wkmedoids"]["count"] == "exact"
    assert methods["strided_conv"]["count"] == methods["avgpool"]["count"] == "at_most"
    assert next(iter(methods)) == "none"


@pytest.mark.parametrize("verb", ["search", "tune"])
def test_the_command_that_a_verb_prints_runs_the_same_recipe_in_the_same_place(verb):
    shared = (
        "--recipe smoke --set seeds=1 --set finetune.epochs=2 --plugin first.py --data d --out 'a folder' --device cpu"
    )
    asked = parser().parse_args([verb, *shlex.split(shared), *(["--method", "topk"] if verb == "search" else [])])
    printed = parser().parse_args(shlex.split(run_command(asked, "--schedules", "0.5@1"))[1:])
    assert printed.schedules == "0.5@1"
    for name in ("recipe", "lines", "plugin", "data", "out", "device"):
        assert getattr(printed, name) == getattr(asked, name), name


@pytest.mark.parametrize("words", [["list"], ["--help"], ["run", "--help"]])
def test_light_verbs_load_no_torch(words):
    script = (
        "import sys, runpy; sys.argv = ['tpbench'] + sys.argv[1:]\n"
        "try: runpy.run_module('tpbench', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{words}: {time.perf_counter() - start:.2f} s")


def test_control_profile_does_load_torch():
    script = "import sys; from tpbench.measure import profile; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


WRONG_REQUESTS = {
    "no verb": ([], "required"),
    "unknown verb": (["rnu"], "invalid choice"),
    "unknown flag": (["run", "--epochs", "3"], "unrecognized"),
    "unknown method": (["run", "--recipe", "smoke", "--methods", "wkmedoid"], "did you mean wkmedoids"),
    "no method": (["run", "--recipe", "smoke", "--methods", ""], "names no method"),
    "only commas": (["run", "--recipe", "smoke", "--methods", " , "], "names no method"),
    "too many seeds": (["run", "--recipe", "smoke", "--seeds", "1000000000"], "at most 10000"),
    "unknown weights": (["profile", "--model", "test_vit.nonsense", "--method", "none"], "cannot be made"),
    "unknown recipe": (["run", "--recipe", "digit"], "did you mean digits"),
    "missing recipe file": (["run", "--recipe", "nowhere/mine.py"], "does not exist"),
    "rate above 1": (["run", "--recipe", "smoke", "--schedules", "1.5@0,1"], "outside (0, 1]"),
    "rate zero": (["run", "--recipe", "smoke", "--schedules", "0.0@0,1"], "outside (0, 1]"),
    "no blocks": (["run", "--recipe", "smoke", "--schedules", "0.5"], "BUDGET@BLOCKS"),
    "block out of range": (["run", "--recipe", "smoke", "--schedules", "0.5@0,9"], "out of range"),
    "K above N": (["run", "--recipe", "smoke", "--schedules", "99@0"], "only 64 arrive"),
    "K below 1": (["run", "--recipe", "smoke", "--schedules", "0.1@0,1,2"], "at least 1"),
    "unknown setting": (["run", "--recipe", "smoke", "--methods", "wkmedoids(colour=red)"], "no such setting"),
    "setting of another type": (["run", "--recipe", "smoke", "--methods", "wkmedoids(normalise=foo)"], "valid boolean"),
    "broken count": (["run", "--recipe", "smoke", "--methods", "wkmedoids(iterations=1.5)"], "valid integer"),
    "list for a count": (["run", "--recipe", "smoke", "--methods", "wkmedoids(iterations=[1])"], "takes a number"),
    "no neighbours": (["run", "--recipe", "smoke", "--methods", "dpcknn(neighbours=0)"], "greater than or equal to 1"),
    "share below 0": (["run", "--recipe", "smoke", "--methods", "diffrate(pruned=-1)"], "greater than or equal to 0"),
    "share above 1": (["run", "--recipe", "smoke", "--methods", "diffrate(pruned=1.5)"], "less than or equal to 1"),
    "setting out of range": (["run", "--recipe", "smoke", "--methods", "wkmedoids(init=corner)"], "is not one of"),
    "unknown site": (["run", "--recipe", "smoke", "--methods", "topk(site=start)"], "unknown site"),
    "budget above 1": (["run", "--recipe", "smoke", "--budget", "1.5"], "outside (0, 1]"),
    "budget too small": (
        ["run", "--recipe", "smoke", "--methods", "topk", "--budget", "0.01"],
        "the nearest it reaches",
    ),
    "latency in a profile": (
        ["profile", "--model", "test_vit", "--method", "topk", "--schedule", "latency=0.5@1"],
        "must be solved",
    ),
    "no weights": (["run", "--recipe", "smoke", "--pretrained", "nowhere.pth"], "does not exist"),
    "hub's head": (["run", "--recipe", "smoke", "--pretrained"], "give --pretrained a file"),
    "no search": (["search", "--method", "tome"], "has no search"),
    "no learned file": (["run", "--recipe", "smoke", "--schedules", "learned:nowhere.json"], "cannot be read"),
    "no seeds": (["run", "--recipe", "smoke", "--seeds", "0"], "at least 1"),
    "odd time limit": (["run", "--recipe", "smoke", "--time-limit", "soon"], "such as 540s, 9m or 1.5h"),
    "no time at all": (["run", "--recipe", "smoke", "--time-limit", "0"], "such as 540s, 9m or 1.5h"),
    "digits elsewhere": (["run", "--recipe", "smoke", "--data", "there"], "reads no files"),
    "no such data": (["run", "--recipe", "cifar10", "--data", "there"], "train.parquet does not exist"),
    "no GPU": (["run", "--recipe", "smoke", "--device", "cuda"], "no CUDA device"),
    "unknown device": (["run", "--recipe", "smoke", "--device", "tpu"], "unknown device"),
    "unknown model": (["profile", "--model", "deit_smal_patch16_224", "--method", "topk"], "did you mean"),
    "unsupported model": (
        ["profile", "--model", "beit_base_patch16_224", "--method", "none"],
        "Beit",
    ),
    "no schedule": (["profile", "--model", "deit_tiny_patch16_224", "--method", "topk"], "needs a schedule"),
    "odd batch sizes": (["profile", "--model", "x", "--method", "topk", "--batch-sizes", "1;2"], "whole numbers"),
    "batch of none": (["profile", "--model", "x", "--method", "topk", "--batch-sizes", "0"], "at least one"),
    "absurd batch": (
        ["profile", "--model", "x", "--method", "topk", "--batch-sizes", "1,99999999999"],
        "at most 1000000000",
    ),
    "batch above 64 bits": (["profile", "--model", "x", "--method", "topk", "--batch-sizes", "9" * 30], "at most"),
    "no CUDA graph": (
        ["profile", "--model", "x", "--method", "topk", "--device", "cpu", "--cuda-graph"],
        "needs a CUDA device",
    ),
    "no records": (["report", "nowhere"], "no records"),
    "neither one nor many": (["profile", "--model", "test_vit"], "--method NAME for one method or --methods"),
    "one and many": (["profile", "--model", "x", "--method", "topk", "--methods", "all"], "--method NAME for one"),
    "many's flag for one": (["profile", "--model", "x", "--method", "topk", "--rounds", "9"], "--rounds goes with"),
    "one's flag for many": (
        ["profile", "--model", "x", "--methods", "topk", "--schedule", "0.5@1"],
        "goes with --method",
    ),
    "many without schedules": (["profile", "--model", "test_vit", "--methods", "topk"], "give --schedules"),
    "no rounds": (["profile", "--model", "x", "--methods", "none", "--rounds", "0"], "at least 1"),
    "fresh without a folder": (["profile", "--model", "x", "--methods", "none", "--fresh"], "without --out"),
    "advice on no model": (["advise", "--model", "nowhere:make", "--latency", "0.7"], "cannot be made: ModuleNotFound"),
    "advice on a number": (["advise", "--model", "math:floor", "--latency", "0.7"], "cannot be made: TypeError"),
    "advice on a list": (["advise", "--model", "builtins:list", "--latency", "0.7"], "not a torch.nn.Module"),
    "advice on no latency": (["advise", "--model", "test_vit", "--latency", "1.5"], "outside (0, 1]"),
    "advice on nothing": (["advise", "--model", "test_vit", "--latency", "0.7", "--methods", "none"], "none of them"),
    "search in no such data": (
        ["search", "--recipe", "cifar10-cpu", "--method", "topk", "--data", "there"],
        "train.parquet does not exist",
    ),
    "advice on no images": (["advise", "--model", "test_vit", "--latency", "0.7", "--data", "there"], "does not exist"),
}


@pytest.mark.parametrize(("words", "reason"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
def test_a_wrong_request_gets_one_clear_line(capsys, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    if words[:2] == ["run", "--recipe"] and "cuda" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    code, out, err = ask(capsys, *words)
    assert code == WRONG
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert reason in err
    assert not list(tmp_path.rglob("*.json")), "a refused request leaves nothing behind"


def test_profile_prints_one_object(capsys):
    code, out, _ = ask(
        capsys, "profile", "--model", "test_vit", "--method", "wkmedoids", "--schedule", "0.5@1,3",
        "--batch-sizes", "1,2", "--repeats", "3", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == DONE
    assert result["tokens"]["requested"] == result["tokens"]["achieved"] == [50, 25]
    samples = {size: [len(own) for own in both.values()] for size, both in result["latency"].items()}
    assert samples == {"1": [3, 3], "2": [3, 3]}
    macs = result["macs"]
    assert sum(layer["macs"] for layer in macs["layers"]) == macs["total"] < macs["unreduced"]
    reducers = [layer for layer in macs["layers"] if layer["name"].endswith(".reducer")]
    assert len(reducers) == 2
    assert all(layer["macs"] > 0 and result["layers_seconds"][layer["name"]] > 0 for layer in reducers)


def test_profile_has_the_names_of_a_record():
    own = {"model", "mode", "trace"}
    assert {field.name for field in fields(Profile)} - own < {field.name for field in fields(Record)}


def test_profile_prints_a_table(capsys):
    code, out, _ = ask(
        capsys, "profile", "--model", "test_vit", "--method", "avgpool", "--schedule", "51@1",
        "--batch-sizes", "1", "--repeats", "2",
    )  # fmt: skip
    assert code == DONE
    assert "blocks.1.reducer" in out
    assert "50" in out, "the largest grid of at most 51 tokens"


def test_an_unwritable_folder_is_said_in_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = ask(
        capsys, "run", "--recipe", "smoke", "--methods", "none", "--out", str(tmp_path / "file" / "results")
    )
    assert code == WRONG
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "cannot write" in err


def test_exit_codes_are_distinct():
    assert len({DONE, FAILED, WRONG}) == 3


PROFILE = ["profile", "--model", "test_vit", "--method", "none", "--repeats", "1", "--batch-sizes"]


def test_a_batch_that_no_memory_holds_is_refused_in_one_line(capsys):
    code, _, err = ask(capsys, *PROFILE, "1000000000")  # 307 TB of images: more than a process can address
    assert code == WRONG
    assert "out of memory in profiling with 1000000000 images" in err
    assert len(err.strip().splitlines()) == 1


def test_memory_that_runs_out_in_the_middle_of_a_profile_is_refused_in_one_line(capsys, monkeypatch):
    import torch

    from tpbench.measure import cell, modes

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more lines")

    monkeypatch.setattr(cell, "compare", fail)
    code, _, err = ask(capsys, *PROFILE, "1")
    assert code == WRONG
    assert "out of GPU memory in profiling with 1 images" in err
    assert len(err.strip().splitlines()) == 1
    monkeypatch.setattr(cell, "compare", modes.compare)
    assert ask(capsys, *PROFILE, "1")[0] == DONE, "control: with enough memory the same command works"


def test_control_another_error_in_a_profile_is_no_matter_of_memory(capsys, monkeypatch):
    from tpbench.measure import cell

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cell, "compare", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        ask(capsys, *PROFILE, "1")


def test_profile_of_many_methods_prints_one_object_and_keeps_the_session(capsys, tmp_path):
    words = [
        "profile", "--model", "test_vit", "--methods", "none,topk", "--schedules", "0.5@1,3",
        "--batch-sizes", "1,2", "--rounds", "3", "--out", str(tmp_path), "--json",
    ]  # fmt: skip
    code, out, _ = ask(capsys, *words)
    result = json.loads(out)
    assert code == DONE
    assert [group["batch"] for group in result["summary"]] == [1, 2]
    for group in result["summary"]:
        assert [row["method"] for row in group["rows"]] == ["timm", "none", "topk"]
        assert all(row["samples"] == 3 and row["p95_seconds"] is None for row in group["rows"])
        assert group["rows"][0]["speedup"]["value"] == 1
        assert group["rows"][2]["promised"] > 1.2
    (path,) = (tmp_path / "timing").glob("*.json")
    assert json.loads(path.read_text()) == result["session"]
    before = path.read_bytes()
    code, out, _ = ask(capsys, *words[:-1])
    assert code == DONE
    assert "the same model twice" in out
    assert "topk" in out
    assert path.read_bytes() == before, "what is there is not timed again"
    with locked(tmp_path):
        code, _, err = ask(capsys, *words, "--fresh")
    assert code == WRONG
    assert "is being written by another process" in err
    assert path.read_bytes() == before, "a second one does not delete what the first one writes"
    code, _, err = ask(capsys, *words, "--rounds", "9", "--time-limit", "0.01s")
    assert code == DONE
    assert "time limit reached: 5 of 9 rounds are done; the same command continues" in err
    assert ask(capsys, *words, "--rounds", "9")[2].count("time limit") == 0
    assert len(json.loads(path.read_text())["rows"][0]["seconds"]) == 9
    code, _, err = ask(capsys, *words, "--model", "vit_tiny_patch16_224")
    assert code == WRONG
    assert "times model test_vit, not vit_tiny_patch16_224" in err
