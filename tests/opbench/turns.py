"""Operations that are timed in turns; each is reported as a case of pytest-benchmark with its own raw samples."""

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
    """A call to time, and what the report needs to know about it."""

    call: Callable[[], object]
    facts: dict[str, Any]  # of one call: "macs", "bytes", "k", ... as the report reads them


class Turns:
    """The samples of a group of operations: one sample of each operation per round.

    place: what the operations have in common, such as {"kind": "layer", "tokens": 196}. pytest-benchmark itself calls
    each operation only once more, because ratios of its own timings would compare different moments of a drifting
    machine.
    """

    def __init__(
        self, place: Mapping[str, Any], operations: Mapping[str, Operation], repeats: int, warmup: int = 1
    ) -> None:
        self.place = dict(place)
        self.operations = operations
        calls = {name: operation.call for name, operation in operations.items()}
        self.samples = latency.interleaved(calls, repeats, warmup=warmup, device=DEVICE)

    def report(self, benchmark: Any, name: str) -> None:
        """Report an operation through pytest-benchmark's fixture; skip the test if there is no such operation."""
        if name not in self.operations:
            pytest.skip(f"{name} does not exist at {self.place}")
        call, facts = self.operations[name]
        benchmark.group = ", ".join(f"{key} {value}" for key, value in self.place.items())
        sampled = {"operation": name, "seconds": self.samples[name], **facts}
        benchmark.extra_info |= {"place": list(self.place), **self.place, **sampled}
        benchmark.pedantic(call, rounds=1)


def inference(call: Callable[[], object], dtype: torch.dtype) -> Callable[[], object]:
    """The same call without gradients, and under autocast for a lower dtype, as models are measured."""

    def without_gradients() -> object:
        with torch.inference_mode(), torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            return call()

    return without_gradients


def reduced(base: nn.Module, methods: Iterable[str], schedule: str) -> Iterator[tuple[str, TokenViT]]:
    """(method, reduced model) for every method that can meet the schedule; the cases of the others are skipped."""
    for method in methods:
        try:
            model = tpbench.reduce(base, method, schedule)
        except ScheduleError:
            continue
        yield method, model


def label(place: tuple[object, ...]) -> str:
    """A place as part of a test's name: "196-0.7-32-float32"."""
    return "-".join(map(str, place))
