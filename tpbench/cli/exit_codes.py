"""How a command ends: its exit codes, and the one line on standard error that says why."""

from __future__ import annotations

import sys

from tpbench.errors import one_line

DONE = 0
FAILED = 1
WRONG = 2
INTERRUPTED = 130  # 128 + the number of the signal, as shells report it
TERMINATED = 143


def say(what: object, code: int) -> int:
    """Print one line to standard error and return the exit code. Line breaks, as in a file's name, become spaces."""
    print("tpbench:", one_line(str(what)), file=sys.stderr)
    return code
