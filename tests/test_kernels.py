"""Every fused kernel beside its definition in plain PyTorch: same name, same signature, same answer.

Where a CUDA device is, the kernels run on it (`-m gpu`). Everywhere else they run in Triton's interpreter, which must
be asked for before Triton is imported: `test_all_of_this_in_the_interpreter` runs this file again in a process of its
own. There the controls run too: a kernel with one sign, mask or tie changed must be found out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from clustering_sets import Sets, gaussian, generator, integers
from torch import Tensor

import tpbench
from tpbench.kernels import attention, clustering
from tpbench.pooling import cluster

pytest.importorskip("triton", reason="no Triton: nothing is fused on this machine")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SUMS = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}  # relative to the largest: float32 sums
OUTPUT = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # rounded to the dtype itself


def on_the_kernels_device(test: Callable) -> Callable:
    """In the interpreter's process as it is; elsewhere a test for machines with a GPU."""
    no_device = not INTERPRETED and not torch.cuda.is_available()
    skip = pytest.mark.skipif(no_device, reason="no CUDA device; test_all_of_this_in_the_interpreter covers it")
    return test if INTERPRETED else pytest.mark.gpu(skip(test))


interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.slow
def test_all_of_this_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


CLUSTERING_ROOMS = ("clustering_triton", "distances_triton", "starts_triton")


def fused(name: str) -> ModuleType:
    return importlib.import_module(f"tpbench.kernels.{name}")


# ---------------------------------------------------------------- compiled ahead of time


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_kernels_compile_for_hopper_without_a_gpu():
    """No registers spilled worth the name, and shared memory that an H100 or H200 has."""
    knobs = importlib.import_module("triton").knobs.nvidia
    for tool in ("ptxas", "cuobjdump"):
        if not Path(getattr(knobs, tool).path).is_file():
            pytest.skip(f"Triton ships no {tool} here")
    rows = importlib.import_module("opbench.compiled").compile_all(torch.bfloat16)
    launched = {name for room in ("attention_triton", *CLUSTERING_ROOMS) for name in vars(fused(room))}
    missing = {name for name in launched if name.endswith("_kernel")} - {row.kernel for row in rows}
    assert missing == {"_offset_kernel"}  # of float32 alone
    for row in rows:
        assert 16 <= row.registers <= 255, row
        assert row.stack_bytes <= 16, row
        assert row.shared_bytes <= 227 * 1024, row


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_float32_tokens_go_to_the_tensor_cores(monkeypatch):
    """What a model under autocast gives a reducer. Control: in full precision they do not."""
    if not Path(importlib.import_module("triton").knobs.nvidia.ptxas.path).is_file():
        pytest.skip("Triton ships no ptxas here")
    ahead = importlib.import_module("opbench.compiled")
    room = fused("distances_triton")
    x = torch.empty(256, 196, 384, device="meta")
    for split in (True, False):
        monkeypatch.setattr(room, "SPLIT_FLOAT32", split)
        for call in (room.squared_distances, room.inner_products):
            with ahead.caught_launches(room) as caught:
                call(x)
            (kernel,) = (kernel for kernel in caught if kernel.metadata.name == "_pairs_kernel")
            instructions = set(re.findall(r"(?:wgmma\.)?mma\S*", kernel.asm["ptx"]))
            assert any("tf32" in name for name in instructions) == split, instructions
            if split:
                assert ahead.resources(kernel.asm["cubin"])[1] <= 16, "registers are spilled"


@interpreted_only
def test_both_ways_to_multiply_float32_tokens_are_as_exact(monkeypatch):
    """Against float64, about their mean. The interpreter multiplies parts exactly, as the tensor cores do."""
    room = fused("distances_triton")
    x = gaussian(2, 70, 96, 8).x + 3
    exact = clustering.squared_distances(x.double())
    off = {}
    for split in (True, False):
        monkeypatch.setattr(room, "SPLIT_FLOAT32", split)
        off[split] = (room.squared_distances(x).double() - exact).abs().max() / exact.max()
    assert off[True] <= 1.5 * off[False] + 1e-7
    rounded = (x.view(torch.int32) & -0x2000).view(torch.float32)
    once = (room.squared_distances(rounded).double() - exact).abs().max() / exact.max()
    assert once > 50 * off[True], "control: 11 bits alone"


