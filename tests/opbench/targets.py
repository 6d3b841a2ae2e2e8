"""The project's speed targets on a CPU, judged by the samples of one run of `tox -e opbench`.

Each is a ratio of samples taken in turns, or of a whole and its promise; the bounds are the project's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

Group = Mapping[str, Mapping[str, Any]]  # operation -> its case: "seconds" in the order of the turns, and facts
Groups = Mapping[tuple[tuple[str, Any], ...], Group]  # place as sorted items -> what was timed there in turns


class Measured(NamedTuple):
    value: float
    remark: str = ""


class Target(NamedTuple):
    where: str
    what: str
    sign: str  # how the value must stand to the bound
    bound: float
    measure: Callable[[Groups], Measured]

    def met(self, value: float) -> bool:
        return {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.sign](value, self.bound)


class NotMeasured(LookupError):
    """The run holds no such samples: bfloat16 where the machine has none, say."""


def ratio(group: Group, above: str, below: str) -> float:
    """The median over the turns of one operation's seconds by another's in the same turn."""
    try:
        pairs = zip(group[above]["seconds"], group[below]["seconds"], strict=True)
    except KeyError as error:
        raise NotMeasured(str(error)) from error
    return median(a / b for a, b in pairs)


def at(groups: Groups, **place: Any) -> Group:
    """The group at a place, given in part."""
    for items, group in groups.items():
        if place.items() <= dict(items).items():
            return group
    raise NotMeasured(str(place))


def promised(group: Group, method: str) -> float:
    """The speed-up that multiply-adds promise."""
    return group["none"]["macs"] / group[method]["macs"]


# ---------------------------------------------------------------- the measures


def share_of_promise(**place: Any) -> Callable[[Groups], Measured]:
    def measure(groups: Groups) -> Measured:
        group = at(groups, kind="model", **place)
        reached = ratio(group, "none", "wkmedoids")
        share = reached / promised(group, "wkmedoids")
        return Measured(share, f"{reached:.3f} of {promised(group, 'wkmedoids'):.3f}")

    return measure


def quotient(above: str, below: str, **place: Any) -> Callable[[Groups], Measured]:
    return lambda groups: Measured(ratio(at(groups, **place), above, below))


def slowest(groups: Groups) -> Measured:
    """The largest time of a reduced model in units of the unreduced one's, and all that are not faster."""
    times = sorted(reduced_times(groups), reverse=True)
    if not times:
        raise NotMeasured("model")
    slow = [f"{name} {value:.3f}" for value, name in times if value >= 1]
    return Measured(times[0][0], "; ".join(slow) or times[0][1])


def reduced_times(groups: Groups) -> Iterator[tuple[float, str]]:
    for items, group in groups.items():
        place = dict(items)
        if place["kind"] == "model" and place["model"] != DIGITS:
            for method in group:
                if method != "none":
                    where = f"{method} ({place['model']}, batch {place['batch']}, {place['dtype']})"
                    yield ratio(group, method, "none"), where


def best_start(groups: Groups) -> Measured:
    """The least loss of two iterations from any start that takes no longer than five from top-K."""
    group, reference = at(groups, kind="start"), "topk, 5 iterations"
    timed = {name: ratio(group, name, reference) for name, case in group.items() if case["iterations"] == 2}
    best = min((name for name, time in timed.items() if time <= 1), key=lambda n: group[n]["loss"], default=None)
    if best is None:
        raise NotMeasured("no start is as fast")
    return Measured(
        group[best]["loss"] / group[reference]["loss"], f"{group[best]['init']}, {timed[best]:.2f} of the time"
    )


# ---------------------------------------------------------------- the targets

