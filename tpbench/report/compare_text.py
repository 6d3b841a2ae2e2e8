"""A comparison of two sides as sentences and as tables of at most 100 characters; `compare_json` makes the document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING

from tpbench.record import SCHEMA
from tpbench.report import worse
from tpbench.report.compare import IMAGES, A, B, Change, Changes
from tpbench.report.estimates import Estimate
from tpbench.report.families import BETTER, EQUIVALENT, NOT_INFERIOR, UNDECIDED, WORSE
from tpbench.report.layout import Row, Shown, fixed
from tpbench.report.phrases import are, counted
from tpbench.report.sides import Side
from tpbench.report.standings import FINE_TUNED, OFF_THE_SHELF
from tpbench.report.terminal import line_width, tabulate

if TYPE_CHECKING:
    from rich.console import Console

MOST_NAMED = 6  # rows that a sentence names; it counts the rest
SAME = "same"


def show(a: Side, b: Side, compared: Sequence[Changes], console: Console) -> None:
    """Print what was compared, the findings, and for each schedule a table of the rows that changed."""
    for changes in compared:
        for sentence in [*heads(a, b, changes), *findings(changes)]:
            _print(console, fill(f"- {sentence}", line_width(console), subsequent_indent="  "))
        _print(console, "")
        for schedule in dict.fromkeys(row.schedule for row in changes.rows):
            rows = [_texts(row) for row in _ordered(changes, schedule)]
            if not rows:
                continue
            tabulate(console, title=schedule, columns=_columns(rows), groups=[("", rows)])
            _print(console, "")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------ sentences


def heads(a: Side, b: Side, changes: Changes) -> Iterator[str]:
    """One sentence about each side, and one if the recipes differ."""
    sides = zip((A, B), (a, b), changes.machines, changes.recipes, changes.records)
    for name, side, machine, recipe, records in sides:
        schemas = sorted({record.schema for record in records})
        schema = "" if schemas == [SCHEMA] else f", schema {' and '.join(map(str, schemas))}"
        commits = list(dict.fromkeys(record.git["commit"][:12] for record in records if record.git))
        code = f", measured with {_listed(commits, 'commit')}" if commits else ""
        yield f"{name}: {side.text}, {machine}, recipe {recipe}, {len(records)} records{schema}{code}."
    if not changes.same_recipe:
        yield "The recipes differ: the changes below include the effect of the recipe."


def findings(changes: Changes) -> list[str]:
    """What changed, the most important first."""
    if not changes.rows:
        return ["The sides have no row in common.", *_only_on_one_side(changes)]
    return [*_accuracy(changes), *_macs(changes), *_tokens(changes), *_speed(changes), *_gaps(changes)]


def _accuracy(changes: Changes) -> Iterator[str]:
    rows = [row for row in changes.rows if row.paired]
    if not rows:
        yield "No row has an accuracy for a seed that both sides have."
        return
    for stage, words in ((FINE_TUNED, "fine-tuned"), (OFF_THE_SHELF, "off the shelf")):
        own = [row for row in rows if row.stage == stage]
        if own:
            yield from _verdicts_at(changes, own, words)
    judged = changes.judged
    if judged:
        error = median(row.difference.standard_error for row in judged)
        usual = Estimate(0.0, standard_error=error, df=median(row.difference.df for row in judged), seeds=0)
        corrected = f", {usual.detectable(len(judged)):.1f} after Holm over {len(judged)}" if len(judged) > 1 else ""
        yield (
            f"The smallest detectable change of a typical row (two-sided 5 %, power 0.8) is {usual.detectable():.1f} "
            f"points{corrected}."
        )
    by_seed = sum(row.paired != IMAGES for row in rows)
    if by_seed:
        unpaired = f"{counted(by_seed, 'row')} {are(by_seed)} paired by seed, not by image"
        yield f"{unpaired}: intervals leave out the noise of the test images."


def _verdicts_at(changes: Changes, rows: Sequence[Change], stage: str) -> Iterator[str]:
    """Sentences on the rows of one stage, which is given in words."""
    counts = [row.difference.seeds for row in rows]
    seeds = f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    moved = [row for row in rows if not row.identical]
    noun = "common seed" if max(counts) == 1 else "common seeds"
    what = f"Top-1 ({stage}), B minus A, over {seeds} {noun}"
    if len(moved) < len(rows):
        yield f"{what}: {counted(len(rows) - len(moved), 'row')} of {len(rows)} classify every image alike."
    if moved:
        yield f"{what}: of {counted(len(moved), 'row')}, {', '.join(verdicts(changes, moved))}."


def verdicts(changes: Changes, rows: Sequence[Change]) -> Iterator[str]:
    """How many rows are better, worse, equivalent or undecided, with the largest changes."""
    for verdict in (BETTER, WORSE):
        own = [row for row in rows if row.judgement.verdict == verdict]
        if not own:
            yield f"none is {verdict}"
            continue
        far = max(own, key=lambda row: abs(row.difference.value))
        most = "" if len(own) == 1 else "most: "
        yield f"{len(own)} {are(len(own))} {verdict} ({most}{worse.accuracy(far)})"
    for verdict, words in (
        (EQUIVALENT, f"equivalent within ±{changes.margin:g}"),
        (NOT_INFERIOR, f"not lower by {changes.margin:g}"),
        (UNDECIDED, "undecided"),
    ):
        number = sum(row.judgement.verdict == verdict for row in rows)
        if number:
            yield f"{number} {are(number)} {words}"


def _macs(changes: Changes) -> Iterator[str]:
    rows = [row for row in changes.rows if not isnan(row.macs_percent)]
    moved = sorted((row for row in rows if row.macs_percent != 0), key=lambda row: -abs(row.macs_percent))
    if rows and not moved:
        yield f"MACs are the same in all {counted(len(rows), 'row')}."
    elif moved:
        listed = [f"{row.name}: {_percent(row.macs_percent)}" for row in moved]
        yield f"MACs differ in {len(moved)} of {counted(len(rows), 'row')}: {_listed(listed, 'row')}."


def _tokens(changes: Changes) -> Iterator[str]:
    rows = [row for row in changes.rows if row.costs is not None]
    moved = [row for row in rows if row.costs[0].tokens != row.costs[1].tokens]
    if rows and not moved:
        yield f"Token counts are the same in all {counted(len(rows), 'row')}."
    elif moved:
        listed = [f"{row.name}: {row.costs[0].tokens} -> {row.costs[1].tokens}" for row in moved]
        yield f"Token counts differ in {len(moved)} of {counted(len(rows), 'row')}: {_listed(listed, 'row')}."


def _speed(changes: Changes) -> Iterator[str]:
    timed = [(row, change) for row in changes.rows for change in row.times]
    if not timed:
        yield "Speed is not compared: no row was timed in a timing session of both sides."
        return
    longer = [f"{row.name}: {worse.speed(change)}" for row, change in timed if change.log_ratio.bounds()[0] > 0]
    shorter = [f"{row.name}: {worse.speed(change)}" for row, change in timed if change.log_ratio.bounds()[1] < 0]
    yield (
        f"Time relative to the unreduced model of the same session, {len(timed)} timed rows (95 % intervals over "
        f"rounds, not corrected): {_how_many(longer, 'slower')}; {_how_many(shorter, 'faster')}."
    )


def _how_many(rows: Sequence[str], word: str) -> str:
    """How many rows are slower or faster, and which: "2 slower: ...", or "0 faster"."""
    return f"{len(rows)} {word}: {_listed(rows, 'row')}" if rows else f"0 {word}"


def _gaps(changes: Changes) -> Iterator[str]:
    """Rows without numbers, notes, and rows that only one side has."""
    for row in changes.rows:
        for reason in dict.fromkeys(row.no_numbers.values()):
            sides = " and ".join(side for side, own in row.no_numbers.items() if own == reason)
            yield f"{row.name} has no numbers in {sides}: {reason}"
        for side, seeds in row.failed_seeds.items():
            yield f"{row.name} has no numbers in {side} with {worse.listed_seeds(seeds)}."
    notes = [f"{row.name}: {note}" for row in changes.rows for note in row.notes]
    if notes:
        yield f"Differences in settings or pairing: {_listed(notes, 'note')}."
    yield from _only_on_one_side(changes)


def _only_on_one_side(changes: Changes) -> Iterator[str]:
    for side, keys in changes.only.items():
        for schedule in dict.fromkeys(schedule for schedule, _ in keys):
            names = [method for own, method in keys if own == schedule]
            yield f"Only in {side}, at {schedule}: {', '.join(names)}."


def _listed(names: Sequence[str], what: str) -> str:
    """The names, or the first ones and how many more there are."""
    more = len(names) - MOST_NAMED
    text = "; ".join(names[:MOST_NAMED])
    return text if more <= 0 else f"{text}; {counted(more, f'more {what}')}"


def _percent(value: float) -> str:
    return f"{value:+.2g} %" if abs(value) < 1 else f"{fixed(value, 1, '+')} %"


# ------------------------------------------------------------------------------------------ the table


def unchanged(row: Change) -> bool:
    """Whether a row is left out of the tables: it was not timed, and nothing changed or a side has no numbers."""
    if row.times or A in row.no_numbers or B in row.no_numbers:
        return not row.times
    return row.identical and _macs_text(row) in ("", SAME) and _tokens_text(row) in ("", SAME)


def _ordered(changes: Changes, schedule: str) -> list[Change]:
    """The rows of a schedule to show, the largest loss first; rows without a difference come last."""
    rows = [row for row in changes.rows if row.schedule == schedule and not unchanged(row)]
    return sorted(rows, key=lambda row: (isnan(row.difference.value), row.difference.value, row.method))


def _texts(row: Change) -> Row:
    """A row's texts by heading, with the entries by which `tabulate` chooses the style."""
    before, after = (fixed(value, 1) for value in row.top1)
    texts = {"Method": row.method, "A": before, "B": after, "Change": points_text(row), "Verdict": verdict(row)}
    texts |= {"MACs": _macs_text(row), "Tokens": _tokens_text(row)}
    for change in row.times:
        low, high = (fixed(end, 1, "+") for end in change.bounds_percent)
        texts[f"Time|{change.group}, {change.mode}"] = f"{fixed(change.percent, 1, '+')} [{low}, {high}]"
    return texts | {"unreduced": False, "stands_alone": verdict(row) in (BETTER, WORSE)}


