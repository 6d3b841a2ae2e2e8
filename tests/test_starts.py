"""The clustering objective by start and iterations: against a plain loop, and what must hold for every image."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from tpbench.claims.study import _starts
from tpbench.measure import starts
from tpbench.pooling.cluster import INITIALISATIONS, initial
from tpbench.vit import reduce

OWN = starts._iterations(5).index(5)


@pytest.fixture
def model(vit):
    return reduce(vit, "wkmedoids", "0.5@1,2")


def logs(model, images) -> torch.Tensor:
    (found,) = starts._log_objectives(model, [images])
    return found


def test_more_iterations_never_raise_the_objective(model, images):
    found = logs(model, images)  # [L, B, S, T]
    assert found.shape == (2, len(images), len(INITIALISATIONS), len(starts._iterations(5)))
    assert (found.diff(dim=-1) <= 1e-9).all()
    assert (found.diff(dim=-1) < -1e-3).any(), "control: iterations do something"


@pytest.mark.parametrize("start", ["topk", "grid"])
def test_the_objective_is_that_of_a_plain_loop(model, images, start):
    seen = []
    reducer = starts.medoid_reducers(model)[0]
    hook = reducer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model(images)
    hook.remove()
    points, weight, score = (part.double() for part in reducer.clustering(*seen[0]))
    found = starts.objectives(reducer, *seen[0])[:, INITIALISATIONS.index(start)]
    first = initial(start, score, reducer.setup.k)
    for image in range(len(images)):
        medoids = first[image]
        gaps = torch.cdist(points[image], points[image]).square()
        for _ in range(5):
            nearest = gaps[:, medoids].argmin(dim=1)
            nearest[medoids] = torch.arange(len(medoids))
            groups = [(nearest == cluster).nonzero()[:, 0] for cluster in range(len(medoids))]
            best = [own[(gaps[own][:, own] * weight[image, own]).sum(dim=1).argmin()] for own in groups]
            medoids = torch.stack(best)
        plain = (weight[image] * gaps[:, medoids].min(dim=1).values).sum()
        assert found[image, OWN].item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_report_is_relative_to_the_models_own_setting(model, images):
    found = starts.starts(model, [images, images[:1]], seed=0)
    assert found["images"] == len(images) + 1
    assert found["default"] == {"start": "topk", "iterations": 5}
    assert found["starts"]["topk"]["5"] == {"mean": 0.0, "sd": 0.0}
    means = [found["starts"]["topk"][str(count)]["mean"] for count in starts.ITERATIONS]
    assert all(later <= earlier for earlier, later in pairwise(means))
    grid = [found["starts"]["grid"][str(count)]["mean"] for count in starts.ITERATIONS]
    assert grid[0] > grid[-1], "control: without iterations it is worse"
    assert all(found["unconverged"][start]["mean"] >= 0 for start in INITIALISATIONS)
    assert all(0 <= found["unconverged"][start]["settled"] <= 1 for start in INITIALISATIONS)
    expected = logs(model, torch.cat([images, images[:1]]))
    by_hand = (
        expected[:, :, INITIALISATIONS.index("grid"), OWN] - expected[:, :, INITIALISATIONS.index("topk"), OWN]
    ).mean(dim=0)
    assert found["starts"]["grid"]["5"]["mean"] == pytest.approx(by_hand.mean().item())
    assert found["starts"]["grid"]["5"]["sd"] == pytest.approx(by_hand.std().item())


def test_draws_come_from_the_seed_and_leave_torchs_generator_alone(model, images):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = starts.starts(model, [images], seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert starts.starts(model, [images], seed=0) == first
    other = starts.starts(model, [images], seed=1)
    assert other["starts"]["random"] != first["starts"]["random"], "control: another seed draws others"
    assert other["starts"]["grid"] == first["starts"]["grid"]


def test_the_model_is_left_as_it_was(model, images):
    before = model(images)
    starts.starts(model, [images], seed=0)
    torch.testing.assert_close(model(images), before)
    assert not any(reducer._forward_pre_hooks for reducer in starts.medoid_reducers(model))


def test_only_medoids_are_measured(vit, model):
    assert starts.clusters_by_medoids(model)
    assert not starts.clusters_by_medoids(reduce(vit, "topk", "0.5@1"))


def test_the_claims_read_what_is_measured(model, images, tmp_path):
    path = tmp_path / "seed0.json"
    path.write_text(json.dumps({"schedule": "0.5@1,2"} | starts.starts(model, [images], seed=0)))
    assert _starts(path)["images"] == len(images)
