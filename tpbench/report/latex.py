"""Tables in LaTeX, for \\input in a document that loads booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tpbench.report.column import Column
from tpbench.report.frame import Comparison
from tpbench.report.layout import Row, failure, groups, left_out

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "≤": r"$\leq$"}
TEX |= {sign: f"\\{sign}" for sign in "%_&#${}"} | {sign: f"${sign}$" for sign in "<>|"}
TEX |= {"†": r"$\dagger$", "‡": r"$\ddagger$", "↓": r"$\downarrow$"}
TRANSLATED = str.maketrans(TEX)


def latex(comparison: Comparison, accuracy: Sequence[Column], cost: Sequence[Column], note: str) -> str:
    """Two floats of one machine: accuracy, with the note in its caption, and cost."""
    frame = comparison.frame
    about = f"{frame['machine'].iloc[0]}, recipe {frame['recipe'].iloc[0]}"
    partial = "".join(f" Seeds left out: {line}." for line in left_out(comparison.rows))
    lines = ["% Made by python -m tpbench report. Needs \\usepackage{booktabs}, nothing else."]
    lines += _float(comparison, accuracy, name="accuracy", caption=f"Accuracy: {about}. {note}{partial}")
    lines += _float(comparison, cost, name="cost", caption=f"Cost: {about}.")
    return "\n".join([*lines, ""])


def _float(comparison: Comparison, columns: Sequence[Column], name: str, caption: str) -> list[str]:
    columns = [column for column in columns if column.narrow]
    return [
        "\\begin{table*}",
        "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{tex(caption)}}}",
        f"\\label{{tab:{comparison.machine}-{name}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "\\toprule",
        _line(tex(column.head) for column in columns),
        _line(tex(column.unit) for column in columns),
        *_body(comparison, columns),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table*}",
    ]


def _body(comparison: Comparison, columns: Sequence[Column]) -> Iterator[str]:
    for schedule, rows in groups(comparison.rows):
        yield "\\midrule"
        if not rows[0]["unreduced"]:
            yield _line([f"\\multicolumn{{{len(columns)}}}{{l}}{{Schedule {tex(schedule)}}}"])
        for row in rows:
            yield _row(row, columns)


def _row(row: Row, columns: Sequence[Column]) -> str:
    if failure(row):
        return _line([tex(row["method"]), f"\\multicolumn{{{len(columns) - 1}}}{{l}}{{{tex(failure(row))}}}"])
    texts = [tex(column.text(row)) for column in columns]
    if row["stands_alone"]:
        texts = [
            f"\\textbf{{{text}}}" if column.name == "fine_tuned_top1_percent" else text
            for column, text in zip(columns, texts)
        ]
    return _line(texts)


def _line(texts: Iterable[str]) -> str:
    """A line of a table. LaTeX would read [ or * at its start as an option of the line break before it."""
    line = " & ".join(texts)
    return f"{'{}' if line.startswith(('[', '*')) else ''}{line} \\\\"


def tex(text: str) -> str:
    """Text that LaTeX prints as it stands; other signs outside ASCII become question marks."""
    return text.translate(TRANSLATED).encode("ascii", "replace").decode()
