"""Records as data frames. Nothing is rounded here, and machines are never mixed.

cells(records)       one row per record, in the record's own units: shares, seconds, bytes, MACs
comparison(cells)    one row per machine, schedule and method, over seeds; see columns.py
pairs(cells)         one row per machine, schedule and two methods: their difference, paired by seed
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from math import nan
from statistics import median
from typing import Any

import pandas as pd

from tpbench.errors import UsageError
from tpbench.record import Record
from tpbench.report import columns, published
from tpbench.report.interval import interval, percentile_95

GIGA = 1e9
MIB = 2**20
IDENTITY = ("machine", "recipe", "recipe_digest", "schedule", "method", "title", "unreduced", "site", "count")

Place = tuple[str, str, str]  # machine, schedule, method


def by_machine(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by machine, the base first. What could not share a table is refused."""
    machines: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.machine, not r.unreduced, r.schedule, r.method, r.seed)):
        machines.setdefault(record.machine, []).append(record)
    for machine, own in machines.items():
        _refuse_mixture(machine, own)
    return machines


def _refuse_mixture(machine: str, records: list[Record]) -> None:
    recipes = sorted({f"{record.recipe} ({record.recipe_digest})" for record in records})
    if len(recipes) > 1:
        raise UsageError(f"machine {machine} has records of several recipes: {', '.join(recipes)}")
    bases = sorted({record.method for record in records if record.unreduced})
    if len(bases) > 1:
        raise UsageError(f"machine {machine} has several unreduced bases: {', '.join(bases)}")
    names = [f"{record.method} {record.schedule} seed {record.seed}" for record in records]
    for name, following in pairwise(names):
        if name == following:
            raise UsageError(f"machine {machine} has two records of {name}")


# ------------------------------------------------------------------------------------------ one record