# ---------------------------------------------------------------- the script for a machine with a GPU


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="kernels alone are interpreted")
def test_the_gpu_script_runs(tmp_path):
    """All of its code but the CUDA graphs; a measurement that fails is recorded, and the others go on."""
    from opbench import gpu

    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--quick"]) == 0
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")}
    assert records.keys() == gpu.MEASUREMENTS.keys()
    assert all(record["error"] is None and record["result"] for record in records.values())


@pytest.mark.skipif(INTERPRETED, reason="kernels alone are interpreted")
def test_the_gpu_script_records_failures(tmp_path, monkeypatch):
    from opbench import gpu

    def broken(setting: object) -> dict:  # noqa: ARG001
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "MEASUREMENTS", {"broken": broken, "works": lambda setting: {"model": setting.model}})
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--quick"]) == 1
    (folder,) = tmp_path.iterdir()
    assert "no such kernel" in json.loads((folder / "broken.json").read_text())["error"]
    assert json.loads((folder / "works.json").read_text())["result"]["model"]


# ---------------------------------------------------------------- clustering: material


SETS = {
    "odd sizes": gaussian(2, 37, 19, 11),
    "beyond a tile": gaussian(1, 70, 96, 48),
    "K is 1": gaussian(2, 21, 8, 1),
    "K is N - 1": gaussian(2, 21, 8, 20),
    "K is N": gaussian(1, 9, 8, 9),
    "one token": gaussian(2, 1, 4, 1),
    "ties": integers(3, 18, 2, 5),
    "ties, longer": integers(2, 67, 3, 40, seed=4),
    "ties, K is N - 1": integers(2, 18, 2, 17, seed=2),
    "all alike": Sets(torch.ones(1, 67, 3), torch.ones(1, 67), 40),
    "no weight": Sets(gaussian(2, 14, 3, 4).x, torch.zeros(2, 14), 4),
    "long": gaussian(1, 260, 16, 20) if INTERPRETED else gaussian(3, 1024, 64, 700),
}


