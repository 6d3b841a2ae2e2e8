"""Models beyond timm's plain one: rotary embedding, attention pooling, images of other sizes, checkpointing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

import tpbench
from tpbench import registry
from tpbench.downsampler import Site
from tpbench.errors import UsageError
from tpbench.provenance import on_grid
from tpbench.vit.pooling import WeightedPool
from tpbench.vit.rotary import Rotations

ROTARY = {
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02_elsewhere": ("eva02_tiny_patch14_224", {"ref_feat_shape": (5, 6), "rope_grid_offset": 0.5}),
    "columns_first": ("vit_small_patch16_rope_224", {"rope_grid_indexing": "xy", "rope_rotate_half": True}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "shared_keys": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
}
GRID = (8, 6)
PLACES = on_grid(GRID, torch.device("cpu"))


def noise(size: tuple[int, int] = (32, 24), batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def rotary(kind: str, **overrides) -> nn.Module:
    """A model of 8 x 6 patches."""
    name, own = ROTARY[kind]
    return tiny(name, depth=3, **{"img_size": (32, 24), **own, **overrides})


# ---------------------------------------------------------------- rotation from positions


def rotations_of(model: nn.Module) -> Rotations:
    return Rotations(model.rope, model.rope.get_embed(GRID), GRID, PLACES[None])


def check_rows(model: nn.Module) -> None:
    """Bit for bit, so that a kept token turns exactly as it did."""
    mixed = model.rope_mixed
    rotations = rotations_of(model)
    index = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:17]
    for block in range(3):
        own = rotations.table[block] if mixed else rotations.table
        assert torch.equal(rotations.of(rotations.unreduced, block), own)
        moved = rotations.of(PLACES[None, index], block)[0]
        assert torch.equal(moved if mixed else moved[0], own[..., index, :])


@pytest.mark.parametrize("kind", ROTARY)
@torch.no_grad()
def test_a_rotation_at_a_whole_position_is_a_row_of_timms_table(kind):
    check_rows(rotary(kind))


@pytest.mark.parametrize("normalise", ["min", "max"])
@torch.no_grad()
def test_dinov3_can_measure_both_sides_alike(normalise):
    model = rotary("dinov3")
    before = model.rope.get_embed(GRID)
    model.rope.normalize_coords = normalise
    assert not torch.equal(model.rope.get_embed(GRID), before)
    check_rows(model)


@pytest.mark.parametrize("kind", ROTARY)
@torch.no_grad()
def test_a_rotation_between_two_patches_is_half_way(kind):
    """Angles are linear in the position, whatever the frequencies."""
    places = torch.tensor([[[2.0, 3.0], [2.5, 3.5], [3.0, 4.0]]])
    sine, cosine = rotations_of(rotary(kind)).of(places, 1).chunk(2, dim=-1)
    turn = torch.complex(cosine.double(), sine.double())
    before, between, after = turn[0, 0]
    torch.testing.assert_close(between * between / (before * after), torch.ones_like(between), rtol=0, atol=1e-5)
    assert not torch.allclose(before, after)


def by_timm(model: nn.Module, x: Tensor, index: Tensor, turned: bool = True) -> Tensor:
    """The features when tokens index [B, K] stay behind block 0, from timm's own blocks."""
    tokens, table = model._pos_embed(model.patch_embed(x))
    first, later = (table[0], table[1:]) if model.rope_mixed else (table, [table] * 2)
    tokens = model.blocks[0](model.norm_pre(tokens), rope=first)
    prefix = torch.arange(model.num_prefix_tokens).expand(len(x), -1)
    rows = torch.cat([prefix, index + model.num_prefix_tokens], dim=1)
    tokens = tokens.gather(1, rows[:, :, None].expand(-1, -1, tokens.shape[2]))
    for block, rope in zip(model.blocks[1:], later):
        own = rope[:, index].transpose(0, 1) if model.rope_mixed else rope[index][:, None]
        tokens = block(tokens, rope=own if turned else rope[..., : index.shape[1], :])
    return model.norm(tokens)


@pytest.mark.parametrize("kind", ROTARY)
@torch.no_grad()
def test_kept_tokens_turn_by_their_own_positions(kind):
    model = rotary(kind)
    reduced = tpbench.reduce(model, "random", "0.5@0", site=Site.END)
    torch.manual_seed(0)
    tokens = reduced.forward_tokens(noise(), provenance=True).tokens
    index = tokens.provenance.patch
    torch.testing.assert_close(tokens.x, by_timm(model, noise(), index), rtol=1e-5, atol=1e-5)
    wrong = by_timm(model, noise(), index, turned=False)
    assert not torch.allclose(tokens.x, wrong, atol=0.01), "control: the positions of others show"


