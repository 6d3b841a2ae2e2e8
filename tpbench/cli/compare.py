"""`tpbench compare`: what changed between two results folders, machines or commits."""

from __future__ import annotations

import argparse

from tpbench.cli.exit_codes import DONE, FAILED, say
from tpbench.cli.json_output import print_document

HELP = (
    "show what changed between two results folders, machines or commits: accuracy, MACs, tokens, speed, with intervals"
)
EXAMPLE = "tpbench compare results/digits@HEAD~1 results/digits --fail-above 2%"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    side = "DIR, DIR:MACHINE, DIR@COMMIT (as committed there) or DIR@COMMIT:MACHINE"
    verb.add_argument("a", metavar="A", help=f"before: {side}")
    verb.add_argument("b", metavar="B", help="after: the same forms")
    verb.add_argument(
        "--fail-above",
        metavar="2%",
        help="exit code 1 if a row of B is significantly worse by more than this: points of top-1 (after Holm), percent"
        " of MACs, percent of time in timing sessions (after Holm), or lacks numbers that A has",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench.report import compare, compare_json, compare_text, sides, worse

    percent = None if arguments.fail_above is None else worse.threshold(arguments.fail_above)
    a = sides.read(arguments.a)
    b = sides.read(arguments.b)
    margin = None if b.contrast is None else b.contrast.margin
    compared = [
        compare.changes(a.machines[first], b.machines[second], (a.sessions.get(first), b.sessions.get(second)), margin)
        for first, second in sides.pairs(a, b)
    ]
    found = [] if percent is None else worse.worse(compared, percent)
    if arguments.json:
        content = compare_json.document(a, b, compared) | {"fail_above_percent": percent, "worse": found}
        print_document(content)
    else:
        from rich.console import Console

        compare_text.show(a, b, compared=compared, console=Console())
    for reason in (*a.unread, *b.unread):
        say(reason, FAILED)
    for sentence in found:
        say(f"worse by more than {percent:g} %: {sentence}", FAILED)
    if percent is not None and not any(changes.judged for changes in compared):
        say(
            "no difference in accuracy has an interval (too few common seeds, or equal outcomes); none counts as worse",
            DONE,
        )
    return FAILED if found or a.unread or b.unread else DONE
