"""Comparisons as text: csv (everything, unrounded), Markdown and LaTeX (rounded), and the terminal's table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from tpbench.record import replace_text
from tpbench.report.frame import batch_sizes

if TYPE_CHECKING:
    from rich.console import Console

NO_TERMINAL_WIDTH = 140  # characters, where the output is a file or a pipe
LONG_LIST = 4  # longer lists of token counts are shown by their ends
NOTE = (
    "Top-1 in percent, differences in percentage points; ± is the half-width of the 95 % interval over seeds "
    "(Student's t), blank with one seed. Differences are paired by seed with the base fine-tuned equally long. "
    "Methods whose paired intervals do not separate share a rank; bold separates from every other. "
    "Times are medians (95th percentile) of one forward pass."
)

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of a readable table: its two lines of heading, and a row's text."""

    head: str
    unit: str
    text: Callable[[Row], str]


def write(folder: Path, machine: str, cells: pd.DataFrame, frame: pd.DataFrame, pairs: pd.DataFrame) -> list[Path]:
    """One machine's tables under folder/tables; the frames hold that machine alone."""
    texts = {
        f"{machine}.csv": csv(frame),
        f"{machine}-cells.csv": csv(cells),
        f"{machine}-pairs.csv": csv(pairs),
        f"{machine}.md": markdown(frame),
        f"{machine}.tex": latex(frame),
    }
    paths = [folder / "tables" / name for name in texts]
    for path, text in zip(paths, texts.values()):
        replace_text(path, text)
    return paths


def csv(frame: pd.DataFrame) -> str:
    """Every column, floats in full, blanks empty."""
    return frame.to_csv(index=False, lineterminator="\n")


# ------------------------------------------------------------------------------------------ the readable columns


def accuracy(frame: pd.DataFrame) -> list[Column]:  # noqa: ARG001
    """What is kept, what it costs in MACs and what is left of the accuracy."""
    return [
        Column("Method", "", lambda row: row["method"]),
        Column("Tokens", "kept", _tokens),
        Column("GMACs", "per image", lambda row: significant(row["gmacs"], 4)),
        Column("MACs", "% of base", lambda row: fixed(100 * row["macs_share"], 1)),
        Column("Reducer", "% of MACs", lambda row: fixed(100 * row["reducer_share"], 2)),
        Column("Off the shelf", "top-1 %", lambda row: plus_minus(row, "off_the_shelf_top1_percent")),
        Column("Fine-tuned", "top-1 %", lambda row: plus_minus(row, "fine_tuned_top1_percent")),
        Column("To base", "points", lambda row: plus_minus(row, "base_difference_points", "+")),
        Column("Seeds", "n", _seeds),
        Column("Rank", "", lambda row: fixed(row["rank"], 0)),
        Column("Paper", "top-1 %", lambda row: fixed(row["paper_top1"], 2)),
        Column("Paper", "% of MACs", lambda row: fixed(100 * row["paper_share"], 1)),
    ]


def cost(frame: pd.DataFrame) -> list[Column]:
    """What the clock and the memory say."""
    batches = batch_sizes(frame)
    largest = f"batch {max(batches, default=0)}"
    return [
        Column("Method", "", lambda row: row["method"]),
        *(Column(f"Batch {batch}", "ms (p95)", _latency(batch)) for batch in batches),
        *(Column(f"Batch {batch}", "% of base", _ratio(batch)) for batch in batches),
        Column("Speed-up", "promised", lambda row: fixed(row["speedup_promised"], 2)),
        Column("Speed-up", f"{largest}", lambda row: fixed(row["speedup_reached"], 2)),
        Column("Reached", "% of promised", lambda row: fixed(100 * row["speedup_share_reached"], 0)),
        Column("Images/s", f"{largest}", lambda row: significant(row["images_per_second"], 3)),
        Column("Peak memory", "MiB", lambda row: significant(row["peak_memory_mib"], 3)),
        Column("Base's", "MiB", lambda row: significant(row["unreduced_peak_memory_mib"], 3)),
        Column("Fine-tuning", "s", lambda row: significant(row["fine_tuning_seconds"], 3)),
    ]


def fixed(value: Any, decimals: int, sign: str = "") -> str:
    """A number with so many decimals; nothing for a blank."""
    return "" if pd.isna(value) else f"{round(float(value), decimals) + 0.0:{sign}.{decimals}f}"


