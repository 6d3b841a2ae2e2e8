"""Rows that are evaluated off the shelf alone: which they are, when they run, and what a record of one stands for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_recipe

from tpbench import registry, schedule
from tpbench.bench import runner
from tpbench.bench.plan import Plan
from tpbench.bench.progress import Progress
from tpbench.bench.workspace import Workspace
from tpbench.cli import DONE, main
from tpbench.cli.rows import with_controls
from tpbench.errors import UsageError
from tpbench.recipe import Recipe, load
from tpbench.record import read_all
from tpbench.report import frame
from tpbench.report.first import remarks

SCHEDULES = ("0.5@0,1", "0.7@0,1", "0.8@0,1")
SOME = {"0.7@0,1": ("topk",), "0.8@0,1": ()}
TINY = str(Path(__file__).with_name("tiny_recipe.py"))


def recipe(**lines) -> Recipe:
    tiny = tiny_recipe.recipe()
    short = replace(tiny.base, epochs=1, warmup_epochs=0.0)
    return replace(
        tiny, schedules=SCHEDULES, base=short, finetune=short, measure=replace(tiny.measure, repeats=0), **lines
    )


def plan(tmp_path, own: Recipe, methods: str = "none,topk,random,topk(finetune_seed=1)") -> Plan:
    return Plan(
        recipe=own,
        out=tmp_path / "out",
        device="cpu",
        variants=tuple(registry.variants(methods)),
        reducing_schedules=tuple(schedule.parse_all(own.schedules)),
        seeds=own.seeds,
    )


def names(rows) -> list[str]:
    return [f"{row.variant} {row.schedule.text}" for row in rows]


def test_the_base_comes_first_then_the_shelf_then_schedule_by_schedule(tmp_path):
    cells = plan(tmp_path, recipe(finetuned=SOME, seeds=2)).cells
    assert names(cells[: len(cells) // 2]) == [
        "none none",
        "random 0.7@0,1",
        "topk 0.8@0,1",
        "random 0.8@0,1",
        "topk 0.5@0,1",
        "random 0.5@0,1",
        "topk(finetune_seed=1) 0.5@0,1",
        "topk 0.7@0,1",
    ]
    assert {cell.seed for cell in cells[: len(cells) // 2]} == {0}, "all of one seed first"
    every = plan(tmp_path, recipe()).cells
    assert len(every) == 1 + 3 * 3, "control: by default every row is fine-tuned"
    assert names(every)[:4] == ["none none", "topk 0.5@0,1", "random 0.5@0,1", "topk(finetune_seed=1) 0.5@0,1"]


def test_the_reference_comes_first_at_every_schedule(tmp_path):
    cells = plan(tmp_path, recipe(seeds=1), methods="none,random,topk,wkmedoids").cells
    own = [str(cell.variant) for cell in cells]
    assert own == ["none", *["wkmedoids", "random", "topk"] * 3]
    cells = plan(tmp_path, recipe(seeds=1, reference="topk"), methods="none,random,topk,wkmedoids").cells
    assert [str(cell.variant) for cell in cells][1:4] == ["topk", "random", "wkmedoids"], "control"


def test_jobs_come_in_the_order_of_the_cells_each_after_its_base(tmp_path):
    own = plan(tmp_path, recipe(finetuned=SOME, seeds=2))
    jobs = list(runner.benchmark(Workspace(own), set(own.cells)))
    assert [job.argument for job in jobs if job.function is runner.run_cell] == list(own.cells)
    bases = [number for number, job in enumerate(jobs) if job.function is runner.train_base]
    assert [jobs[number].argument for number in bases] == [0, 1]
    for number, job in enumerate(jobs):
        if job.function is runner.run_cell:
            assert job.needs == (jobs[bases[job.argument.seed]].name,)
            assert number > bases[job.argument.seed]
    some = set(own.cells[-3:-1])
    jobs = list(runner.benchmark(Workspace(own), some))
    assert [job.argument for job in jobs if job.function is runner.run_cell] == list(own.cells[-3:-1]), "control"


def test_a_schedule_that_the_recipe_has_not_is_refused():
    with pytest.raises(UsageError, match=r"names schedules that are not its own: 0\.6@0,1"):
        recipe(finetuned={"0.6@0,1": ()})


def test_which_rows_are_fine_tuned_is_no_part_of_the_digest():
    assert recipe(finetuned=SOME).digest == recipe().digest


def test_rows_of_the_shelf_are_measured_and_fine_tuned_once_the_recipe_asks(tmp_path):
    first = plan(tmp_path, recipe(finetuned=SOME), "none,topk,random")
    records = runner.run(first, False, Progress()).records
    assert len(records) == len(first.cells)
    for record in records:
        tuned = record.method == "none" or (record.method, record.schedule) in {
            ("topk", "0.5@0,1"),
            ("random", "0.5@0,1"),
            ("topk", "0.7@0,1"),
        }
        assert ("fine_tuned_top1" in record.metrics) == bool(record.training) == tuned
        assert "off_the_shelf_top1" in record.metrics
        assert ("fine_tuned" in record.outcomes) == tuned
        assert "off_the_shelf" in record.outcomes
    compared = frame.compare(records)[0]
    table = compared.frame
    assert {text: own.stage for text, own in compared.tables.items()} == {
        "0.5@0,1": "fine_tuned",
        "0.7@0,1": "fine_tuned",
        "0.8@0,1": "off_the_shelf",
    }
    assert compared.tables["0.7@0,1"].left_out == ("random",)
    assert any("3 of 7 records were not fine-tuned" in line for line in remarks(compared))
    shelf = table[table["schedule"] == "0.8@0,1"]
    assert shelf["off_the_shelf_top1_percent"].notna().all()
    assert shelf["fine_tuned_top1_percent"].isna().all()
    more = plan(tmp_path, recipe(finetuned={"0.8@0,1": ()}), "none,topk,random")
    again = {(r.method, r.schedule): r for r in runner.run(more, False, Progress()).records}
    before = {(r.method, r.schedule): r for r in records}
    changed = {key for key in again if again[key] != before[key]}
    assert changed == {("random", "0.7@0,1")}, "only what is asked for anew runs"
    fewer = {(r.method, r.schedule): r for r in runner.run(first, False, Progress()).records}
    assert fewer == again, "a fine-tuned record serves a row of the shelf too"


@pytest.mark.parametrize(
    "name", ["cifar10-cpu", "cifar10-cpu-w64", "cifar10-cpu-w96", "cifar10-cpu-w192", "cifar10-small"]
)
def test_the_study_on_two_cores_holds_what_its_claims_need(name):
    own = load(name, tuned=False)
    variants = {str(variant) for variant in with_controls(registry.variants(",".join(own.methods)), own)}
    tuned = {text: {one for one in variants if own.finetune_epochs(one, text)} for text in own.schedules}
    assert tuned["macs=0.5@0,1,2"] == tuned["macs=0.3@0,1,2"] == variants
    claimed = tuned["macs=0.9@0,1,2"]
    assert {"none", "wkmedoids", "kmedoids", "topk"} <= claimed == tuned["macs=0.7@0,1,2"]
    assert sum(not own for own in tuned.values()) == 2
    assert len(own.schedules) >= 5
    assert own.data.train_limit is None
    assert own.data.test_limit is None
    if name in ("cifar10-cpu", "cifar10-small"):
        assert {"wkmedoids(iterations=10)", "wkmedoids(init=grid)"} <= claimed < variants
        assert "wkmedoids(finetune_seed=1)" in variants - claimed


def test_the_flag_evaluates_every_method_off_the_shelf_and_a_run_without_it_goes_on(tmp_path, capsys):
    words = ["run", "--recipe", TINY, "--methods", "none,topk", "--schedules", "0.5@0,1", "--out", str(tmp_path)]
    words += ["--seeds", "1"]
    assert main([*words, "--off-the-shelf", "--quiet"]) == DONE
    base, shelf = sorted(read_all(tmp_path), key=lambda record: record.method)
    assert (base.method, shelf.method) == ("none", "topk")
    for record in (base, shelf):
        assert not record.training
        assert "off_the_shelf_top1" in record.metrics
    capsys.readouterr()
    assert main([*words, "--time-limit", "0.001s", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["left"] == 2, "records off the shelf are not what this run asks for"
    assert main([*words, "--quiet"]) == DONE
    tuned = {record.method: record for record in read_all(tmp_path)}
    assert tuned["topk"].training
    assert tuned["none"].training
    assert tuned["topk"].metrics["off_the_shelf_top1"] == shelf.metrics["off_the_shelf_top1"]
    assert main([*words, "--off-the-shelf", "--quiet"]) == DONE
    assert {record.method: record for record in read_all(tmp_path)} == tuned, "what is fine-tuned stays"
