"""The registry of methods: their cards, read without importing anything, and their classes when they are needed.

`catalogue()` reads the cards from the source (`tpbench.cards`), so that a list of the methods does not import torch;
`discover()` imports the files and checks each against its card. Files are found through the entry-point group
`tpbench.methods`; every entry names a module or a package of modules.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tpbench.cards import Broken, Card, cards_in, installed_files
from tpbench.errors import UsageError, in_short

if TYPE_CHECKING:
    from tpbench.downsampler import Downsampler


@dataclass(frozen=True)
class Variant:
    """A method with settings, which is one row of a table: "wkmedoids(init=grid,site=end)"."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()  # (name, value): fields of the method's Config, and `site`

    def __str__(self) -> str:
        inside = ",".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.method}({inside})" if inside else self.method

    @cached_property  # reading the cards parses every method file, and a plan asks for them at every cell
    def card(self) -> Card:
        """The card of the method."""
        return select([self.method])[0]

    @property
    def title(self) -> str:
        """The method's title, with the settings that differ from its defaults."""
        return ", ".join([self.card.title, *(f"{name} = {value}" for name, value in self.settings)])


COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^(]*\))")  # one that no closing bracket follows before an opening one
_plugins: dict[str, Path] = {}  # module name -> source file of methods given by path
_classes: dict[str, type[Downsampler]] = {}
_cards: dict[str, Card] = {}


def register(name: str, **card: str | int | bool) -> Callable[[type[Downsampler]], type[Downsampler]]:
    """Class decorator: register a Downsampler under a name, with the fields of its card.

    Raises UsageError for a second class of the same name.
    """

    def enter(cls: type[Downsampler]) -> type[Downsampler]:
        known = _classes.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"method {name!r} is defined twice: in {known.__module__} and in {cls.__module__}")
        _classes[name] = cls
        _cards[name] = Card(name=name, module=cls.__module__, **card)
        cls.name = name
        return cls

    return enter


def plug(path: str) -> None:
    """Add the methods of a Python file outside every package; its module is named after the file.

    Raises UsageError for a file that cannot be read, defines no method, or takes the name of another.
    """
    file = Path(path).resolve() if os.path.isfile(path) else None  # also false for a name that no file can have
    if file is None or file.suffix != ".py":
        raise UsageError(f"plug-in {path} is not a Python file")
    module = f"tpbench_plugin_{file.stem}"
    _plugins[module] = file
    cards, broken = catalogue()
    wrong = [b for b in broken if b.module == module]
    if not wrong and all(card.module != module for card in cards.values()):
        wrong = [Broken(module, "it registers no method")]
    if wrong:
        del _plugins[module]
        _refuse(wrong)


def catalogue() -> tuple[dict[str, Card], list[Broken]]:
    """The cards of all methods by name (the unreduced model first, then in alphabetical order), and the broken files.

    No method file is imported.
    """
    cards: dict[str, Card] = {}
    broken: list[Broken] = []
    for module, path in _files():
        try:
            for card in cards_in(module, path, path.stat().st_mtime_ns):
                if card.name in cards:
                    broken.append(
                        Broken(module, f"method {card.name!r} is already defined in {cards[card.name].module}")
                    )
                cards.setdefault(card.name, card)
        except (SyntaxError, ValueError, TypeError, OSError, MemoryError, RecursionError) as error:
            broken.append(Broken(module, _message(error)))
    return dict(sorted(cards.items(), key=lambda item: (not item[1].unreduced, item[0]))), broken


def discover() -> dict[str, type[Downsampler]]:
    """Import every method file and return the classes by name. Raises UsageError that names all broken files."""
    cards, broken = catalogue()
    modules = [module for module, _ in _files()]
    for module in modules:
        try:
            _import(module)
        except (Exception, SystemExit) as error:
            broken.append(Broken(module, f"{type(error).__name__}: {_message(error)}"))
    for card in cards.values():
        if card.name not in _classes:
            broken.append(Broken(card.module, f"{card.name!r} is on its card but was not registered"))
    for name, cls in _classes.items():
        if cls.__module__ in modules and name not in cards:
            broken.append(
                Broken(cls.__module__, f"{name!r} is registered, but not by a literal @register over its class")
            )
    _refuse(broken)
    return {name: _classes[name] for name in cards}


