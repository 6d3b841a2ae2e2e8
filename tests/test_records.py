"""Records as files: read once, packed, sealed, damaged in every way, of an earlier schema, and looked at first."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_report import MACHINE, measured

from tpbench.cli import DONE, FAILED, WRONG, main
from tpbench.errors import UsageError
from tpbench.record import (
    Budget,
    Record,
    Store,
    host_id,
    lines,
    read,
    read_all,
    read_budget,
    read_json,
    seal,
    store,
    unseal,
    write,
    write_json,
)

ROOT = Path(__file__).parents[1]
TINY = str(Path(__file__).with_name("tiny_recipe.py"))
PACKED = f"{MACHINE}.jsonl"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def example() -> list[Record]:
    base = [measured("none", seed, 97.0 + seed, share=1.0) for seed in range(2)]
    return base + [measured(name, seed, 90.0 + seed) for name in ("tome", "topk") for seed in range(2)]


def put(folder: Path, *records: Record) -> Path:
    for record in records:
        write(path_of(folder, record), record)
    return folder


def path_of(folder: Path, record: Record) -> Path:
    return folder / "records" / record.machine / record.file_name


def by_name(records) -> dict[str, dict]:
    return {record.file_name: asdict(record) for record in records}


@pytest.fixture
def parses(monkeypatch) -> list[str]:
    """Where every record lay that was parsed."""
    seen: list[str] = []

    def counted(text: bytes, where: str):
        seen.append(where)
        return lines.parse_record(text, where)

    monkeypatch.setattr(store, "parse_record", counted)
    return seen


# ------------------------------------------------------------------------------------------ one store


def test_a_record_is_parsed_once_until_its_file_changes(tmp_path, parses):
    records = example()
    put(tmp_path, *records)
    assert by_name(read_all(tmp_path)) == by_name(records)
    assert main(["report", str(tmp_path)]) == DONE
    assert len(parses) == len(records)
    write(path_of(tmp_path, records[-1]), replace(records[-1], title="New"))
    assert Store.of(tmp_path).find(MACHINE, "topk", records[-1].schedule, 1).title == "New"
    assert len(parses) == len(records) + 1, "control: what has changed is read again"
    path_of(tmp_path, records[-1]).unlink()
    assert len(Store.of(tmp_path)) == len(records) - 1


def test_packing_keeps_what_records_say_and_reads_none_again(tmp_path, parses):
    records = example()
    before = by_name(read_all(put(tmp_path, *records)))
    assert main(["pack", str(tmp_path)]) == DONE
    assert [path.name for path in (tmp_path / "records").iterdir()] == [PACKED]
    assert by_name(read_all(tmp_path)) == before
    assert len(parses) == len(records)
    store._opened.cache_clear()  # as another process sees it
    assert by_name(read_all(tmp_path)) == before
    assert len(parses) == 2 * len(records)
    rows = [json.loads(line) for line in (tmp_path / "records" / PACKED).read_text().splitlines()]
    keys = [(row["method"], row["schedule"], row["seed"]) for row in rows]
    assert keys == sorted(keys)
    assert len(keys) == len(records)


def test_packing_again_changes_no_byte(tmp_path):
    put(tmp_path, *example())
    assert main(["pack", str(tmp_path)]) == DONE
    packed = tmp_path / "records" / PACKED
    before = (packed.read_bytes(), packed.stat().st_mtime_ns)
    assert main(["pack", str(tmp_path)]) == DONE
    assert (packed.read_bytes(), packed.stat().st_mtime_ns) == before


def test_a_cells_own_file_beside_a_packed_one_wins_and_is_packed(tmp_path):
    records = example()
    put(tmp_path, *records)
    Store.of(tmp_path).pack(MACHINE)
    newer = replace(records[3], title="measured again")
    put(tmp_path, newer, replace(records[3], seed=7))
    for found in (Store.of(tmp_path), Store(tmp_path)):
        found.scan()
        assert found.find(MACHINE, newer.method, newer.schedule, newer.seed).title == "measured again"
        assert found.bad == []
        assert len(found) == len(records) + 1
    Store.of(tmp_path).pack(MACHINE)
    store._opened.cache_clear()
    again = Store.of(tmp_path)
    assert len(again) == len(records) + 1
    assert again.find(MACHINE, newer.method, newer.schedule, newer.seed).title == "measured again"
    assert not (tmp_path / "records" / MACHINE).exists()


def test_killed_between_packing_and_deleting_nothing_is_lost_or_double(tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    records = example()
    put(tmp_path, *records)
    before = by_name(read_all(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            Store.of(tmp_path).pack(MACHINE)
    assert (tmp_path / "records" / PACKED).exists()
    assert len(list((tmp_path / "records").glob("*/*.json"))) == len(records), "control: both forms are there"
    store._opened.cache_clear()
    assert Store.of(tmp_path).bad == []
    assert by_name(read_all(tmp_path)) == before
    assert main(["pack", str(tmp_path)]) == DONE
    assert by_name(read_all(tmp_path)) == before
    assert [path.name for path in (tmp_path / "records").iterdir()] == [PACKED]


def test_two_records_of_one_cell_are_named(tmp_path):
    records = example()
    put(tmp_path, *records)
    copy = path_of(tmp_path, records[0]).with_name("copy.json")
    copy.write_bytes(path_of(tmp_path, records[0]).read_bytes())
    with pytest.raises(UsageError, match=r"none_none_seed0.json holds none none seed 0, as .*copy.json does"):
        read_all(tmp_path)


def test_a_record_in_the_folder_of_another_machine_is_named(tmp_path):
    put(tmp_path, *example())
    (tmp_path / "records" / MACHINE).rename(tmp_path / "records" / "other")
    with pytest.raises(UsageError, match=f"is of machine {MACHINE}, and lies under other"):
        read_all(tmp_path)


def test_a_folder_that_cannot_be_packed_is_refused(tmp_path, capsys):
    assert main(["pack", str(tmp_path)]) == WRONG
    assert "holds no records" in capsys.readouterr().err
    records = example()
    put(tmp_path, *records)
    path_of(tmp_path, records[0]).write_text("{")
    assert main(["pack", str(tmp_path)]) == WRONG
    assert "none_none_seed0.json is corrupt" in capsys.readouterr().err
    assert not (tmp_path / "records" / PACKED).exists()


# ------------------------------------------------------------------------------------------ checksums


def test_every_changed_bit_of_a_record_is_found():
    text = seal(json.dumps(asdict(measured("topk", 0, 96.0)))) + b"\n"
    assert lines.parse_record(text, "here")[1], "control: unchanged, it is read"
    for at in range(len(text) - 1):
        damaged = bytearray(text)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(UsageError, match=r"^record here [^\n]*$"):
            lines.parse_record(bytes(damaged), "here")


def test_control_without_a_checksum_a_changed_digit_is_believed():
    text = json.dumps(asdict(measured("topk", 0, 96.0)))
    record, sealed = lines.parse_record(text.replace("0.96", "0.97").encode(), "here")
    assert not sealed
    assert record.metrics["fine_tuned_top1"] == 0.97


@pytest.mark.parametrize("layout", [None, 1])
@given(
    content=st.dictionaries(
        st.text(),
        st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists),
        min_size=1,
    )
)
def test_what_is_sealed_comes_back(layout, content):
    text = json.dumps(content, indent=layout)
    back, sealed = unseal(seal(text))
    assert sealed
    assert back.decode() == text.removesuffix("\n}") + "}" * text.endswith("\n}")


def test_files_beside_the_records_are_sealed_too(tmp_path):
    budget = tmp_path / "budget.json"
    write(budget, Budget(machine="m", method="topk", schedule="latency=0.5@1", batch=4, blocks=[1], counts=[37]))
    assert read_budget(budget).counts == [37]
    budget.write_text(budget.read_text().replace("37", "38"))
    with pytest.raises(UsageError, match=r"budget.json is corrupt .*changed since it was written"):
        read_budget(budget)
    spectrum = tmp_path / "seed0.json"
    write_json(spectrum, {"kernel": [0.25]}, indent=1)
    assert read_json(spectrum) == {"kernel": [0.25]}
    spectrum.write_bytes(spectrum.read_bytes().replace(b"\n", b"\r\n"))
    assert read_json(spectrum) == {"kernel": [0.25]}, "line ends of another system are no change"
    spectrum.write_text(spectrum.read_text().replace("0.25", "0.35"))
    with pytest.raises(ValueError, match="changed"):
        read_json(spectrum)
    spectrum.write_text('{"kernel": [0.25], "checksum": "xyz"}')
    with pytest.raises(ValueError, match="changed"):
        read_json(spectrum)


def test_records_without_checksums_are_read_said_once_and_sealed_by_packing(tmp_path, capsys):
    for record in example():
        path = path_of(tmp_path, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record), indent=1))
    (tmp_path / "learned").mkdir()
    learned = {"counts": [3], "kept": [3.5], "patches": 4, "method": "topk", "search": "SoftExtract"}
    learned |= {"off_the_shelf": {"macs_share": 0.5, "validation_top1": 0.5}}
    (tmp_path / "learned" / "topk_seed0.json").write_text(json.dumps(learned))
    before = by_name(read_all(tmp_path))
    assert main(["report", str(tmp_path)]) == DONE
    said = capsys.readouterr().err
    assert said.count("6 of 6 records") == 1
    assert "carry no checksum" in said
    assert main(["pack", str(tmp_path)]) == DONE
    assert "topk_seed0.json" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == DONE
    assert capsys.readouterr().err == ""
    assert by_name(read_all(tmp_path)) == before
    assert "checksum" in (tmp_path / "learned" / "topk_seed0.json").read_text()


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"12g4", b"12345", b"abcd\0", b"ABCD"])
def test_a_damaged_host_id_is_named(tmp_path, capsys, content):
    work = tmp_path / "work"
    assert host_id(work) == host_id(work), "control: whole, it stays"
    (work / "host-id").write_bytes(content)
    assert main(["run", "--recipe", TINY, "--methods", "none", "--out", str(tmp_path), "--device", "cpu"]) == WRONG
    said = capsys.readouterr().err
    assert "host-id is damaged" in said
    assert len(said.strip().splitlines()) == 1


# ------------------------------------------------------------------------------------------ bad records


def test_a_bad_record_is_named_and_the_rest_is_reported(tmp_path, capsys):
    records = example()
    put(tmp_path, *records)
    Store.of(tmp_path).pack(MACHINE)
    packed = tmp_path / "records" / PACKED
    text = packed.read_text().splitlines(keepends=True)
    packed.write_text("".join([text[0].replace('"seed": 0', '"seed": 5', 1), *text[1:]]))
    put(tmp_path, replace(records[-1], seed=9))
    path_of(tmp_path, replace(records[-1], seed=9)).write_bytes(b"\0\0")
    for verb in ("report", "claims"):
        capsys.readouterr()
        extra = ["--out", str(tmp_path / "claims")] if verb == "claims" else []
        assert main([verb, str(tmp_path), *extra]) == FAILED
        printed = capsys.readouterr()
        assert f"{PACKED} line 1 is corrupt" in printed.err
        assert "seed9.json is corrupt" in printed.err
        assert len(printed.err.strip().splitlines()) == 2
    assert (tmp_path / "claims" / "claims.md").exists()
    table = (tmp_path / "tables" / f"{MACHINE}-cells.csv").read_text().splitlines()
    assert len(table) == 1 + len(records) - 1


GOOD = asdict(measured("topk", 0, 96.0))


@st.composite
def spoilt(draw) -> bytes:
    """A record's text with one thing wrong, mostly."""
    kind = draw(st.sampled_from(["value", "cut", "bytes", "nested", "nul", "missing", "anything"]))
    text = json.dumps(GOOD).encode()
    if kind == "value":
        return json.dumps(GOOD | {draw(st.sampled_from(sorted(GOOD))): draw(JSON)}).encode()
    if kind == "missing":
        return json.dumps({name: v for name, v in GOOD.items() if name != draw(st.sampled_from(sorted(GOOD)))}).encode()
    at = draw(st.integers(0, len(text)))
    if kind == "cut":
        return text[:at]
    if kind == "nul":
        return text[:at] + b"\0" * draw(st.integers(1, 9)) + text[at:]
    if kind == "bytes":
        return text[:at] + draw(st.binary(max_size=9)) + text[at:]
    depth = draw(st.sampled_from([10, 300, 5_000, 200_000]))
    if kind == "nested":
        return text[:-1] + b', "data": ' + b"[" * depth + b"]" * depth + b"}"
    return draw(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\x1e", "\x85", "\u2028"])
def test_a_name_with_line_ends_is_refused_in_one_line(separator):
    """Found by the test below: a key of a record is quoted in the message, with whatever ends a line in it."""
    text = json.dumps(GOOD | {"evaluation": {f"a{separator}b": None}}).encode()
    said = refused(text)
    assert "evaluation.a b" in said
    assert len(said.splitlines()) == 1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=spoilt(), sealed=st.booleans())
