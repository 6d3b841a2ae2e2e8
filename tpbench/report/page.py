"""The report as one HTML file that opens without a network: findings, charts, table, pictures, and how to repeat it.

It shows the same comparisons and columns as the tables. Scripts, styles, data and pictures are inside the file, and its
content security policy forbids it to load anything else. altair describes the charts for Vega-Lite; the browser draws
them when they come into view.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tpbench import __version__
from tpbench.errors import UsageError
from tpbench.record import replace_text
from tpbench.report import columns, page_files, page_repeat, page_rows, page_table
from tpbench.report.contrast import Contrast
from tpbench.report.methods import FAMILIES_SHOWN
from tpbench.report.results import Results

NAME = "report.html"
SECTIONS = {
    "accuracy": "Accuracy against cost",
    "rows": "All rows",
    "differences": "Differences to the reference",
    "layers": "Layer by layer",
    "speed": "Promised and measured speed-up",
    "claims": "The paper's claims",
}
MISSING = "the page needs altair and vl-convert-python: python -m pip install altair vl-convert-python"


def write(
    folders: Sequence[Path], path: Path, contrast: Contrast | None = None, results: Results | None = None
) -> Path:
    """Write the page of one results folder, or of several side by side, and return its path.

    results: the results of one of the folders, if they were already read and compared.
    Raises UsageError if a folder holds no records or is given twice, and if altair is not installed.
    """
    folders = list(folders)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a results folder is given twice")
    replace_text(path, html(folders, path=path, contrast=contrast, results=results))
    return path


def html(folders: Sequence[Path], path: Path, contrast: Contrast | None = None, results: Results | None = None) -> str:
    """The text of the page. Its links are relative to `path`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    studies = page_rows.studies(folders, contrast, results)
    shown, lines = page_table.table(studies)
    figures, data = drawings(studies, lines)
    claims, explained = page_files.claims(folders, path)
    environment = Environment(
        loader=PackageLoader("tpbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(folder.resolve().name for folder in folders)),
        version=__version__,
        sections=sections(figures, bool(claims)),
        studies=studies,
        about=[page_repeat.about(study) for study in studies],
        families=families(lines),
        schedules=list(dict.fromkeys(line.row["schedule"] for line in lines if not line.row["unreduced"])),
        columns=shown,
        lines=lines,
        figures=figures,
        claims=claims,
        explained=explained,
        pictures=page_files.pictures(folders, path),
        profiles=page_files.profiles(folders, path),
        meanings=columns.meanings(),
        again=page_repeat.page_command(folders, path),
        data=embedded(data),
        vega=vega(),
        style=_part("page.css"),
        script=_part("page.js"),
    )


def drawings(studies: Sequence[page_rows.Study], lines: Sequence[page_table.Line]) -> tuple[list, dict[str, Any]]:
    """The figures of the page, and the data that its scripts read."""
    try:
        from tpbench.report import page_figures
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error})") from error
    figures = page_figures.figures(studies)
    return figures, page_figures.data(studies, lines, figures)


def sections(figures: Sequence[Any], claims: bool) -> list[tuple[str, str]]:
    """The sections between the findings and the commands: (id, heading)."""
    present = {figure.section for figure in figures} | {"rows", "speed"} | ({"claims"} if claims else set())
    return [(name, heading) for name, heading in SECTIONS.items() if name in present]


def families(lines: Sequence[page_table.Line]) -> list[tuple[str, str]]:
    """(name, outline of its symbol) of each family that has rows."""
    from tpbench.report.page_figures import GLYPHS, SYMBOLS

    present = {line.row["family"] for line in lines}
    return [(family, GLYPHS[symbol]) for family, symbol in zip(FAMILIES_SHOWN, SYMBOLS) if family in present]


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element: it can neither end the element nor open a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from vl-convert-python."""
    try:
        import vl_convert

        from tpbench.report import page_charts
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error})") from error
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=page_charts.schema())
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
