"""The native twins of DPC-KNN, ToMe, PiToMe, ATS and of averaging by cluster, beside their definitions.

The same numbers to the last bit, for ties, NaN and infinity too; and the controls: a twin with a fault put into its
source, run as plain Python, must be found out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clustering_sets import gaussian, generator, integers
from test_native import FOLDER, all_same, interpreted, same
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tpbench
from tpbench.kernels import density, matching, sampling, segments
from tpbench.kernels.device import definitions

ROOMS = {"density": density, "matching": matching, "sampling": sampling, "segments": segments}
NATIVE = SimpleNamespace(**{name: importlib.import_module(f"tpbench.kernels.native.{name}") for name in ROOMS})
FLOATS = [torch.float32, torch.float64]


# ---------------------------------------------------------------- material


def rough(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers with ties, now and then infinite, and from some seeds on NaN."""
    x = torch.randint(-3, 4, shape, generator=generator(seed)).to(dtype)
    places = torch.rand(shape, generator=generator(seed + 1))
    if seed % 3 == 1:
        x[places < 0.05] = float("inf")
    if seed % 3 == 2:
        x[places > 0.95] = float("nan")
    return x


def squares(seed: int, n: int, dtype: torch.dtype) -> Tensor:
    """Symmetric squared distances [2, N, N] with ties, and from some seeds on with bad numbers."""
    x = rough((2, n, n), seed, dtype).abs()
    return x + x.transpose(1, 2)


