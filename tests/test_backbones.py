"""Every method on every kind of backbone: it runs, meets its tokens and counts its MACs, or is refused in words."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from conftest import tiny
from torch import nn

import tpbench
from tpbench import registry
from tpbench.downsampler import Needs
from tpbench.errors import UnsupportedModel
from tpbench.measure import flops

REDUCING = [name for name, card in registry.catalogue()[0].items() if not card.unreduced]
BACKBONES = {
    "vit": ("vit_tiny_patch16_224", {}),
    "layer_scale": ("deit3_small_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "average_pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "no_class_token": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "many_patches": ("deit_base_patch16_384", {"img_size": 48}),  # 144 of them, as 384 px has more than 224
    "distilled": ("deit_base_distilled_patch16_384", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "oblong": ("vit_tiny_patch16_224", {"img_size": (32, 48)}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "perception_encoder": ("vit_pe_core_tiny_patch16_384", {"img_size": (32, 48)}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "shared_keys": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1, "num_classes": 7}),
}
WITHOUT_CLASS_TOKEN = {"no_class_token", "siglip"}


@cache
def backbone(kind: str) -> nn.Module:
    name, overrides = BACKBONES[kind]
    return tiny(name, depth=3, **overrides)


def refuses(method: str, kind: str) -> bool:
    """Whoever reads the class token's attention needs one."""
    return bool(registry.method(method).needs & Needs.CLS) and kind in WITHOUT_CLASS_TOKEN


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("method", REDUCING)
@torch.no_grad()
def test_every_method_runs_on_every_backbone_or_is_refused_in_words(method, kind):
    base = backbone(kind)
    patches = base.patch_embed.num_patches
    if refuses(method, kind):
        with pytest.raises(
            UnsupportedModel, match="reads the class token's attention, and this model has no class token"
        ):
            tpbench.reduce(base, method, "0.6@1")
        return
    model = tpbench.reduce(base, method, "0.6@1")
    images = torch.randn(2, 3, *base.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    out = model.forward_tokens(images)
    asked, leaves = int(0.6 * patches), model.reducers[0].tokens_out
    assert out.counts == (patches, leaves, leaves)
    count = registry.catalogue()[0][method].count
    assert leaves == {"exact": asked, "masked": patches}.get(count, min(leaves, asked))
    assert out.tokens.x.shape == (2, base.num_prefix_tokens + leaves, base.embed_dim)
    assert out.logits.shape == base(images).shape
    assert out.logits.isfinite().all()
    assert flops.measured(model) == flops.closed_form(model)
    if method != "avit":  # control: reducing shows
        assert not torch.equal(out.logits, base(images))


def test_control_who_is_refused_is_not_everybody():
    refused = [(method, kind) for method in REDUCING for kind in BACKBONES if refuses(method, kind)]
    assert {kind for _, kind in refused} == WITHOUT_CLASS_TOKEN
    assert 0 < len(refused) < len(REDUCING)


def test_a_setting_decides_what_a_method_must_see():
    """Token Pooling weighted by the class token's attention needs a class token; weighted as published it does not."""
    base = backbone("no_class_token")
    assert tpbench.reduce(base, "wkmedoids", "0.6@1").reducers[0].needs == Needs.RECEIVED
    with pytest.raises(UnsupportedModel, match="no class token"):
        tpbench.reduce(base, "wkmedoids", "0.6@1", weights="class")
