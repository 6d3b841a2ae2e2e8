"""`tpbench export`: which methods compile and export."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.exit_codes import DONE

HELP = "test which methods work with torch.compile, torch.export and ONNX, and say why the others do not"
EXAMPLE = "tpbench export --methods all --out results/export"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--methods", default="all", help="all (default), or names separated by commas")
    verb.add_argument("--model", default="test_vit", help="a timm model name (default test_vit, a small one)")
    verb.add_argument("--schedule", default="0.7@1,3", help="a budget (default 0.7@1,3)")
    verb.add_argument("--out", type=Path, default=Path("results/export"), help="folder (default results/export)")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench import registry

    cards = registry.select(arguments.methods)

    from tpbench.measure import export
    from tpbench.report import exported

    for path in exported.write(arguments.out, export.survey(cards, arguments.model, arguments.schedule)):
        print(path)
    return DONE
