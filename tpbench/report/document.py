"""A report as one JSON document, for `--json`: the findings and all rows, unrounded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tpbench.report.findings import findings
from tpbench.report.frame import Comparison


def document(folder: Path, comparisons: Sequence[Comparison], unread: Sequence[str] = ()) -> dict[str, Any]:
    """The findings and rows of each machine. Rows have the columns of tables/MACHINE.csv, with null for blanks."""
    machines = [
        {
            "machine": comparison.machine,
            "recipe": comparison.records[0].recipe,
            "recipe_digest": comparison.records[0].recipe_digest,
            "records": len(comparison.records),
            "reference": comparison.contrast.reference,
            "margin_points": comparison.contrast.margin,
            "findings": findings(comparison),
            "rows": comparison.rows,
        }
        for comparison in comparisons
    ]
    return plain({"folder": str(folder), "unread": list(unread), "machines": machines})


def plain(value: Any) -> Any:
    """A value in the types of JSON. Blanks and infinite numbers become None (null)."""
    if isinstance(value, dict):
        return {name: plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(own) for own in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not isfinite(value)):
        return None
    return value