def test_no_text_makes_a_reader_fail_in_another_way(text, sealed):
    """A record or one line that names its place, whatever is in a file; sealed wrong types are refused all the same."""
    if sealed and text.endswith(b"}"):
        text = seal(text.decode("utf-8", errors="replace"))
    said = refused(text)
    if said is None:
        record, _ = lines.parse_record(text, "place")
        assert type(record.seed) is int
        assert type(record.metrics) is dict
    else:
        assert said.startswith("record place ")
        assert len(said.splitlines()) == 1
        assert len(said) < 1000


def refused(text: bytes) -> str | None:
    """With which words a text is refused as a record, if it is."""
    try:
        lines.parse_record(text, "place")
    except UsageError as error:
        return str(error)
    return None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(spoilt(), max_size=4))
def test_no_folder_makes_the_store_fail(tmp_path, texts):
    """The good record among them is always read."""
    folder = tmp_path / str(abs(hash(tuple(texts))))
    put(folder, measured("tome", 1, 95.0))
    for number, text in enumerate(texts):
        (folder / "records" / MACHINE / f"{number}.json").write_bytes(text)
    found = Store(folder)
    found.scan()
    assert found.find(MACHINE, "tome", GOOD["schedule"], 1) is not None
    assert len(found) + len(found.bad) == 1 + len(texts)


