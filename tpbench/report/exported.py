"""The table of `tpbench export`: which methods work with which route, and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from tpbench.record import replace_text
from tpbench.report.markdown import table

NOTE = """\
yes: on images that were not used to make it, the result gives the same logits as the eager model (in brackets, the
largest difference as a share of the largest logit). yes*: it runs, but the method draws at random, so that its logits
cannot be compared.

Programs of torch.export call tpbench's own operators if a method clusters or reads the attention received: import
`tpbench.vit` before you run one. ONNX files run without tpbench."""
REASON_CHARACTERS = 240


def write(folder: Path, survey: Mapping[str, Any]) -> list[Path]:
    """Write folder/export.json and folder/README.md, which is made from it; return the paths."""
    texts = {"export.json": json.dumps(survey, indent=1) + "\n", "README.md": markdown(survey)}
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [folder / name for name in texts]


def markdown(survey: Mapping[str, Any]) -> str:
    """The page: a table of methods by routes, then the reasons for failures."""
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
    """The text of an outcome: whether the route works, and the largest difference of logits."""
    if not outcome["works"]:
        return "no"
    difference = outcome["difference"]
    if difference is None:
        return "yes*"
    return "yes" if difference == 0 else f"yes ({difference:.0e})"


def why_not(survey: Mapping[str, Any]) -> Iterator[str]:
    """A line of Markdown for every route that fails, with the reason."""
    for name, routes in survey["methods"].items():
        for route, outcome in routes.items():
            if not outcome["works"]:
                yield f"- {name}, {route}: {shorten(outcome['reason'], REASON_CHARACTERS, placeholder=' ...')}"
