"""Every reducer and every way to attend, alone, at the width of DeiT-S: part of `tox -e opbench`.

B images, N body tokens, K of them kept, C width. Beside them, in the same turns, stand what their cost is compared
with: a block of the model, top-K, the plainly looped K-Medoids, and the two ceilings of the roofline (a copy of as many
bytes as the tokens have, a matrix product). Tokens are normal noise; what attention tells of them is computed.
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
MODEL, PATCH = "deit_small_patch16_224", 16
METHODS = [card.name for card in registry.select("all") if not card.unreduced]
MATMUL = 1024  # rows and columns


class Place(NamedTuple):
    tokens: int
    share: float  # K / N; 1 where nothing is reduced
    batch: int
    dtype: str


def places(shares: tuple[float, ...]) -> list[Place]:
    """float32 everywhere on a CPU and bfloat16 on a GPU; the other of the two at 196 tokens and 32 images."""
    main, other = ("bfloat16", "float32") if ON_GPU else ("float32", "bfloat16")
    every = [Place(n, share, b, main) for n, share, b in product((64, 196, 576), shares, (1, 32, 256))]
    every += [Place(196, share, 32, other) for share in shares] if BF16 else []
    return [place for place in every if ON_GPU or place.batch < 256]


def turns(kind: str, place: Place, operations: dict[str, Operation]) -> Turns:
    quiet = {
        name: Operation(inference(operation.call, getattr(torch, place.dtype)), operation.facts)
        for name, operation in operations.items()
    }
    return Turns({"kind": kind, **place._asdict()}, quiet, 15 if place.batch == 1 else 5)


# ---------------------------------------------------------------- reducers


@pytest.fixture(scope="module")
def layer(request: pytest.FixtureRequest) -> Turns:
    place, base = request.param, one_block(request.param)
    tokens = some_tokens(place)
    operations = ceilings(place, tokens.x) | {"block": block(vit.reduce(base, "none"), tokens)}
    models = reduced(base, METHODS, f"{round(place.share * place.tokens)}@0")
    operations |= {name: reducer(model, tokens, getattr(torch, place.dtype)) for name, model in models}
    points, weight = tokens.body, torch.rand(place.batch, place.tokens, device=DEVICE)
    k = operations["topk"].facts["k"]
    if not ON_GPU:
        operations["looped kmedoids"] = Operation(lambda: looped_kmedoids(points, weight, k), {"k": k})
    return turns("layer", place, operations)


@pytest.mark.parametrize("layer", places((0.7, 0.5, 0.25)), indirect=True, ids=label)
@pytest.mark.parametrize("operation", ["copy", "matmul", "block", "looped kmedoids", *METHODS])
def test_reducer(benchmark: Any, layer: Turns, operation: str):
    layer.report(benchmark, operation)


def one_block(place: Place) -> nn.Module:
    """The unreduced model, cut down to its first block, for images of as many patches."""
    torch.manual_seed(0)
    side = PATCH * math.isqrt(place.tokens)
    return vit.create(MODEL, {"img_size": side, "depth": 1}).eval().to(DEVICE)


def some_tokens(place: Place) -> Tokens:
    generator, side = torch.Generator().manual_seed(0), math.isqrt(place.tokens)
    x = torch.randn(place.batch, 1 + place.tokens, 384, generator=generator).to(DEVICE)
    return Tokens(x, 1, torch.ones(place.batch, place.tokens, device=DEVICE), (side, side))


def reducer(model: vit.TokenViT, tokens: Tokens, dtype: torch.dtype) -> Operation:
    """What follows attention. bytes: tokens and attention's results read once, the kept tokens written once."""
    first = model.blocks[0]
    attended, probe = inference(lambda: first.attend(tokens), dtype)()
    probe = first.with_shift(probe, attended)
    after = inference(lambda: first.reducer(tokens, probe), dtype)()
    moved = tokens.x.nbytes + sum(seen.nbytes for seen in probe if seen is not None) + after.x.nbytes
    facts = {"k": after.count, "macs": len(tokens.x) * first.reducer.macs(), "bytes": moved}
    return Operation(lambda: first.reducer(tokens, probe), facts)


def block(model: vit.TokenViT, tokens: Tokens) -> Operation:
    """bytes: the tokens read and written once, and the weights."""
    first, macs = model.blocks[0], model.macs()
    weights = sum(parameter.nbytes for parameter in first.parameters())
    facts = {
        "k": tokens.count,
        "macs": len(tokens.x) * (macs["blocks.0.attn"] + macs["blocks.0.mlp"]),
        "bytes": 2 * tokens.x.nbytes + weights,
    }
    return Operation(lambda: first(tokens), facts)


def ceilings(place: Place, x: Tensor) -> dict[str, Operation]:
    """How fast bytes as many as the tokens have are copied here, and how fast a large matrix product is."""
    target, a = torch.empty_like(x), torch.randn(MATMUL, MATMUL, device=DEVICE, dtype=getattr(torch, place.dtype))
    return {
        "copy": Operation(lambda: target.copy_(x), {"macs": 0, "bytes": 2 * x.nbytes}),
        "matmul": Operation(lambda: a @ a, {"macs": MATMUL**3, "bytes": 3 * a.nbytes}),
    }


# ---------------------------------------------------------------- attention


@pytest.fixture(scope="module")
def attending(request: pytest.FixtureRequest) -> Turns:
    place, base = request.param, one_block(request.param)
    tokens, dtype = some_tokens(place), getattr(torch, request.param.dtype)
    model = vit.reduce(base, "none")
    attn = model.blocks[0].attn
    q, k, v = inference(lambda: attn.project(tokens.x), dtype)()
    pairs = len(q) * q.shape[2] ** 2 * attn.width
    moved, row = q.nbytes * 4, 4 * q.shape[0] * q.shape[2]
    sees = {"SDPA": (0, 0), "SDPA, class row": (pairs // q.shape[2], row)}
    sees["attention received"] = (pairs if attention.extra_pass(DEVICE, q.shape[2]) else 0, 2 * row)
    calls = {
        "SDPA": lambda: nn.functional.scaled_dot_product_attention(q, k, v, scale=attn.scale),
        "SDPA, class row": lambda: (
            nn.functional.scaled_dot_product_attention(q, k, v, scale=attn.scale),
            attention.class_attention(q, k, None, attn.scale),
        ),
        "attention received": lambda: attention.attention_with_received(q, k, v, None, attn.scale),
    }
    operations = ceilings(place, tokens.x) | {"block": block(model, tokens)}
    for name, (macs, seen) in sees.items():
        operations[name] = Operation(calls[name], {"macs": 2 * pairs + macs, "bytes": moved + seen})
    return turns("attention", place, operations)


@pytest.mark.parametrize("attending", places((1.0,)), indirect=True, ids=label)
@pytest.mark.parametrize("operation", ["copy", "matmul", "block", "SDPA", "SDPA, class row", "attention received"])
def test_attention(benchmark: Any, attending: Turns, operation: str):
    attending.report(benchmark, operation)
