"""`tpbench list`: the methods that `run` knows."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tpbench.cli.exit_codes import DONE, FAILED, say

HELP = "list the available methods"
EXAMPLE = "tpbench list --json"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--json", action="store_true", help="print a list of objects instead of a table")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench import registry

    cards, broken = registry.catalogue()
    if arguments.json:
        print(json.dumps([asdict(card) for card in cards.values()], indent=1))
    else:
        for card in cards.values():
            source = f"{card.venue} {card.year}" if card.venue else ""
            print(f"{card.name:<14} {card.count:<8} {source:<14} {card.title}")
    for problem in broken:
        say(f"method file {problem.module} is broken: {problem.reason}", FAILED)
    return FAILED if broken else DONE
