"""The native twins of the clustering steps beside their definitions: the same numbers, to the last bit.

The loops that anyone can check (`tests/test_cluster.py`) run against both. Here stand the comparison of every step,
what holds around it (threads, forks, machines without numba), and the controls: the twin with a fault put into its
source, run as plain Python, must be found out.
"""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from clustering_sets import Sets, gaussian, generator, integers
from test_cluster import by_hand, means_by_hand, medoids_by_hand
from torch import Tensor

import tpbench
from tpbench.kernels import clustering
from tpbench.kernels.device import definitions
from tpbench.pooling import cluster

numba = pytest.importorskip("numba", reason="without numba the definitions run")
native = importlib.import_module("tpbench.kernels.native.clustering")
distances = importlib.import_module("tpbench.kernels.native.distances")
engine = importlib.import_module("tpbench.kernels.native.engine")

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------- material


def across(sets: Sets) -> Sets:
    """The same numbers with channels far apart in memory and weights in columns."""
    return Sets(sets.x.transpose(1, 2).contiguous().transpose(1, 2), sets.weight.T.contiguous().T, sets.k)


SETS = {
    "odd sizes": gaussian(3, 37, 19, 11),
    "one image": gaussian(1, 64, 64, 32),
    "DeiT": gaussian(2, 196, 384, 138),
    "beyond a tile": gaussian(1, 70, 96, 48),
    "K is 1": gaussian(2, 21, 8, 1),
    "K is N - 1": gaussian(2, 21, 8, 20),
    "K is N": gaussian(1, 9, 8, 9),
    "one token": gaussian(2, 1, 4, 1),
    "one channel": gaussian(2, 33, 1, 5),
    "ties": integers(3, 18, 2, 5),
    "ties, longer": integers(2, 67, 3, 40, seed=4),
    "ties, K is N - 1": integers(2, 18, 2, 17, seed=2),
    "all alike": Sets(torch.ones(1, 67, 3), torch.ones(1, 67), 40),
    "all zero": Sets(torch.zeros(2, 9, 3), torch.ones(2, 9), 4),
    "no weight": Sets(gaussian(2, 14, 3, 4).x, torch.zeros(2, 14), 4),
    "some weigh nothing": Sets(gaussian(3, 40, 6, 9).x, integers(3, 40, 2, 9, seed=3).weight, 9),
    "one for all images": Sets(gaussian(1, 20, 5, 6).x.expand(3, 20, 5), gaussian(3, 20, 1, 6).weight, 6),
    "across memory": across(gaussian(3, 37, 19, 11)),
    "far away": Sets(gaussian(2, 30, 8, 7).x + 4000, gaussian(2, 30, 1, 7).weight, 7),
    "tiny": Sets(gaussian(2, 30, 8, 7).x * 1e-30, gaussian(2, 30, 1, 7).weight, 7),
    "huge": Sets(gaussian(2, 30, 8, 7).x * 1e18, gaussian(2, 30, 1, 7).weight * 1e30, 7),
}


def given(case: str, dtype: torch.dtype = torch.float32) -> Sets:
    sets = SETS[case]
    weight = sets.weight.double() if dtype == torch.float64 else sets.weight
    return Sets(sets.x.to(dtype), weight, sets.k)


def spoilt(where: str, bad: float) -> Sets:
    """Three sets, the second with a bad number."""
    sets = gaussian(3, 23, 6, 7)
    getattr(sets, where)[1, 3] = bad
    return Sets(sets.x.clone(), sets.weight, sets.k)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def all_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(same(a, b) for a, b in zip(found, wanted, strict=True))


# ---------------------------------------------------------------- every step is its definition


def products_differ(room: ModuleType, sets: Sets) -> bool:
    return not same(room.inner_products(sets.x), clustering.inner_products(sets.x))


def distances_differ(room: ModuleType, sets: Sets) -> bool:
    distance = room.squared_distances(sets.x)
    rows = clustering.inner_products(sets.x)
    lopsided = rows + 0.01 * rows.roll(1, dims=2)  # products need not be symmetric
    from_lopsided = room.distances_from(lopsided), clustering.distances_from(lopsided)
    return not same(distance, clustering.squared_distances(sets.x)) or not same(*from_lopsided)


