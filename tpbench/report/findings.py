"""Three to seven sentences about one machine's records, with numbers and intervals, all derived from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isnan

import pandas as pd

from tpbench.report.estimates import Estimate
from tpbench.report.families import BETTER, EQUIVALENT, NOT_INFERIOR, UNDECIDED, WORSE, Judgement
from tpbench.report.first import fullest
from tpbench.report.frame import Comparison, batch_sizes, timed_sizes
from tpbench.report.layout import Row, fixed, spread_out
from tpbench.report.methods import NULL, without_settings
from tpbench.report.phrases import are, counted, points
from tpbench.report.standings import OFF_THE_SHELF, Standings

MOST_SCHEDULES = 3  # with a sentence of their own, from the costliest to the cheapest
EQUAL_COST = "macs="  # the prefix of schedules at which all methods cost the same


def findings(comparison: Comparison) -> list[str]:
    """The sentences, the most important first."""
    measured = [table for table in comparison.tables.values() if table.model is not None]
    compared = [table for table in measured if table.judgements] or measured
    shown_first = fullest(comparison)
    compared = [table for table in compared if table.schedule in shown_first] or compared
    shown = [table for table in compared if table.schedule.startswith(EQUAL_COST)] or compared
    told = spread_out(shown, MOST_SCHEDULES)
    found = [_scope(comparison, told)]
    found += [_verdicts(comparison, table) for table in told if table.means[table.stage].keys() - _bases(comparison)]
    found += [*_to_base(comparison, told[-1:]), *_speed(comparison, told[-1:]), *_null(comparison)]
    return found


def _bases(comparison: Comparison) -> set[str]:
    return {record.method for record in comparison.records if record.unreduced}


def _scope(comparison: Comparison, tables: Sequence[Standings]) -> str:
    """What was compared, and the smallest detectable difference."""
    frame = comparison.frame
    names = frame.loc[~frame["unreduced"] & (frame["family"] != NULL), "method"].unique()
    methods = {without_settings(name) for name in names}
    settings = len(names) - len(methods)
    seeds = len({record.seed for record in comparison.records})
    good = [(record.method, record.schedule) for record in comparison.records if record.error is None]
    fewest = min(Counter(good).values(), default=seeds)
    schedules = int(frame.loc[~frame["unreduced"], "schedule"].nunique())
    rows = counted(len(methods), "method") + (f" (and {counted(settings, 'other setting')})" if settings else "")
    repeated = (f"{fewest} to " if fewest < seeds else "") + counted(seeds, "seed")
    said = f"{rows} at {counted(schedules, 'schedule')} over {repeated} on {comparison.machine}"
    smallest = [table for table in tables if not isnan(table.smallest)]
    if not smallest:
        why = "with one seed" if seeds == 1 else "with so few values"
        return f"{said}: {why} there are no intervals, and nothing is decided."
    detectable = ", ".join(
        f"{table.smallest:.1f} points at {table.schedule} ({table.smallest_in_family:.1f} after Holm)"
        for table in smallest
    )
    sentence = f"{said}; the smallest detectable difference (two-sided 5 %, power 0.8) is {detectable}."
    return sentence + _stand_in(comparison, tables)


def _stand_in(comparison: Comparison, tables: Sequence[Standings]) -> str:
    """A sentence about the schedules where another method replaces the reference."""
    asked = comparison.contrast.reference
    without = [table.schedule for table in tables if table.reference != asked]
    if not without:
        return ""
    return f" The reference {asked} was not run at {', '.join(without)}; the most accurate method replaces it."


def _verdicts(comparison: Comparison, table: Standings) -> str:
    """How many methods are better than the reference, worse, equivalent or undecided."""
    own = table.means[table.stage].get(table.reference)
    if own is None:
        return f"At {table.schedule} no method was measured that could be the reference."
    if not table.judgements:
        return f"At {table.schedule} {table.reference} ({_mean(own)}) is the only method."
    if not any(judgement.difference.known for judgement in table.judgements.values()):
        return _highest(comparison, table)
    groups: dict[str, list[Judgement]] = {}
    for judgement in table.judgements.values():
        groups.setdefault(judgement.verdict, []).append(judgement)
    parts = [_extremes(BETTER, groups.get(BETTER, [])), _extremes(WORSE, groups.get(WORSE, []))]
    margin = f"{table.margin:g} {'point' if table.margin == 1 else 'points'}"
    for verdict, words in (
        (EQUIVALENT, f"equivalent within ±{margin}"),
        (NOT_INFERIOR, f"not inferior (margin {margin})"),
        (UNDECIDED, "undecided"),
    ):
        if verdict in groups:
            parts.append(f"{len(groups[verdict])} {are(len(groups[verdict]))} {words}")
    others = counted(len(table.judgements), "other row")
    return (
        f"{_where(comparison, table)}, of {others} compared with {table.reference} ({_mean(own)}), {', '.join(parts)}."
    )


def _highest(comparison: Comparison, table: Standings) -> str:
    """Which method has the highest mean, where nothing can be decided."""
    names = sorted({table.reference, *table.judgements})
    best = max(names, key=lambda name: table.means[table.stage][name].value)
    leads = table.means[table.stage][best].value
    return f"{_where(comparison, table)}, {best} has the highest mean, {leads:.1f} %: undecided."


def _extremes(verdict: str, judgements: Sequence[Judgement]) -> str:
    """How many are better or worse, and the one that is farthest from the reference."""
    if not judgements:
        return f"none is {verdict}"
    far = max(judgements, key=lambda judgement: abs(judgement.difference.value))
    named = f"{far.difference.a}: " if len(judgements) == 1 else f"most: {far.difference.a}, "
    return f"{len(judgements)} {are(len(judgements))} {verdict} ({named}{points(far.difference)})"


def _where(comparison: Comparison, table: Standings) -> str:
    """The schedule, with the reference's share of the multiply-adds if known, and whether its rows are fine-tuned."""
    frame = comparison.frame
    share = frame.loc[(frame["schedule"] == table.schedule) & (frame["method"] == table.reference), "macs_share"]
    cost = "" if share.empty or pd.isna(share.iloc[0]) else f" ({100 * share.iloc[0]:.0f} % of the MACs)"
    return f"At {table.schedule}{cost}" + (", off the shelf" if table.stage == OFF_THE_SHELF else "")


