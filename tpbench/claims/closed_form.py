"""Claims 1 and 6 from the shapes of the paper's models: multiply-adds per image, computed in closed form.

N tokens that arrive, K clusters, C width, T iterations
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import nan
from statistics import fmean

from tpbench.claims.contrasts import from_values
from tpbench.claims.study import POOLING, Study
from tpbench.claims.verdict import Reading, Rule, decide
from tpbench.report.estimates import Difference

FULLY_CONNECTED = 80.0  # percent of the multiply-adds
CLUSTERING = 3.7  # percent of the other multiply-adds, the larger of the paper's two numbers
ITERATIONS = 5
PIXELS = 224  # the paper's; 384 is a second reading
CLASSES = 1000

SIZES = {"DeiT-Ti": 192, "DeiT-S": 384, "DeiT-B / ViT-B": 768, "ViT-L": 1024}  # width
DEPTH = {"ViT-L": 24}  # 12 for the others

# GMACs without the clustering -> patch tokens after blocks 1 to 12 of DeiT-S. The counts reproduce the multiply-adds
# in the paper's figures; the paper does not publish its own counts.
SCHEDULES = {
    "2.06": (192, 184, 169, 146, 113, 77, 46, 25, 13, 7, 3, 2),
    "2.53": (193, 189, 181, 168, 147, 120, 88, 59, 37, 21, 12, 7),
    "2.94": (193, 188, 181, 171, 158, 141, 120, 98, 75, 56, 39, 27),
}


def exact_value(value: float) -> Difference:
    """A value without a standard error, since it is computed and not sampled."""
    return Difference(value=value, standard_error=nan, df=0.0, seeds=1, a="", b="")


# ------------------------------------------------------------------------------------------ 1


def fully_connected() -> Iterator[Reading]:
    """Claim 1: the share of the blocks' linear layers in all multiply-adds, with patches of 16 pixels."""
    for pixels in (PIXELS, 384):
        for name, width in SIZES.items():
            linear, total = vit_macs(width, DEPTH.get(name, 12), pixels)
            yield Reading(
                claim=1,
                topic=f"at {pixels} pixels",
                test=f"{name} at {pixels} pixels ({total / 1e9:.3f} GMACs)",
                study="",
                schedule="",
                unit="% of MACs",
                rule=Rule(low=FULLY_CONNECTED),
                ours=exact_value(100 * linear / total),
                paper="above 80 %",
                exact=True,
                shown_only="" if pixels == PIXELS else f"the paper's models see {PIXELS} pixels",
            )


