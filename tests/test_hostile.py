"""Whatever text, file or folder a command is given, it answers in one line, soon, and in little memory."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_recipe
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import encoded, write_parquet

from tpbench import overrides, registry, vit
from tpbench import recipe as recipes
from tpbench.bench.models import build_base
from tpbench.cli import DONE, WRONG, main, run
from tpbench.errors import UsageError
from tpbench.recipe import Data
from tpbench.schedule import Schedule, parse, parse_all
from tpbench.training import checkpoint, data
from tpbench.training.data import resident
from tpbench.training.train import Conditions, train

CPU = torch.device("cpu")
TINY = tiny_recipe.recipe()
SECONDS = 20.0  # for one answer, on a loaded machine
BYTES = 200_000_000  # of Python's own memory for one answer
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def soon(seconds: float = SECONDS) -> Iterator[None]:
    """End what takes longer with TimeoutError, even in the middle of a loop."""

    def late(*_) -> None:
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(most: int = BYTES) -> Iterator[None]:
    """Fail where Python's memory grew by more than this meanwhile."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / 1e6:.0f} MB"


def answer(call: Callable[[], object]) -> object:
    """What a call returns, or the line with which it refuses. Any other error is a fault."""
    try:
        with soon():
            return call()
    except UsageError as error:
        said = str(error)
        assert said.strip(), "it says nothing"
        assert len(said.splitlines()) == 1, said
        return error


# ------------------------------------------------------------------------------------ the suite itself


def test_control_a_planted_fault_of_each_sort_is_found():
    def silent() -> None:
        raise UsageError("")

    def hang() -> None:
        while True:
            pass

    def greedy() -> bytearray:
        return bytearray(BYTES)

    assert isinstance(answer(lambda: parse("no schedule")), UsageError)
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 / 0)
    with pytest.raises(AssertionError):
        answer(silent)
    with pytest.raises(TimeoutError), soon(0.2):
        hang()
    with pytest.raises(AssertionError, match="MB"), little_memory():
        greedy()


# ------------------------------------------------------------------------------------ texts


NUMBER = st.one_of(
    st.integers(-2, 30).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["0.7", ".5", "-13", "1e9", "٣", "²", "9" * 5000, "0" * 5000 + "1", "1_000", "NaN", "0x10", ""]),
)
BLOCKS = st.one_of(
    NUMBER,
    st.lists(NUMBER, max_size=4).map(",".join),
    st.tuples(NUMBER, NUMBER).map("-".join),
    st.sampled_from(["0-11", "0-999999999999", "5-2", "1-", "-1", "3,3"]),
)
TEXT = st.text(max_size=30) | st.text("0123456789.,;@-=macsltny:() \0\udcff", max_size=20)
SCHEDULES = st.one_of(
    TEXT,
    st.tuples(st.sampled_from(["", "macs=", "latency=", "learned:", "-", "none"]), NUMBER, BLOCKS).map(
        lambda parts: f"{parts[0]}{parts[1]}@{parts[2]}"
    ),
)


@MANY
@given(text=SCHEDULES, patches=st.integers(1, 200), depth=st.integers(1, 40))
@example(text="0.7@0-999999999999", patches=196, depth=12)
@example(text=f"0.7@{'9' * 5000}", patches=196, depth=12)
@example(text=f"{'9' * 5000}@1", patches=196, depth=12)
@example(text=f"-{'9' * 5000}@1", patches=196, depth=12)
@example(text=f"0.{'9' * 5000}@1", patches=196, depth=12)
@example(text="learned:a\0b", patches=196, depth=12)
@example(text="learned:" + "a" * 5000, patches=196, depth=12)
def test_schedules(text, patches, depth):
    with little_memory():
        found = answer(lambda: parse_all(text))
    if isinstance(found, UsageError):
        return
    for schedule in found:
        assert isinstance(schedule, Schedule)
        counts = answer(lambda schedule=schedule: schedule.requested(patches, depth))
        if not isinstance(counts, UsageError):
            assert list(counts) == sorted(counts, reverse=True)
            assert all(1 <= k <= patches for k in counts)


SETTING = st.tuples(
    st.sampled_from(["init", "finetune_seed", "iterations", "finetune", ""]) | st.text(max_size=5),
    NUMBER | st.sampled_from(["True", "None", "[1]", "{}", "grid", "'", "-" * 2000 + "1", "1 + 1j", "b'x'"]) | TEXT,
).map("=".join)
METHOD = st.tuples(
    st.sampled_from(["topk", "wkmedoids", "none", "all", "tome", "nothing"]) | st.text(max_size=6),
    st.sampled_from(["", "(", ")", "()"]) | st.lists(SETTING, max_size=3).map(lambda s: f"({','.join(s)})"),
).map("".join)


