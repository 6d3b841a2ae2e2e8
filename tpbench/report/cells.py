"""Every record as one row, in the record's own units: shares, seconds, bytes, multiply-adds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from statistics import median
from typing import Any

import pandas as pd

from tpbench.record import Record
from tpbench.report.column import Cell
from tpbench.report.interval import percentile_95

IDENTITY = ("machine", "recipe", "recipe_digest", "schedule", "method", "title", "unreduced", "site", "count")


def cell(record: Record) -> Cell:
    """A record as one row. A failed record has blank numbers and its reason in `error`."""
    row = {name: getattr(record, name) for name in IDENTITY}
    row |= {"seed": record.seed, "config": json.dumps(record.config, sort_keys=True), "error": ""}
    row |= {"new_parameters": record.new_parameters, "teacher": record.teacher}
    row["tuned"] = ", ".join(f"{line}={value:g}" for line, value in sorted(record.finetune.items()))
    if record.error is not None:
        row["error"] = " ".join(record.error.split()) or "no reason given"
        record = Record("", recipe_digest="", machine="", method="", schedule="", seed=0)  # without measurements
    return row | _sizes(record) | _training(record) | _latencies(record)


def _sizes(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in ("requested", "achieved"):
        row[f"tokens_{name}"] = _listed(record.tokens.get(name, ()))
    row["tokens_live"] = _listed(record.tokens.get("live", ()))
    for name in ("total", "unreduced", "reducers", "closed_form", "live"):
        row[f"macs_{name}"] = record.macs.get(name, nan)
    for name in ("reduced", "unreduced"):
        row[f"peak_memory_bytes_{name}"] = record.peak_memory_bytes.get(name, nan)
    return row


def _fall(losses: Sequence[float]) -> float:
    """The fall of the mean training loss, in nats, from the last epoch but one to the last."""
    return losses[-2] - losses[-1] if len(losses) > 1 else nan


def _training(record: Record) -> dict[str, Any]:
    row = {"off_the_shelf_top1": nan, "fine_tuned_top1": nan} | record.metrics
    row["training_seconds"] = record.training.get("seconds", nan)
    row["training_images"] = record.training.get("images", nan)
    row["training_loss_fall"] = _fall(record.training.get("losses", ()))
    for name in ("images_per_second", "outside_model_share"):
        known = record.training.get("pace", {}).get(name)
        row[f"training_{name}"] = nan if known is None else known
    row["test_images"] = record.evaluation.get("test", nan)
    return row


def _latencies(record: Record) -> dict[str, float]:
    """Seconds by batch size, and the ratio of the medians; the samples were taken in turns."""
    row = {}
    for batch in sorted(record.latency, key=int):
        name = f"latency_b{batch}"
        samples = record.latency[batch]
        for model, prefix in (("reduced", ""), ("unreduced", "unreduced_")):
            ordered = sorted(samples[model])
            row[f"{prefix}{name}_median_seconds"] = median(ordered)
            row[f"{prefix}{name}_p95_seconds"] = percentile_95(ordered)
        row[f"{name}_ratio"] = row[f"{name}_median_seconds"] / row[f"unreduced_{name}_median_seconds"]
    return row


def _listed(counts: Sequence[int]) -> str:
    return ",".join(str(count) for count in counts)


# ------------------------------------------------------------------------------------------ many rows


class Rows:
    """Rows on their way into a data frame, as lists of values; what a row lacks is NaN."""

    def __init__(self) -> None:
        self._names: list[str] = []  # in the order in which they were first seen
        self._rows: list[list[Any]] = []

    def append(self, one: Cell) -> None:
        """Add a row. Most rows have exactly the names that are known, so that is tried first."""
        try:
            values = [one[name] for name in self._names]
        except KeyError:  # it lacks a name
            values = []
        if len(values) < len(one):  # it lacks a name, or has a new one
            self._names += [name for name in one if name not in self._names]
            values = [one.get(name, nan) for name in self._names]
        self._rows.append(values)

    def frame(self) -> pd.DataFrame:
        """All rows."""
        for values in self._rows:
            values += [nan] * (len(self._names) - len(values))
        return pd.DataFrame(self._rows, columns=self._names)


def fill(one: Cell, batches: Sequence[int]) -> None:
    """Fill in blanks for the batch sizes at which a record was not measured."""
    for batch in batches:
        for quantity in ("median_seconds", "p95_seconds", "ratio"):
            one.setdefault(f"latency_b{batch}_{quantity}", nan)
