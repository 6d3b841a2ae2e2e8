"""Sphinx: `python -m tox -e docs`, or `python -m sphinx -W docs build/docs`. Pages are Markdown (MyST)."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from sphinx.application import Sphinx

import tpbench

project = "tpbench"
author = "The tpbench developers"
release = tpbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
html_theme = "furo"
html_title = "tpbench"
html_show_copyright = False
html_copy_source = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

TABLE = re.compile(r"\S  +\S")  # columns that were aligned by hand


def literal(paragraph: str) -> bool:
    """Whether the lines of a paragraph must stay as they are."""
    return any(line.startswith(" ") or TABLE.search(line) for line in paragraph.splitlines())


def plain(paragraph: str) -> str:
    """A paragraph of a docstring as reStructuredText: docstrings here are plain text with `code` in it."""
    if literal(paragraph):
        indented = "\n".join(f"   {line}" for line in dedent(paragraph).splitlines())
        return f".. code-block:: text\n\n{indented}"
    pieces = re.split(r"`([^`]+)`", paragraph)
    escaped = [re.sub(r"([\\*|_])", r"\\\1", piece) for piece in pieces[::2]]
    code = [f"``{piece}``" for piece in pieces[1::2]]
    return "".join(piece for pair in zip(escaped, [*code, ""], strict=True) for piece in pair)


def process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = [*"\n\n".join(plain(paragraph) for paragraph in paragraphs).splitlines(), ""]


def name_files(app: Sphinx, page: str, source: list[str]) -> None:  # noqa: ARG001
    """A link to a file outside docs/ works in a checkout. The site has only its name."""
    source[0] = re.sub(r"\[[^\]]+\]\(\.\./([^)]+)\)", r"`\1`", source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", name_files)
    app.connect("autodoc-process-docstring", process_docstring)