@MANY
@given(text=TEXT | st.lists(METHOD, max_size=3).map(",".join))
@example(text=f"wkmedoids(init={'(' * 300})")
@example(text=f"wkmedoids(init={'-' * 100_000}1)")
@example(text=f"wkmedoids(init={'[' * 1000})")
@example(text=f"wkmedoids(init={'9' * 5000})")
@example(text="wkmedoids(init=a\0b)")
@example(text="wkmedoids(init=1e999)")
def test_methods_and_their_settings(text):
    with little_memory():
        found = answer(lambda: registry.variants(text))
    if isinstance(found, UsageError):
        return
    for variant in found:
        assert variant.card.name == variant.method
        answer(lambda variant=variant: registry.configure(registry.method(variant.method), dict(variant.settings)))


PATHS = [
    "finetune.epochs",
    "finetune.lr",
    "base.batch_size",
    "data.mean",
    "data.source",
    "model_args.embed_dim",
    "knobs.topk.x",
    "measure.batch_sizes",
    "schedules",
    "seeds",
    "name",
    "dtype",
    "methods",
    "controls",
]
VALUE = NUMBER | TEXT | st.sampled_from(["null", "true", "[]", "{}", "[1,", '"', "[" * 2000, "nan", "1e400", "''"])


@MANY
@given(
    path=st.sampled_from(PATHS) | st.lists(st.sampled_from(["data", "x", "", "search"]), max_size=4).map(".".join),
    value=VALUE,
)
@example(path="finetune.epochs", value="[" * 100_000)
@example(path="model_args.x", value="[" * 100_000)
@example(path="finetune.epochs", value="9" * 5000)
@example(path="finetune.epochs", value="{a=" * 5000)
@example(path="data.source", value="\udcff")
def test_lines_of_a_recipe(path, value):
    with little_memory():
        found = answer(lambda: recipes.load("smoke", tuned=False, lines=[f"{path}={value}"]))
    if not isinstance(found, UsageError):
        assert found.digest
        overrides.canonical(found, overrides.parse([f"{path}={value}"])[0])


@FEW
@given(flag=st.sampled_from(["--methods", "--schedules", "--set", "--seeds", "--budget", "--recipe"]), text=VALUE)
@example(flag="--schedules", text="0.7@0-999999999999")
@example(flag="--recipe", text="a\0b.py")
@example(flag="--recipe", text="a" * 5000)
@example(flag="--plugin", text="a\0b.py")
@example(flag="--plugin", text="a" * 5000)
@example(flag="--out", text="a\0b")
@example(flag="--methods", text="a\nb")
@example(flag="--plugin", text="a\nb.py")
@example(flag="--set", text="a\nb=1")
def test_the_command_line_ends_with_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, flag, text):
    """All texts are read, and nothing runs."""
    monkeypatch.setattr(run, "show_forecast", lambda *_: DONE)
    words = ["run", "--recipe", "smoke", "--out", str(tmp_path / "out"), "--plan", f"{flag}={text}"]
    capsys.readouterr()
    with soon():
        code = main(words)
    said = capsys.readouterr().err
    assert code in (DONE, WRONG), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == (code == WRONG), said


# ------------------------------------------------------------------------------------ files


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A file's content with a piece missing, changed, doubled or of something else."""
    at = st.integers(0, len(content))
    return st.one_of(
        at.map(lambda end: content[:end]),
        st.tuples(at, st.binary(min_size=1, max_size=30)).map(lambda p: content[: p[0]] + p[1] + content[p[0] :]),
        st.tuples(at, st.binary(min_size=1, max_size=30)).map(
            lambda p: content[: p[0]] + p[1] + content[p[0] + len(p[1]) :]
        ),
        st.tuples(at, at).map(lambda p: content[: min(p)] + content[max(p) :]),
        st.binary(max_size=100),
    )