def points_text(row: Change) -> str:
    """The change of a row's accuracy with half of its interval, or on which sides it has no numbers."""
    if row.no_numbers:
        return f"no numbers in {' and '.join(row.no_numbers)}"
    value = fixed(row.difference.value, 1, "+")
    return f"{value} ±{fixed(row.difference.half_width(), 1)}" if row.difference.known else value


def verdict(row: Change) -> str:
    """The verdict on a row's accuracy; "identical" if both sides classify every image alike."""
    if row.identical:
        return "identical"
    return "" if row.judgement is None else row.judgement.verdict


def _macs_text(row: Change) -> str:
    if isnan(row.macs_percent):
        return ""
    return SAME if row.macs_percent == 0 else _percent(row.macs_percent)


def _tokens_text(row: Change) -> str:
    if row.costs is None:
        return ""
    before, after = row.costs
    return SAME if before.tokens == after.tokens else f"{before.tokens} -> {after.tokens}"


def _columns(rows: Sequence[Row]) -> list[Shown]:
    """The columns of a table. Counts that are the same in all rows have no column: a sentence says so."""
    units = {"Method": "", "A": "top-1 %", "B": "top-1 %", "Change": "points", "Verdict": "", "MACs": "", "Tokens": ""}
    names = [
        name for name in units if name not in ("MACs", "Tokens") or any(row[name] not in ("", SAME) for row in rows)
    ]
    timed = dict.fromkeys(name for row in rows for name in row if name.startswith("Time|"))
    shown = [Shown(name, units[name], lambda row, name=name: row[name]) for name in names]
    return shown + [Shown("Time, %", name[5:], lambda row, name=name: row.get(name, "")) for name in timed]