def cells(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record. The numbers of a failed record are blank and its `error` says why."""
    return pd.DataFrame([_cell(record) for own in by_machine(records).values() for record in own])


def _cell(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in IDENTITY}
    row |= {"seed": record.seed, "config": json.dumps(record.config, sort_keys=True), "error": ""}
    if record.error is not None:
        row["error"] = " ".join(record.error.split()) or "no reason given"
        record = Record("", "", "", "", "", 0)  # whose measurements are all blank
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


def _training(record: Record) -> dict[str, Any]:
    row = {"off_the_shelf_top1": nan, "fine_tuned_top1": nan} | record.metrics
    row["training_seconds"] = record.training.get("seconds", nan)
    row["training_images"] = record.training.get("images", nan)
    for name in ("images_per_second", "outside_model_share"):
        known = record.training.get("pace", {}).get(name)
        row[f"training_{name}"] = nan if known is None else known
    row["test_images"] = record.evaluation.get("test", nan)
    return row


def _latencies(record: Record) -> dict[str, float]:
    """Seconds by batch size, and the ratio of the medians of samples taken in turns."""
    row = {}
    for batch in sorted(record.latency, key=int):
        name, samples = f"latency_b{batch}", record.latency[batch]
        for model, prefix in (("reduced", ""), ("unreduced", "unreduced_")):
            row[f"{prefix}{name}_median_seconds"] = median(samples[model])
            row[f"{prefix}{name}_p95_seconds"] = percentile_95(samples[model])
        row[f"{name}_ratio"] = row[f"{name}_median_seconds"] / row[f"unreduced_{name}_median_seconds"]
    return row


def _listed(counts: Sequence[int]) -> str:
    return ",".join(str(count) for count in counts)


def batch_sizes(frame: pd.DataFrame) -> list[int]:
    """The batch sizes at which latency was measured, from a cells or a comparison frame."""
    measured = frame.dropna(axis="columns", how="all")
    found = (re.fullmatch(r"latency_b(\d+)_ratio", name) for name in measured)
    return sorted(int(match[1]) for match in found if match)


# ------------------------------------------------------------------------------------------ over seeds


def pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """Fine-tuned top-1 of method a minus method b, in points, paired by seed; any two methods once."""
    rows = []
    for (machine, schedule), group in cells[~cells["unreduced"]].groupby(["machine", "schedule"]):
        top1 = {method: _by_seed(own) for method, own in group.groupby("method")}
        for a, b in combinations(sorted(top1), 2):
            rows.append((machine, schedule, a, b, *interval(top1[a] - top1[b])))
    return pd.DataFrame(rows, columns=list(columns.PAIR_MEANINGS))


def _by_seed(cells: pd.DataFrame) -> pd.Series:
    """Fine-tuned top-1 in percent by seed. Subtracting two of these pairs them."""
    return 100 * cells.set_index("seed")["fine_tuned_top1"].astype(float)


def comparison(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per machine, schedule and method: base, then schedules from costly to cheap, then ranks."""
    rows = []
    for _, machine in cells.groupby("machine"):
        base = _by_seed(machine[machine["unreduced"]])
        for _, group in machine.groupby(["schedule", "method"]):
            row = _identity(group, machine["seed"].nunique()) | _cost(group) | _accuracy(group, base)
            rows.append(row | _speed(group, batch_sizes(machine), row["macs_share"]) | _rest(group))
    frame = _ranked(pd.DataFrame(rows), pairs(cells))
    return _ordered(frame).reindex(columns=columns.names(batch_sizes(cells)))


def _identity(group: pd.DataFrame, seeds_expected: int) -> dict[str, Any]:
    row = {name: group[name].iloc[0] for name in IDENTITY}
    return row | {"seeds": int((group["error"] == "").sum()), "seeds_expected": seeds_expected}


def _cost(group: pd.DataFrame) -> dict[str, Any]:
    share = _mean(group, "macs_total", over="macs_unreduced")
    paper = published.nearest(group["method"].iloc[0], share)
    return {
        "tokens_requested": _spans(group["tokens_requested"]),
        "tokens_achieved": _spans(group["tokens_achieved"]),
        "tokens_live": _means(group["tokens_live"]),
        "gmacs": _mean(group, "macs_total") / GIGA,
        "macs_share": share,
        "live_macs_share": _mean(group, "macs_live", over="macs_unreduced"),
        "reducer_share": _mean(group, "macs_reducers", over="macs_total"),
        "paper_top1": paper.top1,
        "paper_share": paper.share,
        "paper_source": paper.source,
    }


def _mean(group: pd.DataFrame, name: str, over: str | None = None) -> float:
    """The mean over seeds of a column, or of its ratio to another; NaN where nothing was measured."""
    values = group[name].astype(float)
    return interval(values if over is None else values / group[over].astype(float)).mean


def _spans(texts: Iterable[str]) -> str:
    """Token counts over seeds: "45,31" and "44,31" become "44-45,31"."""
    lists = [[int(count) for count in text.split(",")] for text in texts if text]
    if len({len(counts) for counts in lists}) > 1:
        return " or ".join(dict.fromkeys(_listed(counts) for counts in lists))
    limits = [(min(counts), max(counts)) for counts in zip(*lists)]
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in limits)


def _means(texts: Iterable[str]) -> str:
    """Mean token counts over seeds, to a tenth: "45.1,30.8"."""
    lists = [[float(count) for count in text.split(",")] for text in texts if text]
    return ",".join(f"{sum(counts) / len(counts):.1f}" for counts in zip(*lists))


def _accuracy(group: pd.DataFrame, base: pd.Series) -> dict[str, float]:
    names = {
        "off_the_shelf_top1_percent": 100 * group["off_the_shelf_top1"].astype(float),
        "fine_tuned_top1_percent": 100 * group["fine_tuned_top1"].astype(float),
        "base_difference_points": [] if group["unreduced"].any() else _by_seed(group) - base,
    }
    row: dict[str, float] = {}
    for name, values in names.items():
        stem = name.removesuffix("_top1_percent").removesuffix("_points")
        row[name], row[f"{stem}_half_width_points"], row[f"{stem}_seeds"] = interval(values)
    return row


