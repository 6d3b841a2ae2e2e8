"""`tpbench report`: tables, figures and the page from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.exit_codes import DONE, FAILED
from tpbench.cli.json_output import print_document
from tpbench.cli.shared_flags import add_quiet
from tpbench.cli.unreadable import report_unreadable
from tpbench.errors import UsageError

HELP = "rebuild the tables and figures of a results folder from its records and timing sessions, or its page"
EXAMPLE = "tpbench report results/digits, or a page of two folders: tpbench report A B --html --out both.html"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("folder", type=Path, nargs="+", metavar="DIR", help="a results folder; with --html several")
    verb.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )
    add_quiet(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of paths or tables")
    verb.add_argument(
        "--html", action="store_true", help="write the page instead: one HTML file, all folders side by side"
    )
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help="with --html: the page (default: report.html in the one folder)"
    )


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    check(arguments)
    codes = [report_unreadable(folder) for folder in arguments.folder]
    if arguments.html:
        from tpbench.report import page

        written = page.write(arguments.folder, arguments.out or arguments.folder[0] / page.NAME)
        if not arguments.quiet:
            print(written)
    else:
        tables(arguments)
    return FAILED if FAILED in codes else DONE


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags that contradict each other, and for several folders without --out."""
    several = len(arguments.folder) > 1
    if several and not arguments.html:
        raise UsageError("several folders are shown side by side on a page: add --html and --out FILE")
    if several and arguments.out is None:
        raise UsageError("the page of several folders needs --out FILE")
    if arguments.out is not None and not arguments.html:
        raise UsageError("--out names the page that --html writes")
    if arguments.out is not None and arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out} is a folder; name the file, such as {arguments.out / 'report.html'}")
    if arguments.json and arguments.html:
        raise UsageError("--json prints the tables and does not go with --html")
    if arguments.by is not None and arguments.html:
        raise UsageError("--by prints rows; the page of --html sorts and filters them")


def tables(arguments: argparse.Namespace) -> None:
    """Write tables and figures, and print their paths, their rows or one JSON object, as the flags say."""
    from tpbench.record import Store
    from tpbench.report import document, terminal, timed, write
    from tpbench.report.results import Results

    folder = arguments.folder[0]
    results = Results.of(folder)
    paths = write.write_results(results)
    if arguments.json:
        content = document.document(folder, results.comparisons, [bad.reason for bad in Store.of(folder).bad])
        print_document(content | {"paths": [str(path) for path in paths]})
    elif arguments.by is not None and not arguments.quiet:
        from rich.console import Console

        terminal.show(results.comparisons, Console(), arguments.by)
        if not results.comparisons:
            for session in results.sessions:
                timed.show(session, Console())
    elif not arguments.quiet:
        print(*paths, sep="\n")
