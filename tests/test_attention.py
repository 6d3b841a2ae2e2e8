"""Attention and what is read off it, against softmax written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tpbench.kernels import attention as kernels

SCALE = 0.3
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}  # sums are float32 at best


def heads(dtype: torch.dtype = torch.float32, b: int = 5, h: int = 3, n: int = 11, d: int = 4, seed: int = 0):
    """q, k, v [B, H, N, D] laid out as timm's projection leaves them."""
    qkv = torch.randn(b, n, 3, h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def some_bias(b: int = 5, n: int = 11, hidden: bool = False) -> Tensor:
    """log of how often each key counts: [B, 1, 1, N]; hidden: some not at all."""
    count = torch.randint(1, 5, (b, n), generator=torch.Generator().manual_seed(3)).float()
    if hidden:
        count[:, 2::3] = 0
    return count.log()[:, None, None]


def explicit(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights [B, H, N, N] in float64."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) * SCALE
    weight = (scores if bias is None else scores + bias.double()).exp()
    return weight / weight.sum(-1, keepdim=True)


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    """Every number within the dtype's tolerance of the largest."""
    worst = (a.double() - b.double()).abs().max() / b.double().abs().max()
    assert worst < TOLERANCE[dtype], worst


@pytest.fixture(params=[None, 1, 2, 10**9], ids=lambda images: f"chunks_of_{images}")
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images at a time: the default, one, two (the last chunk is smaller), all."""
    if request.param is not None:
        monkeypatch.setattr(kernels, "CACHE_SCORES", request.param * 3 * 11 * 11)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("bias", [None, "counts", "hidden"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_output_received_and_own_are_what_softmax_says(dtype, bias, grad):
    q, k, v = heads(dtype)
    bias = None if bias is None else some_bias(hidden=bias == "hidden").to(dtype)
    out, received, own = kernels.attention_with_received(q.requires_grad_(grad), k, v, bias, SCALE)
    weight = explicit(q, k, bias)
    close(out, weight @ v.double(), dtype)
    close(received, weight.sum(2).mean(1), dtype)
    close(own, weight.diagonal(dim1=-2, dim2=-1).mean(1), dtype)
    assert out.requires_grad == grad
    assert received.dtype == own.dtype == torch.float32
    assert not received.requires_grad
    assert not own.requires_grad
    torch.testing.assert_close(received.sum(1), torch.full((5,), 11.0), rtol=TOLERANCE[dtype], atol=0)


def test_control_sums_over_the_wrong_side_differ():
    """Row sums are all 1; sums without bias, or without scale, are others too."""
    q, k, v = heads()
    bias = some_bias()
    _, received, own = kernels.attention_with_received(q, k, v, bias, SCALE)
    for wrong in (explicit(q, k, bias).sum(3), explicit(q, k, None).sum(2), explicit(q / SCALE, k, bias).sum(2)):
        assert (received - wrong.mean(1)).abs().max() > 0.1
    assert (own - explicit(q, k, bias).diagonal(dim1=-2, dim2=-1).sum(1)).abs().max() > 0.1


@pytest.mark.parametrize("bias", [None, "counts"])
def test_gradients_are_those_of_fused_attention(bias):
    bias = None if bias is None else some_bias()
    ours, theirs = ([t.clone().requires_grad_() for t in heads()] for _ in range(2))
    upstream = heads(seed=1)[0]
    (kernels.attention_with_received(*ours, bias, SCALE)[0] * upstream).sum().backward()
    (F.scaled_dot_product_attention(*theirs, attn_mask=bias, scale=SCALE) * upstream).sum().backward()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)
    # Control: at another scale they are not.
    others = [t.clone().requires_grad_() for t in heads()]
    (F.scaled_dot_product_attention(*others, attn_mask=bias) * upstream).sum().backward()
    assert not torch.allclose(ours[0].grad, others[0].grad)


def test_a_gradient_in_any_of_the_three_is_kept():
    for which in range(3):
        qkv = [t.clone() for t in heads()]
        qkv[which].requires_grad_()
        kernels.attention_with_received(*qkv, None, SCALE)[0].square().sum().backward()
        assert qkv[which].grad.abs().max() > 0


def test_dropout_drops_and_is_not_received():
    q, k, v = heads()
    torch.manual_seed(0)
    out, received, _ = kernels.attention_with_received(q, k, v, None, SCALE, dropout=0.5)
    whole, same, _ = kernels.attention_with_received(q, k, v, None, SCALE)
    assert not torch.allclose(out, whole)
    torch.testing.assert_close(received, same)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_float32_bias_meets_bf16_heads(autocast, grad):
    """As under autocast, where the norm before gives float32 and the projection bfloat16."""
    q, k, v = heads(torch.bfloat16)
    bias = some_bias()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
        cast = bias if autocast else bias.bfloat16()
        out, received, _ = kernels.attention_with_received(q.requires_grad_(grad), k, v, cast, SCALE)
    close(out.detach(), explicit(q, k, bias) @ v.double(), torch.bfloat16)
    close(received, explicit(q, k, bias).sum(2).mean(1), torch.bfloat16)


@pytest.mark.parametrize("bias", [None, "counts", "hidden"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_class_attention_is_the_first_row(dtype, bias):
    q, k, _ = heads(dtype)
    bias = None if bias is None else some_bias(hidden=bias == "hidden").to(dtype)
    row = kernels.class_attention(q.requires_grad_(), k, bias, SCALE)
    close(row, explicit(q, k, bias)[:, :, 0].mean(1), dtype)
    assert row.dtype == torch.float32
    assert not row.requires_grad
    assert (row - explicit(q, k, bias)[:, :, 1].mean(1)).abs().max() > 0.01  # control: another row


def alive_some() -> Tensor:
    return (torch.rand(5, 11, generator=torch.Generator().manual_seed(8)) > 0.4).float()


def test_masked_attention_is_attention_over_the_living():
    q, k, v = heads()
    alive = alive_some()
    out, _ = kernels.masked_attention(q, k, v, alive, SCALE)
    for b in range(len(q)):
        live = alive[b].bool()
        weight = explicit(q[b : b + 1, :, live], k[b : b + 1, :, live], None)
        want = weight @ v[b : b + 1, :, live].double()
        torch.testing.assert_close(out[b : b + 1, :, live], want.float())
    # Control: attention over everybody is another.
    assert (out - explicit(q, k, None).float() @ v).abs().max() > 0.1


def test_a_dead_token_sees_itself_and_the_living():
    q, k, v = heads()
    alive = alive_some()
    dead = int((alive[0] == 0).nonzero()[0])
    out = kernels.masked_attention(q, k, v, alive, SCALE)[0][0, :, dead]
    sees = alive[0].bool() | (torch.arange(11) == dead)
    weight = explicit(q[:1, :, dead : dead + 1], k[:1, :, sees], None)[0]
    torch.testing.assert_close(out, (weight @ v[0, :, sees].double())[:, 0].float())


def test_what_the_dead_hold_is_invisible_to_the_living():
    q, k, v = heads()
    alive = alive_some()
    dead = (alive == 0)[:, None, :, None]
    out, _ = kernels.masked_attention(q, k, v, alive, SCALE)
    changed, _ = kernels.masked_attention(q, torch.where(dead, k + 5, k), torch.where(dead, -9 * v, v), alive, SCALE)
    living = alive.bool()[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(changed[living], out[living])
    # Control: the values of the living are not.
    assert not torch.allclose(
        kernels.masked_attention(q, k, v + dead.logical_not(), alive, SCALE)[0][living], out[living]
    )


def test_everybody_alive_is_plain_attention():
    q, k, v = heads()
    want = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    torch.testing.assert_close(kernels.masked_attention(q, k, v, torch.ones(5, 11), SCALE)[0], want)


@pytest.mark.parametrize("size", [1.0, 12.0], ids=["scores_of_3", "scores_of_300"])
def test_gradients_reach_alive_where_it_is_zero(size):
    q, k, v = ((t * size).requires_grad_() for t in heads())
    alive = alive_some().requires_grad_()
    kernels.masked_attention(q, k, v, alive, SCALE)[0].square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v, alive))
    if size == 1:
        assert alive.grad[alive == 0].abs().min() > 0
    # Control: through the bias log(alive) there is none worth the name.
    again = alive_some().requires_grad_()
    bias = again.log()[:, None, None]
    F.scaled_dot_product_attention(*heads(), attn_mask=bias, scale=SCALE).square().sum().backward()
    assert not again.grad.isfinite().all()


def test_gradients_under_the_mask_are_those_of_the_formula():
    """Eq. 11 of DynamicViT written out: key j counts alive_j times, a token itself once."""
    alive = torch.rand(5, 11, generator=torch.Generator().manual_seed(2)) * alive_some()
    ours = [t.clone().requires_grad_() for t in (*heads(), alive)]
    theirs = [t.double().requires_grad_() for t in (*heads(), alive)]
    kernels.masked_attention(*ours, SCALE)[0].square().sum().backward()
    q, k, v, a = theirs
    count = a[:, None, None, :] * (1 - torch.eye(11)) + torch.eye(11)
    weight = (q @ k.mT * SCALE).exp() * count
    ((weight / weight.sum(-1, keepdim=True)) @ v).square().sum().backward()
    for mine, want in zip(ours, theirs):
        torch.testing.assert_close(mine.grad, want.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [None, "counts"])
@pytest.mark.parametrize("name", ["receive", "attend_and_receive"])
def test_the_operators_fakes_agree(name, bias):
    q, k, v = heads()
    bias = None if bias is None else some_bias()
    arguments = (q, k, bias, None, SCALE) if name == "receive" else (q, k, v, bias, SCALE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.tpbench, name), arguments, test_utils=checks)


def test_the_counter_sees_both_passes():
    pairs, d = 5 * 3 * 11 * 11, 4
    q, k, v = heads()
    with FlopCounterMode(display=False) as counter:
        kernels.attention_with_received(q, k, v, None, SCALE)
    assert counter.get_total_flops() == 2 * pairs * 2 * d
    with FlopCounterMode(display=False) as counter:
        torch.ops.tpbench.receive(q, k, None, None, SCALE)
    assert counter.get_total_flops() == 2 * pairs * d
