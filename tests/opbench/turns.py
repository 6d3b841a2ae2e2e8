"""Operations timed in turns, each reported as a case of pytest-benchmark's with its own raw samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import tpbench
from tpbench.errors import ScheduleError
from tpbench.measure import latency
from tpbench.vit import TokenViT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
BF16 = ON_GPU or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # where bfloat16 is not emulated


class Operation(NamedTuple):
    call: Callable[[], object]
    facts: dict[str, Any]  # of one call: "macs", "bytes", "k", ... as the report reads them


class Turns:
    """The samples of a group of operations, taken one of each per round.

    place is what the operations have in common: {"kind": "layer", "tokens": 196, ...}. pytest-benchmark itself calls
    each operation once more: a ratio of its own timings would compare different moments of a drifting machine.
    """

    def __init__(
        self, place: Mapping[str, Any], operations: Mapping[str, Operation], repeats: int, warmup: int = 1
    ) -> None:
        self.place, self.operations = dict(place), operations
        calls = {name: operation.call for name, operation in operations.items()}
        self.samples = latency.interleaved(calls, repeats, warmup, DEVICE)

    def report(self, benchmark: Any, name: str) -> None:
        if name not in self.operations:
            pytest.skip(f"{name} does not exist at {self.place}")
        call, facts = self.operations[name]
        benchmark.group = ", ".join(f"{key} {value}" for key, value in self.place.items())
        sampled = {"operation": name, "seconds": self.samples[name], **facts}
        benchmark.extra_info |= {"place": list(self.place), **self.place, **sampled}
        benchmark.pedantic(call, rounds=1)


def inference(call: Callable[[], object], dtype: torch.dtype) -> Callable[[], object]:
    """A call without gradients; a lower dtype under autocast, as models are measured."""

    def quiet() -> object:
        with torch.inference_mode(), torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            return call()

    return quiet


def reduced(base: nn.Module, methods: Iterable[str], schedule: str) -> Iterator[tuple[str, TokenViT]]:
    """The model by every method that can meet the schedule; cases of the others are skipped."""
    for method in methods:
        try:
            model = tpbench.reduce(base, method, schedule)
        except ScheduleError:
            continue
        yield method, model


def label(place: tuple[object, ...]) -> str:
    """A place as part of a test's name: "196-0.7-32-float32"."""
    return "-".join(map(str, place))
