"""What goes into a paper: LaTeX tables that compile, and figures as PDF that name at most eight methods."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import example, measured, only, over_seeds, printed

from tpbench.record import Record
from tpbench.report import forest, pareto, tables
from tpbench.report.latex import latex, tex
from tpbench.report.pareto import EMPHASISED, emphasised, spread

NASTY = "[x]_50%&#$~^\\{<>|±†"
SPECIAL = re.compile(r"(?<!\\)[%&#$_{}~^]")


def nasty() -> list[Record]:
    """The example of the report, and a method, a failure and a recipe with every sign that LaTeX reads."""
    records = [*example(), *over_seeds(NASTY, (90.0, 91.1, 90.4))]
    records += [replace(measured(f"*{NASTY}", seed, 90), error=f"why {NASTY}\nand more") for seed in range(3)]
    return [replace(record, recipe=f"digits+{NASTY}") for record in records]


def written(records: list[Record]) -> str:
    comparison = only(records)
    return latex(comparison, tables.accuracy(), tables.cost(comparison.frame), f"{tables.NOTE} {NASTY}")


def faults(text: str) -> list[str]:
    """What would not compile, or would compile to something else."""
    found = []
    stack: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if what == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            found.append(f"\\end{{{name}}} without its beginning")
    found += [f"\\begin{{{name}}} without its end" for name in stack]
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    found += [f"a comment or a parameter: {line}" for line in lines if re.search(r"(?<!\\)[%#]", line)]
    bare = re.sub(r"\\[{}%&#$_\\]", "", text)
    if bare.count("{") != bare.count("}"):
        found.append("braces do not match")
    if not text.isascii():
        found.append("signs outside ASCII")
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        found += _rows(len(table[0]), table[1])
    return found


def _rows(columns: int, body: str) -> list[str]:
    """Lines of a table with another number of cells than it has columns, or that begin like an option."""
    found = []
    for line in body.strip().splitlines():
        if line in ("\\toprule", "\\midrule", "\\bottomrule"):
            continue
        spans = [int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        cells = len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans)
        if cells != columns or not line.endswith("\\\\"):
            found.append(f"{cells} of {columns} cells: {line}")
        if line.startswith(("[", "*")):
            found.append(f"begins like an option: {line}")
    return found


def test_tables_are_well_formed_whatever_the_names() -> None:
    assert faults(written(example())) == []
    assert faults(written(nasty())) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda text: text.replace("\\end{tabular}", "", 1), "without its"),
        (lambda text: text.replace("\\%", "%", 1), "comment"),
        (lambda text: text.replace(" \\\\\n", "\n", 1), "cells"),
        (lambda text: text.replace("wkmedoids & ", "wkmedoids & & ", 1), "cells"),
        (lambda text: text.replace("\\caption{", "\\caption{{", 1), "braces"),
        (lambda text: text.replace("\nwkmedoids & ", "\n[wkmedoids] & ", 1), "like an option"),
        (lambda text: text.replace("wkmedoids", "wkmédoids", 1), "ASCII"),
    ],
)
def test_control_a_fault_is_found(fault, says: str) -> None:
    broken = fault(written(example()))
    assert broken != written(example())
    assert any(says in found for found in faults(broken))


def test_every_special_sign_is_escaped() -> None:
    shown = tex(NASTY)
    without = re.sub(r"\\text[a-z]+\{\}|\\[{}%&#$_]|\$\\?[a-z<>|]+\$", "", shown)
    assert not SPECIAL.search(without), shown
    assert SPECIAL.search(NASTY), "control"


ENGINES = [name for name in ("tectonic", "pdflatex", "lualatex", "xelatex") if shutil.which(name)]


@pytest.mark.skipif(not ENGINES, reason="no LaTeX here: tectonic, pdflatex, lualatex and xelatex are all absent")
def test_tables_compile(tmp_path: Path) -> None:
    page = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\n"
    path = tmp_path / "page.tex"
    path.write_text(f"{page}{written(nasty())}\n\\end{{document}}\n", encoding="utf-8")
    words = [ENGINES[0], path.name] if ENGINES[0] == "tectonic" else [ENGINES[0], "-interaction=nonstopmode", path.name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert path.with_suffix(".pdf").stat().st_size > 5_000


# ------------------------------------------------------------------------------------------ figures


def many() -> list[Record]:
    names = ["tome", "topk", "evit", "avgpool", "kmeans", "wkmeans", "sit", "ats", "random", "pitome", "dpcknn"]
    records = over_seeds("none", (97.0, 98.0, 97.6), share=1.0) + over_seeds("wkmedoids", (80.0, 81.1, 80.4))
    for number, name in enumerate(names):
        records += over_seeds(name, (96.0 - number, 97.1 - number, 96.6 - number))
    return records


def test_the_figure_names_the_reference_the_front_and_every_family() -> None:
    comparison = only(many())
    costs = list(pareto._costs(comparison.frame))
    named = emphasised(comparison, costs)
    assert len(costs) == 2, "multiply-adds and time"
    assert named[:2] == ["wkmedoids", "tome"], "the reference, however low, then the front"
    assert len(named) <= EMPHASISED
    families = comparison.frame.set_index("method")["family"]
    assert {families[name] for name in named} >= {"merging", "pruning", "clustering", "grid", "learned queries"}
    assert "none" not in named
    assert "dpcknn" not in named, "neither on the front nor the best of its family"


def test_names_never_overlap() -> None:
    heights = [90.0, 90.1, 90.2, 95.0, 97.9, 98.0, 98.0]
    moved = spread(heights, 0.5, top=98.0)
    assert moved == sorted(moved)
    assert all(second - first >= 0.5 - 1e-9 for first, second in pairwise(moved))
    assert moved[-1] <= 98.0
    assert moved[3] == 95.0, "what has room stays"
    assert spread([90.0, 91.0], 0.5, top=98.0) == [90.0, 91.0]


@pytest.mark.parametrize("draw", [pareto.draw, forest.draw])
def test_figures_are_pictures_and_pages(draw, tmp_path: Path) -> None:
    comparison = only(many())
    path = draw(comparison, tmp_path / "figure.png")
    page = path.with_suffix(".pdf").read_bytes()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert page.startswith(b"%PDF")
    assert len(page) < 200_000
    draw(comparison, tmp_path / "again.png")
    assert (tmp_path / "again.pdf").read_bytes() == page, "the same figure gives the same bytes"
    draw(only(many()[:-3]), tmp_path / "other.png")
    assert (tmp_path / "other.pdf").read_bytes() != page, "control"


def test_a_small_marker_keeps_the_colour_of_its_family(tmp_path: Path) -> None:
    comparison = only(many())
    pixels = np.asarray(Image.open(pareto.draw(comparison, tmp_path / "figure.png")).convert("RGB")).reshape(-1, 3)
    colours = np.unique(pixels, axis=0).astype(int)

    def nearest(colour: str) -> int:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return int(np.abs(colours - wanted).max(axis=1).min())

    for family in ("clustering", "merging", "pruning", "grid", "learned queries", "trivial"):
        assert nearest(pareto.family_colour(family)) <= 16, family
    assert nearest("#FF00FF") > 16, "control: a colour of no family"


def test_rows_that_save_nothing_have_no_place() -> None:
    hidden = over_seeds("avit", (97.5, 98.4, 98.0), share=1.0, count="masked")
    comparison = only([*many(), *hidden])
    assert "avit" not in emphasised(comparison, list(pareto._costs(comparison.frame)))
    shown = only([*many(), *[replace(record, count="exact") for record in hidden]])
    assert "avit" in emphasised(shown, list(pareto._costs(shown.frame))), "control"


def test_what_was_not_measured_has_no_panel() -> None:
    bare = [replace(record, latency={}) for record in many()]
    (cost,) = pareto._costs(only(bare).frame)
    assert cost.label.startswith("multiply-adds")
    assert cost.values.max() == 100


# ------------------------------------------------------------------------------------------ a narrow terminal


@pytest.mark.parametrize("width", [60, 72, 100])
def test_the_final_table_fits_the_terminal(width: int) -> None:
    text = printed(example(), width=width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("Method", "Fine-tuned", "96.5 ±", "To reference", "better" if width == 100 else ""):
        assert word in text, "what matters most is left"
