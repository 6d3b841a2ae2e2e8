"""How far a reduced model travels: torch.compile, torch.export and ONNX, method by method (`tpbench export`).

Whatever a route makes of a model must give the eager model's logits; a route that fails leaves its reason. ONNX knows
none of our operators: they are replaced by plain PyTorch that says the same, for finite tokens, in operations that ONNX
has. Sorting is stable in ONNX too, by the definition of TopK: of equal values the lower index comes first.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from tpbench import environment, vit
from tpbench.errors import UsageError
from tpbench.kernels import clustering
from tpbench.kernels.agglomerative import merge_nearest
from tpbench.kernels.density import peaks_of_density
from tpbench.kernels.matching import halves_matched, matched_by_energy
from tpbench.kernels.sampling import nearest_sums
from tpbench.kernels.segments import mean_by_cluster
from tpbench.measure.latency import random_images
from tpbench.measure.modes import Mode
from tpbench.registry import Card

Call = Callable[[Tensor], Tensor]
IMAGES = 2
MORE_IMAGES = 3
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest logit; a token chosen otherwise shows as far more


def survey(cards: Iterable[Card], name: str, schedule: str) -> dict[str, Any]:
    """What every route makes of every method, on a CPU with random weights; `report.exported` makes the table."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UsageError(f"exporting to ONNX needs {package}: python -m pip install 'tpbench[export]'")
    where = torch.device("cpu")
    Mode(compiled=True).check(where)
    torch.manual_seed(0)
    base = vit.create(name, {}).eval()
    models = {card.name: vit.reduce(base, card.name, schedule) for card in cards}
    return {
        "model": name,
        "schedule": schedule,
        "methods": {method: outcomes(model) for method, model in models.items()},
        "environment": environment.describe(where, torch.float32),
        "packages": {package: environment.version_of(package) for package in PACKAGES},
    }


def outcomes(model: vit.TokenViT) -> dict[str, dict[str, Any]]:
    """Route -> {"works", "difference" (largest, as a share of the largest logit), "reason"}."""
    return {route: outcome(model, make) for route, make in ROUTES.items()}


@torch.no_grad()
def outcome(model: vit.TokenViT, make: Callable[[nn.Module, Tensor], Call]) -> dict[str, Any]:
    """One route's result, compared with the eager model on other images than those it was made from."""
    images = random_images(model, IMAGES)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            made = make(model, images)
            fresh = random_images(model, MORE_IMAGES if make is any_batch else IMAGES).flip(-1)
            got = seeded(made, fresh)
            want = seeded(model, fresh)
    except Exception as error:
        return {"works": False, "difference": None, "reason": innermost(error)}
    difference = ((got - want).abs().max() / want.abs().max()).item()
    if difference <= TOLERANCE:
        return {"works": True, "difference": difference, "reason": ""}
    if draws(model, fresh):
        return {"works": True, "difference": None, "reason": "draws at random: its logits cannot be compared"}
    return {"works": False, "difference": difference, "reason": "the logits differ"}


