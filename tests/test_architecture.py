"""Imports point down only. Read from the source; nothing is imported."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

PAGE = ROOT / "docs" / "architecture.md"


def floors(page: str) -> list[set[str]]:
    """The rooms of every floor, from the top down, as the table of docs/architecture.md has them."""
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    return [found for row in rows if (found := set(re.findall(r"`([^`]+)`", row[2])))]


# A module may import from its own floor (without going in circles) and from those below.
FLOORS = floors(PAGE.read_text(encoding="utf-8"))

# (from, to): why this one points up.
EXCEPTIONS = {
    ("tpbench.pooling", "tpbench.registry"): "a method file registers itself",
    ("baselines", "tpbench.registry"): "a method file registers itself",
}
# The same, inside a function only: nothing is imported when the module is.
LAZY_EXCEPTIONS = {
    ("tpbench", "tpbench.vit"): "tpbench.reduce, without loading torch before it is used",
    ("tpbench.recipe", "tpbench.recipes"): "recipes are found by looking into their package",
}
# Third-party packages that live in few rooms.
ONLY_IN = {
    "pandas": {"tpbench.report", "tpbench.claims", "tpbench.training"},
    "matplotlib": {"tpbench.report", "tpbench.claims"},
    "scipy": {"tpbench.report"},
    "altair": {"tpbench.report"},
    "jinja2": {"tpbench.report"},
    "vl_convert": {"tpbench.report"},
    "timm": {"tpbench.vit", "tpbench.training"},
    "deepspeed": {"tpbench.training"},
    "triton": {"tpbench.kernels"},
    "numba": {"tpbench.kernels"},
}


class Import(NamedTuple):
    module: str  # who imports
    target: str  # what, as far as it is a module
    lazy: bool  # inside a function


def sources() -> dict[str, str]:
    files = [path for room in ("tpbench", "baselines") for path in sorted((ROOT / room).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, (path.read_text(encoding="utf-8") for path in files)))


@cache
def statements(text: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import that happens at run time (not those under `if TYPE_CHECKING`), and whether it is in a function."""
    found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append((node, lazy))
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in node.orelse if typing else ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(text), False)
    return found


def imports(code: dict[str, str]) -> list[Import]:
    """Every import at run time, with what it names resolved to modules as far as they are in the code."""
    packages = {name.rpartition(".")[0] for name in code}
    found: list[Import] = []
    for module, text in code.items():
        for node, lazy in statements(text):
            if isinstance(node, ast.Import):
                found += [Import(module, alias.name, lazy) for alias in node.names]
                continue
            base = node.module or ""
            if node.level:
                home = module.split(".") if module in packages else module.split(".")[:-1]
                base = ".".join([*home[: len(home) - node.level + 1], *filter(None, [node.module])])
            whole = [f"{base}.{alias.name}" for alias in node.names]
            found += [Import(module, name if name in code else base, lazy) for name in whole]
    return found


def room(module: str) -> str:
    """The room a module is in: itself, or the package of ours it is part of."""
    parts = module.split(".")
    return parts[0] if parts[0] != "tpbench" else ".".join(parts[:2])


