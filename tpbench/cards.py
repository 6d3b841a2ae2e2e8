"""The cards of methods, read from the source of their files without importing anything.

A method file has `@register("name", paper="...", ...)` over its class, with literal arguments.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from tpbench.errors import UsageError

GROUP = "tpbench.methods"
COUNTS = ("exact", "at_most", "masked")  # how a method meets the requested number of tokens; masked: none is removed
FAMILIES = ("clustering", "merging", "pruning", "learned queries", "grid", "trivial")  # in the order they are shown


@dataclass(frozen=True)
class Card:
    """What is known of a method without importing it."""

    name: str
    title: str
    family: str = ""  # one of FAMILIES; empty for the unreduced model and for plug-ins that name none
    count: str = "exact"  # one of COUNTS
    paper: str = ""
    venue: str = ""
    year: int = 0
    url: str = ""
    differs: str = ""  # where the implementation departs from the paper, and why
    module: str = ""
    unreduced: bool = False  # whether it is the unreduced model

    def __post_init__(self) -> None:
        if self.family not in ("", *FAMILIES):
            raise ValueError(f"{self.name} has an unknown family {self.family!r}; known: {', '.join(FAMILIES)}")


@dataclass(frozen=True)
class Broken:
    """A method file that could not be read or imported, and why."""

    module: str
    reason: str


def installed_files() -> Iterator[tuple[str, Path]]:
    """(module, source file) of every module that the entry points name or contain.

    Nothing is imported. Raises UsageError if no method is installed or an entry point names a missing module.
    """
    entries = _entries(entry_points, tuple(sys.path))
    if not entries:
        raise UsageError("no methods are installed: run `python -m pip install -e .` in the checkout")
    seen: set[str] = set()
    for entry in entries:
        spec = importlib.util.find_spec(entry.value)
        if spec is None or spec.origin is None:
            raise UsageError(f"entry point {entry.name!r} names {entry.value!r}, which cannot be found")
        if spec.submodule_search_locations is None:
            found = [(entry.value, Path(spec.origin))]
        else:
            folders = [Path(folder) for folder in spec.submodule_search_locations]
            found = [
                (f"{entry.value}.{path.stem}", path) for folder in folders for path in sorted(folder.glob("[!_]*.py"))
            ]
        for module, path in found:
            if module not in seen:
                seen.add(module)
                yield module, path


@lru_cache(maxsize=8)
def _entries(find: Callable[..., Iterable[EntryPoint]], places: tuple[str, ...]) -> list[EntryPoint]:  # noqa: ARG001
    """The entry points of the group, sorted. Cached, because finding them reads every installed package.

    find: `importlib.metadata.entry_points`; places: the search path, which is part of the cache's key alone.
    """
    return sorted(find(group=GROUP), key=lambda entry: entry.name)


@lru_cache(maxsize=1000)
def cards_in(module: str, path: Path, changed: int) -> tuple[Card, ...]:  # noqa: ARG001
    """The cards in a file's source, cached until its modification time changes.

    Raises SyntaxError, ValueError or TypeError for cards that cannot be read.
    """
    return tuple(_read_cards(module, path))


def _read_cards(module: str, path: Path) -> Iterator[Card]:
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if (
                isinstance(decorator, ast.Call)
                and isinstance(decorator.func, ast.Name)
                and decorator.func.id == "register"
            ):
                if len(decorator.args) != 1:
                    raise ValueError(f"@register over {node.name} takes the name first, then keywords")
                fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords}
                yield Card(name=ast.literal_eval(decorator.args[0]), module=module, **fields)
