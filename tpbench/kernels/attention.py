"""Attention that also returns how much attention every token receives.

Shapes: B images, H heads, N tokens (prefix included), D head width. Attention is softmax(q k^T scale + bias) v;
`received` is its column sum over the N queries, mean over heads: [B, N] float32; `own` is the diagonal alone.
Neither carries a gradient: scores choose tokens, and nothing is learned through them.
Three custom operators, each with a fake and a FLOP formula; [B, H, N, N] never exists for more than a few images.

attend_and_receive  both in one pass, for inference: on a CPU a few images at a time, so that the scores stay in the
                    cache; on a GPU where a row of scores fits a tile.
receive             the sums alone, in addition to any attention for the output: for training, and for long
                    sequences on a GPU. The output's gradient is that of the fused attention.

attention_transpose_apply  repeated weighted column sums, head by head: what PageRank on the attention is made of.

On a CUDA device that Triton compiles for, the first two run the kernels of `attention_triton`; elsewhere the
definitions here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from tpbench.kernels.device import triton_runs_on

CACHE_SCORES = 2**17  # scores at a time on a CPU: half a MiB of float32, one image of a common model
DEVICE_SCORES = 2**28  # scores at a time elsewhere: 1 GiB of float32
ONE_PASS_TOKENS = 256  # the longest sequences that a GPU attends and sums over in one pass, unless measured otherwise


def attention_with_received(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, D], bias [B, 1, 1, N] or None -> out [B, H, N, D], received [B, N], own [B, N]."""
    q = q.to(v.dtype)
    k = k.to(v.dtype)  # under autocast a norm may have left them wider, as for any fused attention
    inference = not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
    if inference and dropout == 0.0 and not extra_pass(q.device, q.shape[2]):
        return torch.ops.tpbench.attend_and_receive(q, k, v, bias, scale)
    out, lse = _attention_and_lse(q, k, v, bias, scale, dropout)
    received, own = torch.ops.tpbench.receive(_detached(q), _detached(k), _detached(bias), _detached(lse), scale)
    return out, received, own


def extra_pass(device: torch.device, n: int) -> bool:
    """Whether inference over n tokens on this device computes the scores a second time to sum them."""
    return device.type != "cpu" and n > ONE_PASS_TOKENS


def _attention_and_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Fused attention, and the log-sum-exp of every row of scores [B, H, N] where the kernel returns it."""
    fits = bias is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0
    if fits and flash_runs_on(q.device):
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(q, k, v, dropout_p=dropout, is_causal=False, return_debug_mask=False, scale=scale)[:2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale), None


@torch.compiler.assume_constant_result
def flash_runs_on(device: torch.device) -> bool:
    """Whether the operator of flash attention may be called directly on a device."""
    if device.type != "cuda" or not torch.backends.cuda.flash_sdp_enabled():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def class_attention(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The first token's row of the attention, mean over heads: [B, N] float32."""
    scores = (q[:, :, :1].detach() @ k.detach().transpose(-2, -1)).float() * scale
    scores = scores if bias is None else scores + bias.detach()
    return scores.softmax(dim=-1).mean(dim=1)[:, 0].float()


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, alive: Tensor, scale: float, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in which key j is multiplied by alive [B, N] and every token sees itself (DynamicViT, eq. 11).

    exp(scores) is multiplied by alive, instead of adding its logarithm, so that gradients reach alive where it is 0.
    Every key also counts `count` [B, N] > 0 times (None: once).
    Returns the output [B, H, N, D] and the attention itself [B, H, N, N], the latter without gradient.
    """
    scores = (q @ k.transpose(-2, -1)).float() * scale
    own = torch.eye(alive.shape[1], device=alive.device, dtype=scores.dtype)
    visible = alive[:, None, None, :].to(scores.dtype)
    visible = visible + (1 - visible) * own
    visible = visible if count is None else visible * count[:, None, None, :].to(scores.dtype)
    highest = scores.detach().masked_fill(visible == 0, float("-inf")).amax(dim=-1, keepdim=True)
    weight = (scores - highest).clamp(max=30).exp() * visible  # hidden scores far above all visible ones: no overflow
    attention = weight / weight.sum(dim=-1, keepdim=True)
    return attention.to(v.dtype) @ v, attention.detach()


@torch.library.custom_op("tpbench::receive", mutates_args=())
def receive(q: Tensor, k: Tensor, bias: Tensor | None, lse: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention received [B, N] and its diagonal [B, N], from the scores alone.

    lse [B, H, N], the log-sum-exp of every row, saves the fused kernel a pass; the definition does not use it.
    """
    if triton_runs_on(q.device):
        from tpbench.kernels import attention_triton

        return attention_triton.receive(q, k, bias, lse, scale)
    batch, heads, n, _ = q.shape
    received = q.new_empty(batch, n, dtype=torch.float32)
    own = q.new_empty(batch, n, dtype=torch.float32)
    for part, buffer in _chunks(q):
        attention = _attention(q[part], k[part], None if bias is None else bias[part], scale, buffer)
        _column_sums(attention, received[part], own[part])
    return received.div_(heads), own.div_(heads)


