"""What `tpbench profile` prints for people: tokens, latency beside the unreduced model, and a row per layer."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tpbench.report.interval import percentile_95


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the object that `profile --json` prints, rounded."""
    if not console.is_terminal:
        console.width = max(console.width, 120)
    title = ("model", "method", "schedule", "mode")
    console.print("\n" + ", ".join((*(result[part] for part in title), result["environment"]["device"])))
    if result["tokens"]:
        told = ", ".join(str(k) for k in result["tokens"])
        asked = ", ".join(str(k) for k in result["requested_tokens"])
        where = ", ".join(str(block) for block in result["blocks"])
        console.print(f"tokens after blocks {where}: {told}" + ("" if told == asked else f" (requested {asked})"))
    share = result["macs"] / result["macs_unreduced"]
    promised = result["macs_unreduced"] / result["macs"]
    reducers = result["macs_reducers"] / result["macs"]
    console.print(
        f"{result['macs'] / 1e9:.4g} GMACs per image, {share:.1%} of the unreduced; reducers {reducers:.1%} of it"
    )
    console.print(_latency(result, promised), _layers(result), sep="\n")
    if "trace" in result:
        console.print(f"trace: {result['trace']}")


def _latency(result: Mapping[str, Any], promised: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = (
        "batch",
        "ms",
        "ms, 95th percentile",
        "unreduced ms",
        "unreduced is",
        "speed-up",
        "promised by MACs",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for size, samples in result["latency"].items():
        own = median(samples)
        other = median(result["latency_unreduced"][size])
        late = percentile_95(samples)
        times = (f"{own * 1e3:.3g}", f"{late * 1e3:.3g}", f"{other * 1e3:.3g}")
        table.add_row(size, *times, result["unreduced_mode"][size], f"{other / own:.2f}", f"{promised:.2f}")
    return table


def _layers(result: Mapping[str, Any]) -> Table:
    batch = max(int(size) for size in result["latency"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for head in ("MMACs per image", f"ms at batch {batch}", "share of time %"):
        table.add_column(head, justify="right")
    whole = sum(layer["seconds"] for layer in result["layers"])
    for layer in result["layers"]:
        seconds = layer["seconds"]
        table.add_row(
            layer["name"], f"{layer['macs'] / 1e6:.4g}", f"{seconds * 1e3:.3g}", f"{100 * seconds / whole:.1f}"
        )
    return table
