"""Optimisers by name and patch dropout: resumed to the last bit, alike on all ranks, refused where they cannot work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import tiny_recipe
import torch
from test_train import CPU, RECIPE, Clock, fresh, weights
from timm.optim import create_optimizer_v2, muon

import tpbench
from tpbench import vit
from tpbench.errors import OutOfTime, UsageError
from tpbench.training import data
from tpbench.training.checkpoint import State
from tpbench.training.optimizer import ELEMENTWISE, make_optimizer
from tpbench.training.train import Conditions, Run, train

MUON = replace(RECIPE.base, optimizer="muon", optimizer_args={"momentum": 0.95})
DROPPED = replace(MUON, patch_drop=0.5, patch_drop_until=2 / 3)


@pytest.fixture(scope="module")
def conditions():
    return Conditions(data.load(RECIPE.data, CPU))


class Tokens:
    """How many body tokens leave the first block, call by call."""

    def __init__(self, model: vit.TokenViT):
        self.training: list[int] = []
        self.evaluation: list[int] = []
        self.prefix = model.num_prefix_tokens
        model.blocks[0].mlp.register_forward_hook(self.see)

    def see(self, module: torch.nn.Module, _, out: torch.Tensor) -> None:
        seen = self.training if module.training else self.evaluation
        seen.append(out.shape[1] - self.prefix)


# ------------------------------------------------------------------------------------------ Muon


def test_muon_trains_as_a_plain_loop_of_timms_does(conditions, monkeypatch):
    """With the iterations in float32, as on every CPU."""
    ours = fresh()
    plain = fresh()
    optim = replace(MUON, epochs=1, warmup_epochs=0.0, clip=0.0, lr=5e-3, min_lr=5e-3)
    train(ours, conditions, optim, seed=3)
    in_float32 = muon.zeropower_via_newtonschulz
    monkeypatch.setattr(
        muon, "zeropower_via_newtonschulz", lambda *words, **lines: in_float32(*words, **lines, dtype=torch.float32)
    )
    optimizer = create_optimizer_v2(plain, "muon", lr=5e-3, weight_decay=optim.weight_decay, momentum=0.95)
    plain.train()
    for images, labels in conditions.data.train.batches(16, (3, 0)):
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    other = fresh()
    train(other, conditions, replace(optim, optimizer_args={"momentum": 0.9}), seed=3)
    rounding, momentum = ((weights(ours) - weights(model)).abs().max() for model in (plain, other))
    assert rounding < 2e-4
    assert momentum > 10 * rounding, "control: another momentum shows"


def test_matrices_get_muon_and_the_rest_adamw(conditions):
    model = fresh()
    run = Run(model, conditions, MUON, seed=0)
    images, labels = next(run.batches(0, 0))
    run.engine.train()
    run.micro_step(images, labels)
    state = run.engine.optimizer.state
    routed = {name: state[p]["use_muon"] for name, p in model.named_parameters()}
    assert routed["blocks.0.attn.qkv.weight"]
    assert routed["blocks.1.mlp.fc2.weight"]
    assert routed["head.weight"]
    assert not any(routed[name] for name in ("blocks.0.norm1.weight", "pos_embed", "cls_token", "head.bias"))
    assert muon.zeropower_via_newtonschulz.__name__ == "zeropower_via_newtonschulz", "timm is left as it was"
    run.finish()


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_refuses_optimisers_that_look_at_whole_tensors(conditions, stage):
    for name in ("muon", "lamb", "adafactor", "kron"):
        with pytest.raises(UsageError, match=f"'{name}' needs zero_stage=0"):
            train(fresh(), conditions, replace(MUON, optimizer=name, optimizer_args={}, zero_stage=stage), seed=0)


def stepped(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """All parameters after five steps, flattened."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(part.clone()) for part in parts]
    optimizer = create_optimizer_v2(parameters, name, lr=0.01, weight_decay=0.05)
    for _ in range(5):
        gradient = torch.randn(sum(p.numel() for p in parameters), generator=generator)
        for parameter, own in zip(parameters, gradient.split([p.numel() for p in parameters])):
            parameter.grad = own.view_as(parameter).clone()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