def significant(value: float, digits: int) -> str:
    """A number with at least so many significant digits, never with an exponent; nothing for a blank."""
    if pd.isna(value) or value == 0:
        return fixed(value, 0)
    return fixed(value, max(0, digits - 1 - floor(log10(abs(value)))))


def plus_minus(row: Row, name: str, sign: str = "") -> str:
    """mean ± half-width, two decimals; the mean alone below two seeds."""
    half_width = row[re.sub("(_top1_percent|_points)$", "_half_width_points", name)]
    return fixed(row[name], 2, sign) + ("" if pd.isna(half_width) else f" ± {half_width:.2f}")


def brief(counts: str) -> str:
    """Token counts; long lists by their ends: "184..41 (12 steps)"."""
    listed = counts.split(",")
    return counts if len(listed) <= LONG_LIST else f"{listed[0]}..{listed[-1]} ({len(listed)} steps)"


def _tokens(row: Row) -> str:
    """Achieved tokens, and the request where it differs."""
    achieved, requested = brief(row["tokens_achieved"]), brief(row["tokens_requested"])
    if row["unreduced"] or row["tokens_achieved"] == row["tokens_requested"]:
        return "all" if row["unreduced"] and row["seeds"] else achieved
    return f"{achieved} of {'≤' if row['count'] == 'at_most' else ''}{requested}"


def _seeds(row: Row) -> str:
    return str(row["seeds"]) if row["seeds"] == row["seeds_expected"] else f"{row['seeds']} of {row['seeds_expected']}"


def _latency(batch: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        middle, late = (row[f"latency_b{batch}_{name}_ms"] for name in ("median", "p95"))
        return "" if pd.isna(middle) else f"{significant(middle, 3)} ({significant(late, 3)})"

    return text


def _ratio(batch: int) -> Callable[[Row], str]:
    return lambda row: fixed(100 * row[f"latency_b{batch}_ratio"], 1)


def groups(frame: pd.DataFrame) -> Iterator[tuple[str, list[Row]]]:
    """(schedule, rows): first the base under its own, then every schedule in the frame's order."""
    for schedule, group in frame.groupby("schedule", sort=False):
        yield schedule, group.to_dict("records")


def failure(row: Row) -> str:
    """What a row without any numbers says instead of them; nothing for the others."""
    return f"failed: {row['error']}" if row["seeds"] == 0 and row["error"] else ""


def partial_failures(frame: pd.DataFrame) -> list[str]:
    """Rows of which some seeds failed, in words."""
    rows = frame[(frame["seeds"] > 0) & (frame["error"] != "")].to_dict("records")
    return [f"{row['method']}, {row['schedule']}: failed {row['error']}" for row in rows]


# ------------------------------------------------------------------------------------------ Markdown


def markdown(frame: pd.DataFrame) -> str:
    """Two tables for every schedule, accuracy and cost, each opened by the unreduced base."""
    first = frame.iloc[0]
    lines = [f"# {first['machine']}: {first['recipe']}", "", f"Recipe digest {first['recipe_digest']}. {NOTE}", ""]
    sections = dict(groups(frame))
    base = [row for rows in sections.values() for row in rows if row["unreduced"]]
    for schedule, rows in sections.items():
        reduced = [row for row in rows if not row["unreduced"]]
        if reduced or len(sections) == 1:
            lines += [f"## {schedule}", ""]
            lines += _markdown_table(accuracy(frame), base + reduced)
            lines += _markdown_table(cost(frame), base + reduced)
    partial = [f"- {_markdown_text(line)}" for line in partial_failures(frame)]
    return "\n".join(lines + (["Seeds left out:", "", *partial, ""] if partial else []))


def _markdown_table(columns: list[Column], rows: list[Row]) -> list[str]:
    heads = [", ".join(filter(None, (column.head, column.unit))) for column in columns]
    lines = [heads, [":--"] + ["--:"] * (len(columns) - 1)]
    for row in rows:
        texts = [_markdown_text(column.text(row)) for column in columns]
        if row["stands_alone"]:
            texts = [f"**{text}**" if column.head == "Fine-tuned" else text for column, text in zip(columns, texts)]
        if failure(row):
            texts = [texts[0], _markdown_text(failure(row))] + [""] * (len(columns) - 2)
        lines.append(texts)
    return [f"| {' | '.join(texts)} |" for texts in lines] + [""]


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", text)


# ------------------------------------------------------------------------------------------ LaTeX

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "≤": r"$\leq$"}
TEX |= {character: f"\\{character}" for character in "%_&#${}"} | {c: f"${c}$" for c in "<>|"}


