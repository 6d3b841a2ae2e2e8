"""The examples and the Python on pages run."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import commands
import pytest

from tpbench.cli import main
from tpbench.outcomes import unpack
from tpbench.record import read_all

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
RUN = ["start.md", "reading-results.md", "recipes.md"]  # whose Python is run; add-a-method.md shows an example's

pytestmark = pytest.mark.usefixtures("unplugged")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A results folder of the tiny recipe, with the method of examples/runs.py."""
    out = tmp_path_factory.mktemp("docs") / "results"
    tiny = str(Path(__file__).with_name("tiny_recipe.py"))
    methods = "none,topk,runs,runs(weighted=True)"
    plugin = str(ROOT / "examples" / "runs.py")
    words = ["run", "--recipe", tiny, "--methods", methods, "--plugin", plugin, "--seeds", "2", "--out", str(out)]
    assert main(words) == 0
    return out


def example(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / name
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    runpy.run_path(str(path), run_name="__main__")


def test_a_model_of_ones_own_is_reduced(monkeypatch, capsys):
    example("your_model.py", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    share = float(re.search(r"multiply-adds: ([\d.]+)%", out)[1])
    assert 59 < share < 61
    assert "196, 196, 196" in out


def test_the_example_method_runs_as_a_plug_in(finished):
    records = {(record.method, record.seed): record for record in read_all(finished)}
    assert records["runs", 0].tokens["achieved"] == records["topk", 0].tokens["achieved"] == [8, 4]
    metrics = [records[method, 0].metrics for method in ("runs", "runs(weighted=True)")]
    assert metrics[0] != metrics[1], "its setting matters"


def test_a_reduced_model_is_fine_tuned_in_a_loop_of_ones_own(monkeypatch, capsys):
    example("fine_tune.py", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("loss") == 5
    assert "tokens after each block: 64, 32, 16, 16" in printed


def test_two_methods_are_compared_image_by_image(finished, monkeypatch, capsys):
    example("image_by_image.py", str(finished), "runs", "topk", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    right = {
        (record.method, record.seed): unpack(record.outcomes["fine_tuned"]).right
        for record in read_all(finished)
        if record.method in ("runs", "topk")
    }
    only = [
        sum(int((right[a, seed] & ~right[b, seed]).sum()) for seed in (0, 1))
        for a, b in (("runs", "topk"), ("topk", "runs"))
    ]
    assert f"only runs is right: {only[0]}, only topk: {only[1]}" in out


def test_methods_without_outcomes_are_refused_in_one_line(finished, monkeypatch):
    with pytest.raises(SystemExit, match="only where both have the same seed"):
        example("image_by_image.py", str(finished), "runs", "tome", monkeypatch=monkeypatch)


def test_the_page_shows_the_example_method():
    shown = commands.fenced((ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8"), ("python",))
    assert shown == [(ROOT / "examples" / "runs.py").read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", RUN)
def test_python_on_pages_runs(page, finished, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = commands.fenced((ROOT / "docs" / page).read_text(encoding="utf-8"), ("python",))
    assert blocks
    scope: dict = {"__name__": "page"}
    for block in blocks:
        here = block.replace(", pretrained=True", "").replace("results/digits", str(finished))
        exec(compile(here, page, "exec"), scope)
    if "recipe" in scope:
        assert scope["recipe"]().name == "mine"
    out = capsys.readouterr().out
    if "out" in scope:
        assert str(scope["out"].counts) in out
    if "record" in scope:
        assert "topk [8, 4]" in out


def test_other_pages_show_no_python():
    for page in DOCS:
        assert page.name in (*RUN, "add-a-method.md") or not commands.fenced(
            page.read_text(encoding="utf-8"), ("python",)
        ), page.name


# ---------------------------------------------------------------- commands that read what is there


READING = ("list", "recipe", "report", "compare", "claims", "pack")  # the others compute for minutes or hours
PLACEHOLDERS = {"A": "results/smoke", "B": "results/mine"}


def reading_commands() -> list[str]:
    """What README and docs/ show of the verbs that only read; commits are left to the tests of `compare`."""
    pages = [ROOT / "README.md", *DOCS]
    shown = dict.fromkeys(one for page in pages for one in commands.commands(page.read_text(encoding="utf-8")))
    called = re.compile(rf"(python -m )?tpbench ({'|'.join(READING)})\b(?!.*(--help|@))")
    return [command for command in shown if called.match(command) and "mine.py" not in command]


@pytest.fixture
def folders(finished, tmp_path, monkeypatch) -> Path:
    """A directory with the folders that the pages name."""
    for name in ("smoke", "mine", "digits", "cifar10-small"):
        shutil.copytree(finished, tmp_path / "results" / name)
    shutil.copytree(ROOT / "results" / "deit_s_speed", tmp_path / "results" / "speed")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("command", reading_commands())
def test_a_command_that_reads_runs(command, capsys):
    before, _, _ = command.partition(" > ")
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(before.partition("tpbench ")[2])]
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


def test_every_verb_that_reads_is_run():
    run = {command.partition("tpbench ")[2].split()[0] for command in reading_commands()}
    assert run == set(READING)


@pytest.mark.usefixtures("folders")
def test_control_a_command_on_a_folder_that_is_not_there_fails():
    assert main(["report", "results/gone"]) != 0
