"""Learned counts: the result of a search as a sentence, and as a figure of K against depth."""

from __future__ import annotations

from pathlib import Path

from tpbench.record import Learned, read_learned
from tpbench.report.pareto import COLOURS, MARKERS, STYLE
from tpbench.report.saved import save


def summary(found: Learned) -> str:
    """The result of a search in one line."""
    counts = ", ".join(map(str, found.counts))
    judged = found.off_the_shelf
    return (
        f"{found.search} learned {counts} of {found.patches} tokens after blocks 0 to {len(found.counts) - 1}:"
        f" {judged['macs_share']:.1%} of the MACs under {found.method},"
        f" validation top-1 {judged['validation_top1']:.2%} off the shelf"
    )


def draw(folder: Path) -> Path | None:
    """Draw K after each block for all files of FOLDER/learned into FOLDER/figures/learned.png.

    Return the path, or None if there are no files.
    """
    found = {path.stem: read_learned(path) for path in sorted((folder / "learned").glob("*.json"))}
    if not found:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        panel = figure.subplots()
        for number, (name, one) in enumerate(found.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            share = one.off_the_shelf["macs_share"]
            panel.plot([one.patches, *one.counts], label=f"{name}: {share:.0%} of the MACs", **look)
            panel.plot(range(1, len(one.kept) + 1), one.kept, "_", color=look["color"], markersize=12, alpha=0.6)
        ticks = range(len(one.counts) + 1)
        panel.set_xticks(ticks, ["input", *(f"block {block}" for block in ticks[:-1])], rotation=45 * (len(ticks) > 7))
        panel.set_ylabel("K: body tokens after the block (dash: as learned)")
        panel.set_ylim(bottom=0)
        panel.legend()
        path = folder / "figures" / "learned.png"
        save(figure, path)
    return path
