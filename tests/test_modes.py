"""Modes: they change seconds and never logits, and the unreduced reference is the fastest of those permitted."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import tpbench
from tpbench.errors import UsageError
from tpbench.measure import modes
from tpbench.measure.modes import Mode, compare

EAGER, COMPILED, GRAPH = Mode(), Mode(compiled=True), Mode(cuda_graph=True)
CPU = torch.device("cpu")


def test_a_mode_permits_itself_and_all_that_do_less():
    assert EAGER.permitted() == [EAGER]
    assert COMPILED.permitted() == [EAGER, COMPILED]
    assert GRAPH.permitted() == [EAGER, GRAPH]
    assert Mode(True, True).permitted() == [EAGER, GRAPH, COMPILED, Mode(True, True)]
    assert len({str(mode) for mode in Mode(True, True).permitted()}) == 4


def test_what_the_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch):
    EAGER.check(CPU)
    with pytest.raises(UsageError, match="needs a CUDA device"):
        GRAPH.check(CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="no-such-compiler is not installed"):
        COMPILED.check(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "topk", "wkmedoids", "tome"])
def test_compiling_changes_no_logits(make_vit: Callable[..., nn.Module], images: Tensor, method: str):
    """The whole model in one graph, by inductor."""
    model = tpbench.reduce(make_vit(depth=2), method, "0.5@0")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    want = EAGER.call(model, images)()
    assert counters["unique_graphs"] == 0  # control: eager is eager
    call = COMPILED.call(model, images)
    assert counters["unique_graphs"] == 1
    torch.testing.assert_close(call(), want)


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x


def test_control_a_model_that_is_not_one_graph_is_not_compiled(images: Tensor):
    with pytest.raises(torch._dynamo.exc.Unsupported):
        COMPILED.call(Breaks(), images)


@pytest.mark.parametrize(("slow", "fast"), [(EAGER, COMPILED), (COMPILED, EAGER)], ids=str)
def test_the_reference_is_the_fastest_permitted_mode(vit: nn.Module, monkeypatch: pytest.MonkeyPatch, slow, fast):
    def call(mode: Mode, model: nn.Module, *_: object) -> Callable[[], None]:
        return lambda: time.sleep(0.02 if model is vit and mode == slow else 0.001)

    monkeypatch.setattr(Mode, "call", call)
    samples, chosen = compare(tpbench.reduce(vit, "topk", "0.5@0"), vit, COMPILED, (1, 2), 3, 1)
    assert chosen == {"1": str(fast), "2": str(fast)}
    assert all(len(both[name]) == 3 for both in samples.values() for name in ("reduced", "unreduced"))
    assert all(min(both["unreduced"]) < 0.02 for both in samples.values())


@pytest.mark.slow
def test_any_number_of_models_can_be_compiled(make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch):
    """As in one process of many cells."""
    base = make_vit(depth=2)

    def one_after_the_other() -> None:
        for method in ("topk", "random", "avgpool"):
            compare(tpbench.reduce(base, method, "0.5@0"), base, COMPILED, (1,), 1, 0)

    with torch._dynamo.config.patch(recompile_limit=2):
        one_after_the_other()
        shared = partial(torch.compile, fullgraph=True, dynamic=False)  # what is compiled is the code of their class
        monkeypatch.setattr(modes, "compiled", shared)
        monkeypatch.setattr(torch.compiler, "reset", lambda: None)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            one_after_the_other()  # control


def test_a_mode_that_was_not_asked_for_is_no_rival(vit: nn.Module):
    _, chosen = compare(tpbench.reduce(vit, "topk", "0.5@0"), vit, EAGER, (1,), 2, 1)
    assert chosen == {"1": "eager"}


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [GRAPH, Mode(True, True)], ids=str)
@pytest.mark.parametrize("method", ["none", "topk", "wkmedoids", "tome"])
def test_replaying_changes_no_logits(make_vit: Callable[..., nn.Module], images: Tensor, method: str, mode: Mode):
    model, images = tpbench.reduce(make_vit(depth=2).cuda(), method, "0.5@0"), images.cuda()
    want, call = EAGER.call(model, images)(), mode.call(model, images)
    for _ in range(2):
        torch.testing.assert_close(call(), want, rtol=1e-3, atol=1e-3)
    images.neg_()
    torch.testing.assert_close(call(), EAGER.call(model, images)(), rtol=1e-3, atol=1e-3)  # it reads its images anew
