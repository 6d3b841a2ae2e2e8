"""Which methods work with torch.compile, torch.export and ONNX (`tpbench export`).

The result of a route must give the eager model's logits; for a route that fails, the reason is kept. ONNX does not know
our operators, so they are replaced by operations that ONNX has, with the same results for finite tokens. Sorting is
stable in ONNX too, because its TopK places the lower index first among equal values.
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
from tpbench.cards import Card
from tpbench.errors import UsageError
from tpbench.kernels.plain import PLAIN
from tpbench.measure.latency import random_images
from tpbench.measure.modes import Mode

Call = Callable[[Tensor], Tensor]
IMAGES = 2
MORE_IMAGES = 3
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # as a share of the largest logit; choosing another token changes logits by far more


def survey(cards: Iterable[Card], name: str, schedule: str) -> dict[str, Any]:
    """Try every route with every method, on a CPU with random weights; `report.exported` makes the table.

    name: of a timm model. Raises UsageError if a package is missing.
    """
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
    """The outcome of each route: {"works", "difference" (as a share of the largest logit), "reason"}."""
    return {route: outcome(model, make) for route, make in ROUTES.items()}


@torch.no_grad()
def outcome(model: vit.TokenViT, make: Callable[[nn.Module, Tensor], Call]) -> dict[str, Any]:
    """Compare a route's result with the eager model on other images than those it was made with."""
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
    """The result of a call when torch's generator starts from a seed."""
    torch.manual_seed(seed)
    return call(images)


def draws(model: nn.Module, images: Tensor) -> bool:
    """Whether a model draws random numbers: two seeds give different logits."""
    return not torch.equal(seeded(model, images, 0), seeded(model, images, 1))


def innermost(error: BaseException) -> str:
    """The first two lines of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


# ---------------------------------------------------------------- the routes


def compiled(model: nn.Module, images: Tensor) -> Call:
    """The route of `torch.compile`, in one graph."""
    Mode(compiled=True).call(model, images)
    return torch.compile(model, fullgraph=True, dynamic=False)


def strict(model: nn.Module, images: Tensor) -> Call:
    """The route of `torch.export` that traces Python's bytecode."""
    return torch.export.export(model, (images,), strict=True).module()


def fixed_batch(model: nn.Module, images: Tensor) -> Call:
    """The route of `torch.export` for batches of one size."""
    return exported(model, images).module()


def any_batch(model: nn.Module, images: Tensor) -> Call:
    """The route of `torch.export` for batches of any size."""
    return torch.export.export(model, (images,), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=False).module()


def onnx(model: nn.Module, images: Tensor) -> Call:
    """The route of ONNX, run by ONNX Runtime. The operators are replaced by their plain forms."""
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
    """The model as `torch.export` records it, for batches of one size."""
    return torch.export.export(model, (images,), strict=False)


# ---------------------------------------------------------------- operators in plain PyTorch, for ONNX


def in_plain_operators(program: ExportedProgram) -> ExportedProgram:
    """The program with our operators replaced by their plain forms; the exporter reports operators that have none."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    called = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    return program.run_decompositions({op: PLAIN[op._schema.name] for op in called if op._schema.name in PLAIN})


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of operators that ONNX can express but torch's exporter does not translate."""
    from onnxscript import opset18 as op

    logging.getLogger("onnxscript").setLevel(logging.ERROR)

    def stable_sort(x, *, stable=None, dim: int = -1, descending: bool = False):  # noqa: ARG001
        length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}