def starts_differ(room: ModuleType, sets: Sets) -> bool:
    distance = clustering.squared_distances(sets.x)
    weight = sets.weight.to(distance.dtype)
    if not same(room.heaviest(sets.weight, sets.k), clustering.heaviest(sets.weight, sets.k)):
        return True
    names = ("peaks", "farthest")
    return any(
        not same(*(getattr(steps, name)(distance, weight, sets.k) for steps in (room, clustering))) for name in names
    )


def firsts(sets: Sets) -> list[Tensor]:
    """The heaviest tokens, and K at random."""
    anywhere = torch.rand(sets.weight.shape, generator=generator(9)).argsort(1)[:, : sets.k]
    return [clustering.heaviest(sets.weight, sets.k), anywhere]


def medoids_differ(room: ModuleType, sets: Sets) -> bool:
    return iterations_differ(room, "iterate_medoids", clustering.squared_distances(sets.x), sets)


def means_differ(room: ModuleType, sets: Sets) -> bool:
    return iterations_differ(room, "iterate_means", clustering.inner_products(sets.x), sets)


def iterations_differ(room: ModuleType, name: str, pairs: Tensor, sets: Sets) -> bool:
    kept, weight = pairs.clone(), sets.weight.to(pairs.dtype)
    for first in firsts(sets):
        for iterations in (0, 1, 5):
            arguments = (pairs, weight, first, iterations)
            wanted = getattr(clustering, name)(*arguments)
            if not all_same(getattr(room, name)(*arguments), wanted) or not same(pairs, kept):
                return True
    return False


STEPS = {
    "inner_products": products_differ,
    "squared_distances": distances_differ,
    "starts": starts_differ,
    "iterate_medoids": medoids_differ,
    "iterate_means": means_differ,
}


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_steps_are_their_definitions(step: str, dtype: torch.dtype, case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distances, "multiplies_bfloat16", lambda: False)  # with it, bfloat16 has another path
    assert not STEPS[step](native, given(case, dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "weight"])
@pytest.mark.parametrize("step", STEPS)
def test_steps_are_their_definitions_for_bad_numbers(step: str, where: str, bad: float):
    if where == "weight" and bad < 0:
        pytest.skip("weights are not negative")
    assert not STEPS[step](native, spoilt(where, bad))


def bad_pairs(seed: int) -> tuple[Tensor, Tensor]:
    """Distances [2, 9, 9] with NaN and infinity anywhere, and scores [2, 9] that now and then hold NaN."""
    distance = clustering.squared_distances(integers(2, 9, 2, 4, seed).x)
    score = integers(2, 9, 2, 4, seed + 1).weight
    places = torch.rand(2, 9, 9, generator=generator(seed))
    places = (places + places.transpose(1, 2)) / 2
    distance[places < 0.2] = float("nan")
    distance[places > 0.8] = float("inf")
    if seed % 3 == 0:
        score[torch.rand(2, 9, generator=generator(seed + 2)) < 0.2] = float("nan")
    return distance, score


def bad_pairs_differ(room: ModuleType, seeds: int) -> bool:
    for seed in range(seeds):
        distance, score = bad_pairs(seed)
        answers = [
            (
                steps.heaviest(score, 5),
                steps.peaks(distance, score, 5),
                steps.farthest(distance, score, 5),
                *steps.iterate_medoids(distance, score, torch.arange(4).expand(2, 4), 3),
                *steps.iterate_means(distance, score, torch.arange(4).expand(2, 4), 3),
            )
            for steps in (room, clustering)
        ]
        if not all_same(*answers):
            return True
    return False


def test_steps_from_bad_distances_and_scores_are_their_definitions():
    assert not bad_pairs_differ(native, 100)


# ---------------------------------------------------------------- through the operators


