"""Published results (published.csv), which reports show in separate columns beside measurements."""

from __future__ import annotations

import csv
from functools import cache
from math import nan
from pathlib import Path
from typing import NamedTuple

DEIT_SMALL_GMACS = 4.599  # published GMACs are converted to shares of this
NEAR = 0.05  # a published point is shown if its share of MACs differs by at most this
NAMES = {"topk": "powerbert_topk", "evit": "evit_fuse"}
# The base of a method's published results, if it is not DeiT-S: kmedoids is published only on the hull over several
# widths, and the unreduced model as the authors trained it for the comparison.
BASES = {"kmedoids": "hull", "none": "deit width scaling"}


class Point(NamedTuple):
    """One published result; NaN and "" where there is none."""

    top1: float  # ImageNet, percent
    share: float  # of DeiT-S' MACs
    source: str


def nearest(method: str, macs_share: float) -> Point:
    """The published point nearest to a share of the unreduced model's MACs; blank if none lies within NEAR."""
    points = published().get((NAMES.get(method, method), BASES.get(method, "deit_small")), [])
    point = min(points, key=lambda point: abs(point.share - macs_share), default=None)
    if point is None or not abs(point.share - macs_share) <= NEAR:
        return Point(nan, nan, "")
    return point


def curve(method: str, base: str) -> list[tuple[float, float]]:
    """A method's published (share of DeiT-S' MACs, top-1 percent) on a base, from cheap to costly."""
    points = published().get((NAMES.get(method, method), base), [])
    return sorted((point.share, point.top1) for point in points)


@cache
def published() -> dict[tuple[str, str], list[Point]]:
    """Published points by (method, base). Points without GMACs are left out."""
    points: dict[tuple[str, str], list[Point]] = {}
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["gmacs"]:
                share = float(row["gmacs"]) / DEIT_SMALL_GMACS
                point = Point(float(row["top1_percent"]), share, f"{row['source']}; {row['setting']}")
                points.setdefault((row["method"], row["base"]), []).append(point)
    return points
