"""`tpbench recipe`, and shell completion."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tpbench.cli import main
from tpbench.cli.recipe import dotted_lines
from tpbench.recipe import load, names


def test_a_recipe_is_printed_line_by_line(capsys):
    assert main(["recipe", "digits"]) == 0
    out = capsys.readouterr().out
    assert f"# digest: {load('digits').digest}" in out
    epochs = load("digits").finetune.epochs
    assert f"\nfinetune.epochs = {epochs}\n" in out
    assert "\nmodel_args.embed_dim = 32\n" in out
    assert "# Real handwritten digits" in out
    assert main(["recipe", "digits", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["finetune"]["epochs"] == epochs
    assert [name for name, _ in dotted_lines(whole)][1:] == re.findall(r"^([\w.()=]+) = ", out, re.MULTILINE)


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
