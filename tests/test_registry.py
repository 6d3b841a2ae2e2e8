"""The register: what the source says is what is registered; what is wrong with a method file is said, and fatal."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tpbench import registry, schedule
from tpbench.bench.plan import Plan
from tpbench.cards import COUNTS, FAMILIES
from tpbench.downsampler import Downsampler
from tpbench.errors import UsageError
from tpbench.recipe import load

NAMES = list(registry.catalogue()[0])

GOOD = """
from tpbench.downsampler import Downsampler
from tpbench.registry import register

@register("{name}", title="{name} it is", count="at_most", year=2020)
class Method(Downsampler):
    pass
"""


# ---------------------------------------------------------------- the methods that ship


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_setting_is_a_finite_number(value):
    with pytest.raises(UsageError, match="is not a finite number"):
        registry.configure(registry.method("pitome"), {"margin": value})
    assert registry.configure(registry.method("pitome"), {"margin": 0.5}).margin == 0.5  # control


def test_no_method_file_is_broken():
    assert registry.catalogue()[1] == []


def test_the_cards_read_are_the_cards_registered():
    classes = registry.discover()
    cards, _ = registry.catalogue()
    assert list(classes) == list(cards)
    assert {name: registry._cards[name] for name in cards} == cards
    for name, cls in classes.items():
        assert issubclass(cls, Downsampler)
        assert cls.name == name
        assert cls.__module__ == cards[name].module
        assert registry.method(name) is cls


def test_the_unreduced_model_comes_first_and_alone():
    cards = registry.select("all")
    assert [card.unreduced for card in cards] == [True] + [False] * (len(cards) - 1)
    assert [card.unreduced for card in cards] == [not registry.method(card.name).reduces for card in cards]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_a_reader_needs(name):
    card = registry.catalogue()[0][name]
    assert card.title
    assert card.count in COUNTS
    assert (card.family in FAMILIES) != card.unreduced
    assert registry.method(name).__doc__ or inspect.getmodule(registry.method(name)).__doc__
    if card.paper:
        assert card.venue
        assert card.url.startswith("https://")
        assert 2017 < card.year < 2030
        assert card.differs, "a method from a paper says where it departs from it"


@pytest.mark.parametrize("name", NAMES)
def test_method_files_import_alone(name):
    """A method file needs no other to have been imported first. (By source: every module it names exists.)"""
    source = Path(inspect.getsourcefile(registry.method(name))).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert importlib.util.find_spec(node.module) is not None


# ---------------------------------------------------------------- plug-ins of a test's own


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """plugins(file="source", ...) installs a package of method files, and nothing else."""
    package = f"plugins_{abs(hash(tmp_path)) % 10**8}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_classes", {})
    monkeypatch.setattr(registry, "_cards", {})
    monkeypatch.setattr("tpbench.cards.entry_points", lambda group: [EntryPoint("mine", package, group)])

    def install(**sources: str) -> Path:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return folder

    yield install
    for module in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[module]


def test_a_new_file_is_a_new_method(plugins):
    plugins(one=GOOD.format(name="one"), two=GOOD.format(name="two"), _hidden="1 / 0")
    cards, broken = registry.catalogue()
    assert broken == []
    assert list(cards) == ["one", "two"]
    assert (cards["one"].title, cards["one"].count, cards["one"].year) == ("one it is", "at_most", 2020)
    assert list(registry.discover()) == ["one", "two"]
    assert registry.method("one").__name__ == "Method"


def test_one_method_is_fetched_without_importing_the_others(plugins):
    plugins(one=GOOD.format(name="one"), two="raise RuntimeError('not me')")
    assert registry.method("one").name == "one"


def test_duplicates_are_refused(plugins):
    plugins(one=GOOD.format(name="same"), two=GOOD.format(name="same"))
    _, broken = registry.catalogue()
    assert len(broken) == 1
    assert "'same' is already defined in" in broken[0].reason
    with pytest.raises(UsageError, match="'same'"):
        registry.select("all")
    with pytest.raises(UsageError, match="'same'"):
        registry.discover()


def test_registering_another_class_under_a_name_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "_classes", {})
    monkeypatch.setattr(registry, "_cards", {})

    class One(Downsampler):
        pass

    class Two(Downsampler):
        pass

    registry.register("same", title="one")(One)
    registry.register("same", title="one")(One)  # a module imported again
    with pytest.raises(UsageError, match="'same' is defined twice"):
        registry.register("same", title="two")(Two)
    assert registry._classes["same"] is One


UNREADABLE = {
    "syntax": "def :",
    "title_missing": GOOD.format(name="bad").replace('title="bad it is", ', ""),
    "unknown_field": GOOD.format(name="bad").replace("year=", "age="),
    "no_literal": GOOD.format(name="bad").replace("2020", "2000 + len('x')"),
    "no_name": GOOD.format(name="bad").replace('"bad", ', ""),
    "name_by_keyword": GOOD.format(name="bad").replace('"bad", ', 'name="bad", '),
    "unknown_family": GOOD.format(name="bad").replace("year=2020", "family='pruned'"),
    "not_text": "\0",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_listed_and_fatal_to_all(plugins, kind):
    folder = plugins(good=GOOD.format(name="good"), bad=UNREADABLE[kind])
    cards, broken = registry.catalogue()
    assert "good" in cards
    assert [b.module for b in broken] == [f"{folder.name}.bad"]
    assert broken[0].reason
    with pytest.raises(UsageError, match=rf"{folder.name}\.bad is broken"):
        registry.select("all")
    with pytest.raises(UsageError, match=rf"{folder.name}\.bad is broken"):
        registry.discover()
    assert [card.name for card in registry.select("good")] == ["good"]  # the others can still be asked for


def test_control_without_the_bad_file_all_is_fine(plugins):
    plugins(good=GOOD.format(name="good"))
    assert [card.name for card in registry.select("all")] == ["good"]


def test_a_file_that_does_not_import_is_fatal_and_named(plugins):
    plugins(bad=GOOD.format(name="bad") + "\nimport no_such_module_anywhere\n")
    with pytest.raises(UsageError, match=r"bad is broken: ModuleNotFoundError.*no_such_module_anywhere"):
        registry.discover()


def test_a_file_that_does_not_import_is_refused_every_time_it_is_asked_for(plugins):
    """Its class is registered before the import fails."""
    plugins(bad=GOOD.format(name="bad") + "\nimport no_such_module_anywhere\n")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"bad is broken: ModuleNotFoundError.*no_such_module_anywhere"):
            registry.method("bad")


def test_a_card_without_its_class_is_fatal(plugins):
    plugins(bad=GOOD.format(name="bad") + "\nfrom tpbench import registry\nregistry._classes.clear()\n")
    with pytest.raises(UsageError, match="'bad' is on its card but was not registered"):
        registry.discover()


def test_a_class_without_a_card_is_fatal(plugins):
    """Registered in a way that reading does not see, a method would be missing from every list and every run."""
    aliased = GOOD.format(name="unseen").replace("import register", "import register as enter").replace("@reg", "@en")
    plugins(unseen=aliased.replace("@enister", "@enter"))
    with pytest.raises(UsageError, match="unseen"):
        registry.discover()


def test_nothing_installed_is_said(monkeypatch):
    monkeypatch.setattr("tpbench.cards.entry_points", lambda group: [])  # noqa: ARG005
    with pytest.raises(UsageError, match="pip install -e"):
        registry.catalogue()


def test_an_entry_point_to_nowhere_is_named(monkeypatch):
    monkeypatch.setattr("tpbench.cards.entry_points", lambda group: [EntryPoint("lost", "no_such_package", group)])
    with pytest.raises(UsageError, match="'lost' names 'no_such_package'"):
        registry.catalogue()


# ---------------------------------------------------------------- choosing


def test_names_are_chosen_in_order_and_once():
    assert [card.name for card in registry.select("topk, none,topk")] == ["topk", "none"]
    assert [card.name for card in registry.select(["random"])] == ["random"]


@pytest.mark.parametrize(("wrong", "meant"), [("kmedoid", "kmedoids"), ("top_k", "topk"), ("Random", "random")])
@pytest.mark.parametrize("ask", [registry.select, registry.method])
def test_an_unknown_name_gets_the_nearest(ask, wrong, meant):
    with pytest.raises(UsageError, match=f"unknown method '{wrong}'; did you mean .*{meant}"):
        ask(wrong)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(UsageError, match=r"known: none, .*wkmedoids"):
        registry.select("qqqqqqqq")


# ---------------------------------------------------------------- methods with settings


def test_a_variant_is_a_method_with_settings():
    asked = "topk, wkmedoids(init=grid, iterations=3),wkmedoids(site=end),wkmedoids(normalise=True),topk"
    found = registry.variants(asked)
    assert [variant.method for variant in found] == ["topk", "wkmedoids", "wkmedoids", "wkmedoids"]
    assert found[1].settings == (("init", "grid"), ("iterations", 3))
    assert found[3].settings == (("normalise", True),)
    assert [str(variant) for variant in found[:3]] == [
        "topk",
        "wkmedoids(init=grid,iterations=3)",
        "wkmedoids(site=end)",
    ]
    assert registry.variants([str(variant) for variant in found]) == found, "what is written reads back"
    assert "init = grid, iterations = 3" in found[1].title
    assert [v.method for v in registry.variants("all")] == [card.name for card in registry.select("all")]


def test_a_plan_reads_each_methods_card_once_however_many_seeds_it_has(monkeypatch):
    reads = []
    catalogue = registry.catalogue

    def counted():
        reads.append(1)
        return catalogue()

    variants = tuple(registry.variants("none,topk,tome"))
    monkeypatch.setattr(registry, "catalogue", counted)
    schedules = (schedule.parse("0.5@0,1,2"),)
    plan = Plan(
        recipe=load("smoke"),
        out=Path("out"),
        device="cpu",
        variants=variants,
        reducing_schedules=schedules,
        seeds=20,
    )
    assert len(plan.cells) == 20 * len(variants)
    assert len(reads) == len(variants)
    assert registry.variants("topk")[0].card.name == "topk"
    assert len(reads) > len(variants), "control: a variant of another command line reads its card itself"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("topkk(a=1)", "did you mean topk"),
        ("topk(", "expected NAME or NAME"),
        ("topk(a=1", "expected NAME or NAME"),
        ("topk(a)", "'a' is not SETTING=VALUE"),
        ("topk(=1)", "is not SETTING=VALUE"),
        ("topk(a=)", "is not SETTING=VALUE"),
    ],
)
def test_a_variant_that_cannot_be_read_is_refused(text, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        registry.variants(text)


# ---------------------------------------------------------------- reading costs nothing

HEAVY = ("torch", "timm", "pandas", "numpy", "matplotlib", "deepspeed", "sklearn")


def loaded_by(code: str) -> set[str]:
    code += f"\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_listing_loads_nothing_heavy():
    code = "import tpbench, tpbench.registry as r; assert r.catalogue()[0]; r.select('all'); r.nearest('a', 'b')"
    assert loaded_by(code) == set()


def test_control_what_is_loaded_is_seen():
    assert loaded_by("import numpy") == {"numpy"}


@pytest.mark.parametrize(
    ("source", "why"),
    [("def (", "is broken"), ("x = 1", "registers no method"), (GOOD.format(name="topk"), "'topk' is already defined")],
)
def test_a_plug_in_that_adds_nothing_is_refused_though_others_are_asked_for(tmp_path: Path, source: str, why: str):
    path = tmp_path / "mine.py"
    path.write_text(source)
    before = dict(registry._plugins)
    with pytest.raises(UsageError, match=why):
        registry.plug(str(path))
    assert registry._plugins == before
    path.write_text(GOOD.format(name="one_of_my_own"))
    try:
        registry.plug(str(path))  # control
        assert registry.select("one_of_my_own")[0].module == "tpbench_plugin_mine"
    finally:
        registry._plugins.clear()
        registry._plugins.update(before)