@torch.library.custom_op("tpbench::attend_and_receive", mutates_args=())
def attend_and_receive(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's output [B, H, N, D] with the attention received [B, N] and its diagonal [B, N], in one pass."""
    if triton_runs_on(q.device):
        from tpbench.kernels import attention_triton

        return attention_triton.attend_and_receive(q, k, v, bias, scale)
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)  # laid out as the projection after it reads it
    received = q.new_empty(batch, n, dtype=torch.float32)
    own = q.new_empty(batch, n, dtype=torch.float32)
    outputs = q.new_empty(min(batch, _images(q)) * heads, n, v.shape[-1])
    for part, buffer in _chunks(q):
        attention = _attention(q[part], k[part], None if bias is None else bias[part], scale, buffer)
        product = torch.bmm(attention.flatten(0, 1), v[part].flatten(0, 1), out=outputs[: len(attention) * heads])
        out[part] = product.view(-1, heads, n, v.shape[-1])
        _column_sums(attention, received[part], own[part])
    return out, received.div_(heads), own.div_(heads)


@torch.library.custom_op("tpbench::attention_transpose_apply", mutates_args=())
def attention_transpose_apply(q: Tensor, k: Tensor, s: Tensor, times: int) -> Tensor:
    """s <- A^T s, `times` times, for the attention A = softmax(q k^T) of every head: s [B, H, N] float32 -> the same.

    q, which holds the scale already, and k [B, H, N, D]. The rows of A sum to 1, so that the sum of s stays.
    """
    out = torch.empty_like(s, memory_format=torch.contiguous_format)
    for part, buffer in _chunks(q):
        attention = _attention(q[part], k[part], None, 1.0, buffer).flatten(0, 1).to(s.dtype)
        row = s[part].flatten(0, 1)[:, None]
        for _ in range(times):
            row = torch.bmm(row, attention)
        out[part] = row.view_as(out[part])
    return out


def _images(q: Tensor) -> int:
    """How many images at a time: on a CPU, as many as have scores that stay in the cache."""
    _, heads, n, _ = q.shape
    return max(1, (CACHE_SCORES if q.device.type == "cpu" else DEVICE_SCORES) // (heads * n * n))


def _chunks(q: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of images, each with the part [b, H, N, N] of one buffer that its scores may use.

    On a CPU, a fresh buffer for every chunk would cost more than all other steps besides the two products.
    """
    batch, heads, n, _ = q.shape
    step = _images(q)
    buffer = q.new_empty(min(step, batch), heads, n, n)
    for start in range(0, batch, step):
        yield slice(start, start + step), buffer[: batch - start]


def _attention(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, buffer: Tensor) -> Tensor:
    flat = buffer.flatten(0, 1)
    torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=0, alpha=scale, out=flat)
    return torch.softmax(buffer if bias is None else buffer.add_(bias), dim=-1, out=buffer)


def _column_sums(attention: Tensor, received: Tensor, own: Tensor) -> None:
    """Sums over queries and heads, in place; their mean over heads is taken once for all images."""
    torch.sum(attention, dim=(1, 2), dtype=torch.float32, out=received)
    torch.sum(attention.diagonal(dim1=-2, dim2=-1), dim=1, dtype=torch.float32, out=own)


@receive.register_fake
def _(q: Tensor, k: Tensor, bias: Tensor | None, lse: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    sums = q.new_empty(q.shape[0], q.shape[2], dtype=torch.float32)
    return sums, torch.empty_like(sums)


@attend_and_receive.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    batch, heads, n, _ = q.shape
    sums = q.new_empty(batch, n, dtype=torch.float32)
    return q.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2), sums, torch.empty_like(sums)


@attention_transpose_apply.register_fake
def _(q: Tensor, k: Tensor, s: Tensor, times: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(s, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.tpbench.attention_transpose_apply)
def _transpose_flops(q, k, s, times, *args, **kwargs) -> int:  # noqa: ARG001
    batch, heads, n, width = q  # the counter passes shapes
    return 2 * batch * heads * n * n * (width + times)


@register_flop_formula(torch.ops.tpbench.receive)
def _receive_flops(q, k, *args, **kwargs) -> int:  # noqa: ARG001
    batch, heads, n, width = q  # the counter passes shapes
    return 2 * batch * heads * n * n * width


@register_flop_formula(torch.ops.tpbench.attend_and_receive)
def _attend_flops(q, k, v, *args, **kwargs) -> int:  # noqa: ARG001
    batch, heads, n, width = q  # the counter passes shapes
    return 2 * batch * heads * n * n * (width + v[-1])
