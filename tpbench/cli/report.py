"""`tpbench report`: tables and figures from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.reading import say_what_was_read

HELP = "rebuild the tables and figures of a results folder from its records and timing sessions"
EXAMPLE = "tpbench report results/digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a results folder")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )


def act(arguments: argparse.Namespace) -> int:
    from tpbench.report import frame, sessions, terminal, timed, write

    code = say_what_was_read(arguments.folder)
    paths = write.write(arguments.folder)
    if arguments.by is None:
        print(*paths, sep="\n")
        return code
    from rich.console import Console

    from tpbench.record import Store

    found = sessions.of(arguments.folder)
    comparisons = frame.compare(Store.of(arguments.folder), timed=found)
    terminal.show(comparisons, Console(), arguments.by)
    for session in found if not comparisons else []:
        timed.show(session, Console())
    return code
