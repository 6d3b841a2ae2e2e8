"""Agglomerative clustering: scikit-learn's clusters, brute force's ties, and the native twin beside the definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tpbench.kernels import agglomerative
from tpbench.kernels.device import definitions

LINKAGES = ["single", "average", "complete"]
every_linkage = pytest.mark.parametrize("linkage", LINKAGES)
SETS = {"DeiT": (2, 196, 138), "low": (2, 64, 9), "all into one": (3, 21, 1), "none": (2, 9, 9), "one": (2, 1, 1)}


def distances(batch: int, n: int, seed: int = 0) -> Tensor:
    """Cosine distances of random directions: [B, N, N], symmetric, 0 on the diagonal."""
    points = F.normalize(torch.randn(batch, n, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)
    upper = (1 - points @ points.transpose(1, 2)).triu(1)
    return upper + upper.transpose(1, 2)


def tied(batch: int, n: int, seed: int = 0) -> Tensor:
    """Distances of 0, 1 and 2 alone: most of them are tied."""
    whole = torch.randint(0, 3, (batch, n, n), generator=torch.Generator().manual_seed(seed)).float().triu(1)
    return whole + whole.transpose(1, 2)


def run(distance: Tensor, k: int, linkage: str, by_definition: bool) -> Tensor:
    if not by_definition:
        pytest.importorskip("numba")
        return agglomerative.agglomerate(distance, k, linkage)
    with definitions():
        return agglomerative.agglomerate(distance, k, linkage)


def numbered(labels: list) -> list[int]:
    """Labels by the order in which they first occur."""
    known: dict = {}
    return [known.setdefault(label, len(known)) for label in labels]


def by_hand(distance: list[list[float]], k: int, linkage: str) -> list[int]:
    """Merging as the textbook has it, over a table of all pairs of clusters; of equal pairs the first."""
    clusters = {i: [i] for i in range(len(distance))}
    apart = {(i, j): distance[i][j] for i, j in combinations(clusters, 2)}
    while len(clusters) > k:
        first, second = min(sorted(apart), key=apart.get)
        here, there = len(clusters[first]), len(clusters[second])
        for other in clusters.keys() - {first, second}:
            near = tuple(sorted((first, other)))
            a, b = apart[near], apart.pop(tuple(sorted((second, other))))
            means = {"single": min(a, b), "complete": max(a, b), "average": (here * a + there * b) / (here + there)}
            apart[near] = means[linkage]
        del apart[first, second]
        clusters[first] += clusters.pop(second)
    return [next(c for c, first in enumerate(sorted(clusters)) if i in clusters[first]) for i in range(len(distance))]


@pytest.mark.parametrize("by_definition", [True, False], ids=["definition", "native"])
@pytest.mark.parametrize("case", [case for case in SETS if case not in ("none", "one")])
@every_linkage
def test_the_clusters_are_scikit_learns(case, linkage, by_definition):
    batch, n, k = SETS[case]
    distance = distances(batch, n)
    found = run(distance, k, linkage, by_definition)
    rule = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage)
    for image in range(batch):
        assert found[image].tolist() == numbered(rule.fit_predict(distance[image].double().numpy()).tolist())
    if case == "low":  # control: another linkage, other clusters
        other = LINKAGES[LINKAGES.index(linkage) - 1]
        assert not torch.equal(found, run(distance, k, other, by_definition))


@pytest.mark.parametrize("by_definition", [True, False], ids=["definition", "native"])
@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
@every_linkage
def test_ties_go_to_the_lowest_tokens(k, linkage, by_definition):
    """Against the textbook, on distances that are nearly all tied."""
    distance = tied(6, 12, seed=k)
    found = run(distance, k, linkage, by_definition)
    assert found.tolist() == [by_hand(image, k, linkage) for image in distance.tolist()]


def test_a_case_by_hand():
    """On a line at 0, 1, 3, 7, 12. First 0 and 1 merge, at 1. Single: 3 joins them at 2, 7 at 4. Complete: 3 joins them
    at 3, before 7 and 12 merge at 5, since {0, 1, 3} and 7 are 7 apart. Average, 2 clusters: {0, 1, 3} and 7 are 5.67
    apart, 7 and 12 are 5."""
    line = torch.tensor([0.0, 1, 3, 7, 12])
    distance = (line[:, None] - line[None, :]).abs()[None]
    for linkage, two in (("single", [0, 0, 0, 0, 1]), ("complete", [0, 0, 0, 1, 1]), ("average", [0, 0, 0, 1, 1])):
        assert agglomerative.agglomerate(distance, 4, linkage).tolist() == [[0, 0, 1, 2, 3]]
        assert agglomerative.agglomerate(distance, 3, linkage).tolist() == [[0, 0, 0, 1, 2]]
        assert agglomerative.agglomerate(distance, 2, linkage).tolist() == [two]


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_linkage
def test_the_twin_is_the_definition(case, dtype, linkage):
    pytest.importorskip("numba")
    batch, n, k = SETS[case]
    for distance in (distances(batch, n), tied(batch, n)):
        given = distance.to(dtype)
        native = run(given, k, linkage, by_definition=False)
        assert torch.equal(native, run(given, k, linkage, by_definition=True))
        assert native.amax(dim=1).tolist() == [k - 1] * batch


@every_linkage
def test_numbers_that_are_none_are_far_away(linkage):
    """NaN and infinity cost a token its company and nobody else's: K clusters, alike in both."""
    pytest.importorskip("numba")
    distance = distances(3, 20)
    distance[1, 4] = distance[1, :, 4] = float("nan")
    distance[2, :6, 6:] = float("inf")
    native = run(distance, 3, linkage, by_definition=False)
    assert torch.equal(native, run(distance, 3, linkage, by_definition=True))
    assert (native[1] == native[1, 4]).sum() == 1
    assert native.amax(dim=1).tolist() == [2, 2, 2]
    alone = run(distance[:1], 3, linkage, by_definition=False)
    assert torch.equal(native[:1], alone)
    everywhere = run(torch.full((1, 7, 7), float("nan")), 2, linkage, by_definition=False)
    assert everywhere.amax() == 1


