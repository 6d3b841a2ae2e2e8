"""The eight claims of the Token Pooling paper against the records. Nothing here is tuned towards the paper.

Differences are paired by seed, intervals are Student's t at 95 %, and a reading holds or fails only where the whole
interval lies on one side of its bound. Every claim is a function from the studies to its readings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import nan

from tpbench.claims.study import Study, Values, difference, mean_by_seed
from tpbench.claims.verdict import Reading, Rule
from tpbench.record import Record
from tpbench.report import published
from tpbench.report.interval import Interval, interval
from tpbench.report.pareto import front

POOLING = "wkmedoids"  # the paper's headline
RIVALS = {"topk": "PoWER-BERT", "importance": "importance", "random": "random", "strided_conv": "convolution"}
SAVING = 42.0  # percent fewer computations at equal accuracy
CLUSTERING = 3.7  # percent of the other multiply-adds, the upper of the paper's two numbers
ROBUST = 0.5  # points: the paper gives no number for "robust" and "converges"; this one is ours
PRESERVED = -10.0  # points: where the sources' "preserved" ends and their "10 to 40 points lost" begins
SAME_MACS = 0.01  # largest share by which multiply-adds may differ in a row at equal MACs

CLAIMS = {
    1: "Fully connected layers take more than 80 % of a vision transformer's computation",
    2: "Softmax attention is a low-pass filter over key space",
    3: "Equal accuracy at 42 % fewer computations",
    4: "Token Pooling beats PoWER-BERT, importance, random selection and convolution at equal cost",
    5: "Weighting the clusters helps a little",
    6: "The cost of clustering is counted and small",
    7: "Robust to initialisation, converged within 5 iterations",
    8: "Works without fine-tuning",
}


ANY_SETTING = "settings minus the default"  # the test of a study without any


def readings(studies: Sequence[Study]) -> list[Reading]:
    """Every reading of every claim, in their order."""
    per_study = (low_pass, beats_the_others, weighting_helps, clustering_is_cheap, robust, off_the_shelf)
    found = [reading for claim in per_study for study in studies for reading in claim(study)]
    return sorted([*fully_connected(), *equal_accuracy(studies), *_told(found)], key=lambda reading: reading.claim)


def _told(readings: Sequence[Reading]) -> Iterator[Reading]:
    """Without the studies that say nothing on a test which another decides; where none says anything, the first."""
    said = {(reading.claim, reading.test) for reading in readings if not reading.missing}
    said |= {(claim, ANY_SETTING) for claim, _ in said}
    for reading in readings:
        test = (reading.claim, reading.test)
        if not reading.missing or test not in said:
            yield reading
        said |= {test} if reading.missing else set()


# ---------------------------------------------------------------- 1: closed form

SIZES = {"DeiT-Ti": 192, "DeiT-S": 384, "DeiT-B / ViT-B": 768, "ViT-L": 1024}  # width
DEPTH = {"ViT-L": 24}  # 12 for the others
PUBLISHED_SHARES = {("DeiT-Ti", 224): 83.4, ("DeiT-S", 224): 91.0, ("DeiT-B / ViT-B", 224): 95.3}
PUBLISHED_SHARES |= {("DeiT-B / ViT-B", 384): 88.3, ("DeiT-S", 384): 79.1, ("DeiT-Ti", 384): 65.4}


def fully_connected() -> Iterator[Reading]:
    """The share of the blocks' linear layers in all multiply-adds, patches of 16."""
    for name, width in SIZES.items():
        for pixels in (224, 384):
            linear, total = vit_macs(width, DEPTH.get(name, 12), pixels)
            known = PUBLISHED_SHARES.get((name, pixels))
            paper = "above 80 %" if known is None else f"above 80 %; {known} % by its shapes"
            test = f"{name} at {pixels} pixels, {total / 1e9:.3f} GMACs, closed form"
            ours = Interval(100 * linear / total, 0.0, 1)
            yield Reading(1, test, "", "", paper, "% of MACs", Rule(low=80), ours, exact=True)