IMAGES = {kind: encoded(size=24, kind=kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")}


def bomb(side: int) -> bytes:
    """A PNG of a few hundred kilobytes that says it has side x side pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


BOMB = bomb(14_000)


@MANY
@given(image=st.sampled_from(sorted(IMAGES)).flatmap(lambda kind: damaged(IMAGES[kind])))
@example(image=BOMB)
@example(image=BOMB[: len(BOMB) // 2])
@example(image=b"")
def test_bytes_of_images(image):
    """Every image decodes, or the data set is refused with the row."""
    found = answer(lambda: resident._decode(TINY.data, Path("train.parquet"), [{"bytes": image}]))
    if isinstance(found, UsageError):
        assert "1 of 1 images cannot be decoded, the first in row 0" in str(found)
    else:
        assert found.shape == (1, 1, 8, 8)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    lines = write_parquet(tmp_path, [*[encoded()] * 7, BOMB], [0, 1] * 4)
    found = answer(lambda: data.load(lines, CPU))
    assert isinstance(found, UsageError)
    assert "row 7" in str(found)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[Data, bytes]:
    """A data set of eight images a side, and the bytes of its training file."""
    folder = tmp_path_factory.mktemp("parquet")
    lines = write_parquet(folder, [encoded(level=8 * level) for level in range(8)], [0, 1] * 4)
    return lines, (folder / "train.parquet").read_bytes()


@settings(MANY, max_examples=150)
@given(drawn=st.data())
def test_bytes_of_parquet_files(table, drawn):
    lines, whole = table
    (Path(lines.root) / "train.parquet").write_bytes(drawn.draw(damaged(whole)))
    found = answer(lambda: data.load(lines, CPU))
    if not isinstance(found, UsageError):
        assert len(found.train) + len(found.validation) <= 8


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["a", "b"] * 4, "label": [0, 1] * 4},
        {"image": [1, 2] * 4, "label": [0, 1] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": ["a", "b"] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": [None, 1] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": [0.5, 1.5] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": [[0], [1]] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": [2**62, 1] * 4},
        {"image": [{"bytes": encoded()}] * 7 + [None], "label": [0, 1] * 4},
        {"image": [{"bytes": None}] * 8, "label": [0, 1] * 4},
        {"image": [{"path": "a.png"}] * 8, "label": [0, 1] * 4},
        {"image": [{"bytes": "text"}] * 8, "label": [0, 1] * 4},
        {"image": [{"bytes": encoded()}] * 8, "label": [0] * 8},
        {"image": [{"bytes": encoded()}] * 2, "label": [0, 1]},
        {"image": [], "label": []},
    ],
)
def test_parquet_columns_of_other_kinds(tmp_path, columns):
    """Refused in one line, or taken where they can be."""
    lines = write_parquet(tmp_path, [], [], **columns)
    found = answer(lambda: data.load(lines, CPU))
    assert isinstance(found, UsageError | data.Parts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Conditions]:
    """The checkpoint of a run after one epoch, and the conditions of the run."""
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    conditions = Conditions(data.load(TINY.data, CPU))
    train(model(), conditions, replace(TINY.base, epochs=1), seed=0, folder=folder)
    return folder, conditions


def model() -> vit.TokenViT:
    return vit.reduce(build_base(TINY, 0), "none")


PROGRESS = "progress.json"


@settings(FEW, max_examples=30)
@given(drawn=st.data(), sealed=st.booleans())
def test_bytes_of_checkpoints(trained, drawn, sealed):
    """Damaged, a checkpoint is refused by name, also where the checksums were made again."""
    whole, conditions = trained
    folder = whole.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    path = folder / drawn.draw(st.sampled_from([PROGRESS, *names]))
    content = path.read_bytes()
    path.write_bytes(drawn.draw(damaged(content)))
    if sealed and path.name != PROGRESS:
        progress = json.loads((folder / PROGRESS).read_text())
        progress["checksums"] = checkpoint.checksums(folder / progress["tag"])
        (folder / PROGRESS).write_text(json.dumps(progress))
    found = answer(lambda: train(model(), conditions, replace(TINY.base, epochs=1), seed=0, folder=folder))
    if path.name != PROGRESS and not sealed and path.read_bytes() != content:
        assert isinstance(found, UsageError)
    if isinstance(found, UsageError):
        assert str(folder) in str(found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(FEW, max_examples=30)
@given(name=st.sampled_from(["tag", "identity", "ranks", "training", "step", "losses", "checksums"]), value=JSON)
@example(name="tag", value="../../../etc")
@example(name="training", value={"epochs": 10**9})
@example(name="step", value=10**9)
@example(name="losses", value="text")
def test_values_in_the_progress_of_a_checkpoint(trained, name, value):
    whole, conditions = trained
    folder = whole.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    progress = json.loads((folder / PROGRESS).read_text()) | {name: value}
    (folder / PROGRESS).write_text(json.dumps(progress))
    found = answer(lambda: train(model(), conditions, replace(TINY.base, epochs=1), seed=0, folder=folder))
    if isinstance(found, UsageError):
        assert str(folder) in str(found)


GOOD = (Path(__file__).parents[1] / "baselines" / "topk.py").read_bytes().replace(b'"topk"', b'"one_of_my_own"')


@settings(FEW, max_examples=100)
@given(source=damaged(GOOD))
@example(source=b"\0")
@example(source=b"\xff\xfe")
@example(source=b"(" * 5000)
@example(source=b"x = " + b"-" * 100_000 + b"1")
@example(source=b"import sys\nsys.exit(3)\n")
@example(source=GOOD + b"\nraise KeyError('a\\nb')\n")
@example(source=GOOD + b"\nraise SystemExit(3)\n")
@pytest.mark.usefixtures("unplugged")
def test_plug_in_files(tmp_path_factory, source):
    """A file is refused when it is read, or when its method is asked for."""
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_bytes(source)
    try:
        found = answer(lambda: registry.plug(str(path)))
        if isinstance(found, UsageError):
            return
        for card in [card for card in registry.catalogue()[0].values() if card.module == "tpbench_plugin_mine"]:
            answer(lambda card=card: registry.method(card.name))
    finally:
        forget()


@pytest.mark.usefixtures("unplugged")
def test_control_a_plug_in_that_is_whole_is_taken(tmp_path):
    (tmp_path / "mine.py").write_bytes(GOOD)
    registry.plug(str(tmp_path / "mine.py"))
    assert registry.method("one_of_my_own").name == "one_of_my_own"


def forget() -> None:
    """Plug the file of an example out again."""
    registry._plugins.clear()
    sys.modules.pop("tpbench_plugin_mine", None)
    for name in [name for name, card in registry._cards.items() if card.module == "tpbench_plugin_mine"]:
        registry._cards.pop(name)
        registry._classes.pop(name, None)
