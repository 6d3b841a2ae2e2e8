"""`tpbench run --deterministic`: the switch is on wherever a cell computes, records say so, what it refuses is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from torch import Tensor

import tpbench
from tpbench import environment, registry
from tpbench.bench.workspace import Workspace
from tpbench.cli import DONE, FAILED, main, parser, run
from tpbench.record import Record, Store
from tpbench.report import page_repeat, write

RECIPE = str(Path(__file__).with_name("short_recipe.py"))
CARDS = registry.catalogue()[0]
WITHOUT_A_FORM = """
import torch
from tpbench.downsampler import Downsampler
from tpbench.registry import register

@register("unordered", title="Keeps the first K tokens, by an operator that has no deterministic form")
class Unordered(Downsampler):
    def forward(self, tokens, probe):
        index = torch.zeros(self.setup.k, dtype=torch.int64, device=tokens.x.device)
        place = torch.arange(self.setup.k, device=index.device)
        return tokens.keep(index.put_(place, place).expand(len(tokens.x), -1))
"""


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    """A process begins with any algorithm; what a test switches on is switched off behind it."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark, os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None))
    assert not torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark, config = before
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if config is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = config


def words(out: Path, *more: str) -> list[str]:
    return ["run", "--recipe", RECIPE, "--methods", "none,topk", "--seeds", "1", "--out", str(out), *more]


def test_the_switch_is_everything_that_torch_asks_for():
    environment.make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_workspace_of_ones_own_for_cublas_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    environment.make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.slow
def test_the_same_command_twice_gives_equal_metrics_and_every_record_says_how(tmp_path):
    found = []
    for number in range(2):
        out = tmp_path / str(number)
        assert main(words(out, "--deterministic")) == DONE
        records = list(Store.of(out))
        assert [record.environment["deterministic"] for record in records] == [True, True]
        found.append({record.file_name: (record.metrics, record.outcomes) for record in records})
    assert found[0] == found[1]
    assert "; deterministic algorithms; " in (tmp_path / "0" / "README.md").read_text()
    assert "--deterministic" in (tmp_path / "0" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("unplugged")
def test_a_method_without_a_deterministic_form_fails_in_one_line(tmp_path, capsys):
    plugin = tmp_path / "unordered.py"
    plugin.write_text(WITHOUT_A_FORM)
    asked = ["--methods", "none,topk,unordered", "--plugin", str(plugin)]
    assert main(words(tmp_path / "any", *asked)) == DONE, "control: without the flag it runs"
    assert {record.environment["deterministic"] for record in Store.of(tmp_path / "any")} == {False}
    capsys.readouterr()
    assert main(words(tmp_path / "out", *asked, "--deterministic")) == FAILED
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (last,) = [line for line in said.splitlines() if "failed: " in line]
    assert "unordered 0.5@0,1 seed 0: RuntimeError: put_ does not have a deterministic implementation" in last
    records = {record.method: record for record in Store.of(tmp_path / "out")}
    assert {method: record.error is None for method, record in records.items()} == {
        "none": True,
        "topk": True,
        "unordered": False,
    }


def test_worker_processes_that_do_not_inherit_the_switch_turn_it_on(tmp_path):
    """Where processes are spawned and not forked, a worker begins with its workspace."""
    plan = run.make_plan(parser().parse_args(words(tmp_path, "--deterministic")), began=0.0)
    Workspace(replace(plan, deterministic=False))
    assert not torch.are_deterministic_algorithms_enabled(), "control"
    Workspace(plan)
    assert torch.are_deterministic_algorithms_enabled()


def test_reports_say_it_where_records_do():
    old = Record(recipe="r", recipe_digest="0", machine="m", method="none", schedule="none", seed=0, unreduced=True)
    old = replace(old, environment={"device": "GPU", "threads": 1, "dtype": "bfloat16"})
    new = replace(old, environment=old.environment | {"deterministic": True})
    assert write.measured_on(old) == "GPU; threads: 1; bfloat16"
    assert write.measured_on(new) == "GPU; threads: 1; bfloat16; deterministic algorithms"
    for record, told in ((old, False), (new, True)):
        study = SimpleNamespace(comparison=SimpleNamespace(records=[record]), folder=Path("out"))
        assert ("--deterministic" in page_repeat.commands(study)[-1]) == told


def gradients(name: str, where: torch.device) -> list[Tensor]:
    """The output and the gradients of one training step of a tiny model under a method."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(where)
    schedule = "none" if CARDS[name].unreduced else "0.7@1,2"
    model = tpbench.reduce(tiny().to(where), name, schedule).train()
    logits = model(images)
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", CARDS)
def test_every_method_has_a_deterministic_form(name, device):
    """Forward and backward: nothing is refused, and the same bits come twice. Pooling on a grid is refused on a GPU."""
    environment.make_deterministic()
    if device == "cuda" and name in ("avgpool", "maxpool"):
        with pytest.raises(RuntimeError, match="deterministic"):
            gradients(name, torch.device(device))
        return
    once, twice = (gradients(name, torch.device(device)) for _ in range(2))
    assert len(once) == len(twice) > 1
    assert all(torch.equal(a, b) for a, b in zip(once, twice))
