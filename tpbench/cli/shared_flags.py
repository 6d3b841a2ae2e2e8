"""The flags that several verbs share: where results go, what they run on, what they print."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_where(verb: ArgumentParser) -> None:
    """Add --out, --device and --plugin to a verb."""
    verb.add_argument("--out", type=Path, help="results folder (default: results/RECIPE)")
    verb.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    verb.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file with your own methods"
    )


def add_quiet(verb: ArgumentParser) -> None:
    """Add --quiet to a verb."""
    verb.add_argument("--quiet", action="store_true", help="print neither progress nor tables, only what went wrong")


def load_plugins(arguments: Namespace) -> None:
    """Register the methods in the files that --plugin names. Raises UsageError as `registry.plug` does."""
    from tpbench import registry

    for path in arguments.plugin:
        registry.plug(path)