def given(sets: Sets, dtype: torch.dtype = torch.float32) -> Sets:
    """On the kernels' device, the tokens in a dtype."""
    return Sets(sets.x.to(DEVICE, dtype), sets.weight.to(DEVICE), sets.k)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Every number within the tolerance of the largest."""
    return bool((a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp(min=1e-30))


# ---------------------------------------------------------------- clustering: the comparison


def products_differ(room: ModuleType, sets: Sets) -> bool:
    """float32 about the mean as defined, others about zero: then the distances that follow are compared."""
    products = room.inner_products(sets.x)
    wide = sets.x.double()
    about_zero = wide @ wide.transpose(1, 2)
    if sets.x.dtype == torch.float32:
        wrong = not close(products, clustering.inner_products(sets.x), 2e-6)
    else:
        wrong = not close(products, about_zero, 2e-6)
    return wrong or not torch.equal(products, products.transpose(1, 2))


def distances_differ(room: ModuleType, sets: Sets) -> bool:
    distance = room.squared_distances(sets.x)
    largest = sets.x.double().square().sum(-1).amax().clamp(min=1e-30)  # what cancellation is measured against
    off = (distance.double() - clustering.squared_distances(sets.x.double())).abs().max()
    diagonal = distance.diagonal(dim1=1, dim2=2)
    return bool(off > 4e-6 * largest) or not torch.equal(distance, distance.transpose(1, 2)) or bool(diagonal.any())


def starts_differ(room: ModuleType, sets: Sets) -> bool:
    distance = clustering.squared_distances(sets.x)
    pairs = [(room.heaviest(sets.weight, sets.k), clustering.heaviest(sets.weight, sets.k))]
    for name in ("peaks", "farthest"):
        pairs.append(tuple(getattr(r, name)(distance, sets.weight, sets.k) for r in (room, clustering)))
    return not all(torch.equal(a, b) for a, b in pairs)


def medoids_differ(room: ModuleType, sets: Sets) -> bool:
    """From distances whose rows are padded, as the kernels make them, and from plain ones."""
    distance = clustering.squared_distances(sets.x)
    padded = fused("clustering_triton").empty_pairs(sets.x).copy_(distance)
    for first in firsts(sets):
        for iterations in (0, 1, 5):
            want = clustering.iterate_medoids(distance, sets.weight, first, iterations)
            for pairs in (distance, padded):
                got = room.iterate_medoids(pairs, sets.weight, first, iterations)
                if not all(torch.equal(a, b) for a, b in zip(got, want)):
                    return True
    return False


def means_differ(room: ModuleType, sets: Sets) -> bool:
    products = clustering.inner_products(sets.x)
    for first in firsts(sets):
        for iterations in (0, 2):
            share, assignment = room.iterate_means(products, sets.weight, first, iterations)
            want, want_assignment = clustering.iterate_means(products, sets.weight, first, iterations)
            if not close(share, want, 1e-6) or not torch.equal(assignment, want_assignment):
                return True
    return False


def firsts(sets: Sets) -> list[Tensor]:
    """The heaviest tokens, and K at random."""
    anywhere = torch.rand(sets.weight.shape, generator=generator(9)).argsort(1)[:, : sets.k]
    return [clustering.heaviest(sets.weight, sets.k), anywhere.to(DEVICE)]


STEPS = {
    "inner_products": products_differ,
    "squared_distances": distances_differ,
    "starts": starts_differ,
    "iterate_medoids": medoids_differ,
    "iterate_means": means_differ,
}
FROM_TOKENS = ("inner_products", "squared_distances")  # the others start from float32 distances


@on_the_kernels_device
@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize(
    ("step", "dtype"), [(s, d) for s in STEPS for d in (FLOATS if s in FROM_TOKENS else FLOATS[:1])], ids=str
)
def test_steps_of_clustering_are_their_definitions(step, dtype, case):
    if step == "iterate_means" and case.startswith("ties"):
        pytest.skip("means of a few integers tie by rounding: the two may round apart")
    assert not STEPS[step](fused("clustering_triton"), given(SETS[case], dtype))


@on_the_kernels_device
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("init", ["topk", "peaks", "farthest", "grid"])
def test_dispatched_clustering_is_the_definition(init, dtype, monkeypatch):
    """Through the operators, from tokens to assignment: small integers, where every dtype is exact."""
    sets = given(integers(3, 25, 6, 9), dtype)
    for function in (cluster.kmedoids, cluster.kmeans):
        iterations = 5 if function is cluster.kmedoids else 0
        monkeypatch.setattr(clustering, "triton_runs_on", lambda device: True)  # noqa: ARG005
        got = function(sets.x, sets.weight, sets.k, iterations, init)
        monkeypatch.setattr(clustering, "triton_runs_on", lambda device: False)  # noqa: ARG005
        want = function(sets.x, sets.weight, sets.k, iterations, init)
        assert all(torch.equal(a, b) for a, b in zip(got, want))


@on_the_kernels_device
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_bad_numbers_end_in_range_and_in_their_own_set(where, bad):
    room, clean = fused("clustering_triton"), given(gaussian(3, 23, 6, 7))
    spoilt = Sets(clean.x.clone(), clean.weight.clone(), clean.k)
    getattr(spoilt, where)[1, 3] = bad
    for sets in (clean, spoilt):
        distance, products = room.squared_distances(sets.x), room.inner_products(sets.x)
        starts = [room.heaviest(sets.weight, 7), *(s(distance, sets.weight, 7) for s in (room.peaks, room.farthest))]
        found = [(*room.iterate_medoids(distance, sets.weight, f, 5), *room.iterate_means(products, sets.weight, f, 5))
                 for f in starts]  # fmt: skip
        if sets is clean:
            good_starts, good = starts, found
    for was, now in zip([*good_starts, *(t for f in good for t in f)], [*starts, *(t for f in found for t in f)]):
        assert torch.equal(was[::2], now[::2])
    for first, (medoids, assignment, _, means_assignment) in zip(starts, found):
        for index, end in ((first, 23), (medoids, 23), (assignment, 7), (means_assignment, 7)):
            assert index.min() >= 0
            assert index.max() < end
        assert all(len(set(row)) == 7 for picks in (first, medoids) for row in picks.tolist())


@on_the_kernels_device
def test_a_common_offset_drowns_no_float32_distances():
    """And in bfloat16 no more than its own rounding does."""
    x = torch.randn(2, 40, 16, generator=generator(3)) * 0.1
    for offset, dtype, tolerance in ((4000.0, torch.float32, 1e-2), (4.0, torch.bfloat16, 1e-2)):
        tokens = (x + offset).to(DEVICE, dtype)
        got = fused("clustering_triton").squared_distances(tokens)
        assert close(got, clustering.squared_distances(tokens.double()), tolerance)
    norm = (x + 4000).square().sum(-1)
    naive = norm[:, :, None] + norm[:, None] - 2 * (x + 4000) @ (x + 4000).transpose(1, 2)
    assert not close(naive, clustering.squared_distances((x + 4000).double()), 1e-2)  # control


# ---------------------------------------------------------------- attention


class Heads(NamedTuple):
    """q, k, v [B, H, N, D], bias [B, 1, 1, N] or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


