"""Overrides: values that the command line gives to lines of a recipe, as in `--set finetune.epochs=5`.

A line is named by its dotted path in the recipe's dataclasses and mappings. Its value is written as in JSON or TOML (a
word without quotes is text) and must have the line's type. The types of the recipe say which lines exist. A mapping,
such as model_args, may get new entries; a dataclass gets no new fields.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from tpbench.errors import UsageError
from tpbench.registry import nearest

T = TypeVar("T")
# Lines that --set does not change, and why or what to use instead.
NOT_OVERRIDABLE = {
    "name": "it names the results; write a recipe file of your own",
    "tuned": "`tpbench tune` finds these lines",
    "tuned_as": "write a recipe file of your own",
    "reference": "reports read it from the recipe, not from records; write a recipe file of your own",
    "margin": "reports read it from the recipe, not from records; write a recipe file of your own",
    "expected_base": "the claims read it from the recipe, not from records; write a recipe file of your own",
}


class Line(NamedTuple):
    """One override as written: the dotted path and the text of the value."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}={self.text}"


def parse(texts: Sequence[str]) -> list[Line]:
    """The overrides in several texts PATH=VALUE, sorted by path.

    Raises UsageError for a text without path or value, and for a path that is given twice.
    """
    found: dict[str, Line] = {}
    for text in texts:
        path, sign, value = (part.strip() for part in text.partition("="))
        if not (path and sign and value):
            raise UsageError(f"--set {text!r}: expected a line and its value, as in finetune.epochs=5")
        if path in found:
            raise UsageError(f"--set {path} is given twice: {found[path].text} and {value}")
        found[path] = Line(path, value)
    return [found[path] for path in sorted(found)]


def apply(recipe: T, line: Line) -> T:
    """The recipe with one line changed.

    Raises UsageError for a line that does not exist and for a value of the wrong type.
    """
    first, *rest = line.path.split(".")
    if first in NOT_OVERRIDABLE:
        raise UsageError(f"--set {line}: {NOT_OVERRIDABLE[first]}")
    return _replaced(recipe, [first, *rest], line)


def canonical(recipe: Any, line: Line) -> str:
    """An override that was applied, with its value as JSON (text without quotes): 1e-3 and 0.001 are the same."""
    value = recipe
    for name in line.path.split("."):
        value = value[name] if isinstance(value, Mapping) else getattr(value, name)
    return f"{line.path}={value if isinstance(value, str) else json.dumps(value)}"


def _replaced(owner: Any, path: Sequence[str], line: Line) -> Any:
    """A dataclass in which the line that the rest of the path names has the new value."""
    name, *rest = path
    known = [field.name for field in fields(owner)]
    if name not in known:
        raise UsageError(f"--set {line}: there is no line {name!r}; {_offer(name, known)}")
    kind = get_type_hints(type(owner))[name]
    return replace(owner, **{name: _value(getattr(owner, name), kind=kind, rest=rest, line=line)})


def _value(now: Any, kind: Any, rest: Sequence[str], line: Line) -> Any:
    """The new value in the place of `now`, whose declared type is `kind`."""
    if not rest:
        return _parsed(kind, line, now)
    if is_dataclass(now):
        return _replaced(now, rest, line)
    if isinstance(now, Mapping):
        return {**now, rest[0]: _member(now, kind=kind, rest=rest, line=line)}
    raise UsageError(
        f"--set {line}: {line.path.removesuffix('.' + '.'.join(rest))} is a single value and has no lines in it"
    )


def _member(now: Mapping[str, Any], kind: Any, rest: Sequence[str], line: Line) -> Any:
    """The new value of a mapping's member. A member that holds dataclasses must be there already."""
    name, *deeper = rest
    inner = _entry_type(kind)
    if name not in now and is_dataclass(inner):
        raise UsageError(f"--set {line}: there is no {name!r}; {_offer(name, list(now))}")
    return _value(now.get(name, {}), kind=inner, rest=deeper, line=line)


def _entry_type(kind: Any) -> Any:
    """The type of a mapping's entries: Search in dict[str, Search], and Any in a bare dict."""
    arguments = get_args(kind)
    return arguments[1] if arguments else Any


def _offer(name: str, known: Sequence[str]) -> str:
    return nearest(name, known) if known else "there are no lines here"


# ------------------------------------------------------------------------------------------ values


def _parsed(kind: Any, line: Line, now: Any) -> Any:
    """The value in the line's text, of the declared type."""
    if names := _lines_in(now, kind):
        inside = ", ".join(f"{line.path}.{name}" for name in names)
        raise UsageError(f"--set {line}: {line.path} is a group of lines: {inside}")
    from pydantic import TypeAdapter  # here, because most commands override nothing

    for read in (json.loads, _toml, str):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            value = json.dumps(read(line.text), allow_nan=False)
            return TypeAdapter(kind).validate_json(value, strict=True)
    raise UsageError(f"--set {line}: expected {_spelled(kind)}, as in {line.path}={json.dumps(now)}")


def _lines_in(now: Any, kind: Any) -> list[str]:
    """The lines or groups in a group of lines; none in a value."""
    if is_dataclass(now):
        return [field.name for field in fields(now)]
    if isinstance(now, Mapping) and is_dataclass(_entry_type(kind)):
        return list(now) or ["NAME"]  # an empty group, whose entries may have any name
    return []


def _toml(text: str) -> Any:
    return tomllib.loads(f"value = {text}")["value"]


def _spelled(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spelled(own) for own in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {_spelled(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "an object"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(kind, str(kind))