def floor(module: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def upwards(module: str, target: str) -> bool:
    here, there = floor(module), floor(target)
    return here is not None and there is not None and here > there


def ours(name: str) -> bool:
    return name.split(".")[0] in ("tpbench", "baselines")


def violations(code: dict[str, str]) -> list[str]:
    bad = []
    for module, target, lazy in imports(code):
        here, there = room(module), room(target)
        if ours(target):
            if module.startswith("tpbench") and there == "baselines":
                bad.append(f"{module} imports {target}: tpbench knows no baseline by name")
            excused = (here, there) in EXCEPTIONS or (lazy and (here, there) in LAZY_EXCEPTIONS)
            if upwards(module, target) and not excused:
                bad.append(f"{module} imports {target}: that is upwards")
        package = target.split(".")[0]
        if package in ONLY_IN and here not in ONLY_IN[package]:
            bad.append(f"{module} imports {package}: only {', '.join(sorted(ONLY_IN[package]))} may")
        if here in ("tpbench.report", "tpbench.claims") and package in ("torch", "timm", "torchvision"):
            bad.append(f"{module} imports {package}: reports are made from records alone")
    bad += [f"{m} is in no room: say in docs/architecture.md where it belongs" for m in code if floor(m) is None]
    return bad + circles(code) + [f"{m} has a name that says nothing" for m in code if vague(m)]


def vague(module: str) -> bool:
    return any(part in ("utils", "util", "helpers", "helper", "common", "misc") for part in module.split("."))


def circles(code: dict[str, str]) -> list[str]:
    """Modules that, while being imported, import themselves."""
    found = [i for i in imports(code) if i.target in code and not i.lazy]
    edges = {name: {i.target for i in found if i.module == name} for name in code}
    return [f"{name} imports itself in a circle" for name in code if name in reached(edges, edges[name])]


def reached(edges: dict[str, set[str]], start: set[str]) -> set[str]:
    seen, todo = set(), set(start)
    while todo:
        seen.add(name := todo.pop())
        todo |= edges.get(name, set()) - seen
    return seen


def loaded_with(code: dict[str, str], module: str) -> set[str]:
    """Every package that importing a module loads, through whatever of ours it imports (and their parents)."""
    found = [i for i in imports(code) if not i.lazy]
    edges = {n: {i.target for i in found if i.module == n} | {n.rpartition(".")[0]} - {""} for n in code}
    return {name.split(".")[0] for name in reached(edges, {module})}


# ---------------------------------------------------------------- the house as it stands


def test_the_house_keeps_its_rules():
    assert violations(sources()) == []


def test_every_exception_is_needed():
    used = {(room(i.module), room(i.target)) for i in imports(sources()) if ours(i.target)}
    assert (EXCEPTIONS.keys() | LAZY_EXCEPTIONS.keys()) - used == set()


LIGHT = ["tpbench", "tpbench.registry", "tpbench.schedule", "tpbench.record", "tpbench.recipe", "tpbench.cli"]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module):
    assert loaded_with(sources(), module) & {"torch", "timm", "pandas", "deepspeed", "matplotlib"} == set()


def test_reports_never_load_torch():
    code = sources()
    for module in (name for name in code if name.startswith(("tpbench.report", "tpbench.claims"))):
        assert loaded_with(code, module) & {"torch", "timm", "deepspeed"} == set(), module


def test_triton_is_loaded_with_its_own_rooms_alone():
    """A machine without Triton, or without a GPU, imports everything else."""
    code = sources()
    with_triton = {name for name in code if "triton" in loaded_with(code, name)}
    rooms = ("attention_triton", "clustering_triton", "distances_triton", "starts_triton")
    assert with_triton == {f"tpbench.kernels.{room}" for room in rooms}


def test_numba_is_loaded_with_its_own_rooms_alone():
    """A machine without numba imports everything else, and nobody pays for importing it who does not cluster."""
    code = sources()
    rooms = {name for name in code if name.startswith("tpbench.kernels.native.")}
    assert len(rooms) > 1
    assert {name for name in code if "numba" in loaded_with(code, name)} == rooms


def test_control_the_closure_does_find_torch():
    assert "torch" in loaded_with(sources(), "tpbench.registry") | loaded_with(sources(), "tpbench.vit")


