"""The documentation: its commands are understood, its Python and examples run, its generated pages are current."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import footguns_page
import methods_cards
import pytest

from tpbench import registry
from tpbench.cli import main
from tpbench.cli.recipe import flat
from tpbench.errors import UsageError
from tpbench.outcomes import unpack
from tpbench.recipe import load, names
from tpbench.record import read_all

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
RUN = ["start.md", "reading-results.md", "recipes.md"]  # whose Python is run; add-a-method.md shows an example's


@pytest.fixture(autouse=True)
def no_plugins() -> Iterator[None]:
    """What a test plugs in is gone behind it."""
    yield
    for module in registry._plugins:
        sys.modules.pop(module, None)
    registry._plugins.clear()
    for name in [name for name, card in registry._cards.items() if card.module.startswith("tpbench_plugin_")]:
        registry._cards.pop(name)
        registry._classes.pop(name, None)


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_is_understood(page):
    for command in commands.commands(page.read_text(encoding="utf-8")):
        try:
            commands.check(command)
        except (UsageError, ValueError, SystemExit) as error:
            pytest.fail(f"{page.name}: {command!r}: {error}")


def test_pages_show_commands():
    shown = [command for page in DOCS for command in commands.commands(page.read_text(encoding="utf-8"))]
    assert len(shown) > 40


@pytest.mark.parametrize(
    "command",
    [
        "tpbench rnu",
        "tpbench run --epochs 3",
        "tpbench run --recipe digit",
        "tpbench run --methods wkmedoid",
        'tpbench run --schedules "0.7"',
        "tpbench recipe digit",
        "python -m tox -e dosc",
        "python -m tox -e bench -- --recipe smok",
        'python -m pip install -e ".[tset]"',
        "python examples/gone.py",
        "make docs",
    ],
)
def test_control_a_wrong_command_is_found(command):
    page = f"```\n{command}   # remark\n```\n"
    assert commands.commands(page) == [command]
    with pytest.raises((UsageError, ValueError, SystemExit)):
        commands.check(command)


def test_commands_within_sentences_are_found():
    page = "Call `tpbench run --recipe digits`, or `python -m tpbench list`; `tpbench.reduce` is none.\n"
    assert commands.commands(page) == ["tpbench run --recipe digits", "python -m tpbench list"]


# ---------------------------------------------------------------- links, tests and Python that pages show


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_pages_link_to_files_and_name_tests_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in commands.named_tests(text):
        assert f"def {name}(" in source, name


def test_the_index_leads_to_every_page():
    listed = set(re.findall(r"^([a-z-]+)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {page.stem for page in DOCS} - {"index"}


@pytest.mark.parametrize("page", RUN)
def test_python_on_pages_runs(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = commands.fenced((ROOT / "docs" / page).read_text(encoding="utf-8"), ("python",))
    assert blocks
    scope: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block.replace(", pretrained=True", ""), page, "exec"), scope)
    if "recipe" in scope:
        assert scope["recipe"]().name == "mine"
    if "out" in scope:
        assert str(scope["out"].counts) in capsys.readouterr().out


def test_other_pages_show_no_python():
    for page in DOCS:
        assert page.name in (*RUN, "add-a-method.md") or not commands.fenced(
            page.read_text(encoding="utf-8"), ("python",)
        ), page.name


# ---------------------------------------------------------------- generated pages


def test_the_page_of_footguns_is_that_of_the_results(monkeypatch):
    committed = footguns_page.PAGE.read_text(encoding="utf-8")
    assert committed == footguns_page.page(), "run `python tests/footguns_page.py`"
    records = [record for record in read_all(ROOT / "results" / "digits") if record.seed == 0]
    monkeypatch.setattr(footguns_page, "read_all", lambda _: records)
    with pytest.raises(ValueError, match="no longer show that one method's seeds lie further apart"):
        footguns_page.page()


def test_a_rule_of_no_method_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rules.toml"
    path.write_text('topkk = "keep the largest"', encoding="utf-8")
    monkeypatch.setattr(methods_cards, "RULES", path)
    with pytest.raises(ValueError, match="rules of no method: topkk"):
        methods_cards.section(registry.select("topk"), {})


def test_cards_show_rule_words_and_settings():
    text = "\n".join(methods_cards.section(registry.select("all"), registry.discover()))
    card = text.partition("### wkmeans")[2].partition("###")[0]
    assert "centre_k = sum w_i x_i / sum w_i" in card
    assert "Each cluster is replaced by its centre" in card
    assert "`iterations=5`" in card


# ---------------------------------------------------------------- examples


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


# ---------------------------------------------------------------- tpbench recipe, shell completion, the site


def test_a_recipe_is_printed_line_by_line(capsys):
    assert main(["recipe", "digits"]) == 0
    out = capsys.readouterr().out
    assert f"# digest: {load('digits').digest}" in out
    assert "\nfinetune.epochs = 4\n" in out
    assert "\nmodel_args.embed_dim = 32\n" in out
    assert "# Real handwritten digits" in out
    assert main(["recipe", "digits", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["finetune"]["epochs"] == 4
    assert [name for name, _ in flat(whole)][1:] == re.findall(r"^([\w.()=]+) = ", out, re.MULTILINE)


def test_recipes_are_listed(capsys):
    assert main(["recipe"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names()
    assert main(["recipe", str(Path(__file__).with_name("tiny_recipe.py"))]) == 0
    assert "\nname = 'tiny'\n" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "says"), [("digit", "did you mean digits"), ("gone.py", "does not exist")])
def test_a_recipe_that_is_not_there_is_refused(name, says, capsys):
    assert main(["recipe", name]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_knows_every_verb(shell):
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "shtab", f"--shell={shell}", "tpbench.cli.parser"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("tune", "search", "recipe", "--budget-latency"):
        assert word in done.stdout
    if shell == "bash":
        read = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True, check=False)
        assert read.returncode == 0, read.stderr


def site(source: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(source), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser")
    done = site(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "A parsed schedule." in (tmp_path / "api.html").read_text(encoding="utf-8"), "docstrings are there"
    assert {page.stem for page in DOCS} <= {path.stem for path in tmp_path.glob("*.html")}


def test_control_a_link_to_nowhere_fails(tmp_path):
    pytest.importorskip("myst_parser")
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# Home\n\n[a page](gone.md)\n", encoding="utf-8")
    done = site(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert "gone" in done.stderr
