"""`--set`: lines of a recipe that the command line changes; `--quiet` and `--json` of the verbs beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tpbench import overrides
from tpbench import recipe as recipes
from tpbench.cli import main
from tpbench.errors import UsageError
from tpbench.recipe import load, tuning_path
from tpbench.record import read_all
from tpbench.report.contrast import declared

TINY = str(Path(__file__).with_name("tiny_recipe.py"))


def changed(*lines: str) -> recipes.Recipe:
    return load("smoke", tuned=False, lines=lines)


# ------------------------------------------------------------------------------------------ values and types


@pytest.mark.parametrize(
    ("line", "read", "value"),
    [
        ("finetune.epochs=5", lambda recipe: recipe.finetune.epochs, 5),
        ("finetune.lr=1e-3", lambda recipe: recipe.finetune.lr, 0.001),
        ("finetune.lr=1", lambda recipe: recipe.finetune.lr, 1.0),
        ("finetune.compile=true", lambda recipe: recipe.finetune.compile, True),
        ("finetune.ema=0.99", lambda recipe: recipe.finetune.ema, 0.99),
        ("finetune.ema=null", lambda recipe: recipe.finetune.ema, None),
        ("finetune.optimizer=sgd", lambda recipe: recipe.finetune.optimizer, "sgd"),
        ('finetune.optimizer="sgd"', lambda recipe: recipe.finetune.optimizer, "sgd"),
        ("finetune.optimizer='sgd'", lambda recipe: recipe.finetune.optimizer, "sgd"),
        ("data.mean=[0.1, 0.2]", lambda recipe: recipe.data.mean, (0.1, 0.2)),
        ("measure.batch_sizes=[1,8]", lambda recipe: recipe.measure.batch_sizes, (1, 8)),
        ("model_args.embed_dim=64", lambda recipe: recipe.model_args["embed_dim"], 64),
        ("model_args.drop_path_rate=0.1", lambda recipe: recipe.model_args["drop_path_rate"], 0.1),
        ("knobs.wkmedoids.init=grid", lambda recipe: recipe.knobs["wkmedoids"], {"init": "grid"}),
        ("search.topk.optim.epochs=1", lambda recipe: recipe.search["topk"].optim.epochs, 1),
        ("pretrained=weights.pth", lambda recipe: recipe.pretrained, "weights.pth"),
        ("schedules=['0.7@0,1']", lambda recipe: recipe.schedules, ("0.7@0,1",)),
        ("finetune.weight_decay = 0.1", lambda recipe: recipe.finetune.weight_decay, 0.1),
    ],
)
def test_a_line_gets_its_value(line, read, value) -> None:
    plain = changed()
    found = changed(line)
    assert read(found) == value
    assert type(read(found)) is type(value)
    assert replace(found, name=plain.name) != plain or value is None  # which it is already
    for part in ("data", "base", "measure"):
        if not line.startswith(part):
            assert getattr(found, part) == getattr(plain, part), "nothing else is changed"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("finetune.epochs=5.5", "expected a whole number, as in finetune.epochs=1"),
        ("finetune.epochs=true", "expected a whole number"),
        ("finetune.epochs=five", "expected a whole number"),
        ("finetune.lr=NaN", "expected a number"),
        ("finetune.lr=inf", "expected a number"),
        ("finetune.lr=2020-01-01", "expected a number"),
        ("finetune.compile=1", "expected true or false"),
        ("finetune.ema=none", "expected a number or null"),
        ("data.mean=0.5", "expected a list of a number"),
        ("model_args=5", "expected an object"),
        ("finetune=5", "is a group of lines: finetune.epochs, finetune.lr"),
        ("finetune.epoch=5", "there is no line 'epoch'; did you mean epochs"),
        ("fine.epochs=5", "there is no line 'fine'; did you mean"),
        ("finetune.epochs.more=5", "finetune.epochs is a single value and has no lines in it"),
        ("search.tome.optim.epochs=1", "there is no 'tome'"),
        ("search.topk.optim.epoch=1", "did you mean epochs"),
        ("name=other", "it names the results"),
        ("tuned.topk.lr=1", "tpbench tune"),
        ("reference=topk", "reports read it from the recipe"),
        ("margin=2", "reports read it from the recipe"),
        ("finetune.epochs", "expected a line and its value, as in finetune.epochs=5"),
        ("=5", "expected a line and its value"),
        ("finetune.epochs=", "expected a line and its value"),
        ("..=5", "there is no line ''"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(line: str, says: str, capsys) -> None:
    assert main(["recipe", "smoke", "--set", line]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1


def test_every_field_is_covered_by_its_type() -> None:
    """Each line of the default recipe, set to what it is already, is taken as it is."""
    from dataclasses import asdict

    from tpbench.cli.recipe import dotted_lines

    plain = changed()
    for path, value in dotted_lines(asdict(plain)):
        if path.split(".")[0] in overrides.NOT_OVERRIDABLE:
            continue
        line = overrides.Line(path, json.dumps(value))
        assert overrides.apply(plain, line) == plain, path


# ------------------------------------------------------------------------------------------ name and digest


def test_the_digest_and_the_name_say_what_was_changed() -> None:
    plain = changed()
    found = changed("finetune.lr=0.001", "finetune.epochs=5")
    assert found.name == "smoke+finetune.epochs=5+finetune.lr=0.001"
    assert found.digest != plain.digest
    assert found.digest == changed("finetune.epochs=5", "finetune.lr=1e-3").digest, "order and spelling do not count"
    assert found.digest != changed("finetune.epochs=6", "finetune.lr=1e-3").digest
    assert changed(f"finetune.epochs={plain.finetune.epochs}").name == plain.name, "nothing was changed"


def test_lines_outside_the_digest_leave_the_name() -> None:
    for line in ("workers=7", "seeds=9", "schedules=['0.7@0']", "data.root=there"):
        found = changed(line)
        assert (found.name, found.digest) == (changed().name, changed().digest)
        assert found != changed()


def test_a_line_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="given twice: 5 and 6"):
        changed("finetune.epochs=5", "finetune.epochs=6")


def test_the_contrast_is_that_of_the_plain_recipe() -> None:
    assert declared("digits+finetune.epochs=5") == declared("digits")


def test_a_tuning_belongs_to_the_recipe_with_its_lines(tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.py"
    shutil.copy(TINY, mine)
    plain, other = load(str(mine)), load(str(mine), lines=["finetune.epochs=1"])
    assert tuning_path(str(mine), plain) == tmp_path / "mine.tuned.json"
    assert tuning_path(str(mine), other) == tmp_path / f"mine+{other.digest}.tuned.json"
    (tmp_path / "mine.tuned.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be used"):
        load(str(mine))  # control: the plain recipe reads it
    assert load(str(mine), lines=["finetune.epochs=1"]).tuned == {}
    assert main(["run", "--recipe", str(mine), "--set", "finetune.epochs=1", "--methods", "none", "--plan"]) == 0
    assert "mine.tuned.json was tuned without --set and is not used" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ the verbs


def test_recipe_prints_the_changed_line(capsys) -> None:
    assert main(["recipe", "smoke", "--set", "finetune.epochs=7"]) == 0
    out = capsys.readouterr().out
    assert "\nfinetune.epochs = 7\n" in out
    assert f"# digest: {changed('finetune.epochs=7').digest}" in out
    assert main(["recipe", "--set", "finetune.epochs=7"]) == 2
    assert "needs the name of a recipe" in capsys.readouterr().err


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with an override, in the folder that is named after it."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code = main(["run", "--recipe", TINY, "--methods", "none,topk", "--set", "finetune.epochs=1", "--quiet"])
        assert code == 0
    return place / "results" / "tiny-finetune.epochs-1"


def test_a_run_with_an_override_says_it_everywhere(results: Path) -> None:
    records = read_all(results)
    assert {record.recipe for record in records} == {"tiny+finetune.epochs=1"}
    assert all(record.training["epochs"] == 1 for record in records)
    assert "Recipe tiny+finetune.epochs=1 (" in (results / "README.md").read_text(encoding="utf-8")


def test_it_never_writes_over_results_of_the_plain_recipe(results: Path, capsys) -> None:
    words = ["run", "--recipe", TINY, "--methods", "none,topk", "--out", str(results)]
    before = sorted((path, path.read_bytes()) for path in (results / "records").rglob("*.json*"))
    assert main(words) == 2
    assert "holds results of recipe 'tiny+finetune.epochs=1', not 'tiny'" in capsys.readouterr().err
    assert main([*words, "--fresh"]) == 2
    assert main([*words, "--set", "finetune.epochs=3"]) == 2
    assert before == sorted((path, path.read_bytes()) for path in (results / "records").rglob("*.json*"))
    assert main([*words, "--set", "finetune.epochs=1"]) == 0, "control: the same override continues"


def test_quiet_is_quiet_and_json_is_one_document(results: Path, capfd) -> None:
    words = ["run", "--recipe", TINY, "--methods", "none,topk", "--set", "finetune.epochs=1", "--out", str(results)]
    assert main([*words, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "Method" in out, "control"
    assert "have been measured before" in err, "control"
    assert main([*words, "--json"]) == 0
    whole = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    (machine,) = whole["machines"]
    assert (whole["cells"], whole["left"], whole["failed"], machine["recipe"]) == (2, 0, [], "tiny+finetune.epochs=1")
    assert {row["method"] for row in machine["rows"]} == {"none", "topk"}
    assert machine["rows"][0]["fine_tuned_half_width_points"] is None
    assert main(["report", str(results), "--json"]) == 0
    report = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert report["machines"] == whole["machines"]
    assert all(Path(path).exists() for path in report["paths"])
    assert main(["report", str(results), "--quiet", "--by", "macs"]) == 0
    assert capfd.readouterr() == ("", "")


def test_json_of_a_run_that_trains_holds_nothing_else(tmp_path: Path, capfd) -> None:
    words = ["run", "--recipe", TINY, "--methods", "none", "--set", "base.epochs=1", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["cells"] == 1
    assert "[1/1]" in err, "progress goes to standard error as ever"


def test_what_a_library_prints_does_not_reach_a_document(capfd) -> None:
    import os

    from tpbench.cli.json_output import stdout_to_stderr

    with stdout_to_stderr(True):
        print("from Python")
        os.write(1, b"from C\n")
    with stdout_to_stderr(False):
        print("kept")
    out, err = capfd.readouterr()
    assert out == "kept\n"
    assert "from Python" in err
    assert "from C" in err