def latex(frame: pd.DataFrame) -> str:
    """Two floats, accuracy and cost, for \\input into a document that loads booktabs."""
    first = frame.iloc[0]
    about = f"{first['machine']}, recipe {first['recipe']}"
    lines = ["% Made by `python -m tpbench report`. Needs \\usepackage{booktabs} and nothing else."]
    lines += _latex_float(frame, accuracy(frame), "accuracy", f"Accuracy. {about}. {NOTE}")
    lines += _latex_float(frame, cost(frame), "cost", f"Cost. {about}.")
    return "\n".join([*lines, ""])


def _latex_float(frame: pd.DataFrame, columns: list[Column], name: str, caption: str) -> list[str]:
    partial = "".join(f" Seeds left out: {line}." for line in partial_failures(frame))
    return [
        "\\begin{table*}",
        "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{tex(caption + partial)}}}",
        f"\\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', frame['machine'].iloc[0])}-{name}}}",
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
            yield f"\\multicolumn{{{len(columns)}}}{{l}}{{Schedule {tex(schedule)}}} \\\\"
        for row in rows:
            yield _latex_row(row, columns)


def _latex_row(row: Row, columns: list[Column]) -> str:
    texts = [tex(column.text(row)) for column in columns]
    if row["stands_alone"]:
        texts = [f"\\textbf{{{t}}}" if column.head == "Fine-tuned" else t for column, t in zip(columns, texts)]
    if failure(row):
        texts = [texts[0], f"\\multicolumn{{{len(columns) - 1}}}{{l}}{{{tex(failure(row))}}}"]
    return _latex_line(texts)


def _latex_line(texts: Iterator[str] | list[str]) -> str:
    return " & ".join(texts) + " \\\\"


def tex(text: str) -> str:
    """Text that LaTeX prints as it stands; signs outside ASCII that have no command become question marks."""
    return "".join(TEX.get(character, character) for character in text).encode("ascii", "replace").decode()


# ------------------------------------------------------------------------------------------ the terminal


def terminal_columns(frame: pd.DataFrame) -> list[Column]:
    """The narrow selection: at most 120 characters with method names up to 14."""
    batches = batch_sizes(frame)
    shown = list(dict.fromkeys([batches[0], batches[-1]])) if batches else []
    return [
        Column("method", "", lambda row: row["method"]),
        Column("tokens", "", lambda row: "failed" if failure(row) else _tokens(row)),
        Column("GMACs", "", lambda row: significant(row["gmacs"], 3)),
        Column("MACs", "%", lambda row: fixed(100 * row["macs_share"], 1)),
        Column("untuned", "%", lambda row: fixed(row["off_the_shelf_top1_percent"], 2)),
        Column("fine-tuned", "%", lambda row: plus_minus(row, "fine_tuned_top1_percent")),
        Column("to base", "points", lambda row: plus_minus(row, "base_difference_points", "+")),
        *(Column("ms at", f"batch {batch}", _median(batch)) for batch in shown),
        Column("speed-up", "(promised)", _speedup),
        Column("rank", "", lambda row: fixed(row["rank"], 0)),
    ]


def show(frame: pd.DataFrame, console: Console) -> None:
    """Print comparisons, one table per machine and schedule. Away from a terminal nothing is cut."""
    for machine, own in frame.groupby("machine", sort=False):
        columns = terminal_columns(own)
        widths = [max(len(text) for text in texts) for texts in zip(*_terminal_texts(own, columns))]
        _print(console, f"[bold]{machine}[/bold]  {own['recipe'].iloc[0]}")
        for schedule, rows in groups(own):
            _print(console, _terminal_table(schedule, rows, columns, widths))
        for row in own[own["error"] != ""].to_dict("records"):
            _print(console, f"{row['method']}, {row['schedule']}: failed: {row['error']}")
