"""The report page: what it says, that it holds whatever it needs, and what it does in a browser.

The tests that need a browser use Chromium without a screen through selenium, and are skipped, with the reason, where
either is not installed (Debian: `apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from PIL import Image

from tpbench.cli import main
from tpbench.measure import timings
from tpbench.record import Record, seal
from tpbench.report import layers, page, page_charts, page_files, page_repeat, page_rows
from tpbench.report.results import Results

ROOT = Path(__file__).parents[1]
MACHINE = "xeon-4c-ab12"
SCHEDULES = ("0.5@0,1,2", "0.7@0,1,2")
METHODS = {"wkmedoids": 91.0, "topk": 89.0, "tome": 92.5, "avgpool": 88.0, "wkmedoids(finetune_seed=1)": 91.2}
HOSTILE = 'topk</script><img src=x onerror="window.hit=1"><b>&amp;'
LARGEST = 5_000_000  # bytes


# ---------------------------------------------------------------- folders of records and sessions


def record(method: str, seed: int, top1: float, schedule: str = SCHEDULES[0], **other: Any) -> Record:
    """A record of a model of three blocks; top1 in percent."""
    base = method == "none"
    tokens = [64, 64, 64] if base else [32, 16, 8]
    names = (
        "patch_embed",
        "blocks.0.attn",
        "blocks.0.reducer",
        "blocks.0.mlp",
        "blocks.1.attn",
        "blocks.1.mlp",
        "head",
    )
    macs = [8_000, 500_000, 0 if base else 20_000, 200_000, 250_000, 100_000, 300]
    found = Record(
        recipe="digits",
        recipe_digest="0123456789ab",
        machine=MACHINE,
        method=method,
        schedule="none" if base else schedule,
        seed=seed,
        title=f"The method {method}",
        unreduced=base,
        metrics={
            "off_the_shelf_top1": (top1 - 10) / 100,
            "fine_tuned_top1": (top1 + (7 * seed + 3 * len(method)) % 5 / 5) / 100,
        },
        tokens={"blocks": [0, 1, 2], "requested": tokens, "achieved": tokens, "after_block": tokens},
        macs={
            "total": 8_000_000 if base else 4_000_000,
            "unreduced": 8_000_000,
            "reducers": 0 if base else 20_000,
            "closed_form": 4_000_000,
            "layers": [{"name": name, "macs": count} for name, count in zip(names, macs)],
        },
        layers_seconds={name: count * 1e-9 for name, count in zip(names, macs)},
        environment={"device": "Xeon", "threads": 2, "dtype": "float32", "packages": {"torch": "2.15.0"}},
        git={"commit": 10 * "abcd", "changed": False},
    )
    return replace(found, **other)


def study(seeds: int = 3, methods: dict[str, float] | None = None, **other: Any) -> list[Record]:
    """A base and every method at two schedules."""
    found = [record("none", seed, 96.0, **other) for seed in range(seeds)]
    for place, schedule in enumerate(SCHEDULES):
        for method, top1 in (methods or METHODS).items():
            macs = {"total": 4_000_000 + 1_000_000 * place + 1_000 * len(method)}
            for seed in range(seeds):
                own = record(method, seed, top1 + place, schedule, **other)
                found.append(replace(own, macs={**own.macs, **macs}))
    return found


def folder(path: Path, records: Sequence[Record]) -> Path:
    """A results folder that holds these records, one file a machine."""
    (path / "records").mkdir(parents=True, exist_ok=True)
    for machine in {record.machine for record in records}:
        lines = [seal(json.dumps(asdict(record))) + b"\n" for record in records if record.machine == machine]
        (path / "records" / f"{machine}.jsonl").write_bytes(b"".join(lines))
    return path


def session(records: Sequence[Record], **other: Any) -> timings.Session:
    """A timing session of all rows of these records."""

    def row(method: str, schedule: str, role: str, seconds: float) -> timings.Row:
        samples = [seconds * (1 + 0.01 * (number % 3)) for number in range(9)]
        macs = 8_000_000 if schedule == "none" else 4_000_000
        return timings.Row(method, schedule, 32, "float32", "eager", role=role, macs=macs, seconds=samples)

    names = dict.fromkeys(
        (record.method, record.schedule) for record in records if "finetune_seed" not in record.method
    )
    rows = [row("timm", "none", "reference", 0.010), row("timm", "none", "control", 0.010)]
    rows += [row(*name, "reduced", 0.011 if name[1] == "none" else 0.006 + 1e-4 * len(name[0])) for name in names]
    about = {
        "machine": records[0].machine,
        "model": records[0].recipe,
        "weights": f"recipe {records[0].recipe_digest}",
        "wanted": 9,
        "images": {"source": "noise"},
        "environment": {"device": "Xeon", "cores": 4},
        "facts": {"threads": 2, "governor": None},
    }
    return timings.Session(**about | other, rows=rows)


def timed(path: Path, records: Sequence[Record], **other: Any) -> Path:
    timings.write(timings.path_in(path, records[0].machine), session(records, **other))
    return path


def html(*folders: Path) -> str:
    return page.html(folders, folders[0] / page.NAME)


class Tags(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


# ---------------------------------------------------------------- what the page says


def test_findings_environment_and_commands_are_on_the_page(tmp_path):
    text = Tags(html(folder(tmp_path / "mine", study()))).text
    assert "4 methods at 2 schedules over 3 seeds" in text
    assert "Xeon; threads: 2; float32; torch 2.15.0; commit abcdabcdabcd" in text
    assert f"git checkout {10 * 'abcd'}" in text
    assert "--schedules '0.5@0,1,2;0.7@0,1,2' --seeds 3 --out" in text
    assert "The recipe digits has changed since these records (0123456789ab)" in text
    assert f"python -m tpbench report {tmp_path / 'mine'} --html" in text


def test_the_command_repeats_changed_lines_learned_counts_and_a_run_off_the_shelf(tmp_path):
    changed = [replace(one, recipe="digits+finetune.epochs=5") for one in study()]
    trained = [replace(one, training={"epochs": 1}) for one in changed]
    learned = [replace(one, schedule=one.schedule.replace(SCHEDULES[1], "learned:topk_seed0")) for one in trained]
    (own,) = page_rows.studies([folder(tmp_path, learned)])
    (command,) = [line for line in page_repeat.commands(own) if "tpbench run" in line]
    assert "--recipe digits --set finetune.epochs=5 --methods" in command
    assert f"learned:{tmp_path / 'learned' / 'topk_seed0'}.json" in command
    assert "--off-the-shelf" not in command
    assert "is not a packaged one" not in page_repeat.caution(own)
    (shelf,) = page_rows.studies([folder(tmp_path / "shelf", study())])
    assert page_repeat.commands(shelf)[-1].endswith("--off-the-shelf"), "no record was trained"


def test_a_difference_of_exactly_zero_is_drawn(tmp_path):
    equal = study(methods={"wkmedoids": 91.0, "tome": 91.0, "topk": 89.0})  # the names of the first two scatter alike
    (own,) = page_rows.studies([folder(tmp_path, equal)])
    drawn = {(row["method"], row["schedule"]): row for row in page_rows.drawn(own)}
    for schedule in SCHEDULES:
        assert drawn["tome", schedule]["difference"] == 0
        assert drawn["topk", schedule]["difference"] < 0, "control"


def test_the_command_is_exact_where_the_recipe_is_as_it_was():
    text = Tags(html(ROOT / "results" / "digits")).text
    assert "python -m tpbench run --recipe digits --methods" in text
    assert "has changed since" not in text


def test_every_row_of_every_table_is_on_the_page(tmp_path):
    made = folder(tmp_path, study())
    tags = Tags(html(made)).found
    rows = [attributes for tag, attributes in tags if tag == "tr" and "data-id" in attributes]
    (own,) = page_rows.studies([made])
    assert len(rows) == len(own.comparison.rows) == 1 + 2 * len(METHODS)
    assert {row["data-schedule"] for row in rows} == {"none", *SCHEDULES}


def test_one_seed_has_no_intervals_and_the_page_says_so(tmp_path):
    text = Tags(html(folder(tmp_path, study(seeds=1)))).text
    assert "with one seed there are no intervals, and nothing is decided" in text
    assert "No intervals: too few seeds." in text
    assert "Bars: 95 % intervals" not in text
    assert "Bars: 95 % intervals over 3 seeds" in Tags(html(folder(tmp_path / "more", study()))).text, "control"


def test_what_was_not_timed_is_said(tmp_path):
    made = folder(tmp_path, study())
    assert "was not timed" in Tags(html(made)).text
    text = Tags(html(timed(made, study()))).text
    assert "was not timed" not in text
    assert "Accuracy against latency" in text
    assert "Timed in turns: batch 32, float32" in text


def test_a_session_of_another_model_is_not_joined(tmp_path):
    made = timed(folder(tmp_path, study()), study(), weights="recipe ffffffffffff")
    text = Tags(html(made)).text
    assert "times another model: " in text
    assert "Accuracy against latency" not in text


def test_recipes_are_kept_apart_and_that_is_said(tmp_path):
    others = study(methods={"evit": 85.0}, recipe="smoke", recipe_digest="ba9876543210")
    mixed = [*study(), *(record for record in others if not record.unreduced)]  # a folder has a cell once
    text = Tags(html(folder(tmp_path, mixed))).text
    assert "digits on xeon-4c-ab12, 0123456789ab" in text
    assert "smoke on xeon-4c-ab12, ba9876543210" in text
    assert "kept apart: smoke (ba9876543210)" in text


def test_records_of_an_older_schema_are_said(tmp_path):
    outcomes = {"fine_tuned": {"images": 16 * "a", "count": 8, "right": "/w=="}}
    records = study()
    old = [replace(each, schema=1, outcomes={} if each.method == "topk" else outcomes) for each in records]
    assert "records hold no outcomes" in Tags(html(folder(tmp_path, old))).text


def test_a_hole_says_why(tmp_path):
    records = [replace(each, error="out of memory") if each.method == "tome" else each for each in study()]
    found = html(folder(tmp_path, records))
    assert "failed: out of memory</td>" in found


@pytest.mark.parametrize(("count", "stands"), [("masked", False), ("exact", True)])
def test_what_saves_nothing_is_not_on_the_front(tmp_path, count, stands):
    best = [replace(each, count=count) if each.method == "topk" else each for each in study(methods={"topk": 97.0})]
    (own,) = page_rows.studies([folder(tmp_path, best)])
    rows = {row["schedule"]: row for row in page_rows.drawn(own) if row["method"] == "topk"}
    assert ("front" in rows[SCHEDULES[0]]) == stands


def test_folders_stand_side_by_side(tmp_path):
    one = folder(tmp_path / "one", study())
    two = folder(tmp_path / "two", study(machine="h100-cafe"))
    text = Tags(html(one, two)).text
    assert "one, digits on xeon-4c-ab12" in text
    assert "two, digits on h100-cafe" in text


# ---------------------------------------------------------------- names with HTML in them


def injected(text: str) -> list[tuple[str, dict[str, str | None]]]:
    return [(tag, attributes) for tag, attributes in Tags(text).found if "onerror" in attributes]


def test_names_are_escaped(tmp_path):
    records = study(methods={**METHODS, HOSTILE: 80.0}, machine="<b>m", recipe="digits<u>")
    found = html(folder(tmp_path, records))
    assert injected(found) == []
    assert not [tag for tag, _ in Tags(found).found if tag in ("b", "u")]
    assert HOSTILE in Tags(found).text


def test_control_a_page_that_does_not_escape_is_found(tmp_path, monkeypatch):
    made = folder(tmp_path, study(methods={HOSTILE: 80.0}))
    embedded = page.embedded
    monkeypatch.setattr(page, "embedded", json.dumps)
    assert injected(html(made)), "in the data"
    monkeypatch.setattr(page, "embedded", embedded)
    careless = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **options: careless(**options | {"autoescape": False}))
    assert injected(html(made)), "in the text"


# ---------------------------------------------------------------- one file


def outside(text: str) -> list[str]:
    """Whatever the page would load from elsewhere."""
    loading = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "use": "href"}
    found = [attributes.get(loading[tag]) for tag, attributes in Tags(text).found if tag in loading]
    return [address for address in found if address and not address.startswith("data:")]


def test_the_page_loads_nothing(tmp_path):
    found = html(folder(tmp_path, study()))
    assert outside(found) == []
    assert "default-src 'none'" in found
    assert outside(found.replace("</head>", '<script src="https://a.test/x.js"></script></head>')), "control"


def test_charts_are_valid_vega_lite():
    specs = [
        page_charts.accuracy(page_charts.Cost("macs", "MACs"), "top-1", (0.0, 1.0), True),
        page_charts.forest(["a", "b"], "a", 1.0, (-1.0, 1.0), True),
        page_charts.speedup(True),
        page_charts.tokens(),
        page_charts.layers("mmacs", "million"),
        page_charts.reducers(3),
    ]
    for spec in specs:
        page_charts.alt.LayerChart.from_dict(spec)
    with pytest.raises(Exception, match="blob"):
        page_charts.alt.LayerChart.from_dict({**specs[0], "layer": [{"mark": "blob"}]})


def test_layers_are_means_over_seeds():
    low = record("topk", 0, 90.0)
    high = replace(low, seed=1, macs={**low.macs, "layers": [{"name": "blocks.0.attn", "macs": 700_000}]})
    row = layers.rows([low, high])[SCHEDULES[0], "topk"]
    own = {(layer.block, layer.kind): layer.macs for layer in row.layers}
    assert own["0", "attention"] == 600_000
    assert own["0", "reducer"] == 20_000
    assert row.tokens == [32, 16, 8]


# ---------------------------------------------------------------- what lies beside the records


def test_pictures_are_within_the_page_as_long_as_there_is_room(tmp_path, monkeypatch):
    made = folder(tmp_path, study())
    (made / "pictures").mkdir()
    for name in ("a", "b"):
        Image.effect_noise((64, 64), 90).save(made / "pictures" / f"{name}.png")
    one = len(page_files.compressed(made / "pictures" / "a.png"))
    assert html(made).count("data:image/webp;base64,") == 2
    monkeypatch.setattr(page_files, "MOST_BYTES", one + 1)
    found = html(made)
    assert found.count("data:image/webp;base64,") == 1
    assert '<a href="pictures/b.png">b</a>, not in this file' in found


def test_traces_sessions_and_claims_are_linked(tmp_path):
    made = timed(folder(tmp_path / "mine", study()), study())
    (made / "traces").mkdir()
    (made / "traces" / "top k.123.pt.trace.json").write_text("{}")
    shutil.copy(ROOT / "results" / "claims.json", tmp_path)
    found = html(made)
    assert 'href="traces/top%20k.123.pt.trace.json"' in found
    assert f'href="timing/{MACHINE}.json"' in found
    assert "4. Token Pooling beats PoWER-BERT" in Tags(found).text


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--html"], "nowhere holds no records"),
        (["good", "good", "--html", "--out", "x.html"], "a results folder is given twice"),
        (["good", "good"], "add --html and --out FILE"),
        (["good", "nowhere", "--html"], "the page of several folders needs --out FILE"),
        (["good", "--out", "x.html"], "--out names the page that --html writes"),
        (["good", "--html", "--out", "good"], "is a folder; name the file"),
        (["good", "--html", "--by", "macs"], "--by prints rows"),
        (["good", "--html", "--out", "gone/x.html"], ""),
        (["pictures", "--html"], "picture pictures/pictures/a.png cannot be read"),
        (["claims", "--html"], "claims.json cannot be read"),
        (["timing", "--html"], "is corrupt"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "pictures", "claims", "timing"):
        folder(Path(name), study(seeds=1))
    (Path("pictures") / "pictures").mkdir()
    (Path("pictures") / "pictures" / "a.png").write_bytes(b"no picture")
    (Path("claims") / "claims.json").write_text('[{"claim": 1}]')
    timings.path_in(Path("timing"), MACHINE).parent.mkdir()
    timings.path_in(Path("timing"), MACHINE).write_text("{}")
    code = main(["report", *words])
    printed = capsys.readouterr()
    if not says:  # the folder of the page is made
        assert code == 0
        assert Path(words[-1]).exists()
        return
    assert code == 2
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_record_that_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    made = folder(tmp_path, study())
    with (made / "records" / f"{MACHINE}.jsonl").open("ab") as file:
        file.write(b'{"half": ')
    assert main(["report", str(made), "--html"]) == 1
    assert "line 34" in capsys.readouterr().err
    assert "1 records cannot be read and are left out" in (made / page.NAME).read_text(encoding="utf-8")


def test_without_altair_there_is_one_line(tmp_path, monkeypatch, capsys):
    made = folder(tmp_path, study(seeds=1))
    for name in ("tpbench.report.page_charts", "tpbench.report.page_figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(f"tpbench.report.{name.rpartition('.')[2]}", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)
    assert main(["report", str(made), "--html"]) == 2
    assert "the page needs altair and vl-convert-python: python -m pip install" in capsys.readouterr().err
    from tpbench.cli import run

    run.write_page(Results.of(made), silent=False)  # a run goes on
    assert "no report.html: the page needs altair" in capsys.readouterr().err


# ---------------------------------------------------------------- in a browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Chromium without a screen, with a profile of its own; one for all tests of this file."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The page of a folder that has everything: a timing session, a failed row, a hostile name."""
    records = study(methods={**METHODS, HOSTILE: 80.0, "evit": 85.0})
    records = [replace(each, error="out of memory") if each.method == "evit" else each for each in records]
    made = timed(folder(tmp_path_factory.mktemp("results"), records), records)
    return page.write([made], made / page.NAME)