def heads(b: int, h: int, n: int, d: int, bias: str = "", seed: int = 0) -> Heads:
    """Laid out as timm's projection leaves them; bias is the log of how often each key counts, "hidden" some never."""
    qkv = torch.randn(b, n, 3, h, d, generator=generator(seed)).permute(2, 0, 3, 1, 4).unbind(0)
    count = torch.randint(1, 5, (b, n), generator=generator(seed + 3)).float()
    if bias == "hidden":
        count[:, 2::3] = 0
        count[:, :1] = 0
    return Heads(*qkv, count.log()[:, None, None] if bias else None)


SCALE = 0.3
ATTENTION = {
    "odd sizes": heads(3, 2, 37, 12),
    "beyond a tile": heads(1, 2, 70, 16, "counts"),
    "a narrow head": heads(2, 3, 11, 4, "hidden"),
    "DeiT": heads(1, 1, 197, 64, "hidden") if INTERPRETED else heads(64, 6, 197, 64, "hidden"),
    "two tokens": heads(2, 2, 2, 8, "counts"),
    "one token": heads(2, 1, 1, 8),
    "all keys alike": Heads(*(torch.ones(2, 2, 9, 8) for _ in range(3)), None),
    "too long for a tile": heads(1, 1, 290, 16, "hidden"),
    "too wide for a tile": heads(1, 2, 20, 80, "counts"),
}


