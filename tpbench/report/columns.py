"""What every column of a comparison means, and in which unit."""

from __future__ import annotations

from collections.abc import Iterable

MEANINGS = {
    "machine": "where it was measured; records of several machines are never averaged",
    "recipe": "the recipe's name",
    "recipe_digest": "twelve hexadecimal digits of everything in the recipe that can change a result",
    "schedule": "the token budget as the recipe writes it",
    "method": "the method's name",
    "title": "the method's name in words",
    "unreduced": "True for the base: the model that keeps every token",
    "site": "where in a block the method reduces: mid (before the MLP) or end",
    "count": "exact: the requested tokens are met; at_most: fewer may be kept; masked: none is removed, about as many "
    "as requested live",
    "rank": "1 + the number of methods of the schedule whose fine-tuned top-1 minus this one's has a paired "
    "interval wholly above zero: the best place it may have. Blank below 2 seeds",
    "rank_worst": "1 + the number of methods of the schedule that this one does not separate from downwards: the worst "
    "place it may have. A wide interval leaves a wide range",
    "stands_alone": "True where the method separates upwards from every other method of its schedule",
    "seeds": "n: seeds measured without failure",
    "seeds_expected": "seeds met anywhere on this machine",
    "tokens_requested": "body tokens after each reducing block; a-b is a range over seeds",
    "tokens_achieved": "the same, as counted in the running model",
    "tokens_live": "those of them that are no padding and not hidden, mean over images and seeds; blank where all live",
    "gmacs": "1e9 multiply-adds per image, the reducer included",
    "macs_share": "share of the unreduced model's multiply-adds, 1 is all",
    "live_macs_share": "the same if neither padding nor hidden tokens were computed; blank where there are none",
    "reducer_share": "share of the method's own multiply-adds that goes into reducing",
    "off_the_shelf_top1_percent": "top-1 with the base's weights as they are, percent, mean over seeds",
    "off_the_shelf_half_width_points": "half-width of its interval, percentage points; blank with 1 seed",
    "off_the_shelf_seeds": "n of it",
    "fine_tuned_top1_percent": "top-1 after fine-tuning with tokens reduced, percent, mean over seeds",
    "fine_tuned_half_width_points": "half-width of its interval, percentage points; blank with 1 seed",
    "fine_tuned_seeds": "n of it",
    "base_difference_points": "fine-tuned top-1 minus that of the base fine-tuned equally long with the same "
    "seed, percentage points, mean of the pairs",
    "base_difference_half_width_points": "half-width of its interval, percentage points; blank with 1 pair",
    "base_difference_seeds": "n of it: pairs",
    "latency_bB_median_ms": "median time of one forward pass of B images, milliseconds, mean over seeds",
    "latency_bB_p95_ms": "95th percentile of the same, milliseconds, mean over seeds",
    "latency_bB_ratio": "that median over the unreduced model's, sampled in turns with it, mean over seeds",
    "largest_batch": "the largest B, images",
    "speedup_promised": "what multiply-adds promise: 1 / macs_share",
    "speedup_reached": "what the clock says at the largest batch: 1 / latency_bB_ratio",
    "speedup_share_reached": "speedup_reached / speedup_promised",
    "images_per_second": "throughput at the largest batch: B / median",
    "peak_memory_mib": "most memory held in one forward pass beyond weights and inputs, MiB (2^20 bytes)",
    "unreduced_peak_memory_mib": "the same for the unreduced model, MiB",
    "fine_tuning_seconds": "wall time of fine-tuning, seconds, mean over seeds",
    "images_trained": "images seen in fine-tuning, all epochs together, mean over seeds",
    "training_images_per_second": "pace of fine-tuning, images per second over its timed steps, mean over seeds; blank "
    "where too few steps were timed. Not sampled in turns: cells train one after the other",
    "training_outside_model_share": "share of that time outside the model's forward and backward pass, mean over seeds",
    "images_evaluated": "test images, mean over seeds",
    "paper_top1": "published ImageNet top-1, percent, on DeiT-S at the nearest share of its 4.599 GMACs, blank if "
    "none lies within 0.05 (kmedoids: on the hull over several widths, the only ones published)",
    "paper_share": "that point's share of DeiT-S' multiply-adds",
    "paper_source": "where it was published and how the model was trained",
    "error": "why seeds failed; a row whose seeds all failed has no numbers",
}

PAIR_MEANINGS = {
    "machine": "as above",
    "schedule": "as above",
    "method_a": "one method",
    "method_b": "the other",
    "difference_points": "fine-tuned top-1 of a minus b, percentage points, mean over pairs of one seed",
    "half_width_points": "half-width of its interval, percentage points; blank with 1 pair",
    "n": "pairs",
}


def names(batches: Iterable[int]) -> list[str]:
    """The columns of a comparison, those of latency repeated for every batch size."""
    latency = [name for name in MEANINGS if "_bB_" in name]
    repeated = [name.replace("B", str(batch)) for batch in batches for name in latency]
    place = list(MEANINGS).index(latency[0])
    rest = [name for name in MEANINGS if name not in latency]
    return rest[:place] + repeated + rest[place:]
