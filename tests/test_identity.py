"""With nothing reduced a model is timm's, bit for bit; what cannot be adopted so is refused in words."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn
from torch.nn import functional as F

import tpbench
from tpbench import registry
from tpbench.downsampler import Downsampler, Needs, Setup, Site
from tpbench.errors import ScheduleError, UnsupportedModel, UsageError
from tpbench.vit import TokenBlock, TokenViT, adopt

MODELS = {
    "deit": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "average_pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "average_pool_with_prefix": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "average_pool_no_class_token": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "attention_and_mlp_norm": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "no_head": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "oblong": ("vit_tiny_patch16_224", {"img_size": (32, 16)}),
    "dropout": ("vit_tiny_patch16_224", {"drop_path_rate": 0.4, "proj_drop_rate": 0.2, "drop_rate": 0.3}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "attention_pool_with_prefix": ("vit_tiny_patch16_224", {"global_pool": "map", "pool_include_prefix": True}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02_norms": ("eva02_base_patch14_448", {"scale_attn_inner": True}),
    "eva_fused": ("vit_betwixt_patch16_rope_reg4_gap_256", {"img_size": (32, 16)}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3_bias": ("vit_small_patch16_dinov3_qkvb", {"num_classes": 0}),
    "perception_encoder": ("vit_pe_core_tiny_patch16_384", {}),
    "rope": ("vit_small_patch16_rope_224", {}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "shared_keys": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
    "eva_dropout": ("eva02_tiny_patch14_224", {"drop_path_rate": 0.4, "proj_drop_rate": 0.2, "drop_rate": 0.3}),
}
WAYS = [("none", "none"), ("none", "0.5@1"), ("topk", "1.0@0,1"), ("wkmedoids", "1@0,1"), ("avgpool", "64,64@0,1")]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_vit) -> nn.Module:
    name, overrides = MODELS[request.param]
    return make_vit(name, depth=2, **overrides)


def size_of(model: nn.Module) -> tuple[int, int]:
    return model.patch_embed.img_size


@pytest.fixture
def x(model) -> torch.Tensor:
    return torch.randn(2, 3, *size_of(model), generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- bit for bit


@torch.no_grad()
def test_nothing_reduced_is_timms_model(model, x):
    want, features = model(x), model.forward_features(x)
    patches = model.patch_embed.num_patches
    for method, schedule in (*WAYS[:-1], ("avgpool", f"{patches},{patches}@0,1")):
        same = tpbench.reduce(model, method, schedule)
        out = same.forward_tokens(x)
        assert torch.equal(same(x), want), method
        assert torch.equal(out.logits, want)
        assert torch.equal(same.forward_features(x), features)
        assert out.counts == (patches,) * 2
        assert same.reducers == []
        assert dict(same.achieved) == dict(same.requested)


def test_in_training_too(model, x):
    """The same dropped, and the same gradients."""
    twin = copy.deepcopy(model).train()
    same = tpbench.reduce(model, "none").train()
    for net in (twin, same):
        torch.manual_seed(0)
        out = net(x)
        sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    for (name, p), (_, q) in zip(twin.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


@torch.no_grad()
def test_a_distilled_model_answers_as_timms_in_training(make_vit, images):
    model = make_vit("deit_tiny_distilled_patch16_224", depth=2).train()
    model.set_distilled_training(True)
    want = model(images)
    got = tpbench.reduce(model, "none")(images)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@torch.no_grad()
def test_whatever_attention_timm_runs_is_run(make_vit, images):
    """Fused attention on or off is timm's business."""
    for fused in (True, False):
        model = make_vit(depth=2)
        for block in model.blocks:
            block.attn.fused_attn = fused
        assert torch.equal(tpbench.reduce(model, "none")(images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(make_vit, images, dtype):
    model = make_vit(depth=2).to(dtype)
    assert torch.equal(tpbench.reduce(model, "none")(images.to(dtype)), model(images.to(dtype)))
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tpbench.reduce(model, "none")(images), model(images))


# ---------------------------------------------------------------- looking changes nothing


class Look(Downsampler):
    """Reduces nothing, but asks to see everything."""

    needs = ~Needs.NONE

    def forward(self, tokens, probe):  # noqa: ARG002
        return tokens


class LookAtTheBlock(Look):
    needs = Needs.INPUT | Needs.SHIFT


class LookAtReceived(Look):
    needs = Needs.RECEIVED


class LookAtClass(Look):
    needs = Needs.CLS


class CountSizes(Look):
    """Every token stands for one patch, so counting keys by size changes nothing."""

    weighted_attention = True


class AllAlive(Look):
    needs = Needs.NONE

    def forward(self, tokens, probe):  # noqa: ARG002
        return replace(tokens, alive=torch.ones_like(tokens.size))


class AllAliveWithGradient(Look):
    needs = Needs.NONE

    def forward(self, tokens, probe):  # noqa: ARG002
        return replace(tokens, alive=torch.ones_like(tokens.size).requires_grad_())


def looking(model: nn.Module, cls: type[Downsampler], site: Site = Site.MID) -> TokenViT:
    """A reducer in every block that lets everybody through."""
    n, grid = model.patch_embed.num_patches, tuple(model.patch_embed.grid_size)
    heads = model.blocks[0].attn.num_heads
    setups = [Setup(i, i, 2, n, n, n, model.embed_dim, heads, grid) for i in range(len(model.blocks))]
    return TokenViT.around(model, [cls(setup) for setup in setups], (), site).eval()


LOOKS = [Look, LookAtTheBlock, LookAtReceived, LookAtClass, CountSizes, AllAlive, AllAliveWithGradient]


@pytest.mark.parametrize("site", Site)
@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_nothing(model, x, look, site):
    """The other way through attention, the weights on keys and the average over sizes are timm's when all is 1."""
    if look.needs & Needs.CLS and model.cls_token is None:
        pytest.skip("no class token")
    with torch.set_grad_enabled(look is AllAliveWithGradient):
        want, got = model(x), looking(model, look, site)(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def first_difference(model: nn.Module, x: torch.Tensor, spoil) -> float:
    seen = looking(model, Look)
    spoil(seen)
    with torch.no_grad():
        return float((seen(x) - model(x)).abs().max())


def test_control_without_layer_scale_the_logits_change(make_vit, images):
    model = make_vit("deit3_small_patch16_224", depth=2)

    def drop(seen: TokenViT) -> None:
        for block in seen.blocks:
            block.ls1 = nn.Identity()

    assert first_difference(model, images, lambda seen: None) < 1e-4  # noqa: ARG005
    assert first_difference(model, images, drop) > 0.01
    same = tpbench.reduce(model, "none")
    drop(same)
    assert not torch.allclose(same(images), model(images), atol=0.01)


def test_control_without_qk_norm_the_logits_change(make_vit, images):
    model = make_vit(qk_norm=True, depth=2)

    def drop(seen: TokenViT) -> None:
        for block in seen.blocks:
            block.attn.q_norm = block.attn.k_norm = nn.Identity()

    assert first_difference(model, images, lambda seen: None) < 1e-4  # noqa: ARG005
    assert first_difference(model, images, drop) > 0.01
    same = tpbench.reduce(model, "none")
    drop(same)
    assert not torch.allclose(same(images), model(images), atol=0.01)


def test_control_without_the_attention_norm_the_logits_change(make_vit, images):
    model = make_vit(scale_attn_norm=True, depth=2)

    def drop(seen: TokenViT) -> None:
        for block in seen.blocks:
            block.attn.norm = nn.Identity()

    assert first_difference(model, images, drop) > 0.01


# ---------------------------------------------------------------- the model it came from


def shape_of(model: nn.Module) -> dict:
    return {name: (type(module), id(module), module.training) for name, module in model.named_modules()}


@pytest.mark.parametrize("method", ["none", "wkmedoids", "dynamicvit", "strided_conv"])
def test_the_model_it_came_from_stays_as_it_was(make_vit, images, method):
    model = make_vit(depth=2)
    before, want, state = shape_of(model), model(images), {k: v.clone() for k, v in model.state_dict().items()}
    reduced = tpbench.reduce(model, method, "0.5@0,1")
    reduced(images)
    assert shape_of(model) == before
    assert torch.equal(model(images), want)
    assert model.state_dict().keys() == state.keys()
    assert all(type(block) is Block for block in model.blocks)
    theirs = dict(model.named_parameters())
    assert all(p is theirs[name] for name, p in reduced.named_parameters() if name in theirs)
    assert theirs.keys() <= dict(reduced.named_parameters()).keys()


def test_training_the_reduced_model_leaves_the_others_mode_alone(make_vit, images):
    """train() on the one must not switch dropout on in the other, which still says it is evaluating."""
    model = make_vit(depth=2, drop_path_rate=0.5, proj_drop_rate=0.5)
    want, before = model(images), shape_of(model)
    tpbench.reduce(model, "topk", "0.5@0,1").train()
    assert shape_of(model) == before
    assert torch.equal(model(images), want)


def test_control_parameters_are_shared(make_vit, images):
    model = make_vit(depth=2)
    reduced = tpbench.reduce(model, "none")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(2)
    assert torch.equal(reduced(images), model(images))
    apart = tpbench.reduce(copy.deepcopy(model), "none")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(2)
    assert not torch.equal(apart(images), model(images))


def test_adopting_copies_the_containers(make_vit):
    """New submodules, parameters and hooks of the one do not appear in the other."""
    model = make_vit(depth=2)
    adopted = adopt(VisionTransformer, model)
    adopted.extra, adopted.more = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    adopted.register_buffer("numbers", torch.ones(1), persistent=False)
    adopted.register_forward_hook(lambda *_: None)
    assert not hasattr(model, "extra")
    assert not hasattr(model, "more")
    assert not hasattr(model, "numbers")
    assert not model._forward_hooks
    assert "numbers" not in model._non_persistent_buffers_set


@pytest.mark.parametrize("name", list(registry.catalogue()[0]))
def test_state_dicts_fit(make_vit, images, name):
    """Of a method without parameters in both directions; of any other, its own come on top."""
    model, other = make_vit(depth=2), make_vit(depth=2, seed=5)
    reduced = tpbench.reduce(model, name, "0.5@0,1")
    own = [key for key in reduced.state_dict() if ".reducer." in key]
    assert [key for key in reduced.state_dict() if key not in own] == list(model.state_dict())
    missing, unexpected = reduced.load_state_dict(other.state_dict(), strict=False)
    assert missing == own
    assert unexpected == []
    if not own:
        other.load_state_dict(reduced.state_dict())
    assert torch.equal(model(images), other(images))  # shared parameters: the model has them too
    if not any(True for reducer in reduced.reducers for _ in reducer.parameters()):
        assert own == []


# ---------------------------------------------------------------- fused attention


@pytest.mark.parametrize(("method", "probed"), [("none", 0), ("random", 0), ("topk", 2), ("topk_cls", 0)])
@torch.no_grad()
def test_blocks_that_do_not_look_run_fused_attention(vit, images, monkeypatch, method, probed):
    """probed: blocks whose attention on a CPU is our own operator; topk_cls computes one row beside the fused one."""
    calls = []
    fused = F.scaled_dot_product_attention

    def counting(*args, **kwargs):
        calls.append(args[0].shape)
        return fused(*args, **kwargs)

    for block in vit.blocks:
        block.attn.fused_attn = True
    reduced = tpbench.reduce(vit, method, "0.5@1,2")
    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    reduced(images)
    assert len(calls) == len(vit.blocks) - probed


@torch.no_grad()
def test_control_unfused_attention_is_not_counted(vit, images, monkeypatch):
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **_: calls.append(args))
    for block in vit.blocks:
        block.attn.fused_attn = False
    tpbench.reduce(vit, "none")(images)
    assert calls == []


# ---------------------------------------------------------------- refused, in words

REFUSED = {
    "refining pool": ("vit_tiny_patch16_224", {"global_pool": "prr"}, "pooling by AttentionPoolPrr is not supported"),
    "max pooling": ("vit_tiny_patch16_224", {"global_pool": "max"}, "global pool 'max' is not supported"),
    "no pooling": ("vit_tiny_patch16_224", {"global_pool": ""}, "global pool '' is not supported"),
    "res-post": ("vit_tiny_patch16_224", {"block_fn": ResPostBlock}, "block 0 is a ResPostBlock"),
    "parallel": ("vit_small_patch16_18x2_224", {}, "block 0 is a ParallelThingsBlock"),
    "scaling": ("vit_tiny_patch16_224", {"block_fn": ParallelScalingBlock}, "block 0 is a ParallelScalingBlock"),
    "diff": ("vit_tiny_patch16_224", {"block_fn": DiffParallelScalingBlock}, "block 0 is a DiffParallelScalingBlock"),
    "diff attention": ("vit_tiny_patch16_224", {"attn_layer": "diff"}, "block 0 attends with"),
    "eva max": ("eva02_tiny_patch14_224", {"global_pool": "max"}, "global pool 'max' is not supported"),
    "eva dropout": ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.5}, "patch dropout is not supported"),
    "eva post-norm": ("eva02_tiny_patch14_224", {"use_post_norm": True}, "block 0 is a EvaBlockPostNorm"),
    "rope in three": ("eva02_tiny_patch14_224", {"rope_type": "mrope"}, "RotaryEmbeddingMRope is not supported"),
    "beit": ("beit_base_patch16_224", {}, "Beit is not supported"),
    "relative": ("vit_relpos_small_patch16_224", {}, "VisionTransformerRelPos is not supported"),
    "patch dropout": ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}, "patch dropout is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", ["none", "topk"])