SMALL, TINY, DIGITS = "deit_small_patch16_224", "deit_tiny_patch16_224", "digits"
F32, BF16 = "float32", "bfloat16"
PROMISE, THROUGHPUT = "wkmedoids: share of the speed-up that MACs promise", "wkmedoids / topk: throughput"
NATIVE = ((196, 384, 138, 8, 0.70), (196, 384, 138, 1, 0.55), (64, 64, 32, 32, 0.50), (64, 64, 32, 1, 0.35))
LAYER = "one layer, N=196, C=384, batch 32, K={}"


def throughput(model: str, dtype: str, batch: int = 8) -> Callable[[Groups], Measured]:
    return quotient("topk", "wkmedoids", kind="model", model=model, batch=batch, dtype=dtype)


TARGETS = [
    Target("DeiT-S, batch 8", PROMISE, ">=", 0.97, share_of_promise(model=SMALL, batch=8, dtype=F32)),
    Target("DeiT-S, batch 1", PROMISE, ">=", 0.96, share_of_promise(model=SMALL, batch=1, dtype=F32)),
    Target("DeiT-Ti, batch 8", PROMISE, ">=", 0.96, share_of_promise(model=TINY, batch=8, dtype=F32)),
    Target("DeiT-S, batch 8", THROUGHPUT, ">=", 0.98, throughput(SMALL, F32)),
    Target("DeiT-S, batch 1", THROUGHPUT, ">=", 0.97, throughput(SMALL, F32, batch=1)),
    Target("DeiT-Ti, batch 8", THROUGHPUT, ">=", 0.94, throughput(TINY, F32)),
    Target("DeiT-S, batch 8, bfloat16", THROUGHPUT, ">=", 0.97, throughput(SMALL, BF16)),
    Target(
        "digits, macs=0.5, batch 32",
        "wkmedoids / unreduced: time",
        "<=",
        0.75,
        quotient("wkmedoids", "none", kind="model", model=DIGITS, batch=32),
    ),
    Target(
        "digits, macs=0.5, batch 1",
        "wkmedoids / topk: time",
        "<=",
        1.15,
        quotient("wkmedoids", "topk", kind="model", model=DIGITS, batch=1),
    ),
    Target(
        "DeiT-S, batch 8",
        "block that returns the attention received / SDPA block: time",
        "<=",
        1.10,
        quotient("received block", "SDPA block", kind="blocks"),
    ),
    *(
        Target(
            LAYER.format(k),
            "plainly looped K-Medoids / batched: time",
            ">=",
            bound,
            quotient("looped kmedoids", "kmedoids", kind="clustering", k=k),
        )
        for k, bound in ((138, 40.0), (69, 22.0))
    ),
    *(
        Target(
            f"one layer, N={n}, C={width}, batch {batch}, K={k}",
            "K-Medoids, native / definition: time",
            "<=",
            bound,
            quotient("kmedoids", "plain kmedoids", kind="native", tokens=n, k=k, batch=batch),
        )
        for n, width, k, batch, bound in NATIVE
    ),
    *(
        Target(
            "one layer, N=196, C=384, batch 8, K=138",
            f"ATC's reducer, {linkage} linkage / wkmedoids' reducer: time",
            "<=",
            1.5,
            quotient(f"atc reducer, {linkage}", "wkmedoids reducer", kind="agglomerative"),
        )
        for linkage in ("single", "average", "complete")
    ),
    *(
        Target(LAYER.format(138), what, ">=", bound, quotient(above, below, kind="clustering", k=138))
        for what, bound, above, below in (
            ("DPC-KNN / wkmedoids: time", 1.6, "dpcknn reducer", "wkmedoids reducer"),
            ("textbook K-Means / from the Gram matrix: time", 1.5, "textbook kmeans", "kmeans"),
        )
    ),
    Target(
        "tokens of a trained model",
        "best start that is no slower (2 iterations) / top-K start (5): loss",
        "<=",
        0.65,
        best_start,
    ),
    Target("every method, DeiT-S and DeiT-Ti", "reduced / unreduced: time, at most", "<", 1.0, slowest),
]
