"""`tpbench recipe`: what a recipe says, line by line."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpbench.cli.chosen_recipe import add_set
from tpbench.cli.exit_codes import DONE
from tpbench.errors import UsageError

HELP = "list the packaged recipes, or print every line of one"
EXAMPLE = "tpbench recipe digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("name", nargs="?", metavar="NAME", help="a packaged recipe or a .py file; without it, list them")
    add_set(verb)
    verb.add_argument("--json", action="store_true", help="print one object, or a list of names, instead of text")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench import recipe as recipes

    if arguments.name is None:
        if arguments.lines:
            raise UsageError("--set needs the name of a recipe")
        names = recipes.names()
        if arguments.json:
            print(json.dumps(names))
        else:
            print("\n".join(f"{name:<16} {docstring_lines(name)[0]}" for name in names))
        return DONE
    recipe = recipes.load(arguments.name, lines=arguments.lines)
    lines = asdict(recipe)
    if arguments.json:
        print(json.dumps({"digest": recipe.digest, **lines}, indent=1))
        return DONE
    for line in docstring_lines(arguments.name):
        print(f"# {line}".rstrip())
    print(f"# digest: {recipe.digest}\n")
    for name, value in dotted_lines(lines):
        print(f"{name} = {value!r}")
    return DONE


def docstring_lines(name: str) -> list[str]:
    """The lines of a recipe's docstring; one empty line where it has none."""
    import tpbench.recipes

    packaged = Path(tpbench.recipes.__path__[0]) / f"{name.replace('-', '_')}.py"
    path = Path(name) if name.endswith(".py") else packaged
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines() or [""]


def dotted_lines(lines: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every line with its dotted name, as in finetune.epochs. A mapping without entries is a value of its own."""
    for name, value in lines.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_lines(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