def test_what_cannot_be_adopted_is_refused(make_vit, case, method):
    name, overrides, says = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=says):
        tpbench.reduce(make_vit(name, depth=2, **overrides), method, "0.5@1")


def test_other_families_are_refused():
    small = {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1)}
    for model in (timm.create_model("swin_tiny_patch4_window7_224", **small), nn.Linear(2, 2)):
        with pytest.raises(UnsupportedModel, match=f"{type(model).__name__} is not supported"):
            tpbench.reduce(model, "none")


def test_a_subclass_is_not_trusted(vit):
    """It may compute anything; so may a block or an attention changed by one."""

    class Mine(VisionTransformer):
        pass

    class MyBlock(Block):
        pass

    with pytest.raises(UnsupportedModel, match="Mine is not supported"):
        tpbench.reduce(adopt(Mine, vit), "none")
    vit.blocks[2] = adopt(MyBlock, vit.blocks[2])
    with pytest.raises(UnsupportedModel, match="block 2 is a MyBlock"):
        tpbench.reduce(vit, "none")


def test_a_reduced_model_is_not_reduced_again(vit):
    with pytest.raises(UnsupportedModel, match="reduced already"):
        tpbench.reduce(tpbench.reduce(vit, "none"), "topk", "0.5@1")


def test_requests_that_make_no_sense_are_refused_in_words(vit, images):
    with pytest.raises(ScheduleError, match="needs a schedule"):
        tpbench.reduce(vit, "topk")
    with pytest.raises(ScheduleError, match="block 4 is out of range"):
        tpbench.reduce(vit, "topk", "0.5@4")
    with pytest.raises(UsageError, match=r"unknown method 'topp'; did you mean .*topk"):
        tpbench.reduce(vit, "topp", "0.5@1")
    with pytest.raises(UsageError, match=r"has no such setting: .*iteration.*known: iterations, init"):
        tpbench.reduce(vit, "wkmedoids", "0.5@1", iteration=3)
    with pytest.raises(UsageError, match=r"mid|end"):
        tpbench.reduce(vit, "topk", "0.5@1", site="middle")
    reduced = tpbench.reduce(vit, "topk", "0.5@1")
    with pytest.raises(UsageError, match="attention masks are not supported"):
        reduced(images, attn_mask=torch.ones(65, 65))
    with pytest.raises(UsageError, match="attention masks are not supported"):
        reduced.forward_features(images, is_causal=True)
    with pytest.raises(UsageError, match="attention masks are not supported"):
        reduced.forward_intermediates(images, is_causal=True)


def test_bad_settings_of_a_method_are_refused(vit):
    for knobs in ({"init": "best"}, {"output": "mode"}, {"iterations": -1}):
        with pytest.raises(UsageError, match=next(iter(knobs))):
            tpbench.reduce(vit, "wkmedoids", "0.5@1", **knobs)


def test_a_model_without_class_token_is_refused_where_one_is_read(make_vit):
    model = make_vit(class_token=False, global_pool="avg")
    for name, cls in registry.discover().items():
        if cls.needs & Needs.CLS:
            with pytest.raises(UnsupportedModel, match="no class token"):
                tpbench.reduce(model, name, "0.5@1")
        else:
            tpbench.reduce(model, name, "0.5@1")


def test_blocks_hold_their_reducer_and_nothing_else_is_new(vit):
    reduced = tpbench.reduce(vit, "wkmedoids", "0.5@1,2", site="end")
    assert all(type(block) is TokenBlock for block in reduced.blocks)
    assert [block.reducer is not None for block in reduced.blocks] == [False, True, True, False]
    names = {name for name, _ in reduced.named_modules()} - {name for name, _ in vit.named_modules()}
    assert names == {"blocks.1.reducer", "blocks.2.reducer"}
