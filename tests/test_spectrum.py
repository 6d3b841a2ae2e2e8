"""The filter that attention is: exact where theory is exact, and flat for what is no smoothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from tpbench.measure import spectrum
from tpbench.vit import reduce

SCALE = 0.25


def signals(seed: int = 0, tokens: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of one norm and values that vary with them, and with noise: [B, H, N, D]."""
    generator = torch.Generator().manual_seed(seed)
    k = 4 * F.normalize(torch.randn(2, 3, tokens, 8, generator=generator, dtype=torch.double), dim=-1)
    return k, 2 * k + torch.randn(k.shape, generator=generator, dtype=torch.double)


def test_attention_over_keys_of_one_norm_is_the_kernel_and_damps_by_one_minus_lambda():
    k, v = signals()
    basis, root_degree = spectrum.fourier(k, SCALE)
    out = (SCALE * k @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    before, after = (basis.transpose(-2, -1) @ (root_degree * signal) for signal in (v, out))
    kernel = (-0.5 * SCALE * torch.cdist(k, k).square()).exp() / root_degree / root_degree.transpose(-2, -1)
    factor = torch.linalg.eigvalsh(kernel).flip(-1)
    torch.testing.assert_close(after, factor[..., None] * before)
    assert (factor[..., 0] - 1).abs().max() < 1e-9
    uneven = k * torch.linspace(0.5, 1.5, k.shape[2])[:, None]
    other = (SCALE * uneven @ uneven.transpose(-2, -1)).softmax(dim=-1) @ v
    basis, root_degree = spectrum.fourier(uneven, SCALE)
    before, after = (basis.transpose(-2, -1) @ (root_degree * signal) for signal in (v, other))
    kernel = (-0.5 * SCALE * torch.cdist(uneven, uneven).square()).exp() / root_degree / root_degree.transpose(-2, -1)
    factor = torch.linalg.eigvalsh(kernel).flip(-1)
    assert (after - factor[..., None] * before).abs().max() > 0.1, "control: with uneven norms it is not"


def test_smoothing_is_low_pass_and_copying_is_not():
    k, v = signals()
    smooth = spectrum.gains(k, k, v, SCALE)
    assert (smooth.diff(dim=1) < 0).all(), "the higher the frequency, the smaller the gain"
    torch.testing.assert_close(smooth[:, 0], torch.ones(3, dtype=torch.double))
    assert spectrum.high_over_low([smooth.tolist()]) < 0.5
    copied = spectrum.gains(1e4 * k, k, v, SCALE)  # each query sees its own key alone
    torch.testing.assert_close(copied, torch.ones_like(copied))
    assert spectrum.high_over_low([copied.tolist()]) == pytest.approx(1)


def test_a_model_is_measured_block_by_block(vit, images):
    model = reduce(vit, "none")
    found = spectrum.spectrum(model, images)
    logits = model(images)
    assert len(found.key_norm_variation) == len(model.blocks) == len(found.as_it_is.gains)
    assert [len(head) for head in found.as_it_is.gains[0]] == [1 + spectrum.BANDS] * 2
    readings = [found.at_the_keys.gains, found.as_it_is.gains, found.one_key_norm.gains]
    assert all(a != b for a, b in pairwise(readings))
    assert all(a > b for block in found.kernel for head in block for a, b in pairwise(head))
    torch.testing.assert_close(model(images), logits, msg="no hook stays")


def test_the_projections_are_the_models_own(vit, images):
    """Attention put together from them is what the block computes."""
    model = reduce(vit, "none").eval()
    q, k, v, scale = spectrum.projections(model, images)[0]
    out = ((q @ k.transpose(-2, -1) * scale).softmax(dim=-1) @ v).transpose(1, 2).flatten(2).float()
    block = model.blocks[0]
    with torch.no_grad():
        x = model.embed(images).x
        torch.testing.assert_close(block.attn.proj(out), block.attn(block.norm1(x))[0], rtol=1e-4, atol=1e-4)
