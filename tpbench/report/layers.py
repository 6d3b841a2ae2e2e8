"""Tokens and cost of each row by layer, as means over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tpbench.record import Record

KINDS = {"attn": "attention", "reducer": "reducer", "mlp": "MLP"}
OTHER = "other"  # what lies outside the blocks: the patch embedding, the head, and time between layers
BLOCK = re.compile(r"blocks\.(\d+)\.(\w+)")


@dataclass(frozen=True)
class Layer:
    """One layer of one row. macs: multiply-adds per image; seconds: of one forward pass, None where not measured."""

    block: str  # the block's number, or the layer's own name
    kind: str  # one of KINDS' values, or OTHER
    macs: float
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """The layers of one method at one schedule, and its body tokens after every block."""

    layers: list[Layer]
    tokens: list[float]


def rows(records: Iterable[Record]) -> dict[tuple[str, str], Row]:
    """The layers of each row, by (schedule, method). Rows without a successful record are left out."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.error is None:
            grouped.setdefault((record.schedule, record.method), []).append(record)
    return {
        key: Row(_layers(own), _means([record.tokens.get("after_block", []) for record in own]))
        for key, own in grouped.items()
    }


def _layers(records: Sequence[Record]) -> list[Layer]:
    macs = _by_name({layer["name"]: layer["macs"] for layer in record.macs.get("layers", [])} for record in records)
    seconds = _by_name(record.layers_seconds for record in records)
    layers = []
    for name in dict.fromkeys([*macs, *seconds]):
        block, kind = _place(name)
        layers.append(Layer(block, kind, macs=macs.get(name, 0.0), seconds=seconds.get(name)))
    return layers


def _place(name: str) -> tuple[str, str]:
    """The block and the kind of a layer: "blocks.3.attn" is attention of block 3."""
    match = BLOCK.fullmatch(name)
    return (match[1], KINDS.get(match[2], OTHER)) if match else (name, OTHER)


def _by_name(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each layer over the records that have it."""
    values: dict[str, list[float]] = {}
    for record in measured:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    return {name: fmean(own) for name, own in values.items()}


def _means(counts: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each element over the lists, which have one length for the seeds of a row."""
    return [fmean(own) for own in zip(*filter(None, counts))]