def explicit(given: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, received, own and log-sum-exp by softmax written out in float64."""
    q, k, v = (t.double() for t in given[:3])
    scores = q @ k.transpose(-2, -1) * SCALE
    scores = scores if given.bias is None else scores + given.bias.double()
    weight = scores.softmax(-1)
    own = weight.diagonal(dim1=-2, dim2=-1).mean(1)
    return weight @ v, weight.sum(2).mean(1), own, scores.logsumexp(-1)


def attention_differs(room: ModuleType, given: Heads) -> bool:
    out, received, own, lse = explicit(given)
    got = room.attend_and_receive(*given, SCALE)
    second = room.receive(given.q, given.k, given.bias, None, SCALE)
    third = room.receive(given.q, given.k, given.bias, lse.float(), SCALE)
    # The sums come from scores of float32, whatever the dtype; a large score's exponential magnifies its rounding.
    sums_off = any(not close(g, w, 1e-5) for pair in (got[1:], second, third) for g, w in zip(pair, (received, own)))
    return sums_off or not close(got[0], out, OUTPUT[given.q.dtype])


def to_device(given: Heads, dtype: torch.dtype) -> Heads:
    return Heads(*(None if t is None else t.to(DEVICE, dtype) for t in given))


@on_the_kernels_device
@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_attention_is_its_definition(dtype, case):
    room, given = fused("attention_triton"), to_device(ATTENTION[case], dtype)
    assert not attention_differs(room, given)
    definition = Heads(*(None if t is None else t.cpu().float() for t in given))
    assert not attention_differs(attention_by_definition(), definition)


def attention_by_definition() -> ModuleType:
    """The plain operators under the names of the twins."""
    room = ModuleType("definition")
    room.attend_and_receive, room.receive = torch.ops.tpbench.attend_and_receive, torch.ops.tpbench.receive
    return room


@on_the_kernels_device
def test_nan_in_one_image_stays_there():
    given = to_device(heads(3, 2, 21, 8), torch.float32)
    given.q[1, 0, 5, 2] = float("nan")
    room = fused("attention_triton")
    for result in (*room.attend_and_receive(*given, SCALE), *room.receive(given.q, given.k, None, None, SCALE)):
        assert result[::2].isfinite().all()
        assert not result[1].isfinite().all()


@on_the_kernels_device
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias", ["", "counts"])
@pytest.mark.parametrize("n", [37, 270])
def test_gradients_are_those_of_fused_attention(n, bias, dtype, monkeypatch):
    """In training the output comes from fused attention, the sums from the kernel; only the first has a gradient."""
    monkeypatch.setattr(attention, "triton_runs_on", lambda device: True)  # noqa: ARG005
    given = to_device(heads(1, 2, n, 16, bias), dtype)
    leaves = [t.detach().clone().requires_grad_() for t in given[:3]]
    exact = [t.detach().double().requires_grad_() for t in given[:3]]
    upstream = torch.randn(leaves[0].shape, generator=generator(5)).to(DEVICE)
    out, received, own = attention.attention_with_received(*leaves, given.bias, SCALE)
    want = explicit(Heads(*exact, given.bias))
    (out.float() * upstream).sum().backward()
    (want[0] * upstream).sum().backward()
    assert close(out, want[0], OUTPUT[dtype])
    assert close(received, want[1], 1e-5)
    assert close(own, want[2], 1e-5)
    assert not received.requires_grad
    assert not own.requires_grad
    assert all(close(a.grad, b.grad, 2 * OUTPUT[dtype]) for a, b in zip(leaves, exact))
    assert not close(leaves[0].grad, 1.1 * exact[0].grad, 2 * OUTPUT[dtype])  # control


@on_the_kernels_device
@pytest.mark.parametrize("method", ["wkmedoids", "wkpeaks", "topk", "wkmeans"])
def test_a_whole_model_is_the_same(method, make_vit, images, monkeypatch):
    model = tpbench.reduce(make_vit().to(DEVICE), method, "0.6@1,2")
    results = []
    for runs in (True, False):
        for room in (attention, clustering):
            monkeypatch.setattr(room, "triton_runs_on", lambda device, runs=runs: runs)  # noqa: ARG005
        with torch.inference_mode():
            results.append(model(images.to(DEVICE)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        other = tpbench.reduce(make_vit().to(DEVICE), method, "0.5@1,2")(images.to(DEVICE))
    assert not torch.allclose(results[0], other, rtol=1e-3, atol=1e-4)  # control


# ---------------------------------------------------------------- controls: kernels with a fault

CLUSTERING_FAULTS = {
    "ties to the last medoid or centre": ("(candidate < best)", "(candidate <= best)"),
    "ties to any of the rows": ("which, 0x7FFFFFFF), 0)", "which + 99 * (which % 2), 0x7FFFFFFF), 0) % 99"),
    "a medoid may leave its cluster": ("lane[None, :], -1.0, apart)", "lane[None, :], apart, apart)"),
    "costs without weights": ("apart * their_weight[:, None], 0.0)", "apart, 0.0)"),
    "costs over all tokens": ("together = inside & (theirs[:, None] == label[None, :])", "together = inside"),
    "ties to the last member": ("| lane.to(tl.int64)", "| (N - lane).to(tl.int64)"),
    "one iteration too few": ("(turn < iterations)", "(turn + 1 < iterations)"),
    "ties to the higher index": ("row[:, None] < lane[None, :]) & (theirs", "row[:, None] > lane[None, :]) & (theirs"),
    "peaks by distance alone": ("weight * nearest)", "nearest)"),
    "peaks over all others": ("tl.where(heavier,", "tl.where(row[:, None] != lane[None, :],"),
    "farthest from the last alone": ("gain = weight * nearest", "gain = weight * apart"),
    "high parts alone": (
        "low_a = _high_part(a - high_a)\n        low_b = _high_part(b - high_b)",
        "low_a = a * 0\n        low_b = b * 0",
    ),
    "one low part alone": ("tl.dot(high_a, tl.trans(low_b), total", "tl.dot(high_a * 0, tl.trans(low_b), total"),
    "half the product": ("- 2 * product", "- product"),
    "only above the diagonal": ("tl.store(pairs + right[None, :]", "tl.store(pairs + 0 * right[None, :]"),
    "the last channels missing": ("first in range(0, width, C)", "first in range(0, width - 3, C)"),
    "means without weights": ("tl.load(weight + member) / sums", "1.0 / sums"),
    "means of the tokens passed by": ("tl.where(cluster == before, along, 0.0)", "along"),
    "one length for all clusters": ("label[None, :] == number[:, None], own[", "label[None, :] >= 0, own["),
    "centres by half their length": ("length[:, None] - 2 * along", "length[:, None] - along"),
}
ATTENTION_FAULTS = {
    "no bias": ("return value * 1.4426950408889634", "return value * 0.0"),
    "sums over the padding": (
        "tl.where(row[:, None] < n, weight * share",
        "tl.where(row[:, None] < n + 9, weight * share",
    ),
    "weights not normalised": ("share = 1.0 / tl.sum(weight, 1)", "share = 1.0 + 0.0 * tl.sum(weight, 1)"),
    "sums of another row's share": ("(score - level[:, None]), 0)", "(score - tl.max(level, 0)), 0)"),
    "the diagonal without its bias": ("diagonal + _key_bias(bias, row, bias_n, n, BIASED)", "diagonal"),
    "the log-sum-exp of the last tile": ("total = total * tl.exp2(highest - level) +", "total ="),
    "sum over heads": ("received / heads, mask=key < n)", "received, mask=key < n)"),
}


def with_a_fault(rooms: tuple[str, ...], fault: tuple[str, str], folder: Path) -> ModuleType:
    """The one of these rooms whose source holds what the fault replaces, with it put in, as a module of its own."""
    right, wrong = fault
    sources = {room: Path(fused(room).__file__).read_text(encoding="utf-8") for room in rooms}
    ((room, source),) = [(room, source) for room, source in sources.items() if right in source]
    path = folder / f"{room}_with_a_fault.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ("odd sizes", "ties", "ties, longer", "all alike")  # enough to find every fault, and quick


@interpreted_only
@pytest.mark.parametrize("fault", CLUSTERING_FAULTS)
def test_control_a_fault_in_clustering_is_found(fault, tmp_path):
    faulty = with_a_fault(CLUSTERING_ROOMS, CLUSTERING_FAULTS[fault], tmp_path)
    room = SimpleNamespace(**{**vars(fused("clustering_triton")), **vars(faulty)})
    assert any(differ(room, SETS[case]) for case in SMALL for name, differ in STEPS.items() if compared(name, case))


def compared(step: str, case: str) -> bool:
    return step != "iterate_means" or not case.startswith("ties")


@interpreted_only
@pytest.mark.parametrize("fault", ATTENTION_FAULTS)
def test_control_a_fault_in_attention_is_found(fault, tmp_path):
    room = with_a_fault(("attention_triton",), ATTENTION_FAULTS[fault], tmp_path)
    cases = [to_device(ATTENTION[case], torch.float16) for case in ("odd sizes", "a narrow head", "beyond a tile")]
    assert any(attention_differs(room, given) for given in cases)