def differs_when_flattened(name: str) -> bool:
    parts = [torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.ones(7)]
    flat = torch.cat([part.flatten() for part in parts])
    return not torch.allclose(stepped(name, parts), stepped(name, [flat]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_what_zero_accepts_takes_the_same_step_flattened(name):
    assert not differs_when_flattened(name)


@pytest.mark.parametrize("name", ["muon", "lamb", "lars", "adafactor", "cadamw"])
def test_control_what_it_refuses_does_not(name):
    assert name not in ELEMENTWISE
    assert differs_when_flattened(name)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean adam"),
        ({"optimizer_args": {"momentun": 0.9}}, "unexpected keyword argument 'momentun'"),
        ({"optimizer_args": {"lr": 0.1}}, "optimizer_args holds lr, which has a recipe line of its own"),
        ({"optimizer_args": {"momentum": 7.0}}, "momentum"),
    ],
)
def test_a_wrong_optimiser_is_refused_in_one_line(lines, says):
    with pytest.raises(UsageError, match=says) as caught:
        make_optimizer(fresh(), replace(MUON, **lines))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_ranks_take_the_same_step_with_muon(tmp_path):
    """Gradients are averaged before the step: both ranks end with the same bits, and near what one rank ends with."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "import test_optimizer as t\n"
        "conditions = t.Conditions(t.data.load(t.replace(t.RECIPE.data, shift=0), t.CPU))\n"
        "model = t.fresh()\n"
        "t.train(model, conditions, t.replace(t.MUON, epochs=1, warmup_epochs=0.0), seed=0)\n"
        "torch.save(t.weights(model), f'{sys.argv[2]}-{torch.distributed.get_rank()}.pt')\n"
    )
    for ranks in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        words = [sys.executable, *launcher, str(script), str(Path(__file__).parent), str(tmp_path / f"of{ranks}")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name) for name in ("of1-0.pt", "of2-0.pt", "of2-1.pt"))
    assert torch.equal(first, second)
    torch.testing.assert_close(one, first, rtol=1e-3, atol=1e-4)
    assert (one - weights(fresh())).abs().max() > 1e-3, "control: it did train"


# ------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("forgotten", ["nothing", "random state", "momentum"])
def test_a_stopped_run_ends_like_an_uninterrupted_one(conditions, tmp_path, monkeypatch, forgotten):
    """Under Muon and patch dropout, stopped within the first epoch and within the last, which drops no patch."""
    uninterrupted = fresh()
    stopped = fresh()
    whole = train(uninterrupted, conditions, DROPPED, seed=1)
    for steps in (3, 16):
        with monkeypatch.context() as patch:
            Clock(patch, steps)
            with pytest.raises(OutOfTime):
                train(fresh(), conditions, DROPPED, seed=1, folder=tmp_path)
    if forgotten == "random state":  # it matters in the epochs that drop patches: the first is stopped again
        (tmp_path / "again").mkdir()
        with monkeypatch.context() as patch:
            Clock(patch, 3)
            with pytest.raises(OutOfTime):
                train(fresh(), conditions, DROPPED, seed=1, folder=tmp_path / "again")
        monkeypatch.setattr("tpbench.training.run.set_generators", lambda *_: None)
        rest = train(stopped, conditions, DROPPED, seed=1, folder=tmp_path / "again")
    elif forgotten == "momentum":
        monkeypatch.setattr(muon.Muon, "load_state_dict", lambda *_: None)
        rest = train(stopped, conditions, DROPPED, seed=1, folder=tmp_path)
    else:
        torch.randn(100)  # the state of the generators before must not matter
        rest = train(stopped, conditions, DROPPED, seed=1, folder=tmp_path)
    assert torch.equal(weights(uninterrupted), weights(stopped)) == (forgotten == "nothing")
    assert (rest.losses == whole.losses) == (forgotten == "nothing")


# ------------------------------------------------------------------------------------------ patch dropout


def test_patches_are_dropped_until_the_end_that_the_recipe_names(conditions):
    model = fresh()
    seen = Tokens(model)
    train(model, conditions, DROPPED, seed=0)
    assert seen.training == [8] * 16 + [16] * 8, "two epochs of eight steps on half of 16 patches, then one on all"
    whole = fresh()
    always = Tokens(whole)
    train(whole, conditions, replace(DROPPED, patch_drop_until=1.0), seed=0)
    assert always.training == [8] * 24, "control: without an end they are dropped throughout"


def test_evaluation_never_drops_patches(conditions):
    model = fresh()
    images = next(conditions.data.test.batches(8)).images
    run = Run(model, conditions, DROPPED, seed=0)
    next(run.steps(State()))
    seen = Tokens(model)
    model.eval()
    assert torch.equal(model(images), model(images))
    assert seen.evaluation == [16, 16]
    model.train()
    model(images)
    assert seen.training == [8], "control: in training they are dropped at this moment"
    run.finish()
    model(images)
    assert seen.training == [8, 16], "nor after the run, in any mode"


def test_without_patch_dropout_nothing_changes_by_a_bit(conditions):
    plain = fresh()
    ended = fresh()
    never = fresh()
    train(plain, conditions, MUON, seed=0)
    train(ended, conditions, replace(MUON, patch_drop=0.5, patch_drop_until=0.0), seed=0)
    train(never, conditions, replace(MUON, patch_drop=0.0, patch_drop_until=0.5), seed=0)
    assert torch.equal(weights(plain), weights(ended))
    assert torch.equal(weights(plain), weights(never))
    dropped = fresh()
    train(dropped, conditions, DROPPED, seed=0)
    assert not torch.equal(weights(plain), weights(dropped)), "control"


def test_every_image_loses_patches_of_its_own_and_keeps_its_class_token():
    model = fresh().train()
    vit.drop_patches(model, 0.5)
    with torch.no_grad():
        model.pos_embed[0, :, 0] = torch.arange(17) * 100.0  # tells the tokens apart
    torch.manual_seed(0)
    x = model.embed(torch.zeros(6, 1, 8, 8)).x[..., 0]
    places = (x / 100).round().int().tolist()
    assert all(row[0] == 0 for row in places)
    assert all(len(set(row)) == 9 for row in places)
    assert len({tuple(sorted(row)) for row in places}) > 1


def test_what_cannot_drop_patches_says_so(conditions):
    with pytest.raises(UsageError, match="patch_drop is for the unreduced base"):
        train(fresh("topk"), conditions, DROPPED, seed=0)
    with pytest.raises(UsageError, match="patch_drop is for the base only"):
        replace(tiny_recipe.recipe(), finetune=DROPPED)
    for lines in ({"patch_drop": 1.0}, {"patch_drop": -0.1}, {"patch_drop_until": 1.5}):
        with pytest.raises(UsageError, match="must lie in"):
            train(fresh(), conditions, replace(DROPPED, **lines), seed=0)
    eva = timm.create_model("eva02_tiny_patch14_224", depth=1, img_size=28)
    with pytest.raises(UsageError, match="not supported for TokenEva"):
        vit.drop_patches(tpbench.reduce(eva, "none"), 0.5)


# ------------------------------------------------------------------------------------------ digests


def test_lines_added_later_leave_digests_as_they_were():
    assert tiny_recipe.recipe().digest == "36288ca7500c", "computed before these lines existed"
    plain = tiny_recipe.recipe()
    for lines in ({"optimizer_args": {"betas": (0.9, 0.95)}}, {"patch_drop": 0.5}, {"patch_drop_until": 0.5}):
        changed = replace(plain, base=replace(plain.base, **lines))
        assert changed.digest != plain.digest, "control: a line that changes training changes the digest"
    elsewhere = replace(plain, data=replace(plain.data, hub="owner/name/folder"))
    assert elsewhere.digest == plain.digest, "where images come from does not: the record's fingerprint says which"