@torch.no_grad()
def test_merged_tokens_lie_at_the_mean_position_of_their_patches():
    reduced = tpbench.reduce(rotary("dinov3"), "tome", "0.6@0,1")
    tokens = reduced.forward_tokens(noise(), provenance=True).tokens
    for image in range(2):
        owner = tokens.provenance.owner[image]
        for k in range(tokens.count):
            torch.testing.assert_close(tokens.position[image, k], PLACES[owner == k].mean(dim=0))


@torch.no_grad()
def test_merged_tokens_turn_by_where_they_lie():
    """Moving the positions by hand moves the answer: they are what the rotation is made of."""
    model = rotary("eva02")

    class Elsewhere(registry.method("tome")):
        def forward(self, tokens, probe):
            merged = super().forward(tokens, probe)
            return replace(merged, position=merged.position.flip(1))

    here, there = (tpbench.reduce(model, method, "0.6@0")(noise()) for method in ("tome", Elsewhere))
    assert not torch.allclose(here, there, atol=0.01)


def test_random_coordinates_in_training_are_refused_where_tokens_are_reduced():
    model = rotary("shared_keys", num_classes=7)
    assert model.rope.aug_active
    plain = tpbench.reduce(model, "none").train()
    torch.manual_seed(0)
    got = plain(noise())
    torch.manual_seed(0)
    assert torch.equal(got, model.train()(noise()))
    reduced = tpbench.reduce(model, "topk", "0.5@0").train()
    with pytest.raises(UsageError, match=r"set rope\.aug_active = False"):
        reduced(noise())
    reduced.rope.aug_active = False
    assert reduced(noise()).isfinite().all()


# ---------------------------------------------------------------- attention pooling


def pool_of(name: str = "vit_base_patch16_siglip_224") -> WeightedPool:
    return tpbench.reduce(tiny(name, depth=2), "none").attn_pool


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_pe_core_tiny_patch16_384"])
@torch.no_grad()
def test_a_token_of_weight_three_counts_as_three_tokens(name):
    pool = pool_of(name)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1, 3, 1, 2, 1])
    several = x.repeat_interleave(weight, dim=1)
    torch.testing.assert_close(pool(x, weight.float().expand(2, -1)), pool(several))
    assert not torch.allclose(pool(x), pool(several), atol=1e-3), "control: without weights they count once"


def test_weights_with_a_gradient_pool_alike_and_reach_what_is_hidden():
    pool = pool_of()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0, 0.0, 2.0, 1.0, 3.0]]).repeat(2, 1)
    want = pool(x, weight)
    torch.testing.assert_close(want, pool(x[:, [0, 2, 3, 4]], weight[:, [0, 2, 3, 4]]))
    learned = weight.clone().requires_grad_()
    got = pool(x, learned)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    assert learned.grad.isfinite().all()
    assert (learned.grad[:, 1] != 0).all()


@torch.no_grad()
def test_sizes_reach_the_pool():
    reduced = tpbench.reduce(tiny("vit_base_patch16_siglip_224", depth=2), "tome", "0.6@1")
    out = reduced.forward_tokens(noise((32, 32)))
    assert (out.tokens.size > 1).any()
    assert torch.equal(reduced.classify(out.tokens), out.logits)
    once = reduced.classify(replace(out.tokens, size=torch.ones_like(out.tokens.size)))
    assert not torch.allclose(once, out.logits, atol=1e-3)


# ---------------------------------------------------------------- images of other sizes

DYNAMIC = {
    "vit": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "padded": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "dynamic_img_pad": True}),
}


@pytest.mark.parametrize("kind", DYNAMIC)
@pytest.mark.parametrize("method", ["topk", "tome", "wkmedoids", "avgpool"])
@torch.no_grad()
def test_images_of_another_size_are_planned_for_by_the_same_rate(kind, method):
    """As by a model that was made for that size: 6 x 12 patches where the schedule first met 8 x 8."""
    name, overrides = DYNAMIC[kind]
    model = tiny(name, depth=3, **overrides)
    reduced = tpbench.reduce(model, method, "0.7@0,1")
    own = reduced.reducers
    before = reduced(noise((32, 32)))
    images = noise((22 if kind == "padded" else 24, 48))
    out = reduced.forward_tokens(images, provenance=True)
    there = copy.deepcopy(model)
    there.set_input_size((24, 48))
    want = tpbench.reduce(there, method, "0.7@0,1").forward_tokens(images)
    assert out.counts == want.counts
    assert out.counts[0] < 72
    assert out.tokens.provenance.grid == (6, 12)
    torch.testing.assert_close(out.logits, want.logits, rtol=1e-4, atol=1e-4)
    assert all(a is b for a, b in zip(reduced.reducers, own, strict=True)), "the model's own reducers are back"
    assert torch.equal(reduced(noise((32, 32))), before)


