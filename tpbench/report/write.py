"""The report of a results folder: every table and figure, and the README that opens with the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tpbench.errors import UsageError
from tpbench.record import Record, replace_text
from tpbench.report import bands, columns, first, forest, learned, overview, pareto, sessions, tables
from tpbench.report.contrast import Contrast
from tpbench.report.findings import findings
from tpbench.report.frame import Comparison
from tpbench.report.layout import failure
from tpbench.report.markdown import escape, table
from tpbench.report.results import Results


def write(folder: Path, contrast: Contrast | None = None) -> list[Path]:
    """Write OUT/README.md, OUT/tables and OUT/figures from OUT/records and OUT/timing; return the paths written.

    contrast: which method the others are compared with; by default what the folder keeps, or else what the records'
    recipe declares.
    """
    return write_results(Results.of(folder, contrast))


def write_results(results: Results) -> list[Path]:
    """The same from what was compared before. Raises UsageError for a folder without records and sessions."""
    folder = results.folder
    comparisons = results.comparisons
    if not comparisons and not results.sessions:
        raise UsageError(f"{folder} holds no records and no timing session")
    paths = [folder / "README.md", *sessions.write(folder, results.sessions)]
    if not comparisons:
        replace_text(folder / "README.md", sessions.readme(folder.resolve().name, results.sessions))
        return paths
    for comparison in comparisons:
        paths += tables.write(folder, comparison)
        drawn = [forest.draw(comparison, folder / "figures" / f"{comparison.machine}-forest.png")]
        drawn.append(pareto.draw(comparison, folder / "figures" / f"{comparison.machine}-pareto.png"))
        paths += [own for path in drawn if path is not None for own in (path, path.with_suffix(".pdf"))]
    paths += filter(None, [learned.draw(folder)])
    replace_text(folder / "README.md", readme(folder, comparisons))
    return paths


def readme(folder: Path, comparisons: Sequence[Comparison]) -> str:
    """The findings, then what lies in the folder, where it was measured, and what each column means."""
    lines = [f"# {folder.resolve().name}", ""]
    for comparison in comparisons:
        lines += _machine(comparison)
    lines += learned.section(folder, comparisons)
    timed = any(comparison.session is not None for comparison in comparisons)
    what = "From `records/` and `timing/` alone" if timed else "From `records/` alone"
    lines += ["## How to make this again", "", f"{what}, in this folder:", ""]
    lines += ["    python -m tpbench report .", ""]
    lines += ["## Columns of `tables/MACHINE.csv`", "", INTRODUCTION, ""]
    lines += _meanings(columns.meanings(timed))
    lines += ["## Columns of `tables/MACHINE-pairs.csv`", "", "`machine`, `schedule`, and:", ""]
    lines += _meanings({column.name: column.meaning for column in columns.PAIRS})
    lines += ["## Columns of `tables/MACHINE-cells.csv`", "", CELLS, ""]
    lines += sessions.meanings() if timed else []
    return "\n".join(lines)


INTRODUCTION = """One row for every schedule and method, over seeds; the base keeps every token and has schedule `none`.
Intervals are at 95 %, of the linear model top-1 ~ method + seed with the residual that the rows of a table share; rows
that scatter far more than the others keep their own. Where records hold outcomes, differences contain the noise of the
test images too. Intervals are not corrected for the number of comparisons; verdicts and ranks are. Numbers are
unrounded; `MACHINE.md` and `MACHINE.tex` show them rounded."""

CELLS = """One row for every record, in the record's units: `macs_...` are multiply-adds per image, `..._top1` shares
from 0 to 1, `..._loss` mean cross-entropy in nats (`..._validation_...`: on images set apart from training, the others
on the test images), `latency_bB_...` seconds of one forward pass of B images (`unreduced_latency_...`: of the base,
sampled in turns), `..._ratio` the first median over the second, `peak_memory_bytes_...` bytes, `training_...`
those of fine-tuning (`..._images_per_second` and `..._outside_model_share` of its timed steps), `config` the method's
own settings as JSON. A failed record has an `error` and no numbers. Raw samples, MACs by layer and the environment are
in the record itself."""


def _machine(comparison: Comparison) -> list[str]:
    """Findings, the forest plot, the overview, the tables, then everything else that is known of one machine."""
    machine = comparison.machine
    lines = [f"## {machine}", "", *(f"- {escape(sentence)}" for sentence in findings(comparison)), ""]
    if any(own.judgements for own in comparison.tables.values()):
        lines += [f"![differences to the reference](figures/{machine}-forest.png)", ""]
    lines += overview.section(comparison)
    lines += first_tables(comparison)
    if comparison.session is not None:
        lines += sessions.section(comparison.session)
    return [*lines, *_about(comparison)]


def first_tables(comparison: Comparison, schedule: str | None = None) -> list[str]:
    """The first tables with their notes, of one schedule or of all that are shown first."""
    lines = []
    for section in first.sections(comparison):
        if schedule in (None, section.title):
            lines += [f"### {section.title}", "", *_section(section)]
            lines += [*(f"- {escape(note)}" for note in section.notes), ""]
    return [*lines, *(f"- {escape(remark)}" for remark in first.remarks(comparison)), ""]


def _section(section: first.Section) -> list[str]:
    rows = []
    for family, own in section.groups:
        if family:
            rows.append([f"*{family}*"])
        for row in own:
            texts = [escape(column.short(row)) for column in section.columns]
            rows.append([escape(row["method"]), escape(failure(row))] if failure(row) else texts)
    return table([column.heading for column in section.columns], rows)


def _about(comparison: Comparison) -> list[str]:
    """The files of one machine, and what the records were measured on."""
    machine = comparison.machine
    records = comparison.records
    failed = sum(record.failed for record in records)
    unreachable = sum(not record.reachable for record in records)
    counts = f"{len(records)} records"
    counts += f", {failed} failed" if failed else ""
    counts += f", {unreachable} of budgets that a method cannot meet" if unreachable else ""
    return [
        f"Recipe {records[0].recipe} ({records[0].recipe_digest}), {counts}.",
        "",
        *dict.fromkeys(f"- {measured_on(record)}" for record in _alike_once(records)),
        "",
        f"[wide tables](tables/{machine}.md), [LaTeX](tables/{machine}.tex), [all columns](tables/{machine}.csv),",
        *(f"[by {axis.what}](tables/{machine}-by-{name}.md)," for name, axis in bands.axes(comparison.frame).items()),
        f"[records](tables/{machine}-cells.csv), [pairs of methods](tables/{machine}-pairs.csv)",
        "",
        f"![accuracy against cost](figures/{machine}-pareto.png)",
        "",
    ]


def _alike_once(records: Sequence[Record]) -> Iterable[Record]:
    """A record for every environment and commit; the store keeps equal ones once, so that most are the same object."""
    found: dict[tuple[int, int], Record] = {}
    for record in records:
        if record.environment:
            found.setdefault((id(record.environment), id(record.git)), record)
    return found.values()


def measured_on(record: Record) -> str:
    """What a record was measured on, in one line."""
    about = record.environment
    packages = ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items() if version)
    threads = f"threads: {about['threads']}" if "threads" in about else ""
    sums = "deterministic algorithms" if about.get("deterministic") else ""
    commit = ""
    if record.git:
        commit = f"commit {record.git['commit'][:12]}" + (", changed" if record.git["changed"] else "")
    parts = (about.get("device"), threads, about.get("dtype"), sums, packages, commit)
    return "; ".join(str(part) for part in parts if part)


def _meanings(meanings: dict[str, str]) -> list[str]:
    rows = [[f"`{name}`", meaning] for name, meaning in meanings.items()]
    return table(["column", "meaning and unit"], rows, left=2)
