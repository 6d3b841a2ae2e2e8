"""Searches that learn K: what they do to tokens, what they charge, and the files that they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch.nn import functional as F

import tpbench
from baselines.diffrate import DiffRate, RateSearch
from baselines.ltmp import ThresholdSearch
from baselines.topk import SoftExtract
from tpbench import registry
from tpbench.bench import search
from tpbench.cli import DONE, WRONG, main
from tpbench.downsampler import Probe, Setup
from tpbench.record import read_all
from tpbench.tokens import Tokens

RECIPE = """
from dataclasses import replace
from tpbench import recipe as recipes
from tpbench.recipe import Optim, Search

def recipe():
    tiny = recipes.load({tiny!r})
    topk = Search(Optim(epochs=4, lr=0.05, batch_size=16), backbone_lr_scale=0.02, knobs={{"strength": {strength}}})
    diffrate = Search(Optim(epochs=8, lr=0.3, batch_size=16), knobs={{"target": 0.7, "granularity": 1}})
    ltmp = Search(Optim(epochs=8, lr=0.1, batch_size=16), knobs={{"target": 0.7}})
    return replace(tiny, search={{"topk": topk, "diffrate": diffrate, "ltmp": ltmp}})
"""


@pytest.fixture
def recipe(tmp_path, request) -> str:
    return write_recipe(tmp_path, request)


def write_recipe(tmp_path: Path, request, strength: float = 0.05) -> str:
    path = tmp_path / "searching.py"
    path.write_text(RECIPE.format(tiny=str(request.config.rootpath / "tests" / "tiny_recipe.py"), strength=strength))
    return str(path)


def setup(n: int, block: int = 0, stages: int = 1) -> Setup:
    return Setup(block, block, stages, n, n, n, 2, 1, None)


def tokens_of(values: list[list[float]]) -> Tokens:
    x = torch.tensor([[[9.0] * len(values[0]), *values]])
    return Tokens(x, 1, torch.ones(1, len(values)))


# ---------------------------------------------------------------- soft-extract, by hand


def test_soft_extract_scales_by_the_rank_of_significance():
    one = SoftExtract(setup(3))
    with torch.no_grad():
        one.retention.copy_(torch.tensor([1.0, 0.5, 0.25]))
    probe = Probe(received=torch.tensor([[0.1, 0.7, 0.2]]))  # ranks 2, 0, 1
    out = one(tokens_of([[4.0, 8.0], [4.0, 8.0], [4.0, 8.0]]), probe)
    assert out.x[0].tolist() == [[9, 9], [1, 2], [4, 8], [2, 4]], "the class token stays"
    assert one.kept(torch.tensor(3.0)).item() == 1.75
    assert one.kept(torch.tensor(1.0)).item() == 1, "no more leave than arrive"


def test_soft_extract_is_clipped_and_charged_by_depth():
    one = SoftExtract(setup(3, block=4), SoftExtract.Config(strength=0.1))
    with torch.no_grad():
        one.retention.copy_(torch.tensor([1.3, 0.5, -0.2]))
    one(tokens_of([[1.0, 1.0]] * 3), Probe(received=torch.rand(1, 3)))
    assert one.retention.tolist() == [1.0, 0.5, 0.0]
    assert one.penalty(torch.tensor(0.3)).item() == pytest.approx(0.1 * 5 * 1.5)  # blocks count from 1 in the paper
    one.penalty(torch.tensor(0.3)).backward()
    assert one.retention.grad.tolist() == pytest.approx([0.5] * 3)


def test_untouched_soft_extract_changes_nothing():
    base = tiny()
    model = tpbench.reduce(base, SoftExtract, "64,64,64,64@0-3")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), base(images), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.reducers[0].retention[40:] = 0
    assert (model(images) - base(images)).abs().max() > 1e-3  # control


# ---------------------------------------------------------------- DiffRate's search


def favouring(share: float, one: RateSearch) -> torch.Tensor:
    """Logits that are certain of one candidate."""
    return torch.where((one.candidates - share).abs() < 1e-6, 50.0, 0.0)


def test_what_the_rate_search_masks_is_what_diffrate_removes():
    """64 tokens, 48 survive pruning, 33 of them merging; then the same model with these counts removes 31."""
    base, images = tiny(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    model = tpbench.reduce(base, RateSearch, "64@1").train()
    one = model.reducers[0]
    with torch.no_grad():
        one.pruning.copy_(favouring(0.75, one))
        one.merging.copy_(favouring(0.6875, one))
    masked = model.forward_tokens(images)
    removed = tpbench.reduce(base, DiffRate, "33@1", pruned=0.52)
    assert removed.reducers[0].pruned_to == 48
    assert masked.tokens.alive.sum(dim=1).tolist() == [33.0, 33.0]
    assert set(masked.tokens.alive.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(masked.logits, removed(images), rtol=1e-3, atol=1e-4)
    other = tpbench.reduce(base, DiffRate, "33@1", pruned=0.9)  # control
    assert (masked.logits - other(images)).abs().max() > 1e-3


@pytest.mark.parametrize("cls", [RateSearch, ThresholdSearch])
def test_a_search_hears_of_loss_and_budget(cls):
    model = tpbench.reduce(tiny(), cls, "64,64@1,2").train()
    out = model.forward_tokens(torch.randn(4, 3, 32, 32))
    for loss in (F.cross_entropy(out.logits, torch.tensor([0, 1, 2, 3])), search.penalty(model)):
        grads = torch.autograd.grad(loss, [p for one in model.reducers for p in one.parameters()], retain_graph=True)
        assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


def test_the_threshold_search_counts_what_stays():
    """The mean of the batches, the last a tenth of it; the gradient is that of the last batch."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    model = tpbench.reduce(tiny(), ThresholdSearch, "64,64@1,2").train()
    with torch.no_grad():
        model.reducers[0].pruning.fill_(0.9)
        model.reducers[1].pruning.fill_(1.0)
    alive = []
    for one in model.reducers:
        one.register_forward_hook(lambda *call: alive.append(call[2].alive))
    model.forward_tokens(images)
    first, second = (a.sum().item() / 4 for a in alive)
    assert 1 < second < first < 64
    kept = search.tokens_after_blocks(model)
    assert kept[0].item() == pytest.approx(0.9 * 64 + 0.1 * first)
    assert kept[1].item() == pytest.approx(kept[0].item() * (0.9 + 0.1 * second / first))
    assert torch.autograd.grad(kept[1], model.reducers[1].pruning)[0] < 0, "a higher threshold leaves fewer"
    model.eval()
    with torch.no_grad():
        model.forward_tokens(images)
    assert search.tokens_after_blocks(model)[1].item() == pytest.approx(kept[1].item()), "evaluating learns nothing"