def test_weights_are_shared_between_sizes():
    model = tiny(dynamic_img_size=True, depth=3)
    reduced = tpbench.reduce(model, "dynamicvit", "0.7@0,1")
    images = noise((24, 48))
    before = reduced(images)
    with torch.no_grad():
        for p in reduced.reducers[0].parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(reduced(images), before)
    torch.manual_seed(0)
    reduced.train()(images).square().sum().backward()
    assert all(p.grad is not None for reducer in reduced.reducers for p in reducer.parameters())


@torch.no_grad()
def test_what_timm_does_to_a_model_is_refused_where_a_reduced_one_would_mislead():
    model = tiny(depth=3)
    reduced = tpbench.reduce(model, "topk", "0.7@1")
    with pytest.raises(UsageError, match="call set_input_size before reduce"):
        reduced.set_input_size((64, 64))
    assert torch.equal(reduced.forward_head(reduced.forward_features(noise((32, 32)))), reduced(noise((32, 32))))
    mean = tpbench.reduce(tiny(depth=3, class_token=False, global_pool="avg"), "tome", "0.6@0,1")
    with pytest.raises(UsageError, match="what each token stands for"):
        mean.forward_head(mean.forward_features(noise((32, 32))))
    with pytest.raises(UsageError, match="cannot pool by 'max'"):
        mean.reset_classifier(5, "max")
    mean.reset_classifier(5)
    assert mean(noise((32, 32))).shape == (2, 5)
    plain = tpbench.reduce(model, "none")  # control: nothing is reduced
    plain.set_input_size((64, 64))
    assert plain(noise((64, 64))).shape == (2, 7)


@torch.no_grad()
def test_shift_is_measured_before_a_path_is_dropped():
    """Otherwise an image whose path is dropped keeps its first tokens."""
    torch.manual_seed(0)
    model = tpbench.reduce(tiny(depth=3, drop_path_rate=0.9), "shift", "0.25@2").train()
    kept = model.forward_tokens(noise((32, 32), batch=6), provenance=True).tokens.provenance.patch
    assert not (kept == torch.arange(16)).all(dim=1).any()


@torch.no_grad()
def test_what_fits_one_size_is_refused_at_another():
    model = tiny(dynamic_img_size=True, depth=3)
    large = noise((48, 48))
    assert torch.equal(tpbench.reduce(model, "none")(large), model(large))
    with pytest.raises(UsageError, match="PatchMerger has no weights for images of another size at block 1"):
        tpbench.reduce(model, "patchmerger", "0.7@1")(large)
    with pytest.raises(UsageError, match="were solved for 64 patch tokens, these images give 144: give a keep rate"):
        tpbench.reduce(model, "topk", "macs=0.8@1")(large)
    with pytest.raises(UsageError, match=r"these images give 16 patch tokens: .*40 tokens after block 1"):
        tpbench.reduce(model, "topk", "40@1")(noise((16, 16)))
    with pytest.raises(AssertionError, match="Input height"):  # timm's own words
        tpbench.reduce(tiny(depth=2), "topk", "0.7@1")(large)


# ---------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch16_rope_mixed_224", "sapiens"])
@pytest.mark.parametrize("method", ["random", "tome", "dynamicvit", "sit"])
def test_checkpointing_changes_no_gradient(name, method):
    plain = {"depth": 3, "img_size": (32, 24)}
    model = rotary("shared_keys", num_classes=7) if name == "sapiens" else tiny(name, **plain)
    if getattr(model, "rope", None) is not None:
        model.rope.aug_active = False
    torch.manual_seed(0)
    reduced = tpbench.reduce(model, method, "0.7@0,1").train()
    found = []
    for again in (False, True):
        reduced.set_grad_checkpointing(again)
        reduced.zero_grad()
        torch.manual_seed(0)
        reduced(noise()).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in reduced.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
