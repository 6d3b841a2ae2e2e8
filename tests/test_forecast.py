"""Plans: what is printed before anything runs is counted from the models, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_recipe
import torch

from tpbench import registry, schedule
from tpbench.bench import forecast
from tpbench.bench.models import build_base, check_rows
from tpbench.bench.plan import Plan
from tpbench.cli import DONE, WRONG, main
from tpbench.errors import UsageError
from tpbench.recipe import load

TINY = str(Path(__file__).with_name("tiny_recipe.py"))


def planned(tmp_path: Path, **lines) -> forecast.Forecast:
    recipe = replace(tiny_recipe.recipe(), **lines)
    variants, schedules = registry.variants("none,topk"), schedule.parse_all("0.5@0,1;latency=0.5@0,1")
    return forecast.forecast(
        Plan(
            recipe=recipe,
            out=tmp_path / "out",
            device="cpu",
            variants=tuple(variants),
            reducing_schedules=tuple(schedules),
            seeds=2,
        )
    )


def test_a_plan_is_counted_by_hand(tmp_path):
    what = planned(tmp_path)
    assert [(row.method, row.schedule) for row in what.rows] == [
        ("none", "none"),
        ("topk", "0.5@0,1"),
        ("topk", "latency=0.5@0,1"),
    ]
    none, topk, clock = (row.macs for row in what.rows)
    assert (none, clock) == (what.base_macs, what.base_macs / 2)
    assert 0.3 < topk / none < 0.9
    assert what.train_images == 128
    assert what.train_macs == pytest.approx(2 * 128 * 3 * (3 * none + 2 * (none + topk + clock)))
    assert what.seconds(none, 2) == pytest.approx(2 * 128 / what.images_per_second)
    longer = replace(tiny_recipe.recipe().finetune, epochs=4)
    assert planned(tmp_path, finetune=longer).train_macs > what.train_macs, "control"
    assert not list(tmp_path.iterdir())


def test_a_plan_is_printed_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--recipe", TINY, "--methods", "none,topk", "--plan"]) == DONE
    out = capsys.readouterr().out
    assert "2 cells" in out
    assert "measured here: the base at" in out
    assert out.count("estimated: ") == (1 if torch.cuda.is_available() else 2)
    assert "not included" in out
    assert not list(tmp_path.iterdir())


def test_a_pretrained_recipe_is_planned_without_weights_or_images(capsys, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refused)
    variants = tuple(registry.variants("none"))
    plan = Plan(recipe=load("imagenet-deit-ti"), out=Path("out"), device="cpu", variants=variants, seeds=1)
    with pytest.raises(UsageError, match="nothing is downloaded"):  # control: with its weights it would be
        check_rows(plan, plan.rows())
    assert main(["run", "--recipe", "imagenet-deit-ti", "--methods", "none,topk", "--seeds", "1", "--plan"]) == DONE
    assert "1,255,544 training images" in capsys.readouterr().out


def test_a_plan_prints_the_digest_of_the_records_that_a_run_would_write(capsys):
    assert main(["run", "--recipe", "imagenet-deit-ti", "--methods", "none", "--plan"]) == DONE
    assert f"recipe imagenet-deit-ti ({load('imagenet-deit-ti').digest})" in capsys.readouterr().out


def test_a_smaller_batch_of_a_dry_run_can_be_mixed():
    """72 images are halved to 18 and no further, because mixup pairs images."""
    recipe = tiny_recipe.recipe()
    recipe = replace(recipe, base=replace(recipe.base, batch_size=72, mixup=0.8))
    model = build_base(recipe, seed=0)
    assert forecast.dry_run(recipe, model, base_macs=10**12, where=torch.device("cpu"))[1] == 18


def test_what_cannot_be_counted_is_said(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom tpbench.recipes import cifar10\n"
        "def recipe():\n    whole = cifar10.recipe()\n"
        "    return replace(whole, data=replace(whole.data, root='nowhere', train_images=None))\n"
    )
    assert main(["run", "--recipe", str(tmp_path / "mine.py"), "--methods", "none", "--plan"]) == WRONG
    assert "cannot plan without images" in capsys.readouterr().err


def test_durations_have_their_unit():
    assert [forecast.duration(s) for s in (3.21, 150, 5400)] == ["3.2 s", "2.5 min", "1.5 h"]
