"""A comparison of two sides as one JSON document, for `tpbench compare --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tpbench.report.compare import A, B, Change, Changes, Key
from tpbench.report.compare_text import findings, verdict
from tpbench.report.document import plain
from tpbench.report.sides import Side


def document(a: Side, b: Side, compared: Sequence[Changes]) -> dict[str, Any]:
    """The comparison as JSON values, with null for unknown numbers."""
    return plain(
        {
            "a": a.text,
            "b": b.text,
            "unread": [*a.unread, *b.unread],
            "comparisons": [
                {
                    "machines": changes.machines,
                    "recipes": changes.recipes,
                    "same_recipe": changes.same_recipe,
                    "margin_points": changes.margin,
                    "findings": findings(changes),
                    "rows": [_object(row) for row in changes.rows],
                    "only_in_a": _named(changes.only[A]),
                    "only_in_b": _named(changes.only[B]),
                }
                for changes in compared
            ],
        }
    )


def _named(keys: Sequence[Key]) -> list[dict[str, str]]:
    return [{"method": method, "schedule": schedule} for schedule, method in keys]


def _object(row: Change) -> dict[str, Any]:
    return {
        "method": row.method,
        "schedule": row.schedule,
        "family": row.family,
        "accuracy": row.stage,
        "top1_percent": row.top1,
        "difference_points": row.difference.value,
        "interval_points": row.difference.bounds(),
        "seeds": row.difference.seeds,
        "paired_by": row.paired,
        "identical": row.identical,
        "verdict": verdict(row),
        "p_holm": None if row.judgement is None else row.judgement.p_difference,
        "macs": None if row.costs is None else [cost.macs for cost in row.costs],
        "macs_percent": row.macs_percent,
        "tokens": None if row.costs is None else [cost.tokens for cost in row.costs],
        "time": [
            {
                "group": change.group,
                "mode": change.mode,
                "speedup": [asdict(change.a), asdict(change.b)],
                "percent": change.percent,
                "interval_percent": change.bounds_percent,
            }
            for change in row.times
        ],
        "no_numbers": row.no_numbers,
        "failed_seeds": row.failed_seeds,
        "notes": row.notes,
    }
