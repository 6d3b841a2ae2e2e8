"""The benchmarks for the speed targets of results/opbench: part of `tox -e opbench`.

Whole models on one thread, one clustering layer, a block that also returns the attention received, and the starts of
clustering on the tokens of a trained model. `opbench.targets` declares the targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from opbench.plain import exchanged, looped_kmedoids, one_by_one, textbook_kmeans
from opbench.trained import trained_base
from opbench.turns import BF16, ON_GPU, Operation, Turns, inference, label, reduced
from tpbench import registry, vit
from tpbench.bench.models import build_base
from tpbench.downsampler import Downsampler, Needs, Probe, Setup, Site
from tpbench.kernels.device import definitions
from tpbench.measure import flops, latency
from tpbench.pooling import cluster
from tpbench.recipe import load
from tpbench.tokens import Tokens, rows
from tpbench.vit import TokenBlock

torch.set_num_threads(1)
SCHEDULE = "0.7@3,6,9"
METHODS = [card.name for card in registry.select("all") if not card.unreduced]
F32 = torch.float32


class Place(NamedTuple):
    """What the models of one group have in common."""

    model: str
    batch: int
    dtype: str


SMALL = "deit_small_patch16_224"
TINY = "deit_tiny_patch16_224"
DIGITS = "digits"
PLACES = [Place(name, batch, "float32") for name in (SMALL, TINY) for batch in (1, 8)]
PLACES += [Place(SMALL, 8, "bfloat16")] if BF16 else []
PLACES += [Place(DIGITS, 1, "float32"), Place(DIGITS, 32, "float32")]
SCHEDULES = {SMALL: SCHEDULE, TINY: SCHEDULE, DIGITS: "macs=0.5@0,1,2"}
REPEATS = {SMALL: {1: 15, 8: 5}, TINY: {1: 15, 8: 5}, DIGITS: {1: 200, 32: 40}}

if ON_GPU:
    pytest.skip("these targets are for a CPU", allow_module_level=True)


# ---------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> Turns:
    """timm's own model and every method, in turns, all of them eager."""
    place = request.param
    torch.manual_seed(0)
    base = build_base(load("digits"), 0) if place.model == DIGITS else vit.create(place.model, {})
    base.eval()
    images = latency.random_images(base, place.batch)
    precision = getattr(torch, place.dtype)
    macs = place.batch * flops.closed_form(vit.reduce(base, "none")).total
    operations = {"none": Operation(latency.forward_call(base, images, precision), {"macs": macs})}
    for method, model in reduced(base, METHODS, SCHEDULES[place.model]):
        macs = place.batch * flops.closed_form(model).total
        operations[method] = Operation(latency.forward_call(model, images, precision), {"macs": macs})
    return Turns({"kind": "model", **place._asdict()}, operations, REPEATS[place.model][place.batch])


@pytest.mark.parametrize("models", PLACES, indirect=True, ids=label)
@pytest.mark.parametrize("method", ["none", *METHODS])
def test_model(benchmark: Any, models: Turns, method: str):
    models.report(benchmark, method)


# ---------------------------------------------------------------- one layer


class Layer(NamedTuple):
    """The shapes of one clustering layer."""

    tokens: int
    width: int
    k: int
    batch: int


