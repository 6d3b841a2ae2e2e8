"""The project's speed targets on a CPU, judged by the samples of one run of `tox -e opbench`.

A target bounds a ratio of samples that were taken in turns, or a measured speed-up as a share of the promised one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

Group = Mapping[str, Mapping[str, Any]]  # operation -> its case: "seconds" in the order of the turns, and facts
Groups = Mapping[tuple[tuple[str, Any], ...], Group]  # place as sorted items -> what was timed there in turns


class Measured(NamedTuple):
    """The measured value of a target, and a remark for the table."""

    value: float
    remark: str = ""


class Target(NamedTuple):
    """A quantity and its bound."""

    where: str
    what: str
    sign: str  # the relation of the value to the bound: ">=", "<=" or "<"
    bound: float
    measure: Callable[[Groups], Measured]

    def met(self, value: float) -> bool:
        """Whether a value meets the bound."""
        return {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.sign](value, self.bound)


class NotMeasured(LookupError):
    """The run holds no such samples, for instance none in bfloat16 on a machine without it."""


def ratio(group: Group, above: str, below: str) -> float:
    """The median over turns of one operation's seconds divided by another's in the same turn."""
    try:
        pairs = zip(group[above]["seconds"], group[below]["seconds"], strict=True)
    except KeyError as error:
        raise NotMeasured(str(error)) from error
    return median(a / b for a, b in pairs)


def at(groups: Groups, **place: Any) -> Group:
    """The first group whose place contains these items. Raises NotMeasured if there is none."""
    for items, group in groups.items():
        if place.items() <= dict(items).items():
            return group
    raise NotMeasured(str(place))


def promised(group: Group, method: str) -> float:
    """The speed-up that multiply-adds promise."""
    return group["none"]["macs"] / group[method]["macs"]


# ---------------------------------------------------------------- the measures


def share_of_promise(**place: Any) -> Callable[[Groups], Measured]:
    """Measures the speed-up of wkmedoids as a share of what multiply-adds promise."""

    def measure(groups: Groups) -> Measured:
        group = at(groups, kind="model", **place)
        reached = ratio(group, "none", "wkmedoids")
        share = reached / promised(group, "wkmedoids")
        return Measured(share, f"{reached:.3f} of {promised(group, 'wkmedoids'):.3f}")

    return measure


def quotient(above: str, below: str, **place: Any) -> Callable[[Groups], Measured]:
    """Measures the ratio of two operations' times at a place."""
    return lambda groups: Measured(ratio(at(groups, **place), above, below))


def slowest(groups: Groups) -> Measured:
    """The largest ratio of a reduced model's time to the unreduced one's; the remark names all that are not faster."""
    times = sorted(reduced_times(groups), reverse=True)
    if not times:
        raise NotMeasured("model")
    slow = [f"{name} {value:.3f}" for value, name in times if value >= 1]
    return Measured(times[0][0], "; ".join(slow) or times[0][1])


def reduced_times(groups: Groups) -> Iterator[tuple[float, str]]:
    """(time relative to the unreduced model, name) of every reduced model of ImageNet size."""
    for items, group in groups.items():
        place = dict(items)
        if place["kind"] == "model" and place["model"] != DIGITS:
            for method in group:
                if method != "none":
                    where = f"{method} ({place['model']}, batch {place['batch']}, {place['dtype']})"
                    yield ratio(group, method, "none"), where


def best_start(groups: Groups) -> Measured:
    """The smallest loss of two iterations among starts that take no longer than top-K with five iterations."""
    group = at(groups, kind="start")
    reference = "topk, 5 iterations"
    timed = {name: ratio(group, name, reference) for name, case in group.items() if case["iterations"] == 2}
    best = min((name for name, time in timed.items() if time <= 1), key=lambda n: group[n]["loss"], default=None)
    if best is None:
        raise NotMeasured("no start is as fast")
    return Measured(
        group[best]["loss"] / group[reference]["loss"], f"{group[best]['init']}, {timed[best]:.2f} of the time"
    )


# ---------------------------------------------------------------- the targets

SMALL = "deit_small_patch16_224"
TINY = "deit_tiny_patch16_224"
DIGITS = "digits"
F32 = "float32"
BF16 = "bfloat16"
PROMISE = "wkmedoids: share of the speed-up that MACs promise"
THROUGHPUT = "wkmedoids / topk: throughput"
NATIVE = (  # N, C, K, batch, bound
    (196, 384, 138, 8, 0.70),
    (196, 384, 138, 1, 0.55),
    (64, 64, 32, 32, 0.50),
    (64, 64, 32, 1, 0.35),
)
LAYER = "one layer, N=196, C=384, batch 32, K={}"