def method(name: str) -> type[Downsampler]:
    """The class registered under a name. Only the file with its card is imported.

    Raises UsageError for an unknown name and for a file that cannot be imported.
    """
    if name not in _classes or _classes[name].__module__ not in sys.modules:  # its file may have failed half-way
        card = select([name])[0]
        try:
            _import(card.module)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"method file {card.module} is broken: {type(error).__name__}: {_message(error)}"
            ) from error
        if name not in _classes:
            raise UsageError(f"method file {card.module} is broken: {name!r} is on its card but was not registered")
    return _classes[name]


def configure(cls: type[Downsampler], settings: dict[str, Any]) -> Downsampler.Config:
    """Make a method's Config of these settings; each is checked against the type, choices and range of its field.

    Raises UsageError for an unknown setting, and for a value that does not fit, with those that would.
    """
    try:
        config = cls.Config(**settings)
    except TypeError as error:
        known = ", ".join(cls.Config.__dataclass_fields__) or "none"
        raise UsageError(f"{cls.__name__} has no such setting: {error}; known: {known}") from error
    for name, kind in get_type_hints(cls.Config, include_extras=True).items():
        _check_setting(cls.__name__, name=name, value=getattr(config, name), kind=kind)
    return config


def _check_setting(method: str, name: str, value: Any, kind: Any) -> None:
    from pydantic import TypeAdapter, ValidationError  # here, because listing methods checks no setting

    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{method}: {name} {value!r} is not a finite number")
    if get_origin(kind) is Literal and value not in get_args(kind):
        choices = ", ".join(map(str, get_args(kind)))
        raise UsageError(f"{method}: {name} {value!r} is not one of {choices}")
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False)[0]["msg"]
        raise UsageError(f"{method}: {name} {value!r} does not fit: {why[0].lower()}{why[1:]}") from error


def select(names: str | Iterable[str]) -> list[Card]:
    """The cards of all methods ("all"), or of those named. Raises UsageError for an unknown name, with similar ones."""
    cards, broken = catalogue()
    if names == "all":
        _refuse(broken)
        return list(cards.values())
    given = names.split(",") if isinstance(names, str) else names
    wanted = [name.strip() for name in given]
    for name in wanted:
        if name not in cards and name not in _cards:
            raise UsageError(f"unknown method {name!r}; {nearest(name, cards)}")
    return [cards.get(name) or _cards[name] for name in dict.fromkeys(wanted)]


def variants(text: str | Iterable[str]) -> list[Variant]:
    """The variants that a text names: "all", or names separated by commas, each with or without (SETTING=VALUE,...).

    Raises UsageError for unknown names and for settings that cannot be read; `configure` checks their values.
    """
    if text == "all":
        return [Variant(card.name) for card in select("all")]
    parts = COMMA_OUTSIDE_BRACKETS.split(text) if isinstance(text, str) else text
    return list(dict.fromkeys(_variant(part.strip()) for part in parts))


def _variant(text: str) -> Variant:
    match = re.fullmatch(r"([^()=,]*)(?:\(([^()]*)\))?", text)
    if not match:
        raise UsageError(f"method {text!r}: expected NAME or NAME(SETTING=VALUE,...), as in wkmedoids(init=grid)")
    card = select([match[1]])[0]
    settings = []
    for part in filter(None, (match[2] or "").split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise UsageError(f"method {text!r}: {part.strip()!r} is not SETTING=VALUE")
        setting = _value(value)
        if not isinstance(setting, bool | int | float | str):
            raise UsageError(f"method {text!r}: {name} takes a number, True, False or a word, not {value}")
        settings.append((name, setting))
    return Variant(card.name, tuple(settings))


def _value(text: str) -> Any:
    """A setting's value: a number or a truth value if the text is one, otherwise the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        return text


def _message(error: BaseException) -> str:
    """An error's message in one line, or its type if it has none."""
    return in_short(error) or type(error).__name__


def _refuse(broken: list[Broken]) -> None:
    if broken:
        raise UsageError("; ".join(f"method file {b.module} is broken: {b.reason}" for b in dict.fromkeys(broken)))


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase with the names that the caller may have meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"


def _import(module: str) -> None:
    """Import a method file; a plug-in from its path."""
    if module in _plugins and module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, _plugins[module])
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise
    else:
        importlib.import_module(module)


def _files() -> Iterator[tuple[str, Path]]:
    """(module, source file) of every installed method file and of every plug-in."""
    yield from installed_files()
    yield from _plugins.items()
