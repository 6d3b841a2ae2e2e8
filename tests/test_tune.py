"""Tuning: the same trials for every method, on seeds that are not reported; the recipe uses what was found."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny_recipe

from tpbench import recipe as recipes
from tpbench import tuning
from tpbench.bench.tune import best_trial
from tpbench.cli import DONE, FAILED, WRONG, main
from tpbench.errors import CellFailed, Diverged, OutOfTime
from tpbench.record import read_all
from tpbench.tuning import TRIALS, Tuned, Tuning, space

TINY = Path(__file__).parent / "tiny_recipe.py"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A recipe file beside its tuning file, of two methods."""
    folder = tmp_path_factory.mktemp("tune")
    path = folder / "mine.py"
    shutil.copy(TINY, path)
    words = ["tune", "--recipe", str(path), "--methods", "sit,random", "--out", str(folder / "results")]
    assert main(words) == DONE
    return path


def test_every_trial_differs_in_its_learning_rate():
    optim = tiny_recipe.recipe().finetune
    rates = [lines.get("lr", optim.lr) for lines in space(optim)]
    assert len(rates) == 1 + len(TRIALS) == 8
    assert len({round(rate, 12) for rate in rates[1:]}) == len(TRIALS)


def test_both_methods_had_the_same_trials_and_the_best_is_used(tuned):
    found = tuning.read(recipes.tuning_path(str(tuned)))
    assert set(found.methods) == {"sit", "random"}
    assert min(found.seeds) >= 10_000, "no benchmark reports these seeds"
    for method in found.methods.values():
        assert len(method.losses) == len(found.space) == 8
        assert method.losses[method.chosen] == min(method.losses)
    used = recipes.load(str(tuned))
    assert used.tuned == found.lines()
    assert used.digest == tiny_recipe.recipe().digest, "the digest is of the recipe, not of its tuning"
    assert recipes.load(str(tuned), tuned=False).tuned == {}


def test_a_recipe_may_be_tuned_as_another_one(tmp_path, capsys):
    nowhere = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    theirs = recipes.load("cifar10-small").tuned
    own = recipes.load("cifar10-small-w96")
    assert own.tuned == theirs, "any method may be run"
    assert own.digest == recipes.load("cifar10-small-w96", tuned=False).digest
    assert recipes.load("cifar10-small-w96", tuned=False).tuned == {}
    changed = recipes.load("cifar10-small-w96", lines=["finetune.lr=1e-5"])
    assert changed.finetune_of("wkmedoids").lr == 1e-5, "--set is not overruled by a tuning without it"
    assert main(["run", "--recipe", "cifar10-small-w96", "--set", "finetune.lr=1e-5", *nowhere]) == WRONG
    assert "is not tuned: cifar10_small.tuned.json was tuned without --set" in capsys.readouterr().err


def test_tuning_again_keeps_what_is_known_and_adds_a_method(tuned, capsys):
    before = tuning.read(recipes.tuning_path(str(tuned)))
    words = ["tune", "--recipe", str(tuned), "--methods", "avgpool", "--out", str(tuned.parent / "results")]
    assert main(words) == DONE
    after = tuning.read(recipes.tuning_path(str(tuned)))
    assert after.methods["sit"] == before.methods["sit"]
    assert set(after.methods) == {"sit", "random", "avgpool"}
    assert "avgpool" in capsys.readouterr().out


def test_a_record_says_what_was_tuned_and_is_made_again_after_another_tuning(tuned, tmp_path):
    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    kept = recipes.tuning_path(str(path))
    found = tuning.read(recipes.tuning_path(str(tuned)))
    chosen = replace(found, methods={"random": Tuned(1, *found_losses(found))})
    kept.write_text(json.dumps(asdict(chosen)))
    words = ["run", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "out")]
    assert main(words) == DONE
    first = read_all(tmp_path / "out")[0]
    assert first.finetune == found.space[1]
    kept.write_text(json.dumps(asdict(replace(chosen, methods={"random": Tuned(0, *found_losses(found))}))))
    assert main(words) == DONE
    second = read_all(tmp_path / "out")[0]
    assert second.finetune == {}
    assert second.metrics["fine_tuned_loss"] != first.metrics["fine_tuned_loss"], "control: the lines do something"


def test_a_trial_sees_as_many_images_as_the_recipe_says(tmp_path, monkeypatch):
    from tpbench.bench import tune

    seen = []

    def training(_model, conditions, *_words, **_named):
        seen.append(len(conditions.data.train))

    monkeypatch.setattr(tune, "train", training)
    path = tmp_path / "mine.py"
    lines = TINY.read_text()
    for images, expected in ((None, 128), (48, 48), (4000, 128)):
        path.write_text(lines.replace("seeds=1", f"seeds=1, trial_images={images}"))
        words = ["tune", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / f"out{images}")]
        assert main(words) == DONE
        assert set(seen) == {expected}
        assert len(seen) == 8
        seen.clear()
        found = tuning.read(recipes.tuning_path(str(path)))
        assert found.trial_images == images
        recipes.tuning_path(str(path)).unlink()