@given(
    error=st.none() | st.text(),
    method=st.text(min_size=1),
    metrics=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False)),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_is_read(tmp_path, error, method, metrics, seed):
    record = replace(measured("topk", 0, 96.0), error=error, method=method, metrics=metrics, seed=seed)
    path = tmp_path / "record.json"
    write(path, record)
    assert read(path) == record


def test_half_a_character_in_an_error_leaves_the_record_readable(tmp_path):
    path = tmp_path / "record.json"
    write(path, replace(measured("topk", 0, 96.0), error="cannot read image-\udcff.png in Größe"))
    assert read(path).error == "cannot read image-?.png in Größe"


# ------------------------------------------------------------------------------------------ earlier schemas


def test_records_of_schema_1_are_read():
    """They come out as records of today with the fields that they lack empty, and nothing else differs."""
    later = asdict(Record("", "", "", "", "", 0))
    old = 0
    for folder in [ROOT / "tests" / "golden" / "schema1"]:
        raw = {}
        for path in sorted((folder / "records").rglob("*.json*")):
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                content = json.loads(text)
                raw[content["machine"], content["method"], content["schedule"], content["seed"]] = content
        records = read_all(folder)
        assert len(records) == len(raw)
        for record in records:
            content = raw[record.machine, record.method, record.schedule, record.seed]
            content.pop("checksum", None)
            assert asdict(record) == later | content
            old += content["schema"] == 1 and "outcomes" not in content and record.outcomes == {}
    assert old > 0


