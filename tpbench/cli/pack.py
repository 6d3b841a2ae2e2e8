"""`tpbench pack`: the records of a results folder as one file per machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.exit_codes import DONE
from tpbench.errors import UsageError

HELP = "pack the records of a results folder into one file per machine, as a complete run does at its end"
EXAMPLE = "tpbench pack results/digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="a results folder")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench.bench.results_folder import locked, refuse_others
    from tpbench.record import Store, seal_file

    folder = arguments.folder
    if not (folder / "records").is_dir():
        raise UsageError(f"{folder} holds no records")
    with locked(folder):
        refuse_others(folder, "wait for it")
        store = Store.of(folder)
        store.refuse_bad()
        for machine in store.machines:
            print(store.pack(machine))
        for kind in ("spectra", "starts", "budgets", "learned"):
            for path in sorted((folder / kind).rglob("*.json")):
                if seal_file(path):
                    print(path)
    return DONE
