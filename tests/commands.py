"""The commands that a page of documentation shows, and whether each would be understood. Nothing is run here."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

from tpbench import recipe, registry, schedule
from tpbench.cli import VERBS, parser
from tpbench.report import worse

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = ("", "sh", "bash", "console")
MADE_UP = ("mine.py", "your_recipe.py", "NAME", "RECIPE")  # recipes that a reader writes


def fenced(page: str, languages: tuple[str, ...]) -> list[str]:
    """The code blocks of a page in these languages."""
    return [text for language, text in FENCE.findall(page) if language in languages]


def commands(page: str) -> list[str]:
    """Every line of the shell blocks, and every `tpbench ...` within a sentence, without comments.

    Within a sentence a verb alone, or with a flag alone, is a name: it becomes a request for help, as `check` knows it.
    """
    lines = [line for text in fenced(page, SHELL) for line in text.splitlines()]
    inline = re.findall(r"`((?:python -m )?tpbench \w[^`\n]*)`", FENCE.sub("", page))
    inline = [f"{words} --help" if re.fullmatch(r"tpbench \w+( --[\w-]+)?", words) else words for words in inline]
    bare = [re.sub(r"\s+#.*", "", line).strip() for line in [*lines, *inline]]
    return [part.strip() for line in bare for part in line.split("&&") if part.strip()]


def check(command: str) -> None:
    """Raise UsageError, ValueError or SystemExit for a command that would not be understood."""
    spelled = re.sub(r"\[[A-Z]+\]", "", command).replace("--recipe ...", "--recipe digits")  # as a usage line has it
    words = shlex.split(spelled.partition(" > ")[0])
    match words:
        case ["tpbench", *rest] | ["python", "-m", "tpbench", *rest]:
            tpbench(rest)
        case ["torchrun" | "deepspeed" as launcher, *rest] if "tpbench" in rest:
            launched(launcher, rest)
        case ["python", "-m", "tox", "-e", name, *rest] | ["tox", "-e", name, *rest]:
            tox(name, rest)
        case ["python", "-m", "pip", "install", *rest]:
            pip(rest)
        case ["python", path, *_] if (ROOT / path).is_file():
            return
        case ["shtab", shell, "tpbench.cli.parser"] if shell.startswith("--shell="):
            return
        case _ if command in known_elsewhere():
            return
        case _:
            raise ValueError(f"no rule says how to check {command!r}")


def known_elsewhere() -> set[str]:
    """Commands of other tools, whole."""
    return {
        "nvidia-cuda-mps-control -d",
        "ruff check .",
        "ruff format .",
        "python -m pytest --benchmark-disable",
        "tensorboard --logdir traces",
        "tensorboard --logdir results/digits/work/log",
    }


def tpbench(words: list[str]) -> None:
    """Parse the words, and look up the recipes, methods and schedules that they name."""
    if words[0] in VERBS and words[-1] == "--help":
        verb = ArgumentParser()
        VERBS[words[0]].add_flags(verb)
        if unknown := set(words[1:]) - set(re.findall(r"--[\w-]+", verb.format_help())):
            raise ValueError(f"tpbench {words[0]} has no flag {', '.join(unknown)}")
        return
    asked = parser().parse_args(words)
    if (name := getattr(asked, "recipe", None)) and name not in MADE_UP:
        recipe.load(name, lines=getattr(asked, "lines", ()))
    if (name := getattr(asked, "name", None)) and name not in MADE_UP:
        recipe.load(name, lines=asked.lines)
    if text := getattr(asked, "fail_above", None):
        worse.threshold(text)
    for path in getattr(asked, "plugin", []):
        if not (ROOT / path).is_file():
            return  # a file of the reader's: its methods are unknown here
        registry.plug(str(ROOT / path))
    for field in ("methods", "method"):
        if text := getattr(asked, field, None):
            registry.variants(text)
    for text in (getattr(asked, "schedules", None), getattr(asked, "schedule", None)):
        if text and not text.startswith("learned:"):
            schedule.parse_all(text)


LAUNCHERS = {
    "torchrun": r"(--(nnodes|node-rank|nproc-per-node|master-port) \d+ |--master-addr HOST )+-m",
    "deepspeed": r"--num_gpus \d+ --no_local_rank --module",
}


def launched(launcher: str, words: list[str]) -> None:
    """Look at a launcher's own flags, each with a number or a host, and at the tpbench command behind them."""
    at = words.index("tpbench")
    flags = " ".join(words[:at])
    if not re.fullmatch(LAUNCHERS[launcher], flags):
        raise ValueError(f"{launcher} {flags}: unknown flags")
    tpbench(words[at + 1 :])


def tox(name: str, rest: list[str]) -> None:
    """Look up the environment. What follows `--` is for its first command."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", encoding="utf-8")
    lines = config[f"testenv:{name}"]["commands"].strip().splitlines() if f"testenv:{name}" in config else []
    if not lines:
        raise ValueError(f"tox.ini has no environment {name!r}")
    if rest and rest[0] != "--":
        raise ValueError(f"tox -e {name}: arguments stand behind --")
    if "-m tpbench" in lines[0]:
        own = shlex.split(lines[0].partition("-m tpbench ")[2].replace("{posargs}", ""))
        tpbench([*own, *rest[1:]])


def pip(words: list[str]) -> None:
    """Look up the extras of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if match := re.fullmatch(r"\.\[(.*)\]", word):
            unknown = set(match[1].split(",")) - project["optional-dependencies"].keys()
            if unknown:
                raise ValueError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")


def named_tests(page: str) -> Iterator[str]:
    """The tests that a page names."""
    yield from re.findall(r"`(test_\w+)`", page)
