"""The figure of claim 3: Token Pooling on bases of several widths, one curve for each base and one Pareto hull."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tpbench.claims.study import FINE_TUNED, POOLING, Study
from tpbench.report.pareto import COLOURS, FAINT, INK, STYLE, front
from tpbench.report.saved import save

GIGA = 1e9


def draw(group: Sequence[Study], path: Path) -> Path | None:
    """Draw top-1 (mean over seeds) against multiply-adds: the bases, their pooled models, and the front of all.

    A study without fine-tuned pooled models shows its base alone. Return the path, or None if all are such studies.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bases = {study.recipe: means(study, study.base)[:1] for study in group}
    pooled = {study.recipe: means(study, POOLING) for study in group}
    pooled = {recipe: points for recipe, points in pooled.items() if points and bases[recipe]}
    if not pooled:
        return None
    every = [point for points in (*bases.values(), *pooled.values()) for point in points]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        panel = figure.subplots()
        panel.plot(*zip(*front(every)), color=FAINT, linewidth=6, alpha=0.8, zorder=1, label="Pareto hull")
        scaling = sorted(point for points in bases.values() for point in points)
        panel.plot(*zip(*scaling), "*--", color=INK, markersize=13, zorder=3, label="unreduced, by width")
        for colour, (recipe, points) in zip(COLOURS, pooled.items()):
            line = sorted(points + bases[recipe])
            panel.plot(*zip(*line), "o-", color=colour, zorder=2, label=f"{POOLING} on {recipe}")
        panel.set_xlabel("multiply-adds per image (GMACs)")
        panel.set_ylabel("top-1, fine-tuned (%)")
        panel.set_title("one base at a time, and the hull over all", loc="left", fontsize=11, color=INK)
        panel.legend()
        save(figure, path)
    return path


def means(study: Study, method: str) -> list[tuple[float, float]]:
    """(GMACs, top-1 in percent) of a method at each of its schedules, means over seeds."""
    points = []
    for schedule in dict.fromkeys(record.schedule for record in study.records if record.method == method):
        table = study.top1(schedule, FINE_TUNED)
        macs = fmean(record.macs["total"] / GIGA for record in study.of(method, schedule))
        if method in table.index:
            points.append((macs, float(table.loc[method].mean())))
    return points
