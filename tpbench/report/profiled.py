"""The output of `tpbench profile`: tokens, latency beside the unreduced model, and a row for each layer."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.table import Table

from tpbench.record import Profile
from tpbench.report.interval import percentile_95


def show(profile: Profile, console: Console) -> None:
    """Print a profile, rounded."""
    if not console.is_terminal:
        console.width = max(console.width, 120)
    title = (profile.model, profile.method, profile.schedule, profile.mode, profile.environment["device"])
    console.print("\n" + ", ".join(title))
    if profile.tokens["blocks"]:
        console.print(_tokens(profile.tokens))
    macs = profile.macs
    console.print(
        f"{macs['total'] / 1e9:.4g} GMACs per image, {macs['total'] / macs['unreduced']:.1%} of the unreduced model's; "
        f"the reducers take {macs['reducers'] / macs['total']:.1%} of them"
    )
    console.print(_latency(profile), _layers(profile), sep="\n")
    if profile.trace is not None:
        console.print(f"trace: {profile.trace} (open it in https://ui.perfetto.dev)", soft_wrap=True)


def _tokens(tokens: dict[str, list[int | float]]) -> str:
    """The tokens after each reducing block, and the requested ones if they differ."""
    achieved, requested, blocks = (", ".join(map(str, tokens[key])) for key in ("achieved", "requested", "blocks"))
    text = f"tokens after blocks {blocks}: {achieved}"
    return text if achieved == requested else f"{text} (requested {requested})"


def _latency(profile: Profile) -> Table:
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
    promised = profile.macs["unreduced"] / profile.macs["total"]
    for size, samples in profile.latency.items():
        own = median(samples["reduced"])
        other = median(samples["unreduced"])
        late = percentile_95(samples["reduced"])
        times = (f"{own * 1e3:.3g}", f"{late * 1e3:.3g}", f"{other * 1e3:.3g}")
        table.add_row(size, *times, profile.unreduced_mode[size], f"{other / own:.2f}", f"{promised:.2f}")
    return table


def _layers(profile: Profile) -> Table:
    batch = max(int(size) for size in profile.latency)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for head in ("MMACs per image", f"ms at batch {batch}", "share of time %"):
        table.add_column(head, justify="right")
    macs = {layer["name"]: layer["macs"] for layer in profile.macs["layers"]}
    total = sum(profile.layers_seconds.values())
    for name in (*macs, "other"):
        seconds = profile.layers_seconds[name]
        table.add_row(name, f"{macs.get(name, 0) / 1e6:.4g}", f"{seconds * 1e3:.3g}", f"{100 * seconds / total:.1f}")
    return table
