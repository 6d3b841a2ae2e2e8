"""The columns of what a row keeps and costs: tokens, multiply-adds, seconds and bytes; and published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from tpbench.report import layout, published
from tpbench.report.column import Column, Source

SAME_MACS = 0.01  # rows at equal MACs may differ by this share of the base's
GIGA = 1e9
MIB = 2**20


def columns(batches: Sequence[int | str]) -> list[Column]:
    """The columns in the order of the CSV file. batches: the batch sizes at which latency was measured."""
    latencies = [column for batch in batches for column in latency(batch)]
    return [*_tokens(), *_macs(), *latencies, *_speed(batches), *_memory(), *_fine_tuning(), *_paper(), _error()]


def _tokens() -> list[Column]:
    return [
        Column(
            "tokens_requested",
            "body tokens after each reducing block, as requested; a-b is a range over seeds",
            lambda source: _spans([cell["tokens_requested"] for cell in source.cells]),
        ),
        Column(
            "tokens_achieved",
            "the same, as counted in the running model",
            lambda source: _spans([cell["tokens_achieved"] for cell in source.cells]),
            head="Tokens",
            unit="kept",
            text=layout.tokens,
        ),
        Column(
            "tokens_live",
            "those of them that are neither padding nor masked, mean over images and seeds; blank if all are",
            lambda source: _means([cell["tokens_live"] for cell in source.cells]),
        ),
    ]


def _macs() -> list[Column]:
    return [
        Column(
            "gmacs",
            "1e9 multiply-adds per image, the reducer included",
            lambda source: source.mean("macs_total") / GIGA,
            head="GMACs",
            unit="per image",
            text=layout.as_significant("gmacs", 4),
        ),
        Column(
            "macs_share",
            "multiply-adds as a share of the unreduced model's",
            lambda source: source.mean("macs_total", over="macs_unreduced"),
            head="MACs",
            unit="% of base",
            text=layout.macs,
            brief=layout.as_fixed("macs_share", 1, 100),
            brief_unit="%",
        ),
        Column(
            "live_macs_share",
            "the same if neither padding nor masked tokens were computed; blank if there are none",
            lambda source: source.mean("macs_live", over="macs_unreduced"),
        ),
        Column(
            "reducer_share",
            "share of the row's multiply-adds that the reducers take",
            lambda source: source.mean("macs_reducers", over="macs_total"),
            head="Reducer",
            unit="% of MACs",
            text=layout.as_fixed("reducer_share", 2, 100),
            narrow=False,
        ),
    ]


def latency(batch: int | str) -> list[Column]:
    """The columns of one batch size."""
    name = f"latency_b{batch}"
    return [
        Column(
            f"{name}_median_ms",
            f"median time of one forward pass of {batch} images, milliseconds, mean over seeds",
            lambda source: 1e3 * source.mean(f"{name}_median_seconds"),
            head=f"Batch {batch}",
            unit="ms (p95)",
            text=layout.latency(batch),
        ),
        Column(
            f"{name}_p95_ms",
            "95th percentile of the same, milliseconds, mean over seeds",
            lambda source: 1e3 * source.mean(f"{name}_p95_seconds"),
        ),
        Column(
            f"{name}_ratio",
            "that median over the unreduced model's, with which it took turns, mean over seeds",
            lambda source: source.mean(f"{name}_ratio"),
            head=f"Batch {batch}",
            unit="time, % of base",
            text=layout.as_fixed(f"{name}_ratio", 1, 100),
            brief=layout.as_fixed(f"{name}_ratio", 0, 100),
            brief_unit="time, %",
            narrow=False,
        ),
    ]


def _speed(batches: Sequence[int | str]) -> list[Column]:
    sizes = [batch for batch in batches if isinstance(batch, int)]
    at = f"at batch {max(sizes)}" if sizes else "at largest batch"
    return [
        Column("largest_batch", "the largest batch size B, images", lambda source: max(source.batches, default=nan)),
        Column(
            "speedup_promised",
            "the speed-up that multiply-adds promise: 1 / macs_share",
            _promised,
            head="Speed-up",
            unit="promised",
            text=layout.as_fixed("speedup_promised", 2),
        ),
        Column(
            "speedup_reached",
            "the measured speed-up at the largest batch: 1 / latency_bB_ratio",
            _reached,
            head="Speed-up",
            unit=at,
            text=layout.as_fixed("speedup_reached", 2),
        ),
        Column(
            "speedup_share_reached",
            "speedup_reached / speedup_promised",
            lambda source: _reached(source) / _promised(source),
            head="Reached",
            unit="% of promised",
            text=layout.as_fixed("speedup_share_reached", 0, 100),
            narrow=False,
        ),
        Column(
            "images_per_second",
            "throughput at the largest batch: B / median",
            lambda source: max(source.batches) / _at_largest(source, "median_seconds") if source.batches else nan,
            head="Images/s",
            unit=at,
            text=layout.as_significant("images_per_second", 3),
        ),
    ]


def _at_largest(source: Source, name: str) -> float:
    return source.mean(f"latency_b{max(source.batches)}_{name}") if source.batches else nan


def _promised(source: Source) -> float:
    return 1 / source.mean("macs_total", over="macs_unreduced")


def _reached(source: Source) -> float:
    return 1 / _at_largest(source, "ratio")


def _memory() -> list[Column]:
    return [
        Column(
            "peak_memory_mib",
            "peak memory of one forward pass beyond weights and inputs, MiB (2^20 bytes)",
            lambda source: source.mean("peak_memory_bytes_reduced") / MIB,
            head="Peak memory",
            unit="MiB",
            text=layout.as_significant("peak_memory_mib", 3),
        ),
        Column(
            "unreduced_peak_memory_mib",
            "the same for the unreduced model, MiB",
            lambda source: source.mean("peak_memory_bytes_unreduced") / MIB,
            head="Base's peak",
            unit="MiB",
            text=layout.as_significant("unreduced_peak_memory_mib", 3),
            narrow=False,
        ),
    ]


def _fine_tuning() -> list[Column]:
    return [
        Column(
            "fine_tuning_seconds",
            "wall time of fine-tuning, seconds, mean over seeds",
            lambda source: source.mean("training_seconds"),
            head="Fine-tuning",
            unit="s",
            text=layout.as_significant("fine_tuning_seconds", 3),
        ),
        Column(
            "images_trained",
            "images seen in fine-tuning over all epochs, mean over seeds",
            lambda source: source.mean("training_images"),
        ),
        Column(
            "training_images_per_second",
            "images per second of fine-tuning over its timed steps, mean over seeds; blank if too few steps were "
            "timed. Not sampled in turns: cells train one after the other",
            lambda source: source.mean("training_images_per_second"),
            head="Fine-tuning",
            unit="images/s",
            text=layout.as_significant("training_images_per_second", 3),
            narrow=False,
        ),
        Column(
            "training_outside_model_share",
            "share of the timed steps outside the model's forward and backward passes, mean over seeds",
            lambda source: source.mean("training_outside_model_share"),
        ),
        Column("images_evaluated", "number of test images, mean over seeds", lambda source: source.mean("test_images")),
    ]


def _paper() -> list[Column]:
    return [
        Column(
            "paper_top1",
            "published ImageNet top-1 of DeiT-S, percent, at the nearest share of its 4.599 GMACs; blank if no share "
            "lies within 0.05 (kmedoids: on the hull over several widths, since nothing else is published)",
            lambda source: _published(source).top1,
            head="Paper",
            unit="top-1 %",
            text=layout.as_fixed("paper_top1", 2),
        ),
        Column(
            "paper_share",
            "the multiply-adds of that published point as a share of DeiT-S'",
            lambda source: _published(source).share,
            head="Paper",
            unit="MACs, % of base",
            text=layout.as_fixed("paper_share", 1, 100),
            narrow=False,
        ),
        Column(
            "paper_source",
            "where it was published and how the model was trained",
            lambda source: _published(source).source,
        ),
    ]


def _published(source: Source) -> published.Point:
    return published.nearest(source.method, source.mean("macs_total", over="macs_unreduced"))


def _error() -> Column:
    return Column("error", "why seeds failed; a row has no numbers if all its seeds failed", _reasons)


def _reasons(source: Source) -> str:
    """Why seeds failed: one reason if it is the same for all seeds, otherwise a reason for each seed."""
    failed = [cell for cell in source.cells if cell["error"]]
    if len(failed) == len(source.cells) and len({cell["error"] for cell in failed}) == 1:
        return failed[0]["error"]
    return "; ".join(f"seed {cell['seed']}: {cell['error']}" for cell in failed)


# ------------------------------------------------------------------------------------------ token counts over seeds


def _spans(texts: Sequence[str]) -> str:
    """ "45,31" and "44,31" become "44-45,31"; lists of several lengths are joined by "or"."""
    lists = [[int(count) for count in text.split(",")] for text in texts if text]
    if len({len(counts) for counts in lists}) > 1:
        return " or ".join(dict.fromkeys(",".join(map(str, counts)) for counts in lists))
    limits = [(min(counts), max(counts)) for counts in zip(*lists)]
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in limits)


def _means(texts: Sequence[str]) -> str:
    """Mean token counts over seeds, with one decimal: "45.1,30.8"."""
    lists = [[float(count) for count in text.split(",")] for text in texts if text]
    return ",".join(f"{sum(counts) / len(counts):.1f}" for counts in zip(*lists))
