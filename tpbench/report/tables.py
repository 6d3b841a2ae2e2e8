"""Tables as files: CSV (everything, unrounded), Markdown and LaTeX (rounded, with units)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tpbench.record import replace_text
from tpbench.report import bands, timed_columns
from tpbench.report.column import Column
from tpbench.report.columns import chosen
from tpbench.report.first import MARKS, MISSED, TIMED
from tpbench.report.frame import Comparison, batch_sizes, timed_sizes
from tpbench.report.latex import latex
from tpbench.report.layout import Row, blank, failure, left_out, sections
from tpbench.report.markdown import escape, table

ACCURACY = (
    "method",
    "family",
    "tokens_achieved",
    "gmacs",
    "macs_share",
    "reducer_share",
    "off_the_shelf_top1_percent",
    "fine_tuned_top1_percent",
    "base_difference_points",
    "reference_difference_points",
    "verdict",
    "tuned",
    "seeds",
    "rank",
    "paper_top1",
    "paper_share",
)
NOTE = (
    "Top-1 in percent, differences in percentage points; ± is the half-width of the 95 % interval of the linear model "
    "top-1 ~ method + seed with the table's pooled residual, absent below 2 degrees of freedom; the ends are given "
    "where 100 % cuts it. Differences are paired by seed and, where outcomes are known, contain the noise of the test "
    "images too. Verdicts are against the reference, after Holm over the table's methods; ranks are simultaneous 95 % "
    "sets over any two methods; bold is significantly better than every other. Times are medians (95th percentile) of "
    "one forward pass; MACs promise a speed-up, the clock shows another. The paper's numbers are for DeiT-S on "
    "ImageNet, at a share of MACs at most 5 points away."
)


def write(folder: Path, comparison: Comparison) -> list[Path]:
    """One machine's tables under folder/tables."""
    machine = comparison.machine
    texts = {
        f"{machine}.csv": csv(comparison.frame),
        f"{machine}-cells.csv": csv(comparison.cells),
        f"{machine}-pairs.csv": csv(comparison.pairs),
        f"{machine}.md": markdown(comparison),
        **{f"{machine}-by-{name}.md": grouped(comparison, name) for name in bands.axes(comparison.frame)},
        f"{machine}.tex": latex(comparison, accuracy(), cost=cost(comparison.frame), note=f"{NOTE} {MARKS}"),
    }
    for name, text in texts.items():
        replace_text(folder / "tables" / name, text)
    return [folder / "tables" / name for name in texts]


def accuracy() -> list[Column]:
    """What is kept, what it costs in MACs, and what is left of the accuracy."""
    return chosen(ACCURACY, [])


def cost(frame: pd.DataFrame) -> list[Column]:
    """Seconds and bytes; of the seconds, those of the timing session alone where there is one."""
    batches = batch_sizes(frame)
    timed = timed_sizes(frame)
    names = ["method"]
    if timed:
        names += timed_columns.names(timed)
    else:
        names += [f"latency_b{batch}_median_ms" for batch in batches]
        names += [f"latency_b{batch}_ratio" for batch in batches]
        names += ["speedup_promised", "speedup_reached", "speedup_share_reached", "images_per_second"]
    names += ["peak_memory_mib", "unreduced_peak_memory_mib", "fine_tuning_seconds", "training_images_per_second"]
    return chosen(names, batches, timed)


def csv(frame: pd.DataFrame) -> str:
    """Every column, floats in full, blanks empty: what `DataFrame.to_csv` writes, in a fifth of its time."""
    columns = (_texts(frame[name]) for name in frame)
    return "\n".join([",".join(map(_quoted, frame)), *map(",".join, zip(*columns)), ""])


def _texts(column: pd.Series) -> list[str]:
    """A column's values as the fields of a CSV file."""
    values = column.tolist()
    if column.dtype.kind == "f":
        return ["" if value != value else repr(value) for value in values]
    if column.dtype == object:  # of several types: 1 and True are equal, and not the same text
        return ["" if blank(value) else _quoted(str(value)) for value in values]
    known = {value: "" if blank(value) else _quoted(str(value)) for value in set(values)}
    return [known[value] for value in values]


def _quoted(text: str) -> str:
    """A field, in quotes where the text has a sign that ends fields or lines."""
    if any(sign in text for sign in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


# ------------------------------------------------------------------------------------------ Markdown


def markdown(comparison: Comparison) -> str:
    """Two tables for every schedule, accuracy and cost, each opened by the base, with the model that judges them."""
    frame = comparison.frame
    first = frame.iloc[0]
    about = f"Recipe digest {first['recipe_digest']}. {NOTE} {MARKS}"
    if comparison.session is not None:
        about += f" {TIMED} {escape(MISSED)}"
    wide = [accuracy(), cost(frame)]
    lines = [f"# {first['machine']}: {first['recipe']}", "", about, ""]
    for schedule, rows in sections(comparison.rows):
        lines += [f"## {schedule}", "", comparison.tables[schedule].resolution(), ""]
        lines += [line for columns in wide for line in rows_table(columns, rows)]
    partial = [f"- {escape(line)}" for line in left_out(comparison.rows)]
    return "\n".join(lines + (["Seeds left out:", "", *partial, ""] if partial else []))


def grouped(comparison: Comparison, by: str) -> str:
    """A table for every band of cost, whatever the schedules."""
    frame = comparison.frame
    first = frame.iloc[0]
    columns = bands.columns(frame)
    lines = [f"# {first['machine']}: {first['recipe']} by {bands.axes(frame)[by].what}", "", bands.EXPLANATION, ""]
    for title, rows in bands.banded(comparison, by):
        lines += [f"## {title}", "", *rows_table(columns, rows)]
    return "\n".join(lines)


def rows_table(columns: Sequence[Column | bands.Shown], rows: Sequence[Row]) -> list[str]:
    """The lines of a table; a failed row is its method and the reason, the accuracy of a row that stands alone bold."""
    lines = []
    for row in rows:
        texts = [escape(text) for text in texts_of(row, columns)]
        if row["stands_alone"]:
            texts = [
                f"**{text}**" if column.head == "Fine-tuned" and column.unit == "top-1 %" else text
                for column, text in zip(columns, texts)
            ]
        lines.append(texts)
    return table([column.heading for column in columns], lines)


def texts_of(row: Row, columns: Sequence[Column | bands.Shown]) -> list[str]:
    """A row's texts; for a failed row its method and the reason."""
    return [row["method"], failure(row)] if failure(row) else [column.text(row) for column in columns]
