"""The table of `tpbench export`: which methods go through which route, and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from tpbench.record import replace_text
from tpbench.report.markdown import table

NOTE = """\
yes: the result gives the eager model's logits on images it was not made from (largest difference in brackets, as a
share of the largest logit); yes*: it runs, and the method draws at random, so that its logits cannot be compared.

Programs of torch.export call tpbench's own operators where a method clusters or reads the attention received: whoever
runs one imports `tpbench.vit` first. ONNX files need nothing of ours."""
REASON_CHARACTERS = 240


def write(folder: Path, survey: Mapping[str, Any]) -> list[Path]:
    """folder/export.json and, made from it alone, folder/README.md."""
    texts = {"export.json": json.dumps(survey, indent=1) + "\n", "README.md": markdown(survey)}
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [folder / name for name in texts]


def markdown(survey: Mapping[str, Any]) -> str:
    """Methods by routes, then the reasons."""
    routes = list(next(iter(survey["methods"].values())))
    packages = survey["environment"]["packages"] | survey["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "timm", *survey["packages"]))
    lines = ["# Compiling and exporting", ""]
    lines += [f"`{survey['model']}` reduced at `{survey['schedule']}`, float32 on a CPU; {versions}.", "", NOTE, ""]
    rows = [[name, *map(cell, by.values())] for name, by in survey["methods"].items()]
    lines += table(["Method", *routes], rows, left=1 + len(routes))
    reasons = list(why_not(survey))
    if reasons:
        lines += ["## Why not", "", *reasons, ""]
    return "\n".join(lines)


def cell(outcome: Mapping[str, Any]) -> str:
    """The text of an outcome: whether the route works, and the largest difference of the logits."""
    if not outcome["works"]:
        return "no"
    difference = outcome["difference"]
    return "yes*" if difference is None else "yes" if difference == 0 else f"yes ({difference:.0e})"


def why_not(survey: Mapping[str, Any]) -> Iterator[str]:
    """A line of Markdown for every route that fails, with the reason."""
    for name, routes in survey["methods"].items():
        for route, outcome in routes.items():
            if not outcome["works"]:
                yield f"- {name}, {route}: {shorten(outcome['reason'], REASON_CHARACTERS, placeholder=' ...')}"