def seeded(call: Call, images: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return call(images)


def draws(model: nn.Module, images: Tensor) -> bool:
    return not torch.equal(seeded(model, images, 0), seeded(model, images, 1))


def innermost(error: BaseException) -> str:
    """What went wrong first, in its first two lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


# ---------------------------------------------------------------- the routes


def compiled(model: nn.Module, images: Tensor) -> Call:
    Mode(compiled=True).call(model, images)
    return torch.compile(model, fullgraph=True, dynamic=False)


def strict(model: nn.Module, images: Tensor) -> Call:
    return torch.export.export(model, (images,), strict=True).module()


def fixed_batch(model: nn.Module, images: Tensor) -> Call:
    return exported(model, images).module()


def any_batch(model: nn.Module, images: Tensor) -> Call:
    return torch.export.export(model, (images,), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=False).module()


def onnx(model: nn.Module, images: Tensor) -> Call:
    program = torch.onnx.export(
        in_plain_operators(exported(model, images)), dynamo=True, custom_translation_table=translations()
    )
    return lambda fresh: program(fresh)[0]


ROUTES: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "torch.compile": compiled,
    "torch.export, strict": strict,
    "torch.export": fixed_batch,
    "torch.export, any batch": any_batch,
    "ONNX": onnx,
}


def exported(model: nn.Module, images: Tensor) -> ExportedProgram:
    return torch.export.export(model, (images,), strict=False)


# ---------------------------------------------------------------- for ONNX: operators in plain PyTorch


def in_plain_operators(program: ExportedProgram) -> ExportedProgram:
    """The same program with operators replaced that have a plain form; ONNX will name those that have none."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    called = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    return program.run_decompositions({op: PLAIN[op._schema.name] for op in called if op._schema.name in PLAIN})


def attend_and_receive(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    scores = (q * scale) @ k.transpose(-2, -1)
    attention = (scores if bias is None else scores + bias).softmax(dim=-1)
    received = attention.float().sum(dim=2).mean(dim=1)
    own = attention.diagonal(dim1=-2, dim2=-1).float().mean(dim=1)
    out = (attention @ v).transpose(1, 2).contiguous().transpose(1, 2)  # laid out as the operator's own
    return out, received, own


def attention_transpose_apply(q: Tensor, k: Tensor, s: Tensor, times: int) -> Tensor:
    attention = (q @ k.transpose(-2, -1)).softmax(dim=-1).to(s.dtype)
    row = s[:, :, None]
    for _ in range(times):
        row = row @ attention
    return row[:, :, 0]


def kmedoids(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    distance = _distances(clustering.inner_products(x))
    medoids = _chosen(start, distance, score, k) if first is None else first
    own = torch.arange(k, device=x.device)
    for _ in range(iterations):
        assignment = _nearest(distance, medoids)
        together = assignment[:, :, None] == assignment[:, None, :]
        cost = torch.where(together, distance * weight[:, :, None], 0).sum(1)
        member = assignment[:, None, :] == own[:, None]
        medoids = torch.where(member, cost[:, None, :], float("inf")).argmin(2)
    return medoids, _nearest(distance, medoids)


def _distances(products: Tensor) -> Tensor:
    half = products.diagonal(dim1=1, dim2=2)[:, :, None] - products
    return (half + half.transpose(1, 2)).clamp(min=0)


def _chosen(start: str, distance: Tensor, score: Tensor, k: int) -> Tensor:
    """As the operators choose, without changing a tensor in place: ONNX's exporter refuses that."""
    if start == "topk":
        return clustering.heaviest(score, k)
    if start != "peaks":
        raise NotImplementedError(f"the start {start!r} has no plain form")
    rank = clustering.heaviest(score, score.shape[1]).argsort(1)
    heavier = rank[:, None, :] < rank[:, :, None]
    apart = torch.where(heavier, distance, torch.finfo(distance.dtype).max).amin(2)
    return clustering.heaviest(torch.where(rank == 0, float("inf"), score * apart), k)


def _nearest(distance: Tensor, medoids: Tensor) -> Tensor:
    batch, k = medoids.shape
    to_medoid = distance.gather(1, medoids[:, :, None].expand(batch, k, distance.shape[2]))
    own = torch.arange(k, device=medoids.device).expand(batch, k)
    return to_medoid.argmin(1).scatter(1, medoids, own)


def kmeans(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    products = clustering.inner_products(x)
    own = torch.arange(x.shape[1], device=x.device)
    first = _chosen(start, _distances(products), score, k) if first is None else first
    share = (first[:, :, None] == own).to(products.dtype)
    for _ in range(iterations):
        member = (_nearest_centre(products, share)[:, None, :] == own[:k, None]).to(products.dtype)
        mass = member * weight[:, None, :]
        total = mass.sum(2, keepdim=True)
        share = torch.where(total > 0, mass / total.clamp(min=torch.finfo(mass.dtype).tiny), share)
    return share, _nearest_centre(products, share)


def _nearest_centre(products: Tensor, share: Tensor) -> Tensor:
    inner = share @ products
    return ((share * inner).sum(2, keepdim=True) - 2 * inner).argmin(1)


def searchsorted(rising: Tensor, values: Tensor, **_: object) -> Tensor:
    """Torch's, as ATS calls it: how many of `rising` [B, N] lie below each of `values` [B, K]."""
    return (rising[:, None, :] < values[:, :, None]).sum(2)


PLAIN: dict[str, Callable[..., Any]] = {
    "tpbench::agglomerate": merge_nearest,
    "tpbench::attention_transpose_apply": attention_transpose_apply,
    "tpbench::attend_and_receive": attend_and_receive,
    "tpbench::kmedoids": kmedoids,
    "tpbench::kmeans": kmeans,
    "tpbench::density_peaks": peaks_of_density,
    "tpbench::match_by_energy": matched_by_energy,
    "tpbench::match_halves": halves_matched,
    "tpbench::nearest_samples": nearest_sums,
    "tpbench::segment_mean": mean_by_cluster,
    "aten::searchsorted": searchsorted,
}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch's ONNX exporter does not translate and ONNX can say."""
    from onnxscript import opset18 as op

    logging.getLogger("onnxscript").setLevel(logging.ERROR)

    def stable_sort(x, *, stable=None, dim: int = -1, descending: bool = False):  # noqa: ARG001
        length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}
