"""Every reducer and every form of attention by itself, at the width of DeiT-S: part of `tox -e opbench`.

Their cost is compared with operations that are timed in the same turns: a block of the model, top-K, K-Medoids as a
plain loop, and the two ceilings of the roofline (a copy of as many bytes as the tokens have, and a matrix product).
Tokens are normal noise; the results of attention on them are computed.

Shapes: B images, N body tokens, K of them kept, C width.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from opbench.plain import looped_kmedoids
from opbench.turns import BF16, DEVICE, ON_GPU, Operation, Turns, inference, label, reduced
from tpbench import registry, vit
from tpbench.kernels import attention
from tpbench.tokens import Tokens

torch.set_num_threads(1)
MODEL = "deit_small_patch16_224"
PATCH = 16  # pixels
METHODS = [card.name for card in registry.select("all") if not card.unreduced]
MATMUL = 1024  # rows and columns


class Place(NamedTuple):
    """What the operations of one group have in common."""

    tokens: int
    share: float  # K / N; 1 where nothing is reduced
    batch: int
    dtype: str


def places(shares: tuple[float, ...]) -> list[Place]:
    """All combinations, in float32 on a CPU and in bfloat16 on a GPU; the other dtype only at 196 tokens, 32 images."""
    main, other = ("bfloat16", "float32") if ON_GPU else ("float32", "bfloat16")
    every = [
        Place(tokens=n, share=share, batch=batch, dtype=main)
        for n, share, batch in product((64, 196, 576), shares, (1, 32, 256))
    ]
    if BF16:
        every += [Place(tokens=196, share=share, batch=32, dtype=other) for share in shares]
    return [place for place in every if ON_GPU or place.batch < 256]


def turns(kind: str, place: Place, operations: dict[str, Operation]) -> Turns:
    """The operations in turns, without gradients."""
    without_gradients = {
        name: Operation(inference(operation.call, getattr(torch, place.dtype)), operation.facts)
        for name, operation in operations.items()
    }
    repeats = 15 if place.batch == 1 else 5
    return Turns({"kind": kind, **place._asdict()}, without_gradients, repeats)


# ---------------------------------------------------------------- reducers


@pytest.fixture(scope="module")
def layer(request: pytest.FixtureRequest) -> Turns:
    """All reducers at one place, and what they are compared with."""
    place = request.param
    base = one_block(place)
    tokens = some_tokens(place)
    operations = ceilings(place, tokens.x) | {"block": block(vit.reduce(base, "none"), tokens)}
    models = reduced(base, METHODS, f"{round(place.share * place.tokens)}@0")
    operations |= {name: reducer(model, tokens, getattr(torch, place.dtype)) for name, model in models}
    points = tokens.body
    weight = torch.rand(place.batch, place.tokens, device=DEVICE)
    k = operations["topk"].facts["k"]
    if not ON_GPU:
        operations["looped kmedoids"] = Operation(lambda: looped_kmedoids(points, weight, k), {"k": k})
    return turns("layer", place, operations)


@pytest.mark.parametrize("layer", places((0.7, 0.5, 0.25)), indirect=True, ids=label)
@pytest.mark.parametrize("operation", ["copy", "matmul", "block", "looped kmedoids", *METHODS])
def test_reducer(benchmark: Any, layer: Turns, operation: str):
    layer.report(benchmark, operation)


def one_block(place: Place) -> nn.Module:
    """The unreduced model with only its first block, for images of `place.tokens` patches."""
    torch.manual_seed(0)
    side = PATCH * math.isqrt(place.tokens)
    return vit.create(MODEL, {"img_size": side, "depth": 1}).eval().to(DEVICE)


def some_tokens(place: Place) -> Tokens:
    """Normal noise as tokens on a square grid, with one class token."""
    generator = torch.Generator().manual_seed(0)
    side = math.isqrt(place.tokens)
    x = torch.randn(place.batch, 1 + place.tokens, 384, generator=generator).to(DEVICE)
    size = torch.ones(place.batch, place.tokens, device=DEVICE)
    return Tokens(x, prefix=1, size=size, grid=(side, side))


def reducer(model: vit.TokenViT, tokens: Tokens, dtype: torch.dtype) -> Operation:
    """A reducer after attention. bytes: tokens and results of attention read once, kept tokens written once."""
    first = model.blocks[0]
    attended, probe = inference(lambda: first.attend(tokens), dtype)()
    probe = first.with_shift(probe, attended)
    after = inference(lambda: first.reducer(tokens, probe), dtype)()
    moved = tokens.x.nbytes + sum(seen.nbytes for seen in probe if seen is not None) + after.x.nbytes
    facts = {"k": after.count, "macs": len(tokens.x) * first.reducer.macs(), "bytes": moved}
    return Operation(lambda: first.reducer(tokens, probe), facts)


def block(model: vit.TokenViT, tokens: Tokens) -> Operation:
    """An unreduced block. bytes: the tokens read and written once, and the weights."""
    first = model.blocks[0]
    macs = model.macs()
    weights = sum(parameter.nbytes for parameter in first.parameters())
    facts = {
        "k": tokens.count,
        "macs": len(tokens.x) * (macs["blocks.0.attn"] + macs["blocks.0.mlp"]),
        "bytes": 2 * tokens.x.nbytes + weights,
    }
    return Operation(lambda: first(tokens), facts)


def ceilings(place: Place, x: Tensor) -> dict[str, Operation]:
    """The ceilings of the roofline: a copy of as many bytes as the tokens have, and a large matrix product."""
    target = torch.empty_like(x)
    a = torch.randn(MATMUL, MATMUL, device=DEVICE, dtype=getattr(torch, place.dtype))
    return {
        "copy": Operation(lambda: target.copy_(x), {"macs": 0, "bytes": 2 * x.nbytes}),
        "matmul": Operation(lambda: a @ a, {"macs": MATMUL**3, "bytes": 3 * a.nbytes}),
    }


# ---------------------------------------------------------------- attention


@pytest.fixture(scope="module")
def attending(request: pytest.FixtureRequest) -> Turns:
    """All forms of attention at one place, and what they are compared with."""
    place = request.param
    base = one_block(place)
    tokens = some_tokens(place)
    dtype = getattr(torch, place.dtype)
    model = vit.reduce(base, "none")
    attn = model.blocks[0].attn
    q, k, v = inference(lambda: attn.project(tokens.x), dtype)()
    pairs = len(q) * q.shape[2] ** 2 * attn.width  # multiply-adds of all inner products
    moved = q.nbytes * 4
    row = 4 * q.shape[0] * q.shape[2]
    extra = {"SDPA": (0, 0), "SDPA, class row": (pairs // q.shape[2], row)}  # multiply-adds and bytes
    extra["attention received"] = (pairs if attention.extra_pass(DEVICE, q.shape[2]) else 0, 2 * row)
    calls = {
        "SDPA": lambda: nn.functional.scaled_dot_product_attention(q, k, v, scale=attn.scale),
        "SDPA, class row": lambda: (
            nn.functional.scaled_dot_product_attention(q, k, v, scale=attn.scale),
            attention.class_attention(q, k, bias=None, scale=attn.scale),
        ),
        "attention received": lambda: attention.attention_with_received(q, k, v, bias=None, scale=attn.scale),
    }
    operations = ceilings(place, tokens.x) | {"block": block(model, tokens)}
    for name, (more_macs, more_bytes) in extra.items():
        operations[name] = Operation(calls[name], {"macs": 2 * pairs + more_macs, "bytes": moved + more_bytes})
    return turns("attention", place, operations)


@pytest.mark.parametrize("attending", places((1.0,)), indirect=True, ids=label)
@pytest.mark.parametrize("operation", ["copy", "matmul", "block", "SDPA", "SDPA, class row", "attention received"])
def test_attention(benchmark: Any, attending: Turns, operation: str):
    attending.report(benchmark, operation)
