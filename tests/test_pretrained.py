"""Pretrained weights go the same way as trained ones, without any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tpbench import recipe, vit
from tpbench.bench.bases import load_base
from tpbench.bench.models import build_base
from tpbench.bench.plan import Plan
from tpbench.bench.workspace import Workspace
from tpbench.cli import DONE, WRONG, main
from tpbench.errors import UsageError
from tpbench.record import read_all


@pytest.fixture
def tiny_recipe(request) -> recipe.Recipe:
    return recipe.load(str(request.config.rootpath / "tests" / "tiny_recipe.py"))


@pytest.fixture
def weights(tmp_path, tiny_recipe) -> dict[str, torch.Tensor]:
    """Weights that are not the seed's first ones, as safetensors and as a checkpoint of torch's."""
    state = build_base(tiny_recipe, seed=7).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"model": state}, tmp_path / "w.pth")
    return state


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_files_weights_are_all_loaded(tmp_path, tiny_recipe, weights, name):
    """The head too, though the hub's of this name has other classes."""
    model = build_base(tiny_recipe.untrained(str(tmp_path / name)), seed=0)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    other = build_base(tiny_recipe, seed=0)  # control
    assert not torch.equal(other.head.weight, weights["head.weight"])


def test_another_patch_grid_gets_a_fitted_position_embedding(tmp_path, tiny_recipe, weights):
    model = vit.create(tiny_recipe.model, {**tiny_recipe.model_args, "img_size": 16}, str(tmp_path / "w.pth"))
    assert model.pos_embed.shape[1] == 1 + 64
    assert torch.equal(model.head.weight, weights["head.weight"])


def test_every_method_off_the_shelf_and_nothing_trained(tmp_path, request, weights, capsys):
    out = tmp_path / "results"
    words = ["run", "--recipe", str(request.config.rootpath / "tests" / "tiny_recipe.py"), "--out", str(out)]
    assert main([*words, "--methods", "none,topk,wkmeans", "--pretrained", str(tmp_path / "w.pth")]) == DONE
    records = {record.method: record for record in read_all(out)}
    assert set(records) == {"none", "topk", "wkmeans"}
    for record in records.values():
        assert record.error is None
        assert record.training == {}
        assert "off_the_shelf_top1" in record.metrics
        assert "fine_tuned_top1" not in record.metrics
        assert record.latency
    untrained = recipe.load(words[2]).untrained(str(tmp_path / "w.pth"))
    base = load_base(Workspace(Plan(recipe=untrained, out=out, device="cpu")), 0)
    assert torch.equal(base.head.weight, weights["head.weight"])
    assert "nan" not in capsys.readouterr().out


def test_what_is_not_trained_has_no_tuned_lines(tiny_recipe):
    tuned = replace(tiny_recipe, tuned={"topk": {"lr": 0.1}})
    assert tuned.tuned_lines("topk") == {"lr": 0.1}
    assert tuned.untrained(True).tuned_lines("topk") == {}


@pytest.mark.parametrize("spoil", ["missing", "text", "lacks a weight", "another width"])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, tiny_recipe, weights, spoil):
    path = tmp_path / "bad.pth"
    if spoil == "text":
        path.write_text("not weights")
    elif spoil == "lacks a weight":
        torch.save({key: value for key, value in weights.items() if key != "head.bias"}, path)
    elif spoil == "another width":
        torch.save(weights | {"norm.weight": torch.ones(17)}, path)
    with pytest.raises(UsageError, match=str(path)) as caught:
        build_base(tiny_recipe.untrained(str(path)), seed=0)
    assert "\n" not in str(caught.value)


def test_the_hubs_head_is_not_trusted_for_other_classes(tmp_path, request, capsys):
    """Nothing is downloaded: 10 classes are not the hub's 1,000, and without training a new head would be random."""
    words = ["run", "--recipe", str(request.config.rootpath / "tests" / "tiny_recipe.py"), "--out", str(tmp_path)]
    assert main([*words, "--pretrained"]) == WRONG
    assert "without training the head would be random" in capsys.readouterr().err


class Planted:
    """What runs a command of its own when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_of_weights_is_never_executed(tmp_path):
    path, ran = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"model": Planted(ran)}, path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        vit.create("test_vit", {}, pretrained=str(path))
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists(), "control: the file does execute something where it is allowed to"