def some_points(layer: Layer, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal noise as points [B, N, C], and uniform weights [B, N]."""
    x = torch.randn(layer.batch, layer.tokens, layer.width, generator=generator)
    weight = torch.rand(layer.batch, layer.tokens, generator=generator)
    return x, weight


def setup_of(tokens: int, k: int, prefix: int = 0) -> Setup:
    """The setup of a reducer in DeiT-S, off the grid."""
    return Setup(
        block=0,
        stage=0,
        stages=1,
        tokens=tokens,
        k=k,
        patches=tokens,
        width=384,
        heads=6,
        grid=None,
        prefix=prefix,
    )


@pytest.fixture(scope="module")
def clustering(request: pytest.FixtureRequest) -> Turns:
    """The clustering alone, and two whole reducers: N=196, C=384, batch 32, K from the parameter."""
    k = request.param
    x, weight = some_points(Layer(tokens=196, width=384, k=k, batch=32), torch.Generator().manual_seed(0))
    tokens = Tokens(x, 0, torch.ones(32, 196))
    probe = Probe(received=weight, own=weight / 196)
    setup = setup_of(tokens=196, k=k)
    reducers = {name: registry.method(name)(setup) for name in ("wkmedoids", "dpcknn")}
    calls = {
        "kmedoids": lambda: cluster.kmedoids(x, weight, k),
        "looped kmedoids": lambda: looped_kmedoids(x, weight, k),
        "kmeans": lambda: cluster.kmeans(x, weight, k),
        "textbook kmeans": lambda: textbook_kmeans(x, weight, k),
    }
    calls |= {f"{name} reducer": lambda reducer=reducer: reducer(tokens, probe) for name, reducer in reducers.items()}
    operations = {name: Operation(inference(call, F32), {"k": k}) for name, call in calls.items()}
    return Turns({"kind": "clustering", "tokens": 196, "k": k, "batch": 32, "dtype": "float32"}, operations, 5)


OPERATIONS = ["kmedoids", "looped kmedoids", "kmeans", "textbook kmeans", "wkmedoids reducer", "dpcknn reducer"]


@pytest.mark.parametrize("clustering", [138, 69], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_clustering(benchmark: Any, clustering: Turns, operation: str):
    clustering.report(benchmark, operation)


LAYERS = [
    Layer(tokens=196, width=384, k=138, batch=8),
    Layer(tokens=196, width=384, k=138, batch=1),
    Layer(tokens=64, width=64, k=32, batch=32),
    Layer(tokens=64, width=64, k=32, batch=1),
]


@pytest.fixture(scope="module")
def twins(request: pytest.FixtureRequest) -> Turns:
    """K-Medoids as tpbench runs it, its definition in plain PyTorch, and the matrix product that both contain."""
    layer = request.param
    x, weight = some_points(layer, torch.Generator().manual_seed(0))
    k = layer.k

    def plainly() -> tuple[Tensor, Tensor]:
        with definitions():
            return cluster.kmedoids(x, weight, k)

    calls = {
        "kmedoids": lambda: cluster.kmedoids(x, weight, k),
        "plain kmedoids": plainly,
        "product": lambda: torch.bmm(x, x.transpose(1, 2)),
    }
    operations = {name: Operation(inference(call, F32), {"k": k}) for name, call in calls.items()}
    place = {"kind": "native", "tokens": layer.tokens, "k": k, "batch": layer.batch, "dtype": "float32"}
    return Turns(place, operations, repeats=200 if layer.batch == 1 else 40, warmup=3)


@pytest.mark.parametrize("twins", LAYERS, indirect=True, ids=label)
@pytest.mark.parametrize("operation", ["kmedoids", "plain kmedoids", "product"])
def test_native(benchmark: Any, twins: Turns, operation: str):
    twins.report(benchmark, operation)


# ---------------------------------------------------------------- agglomerative clustering


LINKAGES = ("single", "average", "complete")


@pytest.fixture(scope="module")
def agglomerative() -> Turns:
    """ATC's reducer with every linkage, the same by scikit-learn image by image, and wkmedoids' reducer."""
    batch = 8
    n = 196
    k = 138
    generator = torch.Generator().manual_seed(0)
    x, weight = some_points(Layer(tokens=n, width=384, k=k, batch=batch), generator)
    setup = setup_of(tokens=n, k=k)
    keys = torch.randn(batch, setup.heads, n, setup.width // setup.heads, generator=generator)
    tokens = Tokens(x, 0, torch.ones(batch, n))
    probe = Probe(received=weight, own=weight / n, keys=keys)
    method = registry.method("atc")
    by_linkage = {linkage: method(setup, method.Config(linkage)) for linkage in LINKAGES}
    weighted = registry.method("wkmedoids")(setup)
    calls = {"wkmedoids reducer": lambda: weighted(tokens, probe)}
    for linkage, reducer in by_linkage.items():
        calls[f"atc reducer, {linkage}"] = lambda reducer=reducer: reducer(tokens, probe)
        calls[f"scikit-learn, {linkage}"] = lambda linkage=linkage: one_by_one(tokens, keys, k=k, linkage=linkage)
    operations = {name: Operation(inference(call, F32), {"k": k}) for name, call in calls.items()}
    place = {"kind": "agglomerative", "tokens": n, "k": k, "batch": batch, "dtype": "float32"}
    return Turns(place, operations, repeats=40, warmup=3)


AGGLOMERATIONS = [f"{who}, {linkage}" for linkage in LINKAGES for who in ("atc reducer", "scikit-learn")]


@pytest.mark.parametrize("operation", ["wkmedoids reducer", *AGGLOMERATIONS])
def test_agglomerative(benchmark: Any, agglomerative: Turns, operation: str):
    agglomerative.report(benchmark, operation)


# ---------------------------------------------------------------- a block that returns the attention received


class AsksOnly(Downsampler):
    """Asks for the attention received and changes nothing."""

    needs = Needs.RECEIVED

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        assert probe.received is not None
        return tokens


@pytest.fixture(scope="module")
def blocks() -> Turns:
    """A block of DeiT-S with SDPA, and one that also returns the attention received: 197 tokens, batch 8."""
    torch.manual_seed(0)
    base = vit.create(SMALL, {"depth": 1}).eval()
    tokens = Tokens(torch.randn(8, 197, 384), 1, torch.ones(8, 196))
    asks = AsksOnly(setup_of(tokens=196, k=196, prefix=1))
    around = {"site": Site.MID, "prefix": 1, "weighted": False}
    plain = TokenBlock.around(base.blocks[0], reducer=None, **around)
    returning = TokenBlock.around(base.blocks[0], reducer=asks, **around)
    calls = {"SDPA block": lambda: plain(tokens), "received block": lambda: returning(tokens)}
    operations = {name: Operation(inference(call, F32), {}) for name, call in calls.items()}
    place = {"kind": "blocks", "tokens": 196, "batch": 8, "dtype": "float32"}
    return Turns(place, operations, repeats=31, warmup=3)


@pytest.mark.parametrize("operation", ["SDPA block", "received block"])
def test_block(benchmark: Any, blocks: Turns, operation: str):
    blocks.report(benchmark, operation)


# ---------------------------------------------------------------- where to start


EXCHANGED = "peaks, then exchanges until none helps"


@pytest.fixture(scope="module")
def starts() -> Turns:
    """Weighted K-Medoids with 2 and 5 iterations from every start, on tokens of the digits model after five epochs."""
    cases = trained_tokens()

    def clustered(init: str, iterations: int) -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        return [cluster.kmedoids(x, weight, k=k, iterations=iterations, init=init) for x, weight, k in cases]

    def local_optimum() -> list[tuple[Tensor, Tensor]]:
        return [exchanged(x, weight, medoids) for (x, weight, _), (medoids, _) in zip(cases, clustered("peaks", 2))]

    def loss(found: list[tuple[Tensor, Tensor]]) -> float:
        return sum(
            cluster.objective(x, weight, centres=rows(x, medoids), assignment=assignment).sum().item()
            for (x, weight, _), (medoids, assignment) in zip(cases, found)
        )

    operations = {}
    for init in cluster.INITIALISATIONS:
        for iterations in (2, 5):
            facts = {"init": init, "iterations": iterations, "loss": loss(clustered(init, iterations))}
            call = inference(lambda init=init, iterations=iterations: clustered(init, iterations), F32)
            operations[f"{init}, {iterations} iterations"] = Operation(call, facts)
    facts = {"init": "peaks", "iterations": 0, "loss": loss(local_optimum())}
    operations[EXCHANGED] = Operation(inference(local_optimum, F32), facts)
    place = {"kind": "start", "batch": 32, "dtype": "float32"}
    return Turns(place, operations, repeats=15, warmup=3)


@pytest.mark.parametrize("init", cluster.INITIALISATIONS)
@pytest.mark.parametrize("iterations", [2, 5])
def test_start(benchmark: Any, starts: Turns, init: str, iterations: int):
    starts.report(benchmark, f"{init}, {iterations} iterations")


def test_local_optimum(benchmark: Any, starts: Turns):
    starts.report(benchmark, EXCHANGED)


def trained_tokens(epochs: int = 5) -> list[tuple[Tensor, Tensor, int]]:
    """The input of three reducers of a trained model on 32 test images: points [B, N, C], weights [B, N] and K."""
    base, parts = trained_base(epochs)
    model = vit.reduce(base, "wkmedoids", "0.5@0,1,2").eval()
    found = []

    def note(reducer: Downsampler, given: tuple[Tokens, Probe]) -> None:
        tokens, probe = given
        found.append((tokens.body.clone(), reducer.significance(probe), reducer.setup.k))

    for reducer in model.reducers:
        reducer.register_forward_pre_hook(note)
    with torch.inference_mode():
        model(next(iter(parts.test.batches(32))).images)
    return found
