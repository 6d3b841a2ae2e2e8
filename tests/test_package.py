"""The package as others get it: a wheel that works from an empty folder, and a README that tells the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import methods_page
import pandas as pd
import pytest
import readme
import readme_claims

from tpbench import recipe, registry
from tpbench.cli import main
from tpbench.record import read_all

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"
    for name in ("tpbench", "baselines", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(next(tmp_path.glob("tpbench-*.whl"))).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def tpbench(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "tpbench", *words]
        return subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    listed = tpbench("list", "--json")
    assert {entry["name"] for entry in json.loads(listed.stdout)} == set(registry.catalogue()[0])
    where = [sys.executable, "-c", "import tpbench, baselines; print(tpbench.__file__, baselines.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=False).stdout
    assert found.count(str(site)) == 2
    ran = tpbench("run", "--recipe", "smoke", "--methods", "none,topk")
    assert ran.returncode == 0, ran.stderr[-1500:]
    assert (empty / "results" / "smoke" / "tables").is_dir()


def test_every_packaged_recipe_loads_and_says_how_to_run_it():
    for name in recipe.names():
        loaded = recipe.load(name)
        assert loaded.name == name
        module = sys.modules[f"tpbench.recipes.{name.replace('-', '_')}"]
        assert f"python -m tpbench run --recipe {name}" in module.__doc__ or name == "digits"
        assert "Machine:" in module.__doc__


def test_the_readme_shows_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.updated(text) == text, "run `python tests/readme.py`"
    for mark in (readme.OPEN, readme.CLOSE, *readme.CLAIMS):
        assert text.count(mark) == 1, "otherwise nothing would be put there"
    for changed in (text.replace("wkmedoids |", "wkmedoids | 99.9 |"), re.sub(r"by \+\d\.\d ±", "by +9.9 ±", text)):
        assert changed != text
        assert readme.updated(changed) == text, "control: a changed number is undone"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_numbers_of_the_readmes_advice_are_those_of_the_tables():
    """Every number with a decimal in README's prose on which method to use."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    advice = re.search(r"## Which method\?\n(.*?)\n## ", text, re.DOTALL)[1]
    small = table("cifar10-small/tables/nvidia-h200-51c2")
    narrow = table("cifar10-small-w96/tables/nvidia-h200-51c2").query("unreduced").iloc[0]
    base = small.query("unreduced").iloc[0]
    rows = {(row.method, row.schedule): row for row in small.itertuples()}
    half, third = "macs=0.5@0,1,2", "macs=0.3@0,1,2"
    leaders = ("atc", "ltmp", "dtem", "mctf", "tome", "pitome", "tofu")
    best = [rows[name, half].fine_tuned_top1_percent for name in leaders]
    followers = [rows[name, third].fine_tuned_top1_percent for name in ("dpcknn", "mctf", "tome")]
    known = [narrow.fine_tuned_top1_percent, min(best), max(best), min(followers), max(followers)]
    known += [base.fine_tuned_top1_percent, rows["atc", third].fine_tuned_top1_percent]
    known += [base.off_the_shelf_top1_percent, rows["patch_dropout", half].off_the_shelf_top1_percent]
    mild = small.query("schedule == 'macs=0.9@0,1,2' and new_parameters == 0")
    lost = mild.off_the_shelf_top1_percent - mild.fine_tuned_top1_percent
    known += [base.off_the_shelf_top1_percent - base.fine_tuned_top1_percent, lost.min(), lost.max()]
    claims = readme_claims.Claims()
    for start in ("grid", "random"):
        test = f"equal MACs: wkmedoids(init={start}) minus random"
        known.append(claims.row(4, test, readme_claims.NATURAL)["value"])
    digits = table("digits/tables/amd-epyc-2c-3e9e").query(f"schedule == '{third}' and method == 'random'").iloc[0]
    known.append(abs(digits.reference_difference_points))
    speed = table("deit_s_speed/tables/nvidia-h100-80gb-hbm3-f48f-speed").query("batch == 256 and role == 'reduced'")
    fastest = speed.groupby("method").speedup.max()
    speeds = [fastest[name] for name in ("patch_dropout", "topk", "wkmedoids", "tome")]
    speeds.append(speed.query("method == 'tome'").promised.iloc[0])
    expected = {f"{value:.1f}" for value in known} | {f"{value:.2f}" for value in speeds}
    budgets = {"0.3", "0.5", "0.7", "0.9"}
    assert set(re.findall(r"\d+\.\d+", advice)) - budgets == expected - budgets