def test_the_budget_is_in_macs():
    """With whole counts the differentiable price is the closed form of the model that keeps them."""
    base = tiny()
    model = tpbench.reduce(base, "none")
    counts = [50, 40, 30, 20]
    want = tpbench.reduce(base, "patch_dropout", "50,40,30,20@0-3")  # costs nothing itself
    got = model.macs_with_counts([torch.tensor(float(k)) for k in counts])
    assert got.item() == pytest.approx(sum(want.macs().values()), rel=1e-6)
    less = model.macs_with_counts([torch.tensor(float(k - 1)) for k in counts])
    assert less < 0.999 * got  # control


@pytest.mark.parametrize("cls", [SoftExtract, RateSearch, ThresholdSearch])
def test_counts_never_rise(cls):
    torch.manual_seed(0)
    model = tpbench.reduce(tiny(), cls, "64,64,64,64@0-3")
    with torch.no_grad():
        for p in (p for one in model.reducers for p in one.parameters()):
            p.uniform_(-1, 1)
    kept = [k.item() for k in search.tokens_after_blocks(model)]
    assert all(later <= sooner <= 64 for sooner, later in zip([64, *kept], kept))


# ---------------------------------------------------------------- as a user runs it


@pytest.mark.parametrize("method", ["topk", "diffrate", "ltmp"])
def test_what_is_learned_any_method_can_use(tmp_path, capsys, recipe, method):
    out = tmp_path / "results"
    assert main(["search", "--recipe", recipe, "--method", method, "--out", str(out)]) == DONE
    printed = capsys.readouterr().out
    path = out / "learned" / f"{method}_seed0.json"
    found = json.loads(path.read_text())
    assert [max(1, int(k)) for k in found["kept"]] == found["counts"] == sorted(found["counts"], reverse=True)
    assert 1 <= found["counts"][-1] < found["patches"] == 16
    assert len(found["training"]["losses"]) == found["optim"]["epochs"]
    assert f"--out {out} --schedules 'learned:{path};macs=0." in printed
    assert (out / "figures" / "learned.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < found["off_the_shelf"]["macs_share"] < 1
    words = ["run", "--recipe", recipe, "--methods", "none,random,dpcknn", "--out", str(out)]
    assert main([*words, "--schedules", f"learned:{path}"]) == DONE
    records = {record.method: record for record in read_all(out)}
    fewer = [k for before, k in zip([16, *found["counts"]], found["counts"]) if k < before]
    for name in ("random", "dpcknn"):
        assert records[name].schedule == f"learned:{method}_seed0"
        assert records[name].tokens["achieved"] == fewer
    found["counts"][-1] = 1
    path.write_text(json.dumps(found))
    assert main([*words, "--schedules", f"learned:{path}"]) == WRONG
    said = capsys.readouterr().err
    assert f"{method}_seed0.json" in said
    assert "changed since it was written" in said
    del found["checksum"]
    path.write_text(json.dumps(found))
    assert main([*words, "--schedules", f"learned:{path}"]) == DONE
    again = {record.method: record for record in read_all(out)}["random"]
    assert again.tokens["achieved"][-1] == 1, "learned anew under the same name, it is measured anew"


def test_the_same_search_learns_the_same(tmp_path, recipe):
    kept = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert main(["search", "--recipe", recipe, "--method", "topk", "--out", str(out)]) == DONE
        kept.append(json.loads((out / "learned" / "topk_seed0.json").read_text())["kept"])
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "tome"], "method 'tome' has no search for K; these have: diffrate, ltmp, topk"),
        (["--method", "topkk"], "did you mean"),
        (["--method", "topk", "--recipe", "smoke"], "recipe smoke"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path, capsys, recipe, words, says, monkeypatch):
    if "smoke" in words:
        from dataclasses import replace

        from tpbench import recipe as recipes

        nowhere = replace(recipes.load(recipe), name="smoke", search={})
        monkeypatch.setattr(recipes, "load", lambda *_, **__: nowhere)
    assert main(["search", "--recipe", recipe, "--out", str(tmp_path / "r"), *words]) == WRONG
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]


def test_a_search_that_keeps_everything_says_so(tmp_path, capsys, request):
    weak = write_recipe(tmp_path, request, strength=-1.0)
    assert main(["search", "--recipe", weak, "--method", "topk", "--out", str(tmp_path / "r")]) == WRONG
    assert "keeps every token" in capsys.readouterr().err


def test_who_has_a_search_is_no_method_of_the_table():
    names = registry.discover()
    assert {name for name, cls in names.items() if cls.search is not None} == {"topk", "diffrate", "ltmp"}
    assert not {SoftExtract, RateSearch, ThresholdSearch} & set(names.values())