def test_a_tuning_at_another_schedule_is_not_added_to(tuned, tmp_path, capsys):
    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    shutil.copy(recipes.tuning_path(str(tuned)), recipes.tuning_path(str(path)))
    words = ["tune", "--recipe", str(path), "--methods", "random", "--set", 'schedules=["0.4@0,1"]']
    assert main([*words, "--out", str(tmp_path / "out")]) == WRONG
    assert "delete it to tune at 0.4@0,1" in capsys.readouterr().err
    recipes.tuning_path(str(path)).unlink()
    shutil.copytree(tuned.parent / "results", tmp_path / "results")
    assert main([*words, "--out", str(tmp_path / "results")]) == WRONG, "neither are its trials"
    assert "random.json were made at" in capsys.readouterr().err


def test_a_time_limit_keeps_finished_methods(tuned, tmp_path, capsys):
    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    shutil.copytree(tuned.parent / "results", tmp_path / "results")
    words = ["tune", "--recipe", str(path), "--methods", "random,topk", "--out", str(tmp_path / "results")]
    assert main([*words, "--time-limit", "0.001s"]) == DONE
    assert "1 of 2 methods are left; the same command continues" in capsys.readouterr().err
    assert not recipes.tuning_path(str(path)).exists(), "no methods that are tuned beside others that are not"
    assert main(words) == DONE
    assert set(tuning.read(recipes.tuning_path(str(path))).methods) == {"random", "topk"}


def test_a_stop_in_the_middle_of_a_method_loses_one_trial(tuned, tmp_path, monkeypatch):
    from tpbench.bench import tune

    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    words = ["tune", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "out")]
    tried = []
    whole = tune.try_one

    def three(*given, lines, **named):
        if len(tried) == 3:
            raise OutOfTime
        tried.append(lines)
        return whole(*given, lines=lines, **named)

    monkeypatch.setattr(tune, "try_one", three)
    assert main(words) == DONE
    assert len(tried) == 3, "control: it stopped"
    monkeypatch.setattr(
        tune, "try_one", lambda *given, lines, **named: tried.append(lines) or whole(*given, lines=lines, **named)
    )
    assert main(words) == DONE
    assert len(tried) == 8
    assert len({json.dumps(lines) for lines in tried}) == 8, "each was tried once"
    found, want = (tuning.read(recipes.tuning_path(str(which))).methods["random"] for which in (path, tuned))
    assert found == want, "the numbers of an uninterrupted tuning"


def test_a_method_that_is_tuned_needs_no_base(tuned, tmp_path, monkeypatch):
    from tpbench.bench import tune

    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    shutil.copytree(tuned.parent / "results", tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "work")
    monkeypatch.setattr(tune, "base_job", None)
    assert main(["tune", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "results")]) == DONE
    assert set(tuning.read(recipes.tuning_path(str(path))).methods) == {"random"}


def test_what_another_command_has_tuned_meanwhile_stays(tuned, tmp_path, monkeypatch):
    from tpbench.bench import tune

    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    theirs = tuning.read(recipes.tuning_path(str(tuned)))
    own = recipes.tuning_path(str(path))

    def side_by_side(jobs, *, context, **_named):
        """Do the jobs, and meanwhile let another command end."""
        for job in jobs:
            job.function(context, job.argument, lambda *_words, **_named: None)
        own.write_text(json.dumps(asdict(replace(theirs, methods={"sit": theirs.methods["sit"]}))))

    monkeypatch.setattr(tune, "side_by_side", side_by_side)
    assert main(["tune", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "out")]) == DONE
    assert set(tuning.read(own).methods) == {"sit", "random"}


@pytest.mark.parametrize(("error", "code"), [(Diverged("the loss"), DONE), (CellFailed("out of memory"), FAILED)])
def test_only_a_loss_that_diverges_is_a_trial_without_numbers(tmp_path, monkeypatch, error, code):
    from tpbench.bench import tune

    def training(*_words, **_named):
        raise error

    monkeypatch.setattr(tune, "train", training)
    path = tmp_path / "mine.py"
    shutil.copy(TINY, path)
    assert main(["tune", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "out")]) == code
    assert recipes.tuning_path(str(path)).exists() == (code == DONE)


def found_losses(found: Tuning) -> tuple[list, list]:
    return found.methods["random"].losses, found.methods["random"].top1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": "other"}, "is for recipe 'other'"),
        ({"digest": "0" * 12}, "another version of recipe"),
        ({"space": [{}]}, "another space of trials"),
        ({"seeds": ["x"]}, "cannot be used"),
        ({"trial_images": 40}, "trials on 40 images, not all"),
    ],
)
def test_a_tuning_of_something_else_is_refused_by_name(tuned, tmp_path, capsys, change, reason):
    path = tmp_path / "mine.py"
    shutil.copy(tuned, path)
    content = json.loads(recipes.tuning_path(str(tuned)).read_text())
    recipes.tuning_path(str(path)).write_text(json.dumps(content | change))
    assert main(["run", "--recipe", str(path), "--methods", "random", "--out", str(tmp_path / "out")]) == WRONG
    error = capsys.readouterr().err
    assert reason in error
    assert "mine.tuned.json" in error


def test_the_best_trial_is_the_one_of_smallest_finite_loss():
    assert best_trial([0.5, None, 0.3, 0.4]) == 2
    assert best_trial([math.nan, 0.5]) == 1
    assert best_trial([None, None]) == 0
    assert best_trial([0.5, 0.5]) == 0, "the recipe's own lines where nothing is better"