def table(name: str) -> pd.DataFrame:
    """A committed table."""
    return pd.read_csv(ROOT / "results" / f"{name}.csv")


def test_committed_records_are_of_the_packaged_recipes():
    for folder in (ROOT / "results").iterdir():
        if folder.is_dir() and (folder / "records").is_dir():
            digest = recipe.load(folder.name).digest
            assert {record.recipe_digest for record in read_all(folder)} == {digest}


def test_the_readmes_example_method_is_a_method(tmp_path):
    code = re.search(
        r"```python\n(\"\"\"Keep every.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    path = tmp_path / "first.py"
    path.write_text(code)
    assert len(code.splitlines()) < 30
    script = (
        "import sys, timm, torch, tpbench; sys.path.insert(0, sys.argv[1]); import first\n"
        "model = tpbench.reduce(timm.create_model('test_vit'), first.First, '0.5@1,3').eval()\n"
        "assert model.forward_tokens(torch.randn(2, 3, 160, 160)).counts[-1] == 25"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readmes_example_runs_as_a_plug_in(tmp_path, capsys):
    readme_text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "first.py"
    path.write_text(re.search(r"```python\n(\"\"\"Keep every.*?)```", readme_text, re.DOTALL)[1])
    tiny, out = str(Path(__file__).with_name("tiny_recipe.py")), tmp_path / "results"
    words = ["run", "--recipe", tiny, "--methods", "none,first", "--out", str(out)]
    try:
        assert main(words) == 2, "control: without the plug-in there is no such method"
        assert main([*words, "--plugin", str(path)]) == 0
        cells = {record.method: record for record in read_all(out)}
        assert cells["first"].tokens["achieved"] == [8, 4]
        assert "first" in capsys.readouterr().out
    finally:
        registry._plugins.clear()
        registry._classes.pop("first", None)
        registry._cards.pop("first", None)
    assert main([*words, "--plugin", str(tmp_path / "nowhere.py")]) == 2
    assert "is not a Python file" in capsys.readouterr().err


def test_the_page_of_methods_is_that_of_their_cards(monkeypatch):
    committed = methods_page.PAGE.read_text(encoding="utf-8")
    assert committed == methods_page.page(), "run `python tests/methods_page.py`"
    cards = registry.select("all")
    cards[-1] = replace(cards[-1], differs="in every way")
    monkeypatch.setattr(registry, "select", lambda _: cards)
    assert committed != methods_page.page(), "control: a changed card shows"


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("none", ""),
        ("topk", "pruned"),
        ("tome", "merged"),
        ("diffrate", "pruned and merged"),
        ("avgpool", "pooled on the grid"),
        ("avit", "masked"),
    ],
)
def test_the_page_of_methods_says_what_happens_to_the_tokens(name, effect):
    assert methods_page.effect(registry.method(name)) == effect


def test_every_dependency_states_its_lowest_version():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert len(stated) > 10
    assert [line for line in stated if ">=" not in line] == [], "`tox -e lowest` would take the first version ever"


def test_the_constraints_are_the_versions_of_the_committed_records():
    lines = (ROOT / "results" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    measured = [record.environment["packages"] for record in read_all(ROOT / "results" / "digits")]
    named = {(name, version) for packages in measured for name, version in packages.items() if name != "tpbench"}
    assert len(named) > 5
    assert {(name, pinned.get(name)) for name, _ in named} == named


def test_the_workflow_pins_its_actions_and_runs_the_tested_pythons():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used), used
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == stated
    assert project["requires-python"] == f">={stated[0]}"
    for environment in re.findall(r"tox -e (\w+)", workflow):
        assert f"[testenv:{environment}]" in (ROOT / "tox.ini").read_text(encoding="utf-8")
