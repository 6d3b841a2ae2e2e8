"""`tpbench report`: tables, figures and the page from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.outcome import DONE, FAILED
from tpbench.cli.reading import say_what_was_read
from tpbench.errors import UsageError

HELP = "rebuild the tables and figures of a results folder from its records, or its page"
EXAMPLE = "tpbench report results/digits, or a page of two folders: tpbench report A B --html --out both.html"


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, nargs="+", metavar="DIR", help="a results folder; with --html several")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )
    verb.add_argument(
        "--html", action="store_true", help="write the page instead: one HTML file, all folders side by side"
    )
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help="with --html: the page (default: report.html in the one folder)"
    )


def act(arguments: argparse.Namespace) -> int:
    check(arguments)
    codes = [say_what_was_read(folder) for folder in arguments.folder]
    if arguments.html:
        from tpbench.report import page

        print(page.write(arguments.folder, arguments.out or arguments.folder[0] / page.NAME))
    else:
        tables(arguments.folder[0], arguments.by)
    return FAILED if FAILED in codes else DONE


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that say nothing together, and folders whose page has no place."""
    several = len(arguments.folder) > 1
    if several and not arguments.html:
        raise UsageError("several folders stand side by side on a page: add --html and --out FILE")
    if several and arguments.out is None:
        raise UsageError("the page of several folders needs a place: --out FILE")
    if arguments.out is not None and not arguments.html:
        raise UsageError("--out names the page that --html writes")
    if arguments.out is not None and arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out} is a folder; name the file, such as {arguments.out / 'report.html'}")
    if arguments.by is not None and arguments.html:
        raise UsageError("--by prints rows; the page of --html sorts and filters them")


def tables(folder: Path, by: str | None) -> None:
    """Write tables and figures and print their paths, or the rows where they are to be printed."""
    from tpbench.report import frame, terminal, write

    paths = write.write(folder)
    if by is None:
        print(*paths, sep="\n")
        return
    from rich.console import Console

    from tpbench.record import Store

    terminal.show(frame.compare(Store.of(folder)), Console(), by)
