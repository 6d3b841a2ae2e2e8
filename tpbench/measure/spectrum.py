"""Is softmax attention a low-pass filter over key space? Gains by frequency for each head, on real images.

softmax(q k / sqrt d) = exp(-|q - k|^2 / (2 sqrt d)) exp(|k|^2 / (2 sqrt d)) up to a factor that cancels. If all keys
have the same norm, this is a Gaussian smoothing of the values over key space. The signal is the values at their keys,
and frequencies are those of the graph G_ij = exp(-|k_i - k_j|^2 / (2 sqrt d)) over the keys. P = D^-1 G has the
eigenvectors D^-1/2 u_l and eigenvalues 1 - lambda_l, and a signal f has the coefficients u_l^T D^1/2 f. Attention whose
queries are keys of one norm equals P, and its gain at lambda is exactly 1 - lambda. Real keys differ in norm, and the
model's queries differ from its keys, so three gains are measured:

    at_the_keys   the filter with the keys as queries
    as_it_is      the model's attention: the output of token i, whatever its query, against the values over the keys
    one_key_norm  the same with all keys scaled to their mean norm

The model's queries may turn low frequencies of the input into high ones of the output.

Shapes: B images, H heads, N tokens, D head width. A gain is (energy out / energy in)^1/2 of one head over all images.
"""

from __future__ import annotations

from math import exp, log

import torch
from torch import Tensor, nn

from tpbench.record import Gains, Spectrum
from tpbench.vit import TokenViT

BANDS = 8  # with equally many frequencies each, from low to high, without the constant


@torch.no_grad()
def spectrum(model: TokenViT, images: Tensor) -> Spectrum:
    """The gains of every block and head on `images` [B, C, height, width]."""
    kernel: list[list[list[float]]] = []
    variation: list[float] = []
    readings: dict[str, list] = {"at_the_keys": [], "as_it_is": [], "one_key_norm": []}
    for q, k, v, scale in projections(model, images):
        norms = k.norm(dim=-1, keepdim=True)  # [B, H, N, 1]
        one_norm = k / norms * norms.mean(dim=(0, 2), keepdim=True)
        variation.append((norms.std() / norms.mean()).item())
        kernel.append(gains(one_norm, one_norm, v=v, scale=scale).tolist())
        readings["at_the_keys"].append(gains(k, k, v=v, scale=scale).tolist())
        readings["as_it_is"].append(gains(q, k, v=v, scale=scale).tolist())
        readings["one_key_norm"].append(gains(q, one_norm, v=v, scale=scale).tolist())
    found = {name: Gains(gains=gain, high_over_low=high_over_low(gain)) for name, gain in readings.items()}
    return Spectrum(images=len(images), kernel=kernel, key_norm_variation=variation, **found)


def projections(model: TokenViT, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Queries, keys and values [B, H, N, D] of every block, in double precision on the CPU, and the scale."""
    found: list[tuple[Tensor, Tensor, Tensor, float]] = []

    def look(attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, v = (part.detach().cpu().double() for part in attention.project(inputs[0]))
        found.append((q, k, v, attention.scale))

    hooks = [block.attn.register_forward_pre_hook(look) for block in model.blocks]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gains(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The gain of each head at the constant and in each band: [H, 1 + BANDS]."""
    out = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1) @ v
    basis, root_degree = fourier(k, scale)
    before, after = (energies(basis, root_degree, signal) for signal in (v, out))
    return (after / before).sqrt()


def fourier(k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The graph of keys: eigenvectors [B, H, N, N] in columns from low to high frequency, and D^1/2 [B, H, N, 1]."""
    square = k.square().sum(dim=-1)
    distance = square[..., :, None] + square[..., None, :] - 2 * k @ k.transpose(-2, -1)
    kernel = (-0.5 * scale * distance.clamp(min=0)).exp()
    root_degree = kernel.sum(dim=-1, keepdim=True).sqrt()
    _, vectors = torch.linalg.eigh(kernel / root_degree / root_degree.transpose(-2, -1))
    return vectors.flip(-1), root_degree  # eigh gives 1 - lambda from small to large


def energies(basis: Tensor, root_degree: Tensor, signal: Tensor) -> Tensor:
    """Energy of a signal [B, H, N, D] at the constant and in each band, over images and channels: [H, 1 + BANDS]."""
    energy = (basis.transpose(-2, -1) @ (root_degree * signal)).square().sum(dim=(0, 3))  # [H, N]
    bands = energy[:, 1:].tensor_split(BANDS, dim=1)
    return torch.stack([energy[:, 0], *(band.sum(dim=1) for band in bands)], dim=1)


def high_over_low(gain: list[list[list[float]]]) -> float:
    """The gain of the upper half of the bands over that of the lowest quarter, by geometric means over all heads.

    Below 1, high frequencies are damped more than low ones. The constant is left out.
    """
    heads = [head[1:] for block in gain for head in block]
    high = [log(value) for head in heads for value in head[BANDS // 2 :]]
    low = [log(value) for head in heads for value in head[: BANDS // 4]]
    return exp(sum(high) / len(high) - sum(low) / len(low))
