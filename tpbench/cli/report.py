"""`tpbench report`: tables and figures from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.outcome import DONE

HELP = "rebuild the tables and figures of a results folder from its records"
EXAMPLE = "tpbench report results/digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a results folder")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )


def act(arguments: argparse.Namespace) -> int:
    from tpbench.report import frame, terminal, write

    paths = write.write(arguments.folder)
    if arguments.by is None:
        print(*paths, sep="\n")
        return DONE
    from rich.console import Console

    from tpbench.record import read_all

    terminal.show(frame.compare(read_all(arguments.folder)), Console(), arguments.by)
    return DONE