def vit_macs(width: int, depth: int, pixels: int, patch: int = 16, classes: int = 1000) -> tuple[int, int]:
    """Multiply-adds per image: of the blocks' linear layers, and altogether (MLP four times as wide, class token)."""
    patches = (pixels // patch) ** 2
    n = patches + 1
    linear = depth * 12 * n * width**2
    products = depth * 2 * n**2 * width
    return linear, linear + products + patches * 3 * patch**2 * width + width * classes


# ---------------------------------------------------------------- 2: the measured spectrum


def low_pass(study: Study) -> Iterator[Reading]:
    """The gain of high frequencies over that of low ones on the trained bases."""
    tests = {
        "at_the_keys": "the filter at the keys: gain of the upper half of frequencies over the lowest quarter",
        "as_it_is": "the model's attention, token for token: the same with its own queries",
        "one_key_norm": "the model's attention with all keys at one norm",
    }
    for name, test in tests.items():
        ours = interval(spectrum[name]["high_over_low"] for spectrum in study.spectra)
        missing = "" if study.spectra else "spectra of the bases: run the recipe again"
        yield Reading(2, test, study.name, "", "stated, no number", "ratio", Rule(high=1), ours, missing=missing)


# ---------------------------------------------------------------- 3: equal accuracy, on one base and on the hull

Point = tuple[float, float]  # MACs, percent


def equal_accuracy(studies: Sequence[Study]) -> Iterator[Reading]:
    """On each base alone, and for studies of the same images on bases of several widths on their Pareto hull."""
    several = "the same recipe on bases of other widths, e.g. cifar10-w128 and cifar10-w256 beside cifar10"
    for study in studies:
        yield _saving([study], "one base: MACs saved at the base's accuracy", "4 % (DeiT-S)")
        yield _loss([study], "one base: accuracy at 42 % fewer MACs", "-0.6 at -43 % (DeiT-S)")
    for group in same_images(studies):
        hull = _saving(group, "Pareto hull over widths: MACs saved at the largest base's accuracy", "42 %")
        if not several_widths(group):
            hull = Reading(3, hull.test, hull.study, "", hull.paper, hull.unit, hull.rule, missing=several)
        yield hull


def same_images(studies: Sequence[Study]) -> list[list[Study]]:
    """Studies that can share a hull: same images, one per recipe (the one with most records)."""
    groups: dict[str, dict[str, Study]] = {}
    for study in studies:
        own = groups.setdefault(study.images, {})
        if study.recipe not in own or len(study.records) > len(own[study.recipe].records):
            own[study.recipe] = study
    return [list(own.values()) for own in groups.values()]


def several_widths(group: list[Study]) -> bool:
    return len({_base_macs(study) for study in group if study.base}) > 1


def _saving(group: list[Study], test: str, paper: str) -> Reading:
    values = []
    for base, pooled in points(group).values():
        values.append(100 * (1 - cost_at(front([base, *pooled]), base[1]) / base[0]))
    return _on_group(group, test, paper, "% of MACs", Rule(low=SAVING), values)


def _loss(group: list[Study], test: str, paper: str) -> Reading:
    at = 1 - SAVING / 100
    values = [affordable(front([base, *pooled]), at * base[0]) - base[1] for base, pooled in points(group).values()]
    return _on_group(group, test, paper, "points", Rule(low=0), values)


def _on_group(group: list[Study], test: str, paper: str, unit: str, rule: Rule, values: list[float]) -> Reading:
    ours = interval(values)
    missing = "" if ours.n else f"records of {POOLING} and of the base, with a point on either side"
    return Reading(3, test, ", ".join(study.name for study in group), "", paper, unit, rule, ours, missing=missing)


def points(group: list[Study]) -> dict[int, tuple[Point, list[Point]]]:
    """By seed: the largest base's (MACs, accuracy), and those of Token Pooling on every base and schedule."""
    largest = max(group, key=_base_macs)
    found = {}
    for record in (record for record in largest.records if record.unreduced):
        pooled = [_point(r) for study in group for r in study.records if r.method == POOLING and r.seed == record.seed]
        if pooled:
            found[record.seed] = (_point(record), pooled)
    return found


def _point(record: Record) -> Point:
    return float(record.macs["total"]), 100 * record.metrics["fine_tuned_top1"]


def _base_macs(study: Study) -> int:
    return max((record.macs["unreduced"] for record in study.records), default=0)


def cost_at(line: list[Point], accuracy: float) -> float:
    """MACs at which a front reaches an accuracy, linear between its points."""
    before: Point | None = None
    for macs, reached in line:
        if reached >= accuracy:
            if before is None:
                return macs
            return before[0] + (macs - before[0]) * (accuracy - before[1]) / (reached - before[1])
        before = (macs, reached)
    return nan


def affordable(line: list[Point], macs: float) -> float:
    """A front's accuracy for at most so many MACs: beyond its last point that of the last, NaN before its first."""
    return line[-1][1] if macs >= line[-1][0] else accuracy_at(line, macs)


def accuracy_at(line: list[Point], macs: float) -> float:
    """A curve's accuracy at so many MACs, linear between its points; NaN outside."""
    for (low, a), (high, b) in pairwise(line):
        if low <= macs <= high:
            return a + (b - a) * (macs - low) / (high - low)
    return nan


# ---------------------------------------------------------------- 4 and 5: method against method at equal cost

COSTS = {"equal MACs": "macs=", "equal latency": "latency=", "equal tokens": ""}
PAPER = {  # over all costs; at one cost the figures' curves tell
    (POOLING, "topk"): "+2.3 at 1.26 GMACs to +0.1 at 3.0, equal tokens (DeiT-S)",
    (POOLING, "kmedoids"): "+0.9 at 0.49 GMACs to +0.1 at 2.6 (hull)",
}


def beats_the_others(study: Study) -> Iterator[Reading]:
    for rival, name in RIVALS.items():
        yield from against(study, 4, POOLING, rival, f"{POOLING} minus {rival} ({name})")


def weighting_helps(study: Study) -> Iterator[Reading]:
    yield from against(study, 5, "wkmedoids", "kmedoids", "wkmedoids minus kmedoids")
    yield from against(study, 5, "wkmeans", "kmeans", "wkmeans minus kmeans")


def against(study: Study, claim: int, method: str, rival: str, test: str) -> Iterator[Reading]:
    """The difference at equal MACs, latency and tokens: over all schedules of a kind, then each."""
    rule, unit, paper = Rule(low=0), "points", PAPER.get((method, rival), "")
    for cost, prefix in COSTS.items():
        schedules = study.schedules(prefix) if prefix else study.schedules()
        by_schedule = {text: difference(study.top1(method, text), study.top1(rival, text)) for text in schedules}
        by_schedule = {text: values for text, values in by_schedule.items() if values}
        if not by_schedule:
            missing = f"records of {method} and {rival} at a schedule {prefix or '0.5@'}..."
            yield Reading(claim, f"{cost}: {test}", study.name, "", paper, unit, rule, missing=missing)
            continue
        each = [_compared(study, claim, method, rival, f"{cost}: {test}", *item) for item in by_schedule.items()]
        if len(each) == 1:
            yield each[0]
            continue
        ours = interval(mean_by_seed(by_schedule.values()).values())
        text = f"mean of {len(each)} schedules"
        yield Reading(claim, f"{cost}: {test}", study.name, text, paper, unit, rule, ours)
        yield from (replace(reading, detail=True) for reading in each)


def _compared(study: Study, claim: int, method: str, rival: str, test: str, schedule: str, values: Values) -> Reading:
    a, b = (study.of(name, schedule)[0].macs for name in (method, rival))
    note = ""
    if schedule.startswith("macs=") and abs(a["total"] - b["total"]) > SAME_MACS * a["unreduced"]:
        off = 100 * (a["total"] - b["total"]) / a["unreduced"]
        note = f"MACs differ by {off:+.1f} % of the base's"
    paper = paper_difference(method, rival, a["total"] / a["unreduced"])
    return Reading(
        claim, test, study.name, schedule, paper, "points", Rule(low=0), interval(values.values()), note=note
    )


def paper_difference(method: str, rival: str, share: float) -> str:
    """The paper's curves one above the other at this share of MACs; "" where one of them has no point on each side."""
    base = "hull" if "kmedoids" in (method, rival) else "deit_small"
    curves = [published.curve(name, base) for name in (method, rival)]
    gap = accuracy_at(curves[0], share) - accuracy_at(curves[1], share)
    return "" if gap != gap else f"{gap:+.1f} at {100 * share:.0f} % of MACs ({base.replace('_', ' ')})"


# ---------------------------------------------------------------- 6: what clustering costs


def clustering_is_cheap(study: Study) -> Iterator[Reading]:
    """Multiply-adds and seconds of the reducers, over those of everything else."""
    rule, paper = Rule(high=CLUSTERING), "3.4 to 3.7 % of MACs"
    if not any(record.method == POOLING for record in study.records):
        yield Reading(6, "reducers over the rest", study.name, "", paper, "%", rule, missing=f"records of {POOLING}")
    for schedule in dict.fromkeys(record.schedule for record in study.records if record.method == POOLING):
        counted = study.values(POOLING, schedule, _reducer_macs_percent)
        timed = study.values(POOLING, schedule, _reducer_seconds_percent)
        ours = Interval(interval(counted.values()).mean, 0.0, len(counted))
        yield Reading(
            6, "counted MACs of the reducers over the rest", study.name, schedule, paper, "%", rule, ours, True
        )
        test = "measured time of the reducers over the rest, layer by layer"
        yield Reading(6, test, study.name, schedule, "not given", "%", rule, interval(timed.values()))


def _reducer_macs_percent(record: Record) -> float | None:
    macs = record.macs
    return 100 * macs["reducers"] / (macs["total"] - macs["reducers"]) if macs else None


def _reducer_seconds_percent(record: Record) -> float | None:
    seconds = record.layers_seconds
    reducing = sum(value for name, value in seconds.items() if name.endswith(".reducer"))
    return 100 * reducing / (sum(seconds.values()) - reducing) if seconds else None


# ---------------------------------------------------------------- 7: initialisation and iterations

SETTING = re.compile(rf"^{POOLING}\((init|iterations)=(\w+)\)$")


def robust(study: Study) -> Iterator[Reading]:
    """Settings of Token Pooling against its defaults; of the iterations those beyond the default 5."""
    rule, found = Rule(-ROBUST, ROBUST), False
    for method in study.methods():
        match = SETTING.match(method)
        if match is None or (match[1] == "iterations" and int(match[2]) <= 5):
            continue
        for schedule in study.schedules() + study.schedules("macs=", "latency="):
            values = difference(study.top1(method, schedule), study.top1(POOLING, schedule))
            if values:
                found, test = True, f"{match[1]}={match[2]} minus the default"
                ours = interval(values.values())
                yield Reading(7, test, study.name, schedule, "stated, no number", "points", rule, ours)
    if not found:
        missing = "the recipe ablations: records of other initialisations and of more iterations"
        yield Reading(7, ANY_SETTING, study.name, "", "stated", "points", rule, missing=missing)


# ---------------------------------------------------------------- 8: off the shelf


def off_the_shelf(study: Study) -> Iterator[Reading]:
    """Token Pooling put into the trained base, against the base, neither fine-tuned."""
    paper, rule = "sources conflict: preserved, or 10 to 40 points lost", Rule(low=PRESERVED)
    base, found = study.top1(study.base, "none", "off_the_shelf"), False
    for schedule in study.schedules() + study.schedules("macs=", "latency="):
        lost = difference(study.top1(POOLING, schedule, "off_the_shelf"), base)
        if lost:
            found = True
            test = "off the shelf, minus the base"
            yield Reading(8, test, study.name, schedule, paper, "points", rule, interval(lost.values()))
    if not found:
        missing = f"records of {POOLING} and of the base"
        yield Reading(8, "off the shelf, minus the base", study.name, "", paper, "points", rule, missing=missing)
