"""Tables as files: csv (everything, unrounded), Markdown and LaTeX (rounded, with units)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from tpbench.record import replace_text
from tpbench.report import bands
from tpbench.report.layout import NOTE, Column, Row, accuracy, cost, failure, groups, left_out, sections
from tpbench.report.terminal import show

__all__ = ["csv", "latex", "markdown", "show", "write"]


def write(folder: Path, cells: pd.DataFrame, frame: pd.DataFrame, pairs: pd.DataFrame) -> list[Path]:
    """One machine's tables under folder/tables. The frames hold that machine alone."""
    machine = frame["machine"].iloc[0]
    texts = {
        f"{machine}.csv": csv(frame),
        f"{machine}-cells.csv": csv(cells),
        f"{machine}-pairs.csv": csv(pairs),
        f"{machine}.md": markdown(frame),
        **{f"{machine}-by-{name}.md": grouped(frame, name) for name in bands.axes(frame)},
        f"{machine}.tex": latex(frame),
    }
    for name, text in texts.items():
        replace_text(folder / "tables" / name, text)
    return [folder / "tables" / name for name in texts]


def csv(frame: pd.DataFrame) -> str:
    """Every column, floats in full, blanks empty."""
    return frame.to_csv(index=False, lineterminator="\n")


# ------------------------------------------------------------------------------------------ Markdown


def markdown(frame: pd.DataFrame) -> str:
    """Two tables for every schedule, accuracy and cost, each opened by the base."""
    first = frame.iloc[0]
    lines = [f"# {first['machine']}: {first['recipe']}", "", f"Recipe digest {first['recipe_digest']}. {NOTE}", ""]
    for schedule, rows in sections(frame):
        lines += [f"## {schedule}", "", *_markdown_table(accuracy(), rows), *_markdown_table(cost(frame), rows)]
    partial = [f"- {_markdown_text(line)}" for line in left_out(frame)]
    return "\n".join(lines + (["Seeds left out:", "", *partial, ""] if partial else []))


def grouped(frame: pd.DataFrame, by: str) -> str:
    """A table for every band of cost, whatever the schedules."""
    first, about = frame.iloc[0], " ".join(bands.__doc__.split("\n\n")[1].split())
    lines = [f"# {first['machine']}: {first['recipe']} by {bands.axes(frame)[by].what}", "", about, ""]
    for title, rows in bands.banded(frame, by):
        lines += [f"## {title}", "", *_markdown_table(bands.columns(frame), rows)]
    return "\n".join(lines)


def _markdown_table(columns: list[Column], rows: list[Row]) -> list[str]:
    heads = [", ".join(filter(None, (column.head, column.unit))) for column in columns]
    lines = [heads, [":--"] + ["--:"] * (len(columns) - 1)]
    for row in rows:
        texts = [_markdown_text(text) for text in _texts(row, columns)]
        if row["stands_alone"]:
            texts = [f"**{text}**" if _judged(column) else text for column, text in zip(columns, texts)]
        lines.append(texts + [""] * (len(columns) - len(texts)))
    return [f"| {' | '.join(texts)} |" for texts in lines] + [""]


def _texts(row: Row, columns: list[Column]) -> list[str]:
    """A row's texts; for a failed row its method and the reason."""
    return [row["method"], failure(row)] if failure(row) else [column.text(row) for column in columns]


def _judged(column: Column) -> bool:
    """Whether the column is the one that ranks go by."""
    return column.head == "Fine-tuned"


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", text)


# ------------------------------------------------------------------------------------------ LaTeX

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "≤": r"$\leq$"}
TEX |= {sign: f"\\{sign}" for sign in "%_&#${}"} | {sign: f"${sign}$" for sign in "<>|"}


def latex(frame: pd.DataFrame) -> str:
    """Two floats, accuracy and cost, to \\input into a document that loads booktabs."""
    about = f"{frame['machine'].iloc[0]}, recipe {frame['recipe'].iloc[0]}"
    partial = "".join(f" Seeds left out: {line}." for line in left_out(frame))
    lines = ["% Made by python -m tpbench report. Needs \\usepackage{booktabs}, nothing else."]
    lines += _latex_float(frame, accuracy(), "accuracy", f"Accuracy: {about}. {NOTE}{partial}")
    lines += _latex_float(frame, cost(frame), "cost", f"Cost: {about}.")
    return "\n".join([*lines, ""])


def _latex_float(frame: pd.DataFrame, columns: list[Column], name: str, caption: str) -> list[str]:
    columns = [column for column in columns if column.narrow]
    return [
        "\\begin{table*}",
        "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{tex(caption)}}}",
        f"\\label{{tab:{frame['machine'].iloc[0]}-{name}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "\\toprule",
        _latex_line(tex(column.head) for column in columns),
        _latex_line(tex(column.unit) for column in columns),
        *_latex_body(frame, columns),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table*}",
    ]


def _latex_body(frame: pd.DataFrame, columns: list[Column]) -> Iterator[str]:
    for schedule, rows in groups(frame):
        yield "\\midrule"
        if not rows[0]["unreduced"]:
            yield _latex_line([f"\\multicolumn{{{len(columns)}}}{{l}}{{Schedule {tex(schedule)}}}"])
        for row in rows:
            yield _latex_row(row, columns)


def _latex_row(row: Row, columns: list[Column]) -> str:
    texts = [tex(text) for text in _texts(row, columns)]
    if failure(row):
        texts[1] = f"\\multicolumn{{{len(columns) - 1}}}{{l}}{{{texts[1]}}}"
    if row["stands_alone"]:
        texts = [f"\\textbf{{{t}}}" if _judged(column) else t for column, t in zip(columns, texts)]
    return _latex_line(texts)


def _latex_line(texts: Iterable[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


def tex(text: str) -> str:
    """Text that LaTeX prints as it stands; other signs outside ASCII become question marks."""
    return "".join(TEX.get(sign, sign) for sign in text).encode("ascii", "replace").decode()
