"""How a command ends: its exit codes, and the one line on standard error that says why."""

from __future__ import annotations

import sys

DONE, FAILED, WRONG = 0, 1, 2
INTERRUPTED, TERMINATED = 130, 143  # 128 + the number of the signal, as shells report it


def say(what: object, code: int) -> int:
    """Print one line to standard error and return the exit code."""
    print(f"tpbench: {what}", file=sys.stderr)
    return code