def _speed(group: pd.DataFrame, batches: list[int], macs_share: float) -> dict[str, float]:
    """Milliseconds by batch size; the speed-up at the largest beside the one that MACs promise."""
    row: dict[str, float] = {"largest_batch": max(batches, default=nan), "speedup_promised": 1 / macs_share}
    for batch in batches:
        name = f"latency_b{batch}"
        row[f"{name}_median_ms"] = median_ms = 1e3 * _mean(group, f"{name}_median_seconds")
        row[f"{name}_p95_ms"] = 1e3 * _mean(group, f"{name}_p95_seconds")
        row[f"{name}_ratio"] = _mean(group, f"{name}_ratio")
        row["speedup_reached"] = 1 / row[f"{name}_ratio"]
        row["speedup_share_reached"] = row["speedup_reached"] / row["speedup_promised"]
        row["images_per_second"] = 1e3 * batch / median_ms
    return row


def _rest(group: pd.DataFrame) -> dict[str, Any]:
    return {
        "peak_memory_mib": _mean(group, "peak_memory_bytes_reduced") / MIB,
        "unreduced_peak_memory_mib": _mean(group, "peak_memory_bytes_unreduced") / MIB,
        "fine_tuning_seconds": _mean(group, "training_seconds"),
        "images_trained": _mean(group, "training_images"),
        "training_images_per_second": _mean(group, "training_images_per_second"),
        "training_outside_model_share": _mean(group, "training_outside_model_share"),
        "images_evaluated": _mean(group, "test_images"),
        "error": _reasons(group[group["error"] != ""], len(group)),
    }


def _reasons(failed: pd.DataFrame, seeds: int) -> str:
    """Why seeds failed: the one reason if all failed for it, or seed by seed."""
    if len(failed) == seeds and failed["error"].nunique() == 1:
        return failed["error"].iloc[0]
    return "; ".join(f"seed {seed}: {reason}" for seed, reason in zip(failed["seed"], failed["error"]))


# ------------------------------------------------------------------------------------------ ranks and order


def _ranked(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The frame with `rank`, `rank_worst` and `stands_alone`. No rank for the base, and none below 2 seeds."""
    above, places = _separations(pairs), list(zip(frame["machine"], frame["schedule"], frame["method"]))
    tuned = [place for place, base, n in zip(places, frame["unreduced"], frame["fine_tuned_seeds"]) if n and not base]
    ranks, worst, alone = [], [], []
    for place, n in zip(places, frame["fine_tuned_seeds"]):
        rivals = [other for other in tuned if other[:2] == place[:2] and other != place]
        ranked = n >= 2 and place in tuned
        ranks.append(1 + sum((other, place) in above for other in rivals) if ranked else pd.NA)
        worst.append(1 + sum((place, other) not in above for other in rivals) if ranked else pd.NA)
        alone.append(bool(ranked and rivals) and all((place, other) in above for other in rivals))
    whole = {"rank": pd.array(ranks, dtype="Int64"), "rank_worst": pd.array(worst, dtype="Int64")}
    return frame.assign(**whole, stands_alone=alone)


def _separations(pairs: pd.DataFrame) -> set[tuple[Place, Place]]:
    """(upper, lower) for any two methods whose paired interval lies wholly on one side of zero."""
    found = set()
    for machine, schedule, a, b, difference, half_width, _ in pairs.itertuples(index=False):
        if abs(difference) > half_width:  # never so with NaN, that is below 2 pairs
            upper, lower = (a, b) if difference > 0 else (b, a)
            found.add(((machine, schedule, upper), (machine, schedule, lower)))
    return found


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Machine, base, schedules by falling mean share of MACs, then methods by falling accuracy."""
    cost = -frame.groupby(["machine", "schedule"])["macs_share"].transform("mean")
    accuracy = frame["fine_tuned_top1_percent"].fillna(frame["off_the_shelf_top1_percent"])
    keys = frame.assign(reduced=~frame["unreduced"], cost=cost, loss=-accuracy)
    order = keys.sort_values(["machine", "reduced", "cost", "schedule", "loss", "method"]).index
    return frame.loc[order].reset_index(drop=True)