def _to_base(comparison: Comparison, tables: Sequence[Standings]) -> Iterator[str]:
    """How the reference compares with the unreduced model."""
    for table in tables:
        difference = table.to_base.get(table.reference)
        means = table.means[table.stage]
        bases = [means[name] for name in _bases(comparison) if name in means]
        if difference is None or not bases:
            continue
        low, high = difference.bounds()
        verb = "may or may not differ from"
        if high < 0:
            verb = "is less accurate than"
        elif low > 0:
            verb = "is more accurate than"
        if not difference.known:
            verb = "is compared without an interval with"
        how = "neither fine-tuned" if table.stage == OFF_THE_SHELF else "trained equally long"
        yield (
            f"{table.reference} at {table.schedule} {verb} the unreduced model ({_mean(bases[0])}), {how}: "
            f"{points(difference)}."
        )


def _speed(comparison: Comparison, tables: Sequence[Standings]) -> Iterator[str]:
    """How many methods are faster than the base, and by how much; ranges are over seeds."""
    batches = batch_sizes(comparison.frame)
    if timed := timed_sizes(comparison.frame):
        yield from _session(comparison, tables, timed)
        return
    if not batches:
        return
    name = f"latency_b{batches[-1]}_ratio"
    for table in tables:
        frame = comparison.frame
        own = frame[(frame["schedule"] == table.schedule) & (frame["count"] != "masked")].dropna(subset=[name])
        if own.empty:
            continue
        rows = own.sort_values(name).to_dict("records")
        shown = [rows[0], *(row for row in rows[1:] if row["method"] == table.reference)]
        times = ", ".join(f"{row['method']} takes {_time(comparison, row, name)}" for row in shown)
        faster = sum(row[name] < 1 for row in rows)
        yield (
            f"In measured time at {table.schedule}, batch {batches[-1]}, {faster} of {len(rows)} are faster than the "
            f"base: {times}."
        )


def _session(comparison: Comparison, tables: Sequence[Standings], batches: Sequence[int]) -> Iterator[str]:
    """How many methods are significantly faster than the fastest unreduced model in the timing session."""
    *smaller, largest = batches
    name = f"timed_b{largest}_speedup"
    for table in tables:
        rows = [row for row in comparison.rows if row["schedule"] == table.schedule and row["count"] != "masked"]
        rows = sorted((row for row in rows if not isnan(row[name])), key=lambda row: -row[name])
        if not rows:
            continue
        fastest = [rows[0], *(row for row in rows[1:] if row["method"] == table.reference)]
        times = ", ".join(f"{row['method']} {_times(row, name)}" for row in fastest)
        text = (
            f"In measured time at {table.schedule}, batch {largest}, {_faster(rows, largest)} are faster than the "
            f"fastest unreduced model: {times}"
        )
        others = [f"at batch {batch}, {_faster(rows, batch)}" for batch in smaller]
        yield "; ".join([text, *others]) + "."


def _faster(rows: Sequence[Row], batch: int) -> str:
    """How many of the rows that were timed at a batch size are faster: "3 of 20"."""
    name = f"timed_b{batch}_speedup"
    timed = [row for row in rows if not isnan(row[name])]
    return f"{sum(row[f'{name}_low'] > 1 for row in timed)} of {len(timed)}"


def _times(row: Row, name: str) -> str:
    """ "by a factor of 1.32 [1.30, 1.34], where its MACs promise 1.61"."""
    ends = f"[{fixed(row[f'{name}_low'], 2)}, {fixed(row[f'{name}_high'], 2)}]"
    return f"by a factor of {fixed(row[name], 2)} {ends}, where its MACs promise {fixed(row['speedup_promised'], 2)}"


def _time(comparison: Comparison, row: Row, name: str) -> str:
    cells = comparison.cells
    own = 100 * cells.loc[(cells["schedule"] == row["schedule"]) & (cells["method"] == row["method"]), name].dropna()
    least = f"{own.min():.0f}"
    most = f"{own.max():.0f}"
    spread = f" ({least} to {most} % over seeds)" if least != most else ""
    return f"{100 * row[name]:.0f} % of its time{spread}"


def _null(comparison: Comparison) -> Iterator[str]:
    """How much the null row differs, and how often null rows are called different."""
    nulls = [(table, null) for table in comparison.tables.values() for null in table.nulls.values()]
    if not nulls:
        return
    table, null = nulls[-1]
    rate = comparison.null_rate
    called = (
        f"; such pairs are called different {rate.called} of {rate.of} times (exact 95 % interval "
        f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %)"
    )
    yield (
        f"The null row {null.difference.a}, the same method fine-tuned with another seed, differs by "
        f"{points(null.difference)} at {table.schedule}{called if rate.of else ''}."
    )


def _mean(mean: Estimate) -> str:
    low, high = (fixed(end, 1) for end in mean.bounds())
    return f"{fixed(mean.value, 1)} %" + (f" [{low}, {high}]" if mean.known else "")