def similarities(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    x = rough(shape, seed, dtype)
    x[x.isinf()] = 4  # a cosine is never infinite
    return x if seed % 2 else x + torch.rand(shape, generator=generator(seed + 5)).to(dtype)


# ---------------------------------------------------------------- every twin is its definition


def densities_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    n = 3 + 7 * (seed % 5)
    pairs, neighbours = squares(seed, n, dtype), 1 + seed % 6
    given = (pairs, 5, neighbours)
    return not all_same(room.density.density_and_separation(*given), density.density_and_separation(*given))


def density_peaks_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    for sets in (gaussian(2, 11 + seed, 6, 5, seed), integers(3, 9 + seed, 2, 4, seed)):
        given = (sets.x.to(dtype), 5, sets.k)
        if not same(room.density.density_peaks(*given), density.peaks_of_density(*given)):
            return True
    return False


def halves_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    prefix, n = seed % 3, 6 + seed % 7
    even, odd = (prefix + n + 1) // 2, (prefix + n) // 2
    sure = similarities((2, even, odd), seed, dtype)
    given = (sure, prefix, n - 1 - seed % (n // 2))
    return not same(room.matching.match_halves(*given), matching.halves_matched(*given))


def energies_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    n = 6 + seed % 7
    r = 1 + seed % (n // 2)
    similarity, energy = similarities((2, n, n), seed, dtype), rough((2, n), seed + 9, dtype)
    given = (similarity, energy, 2 * r if seed % 2 else n, n - r)
    return not same(room.matching.match_by_energy(*given), matching.matched_by_energy(*given))


def samples_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    rising = rough((3, 5 + 4 * (seed % 6)), seed, dtype).abs() + torch.rand(3, 1, generator=generator(seed)).to(dtype)
    if seed % 4 == 0:
        rising[1] = 0  # nothing to sample by
    if seed % 4 == 1:
        rising[2] = 1  # samples half way between two sums
    rising = rising.sort(dim=1).values
    k = 1 + seed % rising.shape[1]
    return not same(room.sampling.nearest_samples(rising, k), sampling.nearest_sums(rising, k))


def means_differ(room: Any, seed: int, dtype: torch.dtype) -> bool:
    x = rough((3, 15, 7 + seed), seed, dtype) + torch.rand(3, 1, 1, generator=generator(seed)).to(dtype)
    x = x[:, 1:] if seed % 2 else x.transpose(0, 1).contiguous().transpose(0, 1)
    weight = rough(x.shape[:2], seed + 2, dtype).abs()
    assignment = torch.randint(0, 6, x.shape[:2], generator=generator(seed))
    given = (x, weight, assignment, 6)
    return not same(room.segments.segment_mean(*given), segments.mean_by_cluster(*given))


TWINS = {
    "density and separation": densities_differ,
    "density peaks": density_peaks_differ,
    "halves": halves_differ,
    "energy": energies_differ,
    "samples": samples_differ,
    "means": means_differ,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("twin", TWINS)
def test_twins_are_their_definitions(twin: str, dtype: torch.dtype):
    different = [seed for seed in range(60) if TWINS[twin](NATIVE, seed, dtype)]
    assert different == []


@pytest.mark.parametrize("method", ["dpcknn", "tome", "pitome", "ats", "wkmeans"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_whole_model_is_the_same(method: str, dtype: torch.dtype, make_vit: Callable, images: Tensor):
    model = tpbench.reduce(make_vit(), method, "0.6@1,2").to(dtype)
    with torch.inference_mode():
        logits = model(images.to(dtype))
        with definitions():
            assert torch.equal(logits, model(images.to(dtype)))


@pytest.mark.parametrize("method", ["dpcknn", "tome", "pitome", "ats"])
def test_compiled_as_one_graph_it_is_the_same(method: str, make_vit: Callable, images: Tensor):
    model = tpbench.reduce(make_vit(), method, "0.6@1,2").eval()
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(graph(images), model(images))


def test_a_mean_has_its_gradient():
    x, weight = gaussian(2, 9, 4, 3).x.clone().requires_grad_(), torch.rand(2, 9)
    assignment = torch.arange(9).remainder(3).expand(2, 9)
    segments.segment_mean(x, weight, assignment, 3).square().sum().backward()
    wanted = x.grad.clone()
    x.grad = None
    segments.mean_by_cluster(x, weight, assignment, 3).square().sum().backward()
    assert torch.equal(x.grad, wanted)


def test_a_cluster_that_does_not_exist_is_refused():
    x, weight = torch.rand(1, 3, 2), torch.ones(1, 3)
    for wrong in (-1, 2):
        with pytest.raises(IndexError, match="none of the 2 clusters"):
            segments.segment_mean(x, weight, torch.tensor([[0, 1, wrong]]), 2)


def test_the_counter_sees_distances_and_nothing_else():
    x = torch.rand(2, 12, 6)
    with FlopCounterMode(display=False) as counter:
        density.density_peaks(x, 5, 4)
        matching.match_halves(torch.rand(2, 4, 4), 0, 5)
    assert counter.get_total_flops() == 2 * 2 * 12 * 12 * 6


# ---------------------------------------------------------------- controls: a twin with a fault

FAULTS = {
    "neighbours by the largest": ("if not ((value < last)", "if not ((value > last)"),
    "one neighbour too few": ("range(1, len(near))", "range(1, len(near) - 1)"),
    "of equally dense tokens the higher is denser": ("(j < i))\n            nearer", "(j > i))\n            nearer"),
    "separation by all others": ("nearer = denser &", "nearer = (i != j) &"),
    "separation of all channels": ("separation[b, i] /= channels", "separation[b, i] /= 1"),
    "scores that are alike to the last": ("(alike & (j < i))", "(alike & (j > i))"),
    "the last best partner": ("if row[j] > most or", "if row[j] >= most or"),
    "odd tokens first": (
        "        number = 0\n        for i in range(even):",
        "        number = 1\n        for i in range(even):",
    ),
    "prefix tokens merge": ("2 * i - prefix if goes", "2 * i if goes"),
    "the last best target": ("(value > most or value != value)", "(value >= most or value != value)"),
    "one pair too many": ("order[b, 2 * i] if rank[i] < n - k", "order[b, 2 * i] if rank[i] <= n - k"),
    "samples from zero": ("value != 0 and value < start", "value < start"),
    "the last nearest sum": ("nearer = apart < least", "nearer = apart <= least"),
    "means without weights": ("share[i] = weight[i] if", "share[i] = one if"),
    "members without weight count nothing": ("> 0 else one", "> 0 else weight[i]"),
}


def found_out(room: Any) -> bool:
    return any(differ(room, seed, torch.float32) for differ in TWINS.values() for seed in range(24))


def rooms_in(folder: Path, fault: tuple[str, str] | None = None) -> Any:
    package = interpreted(folder, fault).__package__
    return SimpleNamespace(**{name: importlib.import_module(f"{package}.{name}") for name in ROOMS})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_control_without_a_fault_nothing_is_found(tmp_path: Path):
    assert not found_out(rooms_in(tmp_path))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_fault_is_found(fault: str, tmp_path: Path):
    sources = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")]
    assert sum(FAULTS[fault][0] in text for text in sources) == 1, "the control no longer fits the twin"
    assert found_out(rooms_in(tmp_path, FAULTS[fault]))
