"""`tpbench claims`: the paper's claims against the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.exit_codes import DONE
from tpbench.cli.unreadable import report_unreadable

HELP = "test the paper's eight claims against the records of results folders"
EXAMPLE = "tpbench claims results/cifar10-small results/digits --out FOLDER"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="results folders (default: all under results)"
    )
    verb.add_argument("--out", type=Path, default=Path("results"), help="where the table goes (default: results)")
    verb.add_argument("--json", action="store_true", help="print the claims as one JSON document (results/claims.json)")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench.claims import claims, page, study, summary

    folders = arguments.folders or sorted(path.parent for path in Path("results").glob("*/records"))
    codes = [report_unreadable(folder) for folder in folders]
    studies = study.read_studies(folders)
    readings = claims.readings(studies)
    paths = page.write(arguments.out, studies, readings)
    if arguments.json:
        print((arguments.out / "claims.json").read_text(encoding="utf-8"), end="")
        return max(codes, default=DONE)
    print("\n".join(one.sentence for one in summary.summaries(readings)))
    print("\n" + "\n".join(page.described(own) for own in studies))
    print("\n" + "\n".join(map(str, paths)))
    return max(codes, default=DONE)
