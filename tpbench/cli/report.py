"""`tpbench report`: tables and figures from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.only import print_document
from tpbench.cli.reading import say_what_was_read
from tpbench.cli.where import add_quiet

HELP = "rebuild the tables and figures of a results folder from its records"
EXAMPLE = "tpbench report results/digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a results folder")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )
    add_quiet(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of paths or tables")


def act(arguments: argparse.Namespace) -> int:
    from tpbench.record import Store
    from tpbench.report import document, frame, terminal, write

    code = say_what_was_read(arguments.folder)
    paths = write.write(arguments.folder)
    if arguments.json:
        store = Store.of(arguments.folder)
        whole = document.document(arguments.folder, frame.compare(store), [bad.reason for bad in store.bad])
        print_document(whole | {"paths": [str(path) for path in paths]})
    elif arguments.by is not None and not arguments.quiet:
        from rich.console import Console

        terminal.show(frame.compare(Store.of(arguments.folder)), Console(), arguments.by)
    elif not arguments.quiet:
        print(*paths, sep="\n")
    return code