def throughput(model: str, dtype: str, batch: int = 8) -> Callable[[Groups], Measured]:
    """Measures the throughput of wkmedoids relative to top-K."""
    return quotient("topk", "wkmedoids", kind="model", model=model, batch=batch, dtype=dtype)


TARGETS = [
    Target(
        where="DeiT-S, batch 8",
        what=PROMISE,
        sign=">=",
        bound=0.97,
        measure=share_of_promise(model=SMALL, batch=8, dtype=F32),
    ),
    Target(
        where="DeiT-S, batch 1",
        what=PROMISE,
        sign=">=",
        bound=0.96,
        measure=share_of_promise(model=SMALL, batch=1, dtype=F32),
    ),
    Target(
        where="DeiT-Ti, batch 8",
        what=PROMISE,
        sign=">=",
        bound=0.96,
        measure=share_of_promise(model=TINY, batch=8, dtype=F32),
    ),
    Target(where="DeiT-S, batch 8", what=THROUGHPUT, sign=">=", bound=0.98, measure=throughput(SMALL, F32)),
    Target(where="DeiT-S, batch 1", what=THROUGHPUT, sign=">=", bound=0.97, measure=throughput(SMALL, F32, batch=1)),
    Target(where="DeiT-Ti, batch 8", what=THROUGHPUT, sign=">=", bound=0.94, measure=throughput(TINY, F32)),
    Target(where="DeiT-S, batch 8, bfloat16", what=THROUGHPUT, sign=">=", bound=0.97, measure=throughput(SMALL, BF16)),
    Target(
        where="digits, macs=0.5, batch 32",
        what="wkmedoids / unreduced: time",
        sign="<=",
        bound=0.75,
        measure=quotient("wkmedoids", "none", kind="model", model=DIGITS, batch=32),
    ),
    Target(
        where="digits, macs=0.5, batch 1",
        what="wkmedoids / topk: time",
        sign="<=",
        bound=1.15,
        measure=quotient("wkmedoids", "topk", kind="model", model=DIGITS, batch=1),
    ),
    Target(
        where="DeiT-S, batch 8",
        what="block that returns the attention received / SDPA block: time",
        sign="<=",
        bound=1.10,
        measure=quotient("received block", "SDPA block", kind="blocks"),
    ),
    *(
        Target(
            where=LAYER.format(k),
            what="plainly looped K-Medoids / batched: time",
            sign=">=",
            bound=bound,
            measure=quotient("looped kmedoids", "kmedoids", kind="clustering", k=k),
        )
        for k, bound in ((138, 40.0), (69, 22.0))
    ),
    *(
        Target(
            where=f"one layer, N={n}, C={width}, batch {batch}, K={k}",
            what="K-Medoids, native / definition: time",
            sign="<=",
            bound=bound,
            measure=quotient("kmedoids", "plain kmedoids", kind="native", tokens=n, k=k, batch=batch),
        )
        for n, width, k, batch, bound in NATIVE
    ),
    *(
        Target(
            where="one layer, N=196, C=384, batch 8, K=138",
            what=f"ATC's reducer, {linkage} linkage / wkmedoids' reducer: time",
            sign="<=",
            bound=1.5,
            measure=quotient(f"atc reducer, {linkage}", "wkmedoids reducer", kind="agglomerative"),
        )
        for linkage in ("single", "average", "complete")
    ),
    *(
        Target(
            where=LAYER.format(138),
            what=what,
            sign=">=",
            bound=bound,
            measure=quotient(above, below, kind="clustering", k=138),
        )
        for what, bound, above, below in (
            ("DPC-KNN / wkmedoids: time", 1.6, "dpcknn reducer", "wkmedoids reducer"),
            ("textbook K-Means / from the Gram matrix: time", 1.5, "textbook kmeans", "kmeans"),
        )
    ),
    Target(
        where="tokens of a trained model",
        what="best start that is no slower (2 iterations) / top-K start (5): loss",
        sign="<=",
        bound=0.65,
        measure=best_start,
    ),
    Target(
        where="every method, DeiT-S and DeiT-Ti",
        what="reduced / unreduced: time, at most",
        sign="<",
        bound=1.0,
        measure=slowest,
    ),
]