# ---------------------------------------------------------------- controls: houses with a fault


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        ("tpbench.tokens", "from tpbench.vit import reduce", "upwards"),
        ("tpbench.tokens", "from tpbench import vit", "upwards"),
        ("tpbench.tokens", "import tpbench.vit", "upwards"),
        ("tpbench.tokens", "from . import vit", "upwards"),
        ("tpbench.tokens", "from .vit import reduce", "upwards"),
        ("tpbench.tokens", "def f():\n    from tpbench.vit import reduce", "upwards"),
        ("tpbench.tokens", "try:\n    import tpbench.cli\nexcept ImportError:\n    pass", "upwards"),
        (
            "tpbench.kernels.attention",
            "class A:\n    def f(self):\n        if 1:\n            import tpbench.cli",
            "upwards",
        ),
        ("tpbench.pooling.new", "from tpbench.vit import reduce", "upwards"),
        ("tpbench.vit", "from tpbench.measure.flops import closed_form", "upwards"),
        ("tpbench.bench.runner", "import baselines.topk", "no baseline by name"),
        ("tpbench.bench.runner", "def f():\n    from baselines import topk", "no baseline by name"),
        ("tpbench.report.tables", "import torch", "records alone"),
        ("tpbench.report.tables", "def f():\n    from torch import nn", "records alone"),
        ("tpbench.report.tables", "from tpbench.bench.runner import run", "upwards"),
        ("tpbench.bench.runner", "import pandas as pd", "only tpbench.claims, tpbench.report, tpbench.training may"),
        ("tpbench.measure.flops", "from timm.layers import Attention", "imports timm"),
        ("tpbench.utils", "", "says nothing"),
        ("tpbench.measure.helpers", "", "says nothing"),
        ("baselines.common", "", "says nothing"),
    ],
)
def test_control_a_fault_is_found(module, text, says):
    found = set(violations({**sources(), module: text})) - set(violations(sources()))
    assert [fault for fault in found if fault.startswith(module) and says in fault], found


def test_control_a_circle_is_found():
    code = {"tpbench.tokens": "import tpbench.record", "tpbench.record": "from tpbench import tokens"}
    assert len(circles(code)) == 2
    code["tpbench.record"] = "def f():\n    from tpbench import tokens"
    assert circles(code) == []


def test_control_an_unknown_room_is_found():
    assert violations({"tpbench.errors": ""}) == []
    assert "in no room" in violations({"tpbench.attic": "import tpbench.errors", "tpbench.errors": ""})[0]


def without(word: str) -> str:
    """The page without the lines that hold a word."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if word not in line)


def test_the_page_names_every_room_once_and_no_other():
    rooms = sorted({room(module) for module in sources()})
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(name for names in FLOORS for name in names) == rooms
    assert sorted(described(page)) == rooms, "one line a room, under Rooms"


def test_control_a_page_with_a_room_missing_fails(monkeypatch):
    page = without("`tpbench.training`")
    assert "tpbench.training" not in described(page)
    monkeypatch.setitem(globals(), "FLOORS", floors(page))
    missing = {name for name in sources() if room(name) == "tpbench.training"}
    found = violations(sources())
    assert all(f"{name} is in no room: say in docs/architecture.md where it belongs" in found for name in missing)


def test_the_page_names_functions_that_exist():
    page = PAGE.read_text(encoding="utf-8")
    assert len(walked(page)) > 30
    assert unknown(page) == []
    renamed = page.replace("`record.lines.write`", "`record.scribble`")
    assert unknown(renamed) == ["record.scribble"], "control: a name that is gone shows"


def described(page: str) -> list[str]:
    """The rooms that have a line of their own, in order."""
    return re.findall(r"^- `([^`]+)`: ", page, flags=re.MULTILINE)


def walked(page: str) -> list[str]:
    """The dotted names in the walks of the page, such as vit.TokenViT.embed."""
    walks = page[page.index("## How data flows") :]
    return re.findall(r"`([a-z_]+(?:\.\w+)+)`", walks)


def unknown(page: str) -> list[str]:
    """The names among them that no module of tpbench defines."""
    defined = {name for module, text in sources().items() for name in definitions(module, ast.parse(text))}
    return [name for name in walked(page) if f"tpbench.{name}" not in defined]


def definitions(prefix: str, node: ast.Module | ast.ClassDef) -> list[str]:
    """The functions, classes and constants of a module, and the members of its classes, with their dotted names."""
    found: list[str] = []
    for child in node.body:
        if isinstance(child, ast.Assign):
            found += [f"{prefix}.{target.id}" for target in child.targets if isinstance(target, ast.Name)]
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            found.append(f"{prefix}.{child.name}")
        if isinstance(child, ast.ClassDef):
            found += definitions(f"{prefix}.{child.name}", child)
    return found


def test_control_types_alone_do_not_count():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tpbench.vit import reduce\n"
    assert violations({**sources(), "tpbench.tokens": text}) == violations(sources())
    text += "else:\n    from tpbench.vit import reduce\n"
    assert violations({**sources(), "tpbench.tokens": text}) != violations(sources())
