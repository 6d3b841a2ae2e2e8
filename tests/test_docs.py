"""The documentation: its commands are understood, its Python and examples run, its generated pages are current."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import footguns_page
import methods_cards
import pytest

from tpbench import registry
from tpbench.cli import VERBS
from tpbench.errors import UsageError
from tpbench.record import Record

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
pytestmark = pytest.mark.usefixtures("unplugged")


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_is_understood(page):
    for command in commands.commands(page.read_text(encoding="utf-8")):
        try:
            commands.check(command)
        except (UsageError, ValueError, SystemExit) as error:
            pytest.fail(f"{page.name}: {command!r}: {error}")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_shown(verb):
    """In docs/ with flags or a name, not only in passing."""
    assert shown(verb), f"no page of docs/ shows `tpbench {verb} ...`"


def test_control_a_verb_that_no_page_shows_is_missed():
    assert not shown("prune")


def shown(verb: str) -> list[str]:
    """The commands of docs/ that call a verb."""
    own = [command for page in DOCS for command in commands.commands(page.read_text(encoding="utf-8"))]
    return [command for command in own if re.match(rf"(python -m )?tpbench {verb}\b(?! --help)", command)]


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
        "tpbench run --epochs --help",
        "torchrun --nproc-per-nodes 8 -m tpbench run",
        "deepspeed --num_gpus 8 --module tpbench run",
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


# ---------------------------------------------------------------- generated pages


def test_the_page_of_footguns_is_that_of_the_results():
    assert footguns_page.PAGE.read_text(encoding="utf-8") == footguns_page.committed()[0], (
        "run `python tests/footguns_page.py`"
    )


def records(spread: float) -> list[Record]:
    """Twelve methods a tenth of a point apart, whose seeds are `spread` points apart, and their base."""
    names = [card.name for card in registry.select("all") if not card.unreduced][:12]
    cells = [("none", "none", 0), *((name, footguns_page.SCHEDULE, number) for number, name in enumerate(names))]
    return [
        Record(
            recipe="digits",
            recipe_digest="0123456789ab",
            machine="here",
            method=method,
            schedule=schedule,
            seed=seed,
            unreduced=method == "none",
            metrics={"fine_tuned_top1": 0.9 - number / 1000 + seed * spread / 100, "off_the_shelf_top1": 0.8},
        )
        for method, schedule, number in cells
        for seed in (0, 1)
    ]


def test_a_footgun_is_shown_where_the_records_show_it():
    assert footguns_page.of_seeds(records(2.0)) == {"methods": "12", "seeds": "2", "spread": "2.0", "gap": "0.9"}
    assert footguns_page.of_the_base(records(2.0)) == {"base_before": "80.0", "base": "91.0"}


def test_control_a_footgun_that_the_records_do_not_show_is_left_out():
    with pytest.raises(footguns_page.NotShownError, match="further apart than one method's seeds"):
        footguns_page.of_seeds(records(0.5))
    page, missing = footguns_page.written(records(0.4), footguns_page.operations(), footguns_page.tuning())
    assert "between the best and the worst seed" not in page
    assert "the base goes from 80.0 % to 90.2 %" in page
    assert "digits: ten methods' means lie further apart than one method's seeds" in missing


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


# ---------------------------------------------------------------- the site


def site(source: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(source), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser")
    done = site(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "A parsed schedule" in (tmp_path / "api.html").read_text(encoding="utf-8"), "docstrings are there"
    assert {page.stem for page in DOCS} <= {path.stem for path in tmp_path.glob("*.html")}


def test_control_a_link_to_nowhere_fails(tmp_path):
    pytest.importorskip("myst_parser")
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# Home\n\n[a page](gone.md)\n", encoding="utf-8")
    done = site(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert "gone" in done.stderr