def test_a_record_of_a_later_schema_is_refused_by_its_number(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(seal(json.dumps(GOOD | {"schema": 3, "a_later_field": 1})))
    with pytest.raises(UsageError, match=r"record.json has schema 3, this version reads up to 2"):
        read(path)
    path.write_bytes(seal(json.dumps(GOOD | {"schema": 0})))
    with pytest.raises(UsageError, match=r"record.json has schema 0"):
        read(path)


# ------------------------------------------------------------------------------------------ looking first


LOOK = """
import sys
from tpbench.cli import main
code = main(sys.argv[1:])
heavy = ("torch", "timm", "torchvision", "deepspeed", "numba", "sklearn")
print(code, *[name for name in heavy if name in sys.modules])
"""


def look(out: Path, *methods: str) -> str:
    words = ["run", "--recipe", TINY, "--methods", ",".join(methods), "--out", str(out), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_a_run_with_nothing_to_do_loads_no_torch_and_packs(tmp_path, monkeypatch, parses):
    from tpbench import environment, recipe

    machine = environment.machine_of("cpu", host_id(tmp_path / "work"))
    about = {"recipe": "tiny", "recipe_digest": recipe.load(TINY).digest, "machine": machine}
    for name in ("none", "topk"):
        put(tmp_path, replace(measured(name, 0, 96.0, schedule="0.5@0,1"), **about))
    assert look(tmp_path, "none", "topk") == "0"
    packed = tmp_path / "records" / f"{machine}.jsonl"
    assert len(packed.read_text().splitlines()) == 2
    assert look(tmp_path, "none") == "0"

    def begun(*_):
        raise KeyboardInterrupt

    from tpbench.bench import runner

    monkeypatch.setattr(runner, "check_rows", begun)
    words = ["run", "--recipe", TINY, "--out", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--methods", "none,topk"]) == DONE
    assert main([*words, "--methods", "none,random"]) == 130, "control: another method has to be measured"
    assert len(parses) == 2
    failed = replace(measured("topk", 0, 96.0, schedule="0.5@0,1"), error="it failed", **about)
    put(tmp_path, failed)
    assert main([*words, "--methods", "none,topk"]) == 130, "control: a cell that failed is tried again"