def run(function: Callable, sets: Sets, iterations: int, init: str | Tensor, score: Tensor | None = None) -> tuple:
    return function(sets.x, sets.weight, sets.k, iterations, init, score)


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_operators_are_their_definitions(function: Callable, dtype: torch.dtype, case: str, monkeypatch):
    monkeypatch.setattr(distances, "multiplies_bfloat16", lambda: False)
    sets = given(case, dtype)
    for init in ("topk", "peaks", "farthest", "grid", firsts(sets)[1]):
        found = run(function, sets, 5, init)
        with definitions():
            assert all_same(found, run(function, sets, 5, init)), init


@pytest.mark.parametrize("score", [torch.float64, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_scores_of_other_dtypes_keep_their_order(function: Callable, score: torch.dtype):
    """Two float64 scores may be one float32: which is larger must not be lost."""
    sets = gaussian(2, 30, 4, 8)
    close = 1 + 1e-12 * torch.rand(2, 30, generator=generator(5), dtype=torch.float64)
    close = close if score == torch.float64 else (9 * sets.weight).ceil()
    for init in ("topk", "peaks", "farthest"):
        found = run(function, sets, 1, init, close.to(score))
        with definitions():
            assert all_same(found, run(function, sets, 1, init, close.to(score))), init
    if score == torch.float64:  # control: rounded scores start elsewhere
        assert not all_same(run(function, sets, 0, "topk", close), run(function, sets, 0, "topk", close.float()))


def test_no_images_give_no_clusters():
    medoids, assignment = cluster.kmedoids(torch.zeros(0, 5, 3), torch.zeros(0, 5), 2)
    assert medoids.shape == (0, 2)
    assert assignment.shape == (0, 5)


@pytest.mark.parametrize("seed", range(8))
def test_operators_are_the_loops(seed: int):
    """Small integers in float32 are exact, so every tie of the loops on Python floats must be met."""
    sets = integers(2, 12, 2, 4, seed)
    first = firsts(sets)[1]
    found = run(cluster.kmedoids, sets, 3, first)
    assert all(torch.equal(a, b) for a, b in zip(found, by_hand(medoids_by_hand, sets.x, sets.weight, first, 3)))
    _, assignment = run(cluster.kmeans, sets, 0, first)
    assert torch.equal(assignment, by_hand(means_by_hand, sets.x, sets.weight, first, 0)[2])


@pytest.mark.parametrize("token", [-1, 20, 2**40])
@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_a_token_that_does_not_exist_is_refused(function: Callable, token: int):
    sets, first = gaussian(2, 20, 4, 3), torch.tensor([[0, 1, 2], [0, 1, token]])
    with pytest.raises(IndexError, match="among the 20 tokens"):
        run(function, sets, 2, first)


def test_the_definitions_switch_the_native_twin_off(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("native")

    monkeypatch.setattr(native, "kmedoids", refuse)
    sets = gaussian(1, 9, 3, 2)
    with definitions():
        run(cluster.kmedoids, sets, 1, "topk")
    with pytest.raises(AssertionError, match="native"):  # control: otherwise it runs
        run(cluster.kmedoids, sets, 1, "topk")


@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_compiled_as_one_graph_it_is_the_same(function: Callable):
    sets = gaussian(2, 30, 8, 9)
    graph = torch.compile(lambda x, w: function(x, w, 9, 3, "peaks"), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all_same(graph(sets.x, sets.weight), run(function, sets, 3, "peaks"))


def test_tokens_with_gradients_are_taken():
    x = gaussian(1, 12, 4, 3).x.clone().requires_grad_()
    centres, _ = cluster.kmeans(x, torch.rand(1, 12), 3)
    centres.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not cluster.kmedoids(x, torch.rand(1, 12), 3)[0].requires_grad


@pytest.mark.parametrize("method", ["wkmedoids", "wkpeaks", "wkmeans"])
def test_a_whole_model_is_the_same(method: str, make_vit: Callable, images: Tensor):
    model = tpbench.reduce(make_vit(), method, "0.6@1,2")
    with torch.inference_mode():
        logits = model(images)
        with definitions():
            assert torch.equal(logits, model(images))


# ---------------------------------------------------------------- the rounding of the mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_two_round_as_the_definition(dtype: torch.dtype):
    """Where the largest number is a power of two, or next to one, the definition's logarithm decides."""
    for power in range(-120, 121, 3):
        one = torch.tensor(2.0**power, dtype=dtype)
        for largest in (one, one.nextafter(one * 2), one.nextafter(one / 2), one * (1 + 1e-6), one * (1 + 1e-5)):
            x = torch.rand(1, 7, 3, generator=generator(power + 200), dtype=dtype) * largest
            x[0, 2, 1] = -largest
            assert same(native.inner_products(x), clustering.inner_products(x)), (power, largest)


# ---------------------------------------------------------------- 16-bit products


def losses(sets: Sets, medoids: Tensor) -> Tensor:
    """sum_i w_i min_j |x_i - m_j|^2 in float64: [B]."""
    x = sets.x.double()
    chosen = torch.stack([points[index] for points, index in zip(x, medoids)])
    apart = (x[:, :, None] - chosen[:, None]).square().sum(-1).amin(2)
    return (sets.weight.double() * apart).sum(1)


def bfloat16_sets() -> Sets:
    """Tokens in 20 groups, far from the origin."""
    groups = torch.randn(8, 20, 64, generator=generator(0))[:, torch.arange(196) % 20]
    x = groups + 0.3 * torch.randn(8, 196, 64, generator=generator(1)) + 3
    return Sets(x.bfloat16(), gaussian(8, 196, 1, 30).weight, 30)


@pytest.mark.parametrize("init", ["topk", "peaks", "farthest"])
def test_16_bit_products_reach_the_same_objective(init: str, monkeypatch: pytest.MonkeyPatch):
    """The path of machines with matrix units, run here with the same numbers: within a thousandth over all sets."""
    sets = bfloat16_sets()
    monkeypatch.setattr(distances, "multiplies_bfloat16", lambda: False)
    exact = run(cluster.kmedoids, sets, 5, init)[0]
    monkeypatch.setattr(distances, "multiplies_bfloat16", lambda: True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert not same(native.inner_products(sets.x), clustering.inner_products(sets.x))  # control: it is another path
    rounded = run(cluster.kmedoids, sets, 5, init)[0]
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert abs(losses(sets, rounded).sum() / losses(sets, exact).sum() - 1) < 1e-3


def test_control_products_rounded_to_16_bits_lose_the_order():
    """Without taking the mean off, and rounded once more when they are stored."""
    sets = bfloat16_sets()
    distance = clustering.distances_from(torch.bmm(sets.x, sets.x.transpose(1, 2)).float())
    exact = clustering.squared_distances(sets.x)
    rounded, kept = (
        clustering.iterate_medoids(d, sets.weight, clustering.farthest(d, sets.weight, sets.k), 5)[0]
        for d in (distance, exact)
    )
    assert losses(sets, rounded).sum() / losses(sets, kept).sum() - 1 > 1e-3


def test_other_dtypes_are_never_rounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distances, "multiplies_bfloat16", lambda: True)
    for dtype in (torch.float32, torch.float16):
        x = gaussian(2, 30, 8, 4).x.to(dtype)
        assert same(native.inner_products(x), clustering.inner_products(x))


# ---------------------------------------------------------------- sets at a time, threads, processes


@pytest.mark.parametrize("numbers", [1, 2 * 37 * (37 + 19), 2**30])
@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_sets_are_alone_whatever_shares_the_cache(function: Callable, numbers: int, monkeypatch: pytest.MonkeyPatch):
    """One at a time, two (the last is alone), all at once."""
    sets = gaussian(5, 37, 19, 11)
    wanted = run(function, sets, 3, "peaks")
    monkeypatch.setattr(engine, "SET_NUMBERS", numbers)
    assert all_same(run(function, sets, 3, "peaks"), wanted)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "THREAD_PAIRS", 1)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("function", [cluster.kmedoids, cluster.kmeans])
def test_threads_change_no_bit(function: Callable, three_threads: None):  # noqa: ARG001
    sets = gaussian(7, 37, 19, 11)
    found = run(function, sets, 3, "farthest")
    assert engine._threads.cache_info().currsize > 0
    torch.set_num_threads(1)
    assert all_same(found, run(function, sets, 3, "farthest"))


def test_an_error_on_another_thread_is_told(three_threads: None):  # noqa: ARG001
    first = torch.arange(3).repeat(7, 1)
    first[6, 0] = 99
    with pytest.raises(IndexError):
        run(cluster.kmedoids, gaussian(7, 20, 4, 3), 1, first)


def python(text: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """A program in a process of its own, with the package of a folder."""
    settings = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=settings, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


PROGRAM = """
import sys, threading
import torch
from tpbench.pooling import cluster
x, weight = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0)), torch.ones(4, 64)
"""


@pytest.mark.slow
def test_one_thread_starts_no_pool_and_forks_are_safe():
    """The benchmark forks one-thread workers, from a process that may have had threads of its own."""
    python(
        PROGRAM
        + """
import multiprocessing, os
assert "numba" not in sys.modules
torch.set_num_threads(1)
alone = cluster.kmedoids(x, weight, 9)[0]
assert "numba" in sys.modules
assert threading.active_count() == 1
from tpbench.kernels.native import engine
engine.THREAD_PAIRS = 1
torch.set_num_threads(2)
assert torch.equal(cluster.kmedoids(x, weight, 9)[0], alone)
assert threading.active_count() == 2  # control: now there is one more

def child(answers):  # one thread: PyTorch itself cannot be forked and then compute on several
    answers.put(cluster.kmedoids(x, weight, 9)[0].tolist())
    answers.put(engine._threads(os.getpid(), 1).submit(abs, -5).result(timeout=20))

context = multiprocessing.get_context("fork")
torch.set_num_threads(1)
for _ in range(2):
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    assert answers.get() == alone.tolist()
    assert answers.get() == 5
"""
    )


TWICE = """
for dtype in (torch.float32, torch.float64, torch.float32):
    cluster.kmedoids(x.to(dtype), weight, 9)
print(cluster.kmedoids(x, weight, 9)[0].tolist())
"""


def cannot_cache(tmp_path: Path) -> dict:
    """A copy of the package whose cache folders cannot be made: a file is in their place."""
    shutil.copytree(ROOT / "tpbench", tmp_path / "tpbench", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tpbench" / "kernels" / "native" / "__pycache__").write_text("")
    return {"folder": tmp_path, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "NUMBA_CACHE_DIR": ""}


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["missing", "cannot cache", "switched off"])
def test_without_numba_the_definitions_run_and_it_is_said_once(reason: str, tmp_path: Path):
    block = "import sys\nsys.modules['numba'] = None\n" if reason == "missing" else ""
    how = {"cannot cache": cannot_cache(tmp_path), "switched off": {"NUMBA_DISABLE_JIT": "1"}}.get(reason, {})
    done = python(block + PROGRAM + TWICE, **how)
    found = [line for line in done.stderr.splitlines() if "plain PyTorch" in line]
    assert len(found) == 1, done.stderr
    assert {"missing": "numba", "cannot cache": "cache", "switched off": "NUMBA_DISABLE_JIT"}[reason] in found[0]
    x = torch.randn(4, 64, 8, generator=generator(0))
    assert done.stdout.strip() == str(cluster.kmedoids(x, torch.ones(4, 64), 9)[0].tolist())


# ---------------------------------------------------------------- controls: the twin with a fault

FAULTS = {
    "ties to the last medoid": ("return (value < least) |", "return (value <= least) |"),
    "NaN is never nearest": ("| ((value != value) & (least == least))", "| (value == least - 1)"),
    "a medoid may leave its cluster": ("label[medoids[number]] = number", "label[0] += 0"),
    "costs without weights": ("cost += weight[member] * row[member]", "cost += row[member]"),
    "ties to the last member": ("if place == 0 or cost < least", "if place == 0 or cost <= least"),
    "one iteration too few": ("for _ in range(iterations)", "for _ in range(iterations - 1)"),
    "equal scores to the higher index": ("np.int32(value >= later[i])", "np.int32(value > later[i])"),
    "NaN is no score": ("if missing > 0", "if missing > 99"),
    "peaks by distance alone": ("score[i] * apart[i]", "apart[i]"),
    "peaks over all others": ("(place < rank[i])", "(place != rank[i])"),
    "farthest from the last alone": ("here if (here < least) | (here != here) else least", "here"),
    "farthest may come back": ("taken[chosen] = True", "taken[chosen] = False"),
    "half the distance": ("(length - row[j]) + half[j]", "(length - row[j]) + (length - row[j])"),
    "the mean is not rounded": ("np.rint(mean[b - base, c] / step) * step", "mean[b - base, c]"),
    "powers of two count double": ("power -= 1", "power -= 0"),
    "means without weights": ("part = weight[member] / total", "part = 1 / total"),
    "centres without weight move": ("if not total > 0", "if not total >= 0"),
    "centres of half their length": ("length - (row[i] + row[i])", "length - row[i]"),
}


FOLDER = Path(native.__file__).parent


def interpreted(folder: Path, fault: tuple[str, str] | None = None) -> ModuleType:
    """A copy of the twins, with or without a fault in it (what to put in place of what), whose loops Python runs."""
    name = f"native_{folder.name}".replace("-", "_")
    (folder / name).mkdir()
    for path in FOLDER.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if fault is not None:
            text = text.replace(*fault)
        (folder / name / path.name).write_text(text.replace("tpbench.kernels.native", name), encoding="utf-8")
    before, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 1
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module(f"{name}.twins")
        return importlib.import_module(f"{name}.clustering")
    finally:
        sys.path.remove(str(folder))
        numba.config.DISABLE_JIT = before


SMALL = [
    gaussian(2, 19, 5, 6),
    integers(2, 14, 2, 5),
    integers(2, 9, 2, 8),
    Sets(torch.ones(1, 18, 3), torch.ones(1, 18), 12),
    Sets(gaussian(1, 9, 3, 4).x, torch.zeros(1, 9), 4),
    Sets(gaussian(1, 14, 3, 4).x, integers(1, 14, 2, 4).weight, 4),
]


def found_out(room: ModuleType) -> bool:
    material = [*SMALL, *(spoilt(where, float("nan")) for where in ("x", "weight"))]
    return any(differ(room, sets) for differ in STEPS.values() for sets in material) or bad_pairs_differ(room, 10)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_control_without_a_fault_nothing_is_found(tmp_path: Path):
    assert not found_out(interpreted(tmp_path))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_fault_is_found(fault: str, tmp_path: Path):
    sources = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")]
    assert sum(FAULTS[fault][0] in text for text in sources) == 1, "the control no longer fits the twin"
    assert found_out(interpreted(tmp_path, FAULTS[fault]))


# ---------------------------------------------------------------- compiled code on disk


def compiled_functions(text: str) -> set[str]:
    """The compiled functions that a source defines."""
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if "compiled" in {ast.unparse(mark) for mark in f.decorator_list}}


def called_elsewhere(texts: dict[str, str]) -> list[str]:
    """Compiled functions that call a compiled function of another file, whatever their own file has of that name."""
    own = {home: compiled_functions(text) for home, text in texts.items()}
    every = set().union(*own.values())
    found = []
    for home, text in texts.items():
        for function in ast.parse(text).body:
            if isinstance(function, ast.FunctionDef) and function.name in own[home]:
                names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
                found += [f"{home}: {function.name} calls {name}" for name in names & every - own[home]]
    return found


def test_no_compiled_function_calls_one_of_another_file():
    """numba's cache of a file does not notice changes in another file: it would go on running the old code."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert sum(len(compiled_functions(text)) for text in texts.values()) > 20
    assert called_elsewhere(texts) == []
    texts["starts.py"] = texts["starts.py"].replace("    _first_of(rank, first)", "    _distances(rank, first)")
    assert len(called_elsewhere(texts)) > 0, "control"