def vit_macs(width: int, depth: int, pixels: int, patch: int = 16, classes: int = CLASSES) -> tuple[int, int]:
    """Multiply-adds per image of a ViT: of the blocks' linear layers, and in total.

    The MLP is four times as wide as the tokens, and there is one class token.
    """
    patches = (pixels // patch) ** 2
    n = patches + 1
    linear = depth * 12 * n * width**2
    products = depth * 2 * n**2 * width
    return linear, linear + products + patches * 3 * patch**2 * width + width * classes


# ------------------------------------------------------------------------------------------ 6


def clustering_is_cheap() -> Iterator[Reading]:
    """Claim 6: multiply-adds of the clustering over all others, for DeiT-S with pooling after every attention."""
    width = SIZES["DeiT-S"]
    for gmacs, counts in SCHEDULES.items():
        rest = pooled_macs(width, counts)
        costs = {
            "K-Medoids": (medoids_macs(width, counts), ""),
            "K-Means by its Gram matrix": (gram_macs(width, counts), "not the paper's way to compute it"),
            "K-Means by the paper's count T K N C": (
                lloyd_macs(width, counts),
                "not the algorithm of the paper's headline result",
            ),
        }
        for name, (macs, remark) in costs.items():
            yield Reading(
                claim=6,
                topic=f"{name} on DeiT-S",
                test=f"{name} over the rest of DeiT-S at {gmacs} GMACs",
                study="",
                schedule=",".join(map(str, counts)),
                unit="% of MACs",
                rule=Rule(high=CLUSTERING),
                ours=exact_value(100 * macs / rest),
                paper="3.4 to 3.7 %",
                exact=True,
                shown_only=remark,
            )


def pooled_macs(width: int, counts: Sequence[int], patches: int = 196) -> int:
    """Multiply-adds per image of a ViT with a pooling layer after every attention, without the pooling itself.

    counts: patch tokens after each block. Patches have 16 pixels a side.
    """
    total = patches * 3 * 16**2 * width + width * CLASSES
    for arriving, kept in zip((patches, *counts), counts):
        n = arriving + 1
        total += 4 * n * width**2 + 2 * n**2 * width + 8 * (kept + 1) * width**2
    return total


def medoids_macs(width: int, counts: Sequence[int], patches: int = 196) -> int:
    """Multiply-adds of K-Medoids: all inner products once, then one for each pair and iteration: N^2 (C + T)."""
    return sum(n * n * (width + ITERATIONS) for n in (patches, *counts[:-1]))


def gram_macs(width: int, counts: Sequence[int], patches: int = 196) -> int:
    """Multiply-adds of K-Means on inner products, as this suite runs it: N^2 (C + T), and K N C for the centres."""
    pairs = zip((patches, *counts), counts)
    return medoids_macs(width, counts, patches) + sum(k * n * width for n, k in pairs)


def lloyd_macs(width: int, counts: Sequence[int], patches: int = 196) -> int:
    """Multiply-adds of K-Means as the paper counts them: T K N C."""
    return ITERATIONS * sum(k * n * width for n, k in zip((patches, *counts), counts))


def measured_costs(study: Study) -> Iterator[Reading]:
    """Claim 6 on a study's own model; only shown, because narrow models differ in their proportions."""
    why_not_counted = "this model does not have the proportions of the paper's models"
    for schedule in dict.fromkeys(record.schedule for record in study.records if record.method == POOLING):
        records = study.of(POOLING, schedule)
        counted = [100 * r.macs["reducers"] / (r.macs["total"] - r.macs["reducers"]) for r in records if r.macs]
        seconds = {r.seed: _seconds_percent(r.layers_seconds) for r in records if r.layers_seconds}
        blank = Reading(
            claim=6,
            topic="",
            test="",
            study=study.name,
            schedule=schedule,
            unit="%",
            rule=Rule(high=CLUSTERING),
            paper="3.4 to 3.7 % of MACs on DeiT-S",
            shown_only=why_not_counted,
        )
        if counted:
            test = "counted MACs of the reducers over the rest"
            yield from decide([replace(blank, topic=test, test=test, ours=exact_value(fmean(counted)), exact=True)])
        if seconds:
            test = "measured time of the reducers over the rest, layer by layer"
            yield from decide([replace(blank, topic=test, test=test, ours=from_values(seconds, POOLING, ""))])


def _seconds_percent(seconds: dict[str, float]) -> float:
    reducing = sum(value for name, value in seconds.items() if name.endswith(".reducer"))
    return 100 * reducing / (sum(seconds.values()) - reducing)


def gram_note(study: Study, method: str, schedule: str) -> str:
    """A sentence about the cost of a K-Means row relative to the paper's count.

    "" for other methods, and where the token counts or multiply-adds are not known.
    """
    patches = next((record.tokens["after_block"][0] for record in study.bases if record.tokens.get("after_block")), 0)
    record = study.of(method, schedule)[0]
    counts = record.tokens.get("achieved", ())
    if method not in ("kmeans", "wkmeans") or not (patches and counts and record.macs):
        return ""
    pairs = list(zip((patches, *counts), counts))
    iterations = record.config.get("iterations", ITERATIONS)
    squares = sum(n * n for n, _ in pairs)
    products = sum(k * n for n, k in pairs)
    # No record holds the width C. It follows from the reducers' cost, the sum over blocks of N^2 (C + T) + K N C.
    width = (record.macs["reducers"] - iterations * squares) / (squares + products)
    share = record.macs["reducers"] / (iterations * width * products)
    return f"K-Means by its Gram matrix costs {share:.2f} of the paper's count T K N C"
