"""The report of a results folder: every table and figure, and the README that explains them."""

from __future__ import annotations

from pathlib import Path

from tpbench.errors import UsageError
from tpbench.record import Record, Store, replace_text
from tpbench.report import bands, columns, learned, pareto, tables
from tpbench.report.frame import by_machine, cells, comparison, pairs


def write(folder: Path) -> list[Path]:
    """Write OUT/README.md, OUT/tables and OUT/figures from OUT/records; return the paths written."""
    machines = by_machine(Store.of(folder))
    if not machines:
        raise UsageError(f"{folder} holds no records")
    methods = sorted({r.method for records in machines.values() for r in records if not r.unreduced})
    paths = [folder / "README.md"]
    for machine, records in machines.items():
        rows = cells(records)
        frame = comparison(rows)
        paths += tables.write(folder, rows, frame, pairs(rows))
        paths.append(pareto.draw(frame, folder / "figures" / f"{machine}-pareto.png", methods))
    paths += filter(None, [learned.draw(folder)])
    found = sorted((folder / "learned").glob("*.json"))
    learnt = {path.name: learned.summary(learned.read(path)) for path in found}
    replace_text(folder / "README.md", readme(folder.resolve().name, machines, learnt))
    return paths


def readme(name: str, machines: dict[str, list[Record]], learnt: dict[str, str]) -> str:
    """What lies in the folder, where it was measured, what each column means, how to make it again."""
    lines = [f"# {name}", "", "Made from `records/` alone. To make it again, in this folder:", ""]
    lines += ["    python -m tpbench report .", ""]
    for machine, records in machines.items():
        lines += _machine(machine, records)
    if learnt:
        lines += ["## Learned counts", "", *(f"- [{file}](learned/{file}): {what}" for file, what in learnt.items())]
        lines += ["", "![K against depth](figures/learned.png)", ""]
    lines += ["## Columns of `tables/MACHINE.csv`", "", INTRODUCTION, ""]
    lines += _meanings(columns.MEANINGS)
    lines += ["## Columns of `tables/MACHINE-pairs.csv`", "", *_meanings(columns.PAIR_MEANINGS)]
    lines += ["## Columns of `tables/MACHINE-cells.csv`", "", CELLS, ""]
    return "\n".join(lines)


INTRODUCTION = """One row for every schedule and method, over seeds; the base keeps every token and has schedule `none`.
Intervals are Student's t over seeds at 95 %, n - 1 degrees of freedom: mean ± half-width. They are not corrected for
the number of comparisons. Numbers are unrounded; `MACHINE.md` and `MACHINE.tex` show them rounded."""

CELLS = """One row for every record, in the record's units: `macs_...` are multiply-adds per image, `..._top1` shares
from 0 to 1, `..._loss` mean cross-entropy in nats (`..._validation_...`: on images set apart from training, the others
on the test images), `latency_bB_...` seconds of one forward pass of B images (`unreduced_latency_...`: of the base,
sampled in turns), `..._ratio` the first median over the second, `peak_memory_bytes_...` bytes, `training_...`
those of fine-tuning (`..._images_per_second` and `..._outside_model_share` of its timed steps), `config` the method's
own settings as JSON. A failed record has an `error` and no numbers. Raw samples, MACs by layer and the environment are
in the record itself."""


def _machine(machine: str, records: list[Record]) -> list[str]:
    failed = [record for record in records if record.error is not None]
    counts = f"{len(records)} records" + (f", {len(failed)} failed" if failed else "")
    return [
        f"## {machine}",
        "",
        f"Recipe {records[0].recipe} ({records[0].recipe_digest}), {counts}.",
        "",
        *dict.fromkeys(f"- {_environment(record)}" for record in records if record.environment),
        "",
        f"[rounded tables](tables/{machine}.md), [LaTeX](tables/{machine}.tex), [all columns](tables/{machine}.csv),",
        *(f"[by {axis.what}](tables/{machine}-by-{name}.md)," for name, axis in bands.axes(cells(records)).items()),
        f"[records](tables/{machine}-cells.csv), [pairs of methods](tables/{machine}-pairs.csv)",
        "",
        f"![accuracy against cost](figures/{machine}-pareto.png)",
        "",
    ]


def _environment(record: Record) -> str:
    """What a record was measured on, in one line."""
    about = record.environment
    packages = ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items() if version)
    threads = f"threads: {about['threads']}" if "threads" in about else ""
    commit = f"commit {record.git['commit'][:12]}{', changed' * record.git['changed']}" if record.git else ""
    return "; ".join(str(part) for part in (about.get("device"), threads, about.get("dtype"), packages, commit) if part)


def _meanings(meanings: dict[str, str]) -> list[str]:
    rows = [f"| `{name}` | {meaning} |" for name, meaning in meanings.items()]
    return ["| column | meaning and unit |", "|:--|:--|", *rows, ""]