class Opened:
    """A page in the browser, and what a reader does with it."""

    def __init__(self, browser: Any, path: Path):
        self.browser = browser
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, script: str, *words: Any) -> Any:
        return self.browser.execute_script(script, *words)

    def wait(self, condition: str, *words: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60, poll_frequency=0.05).until(lambda _: self.run(f"return {condition}", *words))

    def draw(self) -> int:
        """Scroll every chart into view and wait for it; how many there are."""
        plots = self.find(".plot")
        for plot in plots:
            self.run("arguments[0].scrollIntoView({block: 'center'})", plot)
            self.wait("arguments[0].dataset.drawn === 'true'", plot)
        return len(plots)

    def find(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def press(self, element: Any) -> None:
        """As the keyboard does: focus, Enter."""
        self.run("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", element)
        self.browser.switch_to.active_element.send_keys("\n")

    def column(self, head: str) -> list[str]:
        """The texts of a column from the top down, of the rows that are shown."""
        return self.run(
            """const heads = [...document.querySelectorAll("#rows th[scope=col]")];
            const place = heads.findIndex((each) => each.textContent.startsWith(arguments[0]));
            const rows = [...document.querySelectorAll("#rows tbody tr")].filter((each) => !each.hidden);
            return rows.map((each) => each.cells[place]?.textContent ?? "");""",
            head,
        )

    def head(self, name: str) -> Any:
        return next(each for each in self.find("#rows th[scope=col]") if each.text.startswith(name))

    def faded(self) -> int:
        """Marks that have faded, in the charts of accuracy."""
        return len(self.find(f'#accuracy path[opacity="{page_charts.FADED}"]'))

    def logged(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requested(self) -> list[str]:
        """The addresses that the page has asked for, itself included."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if each.get("documentURL", "").startswith("file:")]


@pytest.fixture
def opened(browser, written) -> Opened:
    return Opened(browser, written)


def test_a_heading_sorts_by_keyboard_and_blanks_come_last(opened):
    head = opened.head("Fine-tuned")
    for way, sign in (("descending", -1), ("ascending", 1)):
        opened.press(head.find_element("css selector", "button"))
        assert head.get_attribute("aria-sort") == way
        texts = opened.column("Fine-tuned")
        known = [float(text.split()[0]) for text in texts if text and "memory" not in text]
        assert known == sorted(known, key=lambda value: sign * value)
        assert len(set(known)) > 4, "control: there is something to sort"
        assert opened.column("Method")[-2:] == ["evit", "evit"]
    opened.press(opened.head("Method").find_element("css selector", "button"))
    assert head.get_attribute("aria-sort") == "none"
    assert opened.column("Method") == sorted(opened.column("Method"), key=str.lower)


def test_rows_are_chosen_by_name_and_budget(opened):
    everything = opened.column("Method")
    opened.find("[name=find]")[0].send_keys("medoids")
    assert set(opened.column("Method")) == {"wkmedoids", "wkmedoids(finetune_seed=1)"}
    opened.run("document.querySelector('#choose [name=schedule]').value = arguments[0]", SCHEDULES[1])
    opened.run("document.querySelector('#choose').dispatchEvent(new Event('input'))")
    assert set(opened.column("Schedule")) == {SCHEDULES[1]}
    assert opened.find("#choose output")[0].text == f"2 of {len(everything)} rows"
    opened.press(opened.find("#choose [type=reset]")[0])
    opened.wait("document.querySelectorAll('#rows tbody tr[hidden]').length === 0")
    assert opened.column("Method") == everything


def test_a_family_is_chosen_in_table_and_charts_alike(opened):
    opened.draw()
    assert opened.faded() == 0
    button = next(each for each in opened.find(".family") if each.text == "merging")
    opened.press(button)
    assert button.get_attribute("aria-pressed") == "true"
    assert set(opened.column("Method")) == {"tome"}
    ids = {int(row.get_attribute("data-id")) for row in opened.find("#rows tbody tr:not([hidden])")}
    opened.wait(f"document.querySelectorAll('#accuracy path[opacity=\"{page_charts.FADED}\"]').length > 0")
    signals = opened.run("return [...window.tpbench.views.values()].map((view) => Object.keys(view.signal('on')))")
    assert len(signals) == len(opened.find(".plot"))
    assert all({int(id) for id in own} == ids for own in signals)
    opened.press(button)
    opened.wait(f"document.querySelectorAll('#accuracy path[opacity=\"{page_charts.FADED}\"]').length === 0")


def test_a_point_says_what_its_row_says(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    opened.draw()
    place = opened.run(
        """const view = window.tpbench.views.get("macs-0");
        const plot = document.querySelector("[data-chart=macs-0]");
        plot.scrollIntoView({ block: "center" });
        const named = (each) => each.__data__?.datum?.method?.startsWith("topk<");
        const points = [...plot.querySelectorAll("path")].filter(named);
        const box = points[0].getBoundingClientRect();
        return [points.length, Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)];"""
    )
    assert place[0] == 2
    actions = ActionChains(opened.browser)
    actions.w3c_actions.pointer_action.move_to_location(place[1], place[2])
    actions.perform()
    opened.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    said = opened.find("#vg-tooltip-element")[0].text
    assert HOSTILE in said
    rows = [text for name, text in zip(opened.column("Method"), opened.column("Fine-tuned")) if name == HOSTILE]
    assert sum(text in said for text in rows) == 1, "its accuracy with the interval, as the table has it"
    assert all(" ± " in text for text in rows)
    assert "other" in said
    assert opened.run("return window.hit === undefined"), "the hostile name is text"


def test_the_selects_decide_the_charts_of_layers(opened):
    opened.draw()

    def shown(data: str) -> list[Any]:
        return opened.run("return window.tpbench.views.get(arguments[0]).data(arguments[1])", *data.split())

    before = {each["id"] for each in shown("mmacs-0 layers")}
    assert {each["tokens"] for each in shown("tokens-0 tokens")} == {64, 32, 16, 8}
    opened.run(
        """const form = document.querySelector(".pick");
        const options = [...form.elements.method.options];
        form.elements.method.selectedIndex = options.findIndex((each) => each.text === "tome");
        form.elements.method.dispatchEvent(new Event("change", { bubbles: true }));"""
    )
    opened.wait("window.tpbench.views.get('mmacs-0').data('layers').every((row) => row.tooltip.title !== 'wkmedoids')")
    after = {each["id"] for each in shown("mmacs-0 layers")}
    assert len(after - before) == 1
    reducer = [each for each in shown("layer-ms-0 layers") if each["kind"] == "reducer" and not each["base"]]
    assert [each["mmacs"] for each in reducer] == [0.02]


def test_the_console_is_silent_and_nothing_is_fetched(opened, written):
    assert opened.draw() == 10
    opened.run("scrollTo(0, 0)")
    assert opened.logged() == []
    asked = opened.requested()
    assert written.as_uri() in asked
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
    assert [address for address in asked if address.startswith("file:")] == [written.as_uri()]


def test_control_what_a_page_fetches_and_logs_is_seen_and_refused(opened):
    opened.run("console.error('heard'); const image = new Image(); image.src = 'http://127.0.0.1:9/x'; return 0")
    opened.run("document.body.append(document.createElement('i'))")
    opened.wait("true")
    said = " ".join(opened.logged())
    assert "heard" in said
    assert "Content Security Policy" in said


def test_the_page_is_dark_where_the_reader_is(opened):
    opened.draw()

    def colours() -> tuple[str, str]:
        background = opened.run("return getComputedStyle(document.documentElement).backgroundColor")
        return background, opened.find(".family path")[0].get_attribute("fill")

    light = colours()
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    opened.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        opened.wait("document.querySelector('.family path').getAttribute('fill') !== arguments[0]", light[1])
        assert colours()[0] != light[0]
        opened.draw()
        assert opened.logged() == []
    finally:
        opened.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_fits_a_phone(browser, written):
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        opened = Opened(browser, written)
        opened.draw()
        assert opened.run("return document.documentElement.scrollWidth") <= 390
        widths = opened.run("return [...document.querySelectorAll('.plot svg.marks')].map((each) => each.clientWidth)")
        assert max(widths) < 390
        assert min(widths) > 250
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_two_thousand_records_stay_usable(browser, tmp_path):
    methods = {f"topk(setting={number})": 60.0 + number for number in range(20)}
    records = [record("none", 0, 99.0)]
    for place in range(100):
        schedule = f"0.{100 + place}@0,1,2"
        records += [record(name, 0, top1 + place / 10, schedule) for name, top1 in methods.items()]
    assert len(records) > 2000
    path = page.write([folder(tmp_path, records)], tmp_path / page.NAME)
    assert path.stat().st_size < LARGEST
    opened = Opened(browser, path)
    assert len(opened.column("Method")) == len(records)
    opened.press(opened.head("Fine-tuned").find_element("css selector", "button"))
    texts = opened.column("Fine-tuned")
    assert float(texts[0]) == max(map(float, texts))
    opened.find("[name=find]")[0].send_keys("setting=7")
    assert len(opened.column("Method")) == 100
    assert opened.logged() == []