def test_below_the_diagonal_nothing_is_read():
    distance = distances(2, 16)
    spoilt = distance.triu(1) + torch.full((16, 16), -7.0).tril()
    for by_definition in (True, False):
        assert torch.equal(run(spoilt, 5, "average", by_definition), run(distance, 5, "average", by_definition))


def test_several_threads_find_the_same(monkeypatch):
    native = pytest.importorskip("tpbench.kernels.native.engine")
    monkeypatch.setattr(native, "THREAD_PAIRS", 1)
    distance = distances(7, 40)
    want = run(distance, 11, "average", by_definition=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(distance, 11, "average", by_definition=False), want)
    finally:
        torch.set_num_threads(before)


def test_control_a_merge_that_forgets_its_neighbours_is_found(monkeypatch):
    """The twin in plain Python, with clusters that keep a nearest neighbour which has merged away."""
    native = pytest.importorskip("tpbench.kernels.native.agglomerative")
    distance = distances(1, 24)
    want = run(distance, 6, "complete", by_definition=True)[0].numpy()

    def found() -> np.ndarray:
        assignment = np.zeros((1, 24), np.int64)
        native.agglomerate_sets.py_func(0, 1, 0, 2, distance.numpy(), 6, assignment)
        return assignment[0]

    for name in ("_load", "_look", "_link", "_merge", "_number"):
        monkeypatch.setattr(native, name, getattr(native, name).py_func)
    assert (found() == want).all()
    looks = iter([native._look] * 24)  # at the start alone
    monkeypatch.setattr(native, "_look", lambda *given: next(looks, lambda *_: None)(*given))
    assert (found() != want).any()


@every_linkage
def test_merges_are_counted(linkage):
    distance = distances(3, 20)
    with FlopCounterMode(display=False) as counter:
        agglomerative.agglomerate(distance, 8, linkage)
    assert counter.get_total_flops() == (3 * 2 * 2 * 20 * 12 if linkage == "average" else 0)
